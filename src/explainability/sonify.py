"""Sonification of maps: a segment filtered by its map, and the rest."""

from pathlib import Path

import numpy as np
import torch

from src.attacks.codecs import write_audio
from src.data.corpus import read_segments
from src.data.features import bands_to_bins, istft, stft
from src.explainability.attributions import attribute
from src.explainability.selection import Case, spread
from src.paths import RunPaths, short_name
from src.results import save_with


def filter_by_map(samples: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return samples (time,) at 22,050 Hz whose spectrum is weighted by a map (128, frames).

    The weights of the mel bands are interpolated to the bins of the short-time spectrum, whose
    phase is kept. Weights of 1 return the segment; it is the sum of its versions filtered by
    `heat` and by `1 - heat`.
    """
    wave = torch.from_numpy(np.asarray(samples, dtype=np.float32))
    weighted = stft(wave) * torch.from_numpy(bands_to_bins(heat))
    return istft(weighted, len(samples)).numpy()


def write_flipped(paths: RunPaths, case: Case, method: str, eps: float, n: int) -> list[tuple]:
    """Write `n` segments that the attack flips, filtered by their maps before and after it.

    Before, the map explains the true genre; after, the predicted one, and filters the clean audio.
    Files of an earlier model are removed.

    Returns
    -------
    row of the segments' table, number of the genre predicted after the attack, and the paths of
    `write_parts`, for each segment
    """
    folder, subject, attacked = paths.audio / "explanations", case.subject, case.attacked[eps]
    for file in folder.glob("*.wav"):
        file.unlink()
    rows = spread(np.flatnonzero(attacked.predicted != case.data.y), n)
    if not len(rows):
        return []
    data, predicted = case.data.take(rows), attacked.predicted[rows]
    clean = attribute(subject, method, data.X, data.y)
    after = attribute(subject, method, attacked.X[rows], predicted)
    samples, written = read_segments(paths, data.table), []
    for k, row in enumerate(data.table.itertuples()):
        maps = {"clean": clean[k], "attacked": after[k]}
        files = write_parts(folder, f"{short_name(row.track)}_{row.segment}", samples[k], maps)
        written.append((row, predicted[k], files))
    return written


def write_parts(folder: Path, name: str, samples: np.ndarray, maps: dict) -> dict[str, Path]:
    """Write a segment and, for each named map, the filtered segment and the rest, as WAV.

    All at the segment's level, so that the two parts add up to it. Return paths by kind: `clip`,
    `<map>_kept` and `<map>_left_out`.
    """
    sounds = {"clip": samples}
    for kind, heat in maps.items():
        kept = filter_by_map(samples, heat)
        sounds |= {f"{kind}_kept": kept, f"{kind}_left_out": samples - kept}
    return {
        kind: save_with(
            folder / f"{name}_{kind}.wav", lambda part, s=sound: write_audio(part, s.clip(-1, 1))
        )
        for kind, sound in sounds.items()
    }
