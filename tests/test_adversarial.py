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
def classifier(slim_model):
    return make_classifier(slim_model)


@pytest.fixture(scope="module")
def records(target):
    search = Search(ITERATIONS, early_stopping=True)
    tables = [sweep(name, target, EPSILONS, search) for name in ("fgsm", "pgd")]
    return pd.concat(tables, ignore_index=True)


def accuracy(model, X, y):
    return (predict_logits(model, X).argmax(axis=1) == y).mean()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("eps", [0.001, 0.05, 1])
def test_an_attack_stays_within_eps_and_range(name, eps, slim_model, clips):
    X = np.concatenate([clips.X, np.zeros_like(clips.X[:2])])  # silence, too
    before = X.copy()
    attacked = attack(name, slim_model, X, np.append(clips.y, [0, 1]), eps, Search(ITERATIONS))
    assert (attacked.shape, attacked.dtype) == (X.shape, np.float32)
    assert 0 < np.abs(attacked - X).max() <= eps + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert np.array_equal(X, before)
    assert np.array_equal(attack(name, slim_model, X[:1], [0], 0), X[:1])


REFUSED = [("fgsm", eps, rf"eps is {eps}: it must lie in \[0, 1\]") for eps in (-0.01, 1.01)]
REFUSED += [("pgd", eps, rf"eps is {eps}: it must lie in") for eps in (float("nan"), float("inf"))]
REFUSED += [("boundary", eps, "boundary is not an attack known here: give one") for eps in (0, EPS)]


@pytest.mark.parametrize(("name", "eps", "message"), REFUSED)
def test_an_unknown_attack_and_an_eps_outside_of_the_range_are_refused(
    name, eps, message, slim_model, clips
):
    with pytest.raises(ValueError, match=message):
        attack(name, slim_model, clips.X, clips.y, eps)


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


def test_an_attack_that_breaks_its_contract_is_not_returned(slim_model, clips, monkeypatch):
    monkeypatch.setitem(adversarial.METHODS, "fgsm", lambda number, X, *_: X + np.float32(0.2))
    with pytest.raises(AssertionError, match="left its bounds"):
        attack("fgsm", slim_model, clips.X, clips.y, 0.1)


def test_pgd_harms_at_least_as_much_as_fgsm_and_both_far_more_than_noise(slim_model, clips):
    assert accuracy(slim_model, *planted(4, 24)) >= 0.75  # it has learnt
    y = predict_logits(slim_model, clips.X).argmax(axis=1)
    rng = np.random.default_rng(0)
    noisy = (clips.X + rng.choice([-EPS, EPS], clips.X.shape)).clip(0, 1)
    fgsm, pgd = (
        accuracy(slim_model, attack(name, slim_model, clips.X, y, EPS, Search(ITERATIONS)), y)
        for name in ("fgsm", "pgd")
    )
    assert pgd <= fgsm <= accuracy(slim_model, noisy, y) - 0.5


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd_targeted"])
def test_attacks_raise_the_loss_of_the_true_genre_or_lower_that_of_the_target(
    name, slim_model, clips
):
    targeted = name == "pgd_targeted"
    y = (clips.y + 1) % 3 if targeted else clips.y
    attacked = attack(name, slim_model, clips.X, y, 0.005, Search(ITERATIONS))
    rows = np.arange(len(y))
    before, after = (softmax(predict_logits(slim_model, x))[rows, y] for x in (clips.X, attacked))
    assert ((after > before) if targeted else (after < before)).all()


def test_the_random_start_depends_on_the_seed_alone(slim_model, clips):
    made = {
        (name, seed): attack(name, slim_model, clips.X, clips.y, EPS, Search(1, seed))
        for name in ("fgsm", "pgd")
        for seed in (1, 2)
    }
    again = attack("pgd", slim_model, clips.X, clips.y, EPS, Search(1, 1))
    assert np.array_equal(made["pgd", 1], again)
    assert not np.array_equal(made["pgd", 1], made["pgd", 2])
    assert np.array_equal(made["fgsm", 1], made["fgsm", 2])


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


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd_targeted"])
def test_fgsm_and_pgd_make_the_steps_of_art(
    name, slim_model, clips, classifier, monkeypatch, in_precision
):
    in_precision("float32")
    X = clips.X[:, None]
    monkeypatch.setattr(adversarial.np.random, "uniform", lambda *_: np.zeros_like(X))
    targeted = name == "pgd_targeted"
    goal = (clips.y + 1) % 3 if targeted else clips.y
    steps = {"eps_step": EPS / 4, "max_iter": ITERATIONS, "targeted": targeted, "verbose": False}
    library = ProjectedGradientDescent(classifier, eps=EPS, **steps)
    library = FastGradientMethod(classifier, eps=EPS) if name == "fgsm" else library
    made = attack(name, slim_model, clips.X, goal, EPS, Search(ITERATIONS))
    differs = np.abs(made - library.generate(X, goal)[:, 0]) > 1e-6
    assert differs.mean() < (0.01 if name == "fgsm" else 0.03)  # signs of gradients near zero


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


def test_each_segment_and_each_bin_may_have_an_eps_of_its_own(slim_model, clips):
    eps = np.linspace(0.001, 0.1, len(clips.X))
    attacked = attack("pgd", slim_model, clips.X, clips.y, eps, Search(ITERATIONS))
    largest = np.abs(attacked - clips.X).max(axis=(1, 2))
    np.testing.assert_allclose(largest, eps, rtol=1e-3)
    eps[3] = 2
    with pytest.raises(ValueError, match="it must lie in"):
        attack("pgd", slim_model, clips.X, clips.y, eps)
    eps = np.zeros_like(clips.X)
    eps[:, 20:40, 10:50] = EPS
    made = attack("pgd", slim_model, clips.X, clips.y, eps, Search(ITERATIONS))
    assert np.array_equal(made[eps == 0], clips.X[eps == 0])
    assert (np.abs(made - clips.X).max(axis=(1, 2)) > 0.9 * EPS).all()


def test_gradients_come_in_bfloat16_and_losses_in_float32(
    slim_model, classifier, clips, in_precision
):
    in_precision("bfloat16")
    exact = predict_logits(slim_model, clips.X)
    np.testing.assert_allclose(classifier.predict(clips.X[:, None]), exact, atol=1e-3)
    x = torch.from_numpy(clips.X[:, None]).requires_grad_()
    fast = classifier.model(x).detach().numpy()
    assert fast.dtype == np.float32
    assert 1e-3 < np.abs(fast - exact).max() < 0.05 * np.abs(exact).max() + 0.05


def test_a_sweep_has_one_record_a_segment_attack_and_eps(records, clips):
    assert len(records) == 2 * len(EPSILONS) * len(clips)
    for _, rows in records.groupby(["attack", "eps"]):
        assert rows["segment"].tolist() == clips.numbers.tolist()
        assert rows["track"].tolist() == clips.tracks.tolist()
        assert rows["true"].tolist() == clips.y.tolist()
    np.testing.assert_allclose(records["eps_db"], 80 * records["eps"])


def test_changes_on_record_stay_within_eps_and_those_of_fgsm_grow_with_it(records):
    assert (records["linf"] <= records["eps"] + 1e-6).all()
    assert (records["l2"] <= records["eps"] * np.sqrt(128 * 130) + 1e-3).all()
    changed = records[records["linf"] > 0]
    assert changed["snr_db"].between(0, 80).all()
    fgsm = changed[changed["attack"] == "fgsm"]
    np.testing.assert_allclose(fgsm["linf"], fgsm["eps"], rtol=1e-3)


def test_a_success_is_right_before_and_wrong_after_and_others_stay_unchanged(records):
    is_wrong = records["clean_prediction"] != records["true"]
    wrong, right = records[is_wrong], records[~is_wrong]
    assert set(wrong["segment"]) == {8, 18}
    assert (wrong["adversarial_prediction"] == wrong["clean_prediction"]).all()
    assert not wrong["success"].any()
    assert (wrong[["linf", "l2"]] == 0).all(axis=None)
    assert wrong["snr_db"].isna().all()
    assert (right["success"] == (right["adversarial_prediction"] != right["true"])).all()
    assert 0 < right["success"].mean() < 1


def test_what_pgd_broke_stays_broken_by_the_same_change(records):
    pgd = records[records["attack"] == "pgd"]
    for _, rows in pgd.groupby("segment"):
        broken = rows.sort_values("eps")["success"].to_numpy()
        assert (np.diff(broken.astype(int)) >= 0).all()
        assert rows.loc[rows["success"], ["linf", "l2", "snr_db"]].drop_duplicates().shape[0] <= 1
    assert pgd.groupby("segment")["success"].sum().max() > 1


def test_epsilons_may_come_in_any_order(target, records):
    again = sweep("pgd", target, EPSILONS[::-1], Search(ITERATIONS, early_stopping=True))
    pd.testing.assert_frame_equal(again, records[records["attack"] == "pgd"].reset_index(drop=True))


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_the_smallest_flips_agree_with_the_records(name, target, records):
    X, y = target.data.X, target.data.y
    smallest, flipped = first_success(name, target, EPSILONS, Search(ITERATIONS))
    found = ~np.isnan(smallest)
    assert 0 < found.sum() < len(X)
    assert (target.predict(flipped)[found] != y[found]).all()
    assert np.array_equal(flipped[~found], X[~found])
    assert (np.abs(flipped - X)[found].max(axis=(1, 2)) <= smallest[found] + 1e-6).all()
    successes = records[(records["attack"] == name) & records["success"]]
    by_hand = successes.groupby("segment")["eps"].min().reindex(target.data.numbers)
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
    assert np.array_equal(noisy, noise_linf(cut, eps, seed=1))
    assert not np.array_equal(noisy, noise_linf(cut, eps, seed=2))


@pytest.mark.parametrize("share", [0.01, 0.3, 1, 3])
def test_gaussian_noise_has_exactly_its_l2_norm_after_cutting(cut, share):
    wanted = share * np.arange(1, 6)
    noisy = noise_l2(cut, wanted, seed=1)
    assert (noisy.min(), noisy.max() <= 1) == (0, True)
    reached = np.sqrt(np.square(noisy - cut).sum(axis=(1, 2)))
    np.testing.assert_allclose(reached, wanted, rtol=1e-3)


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
