"""Which clips and networks a page shows, chosen by rule and not by eye."""

import numpy as np
import pandas as pd

from src.models.checkpoints import CHECKPOINT_FILE
from src.paths import RunPaths


def checkpoint_names(paths: RunPaths) -> list[str]:
    """Return the names of a run's checkpoints in alphabetical order.

    Raises FileNotFoundError if there is none.
    """
    names = sorted(path.parent.name for path in paths.models.glob(f"*/{CHECKPOINT_FILE}"))
    if not names:
        raise FileNotFoundError(
            f"results/models/{paths.run} has no checkpoint: nothing was trained under this name; "
            "run `make train` first, with the same DATASET and RUN."
        )
    return names


def clearest_clips(
    y: np.ndarray, probabilities: np.ndarray, tracks: np.ndarray, per_genre: int
) -> np.ndarray:
    """Return the rows of `per_genre` clips of each genre, those that networks are surest of.

    `probabilities` (n, n_genres) are means over networks; what counts is that of the true genre.
    Clips of different tracks come first; of genres without test clips there are none.
    Raises ValueError if `per_genre` is below 1.
    """
    if per_genre < 1:
        raise ValueError(f"{per_genre} clips of each genre were asked for: give at least 1.")
    table = pd.DataFrame({"y": y, "track": tracks, "sure": probabilities[np.arange(len(y)), y]})
    table = table.sort_values("sure", ascending=False, kind="stable")
    table["turn"] = table.groupby("track").cumcount()
    table = table.sort_values(["y", "turn"], kind="stable")
    return table.groupby("y").head(per_genre).index.to_numpy()
