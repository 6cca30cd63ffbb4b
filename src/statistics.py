"""Confidence intervals that respect that segments of one track belong together."""

import numpy as np
from scipy.stats import binomtest, quantile

LEVEL = 0.95
RESAMPLES = 2000
FEWEST_TRACKS = 6  # with fewer, resampling shows little more than the lowest and the highest


def mean_over_tracks(
    values: np.ndarray, tracks: np.ndarray, seed: int = 0, proportion: bool = True
) -> dict:
    """Return the mean of per-segment values with its 95% confidence interval over tracks.

    Tracks, not segments, are drawn with replacement (percentile bootstrap). If all values of a
    proportion are equal, there is nothing to draw from: the interval is Wilson's for as many
    independent trials as there are tracks.

    Parameters
    ----------
    values : (n,) numbers
    tracks : (n,) the track of each value
    seed : of the bootstrap
    proportion : values are true or false; without it equal values have an interval of no width

    Returns
    -------
    `value`, `low`, `high`, `n_segments`, `n_tracks`; `low` and `high` are None for fewer than
    `FEWEST_TRACKS`.

    Raises
    ------
    ValueError
        There are no values.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        raise ValueError("There are 0 values to average: the selection is empty; widen it.")
    _, number = np.unique(tracks, return_inverse=True)
    sums = np.bincount(number, values), np.bincount(number)
    low, high = _wilson(*sums) if proportion else (None, None)
    if low is None:
        low, high = _cluster_bootstrap([sums], seed)
    counts = {"n_segments": len(values), "n_tracks": len(sums[0])}
    return {"value": float(values.mean()), "low": low, "high": high} | counts


def difference_over_tracks(
    first: np.ndarray, second: np.ndarray, tracks: np.ndarray, seed: int = 0
) -> dict:
    """Return the mean of `second - first` on the same segments, with its interval over tracks.

    Each track is drawn with both of its values. The result is that of `mean_over_tracks`; if no
    segment differs, the interval has no width.
    """
    values = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    return mean_over_tracks(values, tracks, seed, proportion=False)


def difference_of_means(
    values: np.ndarray,
    tracks: np.ndarray,
    baseline: np.ndarray,
    baseline_tracks: np.ndarray,
    seed: int = 0,
) -> dict:
    """Return the mean of `values` less that of `baseline`, with its interval over tracks.

    The two groups may have different segments. Each track is drawn with its segments of both;
    draws without a segment of one group do not count.

    Returns
    -------
    `value`, `low`, `high`; the last two are None if a group has fewer than `FEWEST_TRACKS`.
    """
    together = np.concatenate([tracks, baseline_tracks])
    _, first, number = np.unique(together, return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(first))[number]  # tracks in order of appearance
    groups = np.split(number, [len(tracks)])
    sums = [
        (np.bincount(rows, group, len(first)), np.bincount(rows, minlength=len(first)))
        for rows, group in zip(groups, (values, baseline), strict=True)
    ]
    low, high = _cluster_bootstrap(sums, seed)
    return {"value": float(np.mean(values) - np.mean(baseline)), "low": low, "high": high}


def _wilson(total: np.ndarray, count: np.ndarray) -> tuple[float | None, float | None]:
    """Return Wilson's interval of a share of 0 or 1 over enough tracks, None for any other."""
    n, share = len(count), total.sum() / count.sum()
    if n < FEWEST_TRACKS or share not in (0, 1):
        return None, None
    bounds = binomtest(int(share * n), n).proportion_ci(LEVEL, method="wilson")
    return float(bounds.low), float(bounds.high)


def _cluster_bootstrap(
    groups: list[tuple[np.ndarray, np.ndarray]], seed: int
) -> tuple[float | None, float | None]:
    """Return the percentile interval of a mean, or of a mean less another, over drawn tracks.

    Each group has the sum and the number of its values per track (n_tracks,); None if a group has
    values of fewer than `FEWEST_TRACKS`.
    """
    if min(np.count_nonzero(count) for _, count in groups) < FEWEST_TRACKS:
        return None, None
    n = len(groups[0][0])
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    means = []
    for total, count in groups:
        size = count[drawn].sum(axis=1)
        known = np.where(size > 0, size, np.nan)
        means.append(total[drawn].sum(axis=1) / known)
    draws = means[0] - means[1] if len(means) == 2 else means[0]
    draws = draws[np.isfinite(draws)]
    low, high = quantile(draws, np.array([(1 - LEVEL) / 2, 1 - (1 - LEVEL) / 2]))
    return float(low), float(high)
