"""Prototypes: comparison of maps with the mean map of each genre.

The specification claims that maps of natural failures resemble the prototype of the predicted
genre, and that those of adversarial examples do not.
"""

import numpy as np

from src.explainability.similarity import spearman


def prototype_similarity(
    maps: np.ndarray, true: np.ndarray, predicted: np.ndarray, prototypes: np.ndarray
) -> dict[str, np.ndarray]:
    """Return Spearman's correlation (n,) of maps with the prototypes of two genres.

    `true` and `predicted` (n,) are genre numbers, `prototypes` (n_genres, 128, 130).
    `prototype_margin` is the difference, above 0 if the predicted genre's correlation is higher.
    """
    to_predicted = spearman(maps, prototypes[predicted])
    to_true = spearman(maps, prototypes[true])
    return {
        "prototype_predicted": to_predicted,
        "prototype_true": to_true,
        "prototype_margin": to_predicted - to_true,
    }


def class_specificity(maps: np.ndarray, y: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """Return how much more maps resemble the prototype of their genre than those of the others.

    Spearman's correlation (n,) with the prototype of `y` less the mean of those with all others: 0
    if the model uses the same regions for all genres.
    """
    shapes = (np.broadcast_to(prototype, maps.shape) for prototype in prototypes)
    all_genres = np.stack([spearman(maps, prototype) for prototype in shapes], axis=1)
    own = all_genres[np.arange(len(y)), y]
    others = np.where(np.arange(len(prototypes)) == np.asarray(y)[:, None], np.nan, all_genres)
    return own - mean_known(others)


def mean_known(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row's numbers, NaN for a row without any."""
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
