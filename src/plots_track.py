"""Figures of a track: genres, spectrogram and Grad-CAM along it; its prediction under attack."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from src import plots
from src.data.features import SEGMENT_SECONDS
from src.try_track import Trial

LEFT, RIGHT = 0.09, 0.98  # of the time axes, as shares of the figure's width
VOTES = {"clean": "unchanged", "noise": "white noise", "attack": "attack (PGD)"}
COLOURS = ("#0072B2", "#009E73", "#E69F00")


def timeline(trial: Trial) -> Figure:
    """Draw genre probabilities, spectrogram and Grad-CAM of all segments over the track's time.

    Silent segments stay blank; the time axes reach from LEFT to RIGHT of the figure.
    """
    first = next(iter(trial.readings.values()))
    places = np.rint(trial.track.starts_s / SEGMENT_SECONDS).astype(int)
    rows = (first.probabilities.T[:, :, None], trial.X.swapaxes(0, 1), trial.maps.swapaxes(0, 1))
    n = round(trial.track.used_s / SEGMENT_SECONDS)
    likely, level, heat = (_along(values, places, n) for values in rows)
    height_ratios = (len(likely), 12, 12)
    figure, axes = plt.subplots(3, sharex=True, figsize=(11, 8), height_ratios=height_ratios)
    figure.subplots_adjust(left=LEFT, right=RIGHT, top=0.96, bottom=0.07, hspace=0.2)
    titles = (
        "probability of each genre (white 0, dark blue 1)",
        "spectrogram (bright: loud)",
        f"Grad-CAM: evidence for {first.ranking(1)[0][0]} (bright: most)",
    )
    maps = (plots.COUNT_MAP, plots.SPECTRUM_MAP, plots.HEAT_MAP)
    for ax, values, colours, title in zip(axes, (likely, level, heat), maps, titles, strict=True):
        extent = (0, trial.track.used_s, -0.5, len(values) - 0.5)
        style = {"cmap": colours, "vmin": 0, "vmax": 1, "origin": "lower", "aspect": "auto"}
        ax.imshow(values, extent=extent, interpolation="nearest", **style)
        ax.set_title(title, fontsize=9)
        if ax is not axes[0]:
            ax.set_yticks(plots.mel_places(), plots.HERTZ_TICKS)
            ax.set_ylabel("frequency (Hz)")
    axes[0].set_yticks(range(len(likely)), first.genres)
    axes[0].invert_yaxis()
    axes[2].set_xlabel("time (s)")
    return figure


def votes(trial: Trial) -> Figure:
    """Draw the probability of each genre of the excerpt: unchanged, with noise, under attack."""
    genres = next(iter(trial.readings.values())).genres
    table = pd.DataFrame(trial.votes, genres)[list(VOTES)].rename(columns=VOTES) * 100
    figure, ax = plt.subplots(figsize=(6, 5.5), layout="constrained")
    table.plot.barh(ax=ax, color=COLOURS, width=0.8).invert_yaxis()
    ax.set(xlabel="probability (%)", xlim=(0, 100))
    return figure


def _along(values: np.ndarray, places: np.ndarray, n: int) -> np.ndarray:
    """Return segments (bands, n_segments, frames) at their places among `n`, NaN elsewhere."""
    row = np.full((len(values), n, values.shape[2]), np.nan)
    row[:, places] = values
    return row.reshape(len(values), -1)
