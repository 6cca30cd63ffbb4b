import copy
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from src.attacks import adversarial, suite
from src.attacks.adversarial import Search, hop_skip_jump, make_oracle
from src.attacks.flags import flag_table
from src.attacks.records import NOISES, WORST_CASE, make_target, robustness_table
from src.attacks.suite import (
    PAIR,
    Budgets,
    Stage,
    eps_bounds,
    evaluate,
    example,
    ladder,
    minimal_eps,
    robust_mask,
    runner_up,
    stages,
)
from src.effort import choose_effort
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits

EPSILONS = (0.002, 0.01, 0.1)
BUDGETS = Budgets(EPSILONS, suite=(0.002, 0.01), doubled=0.01)
NUMBERS = {"iterations": 5, "n_restarts": 2, "square_queries": 5, "n_hard_label": 3}
EFFORT = choose_effort("quick", NUMBERS | {"hard_label_steps": 1})
SLOW = ["pgd_restarts", "pgd_doubled", "pgd_targeted", "apgd_ce", "apgd_dlr", "square"]


@pytest.fixture(scope="module")
def records(target):
    return evaluate({"model": target}, BUDGETS, EFFORT, seed=1)


def broken(records, attack, eps):
    rows = records[(records["attack"] == attack) & (records["eps"] == eps)]
    return set(rows.loc[rows["success"], "segment"])


def test_there_is_one_row_a_segment_attack_and_eps(records):
    counts = records.groupby(["attack", "eps"]).size().unstack("eps")
    assert (counts.loc[["fgsm", "pgd", WORST_CASE, *NOISES]] == 24).all(axis=None)
    assert (counts.loc[SLOW, 0.01] == 24).all()
    assert counts.loc["pgd_doubled"].notna().tolist() == [False, True, False]
    assert counts.loc[SLOW, 0.1].isna().all()
    assert (counts.loc["hop_skip_jump"] == 3).all()
    assert counts.loc["square_alone"].dropna().to_dict() == {0.01: 3}
    assert not records.duplicated(["attack", "eps", "segment"]).any()


def test_the_worst_case_is_the_least_of_all_attacks_for_every_segment(records):
    attacks = records[~records["attack"].isin((WORST_CASE, *NOISES))]
    for eps in EPSILONS:
        within = attacks[(attacks["eps"] <= eps) & attacks["success"]]
        assert broken(records, WORST_CASE, eps) == set(within["segment"])
    assert broken(records, WORST_CASE, 0.1) > broken(records, WORST_CASE, 0.002)


def test_the_ladder_has_each_attack_and_the_distance_of_hop_skip_jump(records):
    records = records.assign(checkpoint="one")
    found = records[records["attack"] == "hop_skip_jump"].drop_duplicates("segment")
    assert (found["distance"] > 0).all()
    table = ladder(robustness_table(records, "tiny", "random"), records, 0.01)
    assert table.index[-1] == ("HopSkipJump, median L-infinity norm reached", 3)
    assert table["one"].iloc[-1] == f"{80 * found['distance'].median():.2g} dB"
    assert ("+ Square", 24) in table.index


def apgd(network, X, y, eps, loss, steps=10):
    """Return which segments (n,) an independent APGD flips at any of its steps (n, 128, 130).

    The step of a segment halves, from its best point, where two steps have not raised its loss
    (after Croce and Hein 2020).
    """
    X, y = torch.from_numpy(X)[:, None], torch.from_numpy(y)
    start = torch.rand(X.shape, generator=torch.manual_seed(0))
    x, one = (X + eps * (2 * start - 1)).clamp(0, 1), torch.ones(len(X), 1, 1, 1)
    best, size, stale, highest = x, 2 * eps * one, 0 * one, -1e9 * one
    flipped, slope = torch.zeros(len(X), dtype=torch.bool), torch.zeros_like(X)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        logits = network(x)
        value = loss(logits, y)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        flipped |= logits.argmax(dim=1) != y
        value = value.detach().view(one.shape)
        better = value > highest
        best, slope = torch.where(better, x, best), torch.where(better, gradient, slope)
        highest, stale = torch.maximum(value, highest), torch.where(better, 0, stale + 1)
        back = stale == 2
        size, stale = torch.where(back, size / 2, size), torch.where(back, 0, stale)
        x = torch.where(back, best, x) + size * torch.where(back, slope, gradient).sign()
        x = torch.minimum(torch.maximum(x, X - eps), X + eps).clamp(0, 1)
    return flipped.numpy()


def logit_ratio(logits, y, other=None):
    """Return the (targeted) difference of logits ratio (n,); `other` are target classes."""
    ranked, true = logits.sort(dim=1, descending=True)[0], logits.gather(1, y[:, None])
    if other is None:
        wrong = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
        return (wrong - true[:, 0]) / (ranked[:, 0] - ranked[:, 2] + 1e-12)
    scale = ranked[:, 0] - (ranked[:, 2] + ranked[:, min(3, logits.shape[1] - 1)]) / 2
    return (logits.gather(1, other[:, None]) - true)[:, 0] / (scale + 1e-12)


def independent(network, X, y, eps, n_genres, steps):
    """Return which segments APGD flips: cross-entropy, logit ratio, targeted at every genre."""
    losses = [partial(nn.functional.cross_entropy, reduction="none"), logit_ratio]
    for shift in range(1, n_genres):
        other = torch.from_numpy((y + shift) % n_genres)
        losses.append(partial(logit_ratio, other=other))
    flipped = np.zeros(len(y), dtype=bool)
    for number, loss in enumerate(losses):
        rows = np.flatnonzero(~flipped)
        if number > 1:
            loss = partial(loss.func, other=loss.keywords["other"][rows])
        if len(rows):
            flipped[rows] = apgd(network, X[rows], y[rows], eps, loss, steps)
    return flipped


def test_the_suite_is_as_strong_as_an_independent_ensemble(records, target):
    rows = np.flatnonzero(target.correct)
    X, y = target.data.X[rows], target.data.y[rows]
    for eps in (0.002, 0.01):
        own = independent(target.model, X, y, eps, 3, steps=10)
        others = set(target.data.numbers[rows[own]])
        assert 0 < len(others) < len(rows) or eps == 0.01
        assert len(others - broken(records, WORST_CASE, eps)) <= 1


def test_each_slow_attack_adds_to_those_before_it_and_to_the_smaller_eps(records):
    for attack in ("pgd", WORST_CASE, "square"):
        assert broken(records, attack, 0.002) <= broken(records, attack, 0.01)
    for eps in (0.002, 0.01):
        names = [name for name in SLOW if name != "pgd_doubled" or eps == 0.01]
        sets = [broken(records, name, eps) for name in ("pgd", *names)]
        assert all(one <= other for one, other in pairwise(sets))


def test_slow_attacks_are_given_what_stands_alone(target, monkeypatch):
    given = []
    attack = suite.attack

    def note(method, model, X, y, eps, search):
        if method in ("fgsm", "pgd") and search.seed == 1:
            return attack(method, model, X, y, eps, search)
        given.append((method, eps, len(X)))
        return np.array(X)

    monkeypatch.setattr(suite, "attack", note)
    found = evaluate({"model": target}, BUDGETS, EFFORT._replace(n_hard_label=0), seed=1)
    for eps in (0.002, 0.01):
        swept = found[found["attack"].isin(("fgsm", "pgd"))]
        standing = robust_mask(target, swept, eps).sum()
        assert {n for _, e, n in given if e == eps} == {standing}
        assert 0 < standing < 22 or eps == 0.002


def test_records_stay_in_the_ball_and_name_their_maker(records):
    attacks = records[records["attack"] != "noise_l2"]
    sized = attacks.dropna(subset=["linf"])
    assert (sized["linf"] <= sized["eps"] + 1e-6).all()
    assert (records["lowest"].min(), records["highest"].max()) >= (0, 0)
    assert records["highest"].max() <= 1
    worst = records[(records["attack"] == WORST_CASE) & records["success"]]
    assert set(worst["made_by"]) <= {"fgsm", "pgd", *SLOW, "hop_skip_jump", "square_alone"}
    assert (worst["made_by"] != "").all()


def test_sizes_of_doubled_pgd_are_those_of_its_own_perturbations(records, target):
    before = records[records["attack"].isin(("fgsm", "pgd", "pgd_restarts"))]
    rows = np.flatnonzero(robust_mask(target, before, 0.01))
    part, search = target.take(rows), Search(2 * EFFORT.iterations, 1 + 1, early_stopping=True)
    X = part.data.X
    change = adversarial.attack("pgd", target.model, X, part.data.y, 0.01, search).astype(float) - X
    own = records[(records["attack"] == "pgd_doubled") & (records["eps"] == 0.01)]
    own = own.set_index("segment").loc[part.data.numbers]
    assert len(own) > 0
    l2 = np.sqrt(np.square(change).sum(axis=(1, 2)))
    signal = np.sqrt(np.square(X, dtype=float).sum(axis=(1, 2)))
    np.testing.assert_allclose(own["linf"], np.abs(change).max(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(own["l2"], l2, rtol=1e-5)
    np.testing.assert_allclose(own["snr_db"], 20 * np.log10(signal / l2), rtol=1e-5)


def test_failures_of_apgd_have_no_size_since_it_returns_its_start(target, records, monkeypatch):
    def start(method, model, X, y, eps, search):
        return np.array(X) * (1 - 1e-6)

    monkeypatch.setattr(suite, "attack", start)
    swept = records[records["attack"] == "pgd"]
    standing = target.data.numbers[robust_mask(target, swept, 0.002)]
    for method, known in (("apgd_ce", False), ("pgd", True)):
        made = suite._run(target, swept, Stage(method, method, 1), 0.002, 1)
        rows = made[made["segment"].isin(standing)]
        assert len(rows) > 0
        assert (rows["linf"].notna() == known).all()


def test_an_attack_without_budget_is_left_out():
    names = [stage.name for stage in stages(BUDGETS, EFFORT, 0.01, n_genres=3)]
    assert names == SLOW
    none = EFFORT._replace(n_restarts=1, square_queries=0)
    assert [s.name for s in stages(BUDGETS, none, 0.002, n_genres=2)] == ["pgd_targeted", "apgd_ce"]


def test_a_model_without_a_correct_segment_is_refused_before_any_attack(target):
    wrong = target.take(np.flatnonzero(~target.correct))
    with pytest.raises(ValueError, match=rf"^model predicts 0 of {len(wrong.data)} segments corr"):
        evaluate({"model": wrong}, BUDGETS, EFFORT, seed=1)


def test_the_suite_needs_its_eps_among_those_of_the_sweep(target):
    with pytest.raises(ValueError, match=r"eps \[0.03\] of the suite are not among"):
        evaluate({"model": target}, BUDGETS._replace(suite=(0.03,)), EFFORT, seed=1)


@pytest.mark.parametrize("eps", [-0.1, 1.5, float("nan")])
def test_an_eps_of_no_meaning_is_refused_by_its_parameter(target, eps):
    budgets = BUDGETS._replace(sweep=(0.01, eps))
    with pytest.raises(ValueError, match=rf"^EPSILONS has {eps}: eps lies in \[0, 1\]"):
        evaluate({"model": target}, budgets, EFFORT, seed=1)


def test_the_runner_up_is_the_best_of_the_wrong_genres():
    logits = np.array([[3.0, 1, 2], [0, 5, 4], [9, 8, 7]])
    assert runner_up(logits, np.array([0, 1, 2])).tolist() == [2, 2, 0]
    assert logits[0, 0] == 3


def test_the_oracle_answers_as_the_float32_network_and_asks_once(target, monkeypatch):
    queried = []
    spy = lambda model, X: queried.append(len(X)) or predict_logits(model, X)  # noqa: E731
    monkeypatch.setattr(adversarial, "predict_logits", spy)
    oracle = make_oracle(target.model)
    X = target.data.X
    batch = np.concatenate([X[:4], X[:2]])[:, None]
    for _ in range(2):
        logits = oracle.predict(batch)
    np.testing.assert_allclose(logits, predict_logits(target.model, batch[:, 0]), atol=1e-5)
    assert sum(queried) == 4


def test_hop_skip_jump_finds_a_change_no_larger_than_another_clip_if_there_is_one(target):
    few = target.take(np.array([1, 7]))
    found = hop_skip_jump(target, few, steps=2, seed=0)
    assert (target.predict(found) != few.predicted).all()
    change = np.abs(found - few.data.X).max(axis=(1, 2))
    nearest = [
        np.abs(target.data.X[target.predicted != now] - x).max(axis=(1, 2)).min()
        for x, now in zip(few.data.X, few.predicted, strict=True)
    ]
    assert (change <= nearest).all()
    assert (change < nearest).any()
    one = target.take(np.array([0]))
    assert np.array_equal(hop_skip_jump(one, one, steps=2, seed=0), one.data.X)


def test_brackets_hold_the_eps_at_which_a_segment_breaks(records):
    brackets = eps_bounds(records)
    assert len(brackets) == 22  # those that are right
    for segment, row in brackets.iterrows():
        steps = [eps for eps in EPSILONS if segment in broken(records, WORST_CASE, eps)]
        assert row["flipped"] == min(steps, default=np.nan) or not steps
        assert row["robust"] == max({*EPSILONS} - set(steps), default=0)


def test_bisection_narrows_the_bracket_and_its_segments_flip(target, records):
    table = minimal_eps({"model": target}, records, 12, Search(5, 0))
    assert len(table) == 12
    edges = eps_bounds(records).loc[table["segment"]]
    number = pd.Index(target.data.numbers).get_indexer(table["segment"])
    known = table["by_pgd"].to_numpy()
    assert known.sum() >= 6
    smallest, breaks = table["minimal_eps"].to_numpy(), edges["flipped"].to_numpy()
    assert (smallest <= breaks)[known].all()
    assert (smallest > edges["robust"].to_numpy())[known].all()
    assert (smallest < breaks)[known].any()
    assert (table["predicted"][~known] == -1).all()
    tried = table[table["minimal_eps"].notna()]  # the same batch as the bisection's
    X, y = target.data.X[number[tried.index]], tried["true"].to_numpy()
    eps = tried["minimal_eps"].to_numpy()
    now = target.predict(adversarial.attack("pgd", target.model, X, y, eps, Search(5, 0)))
    assert (now == tried["predicted"])[tried["by_pgd"]].all()
    assert (now != y)[tried["by_pgd"]].all()
    np.testing.assert_allclose(table["minimal_eps_db"], 80 * table["minimal_eps"])


def test_the_example_is_flipped_by_fgsm_and_pgd_if_any_segment_is(target):
    numbers = target.data.numbers
    rows = [
        (name, eps, number, False) for name in PAIR for eps in (0.01, 0.1) for number in numbers
    ]
    made = pd.DataFrame(rows, columns=["attack", "eps", "segment", "success"])

    def chosen(*flips):
        keys = made[["attack", "eps", "segment"]].apply(tuple, axis=1)
        records = made.assign(success=keys.isin([(a, eps, numbers[k]) for a, eps, k in flips]))
        return example(target, records, 0.01, Search(2, 0))

    both = ("fgsm", 0.01, 3), ("pgd", 0.01, 5), ("fgsm", 0.01, 7), ("pgd", 0.01, 7)
    for flips, expected in {both: 7, both[1:2]: 5, (("pgd", 0.1, 5),): 0}.items():
        part, versions = chosen(*flips)
        assert part.data.numbers.tolist() == [numbers[expected]]
        assert list(versions) == list(PAIR)
        for changed in versions.values():
            assert 0 < np.abs(changed - part.data.X).max() <= 0.01 + 1e-6


class Quantized(GenreClassifierCNN):
    """A network whose input is rounded: its gradient is zero."""

    def forward(self, x):
        return super().forward(x.round(decimals=2))


class Saturated(GenreClassifierCNN):
    """A network whose logits are so large that the softmax leaves no gradient in float32."""

    def forward(self, x):
        return super().forward(x) * 1e4


class Shattered(GenreClassifierCNN):
    """A network whose input has a ripple too small to matter, whose slope covers the gradient."""

    def forward(self, x):
        return super().forward(x + 1e-3 * torch.sin(1e5 * x))


MASKED = {  # the flags that each raises
    Quantized: {"zero_gradients", "black_box_stronger"},
    Saturated: {"zero_gradients"},  # the logit ratio still flips its segments
    Shattered: {"black_box_stronger"},
}


@pytest.mark.parametrize("kind", [*MASKED, GenreClassifierCNN], ids=lambda kind: kind.__name__)
def test_a_network_that_masks_its_gradients_raises_flags(kind, slim_model, target):
    masked = copy.deepcopy(slim_model)
    masked.__class__ = kind
    few = make_target(masked, target.data.take(np.arange(8)))
    budgets = Budgets((0.1,), suite=(0.1,), doubled=0.1)
    effort = EFFORT._replace(n_hard_label=0, square_queries=200)
    flags = flag_table({"one": few}, evaluate({"one": few}, budgets, effort, seed=1), effort)
    raised = {flag["flag"] for flag in flags if flag["raised"]}
    everything = set().union(*MASKED.values())
    assert raised & everything == MASKED.get(kind, set())
