"""Corpora of audio files: found, read, and measured for the audit; a fault becomes a reason."""

import hashlib
import io
import os
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import librosa
import numpy as np
import soundfile as sf
import torch
from joblib import Parallel, delayed

from src.data.features import (
    SAMPLE_RATE,
    SEGMENT_SAMPLES,
    SEGMENT_SECONDS,
    SEGMENTS_PER_TRACK,
    edged_log_mel,
    front_end,
    segment_audio,
)
from src.paths import walk_files
from src.progress import progress

ENDINGS = (".wav", ".au", ".flac", ".mp3", ".ogg")
OTHER_AUDIO = (".m4a", ".mp4", ".aac", ".wma", ".aif", ".aiff", ".opus", ".ape", ".wv")
LONGEST_S = 60  # read of a track: its ten segments take 30 s
RATES_HZ, MOST_CHANNELS = (1000, 384_000), 8
LOUDEST = 2.0**31  # 32-bit integers stored as floats
CLIPPED_AT = 0.999
SILENT_BELOW_DB = -60.0
SILENCE_WINDOW = 1024
UNREADABLE = (sf.SoundFileError, OSError, ValueError, MemoryError)
UNKNOWN_BYTES = 2**31 - 2**16  # stated, or more, by programs that write into a pipe
UNKNOWN_FRAMES = 2**62
SLACK_BYTES = 256  # stated too many by headers that count themselves
TAG_BYTES = 16_384  # more than the tags at the end of a file take
OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # the largest page
CONVERT = "convert the file to WAV"
CUT = "the copy may have been cut, copy the file again"


class Decoded(NamedTuple):
    """The first minute of an audio file, or more.

    Attributes
    ----------
    samples : (time, channels) float32
    rate : in Hz
    stated : length of the whole file in frames by its header; None if it states none
    unread : bytes behind the last one that was decoded; 0 for a WAV, whose tags may be long
    promised_s : seconds that should have been decoded by the header; 0 if it states none
    """

    samples: np.ndarray
    rate: int
    stated: int | None
    unread: int
    promised_s: float


class _File(io.FileIO):
    """A file that claims, where its end is sought, to be `times` as long as it is."""

    def __init__(self, path: Path, times: float):
        super().__init__(path)
        self.times, self.at_end = times, False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at_end = whence == os.SEEK_END
        return super().seek(offset, whence)

    def tell(self) -> int:
        return int(super().tell() * (self.times if self.at_end else 1))


class _Stream(sf.SoundFile):
    """An audio file read from start to end: libsndfile cannot seek in all that it can read."""

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class AudioFolder:
    """A corpus of audio files below a folder; the folder that a file lies in is its genre.

    Attributes
    ----------
    path : the folder
    name : name of the corpus in results
    seed : of a corpus composed by the present version of `src.data.synthetic`, else None
    """

    path: Path
    name: str
    seed: int | None = None
    has_audio: ClassVar[bool] = True

    def rows(self, n_jobs: int) -> list[dict]:
        """Return one row per audio file for the audit: tracks first, then files that are none."""
        paths = find_tracks(self.path)
        jobs = (delayed(audio_row)(path, self.path) for path in paths)
        results = Parallel(n_jobs, prefer="threads", return_as="generator")(jobs)
        rows = list(progress(results, "audit", len(paths), unit="track"))
        others = sorted(set(audio_files(self.path, ENDINGS + OTHER_AUDIO)) - set(paths))
        return rows + [_other_row(path, self.path) for path in others]

    def ignored_files(self) -> dict[str, int]:
        """Return the number of files without an ending of audio, by ending."""
        counts = _count_endings(self.path)
        return {end: n for end, n in counts.items() if end not in ENDINGS + OTHER_AUDIO}

    def read(self, track) -> np.ndarray:
        """Return the samples (time,) of a track, mono at 22,050 Hz, one minute at most.

        Raises ValueError if the file is not the audited one or cannot be read.
        """
        path = self.path / track.path
        try:
            samples, rate, *_ = read_samples(path)
        except UNREADABLE as error:
            raise ValueError(
                f"{path} cannot be read any more ({' '.join(str(error).split()).rstrip('.')}): it "
                "may have been removed since the audit, or its disk may be away; restore it, or "
                "run `make explore` again without it."
            ) from error
        if hashlib.sha256(samples).hexdigest() != track.sha256:
            raise ValueError(
                f"{path} is not the file that was audited: it was changed since; "
                "run `make explore` again."
            )
        return to_mono(samples, rate)

    def segments(self, track) -> np.ndarray:
        """Return the log-mels (n_segments, 128, 130) in [0, 1] of a track's segments."""
        return segment_audio(self.read(track), track.n_segments)

    def log_mel(self, track) -> np.ndarray:
        """Return the log-mel (128, frames) of a whole track in dB; its reference is arbitrary."""
        samples = torch.from_numpy(self.read(track))
        with torch.inference_mode():
            return front_end().decibel(samples[None]).numpy()[0]

    def for_crops(self, track) -> np.ndarray:
        """Return what crops are cut from: `edged_log_mel` (5, 128, frames) in dB."""
        return edged_log_mel(self.read(track))

    def starts(self, n: int) -> np.ndarray:
        """Return the starts (n,) of a track's first segments in seconds."""
        return np.arange(n) * SEGMENT_SECONDS


def find_tracks(folder: Path) -> list[Path]:
    """Return the audio files in the sub-folders of a corpus, by genre and name.

    A sub-folder with audio files, at any depth, is the folder of a genre. Raises FileNotFoundError
    if there are none, ValueError for two files with the same track name and for genres whose names
    differ in upper and lower case only.
    """
    files, genres = {}, {}
    in_genres = (path for path in audio_files(folder) if path.parent != folder)
    named = (path for path in in_genres if _as_text(path.as_posix()) == path.as_posix())
    for path in sorted(named, key=lambda path: (genre_of(path), _composed(path.name))):
        track, genre = track_name(path), genre_of(path)
        if track in files:
            raise ValueError(
                f"{path} and {files[track]} are both track {track}: the folder may hold it in two "
                "formats, or two copies of the corpus; remove one of them."
            )
        if genres.setdefault(genre.casefold(), genre) != genre:
            raise ValueError(
                f"{folder} has genres {genres[genre.casefold()]} and {genre}: they may be one "
                "genre in two spellings; rename the folder of one of them."
            )
        files[track] = path
    if not files:
        endings = ", ".join(f"{n} {ending}" for ending, n in _count_endings(folder).items())
        raise FileNotFoundError(
            f"{folder} has no sub-folder with audio ({', '.join(ENDINGS)}) but "
            f"{endings or 'no file'}: it may be the wrong folder or that of one genre; give the "
            "folder whose sub-folders are genres."
        )
    return list(files.values())


def genre_of(path: Path) -> str:
    """Return the genre of a track: the name of its folder."""
    return _composed(path.parent.name)


def track_name(path: Path) -> str:
    """Return the name `<genre>.<name>` of a track, whose file may be called so already."""
    genre, name = genre_of(path), _composed(path.stem)
    return name if name.casefold().startswith(f"{genre}.".casefold()) else f"{genre}.{name}"


def audio_files(folder: Path, endings: tuple[str, ...] = ENDINGS) -> list[Path]:
    """Return all files below a folder with some endings, hidden ones left out."""
    return [path for path in walk_files(folder) if path.suffix.lower() in endings]


def read_audio(path: Path) -> np.ndarray:
    """Return a track (time,), mono float32 at 22,050 Hz, one minute at most."""
    samples, rate, *_ = read_samples(path)
    return to_mono(samples, rate)


def read_samples(path: Path, longest_s: float = LONGEST_S) -> Decoded:
    """Return the first `longest_s` of a file: bounded memory, whatever the header says.

    libsndfile estimates the length of an MP3 without a header from the size of the file, and stops
    there: such a file is opened as if it were much longer, and read to its end.

    Raises one of UNREADABLE; ValueError for a pipe (it would block) and for an unlikely rate or
    number of channels.
    """
    if path.exists() and not path.is_file():
        raise ValueError("neither a file nor a link to one")
    kind, length = _length(path, 1)
    estimated = kind == "MP3" and _length(path, 1.004) != (kind, length)  # 1.01: it would warn
    stated = None if estimated or length > UNKNOWN_FRAMES else length
    with _File(path, 1000 if estimated else 1) as raw, _Stream(raw) as file:
        rate, channels = file.samplerate, file.channels
        if not (RATES_HZ[0] <= rate <= RATES_HZ[1] and channels <= MOST_CHANNELS):
            raise ValueError(f"{channels} channels at {rate} Hz, the header may be damaged")
        frames = min(file.frames, round(longest_s * rate))
        samples = file.read(frames, dtype="float32", always_2d=True)
        unread = path.stat().st_size - raw.seek(0, os.SEEK_CUR)
        tags = kind.startswith("WAV") and len(samples)  # in chunks of any size
        promised_s = min(stated or 0, frames) / rate
        return Decoded(samples, rate, stated, 0 if tags else unread, promised_s)


def to_mono(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return samples (time, channels) at `rate` Hz as mono (time,) at 22,050 Hz."""
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if rate == SAMPLE_RATE:
        return mono
    return librosa.resample(mono, orig_sr=rate, target_sr=SAMPLE_RATE)


def audio_row(path: Path, folder: Path) -> dict:
    """Return the row of one track; `reason` says why it is not used, or which part is silent."""
    row = _row(track_name(path), path, folder)
    try:
        decoded = read_samples(path)
        row |= measure(decoded.samples, decoded.rate)
        row["duration_s"] = (decoded.stated or len(decoded.samples)) / decoded.rate
        fault = file_fault(row, path, decoded)
    except UNREADABLE as error:
        return row | {"reason": unreadable(path, error)}
    mostly_silent = row["n_silent"] > row["n_segments"] / 2
    return row | {"reason": fault or _silence(row), "used": not fault and not mostly_silent}


def unreadable(path: Path, error: Exception) -> str:
    """Return the fault of a file that raised one of UNREADABLE when it was read."""
    found = getattr(error, "error_string", None) or str(error)
    found = " ".join(found.replace(str(path), path.name).split()).rstrip(".")
    cause = f"the file may be damaged or no {path.suffix[1:].upper()}"
    return f"unreadable: {found}; {cause}, {CONVERT} or remove it"


def measure(samples: np.ndarray, rate: int) -> dict:
    """Return the properties of samples (time, channels) that the audit's table lists.

    Silence is measured on the segments that are used, without their direct current;
    `n_silent` is the number of segments that are silent throughout.
    """
    n = min(int(len(samples) * SAMPLE_RATE / rate) // SEGMENT_SAMPLES, SEGMENTS_PER_TRACK)
    length = round(SEGMENT_SECONDS * rate)
    windows = length // SILENCE_WINDOW
    with np.errstate(over="ignore", invalid="ignore"):  # samples that are not finite are a fault
        mono = samples[: n * length].mean(axis=1).reshape(n, length)  # as in the log-mel
        mono = mono[:, : windows * SILENCE_WINDOW].reshape(n, windows, SILENCE_WINDOW)
        silent = mono.var(axis=2) < 10 ** (SILENT_BELOW_DB / 10)
    return {
        "duration_s": len(samples) / rate,
        "sample_rate_hz": rate,
        "channels": samples.shape[1],
        "peak": float(np.abs(samples).max(initial=0)),
        "clipped": float((np.abs(samples) >= CLIPPED_AT).mean()) if len(samples) else 0.0,
        "silent": float(silent.mean()) if n else 1.0,
        "sha256": hashlib.sha256(samples).hexdigest(),
        "n_segments": n,
        "n_silent": int(silent.all(axis=1).sum()),
    }


def file_fault(row: dict, path: Path, decoded: Decoded) -> str:
    """Return the fault for which a decoded file is not used; empty if it has none.

    `row` holds what `measure` found. Silence is no fault of the file.
    """
    n, seconds = row["n_segments"], len(decoded.samples) / decoded.rate
    if lost := _truncation(path):
        return f"truncated: {lost}; {CUT}"
    if decoded.promised_s > seconds:
        return f"truncated: {decoded.promised_s:.2f} s stated and {seconds:.2f} s there; {CUT}"
    if decoded.unread > TAG_BYTES and n < SEGMENTS_PER_TRACK:
        found = f"{decoded.unread} bytes behind the end that the header states, {seconds:.2f} s"
        return f"unread: {found}; files may have been joined or never finished, {CONVERT}"
    if not np.isfinite(row["peak"]):
        return f"damaged: samples that are not finite; the encoder may have failed, {CONVERT} again"
    if row["peak"] > LOUDEST:
        found = f"samples up to {row['peak']:.3g}, full scale is 1"
        return f"damaged: {found}; the bytes may be of another type, {CONVERT} again"
    if n == 0:
        return f"too short: {seconds:.2f} s; a segment takes 3 s, give a longer excerpt"
    return ""


def _row(track: str, path: Path, folder: Path) -> dict:
    """Return the row of an audio file that is not used."""
    names = {"track": track, "genre": _as_text(genre_of(path))}
    names["path"] = _as_text(path.relative_to(folder).as_posix())
    return names | {"named": True, "n_segments": 0, "used": False}


def _other_row(path: Path, folder: Path) -> dict:
    """Return the row of an audio file that is no track."""
    row = _row(_as_text(path.relative_to(folder).as_posix()), path, folder) | {"named": False}
    if path.parent == folder:
        reason = "in no genre's folder; it may have been left there, move it into one"
        return row | {"genre": "", "reason": f"name: {reason}"}
    if path.suffix.lower() in OTHER_AUDIO:
        reason = f"{path.suffix} is another format than {', '.join(ENDINGS)}; {CONVERT}"
        return row | {"reason": f"format: {reason}"}
    return row | {"reason": "name: bytes that are not UTF-8, of an old system; rename the file"}


def _silence(row: dict) -> str:
    """Return how many segments of a track are silent; empty if none is."""
    found = f"{row['n_silent']} of {row['n_segments']} segments, peak {row['peak']:.5f}"
    return f"silent: {found}; it may begin with a pause, cut it" if row["n_silent"] else ""


def _length(path: Path, times: float) -> tuple[str, int]:
    """Return the format and the length in frames of a file that claims to be longer than it is."""
    with _File(path, times) as raw, _Stream(raw) as file:
        return file.format, file.frames


def _truncation(path: Path) -> str:
    """Return how many bytes of samples a WAV or AU lacks, or that the end of an Ogg is cut.

    Empty if nothing is missing. Other formats state frames, which are compared with the decoded.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"OggS":
            file.seek(max(0, size - OGG_PAGE_BYTES))
            return "" if _ends_with_whole_page(file.read()) else "the last page is not whole"
        start = length = 0
        if head[:4] == b".snd":
            start, length = (int.from_bytes(head[i : i + 4], "big") for i in (4, 8))
        elif head[:4] == b"RIFF":
            start, length = _data_chunk(file)
    missing = start + length - size
    lost = missing > SLACK_BYTES and length < UNKNOWN_BYTES
    return f"{missing} of {length} bytes of samples are missing" if lost else ""


def _data_chunk(file: io.BufferedReader) -> tuple[int, int]:
    """Return start and stated length in bytes of the samples of a WAV, read up to its chunks."""
    while (chunk := file.read(8)) and chunk[:4] != b"data":
        size = int.from_bytes(chunk[4:], "little")
        file.seek(size + size % 2, os.SEEK_CUR)
    return file.tell(), int.from_bytes(chunk[4:], "little")


def _ends_with_whole_page(tail: bytes) -> bool:
    """Return whether the last page in the end of an Ogg file is whole."""
    page = tail[max(0, tail.rfind(b"OggS")) :]
    return len(page) >= 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def _count_endings(folder: Path) -> dict[str, int]:
    """Return the number of files below a folder by their ending in small letters."""
    endings = Counter(path.suffix.lower() for path in walk_files(folder))
    named = {ending: n for ending, n in endings.items() if ending and not ending[1:].isdigit()}
    n_other = endings.total() - sum(named.values())
    return dict(sorted(named.items())) | ({"no ending": n_other} if n_other else {})


def _composed(name: str) -> str:  # some systems store letters in parts
    return unicodedata.normalize("NFC", name)


def _as_text(name: str) -> str:  # bytes that are not UTF-8 are escaped
    return name.encode("utf-8", "backslashreplace").decode()
