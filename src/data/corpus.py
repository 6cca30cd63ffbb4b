"""Corpora: where tracks come from, how they are read, and what is wrong with them.

A corpus is a folder `<genre>/<genre>.NNNNN.<ending>` of audio, or one `.npz` archive with the
log-mel spectrograms of whole tracks. Both give the same table of tracks and the same segments.
"""

import hashlib
import os
import re
import zipfile
import zlib
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
from src.data.headers import truncation
from src.paths import RAW, ROOT, RunPaths, require, run_name
from src.results import check_room, read_json, write_json

ENDINGS = (".wav", ".au", ".flac", ".mp3", ".ogg")
NUMBER_FORMAT = "05d"
MISNAMED = "name"
PADDING_FRAMES = 3  # a last segment that lacks no more than these is used
LOG_MEL_FRAMES = 1293
LONGEST_S = 60  # no more of a track is read: ten segments take half of it
RATES_HZ, MOST_CHANNELS = (1000, 384_000), 8
LOUDEST = 2.0**31  # of a file of 32-bit integers stored as floats
UNPACKED_BYTES = 4 * 2**30  # 25 times an archive of all of GTZAN
CLIPPED_AT = 0.999
SILENT_BELOW_DB = -60.0
SILENCE_WINDOW = 1024
COLUMNS = (
    "track genre path duration_s sample_rate_hz channels peak clipped silent sha256 "
    "n_segments used duplicate_of reason"
).split()
UNREADABLE = (sf.SoundFileError, OSError, ValueError, MemoryError)
TEXTS = ("track", "genre", "path", "sha256", "duplicate_of", "reason")


def open_corpus(dataset: str, tracks_per_genre: int, seed: int) -> Path:
    """Return the folder or `.npz` archive of a data set, after making or fetching it if need be.

    `dataset` is `synthetic` (composed here, `tracks_per_genre` tracks a genre), `gtzan_mini` or
    `gtzan` (downloaded), or a path. Raises FileNotFoundError for a path that does not exist.
    """
    if dataset == "synthetic":
        music = synthetic.code_hash()
        folder = RAW / f"synthetic_{tracks_per_genre}_per_genre_seed_{seed}_{music}"
        return _compose(folder, tracks_per_genre, seed)
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


def _compose(folder: Path, tracks_per_genre: int, seed: int) -> Path:
    """Write the embedded corpus and return its folder; OSError if there is no room for it."""
    try:
        return synthetic.make_corpus(folder, tracks_per_genre, seed)
    except (OSError, sf.SoundFileError):
        check_room(folder)
        raise


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
    """Return the audit's table of tracks, as `audit` made it; ValueError if it is another."""
    file = require(paths.processed / "tracks.csv", "explore")
    empty_is_missing = {name: [""] for name in set(COLUMNS) - set(TEXTS)}
    tracks = pd.read_csv(
        file,
        dtype=dict.fromkeys(TEXTS, str),
        keep_default_na=False,
        na_values=empty_is_missing,
    )
    if tracks.columns.tolist() != COLUMNS or tracks["used"].dtype != bool:
        raise ValueError(
            f"{file} is not the audit's table: it may have been edited or cut; run `make explore`."
        )
    return tracks


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
        samples, rate, _ = read_samples(corpus / track.path)
        same = hashlib.sha256(samples.tobytes()).hexdigest() == track.sha256
    except UNREADABLE:
        same = False
    if not same:
        raise ValueError(
            f"{track.path} is not the file that was audited: it was changed or removed since; "
            "run `make explore` again."
        )
    return to_mono(samples, rate)


def read_audio(path: Path) -> np.ndarray:
    """Return a track's samples, mono float32 at 22,050 Hz, the first minute at most.

    Raises one of UNREADABLE if the file cannot be read.
    """
    samples, rate, _ = read_samples(path)
    return to_mono(samples, rate)


def read_samples(path: Path) -> tuple[np.ndarray, int, int]:
    """Return samples (time, channels) float32, the rate in Hz, the frames that the file states.

    Reads the first minute at most, so that memory is bounded. Raises one of UNREADABLE, ValueError
    among them for what is no file (a pipe would wait for ever) or has an unlikely rate or number
    of channels.
    """
    if path.exists() and not path.is_file():
        raise ValueError("neither a file nor a link to one")
    with sf.SoundFile(path) as file:
        rate, channels = file.samplerate, file.channels
        if not (RATES_HZ[0] <= rate <= RATES_HZ[1] and channels <= MOST_CHANNELS):
            raise ValueError(f"{channels} channels at {rate} Hz, the header may be damaged")
        frames = min(file.frames, LONGEST_S * rate)
        return file.read(frames, dtype="float32", always_2d=True), rate, file.frames


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
    arrays = _unpack(archive)
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
    _check_values(archive, arrays)
    return arrays


def _unpack(archive: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an archive; no pickled code is executed, no bomb is unpacked."""
    try:
        with zipfile.ZipFile(archive) as file:
            size = sum(entry.file_size for entry in file.infolist())
        if size > UNPACKED_BYTES:
            raise ValueError(f"{size} bytes when unpacked")
        with np.load(archive, allow_pickle=False) as file:
            return dict(file)
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, KeyError) as error:
        raise ValueError(
            f"{archive} is not a whole .npz archive of plain arrays ({error}): it may be half "
            "copied or damaged; fetch it again."
        ) from error


def _check_values(archive: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError for arrays of another type or with values that mean nothing."""
    n_frames, floor_db, names = arrays["n_frames"], arrays["floor_db"], arrays["names"]
    genres = [str(name).rpartition(".")[0] for name in names]
    wrong = {
        "no track": names.size == 0,
        "X that is not uint8": arrays["X"].dtype != np.uint8,
        "exact that is not boolean": arrays["exact"].dtype != bool,
        "n_frames that are not integers": n_frames.dtype.kind not in "iu",
        "n_frames below 0": n_frames.min(initial=0) < 0,  # above X: the track was cut to fit
        "floor_db that is not below 0": not np.all(np.isfinite(floor_db) & (floor_db < 0)),
        "the same name twice": len(set(names.tolist())) < len(names),
        "names that are not <genre>.NNNNN": any(
            not re.fullmatch(r".+\.\d{5}", str(name)) for name in names
        ),
        "names of another genre than y": genres != [str(genre) for genre in arrays["y"]],
    }
    found = [what for what, is_so in wrong.items() if is_so]
    if found:
        raise ValueError(
            f"{archive} has {found[0]}: it is not an archive of log-mels as described in "
            "docs/documentation.md; make it again."
        )


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
    """Return all audio files below a folder, hidden files and folders left out.

    Links are followed, each folder is entered once. Raises PermissionError, and its like, for a
    folder that cannot be listed.
    """
    found, entered = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        entered.add(os.path.realpath(parent))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and os.path.realpath(os.path.join(parent, name)) not in entered
        )
        found += [
            Path(parent, name)
            for name in names
            if name.lower().endswith(ENDINGS) and not name.startswith(".")
        ]
    return found


def _refuse_folder(error: OSError) -> None:
    """Raise the error of a folder that cannot be listed, told in one sentence."""
    raise type(error)(
        f"{error.filename} cannot be listed ({error.strerror}): the permissions or the disk may be "
        "at fault; mend them or take the folder out of the corpus."
    )


def _is_named(path: Path) -> bool:
    """Tell whether a file's name is text and begins with the one of its folder, its genre."""
    return path.name.startswith(f"{path.parent.name}.") and _shown(path) == path.as_posix()


def _shown(path: Path) -> str:
    """Return a path as text, with what is not UTF-8 in it escaped."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


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
        "track": _shown(path),
        "genre": _shown(Path(path.parent.name)),
        "path": _shown(path),
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
        samples, rate, frames = read_samples(path)
        row |= measure(samples, rate) | {"duration_s": frames / rate}
        reason = _fault(row, path, min(frames, LONGEST_S * rate) - len(samples))
    except UNREADABLE as error:
        reason = " ".join(str(error).replace(str(path), path.name).split())
        return row | {"reason": f"unreadable: {reason}"}
    return row | {"reason": reason, "used": not reason}


def measure(samples: np.ndarray, rate: int) -> dict:
    """Return duration, peak, clipping, silence, hash and segments of samples (time, channels)."""
    windows = samples[: len(samples) // SILENCE_WINDOW * SILENCE_WINDOW]
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told as damaged
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


def _fault(row: dict, path: Path, n_lacking: int) -> str:
    """Return why a readable track, decoded but for `n_lacking` frames, is left out, or nothing."""
    if sf.info(path).format == "RAW":
        return "unreadable: no header of an audio file"
    if lacking := truncation(path):
        return f"truncated: {lacking}"
    if n_lacking > 0:
        return f"truncated: {row['duration_s']:.2f} s promised, {n_lacking} samples lack"
    if not np.isfinite(row["peak"]):
        return "damaged: samples that are not finite"
    if row["peak"] > LOUDEST:
        return f"damaged: samples up to {row['peak']:.3g}, full scale is 1"
    if row["n_segments"] == 0:
        return f"too short: {row['duration_s']:.2f} s, one segment takes 3 s"
    if row["silent"] == 1:
        return f"silent: peak {row['peak']:.5f}"
    return ""


def _log_mel_rows(archive: Path) -> list[dict]:
    """Describe every track of a log-mel archive; numbers left out are listed as missing.

    Missing tracks take part in the split, so that it is the one of the audio.
    """
    arrays = read_log_mels(archive)
    rows = {}
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
            "reason": _log_mel_fault(frames, arrays["exact"][i]),
        }
        rows[name]["used"] = not rows[name]["reason"]
    per_genre = max(int(name.rpartition(".")[2]) for name in rows) + 1
    names = [f"{g}.{n:{NUMBER_FORMAT}}" for g in sorted(set(arrays["y"])) for n in range(per_genre)]
    return [rows.get(name, _missing_row(name)) for name in names]


def _log_mel_segments(frames: int) -> int:
    """Return how many segments a track of so many frames holds."""
    starts = np.round(np.arange(SEGMENTS_PER_TRACK) * FRAMES_BETWEEN_SEGMENTS)
    return int((starts + N_FRAMES <= frames + PADDING_FRAMES).sum())


def _log_mel_fault(frames: int, exact: np.ndarray) -> str:
    """Return why a track of an archive is left out, or an empty string."""
    if not _log_mel_segments(frames):
        return f"too short: {frames} frames"
    return "" if exact[:frames].any() else "damaged: no frame that was measured"


def _missing_row(name: str) -> dict:
    """Describe a track that the numbering names and the archive lacks."""
    return {
        "track": name,
        "genre": name.rpartition(".")[0],
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
