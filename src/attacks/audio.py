"""Attacks that can be heard, from the corpus's audio to tables, WAV files and players.

Records have one row a segment, attack, budget and channel; accuracies are counted from them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from src.attacks import adversarial
from src.attacks.channels import CHANNELS, judge, librosa_log_mel, to_16_bit
from src.attacks.resynthesis import resynthesize, surviving_share
from src.attacks.waveform import (
    GROWING,
    WITHIN_RATIO,
    attack_waveform,
    make_waveform_classifier,
    ratio_db,
)
from src.data.corpus import read_segments
from src.data.features import DYNAMIC_RANGE_DB
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits
from src.paths import RunPaths
from src.progress import progress
from src.statistics import mean_over_tracks

FILE_CHANNEL, DRAWN_CHANNEL = "wav16", "spectrogram"
BEFORE_FILE = {"pgd_spectrogram_resynthesized": "pgd_spectrogram"}
COLUMNS = "corpus checkpoint attack snr_db channel accuracy low high n_segments n_tracks".split()


class Clips(NamedTuple):
    """What is attacked: samples (n, 66150), their rows of the segments' table, true genres (n,).

    `clean` holds the genre (n,) that a network gives each clip after each channel, unattacked.
    """

    samples: np.ndarray
    segments: pd.DataFrame
    y: np.ndarray
    clean: dict[str, np.ndarray]


def load_clips(paths: RunPaths, segments: pd.DataFrame) -> np.ndarray:
    """Return the clips (n, 66150) of rows of the segments' table, as 16-bit samples hold them."""
    return to_16_bit(read_segments(paths, segments))


def judge_clean(
    model: GenreClassifierCNN, samples: np.ndarray, segments: pd.DataFrame, y: np.ndarray
) -> Clips:
    """Return clips together with what the network hears in them after each channel."""
    bar = progress(CHANNELS, "clean", unit="channel")
    heard = {channel: judge(model, samples, channel).argmax(axis=1) for channel in bar}
    return Clips(samples, segments, y, heard)


def clean_records(clips: Clips) -> pd.DataFrame:
    """Return records of the clips as they are: what the channels do on their own."""
    tables = [_table(clips, channel, prediction) for channel, prediction in clips.clean.items()]
    return pd.concat(tables, ignore_index=True).assign(attack="clean", budget_db=np.nan)


def sweep(
    name: str,
    model: GenreClassifierCNN,
    clips: Clips,
    budgets_db: list[float],
    iterations: int,
    seed: int,
    channels_at: float | None = None,
) -> pd.DataFrame:
    """Attack clips within each budget; return one row a segment, budget and channel.

    Only clips that are right as files are attacked; the others stay as they are. With PGD a clip
    broken within a small change (many dB) counts as broken within each larger one and keeps its
    change. At the budget `channels_at` all are attacked in any case and judged after each channel,
    else as a WAV file alone.
    Columns: segment, track, true, attack, budget_db (the signal-to-noise floor, or the distance
    kept below the masking level), snr_db (reached; NaN for an unchanged clip), linf, channel,
    clean_prediction (after that channel), adversarial_prediction, success (right before, wrong
    after that channel).
    """
    rows = []
    growing = _attack_growing(name, model, clips, budgets_db, iterations, seed, channels_at)
    for budget, attacked, prediction in growing:
        channels = CHANNELS if budget == channels_at else (FILE_CHANNEL,)
        table = _records(model, clips, attacked, channels, {FILE_CHANNEL: prediction})
        rows.append(table.assign(attack=name, budget_db=budget))
    return pd.concat(rows, ignore_index=True)


def sweep_resynthesis(
    model: GenreClassifierCNN, clips: Clips, eps: float, iterations: int, seed: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Attack log-mels by PGD, make sounds of them, judge both; return records and shares.

    "pgd_spectrogram" is the attacked log-mel itself (channel "spectrogram": no sound),
    "pgd_spectrogram_resynthesized" the sound nearest to it after each channel. `budget_db` is
    80 * eps, `snr_db` that of the sound in both. Shares (n,) say how much of the change of bins
    the sound holds, NaN for clips that were not attacked.
    """
    X = librosa_log_mel(clips.samples)
    todo = np.flatnonzero(clips.clean[FILE_CHANNEL] == clips.y)
    wanted, sounds, seen = np.zeros_like(X), clips.samples.copy(), clips.clean[FILE_CHANNEL].copy()
    if len(todo):
        search = adversarial.Search(iterations, seed)
        attacked = adversarial.attack("pgd", model, X[todo], clips.y[todo], eps, search)
        wanted[todo], seen[todo] = (
            attacked - X[todo],
            predict_logits(model, attacked).argmax(axis=1),
        )
        sounds[todo] = to_16_bit(resynthesize(clips.samples[todo], wanted[todo]))
    drawn = _table(clips, DRAWN_CHANNEL, seen, ratio_db(clips.samples, sounds))
    heard = _records(model, clips, sounds, CHANNELS, {})
    tables = {"pgd_spectrogram": drawn, "pgd_spectrogram_resynthesized": heard}
    records = pd.concat([table.assign(attack=name) for name, table in tables.items()])
    shares = surviving_share(wanted, librosa_log_mel(sounds) - X)
    return records.assign(budget_db=eps * DYNAMIC_RANGE_DB).reset_index(drop=True), shares


def summarize(records: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy, success rate and survival by checkpoint, attack, budget and channel.

    `snr_db` is the budget where it is a ratio, else the median that was reached. `accuracy`,
    `attack_success_rate` (flipped among those right before, after that channel) and `survival`
    (still flipped among those that were flipped before and are right in this channel unattacked)
    each have value, low and high over tracks, or are absent where nothing counts. Flipped before
    means: by the WAV file; for the WAV file of a resynthesized clip, by its spectrogram.
    """
    keys = ["checkpoint", "attack", "budget_db", "channel"]
    lines = []
    for key, rows in records.groupby(keys, dropna=False, sort=False):
        line = dict(zip(keys, key, strict=True))
        right = rows["clean_prediction"] == rows["true"]
        flips = rows["segment"].isin(_flipped_before(records, line))
        lines.append(
            line
            | {
                "snr_db": _ratio_of(rows, line),
                "accuracy": mean_over_tracks(
                    rows["adversarial_prediction"] == rows["true"], rows["track"]
                ),
                "attack_success_rate": _share(rows[right]),
                "survival": _share(rows[right & flips]),
            }
        )
    return pd.DataFrame(lines)


def flat(summary: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """Return the accuracies of a summary with one column a number."""
    accuracy = pd.DataFrame(summary["accuracy"].tolist(), index=summary.index)
    table = summary.drop(columns="accuracy").assign(corpus=corpus, accuracy=accuracy["value"])
    return table.join(accuracy[["low", "high", "n_segments", "n_tracks"]])[COLUMNS]


def plain(summary: pd.DataFrame) -> list[dict]:
    """Return the lines of a summary for JSON, which has no NaN."""
    return summary.astype(object).where(summary.notna(), None).to_dict("records")


def _attack_growing(
    name, model, clips, budgets_db, iterations, seed, all_at
) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """Yield budget, attacked clips and their genres as WAV files, as `sweep` tells."""
    classifier = make_waveform_classifier(model)
    samples, y, clean = clips.samples, clips.y, clips.clean[FILE_CHANNEL]
    attacked, prediction = samples.copy(), clean.copy()
    for budget in progress(sorted(budgets_db, reverse=True), name, unit="budget"):
        broken = (clean == y) & (prediction != y) & (name in GROWING)
        todo = np.flatnonzero((clean == y) & (~broken | (budget == all_at)))
        if len(todo):
            options = (budget, iterations, seed)
            new = attack_waveform(name, classifier, samples[todo], y[todo], *options)
            heard = judge(model, new).argmax(axis=1)
            kept = (heard != y[todo]) | ~broken[todo]
            attacked[todo[kept]], prediction[todo[kept]] = new[kept], heard[kept]
        yield budget, attacked, prediction


def _records(model, clips, attacked, channels, known) -> pd.DataFrame:
    """Return one row a segment and channel; `known` predictions are not made again."""
    changed = np.flatnonzero((attacked != clips.samples).any(axis=1))
    reached = ratio_db(clips.samples, attacked)
    largest = np.abs(attacked - clips.samples).max(axis=1)
    tables = []
    for channel in channels:
        prediction = known.get(channel, clips.clean[channel].copy())
        if channel not in known and len(changed):
            prediction[changed] = judge(model, attacked[changed], channel).argmax(axis=1)
        tables.append(_table(clips, channel, prediction.copy(), reached, largest))
    return pd.concat(tables, ignore_index=True)


def _table(clips, channel, prediction, snr_db=np.nan, linf=np.nan) -> pd.DataFrame:
    """Return the records of one channel."""
    clean = clips.clean.get(channel, clips.clean[FILE_CHANNEL])
    return pd.DataFrame(
        {
            "segment": clips.segments["segment"].to_numpy(),
            "track": clips.segments["track"].to_numpy(),
            "true": clips.y,
            "channel": channel,
            "snr_db": snr_db,
            "linf": linf,
            "clean_prediction": clean,
            "adversarial_prediction": prediction,
            "success": (clean == clips.y) & (prediction != clips.y),
        }
    )


def _flipped_before(records: pd.DataFrame, line: dict) -> pd.Series:
    """Return the segments that an attack within a budget has flipped before a channel."""
    attack, channel = line["attack"], FILE_CHANNEL
    if line["channel"] == FILE_CHANNEL:
        attack, channel = BEFORE_FILE.get(attack, ""), DRAWN_CHANNEL
    same = (records["attack"] == attack) & (records["budget_db"] == line["budget_db"])
    same &= (records["checkpoint"] == line["checkpoint"]) & (records["channel"] == channel)
    return records.loc[same & records["success"], "segment"]


def _ratio_of(rows: pd.DataFrame, line: dict) -> float | None:
    """Return the signal-to-noise ratio of a line of the summary, None if nothing was changed."""
    if line["attack"] in WITHIN_RATIO:
        return line["budget_db"]
    reached = rows["snr_db"].median()
    return None if np.isnan(reached) else float(reached)


def _share(rows: pd.DataFrame) -> dict | None:
    """Return the share of successes over tracks, None without rows."""
    return mean_over_tracks(rows["success"], rows["track"]) if len(rows) else None
