"""Does a failure look like the genre it was taken for? Maps compared with the mean maps of genres.

The documentation claims that natural failures do, and that adversarial ones do not.
"""

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from src.explainability.shift import spearman
from src.statistics import LEVEL, RESAMPLES


def resemblance(
    maps: np.ndarray, true: np.ndarray, taken_for: np.ndarray, priors: np.ndarray
) -> dict[str, np.ndarray]:
    """Return Spearman's correlation of maps (n, 128, 130) with the mean maps of two genres.

    `priors` (n_genres, 128, 130) are the mean maps; `resembles_taken_for_more` is the difference:
    above 0, a map looks more like that of the genre it was taken for than like that of its own.
    """
    to_taken, to_true = spearman(maps, priors[taken_for]), spearman(maps, priors[true])
    return {
        "resembles_taken_for": to_taken,
        "resembles_true": to_true,
        "resembles_taken_for_more": to_taken - to_true,
    }


def own_genre_gap(maps: np.ndarray, y: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Return how much more maps (n, 128, 130) resemble their genre's mean map than the others'.

    Spearman's correlation with the own mean map less the mean of those with all others: 0 if
    genres are listened to alike.
    """
    all_genres = np.stack([spearman(maps, np.broadcast_to(p, maps.shape)) for p in priors], axis=1)
    own = all_genres[np.arange(len(y)), y]
    others = np.where(np.arange(len(priors)) == np.asarray(y)[:, None], np.nan, all_genres)
    return own - _mean_known(others)


def difference(rows: pd.DataFrame, first: str, second: str, seed: int = 0) -> dict:
    """Return the mean value under condition `first` less that under `second`, with its interval.

    `rows` are records of one measure; tracks are drawn with replacement, each with its clips of
    both conditions (percentile bootstrap, 95%). Draws in which a condition has no clip do not
    count. `low` and `high` are None where either has fewer than two tracks.
    """
    known = rows.dropna(subset="value")
    tables = [known[known["condition"] == name] for name in (first, second)]
    tracks = pd.Index(pd.concat(tables)["track"].unique())
    sums = [table.groupby("track")["value"].agg(["sum", "count"]) for table in tables]
    columns = [s.reindex(tracks, fill_value=0)[c].to_numpy() for s in sums for c in s]
    few = min(table["track"].nunique() for table in tables) < 2
    low, high = (None, None) if few else _interval(columns, seed)
    value = tables[0]["value"].mean() - tables[1]["value"].mean()
    counts = {"n_clips": sum(map(len, tables))}
    return {"value": None if np.isnan(value) else float(value), "low": low, "high": high} | counts


def _interval(columns: list[np.ndarray], seed: int) -> tuple[float, float]:
    """Return the percentile interval of the difference of two ratios over resampled tracks."""
    rng = np.random.default_rng(seed)
    with np.errstate(invalid="ignore"):
        draws = bootstrap(
            columns, _gap, paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile",
            confidence_level=LEVEL, rng=rng,
        ).bootstrap_distribution  # fmt: skip
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _gap(sum_a, count_a, sum_b, count_b, axis):
    """Return the difference of two means from sums and counts by track."""
    return sum_a.sum(axis=axis) / count_a.sum(axis=axis) - sum_b.sum(axis=axis) / count_b.sum(
        axis=axis
    )


def _mean_known(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row's numbers, NaN for a row without any."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
