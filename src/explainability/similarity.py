"""Similarity of maps: of two maps of a segment, with the mean maps of genres, and over frequency.

Comparisons take two stacks of maps (n, 128, 130) in [0, 1] and return (n,), with NaN where a map
is empty; empty maps are counted separately. A prototype is the mean map of a genre.
"""

from itertools import pairwise

import numpy as np
from scipy.stats import rankdata
from skimage.metrics import structural_similarity

from src.data.features import HOP_LENGTH, SAMPLE_RATE, mel_frequencies
from src.explainability.gradcam import flat, is_empty

TOP_SHARE = 0.1
EDGES_HZ = (0, 250, 500, 1000, 2000, 4000, 11025)
BANDS = tuple(f"{low}-{high} Hz" for low, high in pairwise(EDGES_HZ))


def compare_maps(before: np.ndarray, after: np.ndarray) -> dict[str, np.ndarray]:
    """Return all measures (n,) of the shift from one stack of maps to another, by name.

    `nissim` is the normalised inverted SSIM: 0 for the same map, at most 1. Its mean over segments
    is the mean observed dissimilarity (MOD), its mean squared deviation from that the variation in
    dissimilarity (VID). Source: Chakraborty et al. 2022, arXiv 2204.05427.
    """
    (t0, mel0, hz0), (t1, mel1, hz1) = centre_of_mass(before), centre_of_mass(after)
    similarity = ssim(before, after)
    return {
        "spearman": spearman(before, after),
        "ssim": similarity,
        "nissim": (1 - similarity) / 2,
        "top_overlap": top_overlap(before, after),
        "centre_shift_s": np.abs(t1 - t0),
        "centre_shift_mel": np.abs(mel1 - mel0),
        "centre_shift_hz": np.abs(hz1 - hz0),
        "band_shift": band_shift(before, after),
        "empty": is_empty(after).astype(float),
    }


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of the cells, 1 for the same order (Ghorbani 2019)."""
    a, b = (rankdata(flat(maps), axis=1) for maps in (first, second))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    spread = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return _unless_empty((a * b).sum(axis=1) / np.where(spread > 0, spread, 1), first, second)


def ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the structural similarity, 1 for the same map (Wang et al. 2004, scikit-image)."""
    options = {"data_range": 1, "gaussian_weights": True, "use_sample_covariance": False}
    pairs = zip(first, second, strict=True)
    values = np.array([structural_similarity(a, b, **options) for a, b in pairs])
    return _unless_empty(values, first, second)


def top_overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the share of the top tenth of one map's cells that are among that of the other.

    Unrelated maps share a tenth of them. Source: Ghorbani et al. 2019, arXiv 1710.10547.
    """
    k = round(TOP_SHARE * first.shape[1] * first.shape[2])
    tops = [np.argsort(-flat(maps), axis=1, kind="stable")[:, :k] for maps in (first, second)]
    pairs = zip(*tops, strict=True)
    return _unless_empty(np.array([np.isin(a, b).mean() for a, b in pairs]), first, second)


def centre_of_mass(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the centre of each map in seconds, in mel bands from the lowest, and in Hz."""
    maps = np.asarray(maps, dtype=np.float64)
    mass = np.where(is_empty(maps), np.nan, maps.sum(axis=(1, 2)))
    frame = maps.sum(axis=1) @ np.arange(maps.shape[2]) / mass
    band = maps.sum(axis=2) @ np.arange(maps.shape[1]) / mass
    hertz = np.interp(band, np.arange(maps.shape[1]), mel_frequencies())
    return frame * HOP_LENGTH / SAMPLE_RATE, band, hertz


def band_shift(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the share of mass that would have to change its frequency band, from 0 to 1."""
    return np.abs(band_shares(first) - band_shares(second)).sum(axis=1) / 2


def mel_shares(maps: np.ndarray) -> np.ndarray:
    """Return the share (n, 128) of each map's mass in each mel band; NaN for empty maps."""
    mass = np.asarray(maps, dtype=np.float64).sum(axis=2)
    total = mass.sum(axis=1, keepdims=True)
    return np.divide(mass, total, out=np.full_like(mass, np.nan), where=total > 0)


def band_shares(maps: np.ndarray) -> np.ndarray:
    """Return the share (n, 6) of each map's mass in each of the frequency bands `BANDS`."""
    number = np.searchsorted(EDGES_HZ, mel_frequencies(), side="right") - 1
    return mel_shares(maps) @ np.eye(len(BANDS))[number]


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
    """Return the mean over the last axis of the numbers there are, NaN where there is none."""
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0).sum(axis=-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def mean_over_draws(found: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the mean of each measure over several draws of the same control."""
    return {name: mean_known(np.stack([v[name] for v in found], axis=-1)) for name in found[0]}


def _unless_empty(values: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.where(is_empty(first) | is_empty(second), np.nan, values)
