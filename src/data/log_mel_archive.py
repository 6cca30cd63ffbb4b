"""Corpora of one archive with the log-mels of whole tracks: read, checked, listed for the audit.

The format is described in docs/documentation.md.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from src.data.features import (
    HOP_LENGTH,
    N_FRAMES,
    N_MELS,
    SAMPLE_RATE,
    SEGMENTS_PER_TRACK,
    log_mel_starts,
    segment_log_mel,
)

KEYS = {"X", "exact", "floor_db", "n_frames", "names", "y", "genres"}
PADDING_FRAMES = 3  # the last segment may lack as many
LOG_MEL_FRAMES = 1293
REMEDY = "it may have been left out, make the archive again if it should be used"


@dataclass(frozen=True)
class LogMelArchive:
    """A corpus of one `.npz` archive; the interface is that of `src.data.audio.AudioFolder`."""

    path: Path
    name: str
    seed: ClassVar[None] = None
    has_audio: ClassVar[bool] = False

    def rows(self, n_jobs: int) -> list[dict]:
        """Return one row per track for the audit; `n_jobs` has no effect.

        Numbers that the archive skips are listed as missing: they take part in the split, which is
        then the one of the audio.
        """
        arrays = read_archive(self.path)
        rows = {str(name): _row(self.path, arrays, i) for i, name in enumerate(arrays["names"])}
        per_genre = max(int(name.rpartition(".")[2]) for name in rows) + 1
        names = [f"{g}.{n:05d}" for g in sorted(set(arrays["y"])) for n in range(per_genre)]
        return [rows.get(name, _missing_row(name)) for name in names]

    def ignored_files(self) -> dict[str, int]:
        """Return no files: an archive holds nothing but tracks."""
        return {}

    def read(self, track) -> np.ndarray:
        """Raise ValueError: an archive has no samples."""
        raise ValueError(
            f"{self.path.name} has log-mels and no audio: {track.track} cannot be read; "
            "give a corpus of audio as DATASET."
        )

    def segments(self, track) -> np.ndarray:
        """Return the log-mels (n_segments, 128, 130) in [0, 1] of a track's segments."""
        return segment_log_mel(self.log_mel(track), track.n_segments)

    def log_mel(self, track) -> np.ndarray:
        """Return the log-mel (128, frames) of a whole track in dB, missing frames interpolated.

        Raises ValueError if the track is not the audited one.
        """
        arrays, row = read_archive(self.path), track.row
        if row >= len(arrays["X"]) or _sha256(arrays, row) != track.sha256:
            raise ValueError(
                f"{self.path} is not the archive that was audited: it was changed or replaced "
                "since; run `make explore` again."
            )
        exact = arrays["exact"][row]
        measured = exact & (np.arange(len(exact)) < arrays["n_frames"][row])
        return fill_frames(arrays["X"][row], measured, float(arrays["floor_db"][row]))

    for_crops = log_mel

    def starts(self, n: int) -> np.ndarray:
        """Return the starts (n,) of a track's first segments in seconds."""
        return log_mel_starts(n) * HOP_LENGTH / SAMPLE_RATE


def read_archive(archive: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an archive: X, exact, floor_db, n_frames, names, y, genres.

    The last archive stays in memory until its file changes.

    Raises ValueError if the file is no whole archive, or if an array is missing, has another shape
    or type, or meaningless values.
    """
    return _read(archive, archive.stat().st_mtime_ns if archive.exists() else 0)


@lru_cache(maxsize=1)
def _read(archive: Path, _modified_ns: int) -> dict[str, np.ndarray]:
    try:
        with np.load(archive, allow_pickle=False) as file:  # pickled code is not executed
            arrays = dict(file)
    except Exception as error:  # damaged bytes raise nearly anything
        found = (str(error) or type(error).__name__).split(". ")[0]
        raise ValueError(
            f"{archive} is not a whole .npz archive of plain arrays ({found}): it may be cut or "
            "damaged; copy it again."
        ) from error
    found = _fault_of_shapes(arrays) or _fault_of_values(arrays)
    if found:
        raise ValueError(
            f"{archive} {found}: it is not an archive of log-mels as described in "
            "docs/documentation.md; make it again."
        )
    return arrays


def fill_frames(values: np.ndarray, exact: np.ndarray, floor_db: float) -> np.ndarray:
    """Return 8-bit log-mels in dB, missing frames interpolated along time, ends held.

    Parameters
    ----------
    values : uint8 (n_mels, frames), where dB = floor_db * (1 - values / 255)
    exact : which frames (frames,) were measured
    """
    known = np.flatnonzero(exact)
    frames = np.arange(values.shape[1])
    right = np.clip(np.searchsorted(known, frames), 0, len(known) - 1)
    left = np.clip(right - (known[right] > frames), 0, None)
    gap = np.maximum(known[right] - known[left], 1)
    weight = np.clip((frames - known[left]) / gap, 0, 1).astype(np.float32)
    decibel = floor_db * (1 - values[:, known].astype(np.float32) / 255)
    return decibel[:, left] * (1 - weight) + decibel[:, right] * weight


def _row(archive: Path, arrays: dict[str, np.ndarray], i: int) -> dict:
    """Return the row of one track; `reason` says why it is not used."""
    frames, exact = int(arrays["n_frames"][i]), arrays["exact"][i]
    n_segments = int(
        (log_mel_starts(SEGMENTS_PER_TRACK) + N_FRAMES <= frames + PADDING_FRAMES).sum()
    )
    reason = "" if exact[:frames].any() else f"damaged: no frame that was measured; {REMEDY}"
    reason = reason if n_segments else f"too short: {frames} frames, a segment takes 130; {REMEDY}"
    return {
        "track": str(arrays["names"][i]),
        "genre": str(arrays["y"][i]),
        "path": archive.name,
        "row": i,
        "named": True,
        "duration_s": frames * HOP_LENGTH / SAMPLE_RATE,
        "sha256": _sha256(arrays, i),
        "n_segments": n_segments,
        "used": not reason,
        "reason": reason,
    }


def _sha256(arrays: dict[str, np.ndarray], i: int) -> str:
    return hashlib.sha256(arrays["X"][i].tobytes() + arrays["exact"][i].tobytes()).hexdigest()


def _missing_row(name: str) -> dict:
    return {
        "track": name,
        "genre": name.rpartition(".")[0],
        "named": True,
        "n_segments": 0,
        "used": False,
        "reason": f"missing: the archive has no such track; {REMEDY}",
    }


def _fault_of_shapes(arrays: dict[str, np.ndarray]) -> str:
    """Return which array is missing or has another shape; empty if none."""
    if missing := KEYS - set(arrays):
        return f"lacks {', '.join(sorted(missing))}"
    n, frames = arrays["names"].size, max(arrays["X"].shape[-1:], default=0)
    shapes = dict.fromkeys(("floor_db", "n_frames", "names", "y"), (n,))
    shapes |= {"X": (n, N_MELS, max(frames, LOG_MEL_FRAMES)), "exact": (n, frames)}
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            return f"has {key} of shape {arrays[key].shape} instead of {shape}"
    return ""


def _fault_of_values(arrays: dict[str, np.ndarray]) -> str:
    """Return which array has another type or meaningless values; empty if none."""
    n_frames, floor_db, names = arrays["n_frames"], arrays["floor_db"], arrays["names"]
    genres = [str(name).rpartition(".")[0] for name in names]
    faults = {
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
    return next((f"has {fault}" for fault, is_so in faults.items() if is_so), "")
