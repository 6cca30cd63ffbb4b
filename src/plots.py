"""Figures: functions that draw data into axes, and one that saves. Units: Hz, seconds, dB."""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
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
LINES = ("--", "-", ":", "-.")
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
    ax.tick_params(axis="x", rotation=45)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def band_levels(ax: Axes, X: np.ndarray, y: np.ndarray, genres: list[str]) -> Axes:
    """Draw the mean level in dB of each mel band, by genre, of segments (n, 128, 130)."""
    colours = plt.get_cmap("tab10").colors
    levels = np.concatenate([part.mean(axis=2) for part in chunks(X, 64)])
    for k, genre in enumerate(genres):
        mean = levels[y == k].mean(axis=0)
        label = f" {genre}" if genre.startswith("_") else genre  # else no legend would list it
        style = {"ls": LINES[(k + k // 10) % 4], "color": colours[k % 10], "label": label}
        ax.plot(mel_frequencies(), to_decibel(mean), **style)
    hertz_axis(ax)
    ax.set(xlabel="frequency (Hz)", ylabel="mean level (dB)")
    ax.legend(ncols=2, fontsize=7)
    return ax


def training_curves(axes: np.ndarray, history: pd.DataFrame, best_epoch: int) -> np.ndarray:
    """Draw loss and accuracy of training and validation over epochs into two axes.

    With the accuracies under attack where the history has them.
    """
    epochs = np.arange(1, len(history) + 1)
    for ax, name, scale in zip(axes, ("loss", "accuracy"), (1, 100), strict=True):
        for part, style in (("train", "--"), ("val", "-")):
            ax.plot(epochs, history[f"{part}_{name}"] * scale, style, label=part)
        ax.axvline(best_epoch, color="grey", linewidth=0.8, label="kept epoch")
        ax.set(xlabel="epoch", ylabel=name + (" (%)" if scale == 100 else " (nats)"))
    attacked = {"single_step_accuracy": "val, single step", "robust_accuracy": "val, PGD"}
    for (name, label), style in zip(attacked.items(), (":", "-."), strict=True):
        if name in history:
            axes[1].plot(epochs, history[name] * 100, style, label=label)
    for ax in axes:
        ax.legend(fontsize=8)
    return axes


def confusion(ax: Axes, matrix: np.ndarray, genres: list[str], title: str = "") -> Axes:
    """Draw a confusion matrix of counts, rows true, columns predicted."""
    counts = pd.DataFrame(matrix, genres, genres)
    number_table(
        ax, counts.where(counts > 0), "{:.0f}", COUNT_MAP, (0, max(1, counts.max(axis=None)))
    )
    ax.tick_params(axis="x", rotation=45)
    ax.set(xlabel="predicted genre", ylabel="true genre", title=title)
    return ax


def genre_accuracy(ax: Axes, per_genre: dict[str, dict], chance: float) -> Axes:
    """Draw each genre's accuracy with its interval over tracks, and chance."""
    table = pd.DataFrame(per_genre).T.astype(float) * 100
    errors = [table["value"] - table["low"], table["high"] - table["value"]]
    ax.bar(table.index, table["value"], yerr=np.clip(errors, 0, None), capsize=3)
    ax.axhline(chance * 100, color="black", linestyle=":", label="chance")
    ax.tick_params(axis="x", rotation=45)
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
    for name in ROBUSTNESS_CURVES:
        label, colour, style = labels.ATTACKS[name]
        rows = table[table["attack"] == name].sort_values("eps")
        if len(rows):
            bold = 2.2 if name == "worst_case" else 1.2
            ax.plot(rows["eps"], rows["accuracy"] * 100, style, c=colour, lw=bold, label=label)
            ax.fill_between(rows["eps"], *_percent(rows, "low", "high"), color=colour, alpha=0.12)
    clean = table.loc[table["attack"] == "clean", "accuracy"].iloc[0]
    ax.axhline(clean * 100, color="grey", label="clean")
    ax.axhline(chance * 100, color="black", linestyle=":", label="chance")
    ax.set(xlabel="eps (of the range [0, 1])", ylabel="accuracy (%)", ylim=(-2, 102))
    ax.set_title(title, fontsize=9)
    eps_axes(ax, np.sort(table.loc[table["eps"] > 0, "eps"].unique()))
    return ax


def fragility(ax: Axes, table: pd.DataFrame, genres: list[str], title: str = "") -> Axes:
    """Draw the smallest eps (dB) that flips each segment, by genre, and each genre's median.

    `table` comes from `suite.minimal_eps`; triangles at the edge are
    segments that no eps flips.
    """
    known = table["minimal_eps_db"].dropna()
    low, edge = (known.min() / 2, known.max() * 2) if len(known) else (0.1, 10)
    for k in range(len(genres)):
        values = table.loc[table["true"] == k, "minimal_eps_db"]
        found = values.dropna()
        height = k + np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else np.full(1, k)
        ax.plot(found, height[: len(found)], ".", color="tab:blue")
        ax.plot([edge] * (len(values) - len(found)), height[len(found) : len(values)], "k>")
        if len(values):
            ax.plot([values.fillna(edge).median()], [k], "|", color="tab:red", ms=18, mew=2)
    ax.set_yticks(range(len(genres)), genres)
    ax.set(
        xscale="log",
        xlim=(low, edge * 1.1),
        xlabel="smallest eps that flips the segment (dB)",
        ylabel="true genre",
    )
    ticks = [tick for tick in DECIBEL_TICKS if low <= tick <= edge]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(ylim=(len(genres) - 0.5, -0.5))
    ax.set_title(title, fontsize=9)
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
    rows: pd.DataFrame, X: np.ndarray, adversarial: np.ndarray, genres: list[str]
) -> Figure:
    """Draw segments, their adversarial examples and the perturbations, one example per line.

    `rows` has columns case, track, true, predicted (genre numbers) and minimal_eps_db; `X` and
    `adversarial` (n, 128, 130) are the segments of its rows.
    """
    figure, axes = grid(max(1, len(rows)), 3, width=4, height=2.6)
    for (before, after, delta), row, x, attacked in zip(
        axes, rows.itertuples(), X, adversarial, strict=False
    ):
        spectrogram(before, x, f"{row.case}: {row.track}, predicted {genres[row.true]}")
        image = spectrogram(after, attacked, f"predicted {genres[row.predicted]}")
        limit = row.minimal_eps_db
        shown = change(delta, attacked - x, limit, f"perturbation, at most {limit:.2f} dB")
        colour_bar(figure, image, [before, after], "level (dB)")
        colour_bar(figure, shown, delta, "change (dB)")
    return figure


def corruption(ax: Axes, table: pd.DataFrame, name: str, chance: float) -> Axes:
    """Draw accuracy over the severities of one corruption, one line per checkpoint, and chance.

    `table` has rows of `corruptions.corruption_table`; the first point is the unchanged segment.
    """
    rows = table[table["corruption"].isin(("none", name))]
    for checkpoint, own in rows.groupby("checkpoint", sort=False):
        x = np.arange(len(own))
        (line,) = ax.plot(x, own["accuracy"] * 100, "o-", label=checkpoint)
        ax.fill_between(x, *_percent(own, "low", "high"), color=line.get_color(), alpha=0.15)
    ax.axhline(chance * 100, color="black", linestyle=":", label="chance")
    ax.set_xticks(x, ["none", *(f"{value:g}" for value in own["severity"].iloc[1:])])
    label = f"{labels.CORRUPTIONS[name]} ({own['unit'].iloc[-1]})"
    ax.set(xlabel=label, ylabel="accuracy (%)", ylim=(-2, 102))
    return ax


def corruptions(table: pd.DataFrame, chance: float) -> Figure:
    """Draw accuracy over severity, one panel per corruption; see `corruption`."""
    figure, axes = grid(2, 4, width=3.2, height=2.8)
    names = [name for name in labels.CORRUPTIONS if name != "none"]
    for ax, name in zip(axes.flat, names, strict=False):
        corruption(ax, table, name, chance)
    axes[0, 0].legend(fontsize=7)
    return figure


def number_table(
    ax: Axes, table: pd.DataFrame, form: str, colours: str, limits: tuple[float, float]
) -> AxesImage:
    """Draw a table as coloured cells with their numbers, empty where NaN; return the image."""
    image = ax.imshow(table, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        if np.isfinite(value):
            dark = np.mean(image.cmap(image.norm(value))[:3]) < 0.5
            style = {"ha": "center", "va": "center", "color": "white" if dark else "black"}
            ax.text(column, row, form.format(value), fontsize=8, **style)
    ax.set_xticks(range(table.shape[1]), table.columns)
    ax.set_yticks(range(len(table)), table.index)
    return image


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
    ax.set_xticks(ticks, [f"{eps:g}" for eps in ticks], rotation=45)
    decibel = ticks * DYNAMIC_RANGE_DB
    top.set_xticks(decibel, [f"{tick:.2g}" for tick in decibel], rotation=45)
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
    draw: Callable, table: pd.DataFrame, *options: object, width: float = 5, height: float = 4
) -> Figure:
    """Return a figure with one panel per checkpoint, made by `draw(ax, rows, *options, title)`.

    The last panel gets a legend at its right if `draw` makes none.
    """
    groups = table.groupby("checkpoint", sort=False)
    figure, axes = grid(1, len(groups), width, height)
    for ax, (name, rows) in zip(axes[0], groups, strict=True):
        draw(ax, rows, *options, title=name)
    if ax.get_legend() is None and ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


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
    bands = np.interp(HERTZ_TICKS, mel_frequencies(), np.arange(len(values)))
    ax.set_yticks(bands, [f"{hertz}" for hertz in HERTZ_TICKS])
    ax.set(xlabel="time (s)", ylabel="frequency (Hz)", xlim=(0, extent[1]))
    return image
