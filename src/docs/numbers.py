"""Numbers and tables of the committed results, as Markdown: what the templates of docs/ call."""

import json
from functools import cache

import pandas as pd

from src.collect import FOLDERS
from src.paths import METRICS
from src.results import read_json


@cache
def read(name: str) -> pd.DataFrame:
    """Return a committed table by its name, runs on real music and on the embedded corpus alike.

    Raises FileNotFoundError naming its command.
    """
    files = [METRICS / folder / f"{name}.csv" for folder in FOLDERS]
    tables = [pd.read_csv(file) for file in files if file.exists()]
    if not tables:
        raise FileNotFoundError(
            f"results/metrics/real/{name}.csv is missing: `make collect` gathers it from "
            "finished runs."
        )
    return pd.concat(tables, ignore_index=True)


def result(run: str, name: str) -> dict:
    """Return a committed JSON result of a run."""
    files = [METRICS / folder / run / f"{name}.json" for folder in FOLDERS]
    return read_json(next((file for file in files if file.exists()), files[0]))


def select(name: str, **wanted: object) -> pd.DataFrame:
    """Return the rows of a table whose columns have the wanted values.

    Raises ValueError if there are none: the results were made with other parameters.
    """
    table = read(name)
    for column, value in wanted.items():
        table = table[table[column] == value]
    if table.empty:
        raise ValueError(
            f"{name}.csv has no row with {json.dumps(wanted)}: it was made with other parameters, "
            "or the template asks for something that is not measured."
        )
    return table


def number(name: str, value: str = "accuracy", **wanted: object) -> str:
    """Return one accuracy of a table with its interval, in percent.

    `value` is `accuracy`, `clip_accuracy` or `song_accuracy`; ValueError unless one row is left.
    """
    rows = select(name, **wanted)
    if len(rows) > 1:
        raise ValueError(f"{name}.csv has {len(rows)} rows with {json.dumps(wanted)}, not one.")
    return shown(rows.iloc[0], value)


def shown(row: pd.Series, value: str = "accuracy", digits: int = 1) -> str:
    """Return a fraction of a row with its interval as percent, an empty cell for NaN."""
    if pd.isna(row[value]):
        return ""
    prefix = value.removesuffix("accuracy").removesuffix("value")
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    bounds = "" if pd.isna(low) else f" [{percent(low, 0)}, {percent(high, 0)}]"
    return f"{percent(row[value], digits)}%{bounds}"


def percent(fraction: float, digits: int = 1) -> str:
    """Return a fraction in percent, without the sign."""
    return f"{100 * fraction:.{digits}f}"


def markdown(table: pd.DataFrame) -> str:
    """Return a table of texts as Markdown, without its index."""
    rows = [table.columns, ["---"] * table.shape[1], *table.astype(str).to_numpy()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
