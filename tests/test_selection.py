from dataclasses import replace

import numpy as np
import pandas as pd

from src.attacks.adversarial import Search
from src.data.segments import Segments
from src.explainability import selection
from src.explainability.selection import (
    View,
    attack_examples,
    confident_failures,
    correct_examples,
    count_maps,
    example_records,
    failure_examples,
    make_examples,
    manipulated_example,
    natural_failures,
    partners,
    spread,
)
from src.models.evaluation import predict_logits

# predicted 0, 0, 1, 1, 2, 2
TRACKS = np.array([*"abcdef"])
Y = np.array([0, 0, 0, 1, 1, 1])
P = np.array(
    [[6, 2, 2], [9, 1, 0], [4, 5, 1], [1, 8, 1], [1, 2, 7], [0, 1, 9]]
) / 10  # fmt: skip


def test_correct_examples_are_the_most_confident_correct_ones_of_each_genre():
    assert correct_examples(Y, P, TRACKS, 1).tolist() == [1, 3]
    assert correct_examples(Y, P, TRACKS, 2).tolist() == [1, 0, 3]
    assert correct_examples((Y + 2) % 3, P, TRACKS, 2).tolist() == []


def test_correct_examples_are_of_different_tracks_first():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    y, tracks = np.zeros(4, dtype=int), np.array([*"aaba"])
    assert correct_examples(y, probabilities, tracks, 3).tolist() == [0, 2, 1]


def test_confident_failures_are_wrong_and_of_each_confusion_first():
    assert confident_failures(Y, P, 3).tolist() == [5, 2, 4]
    assert confident_failures(Y, P, 9).tolist() == [5, 2, 4]
    assert confident_failures(Y, np.eye(3)[Y], 5).tolist() == []


def test_natural_failures_are_misclassified_segments_of_different_tracks(slim_model, clips):
    found, predicted = natural_failures(slim_model, clips, 2, seed=1)
    assert found.numbers.tolist() == [2 * 4, 2 * 9]
    assert (predicted != found.y).all()
    right = clips.take(np.arange(4))
    assert len(natural_failures(slim_model, right, 2, seed=1)[0]) == 0


def test_partners_are_other_tracks_of_the_same_genre():
    table = pd.DataFrame({"track": [*"aabc"]})
    assert partners(Segments(None, np.array([0, 0, 0, 1]), table)).tolist() == [2, 2, 0, -1]


def test_spread_rows_have_even_distances():
    assert spread(np.arange(10), 3).tolist() == [0, 3, 6]
    assert spread(np.arange(2), 3).tolist() == [0, 1]
    assert spread(np.arange(10), 0).tolist() == []


def few_of(clips):
    few = clips.take(np.array([0, 4, 9]))  # the last two are misclassified
    return replace(few, table=few.table.assign(start_s=[0.0, 3, 6]))


def test_failures_are_explained_for_the_predicted_and_the_true_genre(slim_model, clips):
    view, few = View(slim_model, "conv4_2", [*"abc"]), few_of(clips).take(np.array([1, 2]))
    predicted = predict_logits(slim_model, few.X).argmax(axis=1)
    for pair, true, now in zip(
        failure_examples(view, few, predicted), few.y, predicted, strict=True
    ):
        assert [e.explained for e in pair] == ["abc"[now], "abc"[true]]
        assert {(e.true, e.predicted) for e in pair} == {("abc"[true], "abc"[now])}
        assert not np.array_equal(pair[0].heat, pair[1].heat)


def test_attacked_segments_are_explained_for_the_genre_predicted_after_the_attack(
    slim_model, clips, monkeypatch
):
    few = few_of(clips)
    smallest = np.array([0.05, np.nan, np.nan]), few.X
    monkeypatch.setattr(selection, "first_success", lambda *options: smallest)
    view, search = View(slim_model, "conv4_2", [*"abc"]), Search(2, 1)
    pairs = attack_examples(view, few, "pgd", [0.05, 0.1], search)
    for (first, second), x in zip(pairs, few.X, strict=True):
        np.testing.assert_array_equal(first.x, x)
        assert np.abs(second.x - x).max() > 0.05
        for example in (first, second):
            now = predict_logits(slim_model, example.x[None]).argmax()
            assert example.predicted == example.explained == "abc"[now]
    assert np.isnan(pairs[1][0].eps)
    assert [(a.eps, b.eps) for a, b in pairs[:1]] == [(0.05, 0.1)]


def test_the_median_of_manipulated_segments_is_shown_before_and_after(
    slim_model, clips, monkeypatch
):
    monkeypatch.setattr(selection, "spearman", lambda *maps: np.array([1, 0.5, 0]))
    view, few = View(slim_model, "conv4_2", [*"abc"]), few_of(clips)
    X = few.X[[1, 2, 0]]
    before, after = manipulated_example(view, few, X, 0.05)
    assert before.segment == after.segment == [*few.table.itertuples()][1]
    np.testing.assert_array_equal(before.x, few.X[1])
    np.testing.assert_array_equal(after.x, X[1])
    assert (before.explained, after.explained) == ("abc"[few.y[1]],) * 2
    assert after.predicted == "abc"[predict_logits(slim_model, X).argmax(axis=1)[1]]
    assert (before.eps, after.attack, after.eps) == (0, "map attack", 0.05)


def test_records_of_examples_say_which_genre_each_map_explains(slim_model, clips):
    few = few_of(clips)
    view, now = View(slim_model, "conv4_2", [*"abc"]), predict_logits(slim_model, few.X).argmax(1)
    examples = make_examples(view, "kind", few, now, np.array([few.y[0], few.y[1], now[2]]))
    examples[1] = examples[1]._replace(heat=0 * examples[1].heat, eps=0.1)
    table = example_records(examples)
    counts = count_maps(table.assign(category="natural_failures"))
    assert counts.to_dict("index") == {
        ("natural failures", "true genre, as predicted"): {"maps": 1, "empty": 0},
        ("natural failures", "true genre"): {"maps": 1, "empty": 1},
        ("natural failures", "predicted genre"): {"maps": 1, "empty": 0},
    }
    assert table["explains"].tolist() == ["both", "true", "predicted"]
    assert table["wrong"].tolist() == [False, True, True]
    assert table["empty"].tolist() == [False, True, False]
    assert table["eps"].tolist() == [0, 0.1, 0]
    expected = few.table[["segment", "track", "start_s"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(table[["segment", "track", "start_s"]], expected)
