import numpy as np
import pandas as pd
import pytest

from src.data.segments import Segments, draw_segments, draw_tracks


@pytest.fixture
def data():
    """Return eight segments of four tracks of two genres, with samples."""
    tracks = np.repeat([*"abcd"], 2)
    table = pd.DataFrame({"segment": np.arange(8) * 2, "track": tracks, "genre": [*"xxxxyyyy"]})
    X = np.arange(8, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    return Segments(X, np.repeat([0, 1], 4), table, X[:, 0] * 10)


def test_segments_that_are_taken_keep_their_labels_table_and_samples(data):
    few = data.take(np.array([5, 0]))
    assert (len(data), len(few)) == (8, 2)
    assert few.X[:, 0, 0].tolist() == [5, 0]
    assert few.y.tolist() == [1, 0]
    assert few.tracks.tolist() == ["c", "a"]
    assert few.numbers.tolist() == [10, 0]
    assert few.samples[:, 0].tolist() == [50, 0]
    without = Segments(data.X, data.y, data.table)
    assert without.take(np.array([1])).samples is None


def test_samples_of_segments_are_those_that_are_drawn(data):
    few = data.sample(5, seed=3)
    assert few.numbers.tolist() == data.numbers[draw_segments(data.tracks, 5, seed=3)].tolist()
    whole = data.sample_tracks(2, seed=3)
    assert whole.numbers.tolist() == data.numbers[draw_tracks(data.table, 2, seed=3)].tolist()
    assert sorted(set(whole.y)) == [0, 1]


def test_genres_take_turns_and_tracks_in_each():
    """Eleven segments of four tracks, of which three are of one genre."""
    tracks, y = np.repeat([*"abcd"], [3, 3, 3, 2]), np.repeat([0, 1], [9, 2])
    data = Segments(np.zeros((11, 1, 1)), y, pd.DataFrame({"track": tracks, "segment": range(11)}))
    orders = [data.sample_genres(11, seed) for seed in (1, 1, 2)]
    for drawn in orders:
        assert sorted(drawn.numbers) == list(range(11))
        assert [sorted(drawn.y[k : k + 2]) for k in (0, 2)] == [[0, 1], [0, 1]]
        first = drawn.tracks[drawn.y == 0]
        assert [sorted(first[k : k + 3]) for k in (0, 3, 6)] == [[*"abc"]] * 3
    one, two, other = (drawn.numbers.tolist() for drawn in orders)
    assert one == two != other
    assert data.sample_genres(4, 1).numbers.tolist() == one[:4]


def test_segments_are_drawn_evenly_over_tracks():
    tracks = np.repeat([*"abcdefg"], 10)
    drawn = draw_segments(tracks, 25, seed=0)
    assert sorted(np.unique(tracks[drawn], return_counts=True)[1]) == [3, 3, 3, 4, 4, 4, 4]
    assert len(np.unique(drawn)) == 25
    assert (np.diff(drawn) > 0).all()


def test_all_segments_are_taken_if_a_track_or_all_have_fewer():
    tracks = np.array([*"abbbbbbbb"])
    assert tracks[draw_segments(tracks, 4, seed=0)].tolist() == [*"abbb"]
    assert draw_segments(np.array([*"aab"]), 9, seed=0).tolist() == [0, 1, 2]


def test_tracks_are_drawn_whole_and_evenly_over_genres():
    tracks = pd.DataFrame({"track": [f"{g}.{i}" for g in "abc" for i in range(4)]})
    segments = tracks.loc[np.repeat(tracks.index, 3)].reset_index(drop=True)
    segments["genre"] = segments["track"].str[0]
    rows = draw_tracks(segments, 6, seed=0)
    drawn = segments.iloc[rows]
    assert (drawn.groupby("track").size() == 3).all()
    assert drawn.drop_duplicates("track").groupby("genre").size().tolist() == [2, 2, 2]
    assert np.array_equal(rows, draw_tracks(segments, 6, seed=0))
    assert len(draw_tracks(segments, 99, seed=0)) == 36
    with pytest.raises(ValueError, match="The number of tracks is 0"):
        draw_tracks(segments, 0, seed=0)


def test_the_rows_of_a_seed_are_those_of_committed_results():
    tracks = np.repeat([*"abcdefg"], 10)
    assert draw_segments(tracks, 5, seed=0).tolist() == [7, 26, 30, 48, 51]
    assert draw_segments(tracks, 5, seed=1).tolist() != [7, 26, 30, 48, 51]
    table = pd.DataFrame({"track": [f"{genre}.{i}" for genre in "abc" for i in range(4)]})
    table["genre"] = table["track"].str[0]
    assert draw_tracks(table, 4, seed=0).tolist() == [2, 4, 6, 11]
