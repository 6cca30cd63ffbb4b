"""Numbers and tables of the committed results as Markdown: the functions of docs/templates/."""

import json
from functools import cache

import pandas as pd

from src.labels import NAMES
from src.paths import METRICS
from src.results import read_csv, read_json

FOLDERS = REAL, EMBEDDED = "real", "embedded"
METHOD_COLUMNS = {  # title: measure, control, condition, and whether it is measured at one eps
    "insertion above blurred noise": ("insertion", "blurred_random", "clean", False),
    "ROAD above blurred noise": ("road", "blurred_random", "clean", False),
    "mass in the box above its area": ("mass_above_area", "", "confined", False),
    "rank correlation, attack": ("spearman", "", "succeeded_true", True),
    "rank correlation, noise": ("spearman", "", "noise_succeeded", True),
}
LABELS = ("control", "part", "compared_with", "genre", "layer")  # of explanations.csv, often empty


@cache
def read(name: str) -> pd.DataFrame:
    """Return a committed table of all runs, on real music and on the embedded corpus.

    Raises FileNotFoundError naming the command that makes it.
    """
    files = [METRICS / folder / f"{name}.csv" for folder in FOLDERS]
    tables = [read_csv(file) for file in files if file.exists()]
    if not tables:
        raise FileNotFoundError(
            f"results/metrics/real/{name}.csv is missing: no run was collected yet; "
            "run `make collect`."
        )
    table = pd.concat(tables, ignore_index=True)
    return table.fillna(dict.fromkeys(set(LABELS) & set(table), ""))


def result(run: str, name: str) -> dict:
    """Return a committed JSON result of a run."""
    files = [METRICS / folder / run / f"{name}.json" for folder in FOLDERS]
    return read_json(next((file for file in files if file.exists()), files[0]))


def benchmarks() -> list[dict]:
    """Return the results of `make bench`, one per class of CPU and precision."""
    return [read_json(file) for file in sorted(METRICS.glob("bench_*.json"))]


def stage_costs() -> list[dict]:
    """Return the results of `make stages`, one per class of CPU and precision."""
    return [read_json(file) for file in sorted(METRICS.glob("stages_*.json"))]


def growth() -> list[dict]:
    """Return the results of `make growth`, one per number of tracks."""
    return read_json(METRICS / "growth.json", {"growth"})["growth"]


def select(name: str, **wanted: object) -> pd.DataFrame:
    """Return the rows of a table whose columns have the wanted values; ValueError without any.

    A list stands for any of its values.
    """
    return _where(read(name), f"{name}.csv", wanted)


def number(name: str, value: str = "accuracy", **wanted: object) -> str:
    """Return one accuracy of a table in percent with its interval; ValueError for several rows."""
    return percentage(_only(name, wanted), value)


def measure(corpus: str, checkpoint: str, name: str, condition: str, **wanted: object) -> str:
    """Return one measure of `explanations.csv` with its interval, of Grad-CAM by default.

    Columns of `LABELS` that are not wanted are empty.
    """
    keys = {"corpus": corpus, "checkpoint": checkpoint, "measure": name, "condition": condition}
    defaults = {"method": "gradcam"} | dict.fromkeys(LABELS, "")
    return _decimal(_only("explanations", defaults | keys | wanted))


def percentage(row: pd.Series | dict, value: str = "value") -> str:
    """Return a fraction of a row in percent with its interval; an empty text for NaN.

    `accuracy` and `value` have the interval `low` and `high`, `segment_accuracy` has `segment_low`
    and `segment_high`, `survival` has `survival_low` and `survival_high`.
    """
    if pd.isna(row[value]):
        return ""
    name = value.removesuffix("accuracy").rstrip("_")
    prefix = "" if name in ("", "value") else f"{name}_"
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    interval = "" if pd.isna(low) else f" [{percent(low, 0)}, {percent(high, 0)}]"
    return f"{percent(row[value])}%{interval}"


def percent(fraction: float, digits: int = 1) -> str:
    """Return a fraction in percent, without the sign."""
    return f"{100 * fraction:.{digits}f}"


def compare(
    rows: pd.DataFrame, by: list[str], value: str = "accuracy", columns: str = "checkpoint"
) -> str:
    """Return a table of percentages: a line per value of `by`, a column per value of `columns`.

    Attacks, codecs and corruptions appear by their labels.
    """
    shown = rows[[*by, columns]].map(_shown)
    shown["cell"] = [percentage(row, value) for _, row in rows.iterrows()]
    parts = [
        shown[shown[columns] == name].set_index(by)["cell"].rename(name)
        for name in shown[columns].unique()
    ]
    return _markdown(pd.concat(parts, axis=1).fillna("").reset_index())


def changes(text: str) -> str:
    """Return the changed parameters of a recipe, from their JSON."""
    found = {name: "none" if value == "" else value for name, value in json.loads(text).items()}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in found.items()
    )


def methods(corpus: str, checkpoint: str, eps: float) -> str:
    """Return each method's faithfulness above a control, localization and stability."""
    wanted = {"corpus": corpus, "checkpoint": checkpoint, "part": "", "compared_with": ""}
    rows, cells = select("explanations", **wanted), {}
    for title, (name, control, condition, at_eps) in METHOD_COLUMNS.items():
        part = rows[(rows["measure"] == name) & (rows["condition"] == condition)]
        part = part[part["control"] == control]
        part = part[part["eps"] == eps] if at_eps else part
        cells[title] = part.set_index("method").apply(_decimal, axis=1)
    return _markdown(
        pd.DataFrame(cells, dtype=object).rename_axis("method").fillna("").reset_index()
    )


def pgd_to_worst(corpus: str) -> str:
    """Return the largest drop in accuracy from PGD to the worst case, in percentage points."""
    rows = select("robustness", corpus=corpus)
    table = rows.pivot_table("accuracy", ["checkpoint", "eps"], "attack")
    return percent((table["pgd"] - table["worst_case"]).max(), 0)


def _where(table: pd.DataFrame, name: str, wanted: dict) -> pd.DataFrame:
    for column, value in wanted.items():
        table = table[table[column].isin(value if isinstance(value, list) else [value])]
    if table.empty:
        raise ValueError(
            f"{name} has no row with {json.dumps(wanted)}: the results may have other "
            "parameters; correct the template or run `make collect`."
        )
    return table


def _only(name: str, wanted: dict) -> pd.Series:
    rows = select(name, **wanted)
    if len(rows) > 1:
        raise ValueError(f"{name}.csv has {len(rows)} rows with {json.dumps(wanted)}, not one.")
    return rows.iloc[0]


def _shown(value: object) -> object:
    """Return a label for a name, few digits for a number, nothing for NaN."""
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:g}"
    return NAMES.get(value, value)


def _decimal(row: pd.Series) -> str:
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['value']:.2f}{interval}"


def _markdown(table: pd.DataFrame) -> str:
    return table.astype(str).to_markdown(index=False, tablefmt="github", disable_numparse=True)
