"""Faithfulness of maps to the model: insertion, deletion, ROAD, cascading randomization."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from pytorch_grad_cam.metrics.road import ROADCombined
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torch import nn

from src.explainability.gradcam import flat, is_empty
from src.models.cnn import DENSE, WIDTHS, GenreClassifierCNN, norm_of
from src.models.evaluation import predict_logits, softmax
from src.runtime import device, set_seed

FRACTIONS = (0, 0.05, 0.15, 0.35, 0.65, 1)  # of the cells
PERCENTILES = (50,)  # of ROAD: half of the cells are imputed; each costs two sparse systems per map
CURVES = ("insertion", "deletion")
LAYERS = (  # in the order of randomization
    "output",
    *(f"dense{k}" for k in range(len(DENSE), 0, -1)),
    *(f"conv{block}_{conv}" for block in range(len(WIDTHS), 0, -1) for conv in (2, 1)),
)
RANDOMIZED_METHODS = ("gradcam", "hirescam", "eigencam")  # whose maps are tested


def confidence(model: nn.Module):
    """Return a function from segments (n, 128, 130) and genres (n,) to probabilities (n,)."""
    return lambda X, targets: softmax(predict_logits(model, X))[np.arange(len(X)), targets]


def curves(
    score, X: np.ndarray, targets: np.ndarray, maps: np.ndarray, background: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Return the scores after insertion and after deletion of the cells, highest first.

    Insertion puts the cells of a segment into the background, deletion those of the background
    into the segment. Equal cells of a map come in random order. Source: Petsiuk et al. 2018,
    arXiv 1806.07421.

    Parameters
    ----------
    score : function of segments and targets, such as `confidence(model)`
    X, maps : (n, 128, 130) segments and their maps
    targets : (n,) genre numbers
    background : (128, 130) a spectrogram without evidence

    Returns
    -------
    (n, len(FRACTIONS)) for each of `CURVES`; NaN for empty maps
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
    """Return ROAD (n,): the probability after removing the lowest cells less the highest, halved.

    Removed cells are imputed from their neighbours, which favours smooth maps: compare with
    `blurred_random`. NaN for empty maps. Source: Rong et al. 2022, library grad-cam.
    """
    set_seed(seed)
    batch = torch.from_numpy(np.array(X, dtype=np.float32))[:, None].to(device())
    classes = [ClassifierOutputSoftmaxTarget(int(target)) for target in targets]
    values = ROADCombined(list(PERCENTILES))(batch, maps, classes, model.eval())
    return np.where(is_empty(maps), np.nan, values)


def above_control(
    values: dict[str, np.ndarray], control: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return by how much a method is more faithful than a control, segment by segment.

    Both have `insertion`, `deletion` and `road` (n,). Positive if the method is more faithful: the
    sign of deletion, where lower is better, is reversed.
    """
    signs = {"insertion": 1, "deletion": -1, "road": 1}
    return {name: sign * (values[name] - control[name]) for name, sign in signs.items()}


def randomized(model: GenreClassifierCNN, seed: int) -> Iterator[tuple[str, GenreClassifierCNN]]:
    """Yield the name of each layer and a model whose weights are random from there to the output.

    A method whose maps do not change shows the spectrogram, not the model. The layer's batch norm
    is reset with it; the layers before keep their trained weights. Source: Adebayo et al. 2018,
    arXiv 1810.03292.
    """
    changed = copy.deepcopy(model)
    for number, name in enumerate(LAYERS):
        set_seed(seed, number)  # whatever is drawn in between: kept maps draw nothing
        for part in (name, norm_of(name)):
            changed.get_submodule(part).reset_parameters()
        yield name, copy.deepcopy(changed)


def _ranks(maps: np.ndarray, seed: int) -> np.ndarray:
    """Return each cell's place in its map (n, 128, 130), 0 the highest; ties at random."""
    cells = flat(maps)
    ties = np.random.default_rng(seed).random(cells.shape)
    order = np.lexsort((ties, -cells), axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(cells.shape[1])[None], axis=1)
    return ranks.reshape(maps.shape)
