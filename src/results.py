"""Writing results: whole or not at all, with everything that a number depends on."""

import errno
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from src.runtime import describe

PACKAGES = (
    "music-genre-robustness",
    "torch",
    "numpy",
    "scipy",
    "librosa",
    "soundfile",
    "audiomentations",
    "scikit-learn",
    "adversarial-robustness-toolbox",
    "grad-cam",
)


FAULTS = {
    "the disk or the quota is full; free space": {errno.ENOSPC, errno.EDQUOT},
    "it is larger than the disk or the shell (`ulimit -f`) allows; raise the limit": {errno.EFBIG},
    "the disk is read-only or the folder belongs to somebody else; mend its permissions": {
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
    },
    "a file stands where a folder is needed; move it away": {errno.EEXIST, errno.ENOTDIR},
    "the disk may be failing; take another": {errno.EIO},
}
PROBE_BYTES = 2**20  # more than writers leave unwritten when a disk is full
ROOM_BYTES = 2**24  # more than any one file of a corpus

GENRE_COLUMNS = {"true", "predicted", "explained", "song_predicted"}
GENRE_COLUMNS |= {"clean_prediction", "adversarial_prediction"}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that becomes `path` only if the block succeeds.

    Raises OSError, in one sentence, if the disk takes no more, whatever the block says of it.
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
        )
        os.close(handle)
        part = Path(name)
        yield part
        part.chmod(0o644)
        part.replace(path)
    except Exception as error:
        if fault := _fault_of_writing(error, part, path):
            raise OSError(fault) from error
        raise
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def disk_fault(error: Exception | None, path: Path) -> str:
    """Return in one sentence why `path` cannot be written; nothing if the disk is not at fault."""
    code = getattr(error, "errno", None)
    causes = [cause for cause, codes in FAULTS.items() if code in codes]
    if not causes:
        return ""
    return (
        f"{path} cannot be written ({os.strerror(code)}): {causes[0]} and run again, "
        "what was written before is kept."
    )


def provenance(seed: int | None, parameters: dict, **data: object) -> dict:
    """Return what a result depends on: data, seed, parameters, versions, machine, precision."""
    return {
        **data,
        "seed": seed,
        "parameters": parameters,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "machine": {"processor": platform.machine()} | describe(),
    }


def write_json(path: Path, values: dict) -> Path:
    """Write `values` as JSON (numbers as fractions, no NaN); return the path.

    Raises ValueError for a NaN or an infinity: JSON has none.
    """
    text = json.dumps(values, indent=1, default=_plain, allow_nan=False)
    with whole_file(path) as part:
        part.write_text(text + "\n", encoding="utf-8")
    return path


def read_json(path: Path, parts: set[str] = frozenset()) -> dict:
    """Read a JSON file that holds these parts; ValueError with its name if it is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not whole JSON ({error}): delete it and run its stage again."
        ) from error
    if not isinstance(values, dict) or parts - set(values):
        lacking = sorted(parts - set(values)) if isinstance(values, dict) else ["a table of parts"]
        raise ValueError(
            f"{path} lacks {', '.join(lacking)}: it was edited or written by other code; "
            "delete it and run its stage again."
        )
    return values


def write_csv(path: Path, table: pd.DataFrame) -> Path:
    """Write a table without its index; return the path."""
    with whole_file(path) as part:
        table.to_csv(part, index=False, lineterminator="\n")
    return path


def with_names(table: pd.DataFrame, genres: list[str], corpus: str) -> pd.DataFrame:
    """Return a table of records with genre names for numbers and a column for the corpus."""
    shown = dict(enumerate(genres))
    names = {column: table[column].map(shown) for column in GENRE_COLUMNS & set(table)}
    return table.assign(**names, corpus=corpus)


def save_with(path: Path, save: Callable[[Path], object]) -> Path:
    """Call `save` with a temporary path that becomes `path` on success; return the path."""
    with whole_file(path) as part:
        save(part)
    return path


def _plain(value: object) -> object:
    """Turn numpy scalars, arrays and paths into what JSON knows."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not belong in JSON.")


def check_room(folder: Path) -> None:
    """Raise OSError, in one sentence, if a folder does not take a file more; it stays as it was."""
    path = folder / "room"
    with whole_file(path) as part:
        part.write_bytes(bytes(ROOM_BYTES))
    path.unlink()


def _fault_of_writing(error: Exception, part: Path | None, path: Path) -> str:
    """Return why `path`, of which a part may be there, cannot be written; nothing if it can."""
    named = getattr(error, "filename", None)
    if part is not None and named is not None and str(named) != str(part):
        return ""  # another file is at fault, one that was to be read
    return disk_fault(error, path) or disk_fault(_probe(part), path)


def _probe(part: Path | None) -> OSError | None:
    """Return why a file takes no more bytes, None if it does: not all writers say it."""
    try:
        if part is not None and part.exists():
            with part.open("ab") as file:
                file.write(bytes(PROBE_BYTES))
    except OSError as error:
        return error
    return None
