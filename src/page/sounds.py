"""What can be heard: clips, attacked clips, differences, and what the maps keep of a clip.

Clips and attacked clips are FLAC, which loses nothing: the browser plays the samples that the
network was given. All else is Vorbis, which is smaller; what is told of such a sound is told of it
after Vorbis.
"""

from pathlib import Path

import numpy as np
import soundfile as sf
from torch import nn

from src.attacks.channels import judge
from src.attacks.resynthesis import resynthesize
from src.attacks.waveform import attack_waveform, make_waveform_classifier, ratio_db
from src.data.frontend import SAMPLE_RATE
from src.explainability.listening import filter_by_map
from src.models.evaluation import softmax
from src.results import save_with

SNR_DB = (40, 30, 20)
LOSSLESS, SMALL = "FLAC", "OGG"
ENDINGS = {LOSSLESS: "flac", SMALL: "ogg"}
LOUDEST = 0.99


def write(stem: Path, samples: np.ndarray, form: str = SMALL) -> Path:
    """Write samples (time,) at 22,050 Hz as FLAC (16 bits) or Vorbis beside `stem`; return it."""
    path = stem.with_suffix(f".{ENDINGS[form]}")
    cut = np.clip(samples, -1, 1)
    return save_with(path, lambda part: sf.write(part, cut, SAMPLE_RATE, format=form))


def amplified(clip: np.ndarray, changed: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the difference of two clips (time,) as loud as the clip, and its gain in dB.

    Less loud where it would leave the full scale; silence and 0 dB if nothing changed.
    """
    change = np.subtract(changed, clip, dtype=np.float64)
    if not change.any():
        return change, 0.0
    level = np.linalg.norm(clip.astype(np.float64)) / np.linalg.norm(change)
    gain = min(level, LOUDEST / np.abs(change).max())
    return change * gain, float(20 * np.log10(gain))


def attack_clips(
    model: nn.Module, clips: np.ndarray, y: np.ndarray, iterations: int, seed: int
) -> list[list[dict]]:
    """Return, for each clip (n, 66150) and each of `SNR_DB`, an attack on its samples.

    Each has `snr_db` (the least allowed), `reached_db`, the samples `attacked`, probabilities of
    it as 16-bit file, and `noise`, those of white noise of the same ratio: the control.
    """
    classifier = make_waveform_classifier(model)
    rows = [[] for _ in clips]
    for snr_db in SNR_DB:
        options = (classifier, clips, y, snr_db, iterations, seed)
        attacked, noisy = (attack_waveform(name, *options) for name in ("pgd_waveform", "noise"))
        told = [softmax(judge(model, samples)) for samples in (attacked, noisy)]
        reached = ratio_db(clips, attacked)
        for i, row in enumerate(rows):
            row.append(
                {
                    "snr_db": snr_db,
                    "reached_db": None if np.isnan(reached[i]) else float(reached[i]),
                    "attacked": attacked[i],
                    "probabilities": told[0][i],
                    "noise": told[1][i],
                }
            )
    return rows


def nearest_sounds(
    model: nn.Module, clips: np.ndarray, changes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sounds (n, 66150) nearest to changed log-mels, and their probabilities.

    `changes` (n, 128, 130) of log-mels in [0, 1] were made on the spectrograms of `clips`. The
    probabilities are those of the sound as a Vorbis file, whose log-mel is not the one asked for.
    """
    sounds = resynthesize(clips, changes).clip(-1, 1)
    return sounds, softmax(judge(model, sounds, "ogg"))


def parts(clip: np.ndarray, heat: np.ndarray) -> dict[str, np.ndarray]:
    """Return what a map (128, 130) in [0, 1] keeps of a clip (66150,) and what it leaves out.

    Nothing for an empty map.
    """
    if not heat.any():
        return {}
    kept = filter_by_map(clip, heat)
    return {"kept": kept, "left_out": clip - kept}
