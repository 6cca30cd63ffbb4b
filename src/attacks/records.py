"""Records of attacks: one row per segment, attack and eps, and the tables counted from them."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from src.data.features import DYNAMIC_RANGE_DB
from src.data.segments import Segments, draw_segments
from src.labels import NAMES, percent
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits
from src.statistics import difference_over_tracks, holm, mean_over_tracks

CLEAN, WORST_CASE = "clean", "worst_case"
NOISES = ("noise_linf", "noise_l2")
HEADLINE = (CLEAN, "noise_linf", "fgsm", "pgd", "hop_skip_jump", WORST_CASE)
MEASURED = ("accuracy", "low", "high", "n_segments", "n_tracks")
HEADINGS = {  # of columns, in tables to read
    "budget_db": "budget (dB)",
    "compared_with": "compared with",
    "eps_db": "eps (dB)",
    "made_on": "made on",
    "n_segments": "segments",
    "n_tracks": "tracks",
}
COMPARED = "difference low high p_value p_holm n_segments n_tracks".split()


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


def check_attackable(name: str, correct: np.ndarray) -> None:
    """Raise ValueError if a model predicts no segment correctly; `correct` has shape (n,)."""
    if not correct.any():
        raise ValueError(
            f"{name} predicts 0 of {len(correct)} segments correctly, so there is nothing to "
            "attack: draw more by N_SEGMENTS or N_AUDIO, train for more epochs or leave it out."
        )


def make_records(
    target: Target, attack: str, eps: float, attacked: np.ndarray, predicted: np.ndarray
) -> pd.DataFrame:
    """Return one row per segment for one attack at one eps.

    `attacked` are the target's segments after the attack (n, 128, 130) and `predicted` (n,) the
    model's predictions of them. A success was correct before and is wrong after; snr_db is missing
    for an unchanged segment, whose made_by (the attack that made the perturbation) is empty; lowest
    and highest are bins of the attacked segment, start counts the attack's random starts.
    """
    X, y, data = target.data.X, target.data.y, target.data
    change, bins = attacked - X, (1, 2)
    signal, energy = np.square(X).sum(axis=bins), np.square(change).sum(axis=bins)
    with np.errstate(divide="ignore"):
        snr = 10 * np.log10(signal / energy)
    return pd.DataFrame(
        {
            "segment": data.numbers,
            "track": data.tracks,
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
    """Return one row per segment: the result of all attacks with a budget of at most `eps`.

    An attack at this eps or a smaller one that succeeds counts (the balls are nested); the row is
    that of the first success at the smallest eps, or the latest row where none succeeds. `records`
    are those of one checkpoint, without noise.
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


def accuracy_table(
    correct: pd.Series, records: pd.DataFrame, by: list[str], **where: str
) -> pd.DataFrame:
    """Return the accuracy of each group of records, with its interval over tracks.

    Parameters
    ----------
    correct : whether each record's prediction is correct (n,)
    records : table with column track and those of `by`
    by : columns that define a group
    where : columns with one value, as corpus and split

    Returns
    -------
    One row per group in order of appearance: `where`, `by` and MEASURED.
    """
    rows = []
    for key, group in records.assign(correct=correct).groupby(by, sort=False, dropna=False):
        measured = mean_over_tracks(group["correct"], group["track"])
        facts = where | dict(zip(by, key, strict=True)) | {"accuracy": measured.pop("value")}
        if "segment" in group:  # several records of one segment count once
            measured["n_segments"] = group["segment"].nunique()
        rows.append(facts | measured)
    return pd.DataFrame(rows, columns=[*where, *by, *MEASURED])


def add_share(table: pd.DataFrame, name: str, rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return a table by groups with the share of successes among `rows` of each, named `name`.

    It comes with its interval and numbers; all are missing for a group without rows.
    """
    shares = accuracy_table(rows["success"], rows, by)
    names = {column: f"{name}_{column}" for column in MEASURED} | {"accuracy": name}
    return table.merge(shares.rename(columns=names), on=by, how="left")


def robustness_table(records: pd.DataFrame, corpus: str, split: str) -> pd.DataFrame:
    """Return accuracy and success rate by checkpoint, attack and eps, with intervals over tracks.

    Attack `clean` (eps 0) comes first for each checkpoint. The attack success rate is the share of
    successes among the segments predicted correctly before; it is missing for `clean`.
    """
    by = ["checkpoint", "attack", "eps", "eps_db"]
    both = pd.concat(
        pd.concat([_as_clean(own.drop_duplicates("segment")), own])
        for _, own in records.groupby("checkpoint", sort=False)
    )
    correct = both["adversarial_prediction"] == both["true"]
    table = accuracy_table(correct, both, by, corpus=corpus, split=split)
    vulnerable = records[records["clean_prediction"] == records["true"]]
    return add_share(table, "attack_success_rate", vulnerable, by)


def genre_table(records: pd.DataFrame, corpus: str, split: str) -> pd.DataFrame:
    """Return clean accuracy and that under the worst case by genre, with intervals over tracks."""
    both = _clean_and_worst(records)
    by = ["checkpoint", "attack", "eps", "eps_db", "true"]
    correct = both["adversarial_prediction"] == both["true"]
    return accuracy_table(correct, both, by, corpus=corpus, split=split)


def compare(records: pd.DataFrame) -> pd.DataFrame:
    """Return `compare_groups` of clean segments (eps 0) and each eps of the worst case."""
    return compare_groups(_clean_and_worst(records), ["attack", "eps", "eps_db"])


def compare_groups(records: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the accuracy of each later checkpoint minus that of the first, on the same segments.

    One row per later checkpoint and group: columns checkpoint, compared_with, `by` and COMPARED.
    `difference` is a fraction; `low`, `high` and `p_value` are those of `difference_over_tracks`;
    `p_holm` is corrected for the number of rows.
    """
    correct = (records["adversarial_prediction"] == records["true"]).astype(float)
    keys = ["checkpoint", *by, "segment", "track"]
    pairs = records.assign(correct=correct).set_index(keys)["correct"].unstack("checkpoint")
    first, *others = records["checkpoint"].unique()
    rows = []
    for other in others:
        for key, group in pairs.reset_index().groupby(by, dropna=False):
            measured = difference_over_tracks(group[first], group[other], group["track"])
            facts = {"checkpoint": other, "compared_with": first, **dict(zip(by, key, strict=True))}
            rows.append(facts | {"difference": measured.pop("value")} | measured)
    table = pd.DataFrame(rows, columns=["checkpoint", "compared_with", *by, *COMPARED])
    return table.assign(p_holm=holm(table["p_value"]))


def percent_table(table: pd.DataFrame, by: list[str], value: str = "accuracy") -> pd.DataFrame:
    """Return a table to read: indexed by `by`, one column per checkpoint, percent and interval.

    `table` has columns checkpoint, `value`, low and high (fractions). Attacks, codecs and
    corruptions appear by their labels.
    """
    shown = table[[*by, "checkpoint"]].copy()
    for name in {"attack", "codec", "made_on", "measure"} & set(by):
        shown[name] = shown[name].replace(NAMES)
    columns = table[value], table["low"], table["high"]
    shown["cell"] = [percent(*cell) for cell in zip(*columns, strict=True)]
    wide = shown.set_index([*by, "checkpoint"])["cell"].unstack(sort=False)
    headings = [HEADINGS.get(name, name) for name in by]
    return wide.fillna("").rename_axis(index=headings, columns=None)


def headline(
    robustness: pd.DataFrame, files: pd.DataFrame, eps: float, snr_db: float
) -> pd.DataFrame:
    """Return the main accuracies to read: attacks on log-mels at `eps`, on WAV files at `snr_db`.

    `robustness` comes from `robustness_table`, `files` from `audio.audio_table`; it may be empty.
    """
    at = robustness[robustness["eps"].isin([0, eps])].set_index("attack")
    at = at.loc[[name for name in HEADLINE if name in at.index]].reset_index()
    at = at.assign(input="log-mel", budget=f"{DYNAMIC_RANGE_DB * eps:g} dB per bin")
    snr, budgets = f"{snr_db:g} dB SNR", {"noise": snr_db, "pgd_waveform": snr_db, "pgd_masked": 0}
    clean, wanted = files["attack"] == CLEAN, files["attack"].map(budgets)
    wav = files[(files["codec"] == "wav16") & (clean | (files["budget_db"] == wanted))]
    budget = np.where(wav["attack"] == "pgd_masked", "masking threshold", snr)
    table = pd.concat([one for one in (at, wav.assign(input="WAV", budget=budget)) if len(one)])
    table["budget"] = table["budget"].mask(table["attack"] == CLEAN, "")
    return percent_table(table, ["input", "attack", "budget", "n_segments", "n_tracks"])


def _as_clean(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of one attack and eps as those of the clean segments."""
    clean = {"attack": CLEAN, "eps": 0.0, "eps_db": 0.0}
    return rows.assign(**clean, adversarial_prediction=rows["clean_prediction"])


def _clean_and_worst(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records of the worst case, and those of the clean segments before them."""
    worst = records[records["attack"] == WORST_CASE]
    return pd.concat([_as_clean(worst[worst["eps"] == worst["eps"].min()]), worst])
