"""Records of explanations, one row a clip and measure, and the table with intervals over tracks."""

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from src.statistics import mean_over_tracks

KEYS = ["checkpoint", "method", "measure", "condition", "eps"]
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
    for keys, group in tqdm(known.groupby(KEYS, sort=False), desc="intervals", leave=False):
        shown = _measures(keys[KEYS.index("measure")], group["value"].to_numpy())
        for name, values in shown.items():
            line = dict(zip(KEYS, keys, strict=True)) | {"measure": name, "corpus": corpus}
            lines.append(line | mean_over_tracks(values, group["track"].to_numpy()))
    return pd.DataFrame(lines).rename(columns={"n_segments": "n_clips"})[COLUMNS]


def _measures(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Return what is averaged over clips: the measure itself, or MOD and VID."""
    if name != "nissim":
        return {name: values}
    return {"mod": values, "vid": (values - values.mean()) ** 2}
