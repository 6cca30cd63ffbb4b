"""Segments of 3 s with labels and table: read from disk, selected, and fed to training."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from src.data.features import HOP_LENGTH, N_MELS, SEGMENT_SAMPLES, WHOLE_FRAMES
from src.paths import RunPaths, require
from src.results import read_json
from src.runtime import chunks, forget_read

CHECKED_AT_ONCE = 256  # segments
METADATA = {"tracks_sha256", "segments_sha256", "genres", "front_end", "n_segments", "fingerprint"}


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments of one or more tracks.

    Attributes
    ----------
    X : log-mels (n, 128, 130) float32 in [0, 1]; an array or a read-only memory map
    y : genre numbers (n,) int64
    table : one row per segment: segment (row of its split's X), track, genre, start_s, split
    samples : audio (n, 66150) float32 at 22,050 Hz; None where it was not read
    """

    X: np.ndarray
    y: np.ndarray
    table: pd.DataFrame
    samples: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def tracks(self) -> np.ndarray:
        """The track (n,) of each segment."""
        return self.table["track"].to_numpy()

    @property
    def numbers(self) -> np.ndarray:
        """The number (n,) of each segment in its split."""
        return self.table["segment"].to_numpy()

    def take(self, rows: np.ndarray) -> "Segments":
        """Return the segments at some positions."""
        samples = None if self.samples is None else self.samples[rows]
        return Segments(self.X[rows], self.y[rows], self.table.iloc[rows], samples)

    def sample(self, n: int, seed: int) -> "Segments":
        """Return `n` segments spread evenly over the tracks; see `draw_segments`."""
        return self.take(draw_segments(self.tracks, n, seed))

    def sample_genres(self, n: int, seed: int) -> "Segments":
        """Return `n` segments in random order in which genres take turns, and tracks in each."""
        rows = pd.DataFrame({"track": self.tracks, "y": self.y}).sample(frac=1, random_state=seed)
        for key in ("track", "y"):
            rows = rows.iloc[rows.groupby(key).cumcount().argsort(kind="stable")]
        return self.take(rows.index[:n].to_numpy())

    def sample_tracks(self, n: int, seed: int) -> "Segments":
        """Return all segments of `n` tracks spread evenly over the genres; see `draw_tracks`."""
        return self.take(draw_tracks(self.table, n, seed))


def draw_segments(tracks: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return the sorted rows of `n` segments spread evenly over the tracks, at random within each.

    `tracks` (rows,) is the track of each row; all rows are returned if there are fewer than `n`.
    Raises ValueError if `n` is below 1 or NaN, or there are no rows.
    """
    if not n >= 1:
        raise ValueError(f"The number of segments is {n}: give n_segments of at least 1.")
    if len(tracks) == 0:
        raise ValueError("There are 0 segments to draw from: the split may be empty; widen it.")
    shuffled = pd.Series(tracks).sample(frac=1, random_state=seed)
    turn = shuffled.groupby(shuffled).cumcount()
    return np.sort(turn.sort_values(kind="stable").index[:n].to_numpy())


def draw_tracks(table: pd.DataFrame, n: int, seed: int) -> np.ndarray:
    """Return the sorted rows of all segments of `n` tracks spread evenly over the genres.

    `table` has one row per segment, with columns track and genre; all rows are returned if there
    are fewer tracks than `n`. Raises ValueError if `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"The number of tracks is {n}: give at least 1.")
    tracks = table.drop_duplicates("track").sample(frac=1, random_state=seed)
    turn = tracks.groupby("genre").cumcount()
    drawn = tracks.loc[turn.sort_values(kind="stable").index[:n], "track"]
    return np.flatnonzero(table["track"].isin(drawn))


def load_metadata(paths: RunPaths) -> dict:
    """Return `metadata.json` of a run; ValueError if the audit is newer than the arrays."""
    file = require(paths.processed / "metadata.json", "preprocess")
    metadata = read_json(file, METADATA)
    tracks = require(paths.processed / "tracks.csv", "explore")
    if metadata["tracks_sha256"] != file_hash(tracks):
        raise ValueError(
            f"data/processed/{paths.run}/metadata.json was made from another tracks.csv than the "
            "present one: the audit ran again since; run `make preprocess` again."
        )
    return metadata


def load_split(paths: RunPaths, split: str) -> Segments:
    """Return the segments of a split (train, val or test); X is a read-only memory map.

    Segments of a track with the samples of an earlier one have that one's name: they are one track
    in votes, in drawing and in intervals. Raises FileNotFoundError if a file is missing, ValueError
    if the array or the table are not those of the metadata or the split is empty.
    """
    metadata = load_metadata(paths)
    if not metadata["n_segments"][split]:
        raise ValueError(
            f"Run {paths.run} has no segments for {split}: with SPLIT=all every track is a test "
            "track; to train, run `make preprocess` with another SPLIT."
        )
    front_end = metadata["front_end"]
    shape = (metadata["n_segments"][split], front_end["n_mels"], front_end["frames"])
    X = _map_array(paths, f"{split}/X.npy", shape, np.float32)
    low, high = _range_of(X)
    if not (low >= 0 and high <= 1):
        raise _changed(paths, f"{split}/X.npy", f"reaches [{low}, {high}] instead of [0, 1]")
    file = require(paths.processed / "segments.csv", "preprocess")
    if file_hash(file) != metadata["segments_sha256"]:
        raise _changed(paths, file.name, "is not the table that was written with the arrays")
    table = load_table(paths)
    table = table[table["split"] == split].reset_index(drop=True)
    tracks = pd.read_csv(paths.processed / "tracks.csv", dtype=str, keep_default_na=False)
    copies = tracks[tracks["duplicate_of"] != ""].set_index("track")["duplicate_of"]
    table["track"] = table["track"].replace(copies.to_dict())
    y = pd.Categorical(table["genre"], categories=metadata["genres"]).codes.astype(np.int64)
    return Segments(X, y, table)


def load_table(paths: RunPaths) -> pd.DataFrame:
    """Return the table of all segments: track, genre, split, place in the track."""
    file = require(paths.processed / "segments.csv", "preprocess")
    return pd.read_csv(file, dtype={"track": str, "genre": str}, keep_default_na=False)


def load_whole_tracks(paths: RunPaths) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the training tracks for random crops.

    Returns
    -------
    spectrograms : (n, 128, 1292) float16, a read-only memory map; 1 + dB / 80 relative to each
        track's maximum. Of audio (n, 5, 128, 1292): see `src.data.features.edged_log_mel`
    lengths : (n,) frames that the whole segments of each track cover
    genres : (n,) int64 numbers
    """
    data = load_split(paths, "train")
    first = (data.table["start_s"] == 0).to_numpy()
    n_edges = load_metadata(paths).get("n_edges")  # none in arrays of earlier versions
    shape = (int(first.sum()), *([1 + n_edges] if n_edges else []), N_MELS, WHOLE_FRAMES)
    tracks = _map_array(paths, "train/tracks.npy", shape, np.float16)
    n_segments = np.diff(np.flatnonzero(first), append=len(first))
    lengths = np.minimum(n_segments * SEGMENT_SAMPLES // HOP_LENGTH + 1, tracks.shape[-1])
    return tracks, lengths, data.y[first]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class SegmentDataset(Dataset):
    """Segments (1, 128, 130) float32 in [0, 1] with their genre numbers, read on access."""

    def __init__(self, X: np.ndarray, y: np.ndarray):
        self.X, self.y = X, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch (len(rows), 1, 128, 130) and its labels in one read."""
        X = torch.from_numpy(np.asarray(self.X[rows]))[:, None]
        forget_read(self.X)
        return X, torch.from_numpy(self.y[rows])


def make_loader(dataset: SegmentDataset, batch_size: int, shuffle: bool = False) -> DataLoader:
    """Return batches of a dataset; the order comes from torch's global seed.

    When shuffling, a last batch of less than half the size is dropped, unless it is the only one:
    the batch norms of a few segments are noise, and one such step per epoch spoils the training.
    """
    rest = len(dataset) % batch_size
    drop_last = shuffle and len(dataset) > batch_size and 2 * rest < batch_size
    options = {"shuffle": shuffle, "drop_last": drop_last, "collate_fn": lambda batch: batch}
    return DataLoader(dataset, batch_size, **options)


def _map_array(paths: RunPaths, name: str, shape: tuple, dtype) -> np.ndarray:
    """Return a memory map of an array after checking its shape and type."""
    file = require(paths.processed / name, "preprocess")
    try:
        X = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _changed(paths, name, f"is no whole array ({error})") from error
    if X.shape != shape or X.dtype != dtype:
        stated = f"the metadata states {np.dtype(dtype)} {shape}"
        raise _changed(paths, name, f"is {X.dtype} {X.shape}, {stated}")
    return X


def _changed(paths: RunPaths, name: str, found: str) -> ValueError:
    """Return the error about a processed file that is not the one that was written."""
    return ValueError(
        f"data/processed/{paths.run}/{name} {found}: it was changed or cut after it was written; "
        "run `make preprocess`."
    )


def _range_of(X: np.ndarray) -> tuple[float, float]:
    """Return the lowest and the highest value of an array, NaN if there is one."""
    ends = np.array([(part.min(), part.max()) for part in chunks(X, CHECKED_AT_ONCE)])
    return ends[:, 0].min(), ends[:, 1].max()
