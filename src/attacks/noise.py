"""Random noise of the size of an attack, on the same segments: the baseline of every attack."""

import numpy as np
import pandas as pd

from src.attacks.records import Target, make_records

FITTING_STEPS = 12


def noise_linf(X: np.ndarray, eps: float, seed: int) -> np.ndarray:
    """Return segments (n, 128, 130) with uniform noise whose largest value is `eps`, cut to [0, 1].

    The same noise for the same seed, scaled, whatever eps is.
    """
    noise = np.random.default_rng(seed).uniform(-1, 1, X.shape).astype(np.float32)
    noise *= np.float32(eps) / np.abs(noise).max(axis=(1, 2), keepdims=True)
    return (X + noise).clip(0, 1)


def noise_l2(X: np.ndarray, l2: np.ndarray, seed: int) -> np.ndarray:
    """Return segments (n, 128, 130) in [0, 1] with Gaussian noise whose L2 norm is `l2` (n,).

    The norm is that of what is left after cutting to [0, 1]: the noise is scaled until it fits.
    """
    X = np.asarray(X, dtype=np.float32)
    noise = np.random.default_rng(seed).standard_normal(X.shape, dtype=np.float32)
    wanted = np.asarray(l2, dtype=np.float32)
    scale = wanted / _norms(noise)
    for _ in range(FITTING_STEPS):
        reached = _norms((X + scale[:, None, None] * noise).clip(0, 1) - X)
        scale *= wanted / np.maximum(reached, np.finfo(np.float32).tiny)
    return (X + scale[:, None, None] * noise).clip(0, 1)


def noise_records(target: Target, pgd: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return records of both noises for every eps of `pgd`, the records of a sweep with PGD.

    `noise_linf` has the eps of the attack, `noise_l2` the L2 norm of PGD's change of each segment;
    where that was made at a smaller eps (the segment was broken there already), in proportion, and
    where there is none (the segment was wrong before), at the others' median.
    """
    X, rows = target.data.X, []
    for eps, made in pgd.groupby("eps"):
        share = made.set_index("segment").eval("l2 / linf")[target.data.numbers].to_numpy()
        share = np.where(np.isnan(share), np.nanmedian(share) if made["linf"].any() else 1, share)
        noisy = {"noise_linf": noise_linf(X, eps, seed), "noise_l2": noise_l2(X, eps * share, seed)}
        for name, changed in noisy.items():
            rows.append(make_records(target, name, eps, changed, target.predict(changed)))
    return pd.concat(rows, ignore_index=True)


def _norms(change: np.ndarray) -> np.ndarray:
    """Return the L2 norm (n,) of each change (n, 128, 130)."""
    return np.sqrt(np.square(change).sum(axis=(1, 2)))
