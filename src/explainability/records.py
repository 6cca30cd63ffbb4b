"""Records of explanations, one row per segment and measure, and their table with intervals."""

import numpy as np
import pandas as pd

from src.explainability.attributions import Subject
from src.progress import progress
from src.statistics import difference_of_means, mean_over_tracks

LABELS = {"condition": "clean", "control": "", "part": "", "layer": "", "eps": 0.0}
KEYS = ["checkpoint", "method", "measure", *LABELS]
PROPORTIONS = ("empty", "pointing_game")
COLUMNS = [
    *("corpus", "checkpoint", "method", "measure", "control", "part"),
    *("condition", "compared_with", "genre", "layer", "eps"),
    *("value", "low", "high", "n_segments"),
]


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


def summarize(rows: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """Return the mean of each measure under each condition with its 95% interval over tracks.

    `rows` are `records`, the columns `COLUMNS`. Measures of a part have one row per genre. Segments
    without a value do not count; a condition without any segment has no row. `nissim` becomes its
    mean `mod` and its variation `vid`.
    """
    known = rows.dropna(subset="value")
    known = known.assign(genre=known["genre"].where(known["part"] != "", ""))
    groups = known.groupby([*KEYS, "genre"], sort=False)
    lines = []
    for keys, group in progress(groups, "intervals", len(groups), leave=False):
        line = {"corpus": corpus, "compared_with": ""} | dict(zip(groups.keys, keys, strict=True))
        for name, values in _averaged(line["measure"], group["value"].to_numpy()).items():
            proportion = name in PROPORTIONS
            mean = mean_over_tracks(values, group["track"].to_numpy(), proportion=proportion)
            lines.append(line | {"measure": name} | mean)
    return pd.DataFrame(lines).reindex(columns=COLUMNS)


def differences(rows: pd.DataFrame, pairs: list[tuple], corpus: str) -> pd.DataFrame:
    """Return differences of a measure between two conditions, with intervals over tracks.

    `pairs` are measure, condition, condition to compare with, and eps: records at that eps and
    clean ones (eps 0) count. No row where a condition has no segment; `n_segments` counts a segment
    of both conditions once.
    """
    lines = []
    for measure, condition, baseline, eps in pairs:
        chosen = rows[(rows["measure"] == measure) & rows["eps"].isin([0, eps])]
        chosen = chosen[chosen["condition"].isin([condition, baseline])].dropna(subset="value")
        labels = LABELS | {"corpus": corpus, "measure": measure, "genre": "", "eps": eps}
        labels |= {"condition": condition, "compared_with": baseline}
        for (checkpoint, method), group in chosen.groupby(["checkpoint", "method"], sort=False):
            if group["condition"].nunique() == 2:
                keys = labels | {"checkpoint": checkpoint, "method": method}
                lines.append(keys | _difference(group, condition, baseline))
    return pd.DataFrame(lines, columns=COLUMNS)


def _difference(rows: pd.DataFrame, condition: str, baseline: str) -> dict:
    """Return the mean value under a condition less that under another, with its interval."""
    groups = [rows[rows["condition"] == name] for name in (condition, baseline)]
    columns = [group[name].to_numpy() for group in groups for name in ("value", "track")]
    return difference_of_means(*columns) | {"n_segments": rows["segment"].nunique()}


def _averaged(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Return the values whose mean is shown: those of the measure, or of MOD and VID."""
    if name != "nissim":
        return {name: values}
    return {"mod": values, "vid": (values - values.mean()) ** 2}
