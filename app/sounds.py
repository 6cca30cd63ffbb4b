"""Sounds of one model: waveform attacks, resynthesized spectrograms, segments filtered by maps.

Clean and adversarial segments are FLAC, which is lossless: the browser plays the samples that the
model classified. All else is Vorbis, which is smaller; probabilities of a Vorbis file are measured
on the file.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
from torch import nn

from app.selection import Shown
from app.views import View, short
from src.attacks.adversarial import Search
from src.attacks.codecs import file_logits
from src.attacks.waveform import (
    attack_waveform,
    make_waveform_classifier,
    ratio_db,
    resynthesize,
)
from src.data.features import SAMPLE_RATE
from src.explainability.sonify import filter_by_map
from src.models.evaluation import softmax
from src.results import save_with

SNR_DB = (40, 30, 20)
LOSSLESS, SMALL = "FLAC", "OGG"
PEAK = 0.99
SEED = 42


class WaveformAttack(NamedTuple):
    """An attack on samples (n, 66150) at one signal-to-noise ratio, measured on 16-bit files.

    `reached_db` (n,) is the ratio after rounding, NaN for an unchanged segment; `probabilities`
    and `noise` (n, n_genres) are those under the attack and under white noise of the same ratio.
    """

    snr_db: int
    reached_db: np.ndarray
    adversarial: np.ndarray
    probabilities: np.ndarray
    noise: np.ndarray


def write_sounds(
    folder: Path, number: int, model: nn.Module, shown: Shown, views: list[View], iterations: int
) -> list[dict]:
    """Write all sounds of model `number` into `folder`; return their data, one dict per segment.

    `attacks` has one entry per signal-to-noise ratio, `resynthesized` one per view (none at
    eps 0), `parts` the segment filtered by the map of its predicted genre.
    """
    clips = shown.samples
    attacks = attack_segments(model, clips, shown.y, iterations, SEED)
    changes = [view.adversarial - shown.X for view in views[1:]]
    resynthesized = [resynthesized_sounds(model, clips, change) for change in changes]
    heat = views[0].maps["predicted"]
    return [
        {
            "attacks": [_write_attack(folder, name, clips[i], attack, i) for attack in attacks],
            "resynthesized": [None]
            + [
                {"sound": write(folder, f"{name}_eps{k}", sound[i]), "probabilities": short(p[i])}
                for k, (sound, p) in enumerate(resynthesized, 1)
            ],
            "parts": {
                kind: write(folder, f"{name}_{kind}", part)
                for kind, part in parts(clips[i], heat[i]).items()
            },
        }
        for i, name in enumerate(f"segment{i}_model{number}" for i in range(len(clips)))
    ]


def attack_segments(
    model: nn.Module, clips: np.ndarray, y: np.ndarray, iterations: int, seed: int
) -> list[WaveformAttack]:
    """Return PGD on samples (n, 66150) with true genres `y` (n,) at each of `SNR_DB`."""
    classifier, found = make_waveform_classifier(model), []
    for snr_db in SNR_DB:
        options = (classifier, clips, y, snr_db, Search(iterations, seed))
        adversarial, noise = (attack_waveform(name, *options) for name in ("pgd_waveform", "noise"))
        predicted = (softmax(file_logits(model, samples)) for samples in (adversarial, noise))
        found.append(WaveformAttack(snr_db, ratio_db(clips, adversarial), adversarial, *predicted))
    return found


def resynthesized_sounds(
    model: nn.Module, clips: np.ndarray, changes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return sounds (n, 66150) filtered towards changed log-mels, and their probabilities.

    `changes` (n, 128, 130) of log-mels in [0, 1] are relative to the spectrograms of `clips`. The
    probabilities are those of the Vorbis files, whose log-mels differ from the requested ones.
    """
    sounds = resynthesize(clips, changes).clip(-1, 1)
    return sounds, softmax(file_logits(model, sounds, "ogg"))


def parts(clip: np.ndarray, heat: np.ndarray) -> dict[str, np.ndarray]:
    """Return the parts of a clip (66150,) that a map (128, 130) in [0, 1] keeps and removes.

    Nothing for an empty map.
    """
    if not heat.any():
        return {}
    kept = filter_by_map(clip, heat)
    return {"kept": kept, "removed": clip - kept}


def amplified(clip: np.ndarray, changed: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the difference of two clips (time,) at the level of the clip, and its gain in dB.

    The gain is lower where the difference would leave full scale, and 0 dB without a difference.
    """
    change = np.subtract(changed, clip, dtype=np.float64)
    if not change.any():
        return change, 0.0
    level = np.linalg.norm(clip.astype(np.float64)) / np.linalg.norm(change)
    gain = min(level, PEAK / np.abs(change).max())
    return change * gain, float(20 * np.log10(gain))


def write(folder: Path, name: str, samples: np.ndarray, form: str = SMALL) -> str:
    """Write samples (time,) at 22,050 Hz as `sounds/<name>`, 16-bit FLAC or Vorbis; return it."""
    path = f"sounds/{name}.{form.lower()}"
    clipped = np.clip(samples, -1, 1)
    save_with(folder / path, lambda part: sf.write(part, clipped, SAMPLE_RATE, format=form))
    return path


def _write_attack(
    folder: Path, name: str, clip: np.ndarray, attack: WaveformAttack, i: int
) -> dict:
    """Write adversarial segment `i` and its amplified difference; return their data."""
    name = f"{name}_{attack.snr_db}dB"
    difference, gain_db = amplified(clip, attack.adversarial[i])
    return {
        "snr_db": attack.snr_db,
        "reached_db": None if np.isnan(attack.reached_db[i]) else float(attack.reached_db[i]),
        "adversarial": write(folder, name, attack.adversarial[i], LOSSLESS),
        "difference": write(folder, f"{name}_difference", difference),
        "gain_db": gain_db,
        "probabilities": short(attack.probabilities[i]),
        "noise": short(attack.noise[i]),
    }
