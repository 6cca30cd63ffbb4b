"""Attacks on the waveform, within a signal-to-noise ratio or beneath what the music masks.

Threat model: the attacker knows network and front-end (white box) and may change every sample of
a 3 s clip. Gradients flow through the log-mel front-end (float32) and the folded network
(bfloat16). What counts is a file: attacked clips are 16-bit samples, and `src.attacks.channels`
judges what is read back from it.
"""

from functools import partial

import numpy as np
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from art.utils import to_categorical
from torch import nn

from src.attacks.adversarial import FastGradients
from src.attacks.channels import to_16_bit
from src.attacks.masking import hide, masking_levels, towards
from src.data.features import SEGMENT_SAMPLES, LogMel
from src.models.cnn import GenreClassifierCNN
from src.runtime import device, set_seed

WITHIN_RATIO = ("noise", "fgsm_waveform", "pgd_waveform", "pgd_linf")
GROWING = ("pgd_waveform", "pgd_linf", "pgd_masked")  # a larger budget holds the smaller
ATTACKS = (*WITHIN_RATIO, "pgd_masked")
ITERATIONS = 10
STEP_SHARE = 0.25
BATCH_SIZE = 32
ROUNDS = 8


class WaveformClassifier(nn.Module):
    """A network behind the log-mel front-end: samples (n, 66150) to logits (n, n_genres)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.front_end, self.network = LogMel(), network

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Return logits (n, n_genres) of samples (n, time) at 22,050 Hz, of any scale."""
        return self.network(self.front_end(samples)[:, None])


def make_waveform_classifier(model: GenreClassifierCNN) -> PyTorchClassifier:
    """Return an ART classifier of waveforms, for the attacks' gradients."""
    network = WaveformClassifier(FastGradients(model)).to(device())
    return PyTorchClassifier(
        network,
        loss=nn.CrossEntropyLoss(),
        input_shape=(SEGMENT_SAMPLES,),
        nb_classes=model.output.out_features,
        device_type="gpu" if device().type == "cuda" else "cpu",
    )


def attack_waveform(
    name: str,
    classifier: PyTorchClassifier,
    samples: np.ndarray,
    y: np.ndarray,
    budget_db: float,
    iterations: int = ITERATIONS,
    seed: int = 42,
) -> np.ndarray:
    """Return attacked clips, float32 (n, 66150) whose values are those of 16-bit samples.

    `samples` (n, 66150) in [-1, 1] are clips of 16-bit samples too (`to_16_bit`), `y` the true
    genre numbers. `budget_db` is the lowest signal-to-noise ratio allowed, after rounding:
    "noise" is white noise of exactly that ratio, the control; "fgsm_waveform" is one step of FGSM;
    "pgd_waveform" PGD in the whole ball, "pgd_linf" PGD with no sample changed by more than FGSM
    changes all. For "pgd_masked" it is the distance in dB that the change keeps below the masking
    level in each cell, before rounding. Silent clips come back unchanged.
    Raises ValueError for an unknown name, a budget that is no number or no iterations,
    AssertionError if the attack broke its ratio.
    """
    if name not in ATTACKS:
        raise ValueError(f"{name} is not an attack known here: give one of {', '.join(ATTACKS)}.")
    if not np.isfinite(budget_db):
        raise ValueError(f"The budget of {name} is {budget_db} dB: give a number, as 40.")
    if iterations < 1:
        raise ValueError(f"{iterations} iterations were asked for: give at least 1.")
    set_seed(seed)
    attacked = np.array(samples, dtype=np.float32)
    loud = np.flatnonzero(np.abs(attacked).max(axis=1, initial=0) > 0)
    make = partial(_hidden if name == "pgd_masked" else _within_ratio, name, classifier)
    for start in range(0, len(loud), BATCH_SIZE):
        rows = loud[start : start + BATCH_SIZE]
        attacked[rows] = make(attacked[rows], np.asarray(y)[rows], budget_db, iterations)
    return attacked


def ratio_db(samples: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """Return the signal-to-noise ratio (n,) in dB of attacked clips; NaN where nothing changed."""
    signal, noise = _norm(samples), _norm(np.subtract(attacked, samples, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(noise > 0, 20 * np.log10(signal / noise), np.nan)


def _within_ratio(name, classifier, samples, y, snr_db, iterations) -> np.ndarray:
    """Return clips (n, time) attacked within a signal-to-noise ratio.

    The front-end measures each clip against its own maximum, so that clips may be brought to unit
    level first; then one ratio is one radius for all.
    """
    level = _norm(samples) / np.sqrt(samples.shape[1])
    unit = (samples / level[:, None]).astype(np.float32)
    eps = 10 ** (-snr_db / 20)
    if name == "noise":
        change = torch.randn(samples.shape, dtype=torch.double).numpy()
        change *= (eps * np.sqrt(samples.shape[1]) / _norm(change))[:, None]
    else:
        change = _method(name, classifier, eps, unit, iterations).generate(unit, y) - unit
    attacked = _rounded(samples, change * level[:, None], eps * _norm(samples))
    lowest = np.nanmin(ratio_db(samples, attacked), initial=np.inf)
    if lowest < snr_db - 1e-3:
        raise AssertionError(
            f"{name} left {lowest:.2f} dB of signal over noise where {snr_db} dB were asked for: "
            "its result is not used."
        )
    return attacked


def _method(name, classifier, eps, unit, iterations):
    """Return the ART attack of that name on clips of unit level.

    PGD starts at random, which also raises cells off the floor of -80 dB, where there is no
    gradient. Its steps and its ball are those of the Euclidean norm: in the same ball, steps by
    sign flip fewer clips.
    """
    if name == "fgsm_waveform":
        return FastGradientMethod(classifier, eps=eps, batch_size=BATCH_SIZE)
    norm, radius = (2, eps * np.sqrt(unit.shape[1])) if name == "pgd_waveform" else (np.inf, eps)
    return ProjectedGradientDescent(
        classifier,
        norm=norm,
        eps=float(radius),
        eps_step=float(radius * STEP_SHARE),
        max_iter=iterations,
        num_random_init=1,
        batch_size=BATCH_SIZE,
        verbose=False,
    )


def _hidden(name, classifier, samples, y, margin_db, iterations) -> np.ndarray:
    """Return clips (n, time) changed beneath their masking level less a margin.

    PGD whose ball is the set of hidden changes: a step follows the gradient's phase, as far in
    each cell as its level allows; the sum is hidden again.
    """
    targets = to_categorical(y, classifier.nb_classes)
    levels = torch.from_numpy(masking_levels(samples)) * 10 ** (-margin_db / 20)
    change = hide(towards(torch.randn(samples.shape), levels), levels)
    for _ in range(iterations):
        gradient = classifier.loss_gradient(samples + change.numpy(), targets)
        step = towards(torch.from_numpy(gradient), levels)
        change = hide(change + STEP_SHARE * step, levels)
    return to_16_bit(samples + change.numpy())


def _rounded(samples: np.ndarray, change: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return changed clips as 16-bit samples, the change turned down until rounding fits in.

    A clip so quiet that a change of 16-bit samples does not fit stays as it is.
    """
    scale = np.ones(len(samples))
    for _ in range(ROUNDS):
        attacked = to_16_bit(samples + scale[:, None] * change)
        size = _norm(np.subtract(attacked, samples, dtype=np.float64))
        over = size > radius
        scale[over] *= radius[over] / size[over] * (1 - 1e-6)
    return np.where(over[:, None], samples, attacked)


def _norm(samples: np.ndarray) -> np.ndarray:
    """Return the Euclidean norm (n,) of clips."""
    return np.linalg.norm(np.asarray(samples, dtype=np.float64), axis=1)
