"""Figures of attacks on audio: success by signal-to-noise ratio, survival by codec, examples."""

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src import labels, plots
from src.attacks.codecs import WAV, librosa_log_mel

FILTERS = ("pgd_spectrogram_resynthesized", "equalizer_file")  # their ratio measures no noise


def success_over_ratio(ax: Axes, table: pd.DataFrame, title: str = "") -> Axes:
    """Draw the success rate of files over their signal-to-noise ratio, with intervals over tracks.

    `table` is that of `src.attacks.audio.audio_table` for one checkpoint; changes that are less
    audible are to the right.
    """
    files = table[(table["codec"] == WAV) & table["snr_db"].notna()]
    for name, (label, colour, line) in labels.AUDIO_ATTACKS.items():
        if name in FILTERS:
            continue
        rows = files[(files["attack"] == name) & files["attack_success_rate"].notna()]
        rows = rows.sort_values("snr_db")
        if len(rows):
            _curve(ax, rows, colour, line, label)
    ax.set(xlabel="signal-to-noise ratio (dB)", ylabel="attack success rate (%)", ylim=(-2, 102))
    ax.set_title(title, fontsize=10)
    return ax


def survival(ax: Axes, table: pd.DataFrame, title: str = "") -> Axes:
    """Draw, by codec, the share of flipped segments that stay so, with intervals over tracks.

    `table` is that of `src.attacks.audio.audio_table` for one checkpoint.
    """
    known = table[table["survival"].notna() & table["codec"].isin(labels.CODECS)]
    groups = list(known.groupby(["attack", "budget_db"], sort=False))
    codecs, width = list(labels.CODECS), 0.8 / max(len(groups), 1)
    for i, ((name, _), rows) in enumerate(groups):
        label, colour, _ = labels.AUDIO_ATTACKS[name]
        value, errors = _percent(rows, "survival")
        place = np.array([codecs.index(codec) for codec in rows["codec"]])
        place = place + (i - (len(groups) - 1) / 2) * width
        label = f"{label}, SNR {rows['snr_db'].iloc[0]:.0f} dB"
        ax.bar(place, value, 0.9 * width, yerr=errors, capsize=2, color=colour, label=label)
    if groups:
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.38))
    else:
        ax.text(0.5, 0.5, "no segment was flipped", ha="center", transform=ax.transAxes)
    ax.set_xticks(range(len(codecs)), [fill(name, 9) for name in labels.CODECS.values()])
    ax.set(xlabel="codec or change of the file", ylabel="still flipped (%)", ylim=(0, 105))
    ax.set_title(title, fontsize=10)
    return ax


def example(clean: np.ndarray, sounds: dict[str, np.ndarray], titles: dict[str, str]) -> Figure:
    """Draw a segment and attacked versions of it: log-mels above, their change in dB below.

    `clean` and the `sounds` are samples (66150,); `titles` has one for "clean" and each sound.
    """
    versions = {titles[name]: librosa_log_mel(sound[None])[0] for name, sound in sounds.items()}
    return plots.perturbations(librosa_log_mel(clean[None])[0], versions, titles["clean"], 20)


def _curve(ax: Axes, rows: pd.DataFrame, colour: str, line: str, label: str) -> None:
    """Draw one attack's success rates with their intervals."""
    value, errors = _percent(rows, "attack_success_rate")
    snr_db = rows["snr_db"].to_numpy(float)
    ax.plot(snr_db, value, line, color=colour, label=label)
    if len(rows) > 1:
        ax.fill_between(snr_db, value - errors[0], value + errors[1], color=colour, alpha=0.15)
    else:
        ax.errorbar(snr_db, value, yerr=errors, color=colour, capsize=3)


def _percent(rows: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return shares in percent and the lengths (2, n) of their intervals, NaN where unknown."""
    value, low, high = rows[[name, f"{name}_low", f"{name}_high"]].to_numpy(float).T * 100
    return value, np.array([value - low, high - value]).clip(min=0)
