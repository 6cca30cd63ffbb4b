"""Common corruptions of audio at graded severities, through audiomentations: distribution shift."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import audiomentations as effects
import numpy as np
import pandas as pd
import torch
from scipy.signal import fftconvolve
from torch import nn

from src.attacks.records import accuracy_table
from src.data.corpus import Corpus
from src.data.features import SAMPLE_RATE, SEGMENT_SAMPLES, LogMel
from src.data.segments import Segments
from src.models.evaluation import predict_logits
from src.models.own import takes_samples
from src.progress import progress
from src.runtime import one_thread, set_seed

MARGIN = SAMPLE_RATE  # 1 s before and after a segment is corrupted with it


class Corruption(NamedTuple):
    """Unit of the severities, severities from mild to hard, the effect of one on samples."""

    unit: str
    severities: tuple
    make: Callable


def excerpt(samples: np.ndarray, start: int) -> tuple[np.ndarray, int]:
    """Return a segment with up to a second before and after it, and its beginning in that.

    `samples` (time,), `start` the segment's first sample; too short ones are repeated.
    """
    low, high = max(0, start - MARGIN), start + SEGMENT_SAMPLES + MARGIN
    piece = samples[low:high]
    missing = max(0, SEGMENT_SAMPLES + MARGIN - len(piece))
    return np.pad(piece, (0, missing), mode="wrap"), start - low


def corrupt(name: str, severity: float, piece: np.ndarray, begin: int, seed: int) -> np.ndarray:
    """Return the corrupted segment (66150,) that begins at sample `begin` of an excerpt.

    `name` is one of CORRUPTIONS, `severity` in its unit.
    """
    set_seed(seed)
    changed = CORRUPTIONS[name].make(severity, np.array(piece, dtype=np.float32))
    begin = round(begin * len(changed) / len(piece))
    begin = max(0, min(begin, len(changed) - SEGMENT_SAMPLES))
    return changed[begin : begin + SEGMENT_SAMPLES]


def corrupt_segments(
    corpus: Corpus, tracks: pd.DataFrame, segments: pd.DataFrame, seed: int
) -> Iterator[tuple[str, float, np.ndarray, np.ndarray]]:
    """Yield each corruption, its severity, the corrupted segments (n, 66150) and their log-mels.

    `tracks` is the audit's table; `segments` rows of the table of segments. First comes "none"
    with severity 0. Raises ValueError for a corpus without audio.
    """
    pieces, front_end = _excerpts(corpus, tracks, segments), LogMel()
    jobs = [(name, s) for name, kind in CORRUPTIONS.items() for s in kind.severities]
    for name, severity in progress(jobs, "corruptions", unit="severity"):
        parts = [corrupt(name, severity, *pieces[i], seed + i) for i in range(len(pieces))]
        samples = np.stack(parts)
        with one_thread(), torch.inference_mode():
            X = front_end(torch.from_numpy(samples)).numpy()
        yield name, severity, samples, X


def corruption_table(
    models: dict[str, nn.Module],
    corrupted: Iterable[tuple[str, float, np.ndarray, np.ndarray]],
    data: Segments,
    corpus: str,
    split: str,
) -> pd.DataFrame:
    """Return accuracy by corruption, severity and checkpoint, with intervals over tracks.

    `corrupted` comes from `corrupt_segments` for the segments `data`; without any (a corpus without
    audio) the table has no rows.
    """
    by, tables = ["checkpoint", "corruption", "severity", "unit"], []
    for name, severity, samples, X in corrupted:
        facts = {"corruption": name, "severity": severity, "unit": CORRUPTIONS[name].unit}
        for checkpoint, model in models.items():
            inputs = samples[:, None] if takes_samples(model) else X
            correct = predict_logits(model, inputs).argmax(axis=1) == data.y
            table = data.table[["track"]].assign(correct=correct, checkpoint=checkpoint, **facts)
            tables.append(table)
    records = pd.concat(tables) if tables else pd.DataFrame(columns=[*by, "track", "correct"])
    return accuracy_table(records["correct"], records, by, corpus=corpus, split=split)


def _excerpts(corpus: Corpus, tracks: pd.DataFrame, segments: pd.DataFrame) -> list:
    """Read the excerpt and its beginning for each segment, every track once."""
    files, pieces = tracks.set_index("track", drop=False), {}
    for name, group in segments.groupby("track"):
        samples = corpus.read(files.loc[name])
        for row, start in zip(group.index, group["start_s"], strict=True):
            pieces[row] = excerpt(samples, round(start * SAMPLE_RATE))
    return [pieces[row] for row in segments.index]


def _library(effect: Callable, severity: str, **fixed) -> Callable:
    """Return a function that applies an audiomentations effect with one severity."""

    def make(value: float, samples: np.ndarray) -> np.ndarray:
        low, high = (f"{end}_{severity}" for end in ("min", "max"))
        return effect(**{low: value, high: value}, **fixed, p=1)(samples, SAMPLE_RATE)

    return make


def _overdrive(gain_db: float, samples: np.ndarray) -> np.ndarray:
    """Amplify samples to `gain_db` over full scale and clip them there."""
    gain = effects.Gain(gain_db, gain_db, p=1)
    chain = effects.Compose([effects.Normalize(p=1), gain, effects.Clip(p=1)])
    return chain(samples, SAMPLE_RATE)


def _reverberate(seconds: float, samples: np.ndarray) -> np.ndarray:
    """Convolve with decaying noise (Moorer 1979) that falls by 60 dB in `seconds`.

    Its energy grows with the decay, as in a room (Sabine); at one second it is that of the direct
    sound.
    """
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = np.random.standard_normal(len(times)) * 10 ** (-3 * times / seconds)  # noqa: NPY002
    response = tail * np.sqrt(seconds / np.square(tail).sum())
    response[0] += 1
    return fftconvolve(samples, response)[: len(samples)].astype(np.float32)


CORRUPTIONS = {
    "none": Corruption("", (0,), lambda _, samples: samples),
    "white_noise": Corruption(
        "dB signal-to-noise ratio", (40, 30, 20, 10, 0), _library(effects.AddGaussianSNR, "snr_db")
    ),
    "mp3": Corruption(
        "kbit/s", (64, 32, 16, 8), _library(effects.Mp3Compression, "bitrate", quality=7)
    ),
    "low_pass": Corruption(
        "Hz",
        (8000, 4000, 2000, 1000),
        _library(effects.LowPassFilter, "cutoff_freq", min_rolloff=24, max_rolloff=24),
    ),
    "clipping": Corruption("dB over full scale", (6, 12, 18, 24), _overdrive),
    "reverberation": Corruption("s to -60 dB", (0.2, 0.5, 1, 2), _reverberate),
    "time_stretch": Corruption(
        "times the speed",
        (1.02, 1.05, 1.1),
        _library(effects.TimeStretch, "rate", leave_length_unchanged=False),
    ),
    "pitch_shift": Corruption(
        "semitones", (0.25, 0.5, 1, 2), _library(effects.PitchShift, "semitones")
    ),
}
