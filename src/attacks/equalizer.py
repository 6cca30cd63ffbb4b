"""Attacks that are sounds: the worst equaliser, and the worst of a grid of tempo and pitch.

Threat model: the attacker knows the model and its gradients and chooses one filter per segment,
constant in time. Its gains, at most `limit_db` up or down, lie at `bands` points evenly along the
mel bands and run linearly between them. The control is random equalisers with gains at the limit.
That of tempo and pitch is noise with as many draws, each of the L2 norm of one of these changes of
the same segment: neither number nor size explains a difference.
"""

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import torch

from src.attacks.adversarial import FastGradients, Job, Search, noise_l2
from src.attacks.records import Target, make_records, worst_case
from src.data.features import DYNAMIC_RANGE_DB
from src.models.augment import equalized, retimed
from src.progress import progress
from src.runtime import device
from src.shards import in_shards

BANDS = (10, 64)
LIMITS_DB = (1, 3, 6)
TEMPI = (0.9, 0.95, 1, 1.05, 1.1)
SEMITONES = (-1, -0.5, 0, 0.5, 1)
DRAWS = 10  # of a random control whose mean is reported
SURE = 0.5  # logits by which a segment is wrong before its search ends: more than rounding


def equalize(X: np.ndarray, gains_db: np.ndarray) -> np.ndarray:
    """Return segments (n, 128, 130) played through equalisers with gains (n, bands) in dB."""
    gains = torch.from_numpy(np.asarray(gains_db, dtype=np.float32))
    return equalized(torch.from_numpy(X)[:, None], gains)[:, 0].numpy()


def retime(X: np.ndarray, tempo: float, semitones: float) -> np.ndarray:
    """Return segments (n, 128, 130) `tempo` times as fast and `semitones` higher.

    Pitch moves all mel bands alike, as it does above 1 kHz; edges are mirrored.
    """
    octaves = torch.tensor([[np.log2(tempo)], [-semitones / 12]], dtype=torch.float32)
    return retimed(torch.from_numpy(X)[:, None], octaves.expand(2, len(X)))[:, 0].numpy()


def worst_equalizer(
    model: torch.nn.Module,
    X: np.ndarray,
    y: np.ndarray,
    bands: int,
    limit_db: float,
    search: Search,
) -> np.ndarray:
    """Return the gains (n, bands) in dB, at most `limit_db`, that raise each margin the most.

    The margin is the best wrong logit less that of the true genre `y` (n,). Steps follow the sign
    of its gradient and shrink linearly from the limit; the best point of each segment is kept.
    """
    work = partial(_ascend, bands=bands, limit_db=limit_db)
    return in_shards("equalizer", work, (X[:, None], y), Job(model, search))


def margin(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the best wrong logit less the true one (n,): above 0 where the model is wrong."""
    true = torch.nn.functional.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(true, -torch.inf).amax(dim=1) - logits[true]


def random_gains(n: int, bands: int, limit_db: float, seed: int) -> np.ndarray:
    """Return gains (n, bands) of `limit_db` up or down at random."""
    signs = np.random.default_rng(seed).choice([-1, 1], (n, bands))
    return (limit_db * signs).astype(np.float32)


def equalizer_records(targets: dict[str, Target], search: Search) -> pd.DataFrame:
    """Return one row per segment, attack, limit and checkpoint; only correct segments are changed.

    `equalizer_<bands>` is the worst equaliser found (a segment flipped at one limit counts as
    flipped at every larger one), `_random` as many random ones as there are iterations (`start`
    counts them), `_random_worst` the worst of these; `tempo_pitch` the worst of 25 combinations,
    `tempo_pitch_random` all of them; `tempo_pitch_noise` a draw of noise of the L2 norm of each,
    `_noise_worst` the worst of these. Columns are those of `make_records` and checkpoint; eps is
    the limit divided by 80, and 0 for tempo and pitch.
    """
    tables = []
    for name, target in targets.items():
        own, n = [_sweep(target, bands, search) for bands in BANDS], int(target.correct.sum())
        for bands, limit in product(BANDS, LIMITS_DB):
            draws = [
                partial(equalize, gains_db=random_gains(n, bands, limit, search.seed + start))
                for start in range(search.iterations)
            ]
            random, eps = f"equalizer_{bands}_random", limit / DYNAMIC_RANGE_DB
            own.append(_with_worst(target, random, f"{random}_worst", eps, draws))
        warps = [partial(retime, tempo=t, semitones=s) for t, s in product(TEMPI, SEMITONES)]
        own.append(_with_worst(target, "tempo_pitch_random", "tempo_pitch", 0, warps))
        noises = [
            partial(_as_large, change=warp, seed=search.seed + start)
            for start, warp in enumerate(warps)
        ]
        own.append(_with_worst(target, "tempo_pitch_noise", "tempo_pitch_noise_worst", 0, noises))
        tables += [table.assign(checkpoint=name) for table in own]
    return pd.concat(tables, ignore_index=True)


def _ascend(number, X, y, job: Job, bands: int, limit_db: float) -> np.ndarray:
    """Return the best gains (n, bands) found for one shard (n, 1, 128, 130)."""
    network = FastGradients(job.model)
    X, y = torch.from_numpy(X).to(device()), torch.from_numpy(y).to(device())
    gains = torch.zeros(len(X), bands, device=device())
    best, highest = gains.clone(), torch.full((len(X),), -torch.inf, device=device())
    for step in np.linspace(limit_db, 0, job.search.iterations + 1):
        left = torch.nonzero(highest < SURE)[:, 0]
        if not len(left):
            break
        tried = gains[left].requires_grad_()
        reached = margin(network(equalized(X[left], tried)), y[left])
        (gradient,) = torch.autograd.grad(reached.sum(), tried)
        better = left[reached > highest[left]]
        best[better] = gains[better]
        highest[left] = torch.maximum(highest[left], reached.detach())
        moved = gains[left] + step * gradient.sign()
        gains[left] = moved.clamp(-limit_db, limit_db)
    return best.cpu().numpy()


def _sweep(target: Target, bands: int, search: Search) -> pd.DataFrame:
    """Return records of the worst equaliser at each limit."""
    X, y, tables = target.data.X, target.data.y, []
    attacked, predicted, name = X.copy(), target.predicted.copy(), f"equalizer_{bands}"
    for limit in progress(LIMITS_DB, name, unit="limit"):
        rows = np.flatnonzero(predicted == y)
        if len(rows):
            gains = worst_equalizer(target.model, X[rows], y[rows], bands, limit, search)
            attacked[rows] = equalize(X[rows], gains)
            predicted[rows] = target.predict(attacked[rows])
        tables.append(make_records(target, name, limit / DYNAMIC_RANGE_DB, attacked, predicted))
    return pd.concat(tables, ignore_index=True)


def _as_large(X: np.ndarray, change: Callable, seed: int) -> np.ndarray:
    """Return segments with noise of the L2 norm that a change has on each."""
    return noise_l2(X, np.linalg.norm((change(X) - X).reshape(len(X), -1), axis=1), seed)


def _with_worst(
    target: Target, name: str, worst: str, eps: float, changes: list[Callable]
) -> pd.DataFrame:
    """Return records of several changes of the correct segments, and of the worst for each."""
    rows, tables = np.flatnonzero(target.correct), []
    for start, change in enumerate(progress(changes, name, unit="draw"), start=1):
        attacked, predicted = target.data.X.copy(), target.predicted.copy()
        if len(rows):
            attacked[rows] = change(attacked[rows])
            predicted[rows] = target.predict(attacked[rows])
        table = make_records(target, name, eps, attacked, predicted)
        tables.append(table.assign(start=start))
    records = pd.concat(tables, ignore_index=True)
    return pd.concat([records, worst_case(records, eps, worst)], ignore_index=True)
