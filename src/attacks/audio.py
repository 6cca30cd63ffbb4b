"""Attacks on audio files: records with one row per segment, attack, budget and codec; the table.

All that counts is the file: 16-bit WAV or another codec, read again and classified in float32.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from src.attacks.adversarial import Search, attack
from src.attacks.codecs import CODECS, WAV, file_logits, librosa_log_mel, to_16_bit
from src.attacks.equalizer import DRAWS, equalize, random_gains, worst_equalizer
from src.attacks.psychoacoustics import masking_levels
from src.attacks.records import CLEAN, accuracy_table, add_share, compare_groups
from src.attacks.waveform import (
    MASKED,
    NESTED,
    WITHIN_RATIO,
    approach,
    attack_waveform,
    make_waveform_classifier,
    noise_to_mask_db,
    ratio_db,
    resynthesize,
    segmental_ratio_db,
    surviving_share,
)
from src.data.corpus import read_segments
from src.data.features import DYNAMIC_RANGE_DB, N_FFT, N_FRAMES
from src.data.segments import Segments
from src.models.augment import gain_curve
from src.models.evaluation import predict_logits
from src.models.own import takes_samples
from src.paths import RunPaths
from src.progress import progress
from src.shards import once

SPECTROGRAM = "spectrogram"  # in place of a codec: a log-mel without a file
RESYNTHESIZED = "pgd_spectrogram_resynthesized"
DOUBLED = "pgd_waveform_doubled"
EQUALIZED, EQUALIZED_RANDOM = "equalizer_file", "equalizer_file_random"
OPTIMIZED = "pgd_spectrogram_optimized"
BEFORE_FILE = {
    RESYNTHESIZED: "pgd_spectrogram",
    OPTIMIZED: "pgd_spectrogram",
    EQUALIZED: "equalizer_spectrogram",
}
EQUALIZER_BANDS, EQUALIZER_DB = 10, 3
MASKING_MARGINS_DB = (0, 10)
RECORD_COLUMNS = (
    "segment track true codec snr_db segmental_snr_db noise_to_mask_db linf clean_prediction "
    "adversarial_prediction success start attack budget_db share checkpoint"
).split()
SIZES = ("snr_db", "segmental_snr_db", "noise_to_mask_db", "linf")
MEDIANS = ["snr_db", "segmental_snr_db", "noise_to_mask_db", "share"]  # over the segments of a row


class AudioTarget(NamedTuple):
    """A model under attack, segments with samples, and its predictions (n,) after each codec.

    `levels` (n, 1025, 130) are the segments' masking thresholds.
    """

    model: nn.Module
    data: Segments
    clean: dict[str, np.ndarray]
    levels: np.ndarray


def load_samples(paths: RunPaths, data: Segments) -> Segments:
    """Return segments with their samples (n, 66150), rounded to 16 bits; the run needs audio."""
    return replace(data, samples=to_16_bit(read_segments(paths, data.table)))


def make_audio_target(model: nn.Module, data: Segments) -> AudioTarget:
    """Return a target; its clean predictions after each codec are computed here, once."""
    bar = progress(CODECS, CLEAN, unit="codec")
    clean = {codec: file_logits(model, data.samples, codec).argmax(axis=1) for codec in bar}
    loud, levels = data.samples.any(axis=1), np.ones((len(data), N_FFT // 2 + 1, N_FRAMES))
    levels[loud] = masking_levels(data.samples[loud])
    return AudioTarget(model, data, clean, levels.astype(np.float32))


def report_budgets(snr_db: list[float]) -> dict[str, float]:
    """Return the budget of each attack at which all codecs are evaluated and examples are played.

    The middle one of the signal-to-noise ratios, and no margin below the masking threshold.
    """
    return {"pgd_waveform": sorted(snr_db)[len(snr_db) // 2], "pgd_masked": MASKING_MARGINS_DB[0]}


def evaluate(
    targets: dict[str, AudioTarget], snr_db: list[float], eps: float, search: Search
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Return records of all attacks on audio and of the clean segments, and surviving shares.

    White noise, FGSM and PGD run at each signal-to-noise ratio, PGD and noise below the masking
    threshold at each margin; `sweep_doubled`, `sweep_resynthesis` (at `eps`) and `sweep_equalizer`
    follow; the last two need log-mels and are left out for a model that takes samples. `targets`
    and shares are by name of the checkpoint; without targets (a corpus without audio) the records
    are empty.
    """
    budgets = dict.fromkeys(("noise", "fgsm_waveform", "pgd_waveform"), snr_db)
    budgets |= dict.fromkeys(MASKED, MASKING_MARGINS_DB)
    all_codecs, tables, shares = report_budgets(snr_db), [], {}
    for name, target in targets.items():
        clean = [_table(target, codec, predicted) for codec, predicted in target.clean.items()]
        own = [pd.concat(clean).assign(attack=CLEAN, budget_db=np.nan)]
        for method, levels in budgets.items():
            own.append(sweep(method, target, levels, search, all_codecs.get(method)))
        pgd = pd.concat(own).query("attack == 'pgd_waveform'")
        own.append(sweep_doubled(target, pgd, all_codecs["pgd_waveform"], search))
        if not takes_samples(target.model):
            resynthesized, shares[name] = sweep_resynthesis(target, eps, search)
            own += [resynthesized, sweep_equalizer(target, search)]
        tables += [table.assign(checkpoint=name) for table in own]
    empty = pd.DataFrame(columns=RECORD_COLUMNS)
    return pd.concat(tables, ignore_index=True) if tables else empty, shares


def sweep(
    name: str,
    target: AudioTarget,
    budgets_db: list[float],
    search: Search,
    report_db: float | None = None,
) -> pd.DataFrame:
    """Attack segments within each budget; return one row per segment, budget and codec.

    Only segments that are correct as files are attacked; the others stay unchanged. With PGD a
    segment flipped within a small budget (many dB) counts as flipped within each larger one and
    keeps its perturbation. At the budget `report_db` all are attacked in any case and evaluated
    after each codec, at the others as WAV files only.

    `budget_db` is the lowest signal-to-noise ratio, or the margin below the masking threshold;
    sizes of changes are missing where there is none; predictions are those after the codec, a
    success is correct before and wrong after it; start counts the draws of random equalisers.
    """
    classifier, tables = make_waveform_classifier(target.model), []
    samples, y, clean = target.data.samples, target.data.y, target.clean[WAV]
    attacked, predicted = samples.copy(), clean.copy()
    for budget in progress(sorted(budgets_db, reverse=True), name, unit="budget"):
        flipped = (clean == y) & (predicted != y) & (name in NESTED)
        rows = np.flatnonzero((clean == y) & (~flipped | (budget == report_db)))
        if len(rows):
            new = attack_waveform(name, classifier, samples[rows], y[rows], budget, search)
            prediction = file_logits(target.model, new).argmax(axis=1)
            kept = (prediction != y[rows]) | ~flipped[rows]
            attacked[rows[kept]], predicted[rows[kept]] = new[kept], prediction[kept]
        codecs = CODECS if budget == report_db else (WAV,)
        table = _records(target, attacked, codecs, {WAV: predicted})
        tables.append(table.assign(attack=name, budget_db=budget))
    return pd.concat(tables, ignore_index=True)


def sweep_doubled(
    target: AudioTarget, pgd: pd.DataFrame, budget_db: float, search: Search
) -> pd.DataFrame:
    """Return records of PGD with twice the steps from another start, where PGD has not flipped.

    `pgd` are records of PGD; segments that these flip within the budget keep their record.
    """
    rows = pgd[(pgd["budget_db"] == budget_db) & (pgd["codec"] == WAV)].reset_index(drop=True)
    left = np.flatnonzero((rows["clean_prediction"] == rows["true"]) & ~rows["success"])
    attacked = target.data.samples.copy()
    if len(left):
        classifier = make_waveform_classifier(target.model)
        further = search._replace(iterations=2 * search.iterations, seed=search.seed + 1)
        part = attacked[left], target.data.y[left]
        attacked[left] = attack_waveform("pgd_waveform", classifier, *part, budget_db, further)
    again = _records(target, attacked, (WAV,)).iloc[left]
    kept = rows.drop(left)
    return pd.concat([kept, again]).sort_index().assign(attack=DOUBLED, budget_db=budget_db)


def sweep_resynthesis(
    target: AudioTarget, eps: float, search: Search
) -> tuple[pd.DataFrame, np.ndarray]:
    """Attack log-mels by PGD, resynthesize sounds from them, evaluate both.

    Returns
    -------
    records : "pgd_spectrogram" is the log-mel itself, RESYNTHESIZED the filtered sound, OPTIMIZED
        one whose samples are optimised towards the log-mel; `budget_db` is 80 * eps, `share` the
        share of the wanted change in the sound
    shares : (n,) this share of the filter, NaN for segments that were not attacked
    """
    samples, y, clean = target.data.samples, target.data.y, target.clean[WAV]
    X, rows = librosa_log_mel(samples), np.flatnonzero(clean == y)
    attacked, sounds, nearer = X.copy(), samples.copy(), samples.copy()
    if len(rows):
        attacked[rows] = attack("pgd", target.model, X[rows], y[rows], eps, search)
        filtered = resynthesize(samples[rows], attacked[rows] - X[rows])
        sounds[rows] = to_16_bit(filtered)
        nearer[rows] = to_16_bit(once(approach, filtered, attacked[rows]))
    tables, wanted = [_both_records(target, RESYNTHESIZED, attacked, sounds)], attacked - X
    tables.append(_records(target, nearer, CODECS).assign(attack=OPTIMIZED))
    shares = [surviving_share(wanted, librosa_log_mel(made) - X) for made in (sounds, nearer)]
    for table, share in zip(tables, shares, strict=True):
        table["share"] = table["segment"].map(dict(zip(target.data.numbers, share, strict=True)))
    records = pd.concat(tables, ignore_index=True)
    return records.assign(budget_db=eps * DYNAMIC_RANGE_DB), shares[0]


def sweep_equalizer(target: AudioTarget, search: Search) -> pd.DataFrame:
    """Return records of the worst equaliser on log-mels and as a filter of the samples.

    EQUALIZED is the filtered sound after each codec, EQUALIZED_RANDOM ten random filters with gains
    at the limit, as WAV files; `budget_db` is the limit of the gains.
    """
    samples, y = target.data.samples, target.data.y
    X, rows = librosa_log_mel(samples), np.flatnonzero(target.clean[WAV] == y)
    attacked, sounds = X.copy(), samples.copy()
    if len(rows):
        sounds[rows], gains = equalize_samples(target.model, samples[rows], y[rows], search)
        attacked[rows] = equalize(X[rows], gains)
    tables = [_both_records(target, EQUALIZED, attacked, sounds)]
    for start in range(1, DRAWS + 1):
        sounds = samples.copy()
        if len(rows):
            gains = random_gains(len(rows), EQUALIZER_BANDS, EQUALIZER_DB, search.seed + start)
            sounds[rows] = _play(samples[rows], gains)
        table = _records(target, sounds, (WAV,))
        tables.append(table.assign(attack=EQUALIZED_RANDOM, start=start))
    return pd.concat(tables, ignore_index=True).assign(budget_db=EQUALIZER_DB)


def equalize_samples(
    model: nn.Module, samples: np.ndarray, y: np.ndarray, search: Search
) -> tuple[np.ndarray, np.ndarray]:
    """Return segments (n, 66150) played through their worst equalisers, and its gains (n, bands).

    The filtered samples are 16-bit values, brought below full scale where they exceed it.
    """
    X = librosa_log_mel(samples)
    gains = worst_equalizer(model, X, y, EQUALIZER_BANDS, EQUALIZER_DB, search)
    return _play(samples, gains), gains


def compare_files(records: pd.DataFrame, snr_db: float) -> pd.DataFrame:
    """Return `compare_groups` of WAV files: clean, and at `snr_db` with noise and `DOUBLED` PGD."""
    at = records["attack"].isin(["noise", DOUBLED]) & (records["budget_db"] == snr_db)
    files = records[(at | (records["attack"] == CLEAN)) & (records["codec"] == WAV)]
    return compare_groups(files, ["attack", "budget_db"])


def audio_table(records: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """Return accuracy, success rate and survival by checkpoint, attack, budget and codec.

    `attack_success_rate` is the share of successes among segments correct before, after the same
    codec. `survival` is the share still flipped among segments flipped before the codec that are
    correct after this codec unattacked. Flipped before means: by the WAV file; for the WAV file of
    a resynthesized segment, by its spectrogram. `snr_db` is the budget where that is a ratio, else
    the median reached; `share` is the median share of a wanted log-mel change in the sound.
    """
    by = ["checkpoint", "attack", "budget_db", "codec"]
    correct = records["adversarial_prediction"] == records["true"]
    table = accuracy_table(correct, records, by, corpus=corpus)
    before = records[records["clean_prediction"] == records["true"]]
    table = add_share(table, "attack_success_rate", before, by)
    table = add_share(table, "survival", before[_flipped_before(before)], by)
    groups = records.reindex(columns=[*by, *MEDIANS]).groupby(by, dropna=False, sort=False)
    table[MEDIANS] = groups[MEDIANS].median().to_numpy()
    within = table["attack"].isin(WITHIN_RATIO)
    table["snr_db"] = table["budget_db"].where(within, table["snr_db"])
    first = ["corpus", *by[:-1], *MEDIANS, "codec"]
    return table[[*first, *table.columns.drop(first)]]


def _play(samples: np.ndarray, gains_db: np.ndarray) -> np.ndarray:
    """Return 16-bit samples (n, 66150) filtered by gains (n, bands), below full scale."""
    curve = gain_curve(torch.from_numpy(gains_db)).numpy()[:, :, None]
    shape = *curve.shape[:2], N_FRAMES
    sounds = resynthesize(samples, np.broadcast_to(curve, shape))
    return to_16_bit(sounds / np.abs(sounds).max(axis=1, keepdims=True).clip(min=1))


def _both_records(target: AudioTarget, name: str, attacked, sounds) -> pd.DataFrame:
    """Return records of attacked log-mels (n, 128, 130) and of the sounds made from them."""
    predicted, clean = predict_logits(target.model, attacked).argmax(axis=1), target.clean[WAV]
    predicted = np.where(clean == target.data.y, predicted, clean)
    drawn = _table(target, SPECTROGRAM, predicted, _sizes(target, sounds) | {"linf": np.nan})
    tables = {BEFORE_FILE[name]: drawn, name: _records(target, sounds, CODECS)}
    records = pd.concat([table.assign(attack=attack) for attack, table in tables.items()])
    return records.reset_index(drop=True)


def _records(target: AudioTarget, attacked, codecs, known: dict | None = None) -> pd.DataFrame:
    """Return one row per segment and codec; `known` predictions are not computed again."""
    samples, known, tables = target.data.samples, known or {}, []
    changed = np.flatnonzero((attacked != samples).any(axis=1))
    sizes = _sizes(target, attacked)
    for codec in codecs:
        predicted = known.get(codec, target.clean[codec]).copy()
        if codec not in known and len(changed):
            logits = file_logits(target.model, attacked[changed], codec)
            predicted[changed] = logits.argmax(axis=1)
        tables.append(_table(target, codec, predicted, sizes))
    return pd.concat(tables, ignore_index=True)


def _sizes(target: AudioTarget, attacked: np.ndarray) -> dict[str, np.ndarray]:
    """Return the sizes (n,) of the changes of all segments by name."""
    samples = target.data.samples
    change = attacked - samples
    ratios = ratio_db(samples, attacked), segmental_ratio_db(samples, attacked)
    masked = noise_to_mask_db(change, target.levels)
    return dict(zip(SIZES, (*ratios, masked, np.abs(change).max(axis=1)), strict=True))


def _table(target: AudioTarget, codec: str, predicted, sizes: dict | None = None) -> pd.DataFrame:
    """Return the records of one codec; `sizes` are those of the changes, if there are any."""
    clean, data = target.clean.get(codec, target.clean[WAV]), target.data
    return pd.DataFrame(
        {
            "segment": data.numbers,
            "track": data.tracks,
            "true": data.y,
            "codec": codec,
            **(sizes or dict.fromkeys(SIZES, np.nan)),
            "clean_prediction": clean,
            "adversarial_prediction": predicted,
            "success": (clean == data.y) & (predicted != data.y),
            "start": 1,
        }
    )


def _flipped_before(records: pd.DataFrame) -> np.ndarray:
    """Return whether each record's attack and budget flip its segment before its codec."""
    keys = ["checkpoint", "attack", "budget_db", "codec", "segment"]
    file, attack = records["codec"] == WAV, records["attack"]
    before = records[keys].assign(codec=np.where(file, SPECTROGRAM, WAV))
    before["attack"] = attack.where(~file, attack.map(BEFORE_FILE))
    flipped = pd.MultiIndex.from_frame(records.loc[records["success"], keys])
    return pd.MultiIndex.from_frame(before).isin(flipped)
