"""Localization: relevance mass where the evidence is known to lie.

Attacks confined to a box put evidence for the predicted genre into it (Praher, Prinz, Flexer and
Widmer 2021, arXiv 2107.09045), though not all of it: the model standardizes each segment, which
spreads a part of the change over all bins. In the embedded corpus the loudest stem of each cell is
known.
"""

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

from src.data import synthetic
from src.data.features import (
    DYNAMIC_RANGE_DB,
    N_FRAMES,
    N_MELS,
    SEGMENT_SAMPLES,
    SEGMENT_SECONDS,
    SEGMENTS_PER_TRACK,
    LogMel,
)
from src.data.synthetic import PARTS
from src.explainability.gradcam import flat, is_empty

BOX_BANDS, BOX_FRAMES = 48, 44  # about an eighth of the area
BOX_EPS = 0.2  # 16 dB: a small box needs more than the whole spectrogram
NO_PART = -1


def draw_boxes(n: int, seed: int) -> np.ndarray:
    """Return masks (n, 128, 130), each true in one random box of 48 bands and 44 frames."""
    rng = np.random.default_rng(seed)
    boxes = np.zeros((n, N_MELS, N_FRAMES), dtype=bool)
    bands = rng.integers(N_MELS - BOX_BANDS + 1, size=n)
    frames = rng.integers(N_FRAMES - BOX_FRAMES + 1, size=n)
    for box, band, frame in zip(boxes, bands, frames, strict=True):
        box[band : band + BOX_BANDS, frame : frame + BOX_FRAMES] = True
    return boxes


def box_measures(maps: np.ndarray, boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Return how well each map localizes its box; NaN for empty maps.

    Returns
    -------
    `relevance_mass` : (n,) share of the map's mass inside the box
    `mass_above_area` : (n,) the same less the box's share of the area, 0 for a map without
        information
    `pointing_game` : (n,) whether the highest cell lies inside
    """
    mass = mass_share(maps, boxes)
    highest = flat(maps).argmax(axis=1)
    inside = flat(boxes)[np.arange(len(maps)), highest]
    return {
        "relevance_mass": mass,
        "mass_above_area": mass - boxes.mean(axis=(1, 2)),
        "pointing_game": np.where(is_empty(maps), np.nan, inside),
    }


def mass_share(maps: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Return the share (n,) of each map's mass in a region (n, 128, 130); NaN for empty maps."""
    mass = maps.sum(axis=(1, 2))
    inside = (maps * region).sum(axis=(1, 2))
    return np.divide(inside, mass, out=np.full(len(maps), np.nan), where=mass > 0)


def part_mass_above_area(maps: np.ndarray, cells: np.ndarray) -> dict[str, np.ndarray]:
    """Return for each part the share (n,) of a map's mass on its cells less that of the area.

    `cells` (n, 128, 130) has the number in `PARTS` of the loudest part. 0 for a map without
    information; NaN for an empty map and for a part that is nowhere the loudest.
    """
    measures = {}
    for number, part in enumerate(PARTS):
        area = (cells == number).mean(axis=(1, 2))
        above = mass_share(maps, cells == number) - area
        measures[part] = np.where(area > 0, above, np.nan)
    return measures


def loudest_parts(segments: pd.DataFrame, seed: int, n_jobs: int = 2) -> np.ndarray:
    """Return the number in `PARTS` of the loudest part of each cell (n, 128, 130).

    `NO_PART` where the sum of the parts lies below the front-end's floor. Each track is composed
    again from its name and the corpus's seed. `segments` are n rows of the segments' table.
    """
    tracks = [(name, rows["start_s"]) for name, rows in segments.groupby("track", sort=False)]
    found = Parallel(n_jobs)(delayed(_track_cells)(name, starts, seed) for name, starts in tracks)
    cells = np.empty((len(segments), *found[0].shape[1:]), dtype=int)
    for (name, _), block in zip(tracks, found, strict=True):
        cells[(segments["track"] == name).to_numpy()] = block
    return cells


def _track_cells(track: str, starts: pd.Series, seed: int) -> np.ndarray:
    """Return the loudest part of each cell of segments of one track."""
    genre, _, index = track.rpartition(".")
    parts = synthetic.render_parts(genre, int(index), seed)
    rows = (starts / SEGMENT_SECONDS).round().astype(int).to_numpy()
    stems = np.stack([parts[name] for name in PARTS])[:, : SEGMENTS_PER_TRACK * SEGMENT_SAMPLES]
    chosen = stems.reshape(-1, SEGMENTS_PER_TRACK, SEGMENT_SAMPLES)[:, rows]
    with torch.inference_mode():
        power = LogMel().power(torch.from_numpy(chosen.reshape(-1, SEGMENT_SAMPLES))).numpy()
    power = power.reshape(len(PARTS), len(rows), *power.shape[1:])
    total = power.sum(axis=0)
    floor = total.max(axis=(1, 2), keepdims=True) * 10 ** (-DYNAMIC_RANGE_DB / 10)
    return np.where(total > floor, power.argmax(axis=0), NO_PART)
