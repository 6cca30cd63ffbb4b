"""Does the network need what a map marks? Cells are taken away or put in, in the map's order."""

import numpy as np
import torch
from pytorch_grad_cam.metrics.road import ROADCombined
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torch import nn

from src.explainability.gradcam import flat, is_empty
from src.models.evaluation import predict_logits, softmax
from src.runtime import device, set_seed

FRACTIONS = (0, 0.05, 0.15, 0.35, 0.65, 1)  # of the cells
PERCENTILES = (50,)  # of ROAD: half of the cells are imputed; each costs two sparse systems a map
CURVES = ("insertion", "deletion")


def confidence(model: nn.Module):
    """Return a function giving the probability (n,) of genres (n,) for segments (n, 128, 130)."""
    return lambda X, targets: softmax(predict_logits(model, X))[np.arange(len(X)), targets]


def curves(
    score, X: np.ndarray, targets: np.ndarray, maps: np.ndarray, background: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Return the score (n, len(FRACTIONS)) after insertion and after deletion, highest cells first.

    Insertion puts the cells of a segment into `background` (128, 130), deletion puts those of the
    background into the segment; equal cells of a map come in random order. NaN for empty maps.
    Source: Petsiuk et al. 2018, arXiv 1806.07421.
    """
    ranks, empty = _ranks(maps, seed), is_empty(maps)
    whole = score(X, targets)
    nothing = score(np.broadcast_to(background, X.shape), targets)
    insertion, deletion = [nothing], [whole]
    for fraction in FRACTIONS[1:-1]:
        marked = ranks < round(fraction * maps.shape[1] * maps.shape[2])
        insertion.append(score(np.where(marked, X, background), targets))
        deletion.append(score(np.where(marked, background, X), targets))
    found = zip(CURVES, ([*insertion, whole], [*deletion, nothing]), strict=True)
    return {k: np.where(empty[:, None], np.nan, np.stack(v, axis=1)) for k, v in found}


def areas(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the area (n,) under each curve over the fraction of cells, for scores in [0, 1]."""
    return {name: np.trapezoid(values, FRACTIONS, axis=1) for name, values in scores.items()}


def road(
    model: nn.Module, X: np.ndarray, targets: np.ndarray, maps: np.ndarray, seed: int
) -> np.ndarray:
    """Return ROAD (n,): what losing the lowest cells leaves more than losing the highest, halved.

    In probability of the target; lost cells are imputed from their neighbours. It favours smooth
    maps: compare with `blurred_random`. NaN for empty maps. Source: Rong et al. 2022, grad-cam.
    """
    set_seed(seed)
    batch = torch.from_numpy(np.array(X, dtype=np.float32))[:, None].to(device())
    classes = [ClassifierOutputSoftmaxTarget(int(target)) for target in targets]
    values = ROADCombined(list(PERCENTILES))(batch, maps, classes, model.eval())
    return np.where(is_empty(maps), np.nan, values)


def above_controls(
    values: dict[str, np.ndarray], controls: dict[str, dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return by how much a method is more faithful than each control, clip by clip.

    `values` has `insertion`, `deletion` or `road` (n,) of the method, `controls` those of each
    control. Deletion is turned round: what falls faster is more faithful.
    """
    signs = {"insertion": 1, "deletion": -1, "road": 1}
    return {
        f"{measure} above {name}": signs[measure] * (values[measure] - control[measure])
        for name, control in controls.items()
        for measure in values
        if measure in control
    }


def _ranks(maps: np.ndarray, seed: int) -> np.ndarray:
    """Return each cell's place in its map (n, 128, 130), 0 the highest; ties at random."""
    cells = flat(maps)
    ties = np.random.default_rng(seed).random(cells.shape)
    order = np.lexsort((ties, -cells), axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(cells.shape[1])[None], axis=1)
    return ranks.reshape(maps.shape)
