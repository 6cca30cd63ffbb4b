"""Spectrograms and maps as small PNG files, and the ticks of their axes."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from src.data.features import (
    HOP_LENGTH,
    N_FRAMES,
    N_MELS,
    SAMPLE_RATE,
    SEGMENT_SECONDS,
    mel_frequencies,
)
from src.plots import HERTZ_TICKS, SPECTRUM_MAP
from src.results import save_with

COLOURS = 64
HEAT_MAP = "cividis"
SECONDS_TICKS = np.arange(0, SEGMENT_SECONDS + 0.5)


def draw(folder: Path, name: str, values: np.ndarray, colour_map: str) -> str:
    """Write values (bands, frames) in [0, 1] as `pictures/<name>.png`; return that path.

    The lowest band is at the bottom; 64 colours.
    """
    levels = np.rint(np.asarray(values)[::-1] * (COLOURS - 1)).astype(np.uint8)
    colours = matplotlib.colormaps[colour_map](np.linspace(0, 1, COLOURS))[:, :3]
    image = Image.fromarray(levels, mode="P")
    image.putpalette((colours * 255).round().astype(np.uint8).tobytes())
    path = f"pictures/{name}.png"
    save_with(folder / path, lambda part: image.save(part, format="PNG", optimize=True, bits=6))
    return path


def draw_colour_bars(folder: Path) -> None:
    """Write `level.png` and `evidence.png`: the two colour maps from lowest (left) to highest."""
    ramp = np.linspace(0, 1, COLOURS)[None]
    draw(folder, "level", ramp, SPECTRUM_MAP)
    draw(folder, "evidence", ramp, HEAT_MAP)


def ticks() -> dict[str, list]:
    """Return labels and positions of the ticks, as shares of the width (s) and height (Hz)."""
    half, seconds = HOP_LENGTH / SAMPLE_RATE / 2, N_FRAMES * HOP_LENGTH / SAMPLE_RATE
    bands = np.interp(HERTZ_TICKS, mel_frequencies(), np.arange(N_MELS))
    return {
        "seconds": [[f"{t:g}", (t + half) / seconds] for t in SECONDS_TICKS],
        "hertz": [[f"{f}", (b + 0.5) / N_MELS] for f, b in zip(HERTZ_TICKS, bands, strict=True)],
    }
