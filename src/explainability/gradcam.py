"""Class activation maps of spectrograms, through the library grad-cam."""

import contextlib
import copy
import io
from typing import NamedTuple

import numpy as np
import torch
from pytorch_grad_cam import (
    EigenCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RandomCAM,
    ScoreCAM,
    XGradCAM,
)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from src.models.cnn import GenreClassifierCNN, fold_batch_norm, norm_of
from src.runtime import device, fast_precision, memory_format, set_seed
from src.shards import in_shards

CAMS = {
    "gradcam": GradCAM,
    "hirescam": HiResCAM,
    "gradcam++": GradCAMPlusPlus,
    "layercam": LayerCAM,
    "xgradcam": XGradCAM,
    "eigencam": EigenCAM,
    "scorecam": ScoreCAM,
    "randomcam": RandomCAM,
}
TARGET_LAYER = "conv4_2"
BATCH_SIZE = 16
SCORECAM_BATCH_SIZE = 2  # it holds one masked copy of a segment for each of 256 channels


class Cam(NamedTuple):
    """A method of `CAMS`, the layer that it reads, and the seed of RandomCAM."""

    method: str
    layer: str
    seed: int


def explain(
    model: nn.Module,
    X: np.ndarray,
    targets: np.ndarray,
    target_layer: str = TARGET_LAYER,
    method: str = "gradcam",
    seed: int = 42,
) -> np.ndarray:
    """Return class activation maps of segments, each scaled from its minimum to its maximum.

    A map shows where the evidence lies, not how strong it is; a map without positive evidence is
    all zeros (see `is_empty`). `eigencam` does not depend on the target class. `randomcam`, a
    control, weights channels by the seed and the number of the shard of 64 segments.

    Parameters
    ----------
    X : (n, 128, 130) segments in [0, 1]
    targets : (n,) target classes, the genres that the maps explain
    target_layer : a convolution
    method : one of `CAMS`

    Returns
    -------
    (n, 128, 130) float32 in [0, 1]

    Raises ValueError for an unknown method, a layer that is no convolution, a segment without
    target, or a genre that the model lacks (the library would return empty maps).

    Source: Selvaraju et al. 2017 for Grad-CAM; the library grad-cam for all.
    """
    cam = Cam(method, target_layer, seed)
    _check(model, X, targets, cam)
    if len(X) == 0:
        return np.zeros(np.shape(X), dtype=np.float32)
    return in_shards(method, _explain_shard, (X, targets), model, cam)


def is_empty(maps: np.ndarray) -> np.ndarray:
    """Return which maps (n, 128, 130) are all zeros: without positive evidence."""
    return ~maps.any(axis=(1, 2))


def flat(maps: np.ndarray) -> np.ndarray:
    """Return maps (n, 128, 130) as rows of cells (n, 16640); n may be 0."""
    return maps.reshape(len(maps), maps.shape[1] * maps.shape[2])


def _explain_shard(
    number: int, X: np.ndarray, targets: np.ndarray, model: nn.Module, cam: Cam
) -> np.ndarray:
    """Return the maps of one shard of segments, by the library on a frozen copy of the model.

    Gradients begin at the target layer's output: the library goes back to the input, which costs
    twice the forward pass and yields the same maps. The library's own `with` block would hide
    IndexErrors. Score-CAM, one forward pass per channel, runs in fast precision and without its
    progress bar per segment.
    """
    set_seed(cam.seed, number)
    network = frozen(model, cam.layer).to(device(), memory_format=memory_format())
    layer = network.get_submodule(cam.layer)
    layer.register_forward_hook(_begin_gradients)
    mapper = CAMS[cam.method](network, [layer])
    maps, size = np.zeros(np.shape(X), dtype=np.float32), BATCH_SIZE
    with contextlib.ExitStack() as stack:
        stack.callback(mapper.activations_and_grads.release)  # its hooks
        if cam.method == "scorecam":
            size = SCORECAM_BATCH_SIZE
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            stack.enter_context(fast_precision())
        for start in range(0, len(X), size):
            rows = slice(start, start + size)
            batch = torch.from_numpy(np.array(X[rows], dtype=np.float32))[:, None].to(device())
            classes = [ClassifierOutputTarget(int(target)) for target in targets[rows]]
            maps[rows] = mapper(batch, classes)
    return maps


def frozen(model: nn.Module, target_layer: str) -> nn.Module:
    """Return an evaluation copy without gradients for weights, its batch norms folded.

    The target layer keeps its own, because folding changes its output and thus the map.
    """
    plain = copy.deepcopy(model).eval().requires_grad_(False)
    if not isinstance(model, GenreClassifierCNN):
        return plain
    folded = fold_batch_norm(plain)
    for name in (target_layer, norm_of(target_layer)):
        setattr(folded, name, plain.get_submodule(name))
    return folded


def _begin_gradients(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    """Let gradients reach a layer's output and nothing before it."""
    return output.detach().float().requires_grad_()


def _check(model: nn.Module, X: np.ndarray, targets: np.ndarray, cam: Cam) -> None:
    """Raise ValueError where the library would fail, or return empty maps."""
    if cam.method not in CAMS:
        raise ValueError(f"Method {cam.method} is unknown: give one of {', '.join(CAMS)}.")
    if len(targets) != len(X):
        raise ValueError(
            f"{len(targets)} targets for {len(X)} segments: give one genre number per segment."
        )
    n_genres = model.output.out_features
    unknown = [int(target) for target in targets if not 0 <= target < n_genres]
    if unknown:
        raise ValueError(
            f"Genre {unknown[0]} cannot be explained: the model's genres are 0 to {n_genres - 1}."
        )
    layers = [layer for layer, part in model.named_modules() if isinstance(part, nn.Conv2d)]
    if cam.layer not in layers:
        raise ValueError(
            f"TARGET_LAYER={cam.layer} is no convolution of the model: give one of "
            f"{', '.join(layers)}."
        )
