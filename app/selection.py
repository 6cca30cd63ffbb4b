"""Which models and test segments a page shows, chosen by rule."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from src.attacks.audio import load_samples
from src.attacks.codecs import to_16_bit
from src.data.corpus import corpus_of
from src.data.features import segment_audio
from src.data.own_track import read_track
from src.data.segments import load_metadata
from src.models.checkpoints import CHECKPOINT_FILE
from src.models.evaluation import predict_logits, softmax
from src.models.unseen import unseen_test
from src.paths import RunPaths


class Shown(NamedTuple):
    """Segments: spectrograms X (n, 128, 130), genre numbers y (n,), their rows of the table.

    The table has the columns track, genre, start_s and own: whether it is one of the reader's
    tracks, whose `y` and genre are the predicted ones. `samples` (n, 66150) are None for a corpus
    without audio.
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
            "run `make train` first, with the same DATASET and RUN, or give CHECKPOINTS."
        )
    return names


def choose_segments(
    paths: RunPaths, loaded: dict[str, tuple[nn.Module, dict]], per_genre: int
) -> Shown:
    """Return `per_genre` test segments per genre: the easiest ones for these networks.

    Tracks that one of them was trained on are left out.
    """
    test = unseen_test(paths, loaded)
    mean = _mean_probabilities(loaded, test.X)
    data = test.take(easiest(test.y, mean, test.tracks, per_genre))
    data = load_samples(paths, data) if corpus_of(paths).has_audio else data
    return Shown(np.array(data.X), data.y, data.table.assign(own=False), data.samples)


def add_own(
    paths: RunPaths, shown: Shown, loaded: dict[str, tuple[nn.Module, dict]], tracks: list[Path]
) -> Shown:
    """Return segments with the middle one of each of the reader's own tracks after them.

    Raises ValueError for a corpus without audio and for a file that cannot be used.
    """
    if tracks and shown.samples is None:
        raise ValueError(
            f"The corpus of run {paths.run} has spectrograms and no audio: tracks of yours cannot "
            "be shown next to it, leave TRACK out or give a corpus of audio."
        )
    genres = load_metadata(paths)["genres"]
    for track in map(read_track, tracks):
        k = len(track.samples) // 2
        samples = to_16_bit(track.samples[k])
        X = segment_audio(samples, 1)
        y = _mean_probabilities(loaded, X).argmax(axis=1)
        row = {"track": track.name, "genre": genres[y[0]], "start_s": track.starts_s[k]}
        table = pd.concat([shown.table, pd.DataFrame([row | {"own": True}])], ignore_index=True)
        shown = Shown(
            np.concatenate([shown.X, X]),
            np.concatenate([shown.y, y]),
            table,
            np.concatenate([shown.samples, samples[None]]),
        )
    return shown


def _mean_probabilities(loaded: dict[str, tuple[nn.Module, dict]], X: np.ndarray) -> np.ndarray:
    """Return probabilities (n, n_genres) of segments, averaged over networks."""
    return np.mean([softmax(predict_logits(model, X)) for model, _ in loaded.values()], axis=0)


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
