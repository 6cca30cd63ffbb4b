"""Audio files of a corpus: found, read, and measured for the audit; a fault becomes a reason."""

import hashlib
from collections import Counter
from pathlib import Path

import librosa
import numpy as np
import soundfile as sf
from joblib import Parallel, delayed

from src.data.features import SAMPLE_RATE, SEGMENT_SAMPLES, SEGMENTS_PER_TRACK
from src.paths import walk_files
from src.progress import progress

ENDINGS = (".wav", ".au", ".flac", ".mp3", ".ogg")
LONGEST_S = 60  # read of a track: its ten segments take 30 s
RATES_HZ, MOST_CHANNELS = (1000, 384_000), 8
LOUDEST = 2.0**31  # 32-bit integers stored as floats
CLIPPED_AT = 0.999
SILENT_BELOW_DB = -60.0
SILENCE_WINDOW = 1024
UNREADABLE = (sf.SoundFileError, OSError, ValueError, MemoryError)
UNKNOWN_LENGTH = 0xFFFFFFFF
OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # the largest page
OGG_LAST_PAGE = 4


def find_tracks(folder: Path) -> list[Path]:
    """Return the audio files `<genre>/<genre>.*` at any depth below a folder, by genre and name.

    Raises FileNotFoundError if there are none, ValueError if two files have the same track name, as
    in two copies of the corpus.
    """
    files = {}
    found = filter(_is_named, audio_files(folder))
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


def audio_files(folder: Path) -> list[Path]:
    """Return all audio files below a folder, hidden ones left out."""
    return [path for path in walk_files(folder) if path.suffix.lower() in ENDINGS]


def ignored_files(folder: Path) -> dict[str, int]:
    """Return the number of files below a folder without an ending of audio, by ending."""
    endings = Counter(_ending(path) for path in walk_files(folder))
    return {ending: n for ending, n in sorted(endings.items()) if ending not in ENDINGS}


def read_verified(path: Path, sha256: str) -> np.ndarray:
    """Return a track as `read_audio` does; ValueError if its samples are not the audited ones."""
    try:
        samples, rate, _ = read_samples(path)
        same = hashlib.sha256(samples).hexdigest() == sha256
    except UNREADABLE:
        same = False
    if not same:
        raise ValueError(
            f"{path} is not the file that was audited: it was changed or removed since; "
            "run `make explore` again."
        )
    return to_mono(samples, rate)


def read_audio(path: Path) -> np.ndarray:
    """Return a track (time,), mono float32 at 22,050 Hz, one minute at most."""
    samples, rate, _ = read_samples(path)
    return to_mono(samples, rate)


def read_samples(path: Path) -> tuple[np.ndarray, int, int]:
    """Return the first minute of a file: bounded memory, whatever the header says.

    Returns
    -------
    samples : (time, channels) float32
    rate : in Hz
    frames : length of the whole file in frames, according to its header

    Raises one of UNREADABLE; ValueError for a pipe (it would block) and for an unlikely rate or
    number of channels.
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
    """Return samples (time, channels) at `rate` Hz as mono (time,) at 22,050 Hz."""
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    return (
        mono if rate == SAMPLE_RATE else librosa.resample(mono, orig_sr=rate, target_sr=SAMPLE_RATE)
    )


def audio_rows(folder: Path, n_jobs: int) -> list[dict]:
    """Return one row per audio file for the audit: tracks first, then files with other names."""
    paths = find_tracks(folder)
    jobs = (delayed(audio_row)(path, folder) for path in paths)
    results = Parallel(n_jobs, prefer="threads", return_as="generator")(jobs)
    rows = list(progress(results, "audit", len(paths), unit="track"))
    for path in sorted(path for path in audio_files(folder) if not _is_named(path)):
        inside = path.relative_to(folder)
        reason = "name: not <genre>.NNNNN in a folder <genre>"
        rows.append(_row(_as_text(inside), inside, named=False) | {"reason": reason})
    return rows


def audio_row(path: Path, folder: Path) -> dict:
    """Return the row of one audio file; `reason` says why it is not used."""
    row = _row(path.stem, path.relative_to(folder), named=True)
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
    with np.errstate(over="ignore", invalid="ignore"):  # samples that are not finite are a fault
        mono = windows.mean(axis=1)  # opposite channels cancel in the log-mel, too
        energy = np.square(mono.reshape(-1, SILENCE_WINDOW)).mean(axis=1)
    return {
        "duration_s": len(samples) / rate,
        "sample_rate_hz": rate,
        "channels": samples.shape[1],
        "peak": float(np.abs(samples).max(initial=0)),
        "clipped": float((np.abs(samples) >= CLIPPED_AT).mean()) if len(samples) else 0.0,
        "silent": float((energy < 10 ** (SILENT_BELOW_DB / 10)).mean()) if len(energy) else 1.0,
        "sha256": hashlib.sha256(samples).hexdigest(),
        "n_segments": min(
            int(len(samples) * SAMPLE_RATE / rate) // SEGMENT_SAMPLES, SEGMENTS_PER_TRACK
        ),
    }


def _row(track: str, path: Path, named: bool) -> dict:
    """Return the row of an audio file (relative to the corpus) that is not used."""
    names = {"track": track, "genre": _as_text(Path(path.parent.name)), "path": _as_text(path)}
    return names | {"named": named, "n_segments": 0, "used": False}


def _fault(row: dict, path: Path, n_missing: int) -> str:
    """Return the fault of a file whose decoding lacks `n_missing` frames; empty if it has none."""
    if sf.info(path).format == "RAW":
        return "unreadable: no header of an audio file"
    if missing := _truncation(path):
        return f"truncated: {missing}"
    if n_missing > 0:
        return f"truncated: {row['duration_s']:.2f} s promised, {n_missing} samples missing"
    if not np.isfinite(row["peak"]):
        return "damaged: samples that are not finite"
    if row["peak"] > LOUDEST:
        return f"damaged: samples up to {row['peak']:.3g}, full scale is 1"
    if row["n_segments"] == 0:
        return f"too short: {row['duration_s']:.2f} s, one segment takes 3 s"
    return f"silent: peak {row['peak']:.5f}" if row["silent"] == 1 else ""


def _truncation(path: Path) -> str:
    """Return how a file is shorter than its header states; empty if it is not.

    WAV and AU headers hold a length in bytes, Ogg marks its last page. FLAC and MP3 hold a number
    of frames, which `_fault` compares with the decoded ones.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"OggS":
            file.seek(max(0, size - OGG_PAGE_BYTES))
            return "" if _ends_with_last_page(file.read()) else f"no last page in {size} bytes"
    start, length = 0, UNKNOWN_LENGTH
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        start, length = 8, int.from_bytes(head[4:8], "little")
    elif head[:4] == b".snd":
        start, length = (int.from_bytes(head[i : i + 4], "big") for i in (4, 8))
    promised = 0 if length == UNKNOWN_LENGTH else start + length
    return f"{promised} bytes promised, {size} there" if promised > size else ""


def _ends_with_last_page(tail: bytes) -> bool:
    """Return whether the end of an Ogg file is a whole page with the mark of the last one."""
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27:
        return False
    lacing = page[27 : 27 + page[26]]
    return len(page) >= 27 + page[26] + sum(lacing) and bool(page[5] & OGG_LAST_PAGE)


def _ending(path: Path) -> str:
    """Return the ending of a file's name in small letters; a number is none."""
    return "no ending" if path.suffix[1:].isdigit() else path.suffix.lower() or "no ending"


def _is_named(path: Path) -> bool:
    """Return whether a file's name is valid text and begins with its folder's, the genre."""
    return path.name.startswith(f"{path.parent.name}.") and _as_text(path) == path.as_posix()


def _as_text(path: Path) -> str:
    """Return a path with bytes that are not UTF-8 escaped."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()
