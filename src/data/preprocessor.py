"""From tracks to arrays: ten 3 s log-mel segments per track, streamed to disk."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from src.data.corpus import Corpus
from src.data.features import (
    DYNAMIC_RANGE_DB,
    EDGES,
    FRONT_END,
    N_FRAMES,
    N_MELS,
    SEGMENTS_PER_TRACK,
    WHOLE_FRAMES,
)
from src.data.splits import SPLITS, WHOLE
from src.progress import progress
from src.results import whole_file, write_csv, write_json
from src.runtime import one_thread

AHEAD = 128  # tracks that are transformed at most before the first of them is written


def write_processed(
    corpus: Corpus, tracks: pd.DataFrame, folder: Path, metadata: dict, n_jobs: int = 2
) -> dict:
    """Write the arrays of a run and return its metadata; memory does not grow with the corpus.

    All files are written into a temporary folder and moved at the end, `metadata.json` last: while
    it exists, all arrays are complete and belong together. After an error the earlier files remain.

    Parameters
    ----------
    tracks : the audit's table with a column `split`; unused rows and rows without a split are left
        out
    folder : for `{train,val,test}/X.npy`, `train/tracks.npy`, `segments.csv`, `metadata.json`
    metadata : facts to add to `metadata.json`; with the split "all" no track is needed for training
    n_jobs : tracks that are read at the same time

    Raises ValueError if a split has no tracks, a genre has no usable track to train on, or there is
    only one genre; OSError if a file cannot be written.
    """
    chosen = tracks[tracks["used"] & tracks["split"].isin(SPLITS)]
    needed = ["test"] if metadata.get("split") == WHOLE else SPLITS
    genres = _check_genres(corpus, tracks, chosen, needed)
    part = folder / ".part"
    shutil.rmtree(part, ignore_errors=True)  # of a killed run
    try:
        metadata = metadata | {"genres": genres} | _write_all(corpus, chosen, part, n_jobs)
        write_json(part / "metadata.json", metadata)
        _take_places(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return metadata


def segment_table(corpus: Corpus, tracks: pd.DataFrame) -> pd.DataFrame:
    """Return one row per segment: segment (row of its split's X), track, genre, start_s, split."""
    table = tracks.loc[tracks.index.repeat(tracks["n_segments"]), ["track", "genre", "split"]]
    number = table.groupby("track").cumcount().to_numpy()
    seconds = corpus.starts(SEGMENTS_PER_TRACK)[number]
    table = table.assign(start_s=seconds.round(4), segment=table.groupby("split").cumcount())
    by_split = [table[table["split"] == split] for split in SPLITS]
    return pd.concat(by_split)[["segment", "track", "genre", "start_s", "split"]]


def in_order(
    corpus: Corpus, work: Callable, rows: pd.DataFrame, n_jobs: int
) -> Iterator[np.ndarray]:
    """Yield `work(track)` of each row of the audit's table in order, computed by several workers.

    At most `AHEAD` tracks at a time: otherwise finished tracks would pile up before a slow disk.
    """
    if not corpus.has_audio:  # its arrays are in memory already
        yield from map(work, rows.itertuples())
        return
    for start in range(0, len(rows), AHEAD):
        jobs = (delayed(work)(track) for track in rows.iloc[start : start + AHEAD].itertuples())
        yield from Parallel(n_jobs, prefer="threads", return_as="generator")(jobs)


def _check_genres(
    corpus: Corpus, tracks: pd.DataFrame, chosen: pd.DataFrame, needed: Sequence[str]
) -> list[str]:
    """Return the genres of a corpus; ValueError if a model cannot be trained on all of them.

    `chosen` are the rows of `tracks` that are used; a genre without any in the first of the
    `needed` splits would vanish.
    """
    if empty := sorted(set(needed) - set(chosen["split"])):
        raise ValueError(
            f"{corpus.path} has no usable track for {', '.join(empty)}: the audit's column "
            "`reason` names the fault of each; repair or add tracks."
        )
    trained = chosen.loc[chosen["split"] == needed[0], "genre"]
    lost = tracks[~tracks["genre"].isin(["", *trained])]
    if len(lost):
        names, first = ", ".join(sorted(lost["genre"].unique())), lost.iloc[0]
        reason = first["reason"] or f"its split is {first['split'] or 'none'}"
        raise ValueError(
            f"{corpus.path} has no usable track of {names} to {needed[0]} on ({first['track']}: "
            f"{reason}): the genre would be missing from the results; repair its tracks or remove "
            "its folder, and run `make explore` again."
        )
    genres = sorted(chosen["genre"].unique())
    if len(genres) < 2:
        raise ValueError(
            f"{corpus.path} has usable tracks of {genres[0]} alone, and a classifier needs two "
            "genres: the other folders may be missing; add the tracks of another genre."
        )
    return genres


def _write_all(corpus: Corpus, tracks: pd.DataFrame, folder: Path, n_jobs: int) -> dict:
    """Write arrays and `segments.csv` into a folder; return the metadata of both."""
    digest = hashlib.sha256()
    with one_thread():
        for split in SPLITS:
            rows = tracks[tracks["split"] == split]
            blocks = in_order(corpus, corpus.segments, rows, n_jobs)
            blocks = progress(blocks, split, len(rows), unit="track")
            shape = (int(rows["n_segments"].sum()), N_MELS, N_FRAMES)
            _write_array(folder / split / "X.npy", blocks, shape, np.float32, digest)
        rows = tracks[tracks["split"] == "train"]
        blocks = map(_pad, in_order(corpus, corpus.for_crops, rows, n_jobs))
        blocks = progress(blocks, "whole tracks", len(rows), unit="track")
        shape = (len(rows), *([1 + len(EDGES)] * corpus.has_audio), N_MELS, WHOLE_FRAMES)
        _write_array(folder / "train" / "tracks.npy", blocks, shape, np.float16, digest)
    segments = segment_table(corpus, tracks)
    table = write_csv(folder / "segments.csv", segments).read_bytes()
    digest.update(table)
    return {
        "front_end": FRONT_END,
        "n_edges": len(EDGES) if corpus.has_audio else 0,
        "n_tracks": tracks["split"].value_counts().reindex(SPLITS, fill_value=0).to_dict(),
        "n_segments": segments["split"].value_counts().reindex(SPLITS, fill_value=0).to_dict(),
        "segments_sha256": hashlib.sha256(table).hexdigest(),
        "fingerprint": digest.hexdigest(),
    }


def _pad(decibel: np.ndarray) -> np.ndarray:
    """Return 1 + dB / 80 (1, ..., 1292) of the first 30 s of a track (..., frames) in dB.

    Relative to the track's maximum; negative where it is more than 80 dB below, since a crop is
    scaled to its own maximum; padded with zeros.
    """
    x = decibel[..., :WHOLE_FRAMES]
    x = 1 + (x - x.max()) / DYNAMIC_RANGE_DB
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, WHOLE_FRAMES - x.shape[-1])])[None]


def _write_array(path: Path, blocks: Iterator[np.ndarray], shape: tuple, dtype, digest) -> None:
    """Write blocks one after the other into an array at `path`, adding them to `digest`.

    Not through a memory map: on a full disk that kills the process instead of raising OSError.
    """
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    with whole_file(path) as part, part.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            content = np.ascontiguousarray(block, dtype=dtype)
            file.write(content)
            digest.update(content)


def _take_places(part: Path, folder: Path) -> None:
    """Move all files of one folder to the same places in another, its metadata first and last."""
    (folder / "metadata.json").unlink(missing_ok=True)
    files = [path.relative_to(part) for path in part.rglob("*") if path.is_file()]
    for name in sorted(files, key=lambda name: name.name == "metadata.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (part / name).replace(folder / name)
