"""`python -m benchmarks.near_copies RUN`: the most similar track of training to each test track.

Compares log-mels frame by frame, and writes `results/metrics/<RUN>/near_copies.csv`. This finds
copies with small changes, such as another encoding, but no excerpts that start elsewhere.
"""

import argparse
import sys

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from src.data.features import DYNAMIC_RANGE_DB
from src.data.segments import Segments, load_metadata, load_split
from src.paths import RunPaths
from src.results import write_csv

LEARNT_FROM = ("train", "val")
EVERY = 10  # one frame in ten is compared


def main(arguments: list[str]) -> int:
    """Write and print the table; return 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.near_copies", description=__doc__)
    parser.add_argument("run")
    paths = RunPaths(parser.parse_args(arguments).run)
    others = [load_split(paths, part) for part in LEARNT_FROM]
    table = nearest_tracks(load_split(paths, "test"), others)
    table["fingerprint"] = load_metadata(paths)["fingerprint"]
    write_csv(paths.metrics / "near_copies.csv", table)
    print(table.to_string(index=False))
    return 0


def nearest_tracks(test: Segments, others: list[Segments]) -> pd.DataFrame:
    """Return the most similar track of other splits to each test track, most similar pairs first.

    Columns track, nearest, split (of the nearest), difference_db: the mean absolute difference of
    the log-mels over the first segments, as many as all tracks have.
    """
    n = min(data.table.groupby("track").size().min() for data in (test, *others))
    names, X = _of_tracks(test, n)
    found = pd.concat([_most_similar(names, X, data, n) for data in others])
    table = found.sort_values(["difference_db", "track"]).drop_duplicates("track")
    return table.reset_index(drop=True)


def _most_similar(names: np.ndarray, X: np.ndarray, data: Segments, n: int) -> pd.DataFrame:
    """Return the most similar track of one split to each track `names` with values X (n, cells)."""
    others, Y = _of_tracks(data, n)
    distances = cdist(X, Y, "cityblock") / X.shape[1] * DYNAMIC_RANGE_DB
    columns = {"track": names, "nearest": others[distances.argmin(axis=1)]}
    split = data.table["split"].iloc[0]
    return pd.DataFrame(columns | {"split": split, "difference_db": distances.min(axis=1)})


def _of_tracks(data: Segments, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return names of tracks and some frames of the first n segments of each (tracks, cells)."""
    rows = np.flatnonzero(data.table.groupby("track").cumcount() < n)
    first = data.take(rows[np.argsort(data.tracks[rows], kind="stable")])
    return first.tracks[::n], np.asarray(first.X)[:, :, ::EVERY].reshape(len(rows) // n, -1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
