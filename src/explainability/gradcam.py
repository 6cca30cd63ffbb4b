"""Class activation maps of spectrograms, through the library grad-cam."""

import numpy as np
import pandas as pd
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from tqdm.auto import tqdm

from src.models.cnn import GenreClassifierCNN
from src.runtime import device, keep_freed_memory

TARGET_LAYER = "conv4_2"
BATCH_SIZE = 64


def explain(
    model: GenreClassifierCNN,
    X: np.ndarray,
    targets: np.ndarray,
    target_layer: str = TARGET_LAYER,
) -> np.ndarray:
    """Return Grad-CAM maps (n, 128, 130) float32 in [0, 1] of segments (n, 128, 130).

    `targets` (n,) are the genre numbers that the maps explain: the true or the predicted ones,
    which differ under attack. Each map is scaled from its own minimum to its maximum: it
    tells where, not how strongly; a map without positive evidence is all zeros (see `is_empty`).
    Source: Selvaraju et al. 2017, library grad-cam. Raises ValueError if there is not one target
    for each segment or the network has no such genre (the library would return empty maps).
    """
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
    keep_freed_memory()
    model = model.eval().to(device()).requires_grad_(True)
    maps = np.zeros(np.shape(X), dtype=np.float32)
    with GradCAM(model, [model.get_submodule(target_layer)]) as cam:
        for start in tqdm(range(0, len(X), BATCH_SIZE), desc="Grad-CAM", leave=False):
            rows = slice(start, start + BATCH_SIZE)
            batch = torch.from_numpy(np.array(X[rows], dtype=np.float32))[:, None].to(device())
            classes = [ClassifierOutputTarget(int(target)) for target in targets[rows]]
            maps[rows] = cam(batch, classes)
    return maps


def is_empty(maps: np.ndarray) -> np.ndarray:
    """Tell which maps (n, 128, 130) are all zeros: nothing in them speaks for their genre."""
    return ~maps.any(axis=(1, 2))


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
