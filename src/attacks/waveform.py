"""Attacks on samples: within a signal-to-noise ratio, below the masking threshold, resynthesized.

Threat model: the attacker knows model and front-end (white box) and may change every sample of a
segment. Gradients flow through the log-mel front-end (float32) and the folded model (bfloat16 where
it is fast). Adversarial segments are 16-bit samples, to be evaluated as files (`codecs`).
"""

from functools import partial

import numpy as np
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from art.utils import to_categorical
from torch import nn

from src.attacks.adversarial import FastGradients, Search, art_classifier
from src.attacks.codecs import to_16_bit
from src.attacks.psychoacoustics import hide, masking_levels, towards
from src.data.features import DYNAMIC_RANGE_DB, SEGMENT_SAMPLES, LogMel, bands_of_bins, istft, stft
from src.models.cnn import GenreClassifierCNN, fold_batch_norm
from src.models.own import takes_samples
from src.runtime import device, set_seed
from src.shards import once

WITHIN_RATIO = ("noise", "fgsm_waveform", "pgd_waveform")
NESTED = ("pgd_waveform", "pgd_masked")  # a larger budget holds the smaller
MASKED = ("noise_masked", "pgd_masked")
ATTACKS = (*WITHIN_RATIO, *MASKED)
ITERATIONS = 10
STEP_SHARE = 0.25
BATCH_SIZE = 32
ROUNDS = 8
WINDOW_SAMPLES = 2205  # of the segmental signal-to-noise ratio: 100 ms
APPROACH_STEPS, APPROACH_RATE = 150, 1e-3  # of Adam; the rate is a share of the segment's level


def behind_front_end(network: nn.Module) -> nn.Sequential:
    """Return a network of samples (n, time) at 22,050 Hz, of any scale, from one of log-mels."""
    return nn.Sequential(LogMel(), nn.Unflatten(1, (1, -1)), network)


def make_waveform_classifier(model: GenreClassifierCNN) -> PyTorchClassifier:
    """Return an ART classifier of waveforms.

    Gradients of a model that takes samples are float32: bfloat16 would round small changes away.
    """
    on_samples = takes_samples(model)
    network = fold_batch_norm(model) if on_samples else behind_front_end(FastGradients(model))
    return art_classifier(network.to(device()), model.output.out_features, (SEGMENT_SAMPLES,))


def attack_waveform(
    name: str,
    classifier: PyTorchClassifier,
    samples: np.ndarray,
    y: np.ndarray,
    budget_db: float,
    search: Search,
) -> np.ndarray:
    """Return adversarial segments, float32 (n, 66150) whose values are those of 16-bit samples.

    Parameters
    ----------
    name : "noise" is white noise of exactly the budget, the control; "fgsm_waveform" one step of
        FGSM; "pgd_waveform" PGD in the L2 ball; "pgd_masked" PGD below the masking threshold, and
        "noise_masked" its control, noise that fills the same levels.
    samples : (n, 66150) 16-bit values in [-1, 1] (`to_16_bit`); silence is returned unchanged.
    y : true genre numbers (n,).
    budget_db : lowest signal-to-noise ratio allowed, after rounding; for MASKED the margin between
        the perturbation and the masking threshold in each cell, before rounding.
    search : iterations and seed.

    Raises
    ------
    ValueError for an unknown name, a budget that is not finite or no iterations; AssertionError if
    the attack broke its ratio.
    """
    if name not in ATTACKS:
        raise ValueError(f"{name} is not an attack known here: give one of {', '.join(ATTACKS)}.")
    if not np.isfinite(budget_db):
        raise ValueError(f"The budget of {name} is {budget_db} dB: give a number, as 40.")
    if search.iterations < 1:
        raise ValueError(f"The number of iterations is {search.iterations}: give at least 1.")
    return once(_attack, name, classifier, samples, y, budget_db, search)


def ratio_db(samples: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """Return the signal-to-noise ratio (n,) in dB; NaN for unchanged segments (n, time)."""
    signal, noise = _norm(samples), _norm(np.subtract(attacked, samples, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(noise > 0, 20 * np.log10(signal / noise), np.nan)


def segmental_ratio_db(samples: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """Return the mean (n,) of the signal-to-noise ratios in dB of windows of 100 ms.

    Windows without signal or change do not count; NaN for unchanged segments (n, time).
    """
    n_windows = samples.shape[1] // WINDOW_SAMPLES
    shape = len(samples) * n_windows, WINDOW_SAMPLES
    parts = [x[:, : n_windows * WINDOW_SAMPLES].reshape(shape) for x in (samples, attacked)]
    ratio = ratio_db(*parts).reshape(len(samples), n_windows)
    counts = np.isfinite(ratio)
    total = np.where(counts, ratio, 0).sum(axis=1)
    return total / np.where(counts.any(axis=1), counts.sum(axis=1), np.nan)


def noise_to_mask_db(change: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the noise-to-mask ratio (n,) in dB of changes (n, time); NaN without a change.

    The mean over all cells of the change's energy over that of `levels` (`masking_levels`), after
    ITU-R BS.1387: above 0 the change is audible on average.
    """
    magnitude = stft(torch.from_numpy(np.asarray(change, dtype=np.float32))).abs().numpy()
    mean = np.square(magnitude / levels, dtype=np.float64).mean(axis=(1, 2))
    return 10 * np.log10(np.where(mean > 0, mean, np.nan))


def resynthesize(samples: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Return samples (n, time) filtered by the gains that a change of log-mels requires.

    Each FFT bin gets the weighted gain of its mel bands; phases stay. Frames overlap and bands
    share bins: one filter approximates the wanted log-mel; `approach` comes closer. `change` is
    (n, 128, frames) of log-mels in [0, 1]; 0.01 is a gain of 0.8 dB.
    """
    gain_db = np.einsum("bm,nmt->nbt", bands_of_bins(), change * DYNAMIC_RANGE_DB)
    gain = torch.from_numpy(10 ** (gain_db / 20)).float()
    cells = stft(torch.from_numpy(np.asarray(samples, dtype=np.float32)))
    return istft(cells * gain, samples.shape[1]).numpy()


def approach(samples: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return samples (n, time) whose log-mels come close to `wanted` (n, 128, frames).

    Adam (Kingma and Ba 2015) changes `samples` to reduce the squared error of their log-mels; the
    best point of each is kept. A local optimum: nearer sounds may exist.
    """
    start, aim = torch.from_numpy(np.asarray(samples, dtype=np.float32)), torch.from_numpy(wanted)
    level, front_end = start.square().mean(dim=1, keepdim=True).sqrt(), LogMel()
    change = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([change], APPROACH_RATE)
    best, lowest = start.clone(), torch.full((len(start),), torch.inf)
    for _ in range(APPROACH_STEPS + 1):
        sounds = start + level * change
        error = (front_end(sounds) - aim).square().sum(dim=(1, 2))
        better = error < lowest
        best[better], lowest = sounds.detach()[better], torch.minimum(error.detach(), lowest)
        optimizer.zero_grad()
        error.sum().backward()
        optimizer.step()
    return best.numpy()


def surviving_share(wanted: np.ndarray, obtained: np.ndarray) -> np.ndarray:
    """Return the share (n,) of each wanted change (n, 128, frames) in the obtained one.

    The projection of one on the other: 1 if all of it is there; NaN for no wanted change.
    """
    wanted, obtained = (change.reshape(len(change), -1) for change in (wanted, obtained))
    energy = np.square(wanted).sum(axis=1)
    return (wanted * obtained).sum(axis=1) / np.where(energy > 0, energy, np.nan)


def _attack(name, classifier, samples, y, budget_db: float, search: Search) -> np.ndarray:
    """Return attacked segments, batch by batch."""
    set_seed(search.seed)
    attacked = np.array(samples, dtype=np.float32)
    loud = np.flatnonzero(np.abs(attacked).max(axis=1, initial=0) > 0)
    make = partial(_masked if name in MASKED else _within_ratio, name)
    for start in range(0, len(loud), BATCH_SIZE):
        rows = loud[start : start + BATCH_SIZE]
        part = attacked[rows], np.asarray(y)[rows]
        attacked[rows] = make(classifier, *part, budget_db, search.iterations)
    return attacked


def _within_ratio(name, classifier, samples, y, snr_db, iterations) -> np.ndarray:
    """Return segments (n, time) attacked within a signal-to-noise ratio.

    The front-end measures each segment relative to its own maximum, so segments may be brought to
    unit level first; then one ratio is one radius for all. A network on samples gets them as they
    are, one by one, because its predictions may depend on the level.
    """
    level = _norm(samples) / np.sqrt(samples.shape[1])
    unit = (samples / level[:, None]).astype(np.float32)
    eps = 10 ** (-snr_db / 20)
    if name == "noise":
        change = torch.randn(samples.shape, dtype=torch.double).numpy()
        change *= (eps * np.sqrt(samples.shape[1]) / _norm(change))[:, None]
    elif takes_samples(classifier.model):
        each = zip(samples[:, None], y[:, None], eps * level, strict=True)
        found = [_method(name, classifier, size, iterations).generate(x, k) for x, k, size in each]
        change = (np.concatenate(found) - samples) / level[:, None]
    else:
        change = _method(name, classifier, eps, iterations).generate(unit, y) - unit
    attacked = _rounded(samples, change * level[:, None], eps * _norm(samples))
    lowest = np.nanmin(ratio_db(samples, attacked), initial=np.inf)
    if lowest < snr_db - 1e-3:
        raise AssertionError(
            f"{name} has a signal-to-noise ratio of {lowest:.2f} dB, below the {snr_db} dB "
            "allowed: its result is not used."
        )
    return attacked


def _method(name, classifier, eps, iterations):
    """Return the ART attack of that name on segments of unit level.

    PGD starts at random, which also raises cells off the floor of -80 dB, where there is no
    gradient. Its steps and its ball are those of the L2 norm: steps by sign flip fewer segments.
    """
    if name == "fgsm_waveform":
        return FastGradientMethod(classifier, eps=eps, batch_size=BATCH_SIZE)
    radius = float(eps * np.sqrt(SEGMENT_SAMPLES))
    return ProjectedGradientDescent(
        classifier,
        norm=2,
        eps=radius,
        eps_step=radius * STEP_SHARE,
        max_iter=iterations,
        num_random_init=1,
        batch_size=BATCH_SIZE,
        verbose=False,
    )


def _masked(name, classifier, samples, y, margin_db, iterations) -> np.ndarray:
    """Return segments (n, time) changed below their masking threshold less a margin.

    PGD whose ball is the set of masked changes: a step follows the gradient's phase, as far in each
    cell as its level allows; the sum is projected by `hide`. "noise_masked" is its random start.
    """
    targets = to_categorical(y, classifier.nb_classes)
    levels = torch.from_numpy(masking_levels(samples)) * 10 ** (-margin_db / 20)
    change = hide(towards(torch.randn(samples.shape), levels), levels)
    for _ in range(iterations if name == "pgd_masked" else 0):
        gradient = classifier.loss_gradient(samples + change.numpy(), targets)
        step = towards(torch.from_numpy(gradient), levels)
        change = hide(change + STEP_SHARE * step, levels)
    return to_16_bit(samples + change.numpy())


def _rounded(samples: np.ndarray, change: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return changed segments as 16-bit samples, the change scaled down until rounding fits in.

    A segment so quiet that no change of 16-bit samples fits stays unchanged.
    """
    scale = np.ones(len(samples))
    for _ in range(ROUNDS):
        attacked = to_16_bit(samples + scale[:, None] * change)
        size = _norm(np.subtract(attacked, samples, dtype=np.float64))
        over = size > radius
        scale[over] *= radius[over] / size[over] * (1 - 1e-6)
    return np.where(over[:, None], samples, attacked)


def _norm(samples: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.asarray(samples, dtype=np.float64), axis=1)
