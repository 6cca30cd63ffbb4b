"""Records of explanations, one row per segment and measure; their table with intervals; answers."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from src.data.features import DYNAMIC_RANGE_DB
from src.explainability.attributions import CONTROLS, METHODS, Subject
from src.explainability.localization import BOX_EPS
from src.explainability.selection import Case
from src.labels import CONDITIONS, MAPS
from src.progress import progress
from src.results import write_csv, write_json
from src.statistics import (
    LEVEL,
    difference_of_means,
    difference_over_tracks,
    holm,
    mean_over_tracks,
)

LABELS = {"condition": "clean", "control": "", "part": "", "layer": "", "eps": 0.0}
KEYS = ["checkpoint", "method", "measure", *LABELS]
PROPORTIONS = ("empty", "kept", "pointing_game")
COLUMNS = [
    *("corpus", "checkpoint", "method", "measure", "control", "part"),
    *("condition", "compared_with", "genre", "layer", "eps"),
    *("value", "low", "high", "p_value", "p_holm", "n_segments", "n_tracks"),
]


class Row(NamedTuple):
    """A row of `explanations.csv` for each model, by its labels; other labels are empty."""

    measure: str
    condition: str
    control: str = ""
    compared_with: str = ""


class Claim(NamedTuple):
    """A claim and how it is measured: it holds if `sign * (value - bound)` is positive.

    The value is that of a row of `explanations.csv`; without one it is the attack success rate.
    """

    text: str
    measure: str
    row: Row | None
    sign: int = 1
    bound: float = 0


FEWEST_SEGMENTS = 20  # below this number a value enters no claim
RATE = "attack success rate (PGD)"
INSERTION = Row("insertion", "clean", "blurred_random")
DELETION = INSERTION._replace(measure="deletion")
BOX_MASS = Row("mass_above_area", "confined", "randomcam")
ATTACKED, NOISE = Row("spearman", "succeeded_true"), Row("spearman", "noise_succeeded")
NULLS = ("noise_succeeded", "minus", "same_spectrum", "other_segment")
STRONGEST = "strongest null"  # of NULLS: see `strongest_null`
MOVED = ATTACKED._replace(compared_with=STRONGEST)
FOOLED = Row("spearman", "manipulated", compared_with="manipulated_noise")
SPECIFIC = Row("class_specificity", "clean", compared_with="target_any")
NATURAL = Row("prototype_margin", "natural", compared_with="adversarial")
ADVERSARIAL = Row("prototype_margin", "adversarial")
PREDICTED = Row("spearman", "succeeded_predicted")
CONTRASTS = (  # within a model
    SPECIFIC,
    NATURAL,
    NATURAL._replace(compared_with="target_predicted"),
    ADVERSARIAL._replace(compared_with="target_predicted"),
    *(ATTACKED._replace(compared_with=null) for null in NULLS),
    ATTACKED._replace(compared_with="failed"),
    FOOLED,
    PREDICTED._replace(compared_with="target_predicted"),
    PREDICTED._replace(compared_with="other_track"),
    Row("relevance_mass", "confined", compared_with="target_predicted"),
)
BETWEEN_MODELS = (  # without natural failures, which are other segments in each model
    *(INSERTION, DELETION, BOX_MASS, SPECIFIC, ATTACKED, FOOLED),
    ATTACKED._replace(compared_with="minus"),
    ADVERSARIAL,
)
WORDS = MAPS | {
    f"{row.condition} less {row.compared_with}": (
        f"{CONDITIONS[row.condition]}, less {CONDITIONS[row.compared_with]}"
    )
    for row in BETWEEN_MODELS
    if row.compared_with
}
HEADINGS = {"condition": "maps", "compared_with": "less", "control": "above"}
HEADLINE = {
    "faithfulness: insertion above smooth noise": INSERTION,
    "faithfulness: deletion below smooth noise": DELETION,
    "localization: mass in the box above random weights": BOX_MASS,
    "rank correlation with the clean map, attack": ATTACKED,
    "rank correlation with the clean map, noise": NOISE,
    "the same, attack less strongest null": MOVED,
    "rank correlation, attack on the map, same prediction": FOOLED._replace(compared_with=""),
    "rank correlation with another track's map": Row("spearman", "other_track"),
}
CLAIMS = (  # of the specification; pandas cuts texts of 50 characters
    Claim(
        "genre-specific patterns on clean data",
        "class specificity, true genre less any genre",
        SPECIFIC,
    ),
    Claim(
        "only natural failures resemble the prediction",
        "prototype margin, natural less adversarial",
        NATURAL,
    ),
    Claim(
        "attacks create artificial patterns",
        "rank correlation, attack less strongest null",
        MOVED,
        sign=-1,
    ),
    Claim("highly vulnerable without adversarial training", RATE, None, bound=0.5),
)


def records(
    subject: Subject,
    method: str,
    table: pd.DataFrame,
    values: dict[str, np.ndarray],
    **labels: object,
) -> pd.DataFrame:
    """Return one row per segment and measure: segment, track, genre, `KEYS` and value.

    Parameters
    ----------
    table : n rows of the segments' table
    values : (n,) numbers of each measure, NaN where there is none
    labels : those that differ from `LABELS`: `condition` and `eps` of the attack, `control` that
        the method is compared with, `part` of the spectrogram (an instrument or a frequency
        band), `layer` down to which the model is random
    """
    keys = {"checkpoint": subject.name, "method": method} | LABELS | labels
    rows = table[["segment", "track", "genre"]].reset_index(drop=True).assign(**keys)
    tables = [rows.assign(measure=name, value=column) for name, column in values.items()]
    return pd.concat(tables, ignore_index=True)


def results_table(rows: pd.DataFrame, corpus: str, eps: float) -> pd.DataFrame:
    """Return all measures and contrasts of records with their 95% intervals over tracks, by method.

    The columns are `COLUMNS`. `p_value` is of no difference; `p_holm` is corrected for the number
    of contrasts of a method and measure, of all models.
    """
    lines = [*means(rows), *differences(rows, eps), *model_differences(rows, eps)]
    table = pd.DataFrame(lines).assign(corpus=corpus).reindex(columns=COLUMNS)
    table["p_holm"] = table.groupby(["method", "measure"])["p_value"].transform(holm)
    table["method"] = pd.Categorical(table["method"], [*METHODS, *CONTROLS])
    return table.sort_values("method", kind="stable").astype({"method": str})


def means(rows: pd.DataFrame) -> Iterator[dict]:
    """Yield the mean of each measure under each condition; that of a part for each genre.

    Segments without a value do not count. `nissim` becomes its mean `mod` and its variation `vid`.
    """
    known = rows.dropna(subset="value")
    known = known.assign(genre=known["genre"].where(known["part"] != "", ""))
    groups = known.groupby([*KEYS, "genre"], sort=False)
    for keys, group in progress(groups, "intervals", len(groups), leave=False):
        line = {"compared_with": ""} | dict(zip(groups.keys, keys, strict=True))
        values, tracks = (group[name].to_numpy() for name in ("value", "track"))
        measures = {line["measure"]: values}
        if line["measure"] == "nissim":
            measures = {"mod": values, "vid": (values - values.mean()) ** 2}
        for name, each in measures.items():
            is_share = name in PROPORTIONS and np.isin(each, (0, 1)).all()  # no means of draws
            mean = mean_over_tracks(each, tracks, proportion=is_share)
            yield line | {"measure": name} | mean


def differences(rows: pd.DataFrame, eps: float) -> Iterator[dict]:
    """Yield the `CONTRASTS` of each model and method that has segments of both conditions.

    `n_segments` counts a segment of both conditions once.
    """
    for row in CONTRASTS:
        pair = row.condition, row.compared_with
        own = _at(rows[rows["measure"] == row.measure], row, eps).dropna(subset="value")
        own = own[own["condition"].isin(pair)]
        for (checkpoint, method), group in own.groupby(["checkpoint", "method"], sort=False):
            if group["condition"].nunique() == 2:
                parts = [group[group["condition"] == name] for name in pair]
                columns = [part[name].to_numpy() for part in parts for name in ("value", "track")]
                found = difference_of_means(*columns)
                line = _labels(row, eps) | {"checkpoint": checkpoint, "method": method}
                yield line | found | {"n_segments": group["segment"].nunique()}


def model_differences(rows: pd.DataFrame, eps: float) -> Iterator[dict]:
    """Yield by how much each model differs from each one before it, which is `compared_with`.

    Of `BETWEEN_MODELS`, paired on the segments that both models have a value of. A row with two
    conditions is their difference within each model, such as `clean less target_any`.
    """
    for row in BETWEEN_MODELS:
        for method, own in rows[rows["measure"] == row.measure].groupby("method", sort=False):
            values, condition = _by_model(own, row, eps)
            for first, second in combinations(values, 2):
                both = values[[first, second]].dropna()
                line = _labels(row, eps) | {"condition": condition, "method": method}
                line |= {"checkpoint": second, "compared_with": first}
                if len(both):
                    pair = both[first], both[second], both.index.get_level_values("track")
                    yield line | difference_over_tracks(*pair, proportion=False)


def success_rates(cases: list[Case]) -> pd.DataFrame:
    """Return the attack success rate of each model at each eps with its interval over tracks."""
    lines = [
        {"checkpoint": case.subject.name, "measure": RATE, "eps": eps, "p_holm": None}
        | mean_over_tracks(found.predicted != case.data.y, case.data.tracks)
        for case in cases
        for eps, found in case.attacked.items()
    ]
    return pd.DataFrame(lines)


def pick(table: pd.DataFrame, row: Row, eps: float) -> pd.DataFrame:
    """Return the lines of `explanations.csv` for a row, one per model and method.

    They are clean, at an eps, or those of the attack confined to a box, at its own.
    """
    if row.compared_with == STRONGEST:
        return strongest_null(table, row, eps)
    wanted = row._asdict() | {"part": "", "layer": ""}
    matches = (table[[*wanted]] == [*wanted.values()]).all(axis=1)
    return _at(table[matches], row, eps)


def strongest_null(table: pd.DataFrame, row: Row, eps: float) -> pd.DataFrame:
    """Return a row less the null that moves maps most, one line per model and method.

    That is the highest of the differences to `NULLS`: choosing it works against the claim that the
    attack moves maps more.
    """
    nulls = [pick(table, row._replace(compared_with=null), eps) for null in NULLS]
    rows = pd.concat(nulls, ignore_index=True)
    return rows.loc[rows.groupby(["checkpoint", "method"], sort=False)["value"].idxmax()]


def headline(table: pd.DataFrame, success: pd.DataFrame, method: str, eps: float) -> pd.DataFrame:
    """Return the main measures of a method as text, one column per model.

    `table` is `explanations.csv`, `success` are the `success_rates`.
    """
    own = table[table["method"] == method]
    parts = {label: pick(own, row, eps) for label, row in HEADLINE.items()}
    parts = {RATE: success[success["eps"] == eps]} | parts
    name = f"{MAPS[method]}, eps {eps:g} ({eps * DYNAMIC_RANGE_DB:.2g} dB)"
    return as_table(pd.concat(part.assign(**{name: k}) for k, part in parts.items()), [name])


def as_table(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return values with interval and n in words: a line per value of `by`, a column per model."""
    cells = rows[[*by, "checkpoint"]].assign(text=[as_text(line) for line in with_ends(rows)])
    cells[by] = cells[by].replace(WORDS)
    table = cells.set_index([*by, "checkpoint"])["text"].unstack(fill_value="", sort=False)
    return table.rename_axis(index=HEADINGS, columns=None)


def contrast_tables(table: pd.DataFrame, method: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the differences of `explanations.csv` within models and between them, in words."""
    own = table[(table["method"] == method) & (table["compared_with"] != "")]
    paired = own["compared_with"].isin(own["checkpoint"])
    between = own[paired]
    pairs = between["checkpoint"] + " less " + between["compared_with"]
    within = as_table(own[~paired], ["measure", "condition", "compared_with"])
    return within, as_table(between.assign(checkpoint=pairs), ["measure", "control", "condition"])


def answers(table: pd.DataFrame, success: pd.DataFrame, method: str, eps: float) -> pd.DataFrame:
    """Return whether each claim of the specification is supported, one row per claim and model.

    Supported: the 95% interval of the value lies on the claim's side of the bound, and a contrast
    is significant after correction for several ones. Not supported: the same on the other side.
    Undecided: neither, or there are too few tracks for an interval. Too few: fewer than
    `FEWEST_SEGMENTS` segments. `success` are the `success_rates` of the models without adversarial
    training, which the last claim is about.
    """
    own = table[table["method"] == method]
    at_eps = success[success["eps"] == eps]
    parts = [pick(own, claim.row, eps) if claim.row else at_eps for claim in CLAIMS]
    return pd.DataFrame(
        [
            {
                "claim": claim.text,
                "measured by": claim.measure,
                "model": line.checkpoint,
                "value": as_text(line),
                "answer": verdict(claim, line),
            }
            for claim, part in zip(CLAIMS, parts, strict=True)
            for line in with_ends(part)
        ]
    )


def verdict(claim: Claim, line: tuple) -> str:
    """Return the answer to a claim from a line with the interval, `p_holm` and n of its value."""
    if line.n_segments < FEWEST_SEGMENTS:
        return "too few"
    ends = [claim.sign * (end - claim.bound) for end in (line.low, line.high)]
    if not np.isfinite(ends).all() or min(ends) <= 0 <= max(ends) or line.p_holm > 1 - LEVEL:
        return "undecided"
    return "supported" if min(ends) > 0 else "not supported"


def as_text(line: tuple) -> str:
    """Return a value with its interval and n, in percent for the attack success rate."""
    form = "{:.0%}" if line.measure == RATE else "{:.2f}"
    value, *ends = (form.format(number) for number in (line.value, line.low, line.high))
    interval = f" [{', '.join(ends)}]" if np.isfinite(line.low) else ""
    return f"{value}{interval}, n = {line.n_segments}"


def with_ends(rows: pd.DataFrame) -> Iterator[tuple]:
    """Return the rows of a table, with NaN where an interval is unknown."""
    return rows.astype({"low": float, "high": float, "p_holm": float}).itertuples()


def write_results(
    folder: Path,
    facts: dict,
    maps: pd.DataFrame,
    rows: pd.DataFrame,
    table: pd.DataFrame,
    claims: pd.DataFrame,
) -> None:
    """Write `gradcam.csv`, `explanations.csv`, `explanations_records.csv` and two JSON files.

    `maps` are the records of the maps that are shown, `rows` all other records, `table` is that of
    `results_table`, `claims` that of `answers`; `facts` stand in both JSON files.
    """
    counts = maps.groupby("category")["empty"].agg(n_maps="count", n_empty="sum").to_dict("index")
    empty = rows[rows["measure"] == "empty"].groupby(["checkpoint", "method"])["value"].sum()
    by_model = {name: dict(group.droplevel(0)) for name, group in empty.groupby(level=0)}
    write_csv(folder / "gradcam.csv", maps)
    write_csv(folder / "explanations.csv", table)
    write_csv(folder / "explanations_records.csv", rows.round({"value": 6}))
    write_json(folder / "gradcam.json", facts | {"maps": counts})
    found = {"empty_maps": by_model, "answers": claims.to_dict("records")}
    write_json(folder / "explanations.json", facts | found)


def _by_model(rows: pd.DataFrame, row: Row, eps: float) -> tuple[pd.DataFrame, str]:
    """Return a row's value by segment and track (lines) and model (columns), and its condition."""
    known = _at(rows[rows["control"] == row.control], row, eps)
    index, columns = ["segment", "track"], ["condition", "checkpoint"]
    values = known.pivot_table("value", index, columns, sort=False)
    wanted = [name for name in (row.condition, row.compared_with) if name]
    if not set(wanted) <= {*values.columns.get_level_values(0)}:
        return pd.DataFrame(), ""
    first, *others = (values[name] for name in wanted)
    return (first - others[0] if others else first), " less ".join(wanted)


def _at(rows: pd.DataFrame, row: Row, eps: float) -> pd.DataFrame:
    """Return the rows without an attack and those at the eps of a row."""
    return rows[rows["eps"].isin([0, _eps_of(row, eps)])]


def _labels(row: Row, eps: float) -> dict:
    return LABELS | row._asdict() | {"genre": "", "eps": _eps_of(row, eps)}


def _eps_of(row: Row, eps: float) -> float:
    return {"confined": BOX_EPS, "clean": 0.0}.get(row.condition, eps)
