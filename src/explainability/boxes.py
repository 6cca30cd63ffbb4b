"""Ground truth: attacks confined to a box, in which the evidence for the new genre must lie.

Source: Praher, Prinz, Flexer and Widmer 2021, arXiv 2107.09045.
"""

import numpy as np

from src.attacks.adversarial import Search, attack
from src.data.frontend import N_FRAMES, N_MELS
from src.explainability.gradcam import flat, is_empty
from src.models.cnn import GenreClassifierCNN

BOX_BANDS, BOX_FRAMES = 48, 44  # about an eighth of the area
BOX_EPS = 0.2  # 16 dB: a small box needs more than the whole spectrogram


def draw_boxes(n: int, seed: int) -> np.ndarray:
    """Return masks (n, 128, 130), each true in one box of 48 bands and 44 frames at random."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((n, N_MELS, N_FRAMES), dtype=bool)
    bands = rng.integers(N_MELS - BOX_BANDS + 1, size=n)
    frames = rng.integers(N_FRAMES - BOX_FRAMES + 1, size=n)
    for box, band, frame in zip(boxes, bands, frames, strict=True):
        box[band : band + BOX_BANDS, frame : frame + BOX_FRAMES] = True
    return boxes


def attack_boxes(
    model: GenreClassifierCNN, X: np.ndarray, y: np.ndarray, boxes: np.ndarray, search: Search
) -> np.ndarray:
    """Return segments (n, 128, 130) attacked by PGD within `BOX_EPS` and within their boxes.

    `y` are the true genres, `boxes` (n, 128, 130) where bins may change. Raises AssertionError if
    the attack broke its bounds.
    """
    return attack("pgd", model, X, y, BOX_EPS * boxes.astype(np.float32), search)


def box_measures(maps: np.ndarray, boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Return what of each map lies inside its box; NaN for empty maps.

    `box_mass` is the share of mass, `box_mass_above_area` the same less the box's share of the
    area (0 for a map that knows nothing), `box_hit` whether the highest cell is inside.
    """
    mass = _share((maps * boxes).sum(axis=(1, 2)), maps.sum(axis=(1, 2)))
    highest = flat(maps).argmax(axis=1)
    inside = flat(boxes)[np.arange(len(maps)), highest]
    return {
        "box_mass": mass,
        "box_mass_above_area": mass - boxes.mean(axis=(1, 2)),
        "box_hit": np.where(is_empty(maps), np.nan, inside),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, NaN where there is nothing."""
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
