"""Attack on the explanation: the same prediction with the same probability, another map.

Gradients of maps need second derivatives, which a network of ReLUs does not have: the search runs
on a copy with softplus in their place, and the network itself decides what counts. Sources:
Ghorbani et al. 2019, arXiv 1710.10547; Dombrowski et al. 2019, arXiv 1906.07983.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from src.explainability.attributions import Subject
from src.explainability.gradcam import frozen
from src.models.evaluation import predict_logits, softmax
from src.runtime import device, memory_format, set_seed
from src.shards import in_shards

MANIPULATED = ("gradcam", "hirescam", "integrated_gradients")
TOLERANCE = 0.05  # largest change of the predicted genre's probability
PENALTY = 10  # of a change beyond half of that, where a correlation is at most 1
SHARPNESS = 30.0  # of softplus: it departs from ReLU by at most log(2) / 30
PATH_POINTS = 4  # of integrated gradients in the search
STEP_SHARE = 0.1  # of eps
BATCH_SIZE = 16


class Job(NamedTuple):
    """The part of the search that is the same for all shards."""

    subject: Subject
    method: str
    eps: float
    iterations: int


def manipulate(
    subject: Subject, method: str, X: np.ndarray, targets: np.ndarray, eps: float, iterations: int
) -> np.ndarray:
    """Return segments whose maps differ most while prediction and probability stay.

    Parameters
    ----------
    method : one of `MANIPULATED`
    X : (n, 128, 130) segments in [0, 1]
    targets : (n,) predicted genres, which the maps explain
    eps : largest change of a bin, as a share of the range
    iterations : steps of eps / 10 that lower the correlation with the clean map

    Returns
    -------
    (n, 128, 130) float32 in [0, 1]. The prediction is the same, its probability differs by at most
    `TOLERANCE`; a segment for which the search finds no such change is returned as it is.
    """
    X = np.array(X, dtype=np.float32)
    job = Job(subject, method, eps, iterations)
    return in_shards("manipulate", _manipulate_shard, (X, targets), job) if len(X) else X


def same_prediction(
    model: nn.Module, X: np.ndarray, changed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return whether predictions (n,) stay, and the change (n,) of their probability."""
    before, after = (softmax(predict_logits(model, x)) for x in (X, changed))
    rows, predicted = np.arange(len(X)), before.argmax(axis=1)
    change = after[rows, predicted] - before[rows, predicted]
    return after.argmax(axis=1) == predicted, change


def _manipulate_shard(number: int, X: np.ndarray, targets: np.ndarray, job: Job) -> np.ndarray:
    """Return the manipulated segments of one shard."""
    set_seed(job.subject.seed, number)
    model = _smooth(job.subject)
    batches = [slice(k, k + BATCH_SIZE) for k in range(0, len(X), BATCH_SIZE)]
    return np.concatenate([_search(model, X[rows], targets[rows], job) for rows in batches])


def _search(model: nn.Module, X: np.ndarray, targets: np.ndarray, job: Job) -> np.ndarray:
    """Return the best of all steps for each segment of a batch."""
    x = torch.from_numpy(X)[:, None].to(device())
    rows, low, high = np.arange(len(X)), (x - job.eps).clamp(min=0), (x + job.eps).clamp(max=1)
    clean, logits = (part.detach() for part in _map(model, x.requires_grad_(), targets, job))
    clean_p = logits.softmax(1)[rows, targets]
    moved = x.detach() + job.eps * (2 * torch.rand_like(x) - 1)
    found, lowest = X.copy(), np.ones(len(X))
    for _ in range(job.iterations + 1):
        moved = moved.detach().clamp(low, high).requires_grad_()
        heat, logits = _map(model, moved, targets, job)
        correlation = _correlation(heat, clean)
        change = (logits.softmax(1)[rows, targets] - clean_p).abs()
        loss = correlation + PENALTY * (change - TOLERANCE / 2).clamp(min=0)
        (gradient,) = torch.autograd.grad(loss.sum(), moved)
        tried = moved.detach()[:, 0].cpu().numpy()
        kept, change = same_prediction(job.subject.model, X, tried)
        value = np.where(kept & (np.abs(change) <= TOLERANCE), correlation.detach().cpu(), np.inf)
        better = value < lowest
        found[better], lowest[better] = tried[better], value[better]
        moved = moved - STEP_SHARE * job.eps * gradient.sign()
    return found


def _map(
    model: nn.Module, x: torch.Tensor, targets: np.ndarray, job: Job
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return differentiable maps of a batch (n, 1, 128, 130) and its logits."""
    if job.method == "integrated_gradients":
        return _integrated_gradients(model, x, targets, job.subject.background)
    held = []
    layer = model.get_submodule(job.subject.layer)
    hook = layer.register_forward_hook(lambda _module, _inputs, output: held.append(output))
    logits = model(x)
    hook.remove()
    gradient = _gradient(logits, targets, held[0])
    if job.method == "gradcam":
        gradient = gradient.mean(dim=(2, 3), keepdim=True)
    return (gradient * held[0]).sum(dim=1).clamp(min=0), logits


def _integrated_gradients(
    model: nn.Module, x: torch.Tensor, targets: np.ndarray, background: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return integrated gradients of few points, the last of which is the segment itself."""
    start = torch.from_numpy(background).to(x)
    total = torch.zeros_like(x)
    for k in range(1, PATH_POINTS + 1):
        point = start + k / PATH_POINTS * (x - start)
        logits = model(point)
        total = total + _gradient(logits, targets, point)
    return ((x - start) * total)[:, 0].clamp(min=0), logits


def _gradient(logits: torch.Tensor, targets: np.ndarray, of: torch.Tensor) -> torch.Tensor:
    score = logits[np.arange(len(targets)), targets].sum()
    return torch.autograd.grad(score, of, create_graph=True)[0]


def _correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the correlation (n,) of maps; 1, which is no success, where one is constant."""
    a, b = (maps.flatten(1) - maps.flatten(1).mean(1, keepdim=True) for maps in (first, second))
    spread = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(spread > 0, (a * b).sum(1) / spread.clamp(min=1e-12), 1)


def _smooth(subject: Subject) -> nn.Module:
    """Return a frozen copy of the model with softplus in place of ReLU."""
    model = frozen(subject.model, subject.layer).to(device(), memory_format=memory_format())
    model.relu = nn.Softplus(beta=SHARPNESS)
    return model
