"""Corpora: where tracks come from, how they are read, and what is wrong with them.

A corpus is a folder `<genre>/<genre>.NNNNN.<ending>` of audio, or one `.npz` archive with the
log-mel spectrograms of whole tracks. Both give the same table of tracks and the same segments.
"""

import hashlib
import os
import re
import zipfile
from functools import lru_cache
from pathlib import Path

import librosa
import numpy as np
import pandas as pd
import soundfile as sf
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from src.data import download, synthetic
from src.data.frontend import (
    FRAMES_BETWEEN_SEGMENTS,
    HOP_LENGTH,
    N_FRAMES,
    N_MELS,
    SAMPLE_RATE,
    SEGMENT_SAMPLES,
    SEGMENTS_PER_TRACK,
)
from src.paths import RAW, ROOT, RunPaths, require, run_name
from src.results import read_json, write_json

ENDINGS = (".wav", ".au", ".flac", ".mp3", ".ogg")
NUMBER_FORMAT = "05d"
MISNAMED = "name"
PADDING_FRAMES = 3  # a last segment that lacks no more than these is used
LOG_MEL_FRAMES = 1293
UNKNOWN_LENGTH = 0xFFFFFFFF
CLIPPED_AT = 0.999
SILENT_BELOW_DB = -60.0
SILENCE_WINDOW = 1024
COLUMNS = (
    "track genre path duration_s sample_rate_hz channels peak clipped silent sha256 "
    "n_segments used duplicate_of reason"
).split()
TEXTS = ("track", "genre", "path", "sha256", "duplicate_of", "reason")


def open_corpus(dataset: str, tracks_per_genre: int, seed: int) -> Path:
    """Return the folder or `.npz` archive of a data set, after making or fetching it if need be.

    `dataset` is `synthetic` (composed here, `tracks_per_genre` tracks a genre), `gtzan_mini` or
    `gtzan` (downloaded), or a path. Raises FileNotFoundError for a path that does not exist.
    """
    if dataset == "synthetic":
        music = synthetic.code_hash()
        folder = RAW / f"synthetic_{tracks_per_genre}_per_genre_seed_{seed}_{music}"
        return synthetic.make_corpus(folder, tracks_per_genre, seed)
    if dataset == "gtzan_mini":
        return download.fetch_gtzan_mini(RAW / dataset)
    if dataset == "gtzan":
        return download.fetch_gtzan(RAW / dataset)
    path = (ROOT / Path(dataset).expanduser()).resolve()
    if not path.exists():
        raise FileNotFoundError(
            f"DATASET={dataset} is neither synthetic, gtzan_mini, gtzan nor an existing path "
            f"({path} is not there): give a path from the repository's root or one of the names."
        )
    archives = sorted(path.glob("*.npz")) if path.is_dir() else []
    return archives[0] if len(archives) == 1 else path


def claim_run(paths: RunPaths, corpus: Path, dataset: str) -> None:
    """Note in `source.json` which corpus a run is made of.

    Raises ValueError if the run already belongs to another one: its results are not overwritten.
    """
    source = paths.processed / "source.json"
    shown = str(corpus.relative_to(ROOT) if corpus.is_relative_to(ROOT) else corpus)
    if source.exists() and (other := read_json(source)["path"]) != shown:
        raise ValueError(
            f"Run {paths.run} was made of {other}, not of {shown}: its results are kept; "
            "give RUN another name."
        )
    write_json(source, {"corpus": run_name(dataset), "path": shown})


def source_of(paths: RunPaths) -> tuple[Path, str]:
    """Return the path and the name of the corpus that a run is made of."""
    source = read_json(require(paths.processed / "source.json", "explore"))
    return ROOT / source["path"], source["corpus"]


def load_tracks(paths: RunPaths) -> pd.DataFrame:
    """Return the audit's table of tracks, as `audit` made it."""
    file = require(paths.processed / "tracks.csv", "explore")
    return pd.read_csv(file, dtype=dict.fromkeys(TEXTS, str)).fillna(dict.fromkeys(TEXTS, ""))


def is_log_mel(corpus: Path) -> bool:
    """Tell whether a corpus is an archive of log-mels rather than a folder of audio."""
    return corpus.suffix == ".npz"


def audit(corpus: Path, n_jobs: int = 2) -> pd.DataFrame:
    """Return the table of tracks: what each is, whether it is used, and if not, why.

    One row a track in the order genre, number, then audio files that are no tracks by their name.
    Fractions `clipped` and `silent` are of samples and of windows of 1024 samples below -60 dB
    full scale; `sha256` is of the decoded samples. Tracks with the same samples stay in use,
    `duplicate_of` names the first of them.
    """
    rows = _log_mel_rows(corpus) if is_log_mel(corpus) else _audio_rows(corpus, n_jobs)
    tracks = pd.DataFrame(rows).reindex(columns=COLUMNS)
    return _mark_duplicates(tracks)


def find_tracks(folder: Path) -> list[Path]:
    """Return the audio files `<genre>/<genre>.*`, at whatever depth the genre folders lie.

    Hidden files are passed over. Raises FileNotFoundError if there are none, ValueError if two
    files bear the same track name, as when two copies of the corpus lie in one folder.
    """
    files = {}
    found = filter(_is_named, _walk(folder))
    for path in sorted(found, key=lambda p: (p.parent.name, p.name)):
        if path.stem in files:
            raise ValueError(
                f"{path} and {files[path.stem]} are both track {path.stem}: two copies of the "
                "corpus seem to lie in one folder; give the folder of one of them."
            )
        files[path.stem] = path
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no tracks <genre>/<genre>.NNNNN with ending {', '.join(ENDINGS)}: "
            "it may be the wrong folder; give the one whose sub-folders are genres."
        )
    return list(files.values())


def read_used(corpus: Path, track) -> np.ndarray:
    """Return the samples of a track in use (a row of the audit's table), as `read_audio` does.

    Raises ValueError if the file is not the one that was audited.
    """
    try:
        samples, rate = sf.read(corpus / track.path, dtype="float32", always_2d=True)
        same = hashlib.sha256(samples.tobytes()).hexdigest() == track.sha256
    except (sf.LibsndfileError, OSError):
        same = False
    if not same:
        raise ValueError(
            f"{track.path} is not the file that was audited: it was changed or removed since; "
            "run `make explore` again."
        )
    return to_mono(samples, rate)


def read_audio(path: Path) -> np.ndarray:
    """Return a track's samples, mono float32 at 22,050 Hz.

    Raises sf.LibsndfileError if the file cannot be read.
    """
    samples, rate = sf.read(path, dtype="float32", always_2d=True)
    return to_mono(samples, rate)


def to_mono(samples: np.ndarray, rate: int) -> np.ndarray:
    """Turn (time, channels) at `rate` Hz into mono at 22,050 Hz."""
    mono = samples.mean(axis=1)
    return (
        mono if rate == SAMPLE_RATE else librosa.resample(mono, orig_sr=rate, target_sr=SAMPLE_RATE)
    )


@lru_cache(maxsize=1)
def read_log_mels(archive: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a log-mel archive: X, exact, floor_db, n_frames, names, y, genres.

    Raises ValueError if one is missing or of another shape, or the file is not a whole archive.
    """
    if not zipfile.is_zipfile(archive):
        raise ValueError(
            f"{archive} is not a whole .npz archive: it may be half copied; fetch it again."
        )
    with np.load(archive, allow_pickle=False) as file:
        arrays = dict(file)
    missing = {"X", "exact", "floor_db", "n_frames", "names", "y", "genres"} - set(arrays)
    if missing:
        raise ValueError(
            f"{archive} lacks {', '.join(sorted(missing))}: it is not an archive of log-mels "
            "as described in docs/documentation.md."
        )
    n, frames = arrays["names"].size, max(arrays["X"].shape[-1:], default=0)
    shapes = dict.fromkeys(("floor_db", "n_frames", "names", "y"), (n,))
    shapes |= {"X": (n, N_MELS, max(frames, LOG_MEL_FRAMES)), "exact": (n, frames)}
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise ValueError(
                f"{archive} has {key} of shape {arrays[key].shape} instead of {shape}: it is not "
                "an archive of log-mels as described in docs/documentation.md."
            )
    return arrays


def fill_frames(values: np.ndarray, exact: np.ndarray, floor_db: float) -> np.ndarray:
    """Return dB (n_mels, frames) of 8-bit log-mels, missing frames interpolated along time.

    `values` is uint8 (n_mels, frames), dB = floor_db * (1 - values / 255); `exact` marks the
    frames that were measured. Linear interpolation in dB, ends held.
    """
    known = np.flatnonzero(exact)
    frames = np.arange(values.shape[1])
    right = np.clip(np.searchsorted(known, frames), 0, len(known) - 1)
    left = np.clip(right - (known[right] > frames), 0, None)
    gap = np.maximum(known[right] - known[left], 1)
    weight = np.clip((frames - known[left]) / gap, 0, 1).astype(np.float32)
    decibel = floor_db * (1 - values[:, known].astype(np.float32) / 255)
    return decibel[:, left] * (1 - weight) + decibel[:, right] * weight


def _walk(folder: Path) -> list[Path]:
    """Return all audio files below a folder, hidden files and folders left out."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(parent, name)
            for name in names
            if name.lower().endswith(ENDINGS) and not name.startswith(".")
        ]
    return found


def _is_named(path: Path) -> bool:
    """Tell whether a file's name begins with the one of its folder, its genre."""
    return path.name.startswith(f"{path.parent.name}.")


def _audio_rows(folder: Path, n_jobs: int) -> list[dict]:
    """Measure every audio file of a folder."""
    paths = find_tracks(folder)
    jobs = (delayed(_audio_row)(path, folder) for path in paths)
    results = Parallel(n_jobs, prefer="threads", return_as="generator")(jobs)
    rows = list(tqdm(results, total=len(paths), desc="audit", unit="track"))
    misnamed = sorted(path for path in _walk(folder) if not _is_named(path))
    return rows + [_misnamed_row(path.relative_to(folder)) for path in misnamed]


def _misnamed_row(path: Path) -> dict:
    """Describe an audio file (relative to the corpus) that is no track by its name."""
    return {
        "track": path.as_posix(),
        "genre": path.parent.name,
        "path": path.as_posix(),
        "n_segments": 0,
        "used": False,
        "reason": f"{MISNAMED}: not <genre>.NNNNN in a folder <genre>",
    }


def _audio_row(path: Path, folder: Path) -> dict:
    """Measure one audio file; what cannot be used carries its reason."""
    row = {
        "track": path.stem,
        "genre": path.parent.name,
        "path": path.relative_to(folder).as_posix(),
        "n_segments": 0,
        "used": False,
    }
    try:
        samples, rate = sf.read(path, dtype="float32", always_2d=True)
    except (sf.LibsndfileError, OSError) as error:
        reason = str(error).replace(str(path), path.name)
        return row | {"reason": f"unreadable: {reason}"}
    row |= measure(samples, rate)
    reason = _fault(row, path)
    return row | {"reason": reason, "used": not reason}


def measure(samples: np.ndarray, rate: int) -> dict:
    """Return duration, peak, clipping, silence, hash and segments of samples (time, channels)."""
    windows = samples[: len(samples) // SILENCE_WINDOW * SILENCE_WINDOW]
    energy = np.square(windows.reshape(-1, SILENCE_WINDOW * samples.shape[1])).mean(axis=1)
    return {
        "duration_s": len(samples) / rate,
        "sample_rate_hz": rate,
        "channels": samples.shape[1],
        "peak": float(np.abs(samples).max(initial=0)),
        "clipped": float((np.abs(samples) >= CLIPPED_AT).mean()) if len(samples) else 0.0,
        "silent": float((energy < 10 ** (SILENT_BELOW_DB / 10)).mean()) if len(energy) else 1.0,
        "sha256": hashlib.sha256(samples.tobytes()).hexdigest(),
        "n_segments": min(
            int(len(samples) * SAMPLE_RATE / rate) // SEGMENT_SAMPLES, SEGMENTS_PER_TRACK
        ),
    }


def _fault(row: dict, path: Path) -> str:
    """Return why a readable track is left out, or an empty string."""
    if sf.info(path).format == "RAW":
        return "unreadable: no header of an audio file"
    promised = _promised_bytes(path)
    if promised > path.stat().st_size:
        return f"truncated: {promised} bytes promised, {path.stat().st_size} there"
    if not np.isfinite(row["peak"]):
        return "damaged: samples that are not finite"
    if row["n_segments"] == 0:
        return f"too short: {row['duration_s']:.2f} s, one segment takes 3 s"
    if row["silent"] == 1:
        return f"silent: peak {row['peak']:.5f}"
    return ""


def _promised_bytes(path: Path) -> int:
    """Return the length in bytes that a WAV or AU header gives its file, 0 if it gives none."""
    with path.open("rb") as file:
        head = file.read(12)
    start, length = 0, UNKNOWN_LENGTH
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        start, length = 8, int.from_bytes(head[4:8], "little")
    elif head[:4] == b".snd":
        start, length = (int.from_bytes(head[i : i + 4], "big") for i in (4, 8))
    return 0 if length == UNKNOWN_LENGTH else start + length


def _log_mel_rows(archive: Path) -> list[dict]:
    """Describe every track of a log-mel archive; numbers left out are listed as missing.

    Missing tracks take part in the split, so that it is the one of the audio.
    """
    arrays = read_log_mels(archive)
    rows = {}
    odd = [name for name in map(str, arrays["names"]) if not re.fullmatch(r".+\.\d+", name)]
    if odd:
        raise ValueError(f"{archive} names a track {odd[0]}: names must be <genre>.NNNNN.")
    for i, name in enumerate(map(str, arrays["names"])):
        frames = int(arrays["n_frames"][i])
        content = arrays["X"][i].tobytes() + arrays["exact"][i].tobytes()
        rows[name] = {
            "track": name,
            "genre": str(arrays["y"][i]),
            "path": f"{archive.name}#{i}",
            "duration_s": frames * HOP_LENGTH / SAMPLE_RATE,
            "sha256": hashlib.sha256(content).hexdigest(),
            "n_segments": _log_mel_segments(frames),
            "used": _log_mel_segments(frames) > 0,
            "reason": "" if _log_mel_segments(frames) else f"too short: {frames} frames",
        }
    per_genre = max(int(name.split(".")[1]) for name in rows) + 1
    names = [f"{g}.{n:{NUMBER_FORMAT}}" for g in sorted(set(arrays["y"])) for n in range(per_genre)]
    return [rows.get(name, _missing_row(name)) for name in names]


def _log_mel_segments(frames: int) -> int:
    """Return how many segments a track of so many frames holds."""
    starts = np.round(np.arange(SEGMENTS_PER_TRACK) * FRAMES_BETWEEN_SEGMENTS)
    return int((starts + N_FRAMES <= frames + PADDING_FRAMES).sum())


def _missing_row(name: str) -> dict:
    """Describe a track that the numbering names and the archive lacks."""
    return {
        "track": name,
        "genre": name.split(".")[0],
        "n_segments": 0,
        "used": False,
        "reason": "missing: the archive has no such track",
    }


def _mark_duplicates(tracks: pd.DataFrame) -> pd.DataFrame:
    """Name in `duplicate_of` the first track with the same samples, and say so in `reason`."""
    tracks = tracks.astype({"reason": object, "sha256": object, "duplicate_of": object})
    known = tracks[tracks["used"].astype(bool)]
    first = known.groupby("sha256")["track"].transform("first")
    for i in first.index[first != known["track"]]:
        original = known.loc[known["track"] == first[i]].iloc[0]
        conflict = "" if original["genre"] == tracks.at[i, "genre"] else ", under another genre"
        tracks.at[i, "duplicate_of"] = original["track"]
        tracks.at[i, "reason"] = f"duplicate: the same samples as {original['track']}{conflict}"
    return tracks.fillna({"reason": "", "duplicate_of": "", "sha256": ""})
