"""Where along frequency a map lies: shares of its mass by band, in Hz."""

from itertools import pairwise

import numpy as np

from src.data.frontend import mel_frequencies

EDGES_HZ = (0, 250, 500, 1000, 2000, 4000, 11025)
BANDS = tuple(f"{low}-{high} Hz" for low, high in pairwise(EDGES_HZ))


def mel_shares(maps: np.ndarray) -> np.ndarray:
    """Return the share (n, 128) of each map's mass in each mel band; NaN for empty maps."""
    mass = np.asarray(maps, dtype=np.float64).sum(axis=2)
    total = mass.sum(axis=1, keepdims=True)
    return np.divide(mass, total, out=np.full_like(mass, np.nan), where=total > 0)


def band_shares(maps: np.ndarray) -> np.ndarray:
    """Return the share (n, len(BANDS)) of each map's mass between the edges `EDGES_HZ`."""
    number = np.searchsorted(EDGES_HZ, mel_frequencies(), side="right") - 1
    return mel_shares(maps) @ np.eye(len(BANDS))[number]


def band_measures(maps: np.ndarray) -> dict[str, np.ndarray]:
    """Return the share of mass in each band, by name."""
    shares = band_shares(maps)
    return {f"attention {band}": shares[:, k] for k, band in enumerate(BANDS)}
