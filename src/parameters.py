"""Values of parameters: read from text, checked, and kept in one file per run.

The file of a run, `results/parameters/<run>.toml`, holds what differs from the defaults: `DATASET`,
and one table per stage. The command line updates it; it may be edited.
"""

import json
import tomllib
from pathlib import Path

from src.results import whole_file

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
LARGEST = 2**32 - 1  # of numbers without another limit; the largest seed
HEADER = """# Parameters of this run that differ from the defaults; `make show` prints all of them.
# Edit them here or give them to make, as in `make attack N_SEGMENTS=50`.
"""


def read_value(name: str, text: str, default: object) -> object:
    """Return the value of a text, of the same type as a default; commas separate a list's items.

    Raises ValueError for a text of another type and for a list with an empty item or equal ones.
    """
    if not isinstance(default, list):
        return _read_item(name, text, type(default))
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if "" in parts:
        raise ValueError(
            f"{name}={text} has an empty item, probably by a comma too many: remove it."
        )
    kind = type(default[0]) if default else str
    if kind is int and not all(part.lstrip("-").isdigit() for part in parts):
        kind = float
    items = [_read_item(name, part, kind) for part in parts]
    if len(set(items)) < len(items):
        raise ValueError(f"{name}={text} has an item twice, probably by mistake: remove one.")
    return items


def show_value(value: object) -> str:
    """Return a value as it is given on the command line."""
    if isinstance(value, list):
        return ",".join(map(show_value, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_value(
    name: str, value: object, default: object, limits: tuple = (0, LARGEST), choices: tuple = ()
) -> None:
    """Raise ValueError for a value of another type, outside the limits or the choices."""
    kind = type(default)
    types = (int, float) if kind is float else kind
    if not isinstance(value, types) or isinstance(value, bool) != (kind is bool):
        raise _wrong_type(name, repr(value), kind)
    if choices and value not in choices:
        raise ValueError(
            f"{name}={value} is unknown, probably mistyped: give one of {', '.join(choices)}."
        )
    if kind in (int, float) and not limits[0] <= value <= limits[1]:
        most = "" if limits[1] == LARGEST else f" and at most {limits[1]:g}"
        raise ValueError(
            f"{name}={value} is out of range, probably mistyped or in another unit: give at least "
            f"{limits[0]:g}{most}."
        )


def load_parameters(path: Path) -> dict:
    """Return the content of a run's file, empty if there is none; ValueError if it is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not valid TOML ({error}), probably after an edit: correct the line or "
            "delete the file."
        ) from error


def save_parameters(path: Path, dataset: str, tables: dict[str, dict]) -> None:
    """Write the file of a run, unless it holds these values already."""
    tables = {stage: table for stage, table in tables.items() if table}
    if load_parameters(path) == {"DATASET": dataset} | tables:
        return
    lines = [HEADER, _line("DATASET", dataset)]
    for stage, table in tables.items():
        lines += [f"\n[{stage}]\n", *(_line(name, value) for name, value in table.items())]
    with whole_file(path) as part:
        part.write_text("".join(lines), encoding="utf-8")


def _line(name: str, value: object) -> str:
    """Return a line of TOML; its texts, numbers and lists are written as in JSON."""
    return f"{name} = {json.dumps(value, ensure_ascii=False)}\n"


def _read_item(name: str, text: str, kind: type) -> object:
    """Return the value of a text that is no list."""
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError) as error:
        raise _wrong_type(name, text, kind) from error


def _wrong_type(name: str, value: str, kind: type) -> ValueError:
    """Return the error for a value of another type than the parameter's."""
    return ValueError(
        f"{name}={value} is of another type, probably mistyped or meant for another parameter: "
        f"give {KINDS[kind]}."
    )
