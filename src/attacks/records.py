"""Records of attacks: one row a segment, attack and eps, from which every number is counted."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from src.data.features import DYNAMIC_RANGE_DB
from src.data.segments import Segments, draw_segments
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits
from src.statistics import difference_over_tracks, mean_over_tracks

CLEAN, WORST_CASE = "clean", "worst_case"
NOISES = ("noise_linf", "noise_l2")
TABLE_COLUMNS = (
    "corpus split checkpoint attack eps eps_db accuracy low high attack_success_rate "
    "n_segments n_tracks"
).split()
COMPARISON_COLUMNS = (
    "checkpoint compared_with attack eps eps_db difference low high n_segments n_tracks"
).split()


class Target(NamedTuple):
    """A model under attack, the segments it is attacked on and its clean logits (n, n_genres)."""

    model: GenreClassifierCNN
    data: Segments
    logits: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """The clean predictions (n,)."""
        return self.logits.argmax(axis=1)

    @property
    def correct(self) -> np.ndarray:
        """Which segments (n,) the model predicts correctly before any attack."""
        return self.predicted == self.data.y

    @property
    def n_genres(self) -> int:
        """The number of genres."""
        return self.logits.shape[1]

    def take(self, rows: np.ndarray) -> "Target":
        """Return the target with some of its segments; `rows` are positions."""
        return Target(self.model, self.data.take(rows), self.logits[rows])

    def sample(self, n: int, seed: int) -> "Target":
        """Return the target with `n` of its segments, spread evenly over the tracks."""
        return self.take(draw_segments(self.data.tracks, n, seed))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the model's float32 predictions (n,) of segments (n, 128, 130)."""
        if len(X) == 0:
            return np.zeros(0, dtype=int)
        return predict_logits(self.model, X).argmax(axis=1)


def make_target(model: GenreClassifierCNN, data: Segments) -> Target:
    """Return a target; its clean logits are computed here, once."""
    data = replace(data, X=np.array(data.X, dtype=np.float32))
    return Target(model, data, predict_logits(model, data.X))


def make_records(
    target: Target, attack: str, eps: float, attacked: np.ndarray, predicted: np.ndarray
) -> pd.DataFrame:
    """Return one row per segment for one attack at one eps.

    `attacked` (n, 128, 130) are the target's segments after the attack, `predicted` (n,) their
    predictions. Columns: segment, track, true, attack, eps, eps_db, clean_prediction,
    adversarial_prediction, success (correct before, wrong after), linf, l2, snr_db (missing for an
    unchanged segment), lowest, highest (of the attacked segment), made_by (the attack that made the
    change; empty for none) and start (which of its random starts).
    """
    X, y, table = target.data.X, target.data.y, target.data.table
    change, bins = attacked - X, (1, 2)
    signal, energy = np.square(X).sum(axis=bins), np.square(change).sum(axis=bins)
    with np.errstate(divide="ignore"):
        snr = 10 * np.log10(signal / energy)
    return pd.DataFrame(
        {
            "segment": table["segment"].to_numpy(),
            "track": table["track"].to_numpy(),
            "true": y,
            "attack": attack,
            "eps": eps,
            "eps_db": eps * DYNAMIC_RANGE_DB,
            "clean_prediction": target.predicted,
            "adversarial_prediction": predicted,
            "success": target.correct & (predicted != y),
            "linf": np.abs(change).max(axis=bins),
            "l2": np.sqrt(energy),
            "snr_db": np.where(energy > 0, snr, np.nan),
            "lowest": attacked.min(axis=bins),
            "highest": attacked.max(axis=bins),
            "made_by": np.where(energy > 0, attack, ""),
            "start": 1,
        }
    )


def worst_case(records: pd.DataFrame, eps: float, name: str = WORST_CASE) -> pd.DataFrame:
    """Return one row a segment: how it fared against all attacks in the ball of size `eps`.

    A segment is broken if any attack at this eps or a smaller one broke it (the balls are nested);
    the row is that of the first attack at the smallest such eps; for a segment that stands it is
    the latest row.
    `records` hold one checkpoint and no noise.
    """
    within = records[records["eps"] <= eps]
    rank = within["eps"].where(within["success"], -within["eps"])
    place = np.arange(len(within))
    age = np.where(within["success"], place, -place)
    order = within.assign(failed=~within["success"], rank=rank, age=age)
    order = order.sort_values(["failed", "rank", "age"])
    rows = order.drop_duplicates("segment").sort_values("segment")
    rows = rows.assign(attack=name, eps=eps, eps_db=eps * DYNAMIC_RANGE_DB)
    return rows[records.columns].reset_index(drop=True)


def robustness_table(records: pd.DataFrame, corpus: str, split: str) -> pd.DataFrame:
    """Return accuracy and success rate by checkpoint, attack and eps, with intervals over tracks.

    Attack `clean` (eps 0) comes first for each checkpoint. The attack success rate is the share of
    flipped segments among those right before; it is missing for `clean` and where none was right.
    """
    rows = []
    for checkpoint, own in records.groupby("checkpoint", sort=False):
        clean = _as_clean(own.drop_duplicates("segment"))
        groups = pd.concat([clean, own]).groupby(["attack", "eps"], sort=False)
        rows += [
            _line(group) | {"checkpoint": checkpoint, "attack": attack, "eps": eps}
            for (attack, eps), group in groups
        ]
    table = pd.DataFrame(rows).assign(corpus=corpus, split=split)
    table["eps_db"] = table["eps"] * DYNAMIC_RANGE_DB
    return table.reindex(columns=TABLE_COLUMNS)


def compare(records: pd.DataFrame, checkpoints: list[str]) -> pd.DataFrame:
    """Return how much more accurate each later checkpoint is than the first, on the same segments.

    One row for clean segments (eps 0) and each eps of the worst case; `difference` is a fraction,
    `low` and `high` bound it by bootstrap over tracks. No rows for a single checkpoint.
    """
    worst = records[records["attack"] == WORST_CASE]
    clean = _as_clean(worst[worst["eps"] == worst["eps"].min()])
    both = pd.concat([clean, worst])
    both["right"] = (both["adversarial_prediction"] == both["true"]).astype(float)
    keys = ["attack", "eps", "segment", "track"]
    pairs = both.pivot_table(index=keys, columns="checkpoint", values="right").reset_index()
    rows = []
    for other in checkpoints[1:]:
        for (attack, eps), group in pairs.groupby(["attack", "eps"]):
            pair = group[checkpoints[0]], group[other]
            measured = difference_over_tracks(*pair, group["track"])
            facts = {"checkpoint": other, "compared_with": checkpoints[0], "attack": attack}
            eps_db = eps * DYNAMIC_RANGE_DB
            difference = measured.pop("value")
            rows.append(facts | {"eps": eps, "eps_db": eps_db, "difference": difference} | measured)
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def attack_flow(records: pd.DataFrame, n_genres: int) -> np.ndarray:
    """Return how many segments of each true genre (rows) an attack turned into each (columns).

    `records` are those of one checkpoint, attack and eps; only successes are counted.
    """
    flow = np.zeros((n_genres, n_genres), dtype=int)
    flipped = records[records["success"]]
    np.add.at(flow, (flipped["true"], flipped["adversarial_prediction"]), 1)
    return flow


def _as_clean(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of one attack and eps as if there had been none."""
    return rows.assign(attack=CLEAN, eps=0.0, adversarial_prediction=rows["clean_prediction"])


def _line(group: pd.DataFrame) -> dict:
    """Return accuracy with its interval and the success rate of the rows of one attack and eps."""
    right = group["adversarial_prediction"] == group["true"]
    hit = group[group["clean_prediction"] == group["true"]]
    measured = mean_over_tracks(right, group["track"])
    attacked = len(hit) > 0 and group["attack"].iloc[0] != CLEAN
    measured["accuracy"] = measured.pop("value")
    return measured | {"attack_success_rate": hit["success"].mean() if attacked else np.nan}
