"""Networks from outside this repository, given as `package.module:function`.

One whose attribute `takes_samples` is true maps samples to logits, any other log-mels.
"""

import importlib
import inspect
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import nn

from src.data.features import N_FRAMES, N_MELS, SEGMENT_SAMPLES
from src.runtime import device

REMEDY = (
    "it must map log-mels (n, 1, 128, 130) in [0, 1] or, with takes_samples = True, samples "
    "(n, 66150) to logits (n, n_genres), differentiably."
)
NAMING = (
    "give package.module:function of a module that lies below the repository's root or is "
    "installed, and of a name in it."
)


class OwnNetwork(nn.Module):
    """A function from log-mels or samples to logits, as attacks and evaluation take it."""

    def __init__(self, function: Callable, n_genres: int):
        super().__init__()
        self.function, self.takes_samples = function, takes_samples(function)
        self.output = SimpleNamespace(out_features=n_genres)  # as that of GenreClassifierCNN

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of log-mels (n, 1, 128, 130), or of samples with axes of length one."""
        return self.function(x.flatten(1) if self.takes_samples else x)


def takes_samples(model: Callable) -> bool:
    """Return whether a network maps samples (n, 66150) to logits, without log-mels."""
    return getattr(model, "takes_samples", False) is True


def load_own(name: str, n_genres: int) -> OwnNetwork:
    """Return the network that `package.module:function` is or, called without arguments, returns.

    Raises ValueError, in one sentence, if it cannot be imported, fails, has other outputs than
    finite logits (n, n_genres), or no gradient with respect to its input.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # of code that is not ours
        found = f"cannot be imported ({type(error).__name__}: {error})"
        raise _refused(name, found, NAMING) from error
    if not callable(found):
        raise _refused(name, f"is no function and no network but {type(found).__name__}", NAMING)
    if not isinstance(found, nn.Module):
        try:
            found = found if _required(found) else found()
        except Exception as error:  # of code that is not ours
            raise _refused(name, f"fails when called ({type(error).__name__}: {error})") from error
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
    shape = (2, SEGMENT_SAMPLES) if model.takes_samples else (2, 1, N_MELS, N_FRAMES)
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
    if logits.min() >= 0 and torch.allclose(logits.sum(dim=1), torch.ones(2, device=x.device)):
        raise _refused(name, "returns probabilities, behind which gradients vanish")
    slope = None
    if logits.requires_grad:
        (slope,) = torch.autograd.grad(logits.sum(), x, allow_unused=True)
    if slope is None:
        raise _refused(name, "has no gradient with respect to its input")


def _refused(name: str, found: str, remedy: str = REMEDY) -> ValueError:
    """Return the error about a network that cannot be evaluated."""
    return ValueError(f"{name} {' '.join(found.split())}: {remedy}")
