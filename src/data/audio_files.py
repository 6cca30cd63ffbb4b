"""Audio files of a corpus: found, read, measured for the audit, each fault with its reason."""

import hashlib
from collections import Counter
from pathlib import Path

import librosa
import numpy as np
import soundfile as sf
from joblib import Parallel, delayed

from src.data.frontend import SAMPLE_RATE, SEGMENT_SAMPLES, SEGMENTS_PER_TRACK
from src.data.headers import truncation
from src.paths import walk_files
from src.progress import progress

ENDINGS = (".wav", ".au", ".flac", ".mp3", ".ogg")
LONGEST_S = 60  # no more of a track is read: ten segments take half of it
RATES_HZ, MOST_CHANNELS = (1000, 384_000), 8
LOUDEST = 2.0**31  # of a file of 32-bit integers stored as floats
CLIPPED_AT = 0.999
SILENT_BELOW_DB = -60.0
SILENCE_WINDOW = 1024
UNREADABLE = (sf.SoundFileError, OSError, ValueError, MemoryError)


def find_tracks(folder: Path) -> list[Path]:
    """Return the audio files `<genre>/<genre>.*`, at whatever depth the genre folders lie.

    Hidden files are passed over. Raises FileNotFoundError if there are none, ValueError if two
    files bear the same track name, as when two copies of the corpus lie in one folder.
    """
    files = {}
    found = filter(_is_named, walk_audio(folder))
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
        same = hashlib.sha256(samples).hexdigest() == track.sha256
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
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    return (
        mono if rate == SAMPLE_RATE else librosa.resample(mono, orig_sr=rate, target_sr=SAMPLE_RATE)
    )


def audio_rows(folder: Path, n_jobs: int) -> list[dict]:
    """Return one row an audio file of a folder, for the audit; tracks first, then other names."""
    paths = find_tracks(folder)
    jobs = (delayed(_audio_row)(path, folder) for path in paths)
    results = Parallel(n_jobs, prefer="threads", return_as="generator")(jobs)
    rows = list(progress(results, "audit", len(paths), unit="track"))
    misnamed = sorted(path for path in walk_audio(folder) if not _is_named(path))
    return rows + [_misnamed_row(path.relative_to(folder)) for path in misnamed]


def measure(samples: np.ndarray, rate: int) -> dict:
    """Return duration, peak, clipping, silence, hash and segments of samples (time, channels)."""
    windows = samples[: len(samples) // SILENCE_WINDOW * SILENCE_WINDOW]
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told as damaged
        mono = windows.mean(axis=1)  # what is used: opposite channels leave silence
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


def _audio_row(path: Path, folder: Path) -> dict:
    """Measure one audio file; what cannot be used carries its reason."""
    row = {
        "track": path.stem,
        "genre": path.parent.name,
        "path": path.relative_to(folder).as_posix(),
        "named": True,
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


def _misnamed_row(path: Path) -> dict:
    """Describe an audio file (relative to the corpus) that is no track by its name."""
    return {
        "track": _shown(path),
        "genre": _shown(Path(path.parent.name)),
        "path": _shown(path),
        "named": False,
        "n_segments": 0,
        "used": False,
        "reason": "name: not <genre>.NNNNN in a folder <genre>",
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


def walk_audio(folder: Path) -> list[Path]:
    """Return all audio files below a folder, as `walk_files` finds them."""
    return [path for path in walk_files(folder) if path.suffix.lower() in ENDINGS]


def passed_over(folder: Path) -> dict[str, int]:
    """Return how many files below a folder are no audio by their ending, by ending.

    Files without an ending, as `rock.00003` or `rock`, are counted as "no ending".
    """
    endings = Counter(_ending(path) for path in walk_files(folder))
    return {ending: n for ending, n in sorted(endings.items()) if ending not in ENDINGS}


def _ending(path: Path) -> str:
    """Return the ending of a file's name in small letters; a number is none."""
    return "no ending" if path.suffix[1:].isdigit() else path.suffix.lower() or "no ending"


def _is_named(path: Path) -> bool:
    """Tell whether a file's name is text and begins with the one of its folder, its genre."""
    return path.name.startswith(f"{path.parent.name}.") and _shown(path) == path.as_posix()


def _shown(path: Path) -> str:
    """Return a path as text, with what is not UTF-8 in it escaped."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()
