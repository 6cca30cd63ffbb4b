"""Writing results: whole or not at all, with everything that a number depends on."""

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
import torch

PACKAGES = (
    "music-genre-robustness",
    "torch",
    "numpy",
    "librosa",
    "scikit-learn",
    "adversarial-robustness-toolbox",
    "grad-cam",
)


GENRE_COLUMNS = {"true", "predicted", "explained", "song_predicted"}
GENRE_COLUMNS |= {"clean_prediction", "adversarial_prediction"}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that becomes `path` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def provenance(seed: int | None, parameters: dict, **data: object) -> dict:
    """Return what a result depends on: data, seed, parameters, versions, machine."""
    return {
        **data,
        "seed": seed,
        "parameters": parameters,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "machine": {
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.is_available(),
        },
    }


def write_json(path: Path, values: dict) -> Path:
    """Write `values` as JSON (numbers as fractions, no NaN); return the path.

    Raises ValueError for a NaN or an infinity: JSON has none.
    """
    text = json.dumps(values, indent=1, default=_plain, allow_nan=False)
    with whole_file(path) as part:
        part.write_text(text + "\n", encoding="utf-8")
    return path


def read_json(path: Path) -> dict:
    """Read a JSON file; raises ValueError with the file's name if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not whole JSON ({error}): delete it and run its stage again."
        ) from error


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
