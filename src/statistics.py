"""Intervals that respect that segments of one track belong together."""

import numpy as np
from scipy.stats import binomtest, bootstrap

LEVEL = 0.95
RESAMPLES = 2000


def mean_over_tracks(values: np.ndarray, tracks: np.ndarray, seed: int = 0) -> dict:
    """Return the mean of per-segment values with its 95% interval over tracks.

    Tracks, not segments, are drawn with replacement (percentile bootstrap, scipy). Where all
    tracks agree on 0 or 1 there is nothing to draw from, and the interval is Wilson's for as many
    independent trials as there are tracks. The result has `value`, `low`, `high`, `n_segments`,
    `n_tracks`; `low` and `high` are None for a single track, which says nothing about others.
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


def difference_over_tracks(values: np.ndarray, tracks: np.ndarray, seed: int = 0) -> dict:
    """Return the mean of paired differences in [-1, 1] with its 95% interval over tracks.

    As `mean_over_tracks`; where all differences are equal, the interval reaches as far to both
    sides as Wilson's for no event in as many trials as there are tracks.
    """
    values, tracks = np.asarray(values, dtype=float), np.asarray(tracks)
    measured = mean_over_tracks((values + 1) / 2, tracks, seed)
    measured["value"] = float(values.mean())
    if measured["n_tracks"] == 1:
        return measured
    if np.ptp(values) > 0:
        return measured | {key: 2 * measured[key] - 1 for key in ("low", "high")}
    reach = binomtest(0, measured["n_tracks"]).proportion_ci(LEVEL, method="wilson").high
    low, high = np.clip([values[0] - reach, values[0] + reach], -1, 1)
    return measured | {"low": float(low), "high": float(high)}


def _interval(total: np.ndarray, count: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    """Return the percentile interval of sum(total) / sum(count) over resampled tracks."""
    n, share = len(count), total.sum() / count.sum()
    if n < 2:
        return None, None
    if share in (0, 1):
        bounds = binomtest(int(share * n), n).proportion_ci(LEVEL, method="wilson")
        return float(bounds.low), float(bounds.high)
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
