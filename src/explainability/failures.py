"""Does a failure look like the genre it was taken for? Maps compared with the mean maps of genres.

The documentation claims that natural failures do, and that adversarial ones do not.
"""

import numpy as np

from src.explainability.shift import spearman


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
    return own - mean_known(others)


def mean_known(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row's numbers, NaN for a row without any."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
