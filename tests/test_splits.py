import numpy as np
import pandas as pd
import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import download
from src.data.splits import MINI, SPLITS, given_split, split, split_tracks
from src.statistics import mean_over_tracks

GTZAN = "blues classical country disco hiphop jazz metal pop reggae rock".split()
# Nine of these ten hold nine segments; of 1292 frames it is unknown which one has ten.
SHORT = (
    "classical.00049 classical.00051 country.00003 country.00004 country.00007 disco.00014 "
    "hiphop.00031 hiphop.00032 rock.00027 rock.00038"
).split()
PERHAPS_LONG = "classical.00051 disco.00014 hiphop.00031 rock.00027".split()
DUPLICATES = {
    "disco.00099": "disco.00098",
    "hiphop.00045": "hiphop.00039",
    "hiphop.00078": "hiphop.00076",
    "metal.00061": "metal.00040",
    "metal.00062": "metal.00041",
    "metal.00063": "metal.00042",
    "metal.00064": "metal.00043",
    "metal.00065": "metal.00044",
    "metal.00066": "metal.00045",
    "metal.00094": "metal.00034",
    "pop.00060": "pop.00054",
    "pop.00071": "pop.00067",
    "reggae.00082": "reggae.00081",
    "rock.00016": "metal.00058",
}


def fake_tracks(genres, per_genre, unused=(), short=(), duplicates=None):
    """Return a table of tracks as the audit makes it."""
    names = [f"{genre}.{number:05d}" for genre in genres for number in range(per_genre)]
    tracks = pd.DataFrame({"track": names, "genre": [name.split(".")[0] for name in names]})
    tracks["used"] = ~tracks["track"].isin(unused)
    tracks["n_segments"] = np.where(tracks["track"].isin(short), 9, 10) * tracks["used"]
    tracks["duplicate_of"] = [(duplicates or {}).get(name, "") for name in names]
    tracks["named"] = True
    return tracks


@pytest.mark.parametrize("long", PERHAPS_LONG)
@pytest.mark.parametrize("duplicates", [{}, DUPLICATES], ids=["as drawn", "duplicates united"])
def test_seed_42_gives_the_documented_counts_on_gtzan(duplicates, long):
    short = set(SHORT) - {long}
    tracks = fake_tracks(GTZAN, 100, ["jazz.00054"], short, duplicates)
    tracks["split"] = split_tracks(tracks, 42)
    used = tracks[tracks["used"]].groupby("split")["n_segments"]
    assert used.count().to_dict() == {"train": 699, "val": 150, "test": 150}
    assert used.sum().to_dict() == {"train": 6983, "val": 1498, "test": 1500}


def test_the_tracks_of_gtzan_mini_and_their_copies_are_the_test_tracks_of_its_split():
    mini = download.mini_tracks()
    copies = {"rock.00099": mini[0], mini[1]: "pop.00098"}  # of a test track, and the other way
    tracks = fake_tracks(GTZAN, 100, ["jazz.00054"], duplicates=copies | DUPLICATES)
    parts = split(tracks, MINI, "", 42)
    of_track = dict(zip(tracks["track"], parts, strict=True))
    assert {of_track[name] for name in [*mini, "rock.00099", "pop.00098"]} == {"test"}
    assert all(of_track[copy] == of_track[first] for copy, first in DUPLICATES.items())
    counts = parts.value_counts()
    assert set(counts.index) == set(SPLITS)
    assert 100 <= counts["test"] <= 100 + len(copies | DUPLICATES)
    assert counts["val"] == 150
    with refused("and the corpus lacks"):
        split(tracks[tracks["track"] != mini[0]].reset_index(drop=True), MINI, "", 42)
    with refused("leaves no track of this corpus for training"):
        split(tracks[tracks["track"].isin(mini)].reset_index(drop=True), MINI, "", 42)


@settings(max_examples=30, deadline=None)
@given(genres=st.integers(1, 6), per_genre=st.integers(7, 60), seed=st.integers(0, 2**32 - 1))
def test_every_genre_is_split_70_15_15_by_track(genres, per_genre, seed):
    tracks = fake_tracks(GTZAN[:genres], per_genre)
    counts = pd.crosstab(tracks["genre"], split_tracks(tracks, seed))
    assert set(counts.columns) == set(SPLITS)
    assert counts["test"].sum() == counts["val"].sum() == round(0.15 * len(tracks))
    assert counts.min().min() >= 1
    assert (counts[["val", "test"]] - 0.15 * per_genre).abs().max().max() <= 1


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    tracks = fake_tracks(GTZAN[:3], 20, duplicates={"disco.00001": "blues.00001"} | DUPLICATES)
    assert split_tracks(tracks, 1).equals(split_tracks(tracks, 1))
    assert not split_tracks(tracks, 1).equals(split_tracks(tracks, 2))


@st.composite
def duplicate_groups(draw, most):
    """Return the `duplicate_of` of 120 tracks: groups of 2 to 4, at most `most` tracks in all."""
    names = fake_tracks(GTZAN[:3], 40)["track"].tolist()
    chosen = draw(st.lists(st.sampled_from(names), unique=True, min_size=2, max_size=most))
    size, duplicates = draw(st.integers(2, 4)), {}
    for start in range(0, len(chosen), size):
        first, *others = sorted(chosen[start : start + size])
        duplicates |= dict.fromkeys(others, first)
    return duplicates


@settings(max_examples=100, deadline=None)
@given(duplicates=duplicate_groups(most=60), seed=st.integers(0, 1000))
def test_duplicates_are_always_on_one_side(duplicates, seed):
    tracks = fake_tracks(GTZAN[:3], 40, duplicates=duplicates)
    side = split_tracks(tracks, seed).set_axis(tracks["track"])
    assert {copy: side[copy] for copy in duplicates} == {c: side[o] for c, o in duplicates.items()}
    assert set(side) == set(SPLITS)


@settings(max_examples=50, deadline=None)
@given(duplicates=duplicate_groups(most=5), seed=st.integers(0, 1000))
def test_uniting_duplicates_keeps_the_tracks_per_genre_and_split(duplicates, seed):
    tracks = fake_tracks(GTZAN[:3], 40, duplicates=duplicates)
    drawn = split_tracks(tracks.assign(duplicate_of=""), seed)
    united = split_tracks(tracks, seed)
    assert pd.crosstab(tracks["genre"], drawn).equals(pd.crosstab(tracks["genre"], united))
    assert (drawn != united).sum() <= 2 * len(duplicates)


def test_uniting_duplicates_keeps_the_segments_per_split():
    tracks = fake_tracks(["blues"], 100, duplicates={"blues.00002": "blues.00000"})
    tracks.loc[::2, "n_segments"] = 9
    moves = 0
    for seed in range(20):
        drawn = split_tracks(tracks.assign(duplicate_of=""), seed)
        united = split_tracks(tracks, seed)
        segments = tracks["n_segments"].groupby(drawn).sum()
        assert segments.equals(tracks["n_segments"].groupby(united).sum())
        moves += (drawn != united).any()
    assert moves


def test_unreadable_tracks_are_not_exchanged_for_duplicates():
    unused = [f"blues.{number:05d}" for number in range(2, 40)]
    tracks = fake_tracks(["blues"], 40, unused, duplicates={"blues.00001": "blues.00000"})
    tracks["n_segments"] = 10
    for seed in range(10):
        drawn = split_tracks(tracks.assign(duplicate_of=""), seed)
        united = split_tracks(tracks, seed)
        assert set(tracks.index[drawn != united]) <= {1}
        assert united[1] == united[0] == drawn[0]


def test_too_few_tracks_of_a_genre_are_refused():
    tracks = fake_tracks(["blues", "rock"], 20).drop(range(20, 34))
    with refused("rock has 6 tracks") as error:
        split_tracks(tracks, 0)
    assert "add tracks" in str(error.value)


@pytest.fixture
def lists(tmp_path):
    """Return a function writing three published lists of blues tracks by their numbers."""

    def write(train, val, test):
        for part, numbers in {"train": train, "valid": val, "test": test}.items():
            lines = [f"blues/blues.{number:05d}.wav\n" for number in numbers]
            (tmp_path / f"{part}_filtered.txt").write_text("".join(lines))
        return tmp_path

    return write


def test_published_lists_are_followed_and_tracks_on_none_have_no_split(lists):
    tracks = fake_tracks(["blues"], 6).sample(frac=1, random_state=0)
    side = given_split(tracks, lists([4, 0], [1], [2, 5]), "filtered").set_axis(tracks["track"])
    assert side.sort_index().tolist() == ["train", "val", "test", "", "train", "test"]


def test_lists_are_read_from_the_folder_that_is_given_if_they_are_the_published_ones(
    lists, monkeypatch
):
    tracks, folder = fake_tracks(["blues"], 3), str(lists([0], [1], [2]))
    with pytest.raises(download.DownloadError, match=r"test_filtered\.txt is not the published"):
        split(tracks, "filtered", folder, 0)
    monkeypatch.setattr(download, "check_splits", lambda folder: None)
    assert split(tracks, "filtered", folder, 0).tolist() == list(SPLITS)


def test_files_that_are_no_tracks_by_their_name_are_in_no_split():
    tracks = fake_tracks(["blues", "jazz"], 10)
    stray = {"track": "x/song.wav", "genre": "x", "used": False, "named": False}
    stray |= {"n_segments": 0, "duplicate_of": ""}
    with_stray = split_tracks(pd.concat([tracks, pd.DataFrame([stray])], ignore_index=True), 42)
    assert with_stray.tolist() == [*split_tracks(tracks, 42), ""]


def test_an_unknown_kind_of_split_is_refused():
    with pytest.raises(ValueError, match="SPLIT=rendom is unknown: give random, "):
        split(fake_tracks(["blues"], 7), "rendom", "", 0)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (([0, 1], [2, 9], [3]), r"valid_filtered\.txt names 1 tracks .*\(blues\.00009 first\)"),
        (([0, 1], [2], [3, 1]), r"blues\.00001 is in two of the filtered lists"),
    ],
    ids=["unknown track", "track in two lists"],
)
def test_lists_that_do_not_fit_are_refused(lists, numbers, message):
    with refused(message):
        given_split(fake_tracks(["blues"], 6), lists(*numbers), "filtered")


@pytest.mark.usefixtures("intervals_of_any")
def test_value_is_the_plain_mean_of_segments_in_any_order():
    values, tracks = np.array([1.0, 0, 0, 0, 1, 1]), np.array(list("aaaabb"))
    result = mean_over_tracks(values, tracks)
    assert result["value"] == pytest.approx(0.5)
    assert result["low"] <= 0.5 <= result["high"]
    assert (result["n_segments"], result["n_tracks"]) == (6, 2)
    order = [5, 0, 3, 1, 4, 2]
    assert mean_over_tracks(values[order], tracks[order]) == pytest.approx(result)


def test_long_tracks_weigh_by_their_segments_in_the_interval_too():
    tracks = np.repeat(np.arange(60), [1, 9] * 30)
    mixed = mean_over_tracks(tracks % 2 == 0, tracks)
    assert mixed["value"] == pytest.approx(0.1)
    assert 0.03 < mixed["low"] < 0.1 < mixed["high"] < 0.25


def test_no_values_are_refused():
    with refused("0 values to average"):
        mean_over_tracks([], [])
