"""Spectrograms and maps as small PNG files, and where the ticks of their axes lie."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from src.data.frontend import (
    HOP_LENGTH,
    N_FRAMES,
    N_MELS,
    SAMPLE_RATE,
    SEGMENT_SECONDS,
    mel_frequencies,
)
from src.plots import HEAT_MAP, HERTZ_TICKS, SPECTRUM_MAP
from src.results import save_with

COLOURS = 64
SECONDS_TICKS = np.arange(0, SEGMENT_SECONDS + 0.5)


def draw(path: Path, values: np.ndarray, colour_map: str) -> Path:
    """Write values (bands, frames) in [0, 1] as PNG of 64 colours, low bands below; return it."""
    levels = np.rint(np.asarray(values)[::-1] * (COLOURS - 1)).astype(np.uint8)
    colours = matplotlib.colormaps[colour_map](np.linspace(0, 1, COLOURS))[:, :3]
    image = Image.fromarray(levels, mode="P")
    image.putpalette((colours * 255).round().astype(np.uint8).tobytes())
    return save_with(path, lambda part: image.save(part, format="PNG", optimize=True, bits=6))


def draw_spectrogram(path: Path, x: np.ndarray) -> Path:
    """Write a log-mel spectrogram (128, 130) in [0, 1] as PNG; return its path."""
    return draw(path, x, SPECTRUM_MAP)


def draw_map(path: Path, heat: np.ndarray) -> Path:
    """Write a map (128, 130) in [0, 1] as PNG; return its path."""
    return draw(path, heat, HEAT_MAP)


def draw_colour_bars(folder: Path) -> None:
    """Write `level.png` and `evidence.png`: the colours from least (left) to most."""
    ramp = np.linspace(0, 1, COLOURS)[None]
    draw_spectrogram(folder / "level.png", ramp)
    draw_map(folder / "evidence.png", ramp)


def ticks() -> dict[str, list]:
    """Return labels and places of the ticks: shares of the width for seconds, height for Hz."""
    half, seconds = HOP_LENGTH / SAMPLE_RATE / 2, N_FRAMES * HOP_LENGTH / SAMPLE_RATE
    bands = np.interp(HERTZ_TICKS, mel_frequencies(), np.arange(N_MELS))
    return {
        "seconds": [[f"{t:g}", (t + half) / seconds] for t in SECONDS_TICKS],
        "hertz": [[f"{f}", (b + 0.5) / N_MELS] for f, b in zip(HERTZ_TICKS, bands, strict=True)],
    }
