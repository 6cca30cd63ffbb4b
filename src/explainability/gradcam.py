"""Class activation maps of spectrograms, through the library grad-cam."""

import contextlib
import copy
import io

import numpy as np
import pandas as pd
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


def explain(
    model: nn.Module,
    X: np.ndarray,
    targets: np.ndarray,
    target_layer: str = TARGET_LAYER,
    method: str = "gradcam",
    seed: int = 42,
) -> np.ndarray:
    """Return maps (n, 128, 130) float32 in [0, 1] of segments (n, 128, 130).

    `targets` (n,) are the genre numbers that the maps explain: the true or the predicted ones,
    which differ under attack. `method` is one of `CAMS`; `eigencam` looks at no genre, and
    `randomcam`, a control, weights channels by `seed` (the same for segments in the same place).
    What is random is drawn for each shard of 64 segments from the seed and the shard's number.
    Each map is scaled from its own minimum to its maximum: it tells where, not how strongly; a map
    without positive evidence is all zeros (see `is_empty`). Source: Selvaraju et al. 2017 for
    Grad-CAM, the library grad-cam for all. Raises ValueError for an unknown method, if there is
    not one target for each segment, or if the network has no such genre (the library would return
    empty maps).
    """
    _check(model, X, targets, method)
    if len(X) == 0:
        return np.zeros(np.shape(X), dtype=np.float32)
    return in_shards(method, _explain_shard, (X, targets), model, target_layer, method, seed)


def is_empty(maps: np.ndarray) -> np.ndarray:
    """Tell which maps (n, 128, 130) are all zeros: nothing in them speaks for their genre."""
    return ~maps.any(axis=(1, 2))


def flat(maps: np.ndarray) -> np.ndarray:
    """Return maps (n, 128, 130) as rows of cells (n, 16640), also if there are none."""
    return maps.reshape(len(maps), maps.shape[1] * maps.shape[2])


def correct_examples(
    y: np.ndarray, probabilities: np.ndarray, tracks: np.ndarray, per_genre: int
) -> np.ndarray:
    """Return rows of the most confident correct segments, `per_genre` of each genre.

    Of different tracks as far as there are any: the best segment of each track comes first.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    right = order[(predicted == y)[order]]
    repeated = pd.Series(tracks[right]).duplicated().to_numpy()
    right = right[np.argsort(repeated, kind="stable")]
    return np.concatenate([right[y[right] == k][:per_genre] for k in np.unique(y)])


def confident_failures(y: np.ndarray, probabilities: np.ndarray, n: int) -> np.ndarray:
    """Return rows of the `n` most confident natural failures, one of each confusion first."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    wrong = order[(predicted != y)[order]]
    pairs = pd.DataFrame({"true": y[wrong], "predicted": predicted[wrong]})
    repeated = pairs.duplicated().to_numpy()
    return wrong[np.argsort(repeated, kind="stable")][:n]


def map_records(
    category: str,
    segments: pd.DataFrame,
    true: np.ndarray,
    predicted: np.ndarray,
    explained: np.ndarray,
    maps: np.ndarray,
    eps: np.ndarray | float = 0.0,
) -> pd.DataFrame:
    """Return one row a map: clip, genre numbers, what it explains, eps, whether it is empty.

    `explains` is "true", "predicted" or "both"; `wrong` tells whether the prediction is wrong.
    """
    both = np.where(true == predicted, "both", np.where(explained == true, "true", "predicted"))
    return pd.DataFrame(
        {
            "category": category,
            "segment": segments["segment"].to_numpy(),
            "track": segments["track"].to_numpy(),
            "start_s": segments["start_s"].to_numpy(),
            "true": true,
            "predicted": predicted,
            "explained": explained,
            "explains": both,
            "eps": eps,
            "wrong": true != predicted,
            "empty": is_empty(maps),
        }
    )


def _explain_shard(
    number: int, X: np.ndarray, targets: np.ndarray, model, target_layer, method, seed
) -> np.ndarray:
    """Return the maps of one shard of segments."""
    set_seed(seed, number)
    maps = np.zeros(np.shape(X), dtype=np.float32)
    size = SCORECAM_BATCH_SIZE if method == "scorecam" else BATCH_SIZE
    with _mapper(model, target_layer, method) as cam:
        for start in range(0, len(X), size):
            rows = slice(start, start + size)
            batch = torch.from_numpy(np.array(X[rows], dtype=np.float32))[:, None].to(device())
            classes = [ClassifierOutputTarget(int(target)) for target in targets[rows]]
            maps[rows] = cam(batch, classes)
    return maps


@contextlib.contextmanager
def _mapper(model: nn.Module, target_layer: str, method: str):
    """Yield the library's object for a frozen copy of the network; release its hooks at the end.

    Gradients begin at the target layer's output. The library goes back to the input, which costs
    twice the way forward and yields the same maps. Its own `with` block would hide IndexErrors.
    Score-CAM, which asks the network once a channel, runs in bfloat16 and without its progress
    bar a segment.
    """
    frozen = _frozen(model, target_layer).to(device(), memory_format=memory_format())
    layer = frozen.get_submodule(target_layer)
    layer.register_forward_hook(_begin_gradients)
    cam = CAMS[method](frozen, [layer])
    quiet = (contextlib.redirect_stderr(io.StringIO()), fast_precision())
    try:
        with contextlib.ExitStack() as stack:
            for context in quiet if method == "scorecam" else ():
                stack.enter_context(context)
            yield cam
    finally:
        cam.activations_and_grads.release()


def _frozen(model: nn.Module, target_layer: str) -> nn.Module:
    """Return an evaluation copy without gradients for weights, its batch norms folded.

    The target layer keeps its own: folded, it would put out something else, and so would a map.
    """
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    if not isinstance(model, GenreClassifierCNN):
        return frozen
    folded = fold_batch_norm(frozen)
    for name in (target_layer, norm_of(target_layer)):
        setattr(folded, name, frozen.get_submodule(name))
    return folded


def _begin_gradients(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    """Let gradients reach a layer's output and nothing before it."""
    return output.detach().float().requires_grad_()


def _check(model: nn.Module, X: np.ndarray, targets: np.ndarray, method: str) -> None:
    """Raise ValueError for what the library would answer with empty maps or a bare KeyError."""
    if method not in CAMS:
        raise ValueError(f"{method} is no map known here: give one of {', '.join(CAMS)}.")
    if len(targets) != len(X):
        raise ValueError(
            f"{len(targets)} targets for {len(X)} segments: give one genre number a segment."
        )
    n_genres = model.output.out_features
    unknown = [int(target) for target in targets if not 0 <= target < n_genres]
    if unknown:
        raise ValueError(
            f"Genre {unknown[0]} cannot be explained: the network's genres are 0 to {n_genres - 1}."
        )
