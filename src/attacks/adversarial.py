"""Attacks on log-mel spectrograms through the Adversarial Robustness Toolbox (ART).

Threat model: the attacker knows network and gradients (white box) and may change every bin of a
spectrogram in [0, 1] by at most `eps` (L-infinity), which is 80 * eps in dB. Gradients are
computed fast (batch norms folded, bfloat16), losses in float32; whether an attack succeeded is
judged by the float32 network alone. Attacks are made in fixed shards of 64 segments
(`src.shards`).
"""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import numpy as np
import pandas as pd
import torch
from art.attacks.evasion import (
    AutoProjectedGradientDescent,
    FastGradientMethod,
    ProjectedGradientDescent,
    SquareAttack,
)
from art.estimators.classification import PyTorchClassifier
from torch import nn

from src.attacks.blackbox import make_oracle
from src.attacks.records import make_records
from src.data.frontend import N_FRAMES, N_MELS
from src.models.cnn import GenreClassifierCNN, fold_batch_norm
from src.models.evaluation import predict_logits
from src.progress import progress
from src.runtime import device, fast_precision, memory_format, set_seed
from src.shards import SHARD, in_shards

EPSILONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
ITERATIONS = 40
STEP_SHARE = 0.25
TOLERANCE = 1e-6
BATCH_SIZE = SHARD


class FastGradients(nn.Module):
    """A frozen evaluation copy of a network: gradients in bfloat16, all else in float32.

    Attacks that compare losses (APGD) would take the rounding of bfloat16 for progress.
    """

    def __init__(self, model: GenreClassifierCNN):
        super().__init__()
        self.model = fold_batch_norm(model).to(device(), memory_format=memory_format())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, n_genres) of spectrograms (n, 1, n_mels, frames)."""
        with fast_precision() if x.requires_grad else nullcontext():
            return self.model(x).float()


def make_classifier(model: GenreClassifierCNN) -> PyTorchClassifier:
    """Return an ART classifier of the network, for the attacks' gradients."""
    return PyTorchClassifier(
        FastGradients(model),
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, N_MELS, N_FRAMES),
        nb_classes=model.output.out_features,
        clip_values=(0.0, 1.0),
        device_type="gpu" if device().type == "cuda" else "cpu",
    )


def attack(
    name: str,
    model: GenreClassifierCNN,
    X: np.ndarray,
    y: np.ndarray,
    eps: float | np.ndarray,
    iterations: int = ITERATIONS,
    seed: int = 42,
) -> np.ndarray:
    """Return attacked segments, float32 (n, 128, 130) in [0, 1] with |attacked - X| <= eps.

    `name` is one of METHODS: "fgsm" (Goodfellow et al. 2015), "pgd" and "pgd_targeted" (Madry et
    al. 2018; steps of eps / 4 from a random start), "apgd_ce" and "apgd_dlr" (Croce and Hein 2020,
    on cross-entropy and on the difference of logits ratio, which needs three genres) or "square"
    (Andriushchenko et al. 2020; without gradients, `iterations` are queries).
    `y` holds the true genre numbers, for "pgd_targeted" those to be reached. eps = 0 returns X
    unchanged; PGD takes one eps a segment too (n,) and then starts at the segment itself. For
    segments that it does not fool APGD returns where it started from, not its best point. What is
    random is drawn for each shard of 64 segments from the seed and the shard's number, so that it
    does not matter where the shards are computed (`src.workers`).
    Raises ValueError for an unknown name, an eps outside [0, 1] or no iterations, AssertionError
    if the attack broke its bounds.
    """
    if name not in METHODS:
        raise ValueError(f"{name} is not an attack known here: give one of {', '.join(METHODS)}.")
    if iterations < 1:
        raise ValueError(f"{iterations} iterations were asked for: give at least 1.")
    if not (np.all(np.greater_equal(eps, 0)) and np.all(np.less_equal(eps, 1))):
        raise ValueError(f"eps is {eps}: it must lie in [0, 1], where 0.01 is 0.8 dB.")
    X = np.array(X, dtype=np.float32)
    if np.all(np.equal(eps, 0)) or len(X) == 0:
        return X
    arrays = X, np.asarray(y), np.broadcast_to(eps, len(X))
    options = np.ndim(eps) > 0, name, model, iterations, seed
    attacked = in_shards(name, _attack_shard, arrays, *options)
    check_contract(X, attacked, eps)
    return attacked


def check_contract(X: np.ndarray, attacked: np.ndarray, eps: float | np.ndarray) -> None:
    """Raise AssertionError if attacked segments leave the ball, the range or the finite numbers.

    `eps` is one for all segments (n, 128, 130) or one each (n,).
    """
    largest = np.abs(attacked - X).max(axis=(1, 2))
    low, high = float(attacked.min()), float(attacked.max())
    if not (np.all(largest <= eps + TOLERANCE) and low >= 0 and high <= 1):
        raise AssertionError(
            f"The attack at eps = {eps} changed a bin by {largest.max()} and reached "
            f"[{low}, {high}]: it left its bounds or is not finite; its result is not used."
        )


def draw_segments(tracks: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return the sorted rows of `n` segments spread evenly over the tracks, at random within each.

    `tracks` (rows,) names each row's track. All rows if there are fewer than `n`.
    Raises ValueError if `n` is below 1 (or NaN) or there are no rows.
    """
    if not n >= 1:
        raise ValueError(f"{n} segments were asked for: give N_SEGMENTS of at least 1.")
    if len(tracks) == 0:
        raise ValueError("There are 0 segments to draw from: the split may be empty; widen it.")
    shuffled = pd.Series(tracks).sample(frac=1, random_state=seed)
    turn = shuffled.groupby(shuffled).cumcount()
    return np.sort(turn.sort_values(kind="stable").index[:n].to_numpy())


def sweep(
    name: str,
    model: GenreClassifierCNN,
    X: np.ndarray,
    segments: pd.DataFrame,
    y: np.ndarray,
    epsilons: tuple = EPSILONS,
    iterations: int = ITERATIONS,
    seed: int = 42,
) -> pd.DataFrame:
    """Attack segments at each eps; return one row a segment and eps.

    Only segments that the network gets right are attacked; the others count as wrong throughout,
    unchanged. With PGD a segment broken at a small eps is broken at each larger one, whose ball
    holds the smaller ball: it keeps its perturbation and is not attacked again. FGSM, whose step
    is eps itself, is made anew at each eps.
    The columns are those of `make_records`.
    """
    clean = predict_logits(model, X).argmax(axis=1)
    growing = attack_growing(name, model, X, y, epsilons, iterations, seed)
    rows = [
        make_records(name, eps, X, attacked, segments, y, clean, prediction)
        for eps, attacked, prediction in growing
    ]
    return pd.concat(rows, ignore_index=True)


def attack_growing(
    name: str,
    model: GenreClassifierCNN,
    X: np.ndarray,
    y: np.ndarray,
    epsilons: tuple = EPSILONS,
    iterations: int = ITERATIONS,
    seed: int = 42,
) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """Yield eps, attacked segments and predicted genres, the smallest eps first.

    Which segments are attacked at which eps is told in `sweep`. The arrays are used again for the
    next eps: copy what is to be kept. Raises ValueError without epsilons.
    """
    if len(epsilons) == 0:
        raise ValueError("There are 0 epsilons to attack at: give EPSILONS of at least one.")
    clean = predict_logits(model, X).argmax(axis=1)
    attacked, prediction = np.array(X, dtype=np.float32), clean.copy()
    for eps in progress(sorted(epsilons), name, unit="eps"):
        todo = np.flatnonzero((prediction if name == "pgd" else clean) == y)
        attacked[todo] = attack(name, model, X[todo], y[todo], eps, iterations, seed)
        if len(todo):
            prediction[todo] = predict_logits(model, attacked[todo]).argmax(axis=1)
        yield eps, attacked, prediction


def first_flips(
    name: str, model: GenreClassifierCNN, X: np.ndarray, y: np.ndarray, **options
) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest eps that flips each segment (NaN if none) and the segment so attacked.

    Segments that are wrong from the start or never flip are returned unchanged. Options are
    those of `attack_growing`.
    """
    smallest, flipped = np.full(len(X), np.nan), np.array(X, dtype=np.float32)
    right = predict_logits(model, X).argmax(axis=1) == y
    for eps, attacked, prediction in attack_growing(name, model, X, y, **options):
        new = right & (prediction != y) & np.isnan(smallest)
        smallest[new], flipped[new] = eps, attacked[new]
    return smallest, flipped


def _attack_shard(
    number: int, X, y, eps, own_eps: bool, name: str, model, iterations: int, seed: int
) -> np.ndarray:
    """Return one shard of segments (n, 128, 130) attacked, each with its own eps or all alike."""
    estimator = make_oracle(model) if name == "square" else make_classifier(model)
    set_seed(seed, number)
    method = METHODS[name](estimator, eps if own_eps else float(eps[0]), iterations)
    return method.generate(X[:, None], y)[:, 0]


def _fgsm(estimator, eps: float, iterations: int) -> FastGradientMethod:
    """Return one step of size eps; `iterations` does not matter."""
    return FastGradientMethod(estimator, eps=eps, batch_size=BATCH_SIZE)


def _pgd(estimator, eps, iterations: int, targeted: bool = False) -> ProjectedGradientDescent:
    """Return steps of eps / 4; ART cannot draw random starts for several eps (n,) at once."""
    several = np.ndim(eps) > 0
    size = np.reshape(eps, (-1, 1, 1, 1)).astype(np.float32) if several else eps
    return ProjectedGradientDescent(
        estimator,
        eps=size,
        eps_step=size * STEP_SHARE,
        max_iter=iterations,
        num_random_init=0 if several else 1,
        targeted=targeted,
        batch_size=BATCH_SIZE,
        verbose=False,
    )


def _apgd(estimator, eps: float, iterations: int, loss: str) -> AutoProjectedGradientDescent:
    """Return steps that start at 2 eps and halve where the loss no longer grows."""
    return AutoProjectedGradientDescent(
        estimator,
        eps=eps,
        eps_step=2 * eps,
        max_iter=iterations,
        nb_random_init=1,
        loss_type=loss,
        batch_size=BATCH_SIZE,
        verbose=False,
    )


def _square(estimator, eps: float, iterations: int) -> SquareAttack:
    """Return a random search over squares of +-eps, without gradients."""
    return SquareAttack(
        estimator, eps=eps, max_iter=iterations, batch_size=BATCH_SIZE, verbose=False
    )


METHODS = {
    "fgsm": _fgsm,
    "pgd": _pgd,
    "pgd_targeted": partial(_pgd, targeted=True),
    "apgd_ce": partial(_apgd, loss="cross_entropy"),
    "apgd_dlr": partial(_apgd, loss="difference_logits_ratio"),
    "square": _square,
}
