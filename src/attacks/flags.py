"""Flags: signs that robustness figures cannot be believed, each with what to do about it.

After the checks of AutoAttack (Croce and Hein 2020) and the list of Carlini et al., "On Evaluating
Adversarial Robustness" (2019).
"""

import numpy as np
import pandas as pd
from torch import nn

from src.attacks.adversarial import TOLERANCE, make_classifier
from src.attacks.records import CLEAN, NOISES, WORST_CASE, Target
from src.attacks.suite import BLACK_BOX
from src.statistics import mean_over_tracks

POINT = 0.01 + 1e-9  # a point and what rounding may add to it
LARGE_EPS = 0.1
FLAGS = {
    "no_better_than_chance": (
        "the interval of clean accuracy holds chance, or there are too few tracks for one and the "
        "accuracy is no higher",
        "train the network, or attack more segments: what is wrong before cannot be flipped, and "
        "looks robust",
    ),
    "outside_bounds": (
        "an attacked segment is further than eps from its original, outside of [0, 1] or not "
        "a number",
        "mend the attack; none of its figures count",
    ),
    "probabilities": (
        "the network's outputs all lie in [0, 1] and add up to one",
        "take the softmax out of the network: gradients vanish behind it",
    ),
    "zero_gradients": (
        "the gradient of the loss is zero or not finite for a segment that is right",
        "look for what swallows gradients (saturation, rounding); trust the attacks on logit "
        "ratios and without gradients only",
    ),
    "single_step_stronger": (
        "FGSM leaves over a point less accuracy than PGD at the same eps",
        "raise ITERATIONS or make PGD's steps smaller: it fails to climb",
    ),
    "black_box_stronger": (
        "Square or HopSkipJump breaks over a point of its segments that all attacks with gradients "
        "left standing",
        "suspect masked gradients; attack a smoothed copy of the network or estimate gradients",
    ),
    "iterations_matter": (
        "PGD with twice the iterations breaks over a point more",
        "raise ITERATIONS until this flag is down",
    ),
    "restarts_matter": (
        "the later half of PGD's random starts breaks over a point more",
        "raise N_RESTARTS until this flag is down",
    ),
    "above_chance_at_large_eps": (
        "the worst case leaves more than chance at eps = 0.1 (8 dB) or the largest eps beyond",
        "the attacks are too weak or gradients are masked: no network stands this",
    ),
    "noise_as_harmful": (
        "noise of the same size costs as much as the worst case, to a point, at an eps where that "
        "costs more than a point",
        "say nothing of adversaries at these eps: any change of their size does the same",
    ),
}


def raise_flags(
    records: pd.DataFrame, evidence: dict, chance: float, n_restarts: int
) -> list[dict]:
    """Return every flag: flag, raised (None: not checked), found, raised_if, what_to_do.

    `records` are those of one checkpoint from `suite.evaluate`, made with `n_restarts` starts of
    PGD; `evidence` comes from `look_at_network`.
    """
    right = records["adversarial_prediction"] == records["true"]
    accuracy = right.groupby([records["attack"], records["eps"]]).mean().unstack("eps")
    first = records.drop_duplicates("segment")
    accuracy.loc[CLEAN] = (first["clean_prediction"] == first["true"]).mean()
    found = {
        "no_better_than_chance": _no_better(first, chance),
        "outside_bounds": _outside(records),
        "probabilities": ["the outputs are probabilities"] if evidence["probabilities"] else [],
        "zero_gradients": _count(evidence["zero_gradients"], "segments without gradient"),
        "single_step_stronger": _weaker(accuracy, "pgd", "fgsm"),
        "black_box_stronger": _black_box(records),
        "iterations_matter": _weaker(accuracy, _before_doubling(accuracy), "pgd_doubled"),
        "restarts_matter": _restarts(records, n_restarts),
        "above_chance_at_large_eps": _above_chance(accuracy, chance),
        "noise_as_harmful": _noise(accuracy),
    }
    return [
        {
            "flag": name,
            "raised": None if said is None else bool(said),
            "found": said or [],
            "raised_if": FLAGS[name][0],
            "what_to_do": FLAGS[name][1],
        }
        for name, said in found.items()
    ]


def _no_better(first: pd.DataFrame, chance: float) -> list[str]:
    """Say how accurate the network is before any attack, if that may be by chance."""
    clean = mean_over_tracks(first["clean_prediction"] == first["true"], first["track"])
    lowest = clean["value"] if clean["low"] is None else clean["low"]
    return [f"{clean['value']:.0%} of segments right, chance {chance:.0%}"] * (lowest <= chance)


def look_at_network(target: Target) -> dict:
    """Return whether outputs are probabilities and how many right segments have no gradient."""
    correct = target.data.take(np.flatnonzero(target.correct))
    return {
        "probabilities": are_probabilities(target.logits),
        "zero_gradients": zero_gradients(target.model, correct.X, correct.y),
    }


def are_probabilities(outputs: np.ndarray) -> bool:
    """Tell whether outputs (n, n_genres) lie in [0, 1] and add up to one in every row."""
    inside = outputs.min() >= 0 and outputs.max() <= 1
    return bool(inside and np.allclose(outputs.sum(axis=1), 1, atol=1e-4))


def zero_gradients(model: nn.Module, X: np.ndarray, y: np.ndarray) -> int:
    """Return for how many segments (n, 128, 130) the attacks' gradient is zero or not finite."""
    classifier, one_hot = make_classifier(model), np.eye(model.output.out_features)
    sizes = [
        np.abs(classifier.loss_gradient(x[None, None].astype(np.float32), one_hot[[k]])).max()
        for x, k in zip(X, y, strict=True)
    ]
    largest = np.array(sizes)
    return int((~(largest > 0) | np.isinf(largest)).sum())


def _outside(records: pd.DataFrame) -> list[str]:
    """Return which attacks left ball or range; rows of failures without a size are passed over."""
    balls = records[records["attack"] != "noise_l2"]
    unknown = balls["success"] & ~np.isfinite(balls["linf"])
    far = balls[unknown | (balls["linf"] > balls["eps"] + TOLERANCE)]
    beyond = records[(records["lowest"] < 0) | (records["highest"] > 1)]
    pairs = pd.concat([far, beyond])[["attack", "eps"]].drop_duplicates()
    return [f"{attack} at eps {eps:g}" for attack, eps in pairs.itertuples(index=False)]


def _weaker(accuracy: pd.DataFrame, attack: str, other: str) -> list[str] | None:
    """Return at which eps `other` leaves over a point less accuracy than `attack`."""
    if not {attack, other} <= set(accuracy.index):
        return None
    gap = (accuracy.loc[attack] - accuracy.loc[other]).dropna()
    return [f"{gap[eps]:.3f} less at eps {eps:g}" for eps in gap.index if gap[eps] > POINT]


def _before_doubling(accuracy: pd.DataFrame) -> str:
    """Return the attack whose survivors PGD with twice the iterations was given."""
    return "pgd_restarts" if "pgd_restarts" in accuracy.index else "pgd"


def _black_box(records: pd.DataFrame) -> list[str] | None:
    """Return at which eps attacks without gradients broke what all those with them did not."""
    black = records[records["attack"].isin(BLACK_BOX)]
    if black.empty:
        return None
    attacks = records[~records["attack"].isin((*NOISES, WORST_CASE, *BLACK_BOX))]
    white = attacks[attacks["success"] & ~attacks["made_by"].isin(BLACK_BOX)]
    broken_at = white.groupby("segment")["eps"].min()
    alone = black["success"] & ~(black["segment"].map(broken_at) <= black["eps"])
    share = alone.groupby([black["attack"], black["eps"]]).mean()
    return [
        f"{attack}: {value:.3f} at eps {eps:g}"
        for (attack, eps), value in share.items()
        if value > POINT
    ]


def _restarts(records: pd.DataFrame, n_restarts: int) -> list[str] | None:
    """Return at which eps the later half of the starts broke over a point (counted up to there)."""
    rows = records[records["attack"] == "pgd_restarts"]
    if rows.empty:
        return None
    late = rows["success"] & (rows["made_by"] == "pgd_restarts")
    late &= rows["start"] + 1 > n_restarts / 2  # the first start is in the sweep
    share = late.groupby(rows["eps"]).mean()
    return [f"{share[eps]:.3f} at eps {eps:g}" for eps in share.index if share[eps] > POINT]


def _above_chance(accuracy: pd.DataFrame, chance: float) -> list[str] | None:
    """Return what is left at the largest eps, 0.1 or beyond, if that is more than chance."""
    eps = accuracy.columns.max()
    if eps < LARGE_EPS:
        return None
    left = accuracy.loc[WORST_CASE, eps]
    return [f"{left:.3f} at eps {eps:g}, chance {chance:.3f}"] if left > chance else []


def _noise(accuracy: pd.DataFrame) -> list[str]:
    """Return at which eps noise costs as much accuracy as the worst case."""
    worst = accuracy.loc[WORST_CASE]
    harmed = worst[accuracy.loc[CLEAN] - worst > POINT].index
    return [
        f"{noise} at eps {eps:g}: {accuracy.loc[noise, eps]:.3f}, worst case {worst[eps]:.3f}"
        for noise in NOISES
        for eps in harmed
        if accuracy.loc[noise, eps] <= worst[eps] + POINT
    ]


def _count(n: int, what: str) -> list[str]:
    """Return a finding if there is anything to count."""
    return [f"{n} {what}"] if n else []
