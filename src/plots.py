"""Figures: functions that draw data into axes, and one that saves. Units: Hz, seconds, dB."""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findSystemFonts, fontManager, get_font
from matplotlib.image import AxesImage
from matplotlib.text import Text

from src import labels
from src.data.features import (
    DYNAMIC_RANGE_DB,
    HOP_LENGTH,
    SAMPLE_RATE,
    frame_times,
    mel_frequencies,
    to_decibel,
)
from src.results import save_with
from src.runtime import chunks

SPECTRUM_MAP = "magma"
CHANGE_MAP = "RdBu_r"
HEAT_MAP = "YlOrRd_r"  # dark red to bright yellow: ordered by lightness, without green
COUNT_MAP = "Blues"
GREY_CEILING_DB = 60  # level of white below a map: its spectrogram stays darker than the map
HERTZ_TICKS = (128, 512, 2048, 8192)
ROBUSTNESS_CURVES = ("noise_linf", "fgsm", "pgd", "worst_case")  # legends stay short
DECIBEL_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
NUMBERS = {"annot": True, "annot_kws": {"size": 8}, "xticklabels": True, "yticklabels": True}
DPI = 110

plt.rcParams["text.parse_math"] = False  # a name with $ is no formula
warnings.filterwarnings("ignore", "Glyph .* missing from")  # _fonts_for says it in one line


def save_figure(figure: Figure, path: Path, corpus: str) -> Path:
    """Write a figure as PNG, whole or not at all; return the path.

    The name of the corpus stands in its corner; axes without data do not show.
    """
    figure.text(1, 0, f"corpus: {corpus}", ha="right", va="top", fontsize=7, color="dimgrey")
    for ax in figure.axes:
        if not ax.has_data():
            ax.set_axis_off()
    _choose_fonts(figure)
    return save_with(path, lambda part: figure.savefig(part, dpi=DPI, bbox_inches="tight"))


def spectrogram(ax: Axes, x: np.ndarray, title: str = "") -> AxesImage:
    """Draw a log-mel spectrogram (n_mels, frames) in [0, 1], coloured from -80 to 0 dB."""
    image = _mel_image(ax, to_decibel(x), SPECTRUM_MAP, -DYNAMIC_RANGE_DB, 0)
    ax.set_title(title, fontsize=9)
    return image


def change(ax: Axes, delta: np.ndarray, limit_db: float, title: str = "") -> AxesImage:
    """Draw a perturbation (n_mels, frames) of log-mels, coloured over +-`limit_db` dB."""
    image = _mel_image(ax, delta * DYNAMIC_RANGE_DB, CHANGE_MAP, -limit_db, limit_db)
    ax.set_title(title, fontsize=9)
    return image


def heatmap(ax: Axes, x: np.ndarray, heat: np.ndarray, title: str = "") -> AxesImage:
    """Draw a map in [0, 1] over the spectrogram that it explains, which shows in dark grey.

    The higher the evidence, the brighter and more opaque its colour; a line encloses the cells
    above half of the range.
    """
    _mel_image(ax, to_decibel(x), "gray", -DYNAMIC_RANGE_DB, GREY_CEILING_DB)
    image = _mel_image(ax, heat, HEAT_MAP, 0, 1)
    image.set_alpha(np.clip(1.5 * heat, 0, 0.8))
    ax.contour(heat, [0.5], extent=image.get_extent(), colors="white", linewidths=0.8)
    ax.set_title(title, fontsize=9)
    return image


def waveform(ax: Axes, samples: np.ndarray, title: str = "") -> Axes:
    """Draw mono samples at 22,050 Hz over time."""
    ax.plot(np.arange(len(samples)) / SAMPLE_RATE, samples, linewidth=0.3, rasterized=True)
    ax.set(xlabel="time (s)", ylabel="amplitude", ylim=(-1, 1))
    ax.set_title(title, fontsize=9)
    return ax


def counts(ax: Axes, values: pd.Series, xlabel: str, ylabel: str) -> Axes:
    """Draw one bar per category with its count above."""
    bars = ax.bar(values.index.astype(str), values.to_numpy())
    ax.bar_label(bars, fontsize=8)
    ax.margins(y=0.12)
    slant(ax)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def band_levels(ax: Axes, X: np.ndarray, y: np.ndarray, genres: list[str]) -> Axes:
    """Draw by how many dB each genre is louder in each mel band than the mean of all genres.

    `X` are segments (n, 128, 130), `y` their genres' numbers (n,).
    """
    levels = np.concatenate([part.mean(axis=2) for part in chunks(X, 64)])
    mean = to_decibel(np.stack([levels[y == k].mean(axis=0) for k in range(len(genres))]))
    louder = pd.DataFrame(mean - np.nanmean(mean, axis=0), genres)
    bar = {"label": "level (dB above the mean genre)"}
    sns.heatmap(louder, ax=ax, cmap=CHANGE_MAP, center=0, yticklabels=True, cbar_kws=bar)
    ax.set_xticks(mel_places() + 0.5, HERTZ_TICKS, rotation=0)
    ax.tick_params(axis="y", rotation=0)
    ax.set(xlabel="frequency (Hz)", ylabel="genre")
    return ax


def training_curves(axes: np.ndarray, history: pd.DataFrame, best_epoch: int) -> np.ndarray:
    """Draw loss and accuracy of training and validation over epochs into two axes.

    With the accuracies under attack where the history has them.
    """
    epochs = np.arange(1, len(history) + 1)
    for ax, name, scale in zip(axes, ("loss", "accuracy"), (1, 100), strict=True):
        for part, label, style in (("train", "training", "--"), ("val", "validation", "-")):
            ax.plot(epochs, history[f"{part}_{name}"] * scale, style, label=label)
        ax.axvline(best_epoch, color="grey", linewidth=0.8, label="kept epoch")
        ax.set(xlabel="epoch", ylabel=name + (" (%)" if scale == 100 else " (nats)"))
    attacked = {
        "single_step_accuracy": "validation, single step",
        "robust_accuracy": "validation, PGD",
        "train_robust_accuracy": "training, PGD",
    }
    for (name, label), style in zip(attacked.items(), (":", "-.", (0, (1, 4))), strict=True):
        if name in history:
            axes[1].plot(epochs, history[name] * 100, linestyle=style, label=label)
    for ax in axes:
        ax.legend(fontsize=8)
    return axes


def confusion(ax: Axes, matrix: np.ndarray, genres: list[str], title: str = "") -> Axes:
    """Draw a confusion matrix of counts, rows true, columns predicted."""
    counts = pd.DataFrame(matrix, genres, genres)
    style = {"cmap": COUNT_MAP, "vmin": 0, "vmax": max(1, counts.max(axis=None)), "cbar": False}
    sns.heatmap(counts.where(counts > 0), ax=ax, **NUMBERS, fmt=".0f", **style)
    slant(ax)
    ax.set(xlabel="predicted genre", ylabel="true genre")
    ax.set_title(title, fontsize=10)
    return ax


def genre_accuracy(ax: Axes, per_genre: dict[str, dict], chance: float) -> Axes:
    """Draw each genre's accuracy with its interval over tracks, and chance."""
    table = pd.DataFrame(per_genre).T.astype(float) * 100
    errors = [table["value"] - table["low"], table["high"] - table["value"]]
    ax.bar(table.index, table["value"], yerr=np.clip(errors, 0, None), capsize=3)
    ax.axhline(chance * 100, color="black", linestyle=":", label="chance")
    slant(ax)
    ax.set(xlabel="genre", ylabel="segment accuracy (%)", ylim=(0, 105))
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1))
    return ax


def checkpoints(ax: Axes, table: pd.DataFrame, baseline: dict) -> Axes:
    """Draw segment and track accuracy of checkpoints with intervals, and the baseline's.

    `table` has the columns of `training.csv`, `baseline` is a result of `evaluate`.
    """
    for k, (kind, colour) in enumerate((("segment", "tab:blue"), ("track", "tab:orange"))):
        value = table[f"{kind}_accuracy"] * 100
        ends = table[[f"{kind}_low", f"{kind}_high"]].astype(float).to_numpy().T * 100
        errors = np.abs(ends - value.to_numpy())
        at = np.arange(len(table)) + (k - 0.5) * 0.2
        ax.errorbar(at, value, errors, fmt="os"[k], color=colour, capsize=3, label=f"{kind}s")
        level = baseline[f"{kind}_accuracy"]["value"] * 100
        ax.axhline(level, color=colour, linestyle="--", linewidth=0.8, label=f"baseline, {kind}s")
    ax.axhline(baseline["chance"] * 100, color="black", linestyle=":", label="chance")
    ax.set_xticks(range(len(table)), table["checkpoint"], rotation=20, ha="right")
    ax.set(xlabel="checkpoint", ylabel="accuracy (%)", ylim=(0, 102), xlim=(-0.6, len(table) - 0.4))
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def robustness(ax: Axes, table: pd.DataFrame, chance: float, title: str = "") -> Axes:
    """Draw accuracy over eps with intervals under attack and noise, of one checkpoint.

    `table` has rows of `records.robustness_table`, of which the attacks of `ROBUSTNESS_CURVES` are
    drawn; the upper axis shows eps in dB.
    """
    styles = {name: labels.ATTACKS[name] for name in ROBUSTNESS_CURVES}
    _accuracy_curves(ax, table, styles, "eps", chance)
    ax.set_xlabel("eps (of the range [0, 1])")
    ax.set_title(title, fontsize=10)
    eps_axes(ax, np.sort(table.loc[table["eps"] > 0, "eps"].unique()))
    return ax


def equalizers(ax: Axes, table: pd.DataFrame, chance: float, title: str = "") -> Axes:
    """Draw accuracy over the limit of the gains in dB with intervals, of one checkpoint.

    `table` has rows of `robustness_table` of equalisers.
    """
    _accuracy_curves(ax, table, labels.EQUALIZERS, "eps_db", chance)
    ax.set_xlabel("largest gain (dB)")
    ax.set_xticks(np.sort(table.loc[table["eps"] > 0, "eps_db"].unique()))
    ax.set_title(title, fontsize=10)
    return ax


def universal(learnt: dict[str, tuple], eps: float) -> Figure:
    """Draw the universal pattern of each model in dB, and its universal equaliser below.

    `learnt` has per model a pattern (128, 130) of at most `eps` and gains (points,) in dB.
    """
    figure, axes = grid(2, len(learnt), width=3.6, height=2.5)
    bands, limit_db = mel_frequencies(), eps * DYNAMIC_RANGE_DB
    for (above, below), (name, (pattern, gains)) in zip(axes.T, learnt.items(), strict=True):
        image = change(above, pattern, limit_db, name)
        points = np.linspace(0, len(bands) - 1, len(gains))
        below.plot(bands, np.interp(np.arange(len(bands)), points, gains))
        hertz_axis(below)
        below.axhline(0, color="grey", linewidth=0.8)
        below.set(xlabel="frequency (Hz)", ylabel="gain (dB)")
    colour_bar(figure, image, axes[0], "change (dB)")
    figure.suptitle("One change for all segments, learnt on other tracks")
    return figure


def fragility(ax: Axes, table: pd.DataFrame, genres: list[str], title: str = "") -> Axes:
    """Draw the smallest eps (dB) that flips each segment, by genre, and each genre's median.

    `table` comes from `suite.minimal_eps`; segments that no eps flips stand in black at the edge.
    """
    known = table["minimal_eps_db"].dropna()
    low, edge = (known.min() / 2, known.max() * 2) if len(known) else (0.1, 10)
    shown = table.assign(genre=np.array(genres)[table["true"]])
    shown["eps"] = table["minimal_eps_db"].fillna(edge)
    shown["flipped"] = table["minimal_eps_db"].notna()
    what = {"data": shown, "x": "eps", "y": "genre", "order": genres, "ax": ax}
    colours = {True: "tab:blue", False: "black"}
    sns.swarmplot(**what, hue="flipped", palette=colours, size=4, legend=False)
    median = {"marker": "|", "color": "tab:red", "markersize": 18, "markeredgewidth": 2}
    sns.pointplot(**what, estimator="median", errorbar=None, linestyle="none", **median)
    ax.set_yticks(range(len(genres)), genres)  # of an empty table, too
    ax.set(xscale="log", xlim=(low, edge * 1.2), ylim=(len(genres) - 0.5, -0.5))
    ax.set_ylabel("true genre")
    ax.set_xlabel("smallest eps that flips the segment (dB)")
    ticks = [tick for tick in DECIBEL_TICKS if low <= tick < edge / 1.5]
    ax.set_xticks([*ticks, edge], [*(f"{tick:g}" for tick in ticks), "none"])
    ax.minorticks_off()
    ax.set_title(title, fontsize=10)
    return ax


def flow(ax: Axes, records: pd.DataFrame, genres: list[str], title: str = "") -> Axes:
    """Draw how many segments of each true genre (rows) an attack turned into each (columns).

    `records` are those of one checkpoint, attack and eps; only successes are counted.
    """
    flipped, matrix = records[records["success"]], np.zeros((len(genres), len(genres)), dtype=int)
    np.add.at(matrix, (flipped["true"], flipped["adversarial_prediction"]), 1)
    confusion(ax, matrix, genres, title)
    ax.set_xlabel("predicted genre under attack")
    return ax


def perturbations(
    x: np.ndarray, versions: dict[str, np.ndarray], title: str, limit_db: float
) -> Figure:
    """Draw a segment and perturbed versions of it: log-mels above, their perturbations below.

    `x` and the `versions` by their titles are (128, 130); colours span +-`limit_db` dB.
    """
    figure, axes = grid(2, 1 + len(versions), width=3.6, height=2.5)
    level = spectrogram(axes[0, 0], x, title)
    for (above, below), (name, version) in zip(axes.T[1:], versions.items(), strict=True):
        spectrogram(above, version, name)
        image = change(below, version - x, limit_db, "perturbation")
    colour_bar(figure, level, axes[0], "level (dB)")
    colour_bar(figure, image, axes[1], "change (dB)")
    return figure


def corruptions(ax: Axes, table: pd.DataFrame, title: str = "") -> Axes:
    """Draw accuracy (%) and its interval of one checkpoint by corruption (rows) and severity.

    `table` has rows of `corruptions.corruption_table`; the first column is the unchanged segment.
    """
    none, accuracy, text = table[table["corruption"] == "none"], {}, {}
    for name, own in table.drop(none.index).groupby("corruption", sort=False):
        severities = ", ".join(f"{value:g}" for value in own["severity"])
        row = f"{labels.CORRUPTIONS[name]}\n{severities}\n{own['unit'].iloc[0]}"
        cells = np.transpose(_percent(pd.concat([none, own]), "accuracy", "low", "high"))
        accuracy[row] = pd.Series(cells[:, 0])
        text[row] = pd.Series(f"{mean:.0f}" + _interval(low, high) for mean, low, high in cells)
    shown, notes = (pd.DataFrame(each).T for each in (accuracy, text))
    style = {"cmap": COUNT_MAP, "vmin": 0, "vmax": 100, "cbar": False, "linewidths": 1}
    sns.heatmap(shown, ax=ax, **NUMBERS | {"annot": notes}, fmt="", **style)
    ax.set_xticks(np.arange(shown.shape[1]) + 0.5, ["none", *range(1, shown.shape[1])])
    ax.tick_params(axis="y", labelsize=8, rotation=0)
    ax.set(xlabel="severity (left: its values)", ylabel="")
    ax.set_title(title, fontsize=10)
    return ax


def slant(ax: Axes) -> None:
    """Slant the labels below an axis so that long names do not overlap; those at its left lie."""
    ax.tick_params(axis="x", rotation=45, labelrotation_mode="xtick")
    ax.tick_params(axis="y", rotation=0)


def mel_places() -> np.ndarray:
    """Return the places of `HERTZ_TICKS` on an axis that counts mel bands."""
    bands = mel_frequencies()
    return np.interp(HERTZ_TICKS, bands, np.arange(len(bands)))


def hertz_axis(ax: Axes) -> None:
    """Give an axis over frequency its logarithmic scale and ticks in Hz."""
    ax.set_xscale("log")
    ax.set_xticks(HERTZ_TICKS, HERTZ_TICKS)
    ax.minorticks_off()


def eps_axes(ax: Axes, ticks: np.ndarray) -> None:
    """Give an axis over eps its logarithmic scale, ticks (n,), and dB on top."""
    ax.set_xscale("log")
    top = ax.secondary_xaxis(
        "top", functions=(lambda eps: eps * DYNAMIC_RANGE_DB, lambda db: db / DYNAMIC_RANGE_DB)
    )
    top.set_xlabel("eps (dB)")
    ax.set_xticks(ticks, [f"{eps:g}" for eps in ticks], fontsize=8)
    decibel = ticks * DYNAMIC_RANGE_DB
    top.set_xticks(decibel, [f"{tick:.2g}" for tick in decibel], fontsize=8)
    ax.minorticks_off()
    top.minorticks_off()


def colour_bar(figure: Figure, image: AxesImage, axes: object, label: str) -> None:
    """Add a colour bar with its unit at the right of axes."""
    figure.colorbar(image, ax=axes, label=label, shrink=0.8)


def grid(rows: int, columns: int, width: float = 3.2, height: float = 2.4) -> tuple:
    """Return a figure and its axes (rows, columns) of `width` x `height` inches each."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained"
    )
    return figure, axes


def per_checkpoint(
    draw: Callable,
    table: pd.DataFrame,
    title: str,
    *options: object,
    width: float = 4,
    height: float = 4,
) -> Figure:
    """Return a figure with one panel per checkpoint, made by `draw(ax, rows, *options, title)`.

    `title` stands above; all panels have the same legend below, unless `draw` makes its own.
    """
    groups = table.groupby("checkpoint", sort=False)
    figure, axes = grid(1, len(groups), width, height)
    for ax, (name, rows) in zip(axes[0], groups, strict=True):
        draw(ax, rows, *options, title=name)
        ax.label_outer()
    figure.suptitle(title)
    if ax.get_legend() is None:
        legend_below(figure)
    return figure


def legend_below(figure: Figure) -> None:
    """Place the legend of all axes below the figure, each label once."""
    unique = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True)) | unique
    if unique:
        ncols = min(3, max(1, int(figure.get_figwidth() // 4)))  # leaves room for the corpus
        figure.legend(unique.values(), unique, loc="outside lower left", ncols=ncols, fontsize=8)


def _choose_fonts(figure: Figure) -> None:
    """Let the texts of a figure use installed fonts that have their letters."""
    for ax in figure.axes:
        ax.get_xticklabels(), ax.get_yticklabels()  # writes the names of categories
    texts = figure.findobj(Text)
    letters = {c for text in texts for c in text.get_text() if not c.isascii()}
    for text in texts if letters else ():
        text.set_fontfamily([*plt.rcParams["font.family"], *_fonts_for("".join(sorted(letters)))])


@cache
def _fonts_for(letters: str) -> list[str]:
    """Return installed fonts that have letters which the default font lacks; warn of the others."""
    default = get_font(fontManager.findfont(None)).get_charmap()
    missing, names = set(map(ord, letters)) - set(default), []
    fonts = findSystemFonts() if missing else []  # matplotlib's own list may be of another year
    for path in sorted(fonts, key=lambda path: ("Regular" not in path, path)):
        if missing and missing & set(get_font(path).get_charmap()):
            missing -= set(get_font(path).get_charmap())
            fontManager.addfont(path)
            names.append(get_font(path).family_name)
    if missing:
        lacking = "".join(map(chr, sorted(missing)))
        warnings.warn(
            f"No installed font has {lacking!r}: figures show boxes in their place; install one "
            "such as Noto.",
            stacklevel=3,
        )
    return names


def _accuracy_curves(ax: Axes, table: pd.DataFrame, styles: dict, x: str, chance: float) -> None:
    """Draw accuracy under attacks with intervals over column `x`, clean accuracy, and chance."""
    for name, (label, colour, style) in styles.items():
        rows = table[table["attack"] == name].sort_values(x)
        if len(rows):
            width = 2.2 if name == "worst_case" else 1.2
            ax.plot(rows[x], rows["accuracy"] * 100, style, c=colour, lw=width, label=label)
            ax.fill_between(rows[x], *_percent(rows, "low", "high"), color=colour, alpha=0.12)
    clean = table.loc[table["attack"] == "clean", "accuracy"].iloc[0]
    ax.axhline(clean * 100, color="grey", label="clean")
    ax.axhline(chance * 100, color="black", linestyle=":", label="chance")
    ax.set(ylabel="accuracy (%)", ylim=(-2, 102))


def _interval(low: float, high: float) -> str:
    """Return an interval as a second line, empty where it is unknown."""
    return "" if np.isnan(low) else f"\n{low:.0f}\N{EN DASH}{high:.0f}"


def _percent(rows: pd.DataFrame, *columns: str) -> list[pd.Series]:
    """Return columns of fractions in percent; missing ones stay missing."""
    return [rows[column].astype(float) * 100 for column in columns]


def _mel_image(ax: Axes, values: np.ndarray, cmap: str, low: float, high: float) -> AxesImage:
    """Draw (n_mels, frames) with time in seconds and mel bands labelled in Hz."""
    times, half = frame_times(values.shape[1]), HOP_LENGTH / SAMPLE_RATE / 2
    extent = (times[0] - half, times[-1] + half, -0.5, len(values) - 0.5)
    image = ax.imshow(
        values, cmap=cmap, vmin=low, vmax=high, origin="lower", aspect="auto", extent=extent
    )
    ax.set_yticks(mel_places(), HERTZ_TICKS)
    ax.set(xlabel="time (s)", ylabel="frequency (Hz)", xlim=(0, extent[1]))
    return image
