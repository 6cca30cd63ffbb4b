"""Figures of attacks on audio: success by signal-to-noise ratio, survival by channel, examples."""

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src import labels, plots
from src.attacks.audio import FILE_CHANNEL
from src.attacks.channels import librosa_log_mel


def success_over_ratio(ax: Axes, summary: pd.DataFrame, title: str = "") -> Axes:
    """Draw the success rate of files over their signal-to-noise ratio, with intervals over tracks.

    `summary` is that of `src.attacks.audio.summarize` for one checkpoint; changes that are harder
    to hear stand to the right.
    """
    files = summary[(summary["channel"] == FILE_CHANNEL) & summary["snr_db"].notna()]
    for name, (label, colour, line) in labels.AUDIO_ATTACKS.items():
        rows = files[(files["attack"] == name) & files["attack_success_rate"].notna()]
        rows = rows.sort_values("snr_db")
        if len(rows):
            _curve(ax, rows, colour, line, label)
    ax.set(xlabel="signal-to-noise ratio (dB)", ylabel="attack success rate (%)", ylim=(-2, 102))
    return _finish(ax, title)


def survival(ax: Axes, summary: pd.DataFrame, title: str = "") -> Axes:
    """Draw, by channel, the share of flipped clips that stay so, with intervals over tracks.

    `summary` is that of `src.attacks.audio.summarize` for one checkpoint; without any, it says so.
    """
    known = summary[summary["survival"].notna() & summary["channel"].isin(labels.CODECS)]
    groups = list(known.groupby(["attack", "budget_db"], sort=False))
    channels, width = list(labels.CODECS), 0.8 / max(len(groups), 1)
    for i, ((name, _), rows) in enumerate(groups):
        label, colour, _ = labels.AUDIO_ATTACKS[name]
        value, errors = _percent(rows["survival"])
        place = np.array([channels.index(channel) for channel in rows["channel"]])
        place = place + (i - (len(groups) - 1) / 2) * width
        label = f"{label}, {rows['snr_db'].iloc[0]:.0f} dB"
        ax.bar(place, value, 0.9 * width, yerr=errors, capsize=2, color=colour, label=label)
    if not groups:
        ax.text(0.5, 0.5, "no clip was flipped", ha="center", transform=ax.transAxes)
    ax.set_xticks(range(len(channels)), [fill(name, 9) for name in labels.CODECS.values()])
    ax.set(xlabel="channel", ylabel="still flipped (%)", ylim=(0, 105))
    return _finish(ax, title)


def example(clean: np.ndarray, sounds: dict[str, np.ndarray], titles: dict[str, str]) -> Figure:
    """Draw a clip and attacked versions of it: log-mels above, their change in dB below.

    `clean` and the `sounds` are samples (66150,); `titles` has one for "clean" and each sound.
    """
    figure, axes = plots.grid(2, 1 + len(sounds), width=3.6, height=2.5)
    x = librosa_log_mel(clean[None])[0]
    level = plots.spectrogram(axes[0, 0], x, titles["clean"])
    changes = {name: librosa_log_mel(sound[None])[0] - x for name, sound in sounds.items()}
    for column, (name, delta) in enumerate(changes.items(), start=1):
        plots.spectrogram(axes[0, column], x + delta, titles[name])
        change = plots.change(axes[1, column], delta, 20, "change")
    plots.colour_bar(figure, level, axes[0], "level (dB)")
    plots.colour_bar(figure, change, axes[1], "change (dB)")
    return figure


def _finish(ax: Axes, title: str) -> Axes:
    """Give an axis its title, and a legend if anything is drawn."""
    ax.set_title(title, fontsize=9)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.25))
    return ax


def _curve(ax: Axes, rows: pd.DataFrame, colour: str, line: str, label: str) -> None:
    """Draw one attack's success rates with their intervals."""
    value, errors = _percent(rows["attack_success_rate"])
    snr_db = rows["snr_db"].astype(float)
    ax.plot(snr_db, value, line, color=colour, label=label)
    if len(rows) > 1:
        ax.fill_between(snr_db, value - errors[0], value + errors[1], color=colour, alpha=0.15)
    else:
        ax.errorbar(snr_db, value, yerr=errors, color=colour, capsize=3)


def _percent(shares: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return shares in percent and the lengths (2, n) of their intervals, NaN where unknown."""
    table = pd.DataFrame(shares.tolist()).astype(float) * 100
    value = table["value"].to_numpy()
    errors = np.array([value - table["low"], table["high"] - value])
    return value, errors.clip(min=0)
