"""Archives of log-mels of whole tracks: checked, read, listed for the audit.

The format is described in docs/documentation.md.
"""

import hashlib
import re
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from src.data.frontend import (
    HOP_LENGTH,
    N_FRAMES,
    N_MELS,
    SAMPLE_RATE,
    SEGMENTS_PER_TRACK,
    log_mel_starts,
)

NUMBER_FORMAT = "05d"
PADDING_FRAMES = 3  # a last segment that lacks no more than these is used
LOG_MEL_FRAMES = 1293
UNPACKED_BYTES = 4 * 2**30  # 25 times an archive of all of GTZAN


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


def read_decibel(archive: Path, row: int) -> np.ndarray:
    """Return dB (128, frames) of one track of an archive, missing frames interpolated."""
    arrays = read_log_mels(archive)
    exact = arrays["exact"][row]
    measured = exact & (np.arange(len(exact)) < arrays["n_frames"][row])
    return fill_frames(arrays["X"][row], measured, float(arrays["floor_db"][row]))


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


def log_mel_rows(archive: Path) -> list[dict]:
    """Return one row a track of a log-mel archive, for the audit; numbers left out are missing.

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
            "path": archive.name,
            "row": i,
            "named": True,
            "duration_s": frames * HOP_LENGTH / SAMPLE_RATE,
            "sha256": hashlib.sha256(content).hexdigest(),
            "n_segments": _log_mel_segments(frames),
            "reason": _log_mel_fault(frames, arrays["exact"][i]),
        }
        rows[name]["used"] = not rows[name]["reason"]
    per_genre = max(int(name.rpartition(".")[2]) for name in rows) + 1
    names = [f"{g}.{n:{NUMBER_FORMAT}}" for g in sorted(set(arrays["y"])) for n in range(per_genre)]
    return [rows.get(name, _missing_row(name)) for name in names]


def _unpack(archive: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an archive; no pickled code is executed, no bomb is unpacked."""
    try:
        with zipfile.ZipFile(archive) as file:
            size = sum(entry.file_size for entry in file.infolist())
        if size > UNPACKED_BYTES:
            raise ValueError(f"{size} bytes when unpacked")
        with np.load(archive, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # damaged bytes raise nearly anything
        found = (str(error) or type(error).__name__).split(". ")[0]
        raise ValueError(
            f"{archive} is not a whole .npz archive of plain arrays ({found}): it may be half "
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


def _log_mel_segments(frames: int) -> int:
    """Return how many segments a track of so many frames holds."""
    starts = log_mel_starts(SEGMENTS_PER_TRACK)
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
        "named": True,
        "n_segments": 0,
        "used": False,
        "reason": "missing: the archive has no such track",
    }
