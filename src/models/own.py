"""Networks from outside this repository, given as `package.module:function`."""

import importlib
import inspect
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import nn

from src.data.features import N_FRAMES, N_MELS
from src.runtime import device

REMEDY = "it must map log-mels (n, 1, 128, 130) in [0, 1] to logits (n, n_genres)"


class OwnNetwork(nn.Module):
    """A function from log-mels (n, 1, 128, 130) to logits, as attacks and evaluation take it."""

    def __init__(self, function: Callable, n_genres: int):
        super().__init__()
        self.function = function
        self.output = SimpleNamespace(out_features=n_genres)  # as that of GenreClassifierCNN

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, n_genres)."""
        return self.function(x)


def load_own(name: str, n_genres: int) -> OwnNetwork:
    """Return the network that `package.module:function` is or, called without arguments, returns.

    Raises ValueError, in one sentence, if it cannot be imported, fails, has other outputs than
    finite logits (n, n_genres), or no gradient with respect to its input.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
        if not isinstance(found, nn.Module) and not _required(found):
            found = found()
    except Exception as error:  # of code that is not ours
        raise _refused(name, f"cannot be imported ({type(error).__name__}: {error})") from error
    model = OwnNetwork(found, n_genres).eval().to(device())
    _check(name, model, n_genres)
    return model


def _required(function: Callable) -> list[str]:
    """Return the names of the arguments that a function cannot be called without."""
    parameters = inspect.signature(function).parameters.values()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]


def _check(name: str, model: OwnNetwork, n_genres: int) -> None:
    """Raise ValueError if a network fails on two segments, or attacks cannot use its outputs."""
    shape = (2, 1, N_MELS, N_FRAMES)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device()).requires_grad_()
    try:
        logits = model(x)
        found = tuple(logits.shape)
    except Exception as error:  # of code that is not ours
        raise _refused(name, f"fails ({type(error).__name__}: {error})") from error
    if found != (2, n_genres):
        raise _refused(name, f"returns {found} for two segments, not (2, {n_genres})")
    if not torch.isfinite(logits).all():
        raise _refused(name, "returns numbers that are not finite")
    slope = None
    if logits.requires_grad:
        (slope,) = torch.autograd.grad(logits.sum(), x, allow_unused=True)
    if slope is None:
        raise _refused(name, "has no gradient with respect to its input")


def _refused(name: str, found: str) -> ValueError:
    """Return the error about a network that cannot be evaluated."""
    return ValueError(f"{name} {' '.join(found.split())}: {REMEDY}, differentiably.")
