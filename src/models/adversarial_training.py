"""Adversarial training: attacks on inputs and weights, and the robustness reached so far."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from src.data.segments import SegmentDataset
from src.models.cnn import fold_batch_norm
from src.runtime import device, fast_precision, memory_format

SINGLE_STEP, MULTI_STEP = 1.25, 0.5  # step size, of eps
MEASURED_SEGMENTS, MEASURED_STEPS, MEASURED_BATCH = 200, 10, 25
OVERFITTING_GAP = 0.2
SMALLEST = 1e-12  # norm of a gradient


def perturb(
    model: nn.Module, X: torch.Tensor, y: torch.Tensor, eps: float, steps: int
) -> torch.Tensor:
    """Return segments (n, 1, 128, 130) in [0, 1] attacked within `eps` from a random start.

    One step of 1.25 eps (Wong et al. 2020) or several of eps / 2 (Madry et al. 2018). The network
    is in eval mode meanwhile: its batch norms are those of evaluation and are not updated. The
    caller sets train mode again. `y` are genre numbers (n,) or probabilities (n, n_genres).
    """
    model.eval()
    size = eps * (SINGLE_STEP if steps == 1 else MULTI_STEP)
    change = torch.empty_like(X).uniform_(-eps, eps)
    for _ in range(steps):
        attacked = (X + change).clamp(0, 1).requires_grad_()
        with fast_precision():
            logits = model(attacked).float()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y), attacked)
        change = (attacked.detach() - X + size * gradient.sign()).clamp(-eps, eps)
    return (X + change).clamp(0, 1).detach()


@contextmanager
def perturbed_weights(
    model: nn.Module, X: torch.Tensor, y: torch.Tensor, size: float
) -> Iterator[None]:
    """Move weights to where the loss of a batch is higher, and back afterwards.

    Each matrix or kernel moves along its gradient by `size` of its own norm; biases and batch norms
    stay. Gradients taken inside lead to flat minima. The direction is found in eval mode; the
    caller sets train mode. Source: adversarial weight perturbation, Wu et al. 2020, arXiv
    2004.05884.
    """
    if not size:
        yield
        return
    weights = [weight for weight in model.parameters() if weight.ndim > 1]
    model.eval()
    with fast_precision():
        logits = model(X).float()
    gradients = torch.autograd.grad(nn.functional.cross_entropy(logits, y), weights)
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.add_(size * weight.norm() * gradient / gradient.norm().clamp_min(SMALLEST))
    yield
    with torch.no_grad():
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)


def measure(model: nn.Module, train: Dataset, val: SegmentDataset, eps: float) -> dict:
    """Return accuracies under the single step and under PGD on 200 validation segments.

    `train_robust_accuracy` is that under PGD on 200 training segments or crops, without other
    changes: above the one on validation segments it shows robust overfitting. PGD attacks the
    segments that the single step has left. An empty dict for eps = 0. Training shows these values;
    notebook 4 evaluates the model.
    """
    if not eps:
        return {}
    on_train = _accuracies(model, train, eps)["robust_accuracy"]
    return _accuracies(model, val, eps) | {"train_robust_accuracy": on_train}


def _accuracies(model: nn.Module, data: Dataset, eps: float) -> dict:
    """Return accuracy under the single step and under PGD on segments evenly from `data`."""
    n = min(MEASURED_SEGMENTS, len(data))
    rows = np.linspace(0, len(data) - 1, n).astype(int)
    folded = fold_batch_norm(model).to(memory_format=memory_format())
    correct = {"single_step_accuracy": 0, "robust_accuracy": 0}
    for some in np.array_split(rows, -(-n // MEASURED_BATCH)):
        X, y = (part.to(device()) for part in data.__getitems__(some.tolist()))
        for name, steps in zip(correct, (1, MEASURED_STEPS), strict=True):
            attacked = perturb(folded, X, y, eps, steps)
            with torch.no_grad(), fast_precision():
                left = folded(attacked).argmax(dim=1) == y
            X, y = X[left], y[left]
            correct[name] += len(y)
    return {name: number / n for name, number in correct.items()}


def overfitted_epochs(history: list[dict]) -> list[int]:
    """Return the epochs (from 1) that are robust to one step and not to several (overfitting)."""
    gaps = [epoch["single_step_accuracy"] - epoch["robust_accuracy"] for epoch in history]
    return [number for number, gap in enumerate(gaps, start=1) if gap > OVERFITTING_GAP]
