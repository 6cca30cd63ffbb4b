import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from conftest import planted

from src.attacks import adversarial
from src.attacks.adversarial import (
    EPSILONS,
    METHODS,
    Search,
    attack,
    check_contract,
    make_classifier,
    noise_l2,
    noise_linf,
)
from src.attacks.records import make_target
from src.attacks.suite import first_success, noise_records, sweep
from src.models.evaluation import predict_logits, softmax

ITERATIONS = 10
EPS = 0.1


@pytest.fixture(scope="module")
def model(slim_model):
    return slim_model


@pytest.fixture(scope="module")
def classifier(model):
    return make_classifier(model)


@pytest.fixture(scope="module")
def data(clips):
    return clips


@pytest.fixture(scope="module")
def records(target):
    search = Search(ITERATIONS, early_stopping=True)
    tables = [sweep(name, target, EPSILONS, search) for name in ("fgsm", "pgd")]
    return pd.concat(tables, ignore_index=True)


def accuracy(model, X, y):
    return (predict_logits(model, X).argmax(axis=1) == y).mean()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("eps", [0.001, 0.05, 1])
def test_an_attack_stays_within_eps_and_range(name, eps, model, data):
    X, y = data.X, data.y
    before = X.copy()
    attacked = attack(name, model, X, y, eps, Search(ITERATIONS))
    assert (attacked.shape, attacked.dtype) == (X.shape, np.float32)
    assert np.isfinite(attacked).all()
    assert 0 < np.abs(attacked - X).max() <= eps + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert np.array_equal(X, before)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_silence_is_attacked_within_bounds(name, model):
    X = np.zeros((2, 128, 130), dtype=np.float32)
    assert np.isfinite(attack(name, model, X, np.array([0, 1]), EPS, Search(ITERATIONS))).all()


@pytest.mark.parametrize("name", METHODS)
def test_eps_zero_changes_nothing(name, model, data):
    X, y = data.X, data.y
    assert np.array_equal(attack(name, model, X, y, 0, Search(ITERATIONS)), X)


@pytest.mark.parametrize("eps", [-0.01, 1.01, float("nan"), float("inf")])
def test_an_eps_outside_of_the_range_is_refused(eps, model, data):
    with pytest.raises(ValueError, match=rf"eps is {eps}: it must lie in \[0, 1\]"):
        attack("fgsm", model, data.X, data.y, eps)


@pytest.mark.parametrize("eps", [0, EPS])
def test_an_unknown_attack_is_refused(eps, model, data):
    with pytest.raises(ValueError, match="boundary is not an attack known here: give one of"):
        attack("boundary", model, data.X, data.y, eps)


def test_the_contract_catches_a_broken_attack():
    X = np.full((2, 3, 3), 0.5, dtype=np.float32)
    check_contract(X, X + np.float32(0.1), 0.1)
    broken = {"beyond eps": (0.62, 0.1), "above 1": (1.1, 0.7), "below 0": (-0.1, 0.7)}
    broken |= {"nan": (np.nan, 0.1), "infinite": (np.inf, 1)}
    for value, eps in broken.values():
        attacked = X.copy()
        attacked[1, 2, 0] = value
        with pytest.raises(AssertionError, match="its result is not used"):
            check_contract(X, attacked, eps)


def test_an_attack_that_breaks_its_contract_is_not_returned(model, data, monkeypatch):
    def rough(number, X, y, eps, job):
        return X + np.float32(0.2)

    monkeypatch.setitem(adversarial.METHODS, "fgsm", rough)
    with pytest.raises(AssertionError, match="left its bounds"):
        attack("fgsm", model, data.X, data.y, 0.1)


def test_the_network_attacked_here_has_learnt(model):
    assert accuracy(model, *planted(4, 24)) >= 0.75


def test_pgd_harms_at_least_as_much_as_fgsm_and_both_far_more_than_noise(model, data):
    X = data.X
    y = predict_logits(model, X).argmax(axis=1)
    rng = np.random.default_rng(0)
    noisy = (X + rng.choice([-EPS, EPS], X.shape)).clip(0, 1)
    fgsm, pgd = (
        accuracy(model, attack(name, model, X, y, EPS, Search(ITERATIONS)), y)
        for name in ("fgsm", "pgd")
    )
    assert pgd <= fgsm <= accuracy(model, noisy, y) - 0.5


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd_targeted"])
def test_attacks_raise_the_loss_of_the_true_genre_or_lower_that_of_the_target(name, model, data):
    targeted = name == "pgd_targeted"
    y = (data.y + 1) % 3 if targeted else data.y
    attacked = attack(name, model, data.X, y, 0.005, Search(ITERATIONS))
    rows = np.arange(len(y))
    before, after = (softmax(predict_logits(model, x))[rows, y] for x in (data.X, attacked))
    assert ((after > before) if targeted else (after < before)).all()


def test_the_random_start_depends_on_the_seed_alone(model, data):
    X, y = data.X, data.y
    first, again = (attack("pgd", model, X, y, EPS, Search(1, seed=1)) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, attack("pgd", model, X, y, EPS, Search(1, seed=2)))
    assert np.array_equal(*(attack("fgsm", model, X, y, EPS, Search(seed=s)) for s in (1, 2)))


def test_attacked_segments_are_judged_by_the_network_itself(target, monkeypatch):
    contrary = copy.deepcopy(target.model)
    for parameter in contrary.output.parameters():
        parameter.data.neg_()
    monkeypatch.setattr(adversarial, "make_classifier", lambda _: make_classifier(contrary))
    smallest, flipped = first_success("pgd", target, (0.002, EPS), Search(ITERATIONS))
    wrong = target.predict(flipped) != target.data.y
    assert np.array_equal(wrong[target.correct], ~np.isnan(smallest)[target.correct])
    monkeypatch.undo()
    with_own_gradients, _ = first_success("pgd", target, (0.002, EPS), Search(ITERATIONS))
    assert np.isnan(smallest).sum() > np.isnan(with_own_gradients).sum()


@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_makes_the_steps_of_art(targeted, model, data, classifier, monkeypatch, in_precision):
    in_precision("float32")
    monkeypatch.setattr(adversarial.np.random, "uniform", lambda *_: np.zeros_like(data.X)[:, None])
    name = "pgd_targeted" if targeted else "pgd"
    goal = (data.y + 1) % 3 if targeted else data.y
    library = ProjectedGradientDescent(
        classifier, eps=EPS, eps_step=EPS / 4, max_iter=ITERATIONS, targeted=targeted, verbose=False
    )
    expected = library.generate(data.X[:, None], goal)[:, 0]
    made = attack(name, model, data.X, goal, EPS, Search(ITERATIONS))
    assert np.mean(np.abs(made - expected) > 1e-6) < 0.03  # signs of gradients near zero


def test_fgsm_is_that_of_art(model, data, classifier, in_precision):
    in_precision("float32")
    expected = FastGradientMethod(classifier, eps=EPS).generate(data.X[:, None], data.y)[:, 0]
    made = attack("fgsm", model, data.X, data.y, EPS)
    assert np.mean(np.abs(made - expected) > 1e-6) < 0.01


def test_early_stopping_flips_the_same_segments_with_fewer_gradients(target, monkeypatch):
    work = []

    class Counting(PyTorchClassifier):
        def loss_gradient(self, x, y, **options):
            work.append(len(x))
            return super().loss_gradient(x, y, **options)

    monkeypatch.setattr(adversarial, "PyTorchClassifier", Counting)
    found, gradients = {}, {}
    for stops in (False, True):
        work.clear()
        made = attack(
            "pgd", target.model, target.data.X, target.data.y, 0.02, Search(ITERATIONS, 42, stops)
        )
        found[stops] = target.predict(made) != target.data.y
        gradients[stops] = sum(work)
    assert found[True].tolist() == found[False].tolist()
    assert 0.2 < found[True].mean() < 1
    assert gradients[False] == ITERATIONS * len(target.data.y)
    assert gradients[True] < 0.9 * gradients[False]


def test_bins_with_an_eps_of_zero_stay_as_they_are(model, data):
    eps = np.zeros_like(data.X)
    eps[:, 20:40, 10:50] = EPS
    made = attack("pgd", model, data.X, data.y, eps, Search(ITERATIONS))
    assert np.array_equal(made[eps == 0], data.X[eps == 0])
    assert (np.abs(made - data.X).max(axis=(1, 2)) > 0.9 * EPS).all()


def test_gradients_come_in_bfloat16_and_losses_in_float32(model, classifier, data, in_precision):
    in_precision("bfloat16")
    exact = predict_logits(model, data.X)
    np.testing.assert_allclose(classifier.predict(data.X[:, None]), exact, atol=1e-3)
    x = torch.from_numpy(data.X[:, None]).requires_grad_()
    fast = classifier.model(x).detach().numpy()
    assert fast.dtype == np.float32
    assert 1e-3 < np.abs(fast - exact).max() < 0.05 * np.abs(exact).max() + 0.05


def test_each_segment_may_have_an_eps_of_its_own(model, data):
    eps = np.linspace(0.001, 0.1, len(data.X))
    attacked = attack("pgd", model, data.X, data.y, eps, Search(ITERATIONS))
    largest = np.abs(attacked - data.X).max(axis=(1, 2))
    np.testing.assert_allclose(largest, eps, rtol=1e-3)
    eps[3] = 2
    with pytest.raises(ValueError, match="it must lie in"):
        attack("pgd", model, data.X, data.y, eps)


def test_a_sweep_has_one_record_a_segment_attack_and_eps(records, data):
    X, y, segments = data.X, data.y, data.table
    assert len(records) == 2 * len(EPSILONS) * len(X)
    assert not records.duplicated(["attack", "eps", "segment"]).any()
    for _, rows in records.groupby(["attack", "eps"]):
        assert rows["segment"].tolist() == segments["segment"].tolist()
        assert rows["track"].tolist() == segments["track"].tolist()
        assert rows["true"].tolist() == y.tolist()
    np.testing.assert_allclose(records["eps_db"], 80 * records["eps"])


def test_changes_on_record_stay_within_eps(records):
    assert (records["linf"] <= records["eps"] + 1e-6).all()
    assert (records["l2"] <= records["eps"] * np.sqrt(128 * 130) + 1e-3).all()
    changed = records[records["linf"] > 0]
    assert changed["snr_db"].between(0, 80).all()


def test_segments_wrong_before_stay_unchanged_and_are_no_success(records):
    wrong = records[records["clean_prediction"] != records["true"]]
    assert set(wrong["segment"]) == {8, 18}
    assert (wrong["adversarial_prediction"] == wrong["clean_prediction"]).all()
    assert not wrong["success"].any()
    assert (wrong[["linf", "l2"]] == 0).all(axis=None)
    assert wrong["snr_db"].isna().all()


def test_segments_right_before_are_a_success_exactly_if_they_are_wrong_after(records):
    right = records[records["clean_prediction"] == records["true"]]
    assert (right["success"] == (right["adversarial_prediction"] != right["true"])).all()
    assert right["success"].any()
    assert not right["success"].all()


def test_what_pgd_broke_stays_broken_by_the_same_change(records):
    pgd = records[records["attack"] == "pgd"]
    for _, rows in pgd.groupby("segment"):
        broken = rows.sort_values("eps")["success"].to_numpy()
        assert (np.diff(broken.astype(int)) >= 0).all()
        assert rows.loc[rows["success"], ["linf", "l2", "snr_db"]].drop_duplicates().shape[0] <= 1
    assert pgd.groupby("segment")["success"].sum().max() > 1


def test_the_perturbation_of_fgsm_grows_with_eps(records):
    fgsm = records[(records["attack"] == "fgsm") & (records["linf"] > 0)]
    np.testing.assert_allclose(fgsm["linf"], fgsm["eps"], rtol=1e-3)


def test_epsilons_may_come_in_any_order(target, records):
    again = sweep("pgd", target, EPSILONS[::-1], Search(ITERATIONS, early_stopping=True))
    pd.testing.assert_frame_equal(again, records[records["attack"] == "pgd"].reset_index(drop=True))


def test_the_smallest_flips_agree_with_the_records(target, records):
    X, y, segments = target.data.X, target.data.y, target.data.table
    for name in ("fgsm", "pgd"):
        smallest, flipped = first_success(name, target, EPSILONS, Search(ITERATIONS))
        found = ~np.isnan(smallest)
        assert 0 < found.sum() < len(X)
        predicted = target.predict(flipped)
        assert (predicted[found] != y[found]).all()
        assert np.array_equal(flipped[~found], X[~found])
        assert (np.abs(flipped - X)[found].max(axis=(1, 2)) <= smallest[found] + 1e-6).all()
        rows = records[records["attack"] == name]
        by_hand = [
            rows.loc[(rows["segment"] == s) & rows["success"], "eps"].min()
            for s in segments["segment"]
        ]
        np.testing.assert_array_equal(smallest, by_hand)


@pytest.fixture(scope="module")
def cut():
    """Return segments a third of whose bins lie at the floor, where noise is cut."""
    X = np.random.default_rng(0).random((5, 128, 130), dtype=np.float32)
    return np.where(X < 1 / 3, 0, X)


@pytest.mark.parametrize("eps", [0.001, 0.01, 0.1])
def test_uniform_noise_has_exactly_its_linf_norm(cut, eps):
    middle = np.full_like(cut, 0.5)
    change = noise_linf(middle, eps, seed=1) - middle
    np.testing.assert_allclose(np.abs(change).max(axis=(1, 2)), eps, atol=1e-7)
    assert np.abs(change).mean() == pytest.approx(eps / 2, rel=0.02)  # uniform
    noisy = noise_linf(cut, eps, seed=1)
    assert np.abs(noisy - cut).max() <= eps + 1e-7
    assert (noisy.min(), noisy.max() <= 1) == (0, True)


@pytest.mark.parametrize("share", [0.01, 0.3, 1, 3])
def test_gaussian_noise_has_exactly_its_l2_norm_after_cutting(cut, share):
    wanted = share * np.arange(1, 6)
    noisy = noise_l2(cut, wanted, seed=1)
    assert (noisy.min(), noisy.max() <= 1) == (0, True)
    reached = np.sqrt(np.square(noisy - cut).sum(axis=(1, 2)))
    np.testing.assert_allclose(reached, wanted, rtol=1e-3)


def test_noise_depends_on_the_seed_alone(cut):
    one, two, other = (noise_linf(cut, 0.01, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_noise_on_record_is_as_large_as_the_attack(target):
    pgd = sweep("pgd", target, (0.005, 0.05), Search(5))
    noise = noise_records(target, pgd, seed=1)
    assert noise.groupby(["attack", "eps"]).size().tolist() == [24] * 4
    for eps, rows in noise.groupby("eps"):
        made = pgd[pgd["eps"] == eps].set_index("segment")
        l2 = rows[rows["attack"] == "noise_l2"].set_index("segment")["l2"]
        share = made["l2"] / made["linf"]  # missing for the two that were wrong before
        assert share.isna().sum() == 2
        np.testing.assert_allclose(l2, eps * share.fillna(share.median()), rtol=1e-3)
        fresh = made.index[made["linf"] > 0.999 * eps]
        assert len(fresh) >= 2
        np.testing.assert_allclose(l2[fresh], made.loc[fresh, "l2"], rtol=2e-3)
        uniform = rows[rows["attack"] == "noise_linf"]
        assert (uniform["linf"] <= eps + 1e-7).all()
        assert (uniform["linf"] > 0.9 * eps).all()


def test_noise_may_be_measured_where_no_segment_is_right(slim_model, clips):
    two = clips.take(np.arange(2))
    wrong = make_target(slim_model, replace(two, y=(two.y + 1) % 3))
    pgd = sweep("pgd", wrong, (0.01,), Search(1))
    noise = noise_records(wrong, pgd, seed=1)
    assert np.isfinite(noise["l2"]).all()
    assert not noise["success"].any()
