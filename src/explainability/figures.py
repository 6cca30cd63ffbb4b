"""Figures of notebook 5: single maps, and what is measured on maps, with intervals over tracks."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from src import plots
from src.data.features import DYNAMIC_RANGE_DB, frame_times, mel_frequencies
from src.explainability.attributions import CONTROLS, SLOW_METHODS
from src.explainability.experiments import Confined
from src.explainability.faithfulness import CURVES, FRACTIONS
from src.explainability.localization import BOX_EPS
from src.explainability.randomization import LAYERS
from src.explainability.selection import Example

EVIDENCE = "evidence (0: least, 1: most)"
CONDITION_STYLE = {
    "succeeded_predicted": ("tab:red", "s", "attack succeeds: predicted genre's map"),
    "succeeded_true": ("tab:orange", "o", "attack succeeds: true genre's map"),
    "target_predicted": ("tab:purple", "^", "clean segment: map of the same predicted genre"),
    "failed": ("tab:blue", "v", "attack fails"),
    "noise": ("tab:green", "D", "noise of the attack's norm"),
}
OTHER_TRACK_LABEL = "another track of the genre, clean"
SHIFT_LABELS = {
    "spearman": "rank correlation\n(1: same map)",
    "mod": "MOD (0: same map)",
    "top_overlap": "overlap of top tenth",
    "centre_shift_s": "shift of centre (s)",
    "centre_shift_hz": "shift of centre (Hz)",
}
SIMILARITY_LABELS = {
    "spearman": "rank correlation with the trained map",
    "ssim": "SSIM with the trained map",
}
PANELS = (  # measure, control, condition, label and value of a map without information
    ("insertion", "blurred_random", "clean", "insertion, above smooth noise", 0),
    ("deletion", "frequency_prior", "clean", "deletion, above genre's mean map", 0),
    ("mass_above_area", "", "confined", "mass in the box, above area", 0),
    ("spearman", "", "succeeded_true", "rank correlation, attacked", None),
    ("spearman", "", "noise_succeeded", "rank correlation, noise", None),
)


def attack_note(name: str, eps: float) -> str:
    """Return the attack of a segment in words; eps is NaN if no eps of the sweep succeeds."""
    if not name:
        return "clean"
    if np.isnan(eps):
        return f"{name}: no eps flips it"
    return f"{name}, eps {eps:g} ({eps * DYNAMIC_RANGE_DB:.2g} dB)"


def segment_name(segment) -> str:
    """Return the track and the start of a segment, a row of the segments' table."""
    return f"{segment.track} at {segment.start_s:.0f} s"


def titles(example: Example) -> tuple[str, str]:
    """Return the titles of an example's spectrogram and of its map."""
    note = attack_note(example.attack, example.eps)
    genres = f"true {example.true}, predicted {example.predicted}"
    kinds = {"true": example.true, "predicted": example.predicted}
    kind = " and ".join(name for name, genre in kinds.items() if genre == example.explained)
    empty = "" if example.heat.any() else ": no positive evidence"
    above = f"{segment_name(example.segment)}, {note}\n{genres}"
    return above, f"explains {example.explained} ({kind}){empty}"


def draw_examples(examples: list[Example]) -> Figure:
    """Draw examples side by side: spectrograms above, maps below, one colour bar each."""
    figure, axes = plots.grid(2, len(examples), width=3.6, height=2.6)
    for (above, below), example in zip(axes.T, examples, strict=True):
        title, explains = titles(example)
        level = plots.spectrogram(above, example.x, title)
        evidence = plots.heatmap(below, example.x, example.heat, explains)
    plots.colour_bar(figure, level, axes[0], "level (dB)")
    plots.colour_bar(figure, evidence, axes[1], EVIDENCE)
    return figure


def save_examples(shown: list[list[Example]], folder: Path, corpus: str, n_jobs: int = 2) -> list:
    """Write one figure per list of examples by several processes; return the paths.

    `<track>_<segment>.png` names the first example. Figures of an earlier model are removed.
    """
    for figure in folder.glob("*.png"):
        figure.unlink()
    return Parallel(n_jobs)(delayed(_save)(examples, folder, corpus) for examples in shown)


def overview(examples: list[Example]) -> Figure:
    """Draw the maps of correct examples, four in a row."""
    figure, axes = plots.grid(int(np.ceil(len(examples) / 4)), 4, width=3, height=2.1)
    for ax, example in zip(axes.flat, examples, strict=False):
        title = f"{example.true}: {segment_name(example.segment)}"
        image = plots.heatmap(ax, example.x, example.heat, title)
    plots.colour_bar(figure, image, axes, "evidence for the true genre (0: least, 1: most)")
    return figure


def by_checkpoint(table: pd.DataFrame, draw: Callable, labels: dict[str, str]) -> Figure:
    """Draw measures of `explanations.csv`: one row per model, one column per measure.

    `draw` is `shift_over_eps` or `by_depth`; `labels` are those of the axis by measure.
    """
    checkpoints = table["checkpoint"].unique()
    figure, axes = plots.grid(len(checkpoints), len(labels), width=3.6, height=3.6)
    for row, checkpoint in zip(axes, checkpoints, strict=True):
        own = table[table["checkpoint"] == checkpoint]
        for ax, (measure, label) in zip(row, labels.items(), strict=True):
            draw(ax, own[own["measure"] == measure], label)
        row[0].set_title(f"{checkpoint}: {', '.join(own['method'].unique())}", fontsize=10)
    legend_below(figure)
    return figure


def shift_over_eps(ax: Axes, table: pd.DataFrame, label: str) -> Axes:
    """Draw one measure of one model over eps by condition; the upper axis shows eps in dB.

    Another track of the same genre (condition `other_track`) is a dotted line.
    """
    swept = table[table["condition"] != "other_track"]
    for condition, (colour, marker, name) in CONDITION_STYLE.items():
        rows = swept[swept["condition"] == condition].sort_values("eps")
        ax.plot(rows["eps"], rows["value"], marker=marker, color=colour, label=name)
        _band(ax, rows["eps"], rows, colour)
    for value in table.loc[table["condition"] == "other_track", "value"]:
        ax.axhline(value, color="black", linestyle=":", label=OTHER_TRACK_LABEL)
    ax.set_xscale("log")
    ax.set(xlabel="eps (of the range [0, 1])", ylabel=label)
    ticks = np.sort(swept["eps"].unique())
    ax.set_xticks(ticks, [f"{eps:g}" for eps in ticks], rotation=45)
    top = ax.secondary_xaxis("top")
    top.set_xticks(ticks, [f"{eps * DYNAMIC_RANGE_DB:.2g}" for eps in ticks], rotation=45)
    top.set_xlabel("eps (dB)")
    ax.minorticks_off()
    top.minorticks_off()
    return ax


def faithfulness(curves: dict[str, dict]) -> Figure:
    """Draw the curves of insertion and deletion, by model and method, without slow methods."""
    figure, axes = plots.grid(len(curves), 2, width=4.6, height=3.2)
    for row, (checkpoint, found) in zip(axes, curves.items(), strict=True):
        fast = {name: scores for name, scores in found.items() if name not in SLOW_METHODS}
        for ax, kind in zip(row, CURVES, strict=True):
            faithfulness_curves(ax, {name: scores[kind] for name, scores in fast.items()})
            ax.set_title(f"{checkpoint}: {kind}, clean segments, true genre", fontsize=9)
    legend_below(figure, columns=4)
    return figure


def faithfulness_curves(ax: Axes, scores: dict[str, np.ndarray]) -> Axes:
    """Draw the mean probability of the genre over the share of inserted or deleted cells."""
    for k, (name, values) in enumerate(scores.items()):
        style = "--" if name in CONTROLS else "-"
        known = values[np.isfinite(values).all(axis=1)]
        mean = known.mean(axis=0) if len(known) else np.full(len(FRACTIONS), np.nan)
        ax.plot(np.multiply(FRACTIONS, 100), mean, style, color=f"C{k % 10}", label=name)
    ax.set(xlabel="cells, highest first (%)", ylabel="probability of the genre", ylim=(0, 1))
    return ax


def box(found: Confined, maps: dict[str, np.ndarray], genres: list[str]) -> Figure:
    """Draw the first segment of a confined attack and its maps of the predicted genre by method.

    `maps` are (n, 128, 130); if n is 0, the figure is empty.
    """
    figure, axes = plots.grid(1, 1 + len(maps), width=4.4, height=2.9)
    for k, segment in enumerate(found.data.table[:1].itertuples()):
        title = f"{segment_name(segment)}\n{attack_note('pgd in the box', BOX_EPS)}"
        plots.spectrogram(axes[0, 0], found.X[k], title)
        explains = f"explains {genres[found.predicted[k]]} (predicted), true {segment.genre}"
        for ax, (name, heat) in zip(axes[0, 1:], maps.items(), strict=True):
            title = f"{found.subject.name}, {name}\n{explains}"
            evidence = plots.heatmap(ax, found.X[k], heat[k], title)
        for ax in axes[0]:
            box_outline(ax, found.boxes[k])
        plots.colour_bar(figure, evidence, axes[0, -1], EVIDENCE)
    return figure


def box_outline(ax: Axes, mask: np.ndarray) -> Axes:
    """Outline a box (128, 130) on axes drawn by `plots.spectrogram` or `plots.heatmap`."""
    bands, frames = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    times = frame_times(mask.shape[1])
    half = (times[1] - times[0]) / 2
    left, right = times[frames[0]] - half, times[frames[-1]] + half
    corner, height = (left, bands[0] - 0.5), len(bands)
    ax.add_patch(Rectangle(corner, right - left, height, fill=False, edgecolor="white", lw=1.5))
    return ax


def parts(rows: pd.DataFrame, method: str) -> Figure:
    """Draw the mass above area on each part by genre, one table per model; `rows` are records."""
    rows = rows[rows["method"] == method]
    checkpoints = rows["checkpoint"].unique()
    figure, axes = plots.grid(1, len(checkpoints), width=4.2, height=3.8)
    for ax, checkpoint in zip(axes[0], checkpoints, strict=True):
        own = rows[rows["checkpoint"] == checkpoint]
        table = own.pivot_table(index="genre", columns="part", values="value")
        title = f"{checkpoint}, {method}, clean, true genre"
        image = genre_table(ax, table, 0.3, title)
    plots.colour_bar(figure, image, axes, "map's mass less share of the area")
    return figure


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
    """Draw the similarity of maps by method as layers are randomized from the last one down."""
    table = table.assign(depth=table["layer"].map(LAYERS.index)).sort_values("depth")
    for name, rows in table.groupby("method", sort=False):
        (line,) = ax.plot(rows["depth"], rows["value"], marker="o", markersize=3, label=name)
        _band(ax, rows["depth"], rows, line.get_color())
    ax.set_xticks(range(len(LAYERS)), LAYERS, rotation=45)
    ax.set(xlabel="layer down to which the model is random", ylabel=label)
    return ax


def bands(clean: np.ndarray, attacked: np.ndarray, true: np.ndarray, title: str) -> Figure:
    """Draw the share of maps' mass over frequency, one panel per true genre.

    `clean` and `attacked` (n, 128) are the shares of each mel band, `true` (n,) names of genres.
    """
    genres = np.unique(true)
    figure, axes = plots.grid(2, int(np.ceil(len(genres) / 2)), width=3, height=2.6)
    for ax, genre in zip(axes.flat, genres, strict=False):
        own = true == genre
        mass_over_frequency(ax, clean[own], attacked[own], f"{genre}, n = {own.sum()}")
    figure.suptitle(title)
    legend_below(figure)
    return figure


def mass_over_frequency(ax: Axes, clean: np.ndarray, attacked: np.ndarray, title: str) -> Axes:
    """Draw quartiles over segments of the share (n, 128) of maps' mass in each mel band."""
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
    ax.set(xlabel="frequency (Hz)", ylabel="map's mass (% per band)", ylim=(0, None))
    ax.set_title(title, fontsize=9)
    return ax


def methods(table: pd.DataFrame, eps: float, checkpoints: list[str]) -> Figure:
    """Draw all methods and controls side by side; `table` is `explanations.csv`."""
    figure, axes = plots.grid(1, len(PANELS), width=3.1, height=3.6)
    at_eps = table[table["eps"].isin([0, eps, BOX_EPS]) & (table["part"] == "")]
    for ax, (measure, control, condition, label, null) in zip(axes[0], PANELS, strict=True):
        wanted = {"measure": measure, "control": control, "condition": condition}
        rows = at_eps[(at_eps[[*wanted]] == [*wanted.values()]).all(axis=1)]
        rows = rows[rows["compared_with"] == ""]
        by_method(ax, rows, checkpoints, label, null)
    legend_below(figure)
    return figure


def by_method(
    ax: Axes, table: pd.DataFrame, checkpoints: list[str], label: str, null: float | None = None
) -> Axes:
    """Draw one measure with its interval for each method (controls in grey) and model.

    A model keeps its place among the `checkpoints` whether or not it has a row. `null` is the value
    of a map without information.
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
        ax.text(0.5, 0.5, "no segment to measure", ha="center", transform=ax.transAxes)
    ax.set_yticks(range(len(methods)), methods)
    ax.invert_yaxis()
    ax.set_xlabel(label)
    return ax


def legend_below(figure: Figure, columns: int = 3) -> None:
    """Place the legend of all axes, each label once, below the whole figure."""
    unique = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True)) | unique
    figure.legend(unique.values(), unique, loc="outside lower center", ncols=columns, fontsize=8)


def _band(ax: Axes, x: pd.Series, rows: pd.DataFrame, colour: str) -> None:
    ends = (rows["low"].astype(float), rows["high"].astype(float))
    ax.fill_between(x, *ends, color=colour, alpha=0.15)


def _save(examples: list[Example], folder: Path, corpus: str) -> Path:
    figure, segment = draw_examples(examples), examples[0].segment
    path = plots.save_figure(figure, folder / f"{segment.track}_{segment.segment}.png", corpus)
    plt.close(figure)
    return path
