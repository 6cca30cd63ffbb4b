"""A track of the reader's own: any length and format, read as segments or refused in one sentence.

libsndfile reads what the corpora hold; ffmpeg, where it is installed, other formats.
"""

import mmap
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.data.audio import (
    CONVERT,
    ENDINGS,
    OTHER_AUDIO,
    SILENT_BELOW_DB,
    UNREADABLE,
    Decoded,
    file_fault,
    measure,
    read_samples,
    to_mono,
    unreadable,
)
from src.data.features import SEGMENT_SAMPLES, SEGMENT_SECONDS
from src.paths import walk_files

LONGEST_S = 600  # of a track are used
PROTECTED = re.compile(rb"stsd.{12}(drms|drmi|enca)", re.DOTALL)  # in MP4: its kind of samples


class OwnTrack(NamedTuple):
    """The segments of a track that are not silent.

    Attributes
    ----------
    name : of the file
    samples : (n, 66150) mono float32 at 22,050 Hz
    starts_s : (n,) where each segment begins
    used_s : seconds that were read, whole segments of them
    length_s : of the whole file in seconds; None if it is longer than `used_s` and unknown
    """

    name: str
    samples: np.ndarray
    starts_s: np.ndarray
    used_s: float
    length_s: float | None


def own_tracks(paths: list[Path]) -> list[Path]:
    """Return files, and the audio in folders at any depth, by name.

    Raises FileNotFoundError for a path that does not exist and for a folder without audio.
    """
    found = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist: the name may be mistyped or its quotation marks missing; "
                "give the path of an audio file, or of a folder of them."
            )
        inside = sorted(walk_files(path)) if path.is_dir() else [path]
        audio = [file for file in inside if file.suffix.lower() in ENDINGS + OTHER_AUDIO]
        if path.is_dir() and not audio:
            raise FileNotFoundError(
                f"{path} has {len(inside)} files and no audio ({', '.join(ENDINGS + OTHER_AUDIO)}) "
                "among them: it may be the wrong folder; give one with audio files."
            )
        found += audio if path.is_dir() else [path]
    return found


def read_track(path: Path) -> OwnTrack:
    """Return the segments of a track's first ten minutes.

    Raises ValueError, in one sentence, for a file that is no audio, protected, damaged, cut,
    shorter than a segment or silent.
    """
    name = path.name.encode("utf-8", "backslashreplace").decode()
    decoded = _decode(path)
    row = measure(decoded.samples, decoded.rate)
    if fault := file_fault(row, path, decoded):
        raise ValueError(f"{name} is not used: {fault}.")
    mono = to_mono(decoded.samples, decoded.rate)
    n = len(mono) // SEGMENT_SAMPLES
    segments = mono[: n * SEGMENT_SAMPLES].reshape(n, SEGMENT_SAMPLES)
    loud = np.flatnonzero(segments.var(axis=1) >= 10 ** (SILENT_BELOW_DB / 10))
    if not len(loud):
        raise ValueError(
            f"{name} is silent: none of its {n} segments of 3 s reaches {SILENT_BELOW_DB:.0f} dB "
            "of full scale; the export may have failed, give another file."
        )
    seconds = len(decoded.samples) / decoded.rate
    known = decoded.stated or seconds < LONGEST_S
    length_s = (decoded.stated or len(decoded.samples)) / decoded.rate if known else None
    return OwnTrack(name, segments[loud], loud * SEGMENT_SECONDS, n * SEGMENT_SECONDS, length_s)


def _decode(path: Path) -> Decoded:
    """Return the first ten minutes of a file, read by libsndfile or else by ffmpeg."""
    if not path.is_file():
        raise ValueError(f"{path} is neither a file nor a link to one: give an audio file.")
    try:
        with _quiet_decoder():
            return read_samples(path, LONGEST_S)
    except UNREADABLE as error:
        if path.suffix.lower() in ENDINGS:
            raise ValueError(f"{path.name} is not used: {unreadable(path, error)}.") from error
    if _is_protected(path):
        raise ValueError(
            f"{path.name} is protected against copying (DRM): only its shop's player can read it; "
            "give a copy without protection, as WAV or MP3."
        )
    return _decode_by_ffmpeg(path)


@contextmanager
def _quiet_decoder() -> Iterator[None]:
    """Silence the error output of the process: libmpg123 writes there what it finds in an MP3."""
    with open(os.devnull, "wb") as nothing:
        kept = os.dup(2)
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _decode_by_ffmpeg(path: Path) -> Decoded:
    """Return what ffmpeg decodes of a file's first ten minutes; it stops at the first error."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise ValueError(
            f"{path.name} is not in a format that is read without ffmpeg ({', '.join(ENDINGS)}): "
            f"install ffmpeg, or {CONVERT}."
        )
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "decoded.wav"
        source = ["-nostdin", "-v", "error", "-xerror", "-i", f"file:{path.resolve()}"]
        target = ["-vn", "-t", str(LONGEST_S), "-c:a", "pcm_s16le", str(wav)]
        done = subprocess.run([ffmpeg, *source, *target], capture_output=True, check=False)
        if done.returncode or not wav.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            said = said[-1].replace(source[-1], path.name).rstrip(".")
            raise ValueError(
                f"{path.name} is not used: ffmpeg cannot decode it ({said}); it may be no audio, "
                "cut, damaged or protected against copying, copy it again or convert it to WAV."
            )
        return read_samples(wav, LONGEST_S)._replace(stated=None)


def _is_protected(path: Path) -> bool:
    """Return whether an MP4 holds encrypted samples."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return PROTECTED.search(content) is not None
