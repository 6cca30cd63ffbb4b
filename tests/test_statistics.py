import numpy as np
import pytest

from src.statistics import difference_of_means, difference_over_tracks, mean_over_tracks

TRACKS = np.repeat(np.arange(40), 5)


def test_equal_values_differ_by_nothing():
    values = np.random.default_rng(0).integers(0, 2, 200)
    found = difference_over_tracks(values, values, TRACKS)
    assert (found["value"], found["low"], found["high"]) == (0, 0, 0)
    assert (found["n_segments"], found["n_tracks"]) == (200, 40)


def test_a_paired_difference_is_narrower_than_its_parts():
    rng = np.random.default_rng(0)
    easy = np.repeat(rng.integers(0, 2, 40), 5)  # whole tracks are easy or hard
    better = np.where(np.arange(200) % 5 == 0, 1, easy)  # one segment a track is mended
    gain = difference_over_tracks(easy, better, TRACKS)
    assert gain["value"] == pytest.approx(better.mean() - easy.mean())
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    alone = mean_over_tracks(easy, TRACKS)
    assert gain["high"] - gain["low"] < (alone["high"] - alone["low"]) / 2


def test_the_sign_tells_which_is_better():
    zeros, ones = np.zeros(200), np.ones(200)
    assert difference_over_tracks(zeros, ones, TRACKS)["value"] == 1
    assert difference_over_tracks(ones, zeros, TRACKS)["value"] == -1


def test_a_single_track_says_nothing_about_others():
    found = difference_over_tracks([0, 1], [1, 1], ["a", "a"])
    assert (found["value"], found["low"], found["high"]) == (0.5, None, None)


@pytest.mark.parametrize(
    "average", [mean_over_tracks, lambda v, t: difference_over_tracks(v, 1, t)]
)
def test_few_tracks_have_no_interval(average):
    values, tracks = np.arange(6) % 2, np.arange(6)
    assert average(values[:5], tracks[:5])["low"] is None
    assert average(values, tracks)["low"] < average(values, tracks)["high"]


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = []
    for k in range(60):
        values = np.repeat(rng.random(40) < 0.6, 5)
        found = mean_over_tracks(values, TRACKS, seed=k)
        covered.append(found["low"] <= 0.6 <= found["high"])
    assert 0.85 <= np.mean(covered) <= 1


def test_a_difference_of_means_is_paired_by_track_and_not_by_segment():
    rng = np.random.default_rng(2)
    easy = rng.normal(size=40)  # tracks differ far more than the groups do
    first, second = easy[TRACKS] + 0.1, easy[TRACKS[::2]]
    found = difference_of_means(first, TRACKS, second, TRACKS[::2])
    assert found["value"] == pytest.approx(first.mean() - second.mean())
    assert found["low"] < found["value"] < found["high"]
    alone = mean_over_tracks(first, TRACKS, proportion=False)
    assert found["high"] - found["low"] < (alone["high"] - alone["low"]) / 2


def test_a_difference_of_means_of_the_same_segments_is_the_paired_one():
    rng = np.random.default_rng(3)
    first, second = rng.random((2, 200))
    paired = difference_over_tracks(second, first, TRACKS)
    found = difference_of_means(first, TRACKS, second, TRACKS)
    assert found == pytest.approx({name: paired[name] for name in found}, abs=1e-12)


def test_a_difference_of_means_needs_enough_tracks_in_both_groups():
    values = np.random.default_rng(4).random(20)
    few, enough = np.arange(20) % 5, np.arange(20) % 6
    assert difference_of_means(values, enough, values, enough)["low"] is not None
    for groups in ((few, enough), (enough, few)):
        found = difference_of_means(values, groups[0], values, groups[1])
        assert (found["low"], found["high"]) == (None, None)


def test_equal_values_have_no_width_unless_they_are_a_proportion():
    zeros = np.zeros(200)
    found = mean_over_tracks(zeros, TRACKS, proportion=False)
    assert (found["value"], found["low"], found["high"]) == (0, 0, 0)
    assert mean_over_tracks(zeros, TRACKS)["high"] > 0.05
