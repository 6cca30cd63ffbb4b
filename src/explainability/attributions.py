"""Saliency maps by name: class activation maps, integrated gradients, and controls."""

import copy
from typing import NamedTuple

import numpy as np
import torch
from captum.attr import IntegratedGradients
from scipy.ndimage import gaussian_filter
from torch import nn

from src.data.segments import Segments
from src.explainability.gradcam import CAMS, TARGET_LAYER, explain
from src.models.evaluation import predict_logits
from src.runtime import device, fast_precision, memory_format
from src.shards import in_shards

CONTROLS = ("randomcam", "frequency_prior", "blurred_random")
METHODS = (*(name for name in CAMS if name not in CONTROLS), "integrated_gradients")
SLOW_METHODS = ("scorecam", "integrated_gradients")  # seconds per map
REFERENCE_SEGMENTS = 80  # behind the prototypes of all genres
RANDOM_CONTROLS, DRAWS = ("randomcam", "blurred_random"), 10
BLUR_BINS = 8  # a cell of the last convolution covers 8 x 8 bins
STEPS = 16  # of the path of integrated gradients
BATCH_SIZE = 32


class Subject(NamedTuple):
    """A model to explain, and the references of its maps.

    `layer` is the target of class activation maps, `seed` that of random maps. `prototypes`
    (n_genres, 128, 130) are the mean maps of the genres over training segments, `background`
    (128, 130) the mean level of each band: a spectrogram without evidence.
    """

    name: str
    model: nn.Module
    layer: str
    seed: int
    prototypes: np.ndarray
    background: np.ndarray


def make_subject(
    name: str,
    model: nn.Module,
    reference: Segments,
    seed: int = 42,
    layer: str = TARGET_LAYER,
) -> Subject:
    """Return a model with its prototypes, from segments of the training split `reference`.

    Genres take turns, and the tracks of each. Misclassified segments do not count; a genre without
    a correct one has a prototype of zeros.
    """
    drawn = reference.sample_genres(REFERENCE_SEGMENTS, seed)
    X, y = drawn.X, drawn.y
    correct = predict_logits(model, X).argmax(axis=1) == y
    maps = explain(model, X[correct], y[correct], layer)
    prototypes = np.zeros((model.output.out_features, *X.shape[1:]), dtype=np.float32)
    for genre in np.unique(y[correct]):
        prototypes[genre] = scaled(maps[y[correct] == genre].mean(axis=0)[None])[0]
    background = np.repeat(X.mean(axis=(0, 2))[:, None], X.shape[2], axis=1)
    return Subject(name, model, layer, seed, prototypes, background)


def attribute(subject: Subject, method: str, X: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the maps of segments for target classes, by any of `METHODS` and `CONTROLS`.

    Two controls do not depend on the segment: `frequency_prior` is the prototype of the target
    class, `blurred_random` smooth noise, the same for segments in the same place.

    Parameters
    ----------
    X : (n, 128, 130) segments; n may be 0
    targets : (n,) genre numbers

    Returns
    -------
    (n, 128, 130) float32 in [0, 1]
    """
    if len(X) == 0:
        return np.zeros(np.shape(X), dtype=np.float32)
    if method == "integrated_gradients":
        return integrated_gradients(subject.model, X, targets, subject.background)
    if method == "frequency_prior":
        return subject.prototypes[targets]
    if method == "blurred_random":
        return blurred_random(np.shape(X), subject.seed)
    return explain(subject.model, X, targets, subject.layer, method, subject.seed)


def draws(subject: Subject, method: str, X: np.ndarray, targets: np.ndarray) -> list[np.ndarray]:
    """Return the maps of `attribute`; of a random control those of ten seeds."""
    seeds = range(subject.seed, subject.seed + (DRAWS if method in RANDOM_CONTROLS else 1))
    return [attribute(subject._replace(seed=seed), method, X, targets) for seed in seeds]


def integrated_gradients(
    model: nn.Module, X: np.ndarray, targets: np.ndarray, background: np.ndarray
) -> np.ndarray:
    """Return the positive integrated gradients (n, 128, 130) of segments, each scaled to [0, 1].

    The path leads from `background` (128, 130) to the segment. Silence is no baseline here: the
    model standardizes each spectrogram, so that a straight path from a constant looks the same to
    it all along. Gradients in fast precision. Source: Sundararajan et al. 2017, library Captum.
    """
    return in_shards("integrated_gradients", _integrate_shard, (X, targets), model, background)


def blurred_random(shape: tuple, seed: int) -> np.ndarray:
    """Return maps of white noise (n, 128, 130) blurred to the grain of the last convolution."""
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return scaled(gaussian_filter(noise, (0, BLUR_BINS, BLUR_BINS)))


def scaled(maps: np.ndarray) -> np.ndarray:
    """Return maps (n, 128, 130), each scaled from its minimum to its maximum; constants are 0."""
    low = maps.min(axis=(1, 2), keepdims=True)
    span = maps.max(axis=(1, 2), keepdims=True) - low
    return ((maps - low) / np.where(span > 0, span, 1)).astype(np.float32)


def _integrate_shard(_number: int, X, targets, model, background) -> np.ndarray:
    """Return the integrated gradients of one shard of segments."""
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    frozen = frozen.to(device(), memory_format=memory_format())
    start = torch.from_numpy(np.array(background, dtype=np.float32))[None, None].to(device())
    with fast_precision():
        attributed = IntegratedGradients(frozen).attribute(
            torch.from_numpy(np.array(X, dtype=np.float32))[:, None].to(device()),
            start,
            target=[int(target) for target in targets],
            n_steps=STEPS,
            internal_batch_size=max(BATCH_SIZE, len(X)),
        )
    return scaled(attributed[:, 0].clamp(min=0).float().cpu().numpy())
