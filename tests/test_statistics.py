from functools import cache

import numpy as np
import pytest

from src.statistics import (
    difference_of_means,
    difference_over_tracks,
    effective_number,
    holm,
    mean_over_tracks,
)

TRACKS = np.repeat(np.arange(40), 5)
NEARBY = (0.8, 0.9, 1, 1.1, 1.25)  # coverage jumps with the share: counts are whole numbers


def counts_per_track(rng, draws, n_tracks, length, share, correlation):
    """Return successes (draws, n_tracks) of tracks of equal length (beta-binomial)."""
    shares = np.full((draws, n_tracks), share)
    if correlation:
        size = 1 / correlation - 1
        shares = rng.beta(share * size, (1 - share) * size, shares.shape)
    return rng.binomial(length, shares)


def values_of(counts, length):
    """Return successes per track as values and tracks."""
    values = (np.arange(length) < np.array(counts)[:, None]).ravel()
    return values, np.repeat(np.arange(len(counts)), length)


def coverage(n_tracks, length, share, correlation):
    """Return how often the interval of simulated tracks covers the share, on average nearby."""
    rng, covered, known = np.random.default_rng(0), [], {}
    for near in share * np.array(NEARBY) if share <= 0.5 else 1 - (1 - share) * np.array(NEARBY):
        for counts in counts_per_track(rng, 60, n_tracks, length, near, correlation):
            key = counts.sum(), np.square(counts).sum()  # with the sizes, all that matters
            if key not in known:
                known[key] = mean_over_tracks(*values_of(counts, length))
            covered.append(known[key]["low"] <= near <= known[key]["high"])
    return np.mean(covered)


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("n_tracks", [15, 35, 100, 150])
@pytest.mark.parametrize(("length", "correlation"), [(1, 0), (4, 0.5), (10, 0.5)])
def test_intervals_cover_a_proportion_as_often_as_they_say(n_tracks, length, share, correlation):
    assert 0.92 <= coverage(n_tracks, length, share, correlation) <= 0.985


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_intervals_are_too_wide_rather_than_too_narrow_without_correlation(share):
    assert coverage(35, 4, share, 0) >= 0.95


@pytest.mark.parametrize("n_tracks", [6, 15, 35])
@pytest.mark.parametrize("length", [1, 4, 10])
def test_no_end_of_an_interval_falls_when_a_success_is_added(n_tracks, length):
    for full in range(0, n_tracks, 3):
        previous = None
        for single in range(n_tracks - full + 1):
            counts = [length] * full + [1] * single + [0] * (n_tracks - full - single)
            found = mean_over_tracks(*values_of(counts, length))
            ends = np.array([found["low"], found["high"]])
            assert previous is None or (ends >= previous).all()
            previous = ends


@pytest.mark.parametrize(("n_right", "low", "high"), [(0, 0, 0.037), (1, 0.0018, 0.0545)])
def test_independent_segments_have_the_interval_of_wilson(n_right, low, high):
    found = mean_over_tracks(np.arange(100) < n_right, np.arange(100))
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-4, rel=1e-3)


@pytest.mark.parametrize("share", [0, 1])
def test_no_rounding_puts_a_share_outside_its_interval(share):
    for n_tracks in range(6, 300, 7):
        values, tracks = np.full(3 * n_tracks, share), np.repeat(np.arange(n_tracks), 3)
        found = mean_over_tracks(values, tracks)
        assert found["low"] <= share <= found["high"]


def test_the_effective_number_lies_between_tracks_and_segments():
    rng = np.random.default_rng(0)
    alike = np.repeat(rng.integers(0, 2, 40), 5)
    unlike = np.tile([0, 1, 0, 1, 1], 40)
    assert 40 <= effective_number(alike, TRACKS) < 45
    assert effective_number(unlike, TRACKS) == 200
    assert effective_number(np.zeros(200), TRACKS) == pytest.approx(200 / 3)  # as assumed: 1 + 4/2


@cache
def paired_coverage(n_tracks, length, gained, lost):
    """Return how often the interval of a paired difference covers it; whole tracks differ."""
    rng, covered = np.random.default_rng(0), []
    for near in NEARBY:
        true = (gained - lost) * near
        for draw in rng.random((60, n_tracks)):
            change = 1.0 * (draw < gained * near) - (draw > 1 - lost * near)
            values = np.repeat(change, length)
            if length > 1:  # half of each track's segments are independent of the others
                own = rng.random(len(values))
                mixed = 1.0 * (own < gained * near) - (own > 1 - lost * near)
                values = np.where(rng.random(len(values)) < 0.5, values, mixed)
            tracks = np.repeat(np.arange(n_tracks), length)
            found = difference_over_tracks(values < 0, values > 0, tracks)
            covered.append(found["low"] <= true <= found["high"])
    return np.mean(covered)


@pytest.mark.parametrize("n_tracks", [15, 100])
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize(("gained", "lost"), [(0.05, 0.05), (0.3, 0.1)])
def test_intervals_cover_a_paired_difference_as_often_as_they_say(n_tracks, length, gained, lost):
    assert 0.92 <= paired_coverage(n_tracks, length, gained, lost) <= 1


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_equal_predictions_leave_room_for_a_difference(share):
    values = np.arange(100) < 100 * share
    found = difference_over_tracks(values, values, np.arange(100))
    assert (found["value"], found["p_value"]) == (0, 1)
    assert (found["low"], found["high"]) == (pytest.approx(-0.037, abs=1e-4), -found["low"])
    assert (found["n_segments"], found["n_tracks"]) == (100, 100)


@pytest.mark.parametrize(("gained", "lost", "n"), [(0, 1, 44), (3, 0, 30), (20, 8, 60)])
def test_the_ends_of_a_paired_interval_are_where_the_score_test_rejects(gained, lost, n):
    change = np.repeat([1, -1, 0], [gained, lost, n - gained - lost])
    found = difference_over_tracks(change < 0, change > 0, np.arange(n))
    for end in (found["low"], found["high"]):
        share = np.linspace(max(0, -end), (1 - end) / 2, 200_001)[1:-1]  # of lost pairs
        likelihood = gained * np.log(share + end) + lost * np.log(share)
        likelihood += (n - gained - lost) * np.log(1 - 2 * share - end)
        likeliest = share[likelihood.argmax()]
        error = np.sqrt(n * (2 * likeliest + end * (1 - end)))
        assert abs(gained - lost - n * end) / error == pytest.approx(1.96, abs=2e-3)


def test_a_paired_difference_is_narrower_than_its_parts():
    rng = np.random.default_rng(0)
    easy = np.repeat(rng.integers(0, 2, 40), 5)  # whole tracks are easy or hard
    better = np.where(np.arange(200) % 5 == 0, 1, easy)  # one segment per track is mended
    gain = difference_over_tracks(easy, better, TRACKS)
    assert gain["value"] == pytest.approx(better.mean() - easy.mean())
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    assert gain["p_value"] < 0.01
    alone = mean_over_tracks(easy, TRACKS)
    assert gain["high"] - gain["low"] < (alone["high"] - alone["low"]) / 2


def test_the_sign_states_which_is_better():
    zeros, ones = np.zeros(200), np.ones(200)
    up, down = (difference_over_tracks(*pair, TRACKS) for pair in ((zeros, ones), (ones, zeros)))
    assert (up["value"], down["value"]) == (1, -1)
    assert (up["high"], down["low"]) == (1, -1)
    assert 0.8 < up["low"] == pytest.approx(-down["high"])


def test_a_test_of_a_difference_agrees_with_its_interval():
    rng = np.random.default_rng(1)
    for _ in range(50):
        first, second = (rng.random((2, 200)) < [[0.4], [0.52]]).astype(int)
        found = difference_over_tracks(first, second, TRACKS)
        assert (found["p_value"] < 0.05) == (not found["low"] <= 0 <= found["high"])


@pytest.mark.parametrize(
    "average",
    [
        mean_over_tracks,
        lambda v, t: mean_over_tracks(v, t, proportion=False),
        lambda v, t: difference_over_tracks(0 * v, v, t),
    ],
)
def test_few_tracks_have_no_interval(average):
    values, tracks = np.arange(6) % 2, np.arange(6)
    for few in (tracks[:5], 0 * tracks[:5]):
        found = average(values[:5], few)
        assert found["value"] == 0.4
        assert found["low"] is found["high"] is found.get("p_value") is None
    assert average(values, tracks)["low"] < average(values, tracks)["high"]


def test_means_have_the_t_interval_of_the_means_of_tracks_of_equal_length():
    values = np.random.default_rng(1).normal(size=200)
    found = mean_over_tracks(values, TRACKS, proportion=False)
    means = values.reshape(40, 5).mean(axis=1)
    half = 2.022691 * means.std(ddof=1) / np.sqrt(40)  # quantile of t with 39 degrees of freedom
    assert found["low"] == pytest.approx(means.mean() - half)
    assert found["high"] == pytest.approx(means.mean() + half)


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
    first, second = np.random.default_rng(3).random((2, 200))
    paired = difference_over_tracks(second, first, TRACKS, proportion=False)
    found = difference_of_means(first, TRACKS, second, TRACKS)
    assert found == pytest.approx({name: paired[name] for name in found})
    assert (found["p_value"] < 0.05) == (not found["low"] <= 0 <= found["high"])


def test_values_that_are_no_proportion_are_not_taken_for_one():
    with pytest.raises(ValueError, match=r"other than 0 and 1 .* give proportion=False\.$"):
        difference_over_tracks([0, 0.5], [1, 1], ["a", "b"])


def test_a_difference_of_means_needs_enough_tracks_in_both_groups():
    values = np.random.default_rng(4).random(20)
    few, enough = np.arange(20) % 5, np.arange(20) % 6
    assert difference_of_means(values, enough, values, enough)["low"] is not None
    for pair in ((few, enough), (enough, few)):
        found = difference_of_means(values, pair[0], values, pair[1])
        assert (found["low"], found["high"], found["p_value"]) == (None, None, None)
        assert found["n_tracks"] == 6


def test_equal_values_have_no_width_unless_they_are_a_proportion():
    zeros = np.zeros(200)
    found = mean_over_tracks(zeros, TRACKS, proportion=False)
    assert (found["value"], found["low"], found["high"]) == (0, 0, 0)
    assert mean_over_tracks(zeros, TRACKS)["high"] > 0.05


def test_several_tests_are_corrected_for_their_number():
    corrected = holm([0.01, 0.04, 0.03, np.nan, 0.005])
    np.testing.assert_allclose(corrected, [0.03, 0.06, 0.06, np.nan, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1, 1]
    assert holm([]).tolist() == []
