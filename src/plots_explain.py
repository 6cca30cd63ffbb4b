"""Figures of what is measured on maps: intervals over tracks, controls in grey beside methods."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from src import plots
from src.data.frontend import DYNAMIC_RANGE_DB, frame_times, mel_frequencies
from src.explainability.methods import CONTROLS
from src.explainability.sanity import LAYERS

CONDITION_STYLE = {
    "succeeded_predicted": ("tab:red", "s", "attack succeeds: predicted genre's map"),
    "succeeded_true": ("tab:orange", "o", "attack succeeds: true genre's map"),
    "asked_predicted": ("tab:purple", "^", "clean clip, asked for the other genre"),
    "failed": ("tab:blue", "v", "attack fails"),
    "noise": ("tab:green", "D", "noise of the attack's norm"),
}
SHIFT_LABELS = {
    "spearman": "rank correlation\n(1: same map)",
    "mod": "MOD (0: same map)",
    "top_overlap": "overlap of top tenth",
    "centre_shift_s": "shift of centre (s)",
    "centre_shift_hz": "shift of centre (Hz)",
}
OTHER_CLIP_LABEL = "another track of the genre, clean"


def shift_over_eps(ax: Axes, table: pd.DataFrame, other: pd.DataFrame, label: str) -> Axes:
    """Draw one measure over eps by condition with intervals; the upper axis shows eps in dB.

    `table` has the rows of `explanations.csv` of one checkpoint, method and measure; `other` that
    of another clip of the same genre, a dotted line.
    """
    for condition, (colour, marker, name) in CONDITION_STYLE.items():
        rows = table[table["condition"] == condition].sort_values("eps")
        ax.plot(rows["eps"], rows["value"], marker=marker, color=colour, label=name)
        ends = (rows["low"].astype(float), rows["high"].astype(float))
        ax.fill_between(rows["eps"], *ends, color=colour, alpha=0.15)
    for value in other["value"]:
        ax.axhline(value, color="black", linestyle=":", label=OTHER_CLIP_LABEL)
    ax.set_xscale("log")
    ax.set(xlabel="eps (of the range [0, 1])", ylabel=label)
    ticks = np.sort(table["eps"].unique())
    ax.set_xticks(ticks, [f"{eps:g}" for eps in ticks], rotation=45)
    top = ax.secondary_xaxis("top")
    top.set_xticks(ticks, [f"{eps * DYNAMIC_RANGE_DB:.2g}" for eps in ticks], rotation=45)
    top.set_xlabel("eps (dB)")
    ax.minorticks_off()
    top.minorticks_off()
    return ax


def by_method(
    ax: Axes, table: pd.DataFrame, checkpoints: list[str], label: str, null: float | None = None
) -> Axes:
    """Draw one measure's value and interval for each method (controls in grey) and checkpoint.

    `table` has rows of `explanations.csv` of one measure and condition; a network keeps its place
    among the `checkpoints` whether or not it has a row. `null` is the value of a map that knows
    nothing.
    """
    methods = list(dict.fromkeys(table["method"]))
    for name, rows in table.groupby("checkpoint", sort=False):
        k = checkpoints.index(name)
        at = np.array([methods.index(method) for method in rows["method"]]) + 0.25 * k
        colours = ["grey" if m in CONTROLS else f"C{k}" for m in rows["method"]]
        ends = rows[["low", "high"]].astype(float).to_numpy()
        ax.hlines(at, ends[:, 0], ends[:, 1], colors=colours)
        ax.scatter(rows["value"], at, c=colours, marker="os^vD"[k % 5], label=name, zorder=3)
    if null is not None:
        ax.axvline(null, color="black", linestyle=":")
    if table.empty:
        ax.text(0.5, 0.5, "no clip to measure", ha="center", transform=ax.transAxes)
    ax.set_yticks(range(len(methods)), methods)
    ax.invert_yaxis()
    ax.set_xlabel(label)
    return ax


def faithfulness_curves(ax: Axes, scores: dict[str, np.ndarray], fractions: tuple) -> Axes:
    """Draw the mean probability of the genre over the share of cells put in or taken out."""
    for k, (name, values) in enumerate(scores.items()):
        style = "--" if name in CONTROLS else "-"
        known = values[np.isfinite(values).all(axis=1)]
        mean = known.mean(axis=0) if len(known) else np.full(len(fractions), np.nan)
        ax.plot(np.multiply(fractions, 100), mean, style, color=f"C{k % 10}", label=name)
    ax.set(xlabel="cells, highest first (%)", ylabel="probability of the genre", ylim=(0, 1))
    return ax


def box_outline(ax: Axes, box: np.ndarray) -> Axes:
    """Outline a box (128, 130) on axes drawn by `plots.spectrogram` or `plots.heatmap`."""
    bands, frames = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
    times = frame_times(box.shape[1])
    half = (times[1] - times[0]) / 2
    left, right = times[frames[0]] - half, times[frames[-1]] + half
    corner, height = (left, bands[0] - 0.5), len(bands)
    ax.add_patch(Rectangle(corner, right - left, height, fill=False, edgecolor="white", lw=1.5))
    return ax


def genre_table(ax: Axes, table: pd.DataFrame, limit: float, title: str):
    """Draw a table of signed shares (genres x names), coloured over +-`limit`; return the image."""
    image = ax.imshow(table, cmap=plots.CHANGE_MAP, vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.7 * limit else "black"
            text = f"{value * 100:+.0f}"
            ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    ax.set_xticks(range(table.shape[1]), table.columns)
    ax.set_yticks(range(len(table)), table.index)
    ax.set(xlabel="part", ylabel="genre")
    ax.set_title(title, fontsize=9)
    return image


def by_depth(ax: Axes, table: pd.DataFrame, label: str) -> Axes:
    """Draw how alike maps stay, by method, as layers are made random from the last one down."""
    table = table.assign(depth=table["condition"].str.removeprefix("randomized_").map(LAYERS.index))
    for name, rows in table.sort_values("depth").groupby("method", sort=False):
        ends = (rows["low"].astype(float), rows["high"].astype(float))
        (line,) = ax.plot(rows["depth"], rows["value"], marker="o", markersize=3, label=name)
        ax.fill_between(rows["depth"], *ends, color=line.get_color(), alpha=0.15)
    ax.set_xticks(range(len(LAYERS)), LAYERS, rotation=45)
    ax.set(xlabel="layer down to which the network is random", ylabel=label)
    return ax


def attention_by_frequency(ax: Axes, clean: np.ndarray, attacked: np.ndarray, title: str) -> Axes:
    """Draw quartiles over clips of the share (n, 128) of maps' mass in each mel band, over Hz."""
    kinds = ((clean, "tab:blue", "clean"), (attacked, "tab:orange", "attacked"))
    for shares, colour, name in kinds:
        shares = shares[np.isfinite(shares).all(axis=1)] * 100
        if len(shares):
            low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75], axis=0)
            ax.plot(mel_frequencies(), middle, color=colour, label=name)
            ax.fill_between(mel_frequencies(), low, high, color=colour, alpha=0.2)
    ax.set_xscale("log")
    ax.set_xticks(plots.HERTZ_TICKS, plots.HERTZ_TICKS)
    ax.minorticks_off()
    ax.set(xlabel="frequency (Hz)", ylabel="map's mass (% a band)", ylim=(0, None))
    ax.set_title(title, fontsize=9)
    return ax


def legend_below(figure: plt.Figure, columns: int = 3) -> None:
    """Place the legend of all axes, each label once, below the whole figure."""
    unique = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True)) | unique
    figure.legend(unique.values(), unique, loc="outside lower center", ncols=columns, fontsize=8)
