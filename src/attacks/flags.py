"""Flags: signs that robust accuracies are not reliable, each with a remedy.

After the checks of AutoAttack (Croce and Hein 2020) and the list of Carlini et al., "On Evaluating
Adversarial Robustness" (2019).
"""

import numpy as np
import pandas as pd
from art.estimators.classification import PyTorchClassifier

from src.attacks.adversarial import TOLERANCE, make_classifier
from src.attacks.audio import DOUBLED
from src.attacks.codecs import WAV
from src.attacks.records import CLEAN, NOISES, WORST_CASE, Target
from src.attacks.suite import BLACK_BOX
from src.effort import Effort
from src.statistics import mean_over_tracks

POINT = 0.01 + 1e-9  # a percentage point, and an allowance for rounding
LARGE_EPS = 0.1
INSPECTED = 100  # correct segments whose gradients are inspected, at least, evenly from all
FEWEST_QUERIES, FEWEST_SEGMENTS = 1000, 30  # that attacks without gradients need for power
FLAGS = {  # name: raised if, remedy
    "no_better_than_chance": (
        "the interval of clean accuracy contains chance (with too few tracks: clean <= chance)",
        "train the model or attack more segments: what is wrong before attack cannot be flipped",
    ),
    "outside_bounds": (
        "an adversarial example is beyond eps of its original, outside [0, 1] or not finite",
        "correct the attack; none of its results count",
    ),
    "probabilities": (
        "the model's outputs all lie in [0, 1] and add up to one",
        "remove the softmax from the model: gradients vanish behind it",
    ),
    "zero_gradients": (
        "the gradient of the loss is zero or not finite for a correct segment",
        "look for saturation or rounding; trust only logit-ratio and gradient-free attacks",
    ),
    "single_step_stronger": (
        "FGSM leaves over a point less accuracy than PGD at the same eps",
        "increase iterations or decrease the steps of PGD: it does not converge",
    ),
    "black_box_stronger": (
        "Square or HopSkipJump flips over a point of its segments that no gradient attack flips",
        "suspect masked gradients; attack a smoothed copy of the model or estimate gradients",
    ),
    "iterations_matter": (
        "PGD with twice the iterations flips over a point more",
        "increase iterations until this flag is not raised",
    ),
    "restarts_matter": (
        "the later half of PGD's random starts flips over a point more",
        "increase n_restarts until this flag is not raised",
    ),
    "above_chance_at_large_eps": (
        "the worst case leaves more than chance at the largest eps, 0.1 (8 dB) or more",
        "the attacks are too weak or gradients are masked: no model withstands this",
    ),
    "noise_as_harmful": (
        "noise costs as much accuracy as the worst case, to a point, where that is over a point",
        "conclude nothing on adversarial examples at these eps: any change has the same effect",
    ),
    "audio_steps_matter": (
        "PGD on samples with twice the steps from another start flips over a point more",
        "increase audio_iterations until this flag is not raised",
    ),
}


def audio_flags(records: pd.DataFrame) -> list[dict[str, object]]:
    """Return the flag of attacks on samples for each checkpoint; `records` of `audio.evaluate`."""
    flags = []
    by = ["checkpoint", "budget_db"]
    for (name, budget), own in records[records["attack"] == DOUBLED].groupby(by, sort=False):
        same = (records["checkpoint"] == name) & (records["budget_db"] == budget)
        pgd = records[same & (records["attack"] == "pgd_waveform") & (records["codec"] == WAV)]
        more = float(own["success"].mean() - pgd["success"].mean())
        found = [f"{100 * more:.1f} points more at {budget:g} dB"] * (more > POINT)
        left = (~pgd["success"] & (pgd["clean_prediction"] == pgd["true"])).any()
        flags.append({"checkpoint": name} | flag("audio_steps_matter", found, bool(left)))
    return flags


def flag_table(
    targets: dict[str, Target], records: pd.DataFrame, effort: Effort
) -> list[dict[str, object]]:
    """Return flags of every model: checkpoint, flag, raised, power, found, raised_if, what_to_do.

    `records` come from `suite.evaluate` with this effort. `raised` is None where the attack that a
    flag needs did not run; `power` is false where a flag could not have risen in this run.
    """
    flags = []
    for name, target in targets.items():
        own, evidence = records[records["checkpoint"] == name], inspect_model(target)
        raised = raise_flags(own, evidence, 1 / target.n_genres, effort)
        flags += [{"checkpoint": name} | each for each in raised]
    return flags


def readable(flags: list[dict]) -> pd.DataFrame:
    """Return a table to read: one row per flag, one column per checkpoint, evidence and remedy.

    `flags` come from `flag_table`; evidence and remedy are those of raised flags only.
    """
    table = pd.DataFrame(flags)
    found = table["checkpoint"] + ": " + table["found"].str.join("; ")
    table["found"] = found.where(table["found"].str.len() > 0, "")
    table["state"] = table["raised"].map({True: "raised", False: "no"}).fillna("not checked")
    table.loc[(table["state"] == "no") & ~table["power"], "state"] = "no power"
    states = table.pivot(index="flag", columns="checkpoint", values="state")
    rows = table.groupby("flag", sort=False)
    evidence = rows["found"].agg(lambda texts: "; ".join(filter(None, texts)))
    remedy = rows["what_to_do"].first().where(evidence != "", "")
    states = states.loc[evidence.index, table["checkpoint"].unique()].rename_axis(columns=None)
    return states.assign(evidence=evidence, remedy=remedy)


def inspect_model(target: Target) -> dict[str, object]:
    """Return whether outputs are probabilities, and how many correct segments lack a gradient."""
    rows = np.flatnonzero(target.correct)
    correct = target.data.take(rows[:: max(1, len(rows) // INSPECTED)])
    return {
        "probabilities": are_probabilities(target.logits),
        "zero_gradients": zero_gradients(make_classifier(target.model), correct.X, correct.y),
    }


def raise_flags(records: pd.DataFrame, evidence: dict, chance: float, effort: Effort) -> list[dict]:
    """Return every flag of one model; `evidence` comes from `inspect_model`; see `flag_table`."""
    right = records["adversarial_prediction"] == records["true"]
    accuracy = right.groupby([records["attack"], records["eps"]]).mean().unstack("eps")
    first, n_zero = records.drop_duplicates("segment"), evidence["zero_gradients"]
    accuracy.loc[CLEAN] = (first["clean_prediction"] == first["true"]).mean()
    before_doubling = "pgd_restarts" if "pgd_restarts" in accuracy.index else "pgd"
    found = {
        "no_better_than_chance": _no_better(first, chance),
        "outside_bounds": _outside(records),
        "probabilities": ["the outputs are probabilities"] * evidence["probabilities"],
        "zero_gradients": [f"{n_zero} segments without gradient"] * (n_zero > 0),
        "single_step_stronger": _weaker(accuracy, "pgd", "fgsm"),
        "black_box_stronger": _black_box(records),
        "iterations_matter": _weaker(accuracy, before_doubling, "pgd_doubled"),
        "restarts_matter": _restarts(records, effort.n_restarts),
        "above_chance_at_large_eps": _above_chance(accuracy, chance),
        "noise_as_harmful": _noise(accuracy),
    }
    power = _power(records, accuracy, effort)
    return [flag(name, findings, power.get(name, True)) for name, findings in found.items()]


def flag(name: str, found: list[str] | None, power: bool) -> dict[str, object]:
    """Return a flag: raised if something was found, None if its attack did not run."""
    return {
        "flag": name,
        "raised": None if found is None else bool(found),
        "power": found is not None and power,
        "found": found or [],
        "raised_if": FLAGS[name][0],
        "what_to_do": FLAGS[name][1],
    }


def _power(records: pd.DataFrame, accuracy: pd.DataFrame, effort: Effort) -> dict[str, bool]:
    """Return which flags could have risen: enough was left to flip, and enough was tried."""
    correct = records["clean_prediction"] == records["true"]
    own = records["made_by"] == records["attack"]
    left = set(_over_a_point(correct & (~records["success"] | own), records).index.unique(0))
    harm = accuracy.loc[CLEAN] - accuracy.loc[WORST_CASE]
    return {
        "single_step_stronger": bool((accuracy.loc["pgd"] > POINT).any()),
        "black_box_stronger": _black_box_power(records, effort),
        "iterations_matter": "pgd_doubled" in left,
        "restarts_matter": "pgd_restarts" in left,
        "noise_as_harmful": bool((harm > POINT).any()),
    }


def _black_box_power(records: pd.DataFrame, effort: Effort) -> bool:
    """Return whether attacks without gradients tried enough on a segment that others left."""
    correct = records["clean_prediction"] == records["true"]
    hop_skip_jump = records[records["attack"] == "hop_skip_jump"]
    n_alone = hop_skip_jump["segment"].nunique()
    enough = {
        "square": effort.square_queries >= FEWEST_QUERIES,
        "square_alone": effort.square_queries >= FEWEST_QUERIES and n_alone >= FEWEST_SEGMENTS,
        "hop_skip_jump": n_alone >= FEWEST_SEGMENTS and bool(hop_skip_jump["success"].any()),
    }
    left = _over_a_point(correct & ~flipped_by_gradients(records), records).index.unique(0)
    return any(enough.get(attack, False) for attack in left)


def _over_a_point(which: pd.Series, records: pd.DataFrame) -> pd.Series:
    """Return the share of such records by attack and eps, where it is over a point."""
    share = which.groupby([records["attack"], records["eps"]]).mean()
    return share[share > POINT]


def _no_better(first: pd.DataFrame, chance: float) -> list[str]:
    """Return the clean accuracy if it may be by chance."""
    clean = mean_over_tracks(first["clean_prediction"] == first["true"], first["track"])
    lowest = clean["value"] if clean["low"] is None else clean["low"]
    return [f"{clean['value']:.0%} of segments correct, chance {chance:.0%}"] * (lowest <= chance)


def are_probabilities(outputs: np.ndarray) -> bool:
    """Return whether outputs (n, n_genres) lie in [0, 1] and add up to one in every row."""
    inside = outputs.min() >= 0 and outputs.max() <= 1
    return bool(inside and np.allclose(outputs.sum(axis=1), 1, atol=1e-4))


def zero_gradients(classifier: PyTorchClassifier, X: np.ndarray, y: np.ndarray) -> int:
    """Return for how many segments, log-mels or samples, the gradient is zero or not finite."""
    one_hot, shape = np.eye(classifier.nb_classes), (1, *classifier.input_shape)
    sizes = [
        np.abs(classifier.loss_gradient(x.reshape(shape).astype(np.float32), one_hot[[k]])).max()
        for x, k in zip(X, y, strict=True)
    ]
    largest = np.array(sizes)
    return int((~(largest > 0) | np.isinf(largest)).sum())


def _outside(records: pd.DataFrame) -> list[str]:
    """Return which attacks left ball or range, failures of unknown size aside."""
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
    gap = gap[gap > POINT]
    return [f"{100 * less:.1f} points less at eps {eps:g}" for eps, less in gap.items()]


def _black_box(records: pd.DataFrame) -> list[str] | None:
    """Return at which eps attacks without gradients flip segments that no other attack flips."""
    black = records["attack"].isin(BLACK_BOX)
    if not black.any():
        return None
    share = _over_a_point(black & records["success"] & ~flipped_by_gradients(records), records)
    return [f"{attack}: {value:.1%} at eps {eps:g}" for (attack, eps), value in share.items()]


def flipped_by_gradients(records: pd.DataFrame) -> pd.Series:
    """Return whether attacks with gradients flip each record's segment at its eps or below."""
    attacks = records[~records["attack"].isin((*NOISES, WORST_CASE, *BLACK_BOX))]
    white = attacks[attacks["success"] & ~attacks["made_by"].isin(BLACK_BOX)]
    flipped_at = white.groupby("segment")["eps"].min()
    return records["segment"].map(flipped_at) <= records["eps"]


def _restarts(records: pd.DataFrame, n_restarts: int) -> list[str] | None:
    """Return at which eps the later half of the starts flips over a point."""
    rows = records[records["attack"] == "pgd_restarts"]
    if rows.empty:
        return None
    late = rows["success"] & (rows["made_by"] == "pgd_restarts")
    late &= rows["start"] + 1 > n_restarts / 2  # the first start is in the sweep
    share = _over_a_point(late, rows)
    return [f"{value:.1%} at eps {eps:g}" for (_, eps), value in share.items()]


def _above_chance(accuracy: pd.DataFrame, chance: float) -> list[str] | None:
    """Return the worst case at the largest eps, 0.1 or more, if it is above chance."""
    eps = accuracy.columns.max()
    if eps < LARGE_EPS:
        return None
    left = accuracy.loc[WORST_CASE, eps]
    return [f"{left:.1%} at eps {eps:g}, chance {chance:.1%}"] if left > chance else []


def _noise(accuracy: pd.DataFrame) -> list[str]:
    """Return at which eps noise reduces accuracy as much as the worst case."""
    worst = accuracy.loc[WORST_CASE]
    harmed = worst[accuracy.loc[CLEAN] - worst > POINT].index
    return [
        f"{noise} at eps {eps:g}: {accuracy.loc[noise, eps]:.1%}, worst case {worst[eps]:.1%}"
        for noise in NOISES
        for eps in harmed
        if accuracy.loc[noise, eps] <= worst[eps] + POINT
    ]
