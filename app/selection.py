"""Which models and test segments a page shows, chosen by rule."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from src.attacks.audio import load_samples
from src.attacks.codecs import to_16_bit
from src.data.corpus import corpus_of
from src.data.features import segment_audio
from src.data.own_track import read_track
from src.data.segments import Segments, load_metadata
from src.models.checkpoints import CHECKPOINT_FILE
from src.models.evaluation import predict_logits, softmax
from src.models.unseen import unseen_test
from src.paths import RunPaths


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
) -> Segments:
    """Return `per_genre` test segments per genre: the easiest ones for these networks.

    Tracks that one of them was trained on are left out. The table has the column own: whether a
    segment is of the reader's own tracks.
    """
    test = unseen_test(paths, loaded)
    mean = _mean_probabilities(loaded, test.X)
    data = test.take(easiest(test.y, mean, test.tracks, per_genre))
    data = load_samples(paths, data) if corpus_of(paths).has_audio else data
    return replace(data, table=data.table.assign(own=False))


def add_own(
    paths: RunPaths,
    shown: Segments,
    loaded: dict[str, tuple[nn.Module, dict]],
    tracks: Sequence[Path],
) -> Segments:
    """Return segments with the middle one of each of the reader's own tracks after them.

    The genres of these are the predicted ones. Raises ValueError for a corpus without audio and for
    a file that cannot be used.
    """
    if not tracks:
        return shown
    if shown.samples is None:
        raise ValueError(
            f"The corpus of run {paths.run} has spectrograms and no audio: tracks of yours cannot "
            "be shown next to it, leave TRACK out or give a corpus of audio."
        )
    rows, samples = [], []
    for track in map(read_track, tracks):
        k = len(track.samples) // 2
        samples.append(to_16_bit(track.samples[k]))
        rows.append({"track": track.name, "start_s": track.starts_s[k], "own": True})
    X = np.concatenate([segment_audio(part, 1) for part in samples])
    y = _mean_probabilities(loaded, X).argmax(axis=1)
    table = pd.DataFrame(rows).assign(genre=np.array(load_metadata(paths)["genres"])[y])
    return Segments(
        np.concatenate([shown.X, X]),
        np.concatenate([shown.y, y]),
        pd.concat([shown.table, table], ignore_index=True),
        np.concatenate([shown.samples, samples]),
    )


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
