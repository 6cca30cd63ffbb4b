"""Figures of maps: every panel says which clip it shows and which genre its map explains."""

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from joblib import Parallel, delayed
from matplotlib.figure import Figure

from src import plots
from src.data.frontend import DYNAMIC_RANGE_DB


class Panel(NamedTuple):
    """One spectrogram with one map, and what is written over each."""

    x: np.ndarray
    heat: np.ndarray
    title: str
    says: str


def panel(
    x: np.ndarray, heat: np.ndarray, segment, predicted: str, explained: str, note: str = "clean"
) -> Panel:
    """Return a panel of a segment (a row of the segments' table) and a map (both 128, 130).

    `predicted` and `explained` are genres; `note` tells how the clip was changed.
    """
    title = f"{clip_name(segment)}, {note}\ntrue {segment.genre}, predicted {predicted}"
    kinds = {"true": segment.genre, "predicted": predicted}
    kind = " and ".join(name for name, genre in kinds.items() if genre == explained)
    empty = "" if heat.any() else ": no positive evidence"
    return Panel(x, heat, title, f"explains {explained} ({kind}){empty}")


def clip_name(segment) -> str:
    """Return a segment's track and start."""
    return f"{segment.track} at {segment.start_s:.0f} s"


def attack_note(name: str, eps: float) -> str:
    """Return how a clip was attacked; eps is NaN where no eps of the sweep flipped it."""
    if np.isnan(eps):
        return f"{name}: no eps flips it"
    return f"{name}, eps {eps:g} ({eps * DYNAMIC_RANGE_DB:.2g} dB)"


def draw(panels: list[Panel]) -> Figure:
    """Draw panels side by side: spectrograms above, maps below, one colour bar each."""
    figure, axes = plots.grid(2, len(panels), width=3.6, height=2.6)
    for column, shown in enumerate(panels):
        level = plots.spectrogram(axes[0, column], shown.x, shown.title)
        evidence = plots.heatmap(axes[1, column], shown.x, shown.heat, shown.says)
    plots.colour_bar(figure, level, axes[0], "level (dB)")
    plots.colour_bar(figure, evidence, axes[1], "evidence (0: least, 1: most)")
    return figure


def clear(folder: Path) -> None:
    """Remove the figures of an earlier network from all sub-folders of `folder`."""
    for figure in folder.glob("*/*.png"):
        figure.unlink()


def save_all(shown: list[tuple], folder: Path, corpus: str, n_jobs: int = 2) -> list[Path]:
    """Write one figure for each pair of panels and segment, by several processes; return paths."""
    jobs = [delayed(save)(panels, folder, segment, corpus) for panels, segment in shown]
    return Parallel(n_jobs)(jobs)


def save(panels: list[Panel], folder: Path, segment, corpus: str) -> Path:
    """Draw panels into `<folder>/<track>_<segment>.png`, close the figure, return the path."""
    figure = draw(panels)
    path = plots.save_figure(figure, folder / f"{segment.track}_{segment.segment}.png", corpus)
    plt.close(figure)
    return path
