"""From tracks to arrays: ten 3-second log-mel segments a track, streamed to memory maps."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

from src.data import audio_files, log_mels
from src.data import corpus as corpora
from src.data.frontend import (
    DYNAMIC_RANGE_DB,
    FRAMES_BETWEEN_SEGMENTS,
    HOP_LENGTH,
    N_FFT,
    N_FRAMES,
    N_MELS,
    SAMPLE_RATE,
    SEGMENT_SAMPLES,
    SEGMENT_SECONDS,
    SEGMENTS_PER_TRACK,
    LogMel,
    to_unit,
)
from src.data.splits import SPLITS
from src.progress import progress
from src.results import whole_file, write_csv, write_json
from src.runtime import one_thread

AHEAD = 128  # tracks that are transformed at most before the first of them is written
WHOLE_FRAMES = 1 + SEGMENTS_PER_TRACK * SEGMENT_SAMPLES // HOP_LENGTH
FRONT_END = {
    "sample_rate_hz": SAMPLE_RATE,
    "segment_s": SEGMENT_SECONDS,
    "n_fft": N_FFT,
    "hop_length": HOP_LENGTH,
    "n_mels": N_MELS,
    "frames": N_FRAMES,
    "scale": "dB = 80 * (x - 1), relative to the segment's maximum",
}


def segment_audio(samples: np.ndarray, n_segments: int, front_end: LogMel) -> np.ndarray:
    """Return the first segments (n_segments, 128, 130) in [0, 1] of samples at 22,050 Hz."""
    segments = samples[: n_segments * SEGMENT_SAMPLES].reshape(n_segments, SEGMENT_SAMPLES)
    with torch.inference_mode():
        return front_end(torch.from_numpy(segments)).numpy()


def segment_log_mel(decibel: np.ndarray, n_segments: int) -> np.ndarray:
    """Return segments (n_segments, 128, 130) in [0, 1] of a track's dB (128, frames).

    Segment k starts at frame round(k * 129.2); 0 dB is the loudest bin of each segment.
    """
    starts = log_mel_starts(n_segments)
    segments = np.stack([decibel[:, start : start + N_FRAMES] for start in starts])
    return to_unit(segments - segments.max(axis=(1, 2), keepdims=True))


def log_mel_starts(n_segments: int) -> np.ndarray:
    """Return the first frame of each segment of a log-mel track."""
    return np.round(np.arange(n_segments) * FRAMES_BETWEEN_SEGMENTS).astype(int)


def track_spectrogram(corpus: Path, track) -> np.ndarray:
    """Return the log-mel (128, frames) in [0, 1] of a whole track, a row of the audit's table."""
    if corpora.is_log_mel(corpus):
        decibel = _track_decibel(log_mels.read_log_mels(corpus), track)
        return to_unit(decibel - decibel.max())
    samples = audio_files.read_audio(corpus / track.path)
    with torch.inference_mode():
        return LogMel()(torch.from_numpy(samples)[None]).numpy()[0]


def write_processed(
    corpus: Path, tracks: pd.DataFrame, folder: Path, metadata: dict, n_jobs: int = 2
) -> dict:
    """Write `{train,val,test}/X.npy`, `train/tracks.npy`, `segments.csv`, `metadata.json`.

    `tracks` is the audit's table with a column `split`; rows that are not used or have no split
    are left out. A track is read, transformed, written and forgotten. All is made beside what was
    there and takes its place at the end, `metadata.json` last: while that is there, all arrays are
    whole and belong together. Returns its content. Raises ValueError if a split is left without
    tracks, a genre without training tracks or all tracks are of one genre, OSError if the disk
    takes no more; what was there stays.
    """
    tracks = tracks[tracks["used"] & tracks["split"].isin(SPLITS)]
    genres = _check_tracks(corpus, tracks)
    part = folder / ".part"
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    try:
        metadata = metadata | {"genres": genres} | _write_all(corpus, tracks, part, n_jobs)
        write_json(part / "metadata.json", metadata)
        _take_places(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return metadata


def _write_all(corpus: Path, tracks: pd.DataFrame, folder: Path, n_jobs: int) -> dict:
    """Write arrays and `segments.csv` into a folder; return what the metadata tell of them."""
    digest = hashlib.sha256()
    with one_thread():
        _write_arrays(corpus, tracks, folder, n_jobs, digest)
    segments = segment_table(tracks, corpora.is_log_mel(corpus))
    table = write_csv(folder / "segments.csv", segments).read_bytes()
    digest.update(table)
    return {
        "front_end": FRONT_END,
        "n_tracks": tracks["split"].value_counts().reindex(SPLITS, fill_value=0).to_dict(),
        "n_segments": segments["split"].value_counts().reindex(SPLITS, fill_value=0).to_dict(),
        "segments_sha256": hashlib.sha256(table).hexdigest(),
        "fingerprint": digest.hexdigest(),
    }


def _take_places(part: Path, folder: Path) -> None:
    """Move all files of one folder to the same places in another, its metadata first and last."""
    (folder / "metadata.json").unlink(missing_ok=True)
    files = [path.relative_to(part) for path in part.rglob("*") if path.is_file()]
    for name in sorted(files, key=lambda name: name.name == "metadata.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (part / name).replace(folder / name)


def _check_tracks(corpus: Path, tracks: pd.DataFrame) -> list[str]:
    """Return the genres of tracks with their splits; ValueError if they cannot be learnt."""
    empty = sorted(set(SPLITS) - set(tracks["split"]))
    if empty:
        raise ValueError(
            f"{corpus} has no usable track for {', '.join(empty)}: the audit's column `reason` "
            "says what is wrong with each; mend or add tracks."
        )
    genres = sorted(tracks["genre"].unique())
    untaught = sorted(set(genres) - set(tracks.loc[tracks["split"] == "train", "genre"]))
    if untaught:
        raise ValueError(
            f"{corpus} has no usable track of {', '.join(untaught)} to train on: the audit's "
            "column `reason` says what is wrong with each track; mend or add tracks."
        )
    if len(genres) < 2:
        raise ValueError(
            f"{corpus} has usable tracks of {genres[0]} alone, and a network tells genres apart: "
            "the folder of one genre may have been given; give the one above it."
        )
    return genres


def _write_arrays(corpus: Path, tracks: pd.DataFrame, folder: Path, n_jobs: int, digest) -> None:
    """Write the segments of each split and the whole training tracks."""
    for split in SPLITS:
        rows = tracks[tracks["split"] == split]
        blocks = progress(_segments_of(corpus, rows, n_jobs), split, len(rows), unit="track")
        shape = (int(rows["n_segments"].sum()), N_MELS, N_FRAMES)
        _write_array(folder / split / "X.npy", blocks, shape, np.float32, digest)
    rows = tracks[tracks["split"] == "train"]
    blocks = progress(_whole_tracks(corpus, rows, n_jobs), "whole tracks", len(rows), unit="track")
    shape = (len(rows), N_MELS, WHOLE_FRAMES)
    _write_array(folder / "train" / "tracks.npy", blocks, shape, np.float16, digest)


def segment_table(tracks: pd.DataFrame, log_mel: bool) -> pd.DataFrame:
    """Return one row a segment: segment (row of its split's X), track, genre, start_s, split."""
    table = tracks.loc[tracks.index.repeat(tracks["n_segments"]), ["track", "genre", "split"]]
    number = table.groupby("track").cumcount().to_numpy()
    seconds = number * SEGMENT_SECONDS
    if log_mel:
        seconds = np.round(number * FRAMES_BETWEEN_SEGMENTS) * HOP_LENGTH / SAMPLE_RATE
    table = table.assign(start_s=seconds.round(4), segment=table.groupby("split").cumcount())
    by_split = [table[table["split"] == split] for split in SPLITS]
    return pd.concat(by_split)[["segment", "track", "genre", "start_s", "split"]]


def _segments_of(corpus: Path, rows: pd.DataFrame, n_jobs: int) -> Iterator[np.ndarray]:
    """Yield the segments of each track in order."""
    if corpora.is_log_mel(corpus):
        yield from _log_mel_segments(corpus, rows)
        return
    yield from _of_tracks(_audio_segments, corpus, rows, n_jobs)


def _audio_segments(corpus: Path, track, front_end: LogMel) -> np.ndarray:
    """Read one track and return its segments."""
    return segment_audio(audio_files.read_used(corpus, track), track.n_segments, front_end)


def _log_mel_segments(archive: Path, rows: pd.DataFrame) -> Iterator[np.ndarray]:
    """Yield the segments of each track of an archive of whole log-mels."""
    arrays = log_mels.read_log_mels(archive)
    for row in rows.itertuples():
        yield segment_log_mel(_track_decibel(arrays, row), row.n_segments)


def _whole_tracks(corpus: Path, rows: pd.DataFrame, n_jobs: int) -> Iterator[np.ndarray]:
    """Yield 1 + dB / 80 (1, 128, 1292) of the first 30 s of each track, for random crops.

    Relative to the track's maximum and below 0 where it is more than 80 dB under it, since a crop
    is brought to a maximum of its own; padded with zeros.
    """
    if corpora.is_log_mel(corpus):
        arrays = log_mels.read_log_mels(corpus)
        yield from (_pad(_track_decibel(arrays, row)) for row in rows.itertuples())
        return
    yield from map(_pad, _of_tracks(_audio_decibel, corpus, rows, n_jobs))


def _of_tracks(
    work: Callable, corpus: Path, rows: pd.DataFrame, n_jobs: int
) -> Iterator[np.ndarray]:
    """Yield what `work` makes of each track in order, by several workers.

    A slow disk must not let finished tracks pile up: joblib itself would go on and on.
    """
    front_end = LogMel()
    for start in range(0, len(rows), AHEAD):
        tracks = rows.iloc[start : start + AHEAD].itertuples()
        jobs = (delayed(work)(corpus, track, front_end) for track in tracks)
        yield from Parallel(n_jobs, prefer="threads", return_as="generator")(jobs)


def _audio_decibel(corpus: Path, track, front_end: LogMel) -> np.ndarray:
    """Return dB (128, frames) of a track of audio."""
    samples = torch.from_numpy(audio_files.read_used(corpus, track))
    with torch.inference_mode():
        return front_end.decibel(samples[None]).numpy()[0]


def _pad(decibel: np.ndarray) -> np.ndarray:
    """Return 1 + dB / 80 (1, 128, 1292) of dB (128, frames), cut or padded with zeros."""
    x = 1 + (decibel[:, :WHOLE_FRAMES] - decibel[:, :WHOLE_FRAMES].max()) / DYNAMIC_RANGE_DB
    return np.pad(x, ((0, 0), (0, WHOLE_FRAMES - x.shape[1])))[None]


def _track_decibel(arrays: dict[str, np.ndarray], track) -> np.ndarray:
    """Return dB (128, frames) of one track of an archive, missing frames filled."""
    i = int(track.path.split("#")[1])
    exact = arrays["exact"][i] & (np.arange(arrays["exact"].shape[1]) < arrays["n_frames"][i])
    return log_mels.fill_frames(arrays["X"][i], exact, float(arrays["floor_db"][i]))


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
