"""Sounds of one model: waveform attacks, resynthesized spectrograms, segments filtered by maps.

Clean and adversarial segments are FLAC, which is lossless: the browser plays the samples that the
model classified. All else is Vorbis, which is smaller; probabilities of a Vorbis file are measured
on the file.
"""

from pathlib import Path

import numpy as np
import soundfile as sf
from torch import nn

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
from src.data.segments import Segments
from src.explainability.sonify import filter_by_map
from src.models.evaluation import softmax
from src.results import save_with

SNR_DB = (40, 30, 20)
LOSSLESS, SMALL = "FLAC", "OGG"
PEAK = 0.99
SEED = 42


def write_sounds(
    folder: Path, number: int, model: nn.Module, shown: Segments, views: list[View], iterations: int
) -> list[dict]:
    """Write all sounds of model `number` into `folder`; return their data, one dict per segment.

    `attacks` has one entry per signal-to-noise ratio, `resynthesized` one per view (none at
    eps 0), `parts` the segment filtered by the map of its predicted genre.
    """
    clips, search = shown.samples, Search(iterations, SEED)
    names = [f"segment{i}_model{number}" for i in range(len(clips))]
    attacks = [write_attack(folder, names, model, shown, snr_db, search) for snr_db in SNR_DB]
    changes = [view.adversarial - shown.X for view in views[1:]]
    resynthesized = [resynthesized_sounds(model, clips, change) for change in changes]
    heat = views[0].maps["predicted"]
    return [
        {
            "attacks": [rows[i] for rows in attacks],
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
        for i, name in enumerate(names)
    ]


def write_attack(
    folder: Path, names: list[str], model: nn.Module, shown: Segments, snr_db: int, search: Search
) -> list[dict]:
    """Attack samples at one signal-to-noise ratio, write them; return one dict per segment.

    `probabilities` are those of 16-bit files, also under white noise of the same ratio.
    `reached_db` is the ratio after rounding, None for an unchanged segment.
    """
    options = make_waveform_classifier(model), shown.samples, shown.y, snr_db, search
    attacked, noise = (attack_waveform(kind, *options) for kind in ("pgd_waveform", "noise"))
    probabilities, noisy = (softmax(file_logits(model, each)) for each in (attacked, noise))
    reached_db, found = ratio_db(shown.samples, attacked), []
    for i, name in enumerate(f"{name}_{snr_db}dB" for name in names):
        difference, gain_db = amplified(shown.samples[i], attacked[i])
        found.append(
            {
                "snr_db": snr_db,
                "reached_db": None if np.isnan(reached_db[i]) else float(reached_db[i]),
                "adversarial": write(folder, name, attacked[i], LOSSLESS),
                "difference": write(folder, f"{name}_difference", difference),
                "gain_db": gain_db,
                "probabilities": short(probabilities[i]),
                "noise": short(noisy[i]),
            }
        )
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
