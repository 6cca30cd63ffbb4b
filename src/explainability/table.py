"""Records of explanations, one row a clip and measure, and the table with intervals over tracks."""

import numpy as np
import pandas as pd

from src.progress import progress
from src.statistics import difference_of_means, mean_over_tracks

KEYS = ["checkpoint", "method", "measure", "condition", "eps"]
TRUE_OR_FALSE = ("empty", "box_hit")
COLUMNS = ["corpus", *KEYS, "value", "low", "high", "n_clips"]


def records(segments: pd.DataFrame, values: dict[str, np.ndarray], **keys: object) -> pd.DataFrame:
    """Return one row a clip and measure; `keys` are `checkpoint`, `method`, `condition`, `eps`.

    `values` has one number a clip for each measure, NaN where there is none. Every condition that
    has a key also has the genre, segment and track.
    """
    clips = segments[["segment", "track", "genre"]].reset_index(drop=True)
    tables = [clips.assign(**keys, measure=name, value=column) for name, column in values.items()]
    return pd.concat(tables, ignore_index=True)


def summarize(rows: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """Return the mean of each measure under each condition with its 95% interval over tracks.

    Clips without a value do not count; of conditions without any clip there is no row. `nissim`
    appears as its mean `mod` and its variation `vid`. Columns: `COLUMNS`.
    """
    known = rows.dropna(subset="value")
    lines = []
    for keys, group in progress(known.groupby(KEYS, sort=False), "intervals", leave=False):
        shown = _measures(keys[KEYS.index("measure")], group["value"].to_numpy())
        for name, values in shown.items():
            line = dict(zip(KEYS, keys, strict=True)) | {"measure": name, "corpus": corpus}
            tracks, proportion = group["track"].to_numpy(), name in TRUE_OR_FALSE
            lines.append(line | mean_over_tracks(values, tracks, proportion=proportion))
    return pd.DataFrame(lines).rename(columns={"n_segments": "n_clips"}).reindex(columns=COLUMNS)


def differences(rows: pd.DataFrame, pairs: list[tuple], corpus: str) -> pd.DataFrame:
    """Return differences of a measure between two conditions, with intervals over tracks.

    `pairs` are measure, first condition, second condition and eps; records at that eps and clean
    ones (eps 0) count. The condition of a row reads `first - second`. Columns: `COLUMNS`.
    """
    lines = []
    for measure, first, second, eps in pairs:
        chosen = rows[(rows["measure"] == measure) & rows["eps"].isin([0, eps])]
        chosen = chosen[chosen["condition"].isin([first, second])].dropna(subset="value")
        for (checkpoint, method), group in chosen.groupby(["checkpoint", "method"], sort=False):
            if group["condition"].nunique() == 2:
                keys = (corpus, checkpoint, method, measure, f"{first} - {second}", eps)
                line = dict(zip(COLUMNS, keys, strict=False)) | difference(group, first, second)
                lines.append(line)
    return pd.DataFrame(lines, columns=COLUMNS)


def difference(rows: pd.DataFrame, first: str, second: str) -> dict:
    """Return the mean value under condition `first` less that under `second`, with its interval.

    `rows` are records of one measure without NaN; `n_clips` counts a clip once that has both
    conditions.
    """
    groups = [rows[rows["condition"] == name] for name in (first, second)]
    columns = [group[name].to_numpy() for group in groups for name in ("value", "track")]
    return difference_of_means(*columns) | {"n_clips": rows["segment"].nunique()}


def _measures(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is averaged over clips: the measure itself, or MOD and VID."""
    if name != "nissim":
        return {name: values}
    return {"mod": values, "vid": (values - values.mean()) ** 2}
