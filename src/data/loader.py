"""Reading what `preprocess` wrote: memory-mapped arrays, their table, PyTorch datasets."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from src.data.frontend import HOP_LENGTH, SEGMENT_SAMPLES
from src.paths import RunPaths, require
from src.results import read_json
from src.runtime import chunks, forget_read

CHECKED_AT_ONCE = 256  # segments
METADATA_PARTS = {
    "tracks_sha256",
    "segments_sha256",
    "genres",
    "front_end",
    "n_segments",
    "fingerprint",
}


class SegmentDataset(Dataset):
    """Segments (1, 128, 130) float32 in [0, 1] with their genre's number, read when asked for."""

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

    A last batch of one segment is dropped when shuffling: batch norm cannot train on it.
    """
    drop_last = shuffle and len(dataset) % batch_size == 1
    return DataLoader(dataset, batch_size, shuffle=shuffle, drop_last=drop_last, collate_fn=_as_is)


def load_metadata(paths: RunPaths) -> dict:
    """Return `metadata.json` of a run, after checking that it belongs to the run's tracks.

    Raises FileNotFoundError if a file is missing, ValueError if the audit is newer than the
    arrays; both name the stage to run.
    """
    file = require(paths.processed / "metadata.json", "preprocess")
    metadata = read_json(file, METADATA_PARTS)
    tracks = require(paths.processed / "tracks.csv", "explore")
    if metadata["tracks_sha256"] != file_hash(tracks):
        raise ValueError(
            f"data/processed/{paths.run}/metadata.json was made from another tracks.csv than the "
            "one beside it: the audit ran again since; run `make preprocess` again."
        )
    return metadata


def load_split(paths: RunPaths, split: str) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Return X (n, 128, 130) as a read-only memory map, y (n,) int64 and the segments' table.

    Raises ValueError if the array or the table are not those that the metadata states.
    """
    metadata = load_metadata(paths)
    file = require(paths.processed / split / "X.npy", "preprocess")
    front_end = metadata["front_end"]
    stated = (metadata["n_segments"][split], front_end["n_mels"], front_end["frames"])
    X, found = _map_array(file)
    if X is None or X.shape != stated or X.dtype != np.float32:
        raise ValueError(
            f"data/processed/{paths.run}/{split}/X.npy is {found}, the metadata states "
            f"float32 {stated}: it is not the file that was written; run `make preprocess`."
        )
    low, high = _range_of(X)
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"data/processed/{paths.run}/{split}/X.npy reaches [{low}, {high}] instead of "
            "[0, 1]: it is not the file that was written; run `make preprocess`."
        )
    file = require(paths.processed / "segments.csv", "preprocess")
    if file_hash(file) != metadata["segments_sha256"]:
        raise ValueError(
            f"data/processed/{paths.run}/segments.csv is not the table that was written with the "
            "arrays: it was changed or cut; run `make preprocess`."
        )
    table = pd.read_csv(file, dtype={"track": str, "genre": str}, keep_default_na=False)
    table = table[table["split"] == split].reset_index(drop=True)
    y = pd.Categorical(table["genre"], categories=metadata["genres"]).codes.astype(np.int64)
    return X, y, table


def load_whole_tracks(paths: RunPaths) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the training tracks for random crops: spectrograms, lengths in frames, genres.

    Spectrograms (n, 128, 1292) float16 as a read-only memory map, 1 + dB / 80 relative to each
    track's maximum; lengths (n,) cover the whole segments of each; genres (n,) int64 numbers.
    """
    _, y, segments = load_split(paths, "train")
    first = ~segments["track"].duplicated().to_numpy()
    tracks, found = _map_array(require(paths.processed / "train" / "tracks.npy", "preprocess"))
    if tracks is None or tracks.dtype != np.float16 or tracks.shape[0] != first.sum():
        raise ValueError(
            f"data/processed/{paths.run}/train/tracks.npy is {found}, the metadata states "
            f"{first.sum()} float16 tracks: it is not the file that was written; "
            "run `make preprocess`."
        )
    n_segments = segments.groupby("track", sort=False).size().to_numpy()
    lengths = np.minimum(n_segments * SEGMENT_SAMPLES // HOP_LENGTH + 1, tracks.shape[2])
    return tracks, lengths, y[first]


def _map_array(file: Path) -> tuple[np.ndarray | None, str]:
    """Return a memory map of an array, None if it is no whole array, and what was found."""
    try:
        X = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        return None, f"no whole array ({error})"
    return X, f"{X.dtype} {X.shape}"


def _range_of(X: np.ndarray) -> tuple[float, float]:
    """Return the lowest and the highest value of an array, NaN if there is one."""
    ends = np.array([(part.min(), part.max()) for part in chunks(X, CHECKED_AT_ONCE)])
    return ends[:, 0].min(), ends[:, 1].max()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_is(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pass on a batch that was read whole."""
    return batch
