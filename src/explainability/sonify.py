"""Sonification of maps: a segment filtered by its map, and the rest."""

from pathlib import Path

import numpy as np
import soundfile
import torch

from src.data.features import SAMPLE_RATE, bands_to_bins, istft, stft
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


def clear(folder: Path) -> None:
    """Remove the WAV files of an earlier model."""
    for file in folder.glob("*.wav"):
        file.unlink()


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
        kind: save_with(folder / f"{name}_{kind}.wav", lambda part, s=sound: _write(part, s))
        for kind, sound in sounds.items()
    }


def _write(path: Path, samples: np.ndarray) -> None:
    """Write samples as 16-bit WAV, clipped at full scale."""
    soundfile.write(path, np.clip(samples, -1, 1), SAMPLE_RATE, subtype="PCM_16", format="WAV")
