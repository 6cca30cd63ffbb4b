"""Intervals that respect that segments of one track belong together."""

import numpy as np
from scipy.stats import binomtest, bootstrap

LEVEL = 0.95
RESAMPLES = 2000
FEWEST_TRACKS = 6  # of fewer, resampling tells little more than the lowest and the highest


def mean_over_tracks(values: np.ndarray, tracks: np.ndarray, seed: int = 0) -> dict:
    """Return the mean of per-segment values with its 95% interval over tracks.

    Tracks, not segments, are drawn with replacement (percentile bootstrap, scipy). Where all
    tracks agree on 0 or 1 there is nothing to draw from, and the interval is Wilson's for as many
    independent trials as there are tracks. The result has `value`, `low`, `high`, `n_segments`,
    `n_tracks`; `low` and `high` are None for fewer than `FEWEST_TRACKS`.
    Raises ValueError without values.
    """
    values, tracks = np.asarray(values, dtype=float), np.asarray(tracks)
    if len(values) == 0:
        raise ValueError("There are 0 values to average: the selection is empty; widen it.")
    _, number = np.unique(tracks, return_inverse=True)
    total, count = np.bincount(number, values), np.bincount(number)
    low, high = _interval(total, count, seed)
    return {
        "value": float(values.mean()),
        "low": low,
        "high": high,
        "n_segments": len(values),
        "n_tracks": len(count),
    }


def difference_over_tracks(
    first: np.ndarray, second: np.ndarray, tracks: np.ndarray, seed: int = 0
) -> dict:
    """Return the mean of `second - first` on the same segments, with its 95% interval over tracks.

    A paired comparison: each track is drawn with both of its values. The result has the keys of
    `mean_over_tracks`; where no segment differs the interval has no width.
    """
    values = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    _, number = np.unique(tracks, return_inverse=True)
    total, count = np.bincount(number, values), np.bincount(number)
    low, high = _bootstrap(total, count, seed) if len(count) >= FEWEST_TRACKS else (None, None)
    return {
        "value": float(values.mean()),
        "low": low,
        "high": high,
        "n_segments": len(values),
        "n_tracks": len(count),
    }


def _interval(total: np.ndarray, count: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    """Return the interval of sum(total) / sum(count) over tracks, None for too few."""
    n, share = len(count), total.sum() / count.sum()
    if n < FEWEST_TRACKS:
        return None, None
    if share in (0, 1):
        bounds = binomtest(int(share * n), n).proportion_ci(LEVEL, method="wilson")
        return float(bounds.low), float(bounds.high)
    return _bootstrap(total, count, seed)


def _bootstrap(total: np.ndarray, count: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the percentile interval of sum(total) / sum(count) over resampled tracks."""
    result = bootstrap(
        (total, count),
        lambda t, c, axis: t.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
