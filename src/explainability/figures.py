"""Figures of notebook 5: single maps, and measures of maps with intervals over tracks."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from joblib import Parallel, delayed
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from src import plots
from src.data.features import DYNAMIC_RANGE_DB, frame_times, mel_frequencies
from src.explainability.attributions import CONTROLS, SLOW_METHODS
from src.explainability.faithfulness import CURVES, FRACTIONS, LAYERS
from src.explainability.localization import BOX_EPS
from src.explainability.records import (
    ATTACKED,
    BOX_MASS,
    DELETION,
    FEWEST_SEGMENTS,
    INSERTION,
    NOISE,
    pick,
)
from src.explainability.selection import Confined, Example
from src.labels import CONDITIONS, METHODS
from src.paths import short_name

EVIDENCE = "evidence (0: least, 1: most)"
CONDITION_STYLE = {  # drawn, in colours of Okabe and Ito; `explanations.csv` has all
    "succeeded_predicted": ("#D55E00", "s-"),
    "succeeded_true": ("#E69F00", "o-"),
    "target_predicted": ("#CC79A7", "^-"),
    "minus": ("#0072B2", "v-"),
    "noise": ("#009E73", "D-"),
    "other_track": ("black", ":"),
}
MASS = "mass less area (percentage points)"
OTHERS = {"color": "lightgrey", "zorder": 0}
CURVE_STYLE = {
    name: {"color": colour, "linestyle": "--"}
    for name, colour in zip(CONTROLS, ("#0072B2", "#009E73", "black"), strict=True)
}
SHIFT_LABELS = {
    "spearman": "rank correlation\n(1: same map)",
    "mod": "MOD (0: same map)",
    "top_overlap": "overlap of top tenth",
    "centre_shift_s": "shift of centre (s)",
    "centre_shift_hz": "shift of centre (Hz)",
}
SIMILARITY_LABELS = {"spearman": "rank correlation", "ssim": "SSIM"}
PANELS = (  # title, label of the axis, row of the table, value of a map without information
    ("Faithful to the model?", "insertion\nabove smooth noise", INSERTION, 0),
    ("Faithful to the model?", "deletion\nbelow smooth noise", DELETION, 0),
    ("Does it find the box?", "mass in the box\nabove random weights", BOX_MASS, 0),
    ("Does an attack move it?", "rank correlation, attacked", ATTACKED, None),
    ("Does noise move it?", "rank correlation, noise", NOISE, None),
)


def attack_note(name: str, eps: float) -> str:
    """Return the attack of a segment in words; eps is NaN if no eps of the sweep succeeds."""
    if not name:
        return "clean"
    if np.isnan(eps):
        return f"{name.upper()}: no eps flips it"
    return f"{name.upper()}, eps {eps:g} ({eps * DYNAMIC_RANGE_DB:.2g} dB)"


def segment_name(segment) -> str:
    """Return the track and the start of a segment, a row of the segments' table."""
    return f"{segment.track} at {segment.start_s:.0f} s"


def panel_title(example: Example, first: Example) -> str:
    """Return the title of a map: its segment if it is not that of the first map, or its attack."""
    other = example.segment.segment != first.segment.segment
    note = segment_name(example.segment) if other else attack_note(example.attack, example.eps)
    empty = "" if example.heat.any() else ": none"
    return f"{note}\npredicted {example.predicted}\nevidence for {example.explained}{empty}"


def draw_examples(examples: list[Example], question: str) -> Figure:
    """Draw the spectrogram of the first example, and the map of each on its spectrogram.

    `question` stands above, followed by the segment of the first example and its true genre.
    """
    figure, axes = plots.grid(1, 1 + len(examples), width=3.4, height=3)
    first = examples[0]
    level = plots.spectrogram(axes[0, 0], first.x, "spectrogram")
    for ax, example in zip(axes[0, 1:], examples, strict=True):
        evidence = plots.heatmap(ax, example.x, example.heat, panel_title(example, first))
        ax.label_outer()
    plots.colour_bar(figure, level, axes[0, 0], "level (dB)")
    plots.colour_bar(figure, evidence, axes[0, 1:], EVIDENCE)
    figure.suptitle(f"{question} {segment_name(first.segment)}, true genre {first.true}")
    return figure


def save_examples(
    shown: list[list[Example]], question: str, folder: Path, corpus: str
) -> list[Path]:
    """Write one figure per list of examples by two processes; return the paths.

    `<track>_<segment>.png` names the first example. Figures of an earlier model are removed.
    """
    for figure in folder.glob("*.png"):
        figure.unlink()
    return Parallel(2)(delayed(_save)(each, question, folder, corpus) for each in shown)


def overview(examples: list[Example]) -> Figure:
    """Draw the maps of correct examples, four in a row."""
    figure, axes = plots.grid(int(np.ceil(len(examples) / 4)), 4, width=3, height=2.1)
    for ax, example in zip(axes.flat, examples, strict=False):
        title = f"{example.true}: {segment_name(example.segment)}"
        image = plots.heatmap(ax, example.x, example.heat, title)
    plots.colour_bar(figure, image, axes, "evidence for the true genre (0: least, 1: most)")
    return figure


def by_checkpoint(
    table: pd.DataFrame, draw: Callable, labels: dict[str, str], title: str
) -> Figure:
    """Draw measures of `explanations.csv`: one row per model, one column per measure.

    A single measure has one column per model. `draw` is `shift_over_eps` or `by_depth`; `labels`
    are those of the axis by measure.
    """
    panels = [(name, measure) for name in table["checkpoint"].unique() for measure in labels]
    columns = len(labels) if len(labels) > 1 else len(panels)
    figure, axes = plots.grid(len(panels) // columns, columns, width=3.6, height=3.8)
    for ax, (name, measure) in zip(axes.flat, panels, strict=True):
        own = table[(table["checkpoint"] == name) & (table["measure"] == measure)]
        draw(ax, own, labels[measure])
        ax.set_title(name, fontsize=10)
    figure.suptitle(title)
    plots.legend_below(figure)
    return figure


def shift_over_eps(ax: Axes, table: pd.DataFrame, label: str) -> Axes:
    """Draw one measure of one model over eps by condition, that of another track as a line."""
    table = table.astype({"eps": float})
    for condition, (colour, style) in CONDITION_STYLE.items():
        name = CONDITIONS[condition]
        rows = table[table["condition"] == condition].sort_values("eps")
        if condition == "other_track":
            for value in rows["value"]:
                ax.axhline(value, color=colour, linestyle=style, label=name)
        else:
            ax.plot(rows["eps"], rows["value"], style, markersize=4, color=colour, label=name)
            _band(ax, rows["eps"], rows, colour)
    ax.set(xlabel="eps (of the range [0, 1])", ylabel=label)
    plots.eps_axes(ax, np.sort(table.loc[table["eps"] > 0, "eps"].unique()))
    return ax


def faithfulness(curves: dict[str, dict], method: str) -> Figure:
    """Draw the curves of insertion and deletion, by model: one method, the others and controls.

    Slow methods have too few segments.
    """
    figure, axes = plots.grid(len(curves), 2, width=4.6, height=3.2)
    for row, (checkpoint, found) in zip(axes, curves.items(), strict=True):
        fast = {name: scores for name, scores in found.items() if name not in SLOW_METHODS}
        for ax, kind in zip(row, CURVES, strict=True):
            faithfulness_curves(ax, {name: scores[kind] for name, scores in fast.items()}, method)
            ax.set_title(f"{checkpoint}: {kind}", fontsize=9)
    figure.suptitle("Do the highest cells of a map hold the evidence? (clean, true genre)")
    plots.legend_below(figure)
    return figure


def faithfulness_curves(ax: Axes, scores: dict[str, np.ndarray], method: str) -> Axes:
    """Draw the mean probability of the genre over the share of inserted or deleted cells."""
    for name, values in scores.items():
        label = METHODS[name] if name in (method, *CONTROLS) else "other methods"
        style = CURVE_STYLE.get(name, {"color": "#D55E00"} if name == method else OTHERS)
        known = values[np.isfinite(values).all(axis=1)]
        mean = known.mean(axis=0) if len(known) else np.full(len(FRACTIONS), np.nan)
        ax.plot(np.multiply(FRACTIONS, 100), mean, **style, label=label)
    ax.set(xlabel="cells, highest first (%)", ylabel="probability of the genre", ylim=(0, 1))
    return ax


def box(found: Confined, maps: dict[str, np.ndarray], genres: list[str]) -> Figure:
    """Draw the first segment of a confined attack and its maps of the predicted genre by method.

    `maps` are (n, 128, 130); if n is 0, the figure is empty.
    """
    figure, axes = plots.grid(1, 1 + len(maps), width=3.8, height=2.9)
    for k, segment in enumerate(found.data.table[:1].itertuples()):
        note = attack_note("pgd", BOX_EPS)
        plots.spectrogram(axes[0, 0], found.X[k], f"{segment_name(segment)}\n{note} in the box")
        for ax, (name, heat) in zip(axes[0, 1:], maps.items(), strict=True):
            title = f"{METHODS[name]}\nevidence for {genres[found.predicted[k]]} (predicted)"
            evidence = plots.heatmap(ax, found.X[k], heat[k], title)
        for ax in axes[0]:
            box_outline(ax, found.boxes[k])
        plots.colour_bar(figure, evidence, axes[0, -1], EVIDENCE)
        name = found.subject.name
        figure.suptitle(f"Does the map find the attacked box? {name}, true genre {segment.genre}")
    return figure


def box_outline(ax: Axes, mask: np.ndarray) -> Axes:
    """Outline a box (128, 130) on axes drawn by `plots.spectrogram` or `plots.heatmap`."""
    bands, frames = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    times = frame_times(mask.shape[1])
    half = (times[1] - times[0]) / 2
    left, right = times[frames[0]] - half, times[frames[-1]] + half
    style = {"fill": False, "edgecolor": "deepskyblue", "lw": 2}
    ax.add_patch(Rectangle((left, bands[0] - 0.5), right - left, len(bands), **style))
    return ax


def parts(table: pd.DataFrame, method: str) -> Figure:
    """Draw the mass above area on each part by genre, one panel per model, of `explanations.csv`.

    The figure is empty if the parts of the corpus are not known.
    """
    rows = table[(table["method"] == method) & (table["part"] != "")]
    rows = rows[rows["measure"] == "mass_above_area"]
    checkpoints = rows["checkpoint"].unique()
    figure, axes = plots.grid(1, max(1, len(checkpoints)), width=4.2, height=3.8)
    for ax, checkpoint in zip(axes[0], checkpoints, strict=False):
        own = rows[rows["checkpoint"] == checkpoint]
        cells = own.pivot_table(index="genre", columns="part", values="value")
        points = (100 * cells).round() + 0.0  # without negative zeros
        style = {"cmap": plots.CHANGE_MAP, "vmin": -30, "vmax": 30, "cbar_kws": {"label": MASS}}
        sns.heatmap(points, ax=ax, **plots.NUMBERS, fmt="+.0f", **style)
        ax.set(xlabel="part", ylabel="genre")
        ax.set_title(f"{checkpoint}, {METHODS[method]}", fontsize=9)
    figure.suptitle("Which instruments hold the evidence? (clean, true genre)")
    return figure


def by_depth(ax: Axes, table: pd.DataFrame, label: str) -> Axes:
    """Draw the similarity of maps by method as layers are randomized from the last one down."""
    table = table.assign(depth=table["layer"].map(LAYERS.index)).sort_values("depth")
    for name, rows in table.groupby("method", sort=False):
        style = {"marker": "o", "markersize": 3, "label": METHODS[name]}
        (line,) = ax.plot(rows["depth"], rows["value"], **style)
        _band(ax, rows["depth"], rows, line.get_color())
    ax.set_xticks(range(len(LAYERS)), LAYERS, rotation=60)
    ax.set(xlabel="layer down to which the model is random", ylabel=label)
    return ax


def bands(clean: np.ndarray, attacked: np.ndarray, true: np.ndarray, title: str) -> Figure:
    """Draw the share of maps' mass over frequency, one panel per true genre.

    `clean` and `attacked` (n, 128) are the shares of each mel band, `true` (n,) names of genres.
    """
    genres = np.unique(true)
    figure, axes = plots.grid(int(np.ceil(len(genres) / 4)), 4, width=3, height=2.6)
    for ax, genre in zip(axes.flat, genres, strict=False):
        own = true == genre
        mass_over_frequency(ax, clean[own], attacked[own], f"{genre}, n = {own.sum()}")
    figure.suptitle(title)
    plots.legend_below(figure)
    return figure


def mass_over_frequency(ax: Axes, clean: np.ndarray, attacked: np.ndarray, title: str) -> Axes:
    """Draw quartiles over segments of the share (n, 128) of maps' mass in each mel band."""
    for shares, colour, name in ((clean, "#0072B2", "clean"), (attacked, "#D55E00", "attacked")):
        shares = shares[np.isfinite(shares).all(axis=1)] * 100
        if len(shares):
            low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75], axis=0)
            ax.plot(mel_frequencies(), middle, color=colour, label=name)
            ax.fill_between(mel_frequencies(), low, high, color=colour, alpha=0.2)
    plots.hertz_axis(ax)
    ax.set(xlabel="frequency (Hz)", ylabel="map's mass (% per band)", ylim=(0, None))
    ax.set_title(title, fontsize=9)
    return ax


def methods(table: pd.DataFrame, eps: float, checkpoints: list[str]) -> Figure:
    """Draw all methods and controls side by side; `table` is `explanations.csv`."""
    figure, axes = plots.grid(1, len(PANELS), width=3.3, height=3.8)
    for ax, (title, label, row, null) in zip(axes[0], PANELS, strict=True):
        by_method(ax, pick(table, row, eps), checkpoints, label, null)
        ax.set_title(title, fontsize=10)
    plots.legend_below(figure)
    return figure


def by_method(
    ax: Axes, table: pd.DataFrame, checkpoints: list[str], label: str, null: float | None = None
) -> Axes:
    """Draw one measure with its interval for each method (controls in grey) and model.

    A model keeps its place among the `checkpoints` whether or not it has a row. `null` is the value
    of a map without information. Values of fewer than `FEWEST_SEGMENTS` segments are faint.
    """
    names = list(dict.fromkeys(table["method"]))
    for name, rows in table.groupby("checkpoint", sort=False):
        k = checkpoints.index(name)
        at = np.array([names.index(method) for method in rows["method"]]) + 0.25 * k
        colours = ["grey" if method in CONTROLS else f"C{k}" for method in rows["method"]]
        ends = rows[["low", "high"]].astype(float).to_numpy()
        few = np.where(rows["n_segments"] < FEWEST_SEGMENTS, 0.3, 1)
        ax.hlines(at, ends[:, 0], ends[:, 1], colors=colours, alpha=few)
        style = {"marker": "os^vD"[k % 5], "label": name, "zorder": 3}
        ax.scatter(rows["value"], at, c=colours, alpha=few, **style)
    if null is not None:
        ax.axvline(null, color="black", linestyle=":")
    if table.empty:
        ax.text(0.5, 0.5, "no segment to measure", ha="center", transform=ax.transAxes)
    ax.set_yticks(range(len(names)), [METHODS[name] for name in names])
    ax.invert_yaxis()
    ax.set_xlabel(label)
    return ax


def _band(ax: Axes, x: pd.Series, rows: pd.DataFrame, colour: str) -> None:
    ends = (rows["low"].astype(float), rows["high"].astype(float))
    ax.fill_between(x, *ends, color=colour, alpha=0.15)


def _save(examples: list[Example], question: str, folder: Path, corpus: str) -> Path:
    figure, segment = draw_examples(examples, question), examples[0].segment
    name = f"{short_name(segment.track)}_{segment.segment}"
    path = plots.save_figure(figure, folder / f"{name}.png", corpus)
    plt.close(figure)
    return path
