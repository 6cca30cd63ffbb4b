"""Results: files are written whole or not at all, and say what they depend on."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `src.pipeline` starts without it
    import pandas as pd

PACKAGES = """
    music-genre-robustness torch numpy scipy librosa soundfile audiomentations scikit-learn
    adversarial-robustness-toolbox grad-cam captum
""".split()
GENRE_COLUMNS = {"true", "predicted", "explained", "track_predicted"}
GENRE_COLUMNS |= {"clean_prediction", "adversarial_prediction", "noise_prediction"}
GENRE_COLUMNS |= {"clean_prediction_shifted", "adversarial_prediction_shifted"}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it becomes `path` if the block succeeds."""
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


def read_csv(path: Path, **options: object) -> pd.DataFrame:
    """Read a table; only an empty field is missing, a genre may be called NA.

    `options` are those of pandas, such as the types of columns.
    """
    import pandas as pd

    return pd.read_csv(path, keep_default_na=False, na_values=[""], **options)


def save_with(path: Path, save: Callable[[Path], object]) -> Path:
    """Call `save` with a temporary path that becomes `path` on success; return the path."""
    with whole_file(path) as part:
        save(part)
    return path


def provenance(seed: int | None, parameters: dict, **data: object) -> dict:
    """Return what a result depends on: data, seed, parameters, versions, machine, precision."""
    from src.runtime import describe

    return {
        **data,
        "seed": seed,
        "parameters": parameters,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "machine": {"processor": platform.machine()} | describe(),
    }


def with_names(table: pd.DataFrame, genres: list[str], corpus: str) -> pd.DataFrame:
    """Return a table of records with genre names for numbers and a column for the corpus."""
    shown = dict(enumerate(genres))
    names = {column: table[column].map(shown) for column in GENRE_COLUMNS & set(table)}
    return table.assign(**names, corpus=corpus)


def _plain(value: object) -> object:
    """Return a path, or a scalar or array of numpy, as JSON knows it."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not belong in JSON.")
