"""Adversarial training: the attack inside the loop, and what it has achieved so far."""

import numpy as np
import torch
from torch import nn

from src.data.segments import SegmentDataset
from src.models.cnn import fold_batch_norm
from src.runtime import device, fast_precision, memory_format

SINGLE_STEP, MULTI_STEP = 1.25, 0.5  # step size, of eps
MEASURED_SEGMENTS, MEASURED_STEPS = 100, 10
OVERFITTING_GAP = 0.2


def perturb(
    model: nn.Module, X: torch.Tensor, y: torch.Tensor, eps: float, steps: int
) -> torch.Tensor:
    """Return segments (n, 1, 128, 130) in [0, 1] attacked within `eps` from a random start.

    One step of 1.25 eps (Wong et al. 2020) or several of eps / 2 (Madry et al. 2018). The network
    is in eval mode meanwhile, so that its batch norms are those it will be attacked with and learn
    nothing from the attack's way; the caller sets train mode again.
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


def measure(model: nn.Module, val: SegmentDataset, eps: float) -> dict:
    """Return accuracy under PGD and under the single step on a few validation segments.

    An empty dict for eps = 0. For watching and choosing epochs; what is reported comes from
    notebook 4.
    """
    if not eps:
        return {}
    rows = np.linspace(0, len(val) - 1, min(MEASURED_SEGMENTS, len(val))).astype(int)
    X, y = (part.to(device()) for part in val.__getitems__(rows.tolist()))
    folded = fold_batch_norm(model).to(memory_format=memory_format())
    steps = {"robust_accuracy": MEASURED_STEPS, "single_step_accuracy": 1}
    return {name: _accuracy(folded, perturb(folded, X, y, eps, n), y) for name, n in steps.items()}


def overfitted_epochs(history: list[dict]) -> list[int]:
    """Return the epochs (from 1) that are robust to one step and not to several (overfitting)."""
    gaps = [epoch["single_step_accuracy"] - epoch["robust_accuracy"] for epoch in history]
    return [number for number, gap in enumerate(gaps, start=1) if gap > OVERFITTING_GAP]


@torch.no_grad()
def _accuracy(model: nn.Module, X: torch.Tensor, y: torch.Tensor) -> float:
    """Return the accuracy of a network on one batch."""
    with fast_precision():
        return (model(X).argmax(dim=1) == y).float().mean().item()
