"""Which models and test segments a page shows, chosen by rule."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from src.attacks.audio import load_samples
from src.data.corpus import corpus_of
from src.data.segments import load_split
from src.models.checkpoints import CHECKPOINT_FILE
from src.models.evaluation import predict_logits, softmax
from src.paths import RunPaths


class Shown(NamedTuple):
    """Test segments: spectrograms X (n, 128, 130), genre numbers y (n,), their rows of the table.

    `samples` (n, 66150) are None for a corpus without audio.
    """

    X: np.ndarray
    y: np.ndarray
    table: pd.DataFrame
    samples: np.ndarray | None


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


def choose_segments(paths: RunPaths, models: dict[str, nn.Module], per_genre: int) -> Shown:
    """Return `per_genre` test segments per genre: the easiest ones for these models."""
    test = load_split(paths, "test")
    mean = np.mean([softmax(predict_logits(model, test.X)) for model in models.values()], axis=0)
    data = test.take(easiest(test.y, mean, test.tracks, per_genre))
    data = load_samples(paths, data) if corpus_of(paths).has_audio else data
    return Shown(np.array(data.X), data.y, data.table, data.samples)


def easiest(
    y: np.ndarray, probabilities: np.ndarray, tracks: np.ndarray, per_genre: int
) -> np.ndarray:
    """Return the rows of `per_genre` segments per genre with the most probable true genre.

    `probabilities` (n, n_genres) are means over models. Segments of different tracks come first;
    a genre without test segments has no row. Raises ValueError if `per_genre` is below 1.
    """
    if per_genre < 1:
        raise ValueError(f"--per-genre {per_genre} selects no segments: give at least 1.")
    true = probabilities[np.arange(len(y)), y]
    table = pd.DataFrame({"y": y, "track": tracks, "true": true})
    table = table.sort_values("true", ascending=False, kind="stable")
    table["turn"] = table.groupby("track").cumcount()
    table = table.sort_values(["y", "turn"], kind="stable")
    return table.groupby("y").head(per_genre).index.to_numpy()
