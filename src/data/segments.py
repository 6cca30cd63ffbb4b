"""Segments with their labels and table: what models are trained on, attacked and explained with."""

from typing import NamedTuple

import numpy as np
import pandas as pd


class Segments(NamedTuple):
    """Segments of 3 s of one or more tracks.

    `X` (n, 128, 130) float32 in [0, 1], `y` (n,) genre numbers, `table` one row per segment
    (segment, track, genre, start_s, split), `samples` (n, 66150) where there is audio.
    """

    X: np.ndarray
    y: np.ndarray
    table: pd.DataFrame
    samples: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Segments":
        """Return some of the segments; `rows` are positions."""
        samples = None if self.samples is None else self.samples[rows]
        return Segments(self.X[rows], self.y[rows], self.table.iloc[rows], samples)

    def sample(self, n: int, seed: int) -> "Segments":
        """Return `n` segments spread evenly over the tracks."""
        return self.take(draw_segments(self.tracks, n, seed))

    @property
    def tracks(self) -> np.ndarray:
        """The track (n,) of each segment."""
        return self.table["track"].to_numpy()

    @property
    def numbers(self) -> np.ndarray:
        """The number (n,) of each segment in its split."""
        return self.table["segment"].to_numpy()


def draw_segments(tracks: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return the sorted rows of `n` segments spread evenly over the tracks, at random within each.

    `tracks` (rows,) holds each row's track. All rows if there are fewer than `n`.
    Raises ValueError if `n` is below 1 (or NaN) or there are no rows.
    """
    if not n >= 1:
        raise ValueError(f"The number of segments is {n}: give n_segments of at least 1.")
    if len(tracks) == 0:
        raise ValueError("There are 0 segments to draw from: the split may be empty; widen it.")
    shuffled = pd.Series(tracks).sample(frac=1, random_state=seed)
    turn = shuffled.groupby(shuffled).cumcount()
    return np.sort(turn.sort_values(kind="stable").index[:n].to_numpy())


def draw_tracks(segments: pd.DataFrame, n: int, seed: int) -> np.ndarray:
    """Return the rows of all segments of `n` tracks, drawn evenly over genres.

    All rows if there are fewer tracks. Raises ValueError if `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"The number of tracks is {n}: give at least 1.")
    tracks = segments.drop_duplicates("track").sample(frac=1, random_state=seed)
    turn = tracks.groupby("genre").cumcount()
    drawn = tracks.loc[turn.sort_values(kind="stable").index[:n], "track"]
    return np.flatnonzero(segments["track"].isin(drawn))
