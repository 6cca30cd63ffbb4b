"""Which instrument does a map fall on? Answered on the embedded corpus, whose parts are known."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

from src.data import synthetic
from src.data.frontend import (
    DYNAMIC_RANGE_DB,
    SEGMENT_SAMPLES,
    SEGMENT_SECONDS,
    SEGMENTS_PER_TRACK,
    LogMel,
)
from src.data.synthetic import PARTS

NO_PART = -1


def composed_seed(corpus: Path) -> int | None:
    """Return the seed of a corpus that this code composed, None for any other corpus."""
    found = re.search(r"_seed_(\d+)_([0-9a-f]+)$", corpus.name)
    return int(found[1]) if found and found[2] == synthetic.code_hash() else None


def loudest_parts(segments: pd.DataFrame, seed: int, n_jobs: int = 2) -> np.ndarray:
    """Return the number in `PARTS` of the loudest part in each cell: (n, 128, 130) int.

    `NO_PART` where the sum of the parts lies below the front-end's floor. Each track is composed
    again from its name and the corpus's seed. `segments` are rows of the segments' table.
    """
    tracks = [(name, rows["start_s"]) for name, rows in segments.groupby("track", sort=False)]
    found = Parallel(n_jobs)(delayed(_track_cells)(name, starts, seed) for name, starts in tracks)
    cells = np.empty((len(segments), *found[0].shape[1:]), dtype=int)
    for (name, _), block in zip(tracks, found, strict=True):
        cells[(segments["track"] == name).to_numpy()] = block
    return cells


def part_measures(maps: np.ndarray, cells: np.ndarray) -> dict[str, np.ndarray]:
    """Return the share of each map's mass on each part's cells, less their share of the area.

    0 for a map that knows nothing of the parts; NaN for an empty map and for a part that is
    nowhere the loudest.
    """
    mass = maps.sum(axis=(1, 2))
    measures = {}
    for number, part in enumerate(PARTS):
        on, area = (maps * (cells == number)).sum(axis=(1, 2)), (cells == number).mean(axis=(1, 2))
        share = np.divide(on, mass, out=np.full(len(maps), np.nan), where=mass > 0)
        measures[f"mass above area, {part}"] = np.where(area > 0, share - area, np.nan)
    return measures


def _track_cells(track: str, starts: pd.Series, seed: int) -> np.ndarray:
    """Return the loudest part in each cell of segments of one track."""
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
