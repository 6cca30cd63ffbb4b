"""Attacks on log-mel spectrograms through the Adversarial Robustness Toolbox (ART), and noise.

Threat model: the attacker knows the model and its gradients (white box) and may change every bin of
a spectrogram in [0, 1] by at most `eps` (L-infinity), which is 80 * eps in dB. Gradients use
`src.runtime.fast_precision` and batch norms folded into the layers before them; losses and
predictions are float32. Attacks run in fixed shards of 64 segments (`src.shards`).
"""

from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, HopSkipJump, SquareAttack
from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier
from art.utils import to_categorical
from torch import nn

from src.attacks.records import Target
from src.data.features import N_FRAMES, N_MELS
from src.models.cnn import GenreClassifierCNN, fold_batch_norm
from src.models.evaluation import predict_logits
from src.progress import progress
from src.runtime import device, fast_precision, memory_format, set_seed
from src.shards import SHARD, in_shards, once

EPSILONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
ITERATIONS = 40
STEP_SHARE = 0.25
CHECK_EVERY = 1.5  # growth of the number of steps between two checks for early stopping
TOLERANCE = 1e-6
BATCH_SIZE = SHARD
FIRST_QUERIES = 50  # of HopSkipJump
FITTING_STEPS = 12  # of the L2 norm of noise


class Search(NamedTuple):
    """How an attack searches: iterations, seed of random starts, early stopping.

    With early stopping PGD leaves a segment alone once the model's prediction is wrong (targeted
    PGD: once it is the target class). The set of successful segments is the same; the adversarial
    examples are less confident.
    """

    iterations: int = ITERATIONS
    seed: int = 42
    early_stopping: bool = False


class Job(NamedTuple):
    """The part of an attack that is the same for all shards."""

    model: GenreClassifierCNN
    search: Search


DEFAULT_SEARCH = Search()


class FastGradients(nn.Module):
    """A frozen evaluation copy of a model: gradients in fast precision, predictions in float32.

    Attacks that compare losses (APGD) would take the rounding of bfloat16 for progress.
    """

    def __init__(self, model: GenreClassifierCNN):
        super().__init__()
        self.model = fold_batch_norm(model).to(device(), memory_format=memory_format())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, n_genres) of spectrograms (n, 1, n_mels, frames)."""
        with fast_precision() if x.requires_grad else nullcontext():
            return self.model(x.contiguous(memory_format=memory_format())).float()


def art_classifier(
    network: nn.Module, n_genres: int, input_shape: tuple[int, ...], **options: object
) -> PyTorchClassifier:
    """Return an ART classifier of a network, for the attacks' gradients."""
    options["device_type"] = "gpu" if device().type == "cuda" else "cpu"
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), input_shape, n_genres, **options)


def make_classifier(model: GenreClassifierCNN) -> PyTorchClassifier:
    """Return an ART classifier of log-mels."""
    network, n_genres = FastGradients(model), model.output.out_features
    return art_classifier(network, n_genres, (1, N_MELS, N_FRAMES), clip_values=(0.0, 1.0))


def make_oracle(model: GenreClassifierCNN) -> BlackBoxClassifierNeuralNetwork:
    """Return an ART classifier without gradients whose answers are float32 logits.

    Answers are cached: ART's Square queries most segments three times.
    """
    known = {}

    def answer(batch: np.ndarray) -> np.ndarray:
        keys = [hash(x.tobytes()) for x in batch]
        new = {key: i for i, key in enumerate(keys) if key not in known}
        if new:
            logits = predict_logits(model, batch[list(new.values()), 0])
            known.update(zip(new, logits, strict=True))
        return np.stack([known[key] for key in keys])

    return BlackBoxClassifierNeuralNetwork(
        answer,
        input_shape=(1, N_MELS, N_FRAMES),
        nb_classes=model.output.out_features,
        channels_first=True,
        clip_values=(0.0, 1.0),
    )


def attack(
    name: str,
    model: GenreClassifierCNN,
    X: np.ndarray,
    y: np.ndarray,
    eps: float | np.ndarray,
    search: Search = DEFAULT_SEARCH,
) -> np.ndarray:
    """Return adversarial examples of segments.

    Parameters
    ----------
    name : one of METHODS: "fgsm" (Goodfellow et al. 2015), "pgd" and "pgd_targeted" (Madry et al.
        2018; steps of eps / 4 from a random start), "apgd_ce" and "apgd_dlr" (Croce and Hein 2020;
        cross-entropy and difference of logits ratio, which needs three genres) or "square"
        (Andriushchenko et al. 2020; without gradients, iterations are queries).
    X : segments (n, 128, 130) in [0, 1].
    y : true genre numbers (n,); for "pgd_targeted" the target classes.
    eps : L-infinity bound in [0, 1]. FGSM and PGD also accept one per segment (n,) or one per bin
        (n, 128, 130), where 0 leaves a bin unchanged.
    search : iterations, seed and early stopping. Random numbers are drawn per shard of 64 segments
        from the seed and the shard's number, wherever the shards are computed.

    Returns
    -------
    float32 (n, 128, 130) in [0, 1] with |returned - X| <= eps; X where eps is 0. APGD returns its
    starting point, not its best one, where it does not succeed.

    Raises
    ------
    ValueError for an unknown name, an eps outside [0, 1] or no iterations; AssertionError if the
    attack broke its bounds.
    """
    if name not in METHODS:
        raise ValueError(f"{name} is not an attack known here: give one of {', '.join(METHODS)}.")
    if search.iterations < 1:
        raise ValueError(f"The number of iterations is {search.iterations}: give at least 1.")
    if not (np.all(np.greater_equal(eps, 0)) and np.all(np.less_equal(eps, 1))):
        raise ValueError(f"eps is {eps}: it must lie in [0, 1], where 0.01 is 0.8 dB.")
    X = np.array(X, dtype=np.float32)
    if np.all(np.equal(eps, 0)) or len(X) == 0:
        return X
    bounds = np.asarray(eps, dtype=np.float32)
    bounds = bounds.reshape(bounds.shape + (1,) * (3 - bounds.ndim))
    bounds = np.broadcast_to(bounds, (len(X), *bounds.shape[1:]))
    arrays = X[:, None], np.asarray(y), bounds[:, None]
    attacked = in_shards(name, METHODS[name], arrays, Job(model, search))[:, 0]
    check_contract(X, attacked, bounds)
    return attacked


def check_contract(X: np.ndarray, attacked: np.ndarray, eps: float | np.ndarray) -> None:
    """Raise AssertionError if attacked segments leave the ball, the range or the finite numbers.

    `eps` is one for all segments (n, 128, 130) or an array that broadcasts to them.
    """
    change, low, high = np.abs(attacked - X), float(attacked.min()), float(attacked.max())
    if not (np.all(change <= np.asarray(eps) + TOLERANCE) and low >= 0 and high <= 1):
        raise AssertionError(
            f"The attack at eps = {np.max(eps)} changed a bin by {change.max()} and reached "
            f"[{low}, {high}]: it left its bounds or is not finite; its result is not used."
        )


def hop_skip_jump(target: Target, segments: Target, steps: int, seed: int) -> np.ndarray:
    """Return segments (n, 128, 130) with the smallest change found that alters the prediction.

    HopSkipJump (Chen et al. 2020) in L-infinity; it uses predictions only. It seeks a small change,
    not one within a given eps: the size of the change decides for which eps it counts.

    Parameters
    ----------
    target : start points: the nearest of its segments that is predicted as another genre
    segments : segments to attack, of the same model; one without start point stays unchanged
    steps : iterations, 0 for no attack
    """
    pool, attacked = ((each.data.X, each.predicted) for each in (target, segments))
    return once(_hop_skip_jump, target.model, pool, attacked, steps, seed)


def noise_linf(X: np.ndarray, eps: float, seed: int) -> np.ndarray:
    """Return segments (n, 128, 130) with uniform noise of L-infinity norm `eps`, cut to [0, 1].

    One seed gives the same noise for every eps, scaled.
    """
    noise = np.random.default_rng(seed).uniform(-1, 1, X.shape).astype(np.float32)
    noise *= np.float32(eps) / np.abs(noise).max(axis=(1, 2), keepdims=True)
    return (X + noise).clip(0, 1)


def noise_l2(X: np.ndarray, l2: np.ndarray, seed: int) -> np.ndarray:
    """Return segments (n, 128, 130) in [0, 1] with Gaussian noise whose L2 norm is `l2` (n,).

    The norm is that after cutting to [0, 1]: the noise is rescaled until it matches.
    """
    X = np.asarray(X, dtype=np.float32)
    noise = np.random.default_rng(seed).standard_normal(X.shape, dtype=np.float32)
    wanted = np.asarray(l2, dtype=np.float32)
    scale = wanted / _norms(noise)
    for _ in range(FITTING_STEPS):
        reached = _norms((X + scale[:, None, None] * noise).clip(0, 1) - X)
        scale *= np.divide(wanted, reached, out=np.ones_like(wanted), where=reached > 0)
    return (X + scale[:, None, None] * noise).clip(0, 1)


def _norms(change: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(change).sum(axis=(1, 2)))


def _fgsm(number: int, X: np.ndarray, y: np.ndarray, eps: np.ndarray, job: Job) -> np.ndarray:
    """Return one step of size eps along the sign of the gradient, of one shard (n, 1, 128, 130)."""
    gradient = make_classifier(job.model).loss_gradient(X, _one_hot(job.model, y))
    return (X + eps * np.sign(gradient)).clip(0, 1)


def _pgd(number, X, y, eps, job: Job, targeted: bool = False) -> np.ndarray:
    """Return steps of eps / 4 from a random start, each projected on the ball and on [0, 1].

    The same steps as ART's ProjectedGradientDescent, which has neither early stopping nor random
    starts with several eps.
    """
    model, search = job
    set_seed(search.seed, number)
    classifier, one_hot = make_classifier(model), _one_hot(model, y)
    low, high = (X - eps).clip(0, 1), (X + eps).clip(0, 1)
    start = np.random.uniform(-1, 1, X.shape).astype(np.float32)  # noqa: NPY002 - seeded by shard
    attacked, active = (X + eps * start).clip(low, high), np.arange(len(X))
    step, checks = STEP_SHARE * eps * (-1 if targeted else 1), _checks(search)
    for iteration in range(1, search.iterations + 1):
        gradient = classifier.loss_gradient(attacked[active], one_hot[active])
        moved = attacked[active] + step[active] * np.sign(gradient)
        attacked[active] = moved.clip(low[active], high[active])
        if iteration in checks:
            predicted = classifier.predict(attacked[active], BATCH_SIZE).argmax(axis=1)
            active = active[(predicted == y[active]) != targeted]
        if not len(active):
            break
    return attacked


def _checks(search: Search) -> set[int]:
    """Return after which iterations successful segments are retired: 1, 2, 3, 5, 8, 12, 18, ..."""
    checks, next_check = set(), 1
    while search.early_stopping and next_check < search.iterations:
        checks.add(next_check)
        next_check = max(next_check + 1, round(next_check * CHECK_EVERY))
    return checks


def _apgd(number, X, y, eps, job: Job, loss: str) -> np.ndarray:
    """Return steps that start at 2 eps and halve where the loss no longer grows."""
    set_seed(job.search.seed, number)
    size, options = float(eps.max()), {"nb_random_init": 1, "loss_type": loss}
    options |= {"max_iter": job.search.iterations, "batch_size": BATCH_SIZE, "verbose": False}
    classifier = make_classifier(job.model)
    method = AutoProjectedGradientDescent(classifier, eps=size, eps_step=2 * size, **options)
    return method.generate(X, y)


def _square(number, X, y, eps, job: Job) -> np.ndarray:
    """Return a random search over squares of +-eps, without gradients."""
    set_seed(job.search.seed, number)
    options = {"max_iter": job.search.iterations, "batch_size": BATCH_SIZE, "verbose": False}
    return SquareAttack(make_oracle(job.model), eps=float(eps.max()), **options).generate(X, y)


def _hop_skip_jump(model, pool: tuple, segments: tuple, steps: int, seed: int) -> np.ndarray:
    """Return segments moved by HopSkipJump from the nearest of the `pool` with another genre.

    Both are arrays of spectrograms and of predictions.
    """
    set_seed(seed)
    (start_points, reached), (X, predicted) = pool, segments
    oracle, found = make_oracle(model), np.array(X)
    for i, x in enumerate(progress(X, "hop_skip_jump", unit="segment")):
        others = start_points[reached != predicted[i]]
        if len(others) and steps:
            start = others[np.abs(others - x).max(axis=(1, 2)).argmin()]
            options = {"norm": np.inf, "max_iter": steps, "init_eval": FIRST_QUERIES}
            method = HopSkipJump(oracle, **options, verbose=False)  # counts its steps over calls
            moved = method.generate(x[None, None], x_adv_init=start[None, None])[0, 0]
            found[i] = min(moved, start, key=lambda other: np.abs(other - x).max())
    return found


def _one_hot(model, y: np.ndarray) -> np.ndarray:
    return to_categorical(y, model.output.out_features)


METHODS = {  # each attacks one shard: its number, X (n, 1, 128, 130), y, eps and the job
    "fgsm": _fgsm,
    "pgd": _pgd,
    "pgd_targeted": partial(_pgd, targeted=True),
    "apgd_ce": partial(_apgd, loss="cross_entropy"),
    "apgd_dlr": partial(_apgd, loss="difference_logits_ratio"),
    "square": _square,
}
