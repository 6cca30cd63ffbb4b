import numpy as np
import pytest
import torch
from torch import nn

from src.models import evaluation
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import (
    band_statistics,
    baseline_probabilities,
    calibration_error,
    evaluate,
    predict_logits,
    softmax,
    vote,
)

GENRES = ["blues", "jazz", "metal"]


@pytest.fixture(name="X", scope="module")
def _segments():
    return np.random.default_rng(0).random((7, 128, 130), dtype=np.float32)


def certain(predicted):
    """Return probabilities that give nearly all to each predicted genre."""
    return np.eye(3)[predicted] * 0.97 + 0.01


def test_softmax_gives_probabilities_however_large_the_logits():
    logits = np.float32([[0, 0, 0], [1000, 0, -1000], [-1, 0, 1]])
    probabilities = softmax(logits)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(probabilities[0], 1 / 3)
    assert probabilities[1].tolist() == [1, 0, 0]
    np.testing.assert_allclose(probabilities[2, 2] / probabilities[2, 1], np.e)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
def test_logits_do_not_depend_on_the_batches(batch_size, X, monkeypatch):
    torch.manual_seed(0)
    model = GenreClassifierCNN(3)
    whole = predict_logits(model, X)
    monkeypatch.setattr(evaluation, "BATCH_SIZE", batch_size)
    np.testing.assert_allclose(predict_logits(model, X), whole, rtol=0, atol=1e-5)


def test_predictions_are_made_in_eval_mode_and_float32(X):
    torch.manual_seed(0)
    model = GenreClassifierCNN(3).train()
    logits = predict_logits(model, X)
    assert not model.training
    assert logits.dtype == np.float32
    with torch.no_grad():
        exact = model.double()(torch.from_numpy(X)[:, None].double()).numpy()
    np.testing.assert_allclose(logits, exact, rtol=0, atol=1e-5)


def test_predicting_does_not_change_the_input(X):
    class Inplace(nn.Module):
        def forward(self, x):
            return x.zero_().sum(dim=(1, 2, 3))[:, None]

    before = X.copy()
    predict_logits(Inplace(), X)
    assert np.array_equal(X, before)


def test_a_song_goes_to_the_mean_probability_not_to_the_majority_of_clips():
    probabilities = np.array([[0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0, 0.9, 0.1], [0.1, 0.2, 0.7]])
    table = vote(probabilities, np.array(["b.1", "b.1", "b.1", "a.0"]), np.array([1, 1, 1, 2]))
    assert table.pop("confidence").tolist() == pytest.approx([0.7, 1.7 / 3])
    assert table.to_dict("records") == [
        {"track": "a.0", "true": 2, "predicted": 2},
        {"track": "b.1", "true": 1, "predicted": 1},
    ]


def test_a_perfect_classifier_scores_one():
    y, tracks = np.repeat([0, 1, 2], 4), np.repeat([*"abcdef"], 2)
    result = evaluate(np.eye(3)[y], y, tracks, GENRES)
    assert result["loss"] == pytest.approx(0, abs=1e-9)
    for measure in ("segment_accuracy", "track_accuracy"):
        assert (result[measure]["value"], result[measure]["high"]) == (1, 1)
    assert result["macro_recall"] == {"segment": 1, "track": 1}
    assert np.array_equal(result["confusion_segments"], 4 * np.eye(3))
    assert np.array_equal(result["confusion_tracks"], 2 * np.eye(3))


def test_the_calibration_error_is_the_distance_between_confidence_and_accuracy():
    sure, correct = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.5]), np.array([1, 1, 1, 0, 0, 0])
    assert calibration_error(sure, correct) == pytest.approx((4 * 0.15 + 2 * 0.5) / 6)
    assert calibration_error(np.array([0.75] * 4), [1, 1, 0, 1]) == pytest.approx(0)
    mixed = np.array([0.61, 0.65]), [0, 1]  # one bin of fifteen: errors cancel within it
    assert calibration_error(*mixed) == pytest.approx(0.13)
    rng = np.random.default_rng(0)
    honest = rng.uniform(0.1, 1, 20_000)
    assert calibration_error(honest, rng.random(20_000) < honest) < 0.02
    result = evaluate(np.float64([[0.8, 0.1, 0.1]] * 2), np.array([0, 1]), np.arange(2), GENRES)
    assert result["calibration"] == pytest.approx(
        {"mean_confidence": 0.8, "calibration_error": 0.3}
    )


def test_a_classifier_that_knows_nothing_scores_chance():
    y, tracks = np.repeat([0, 1, 2], 4), np.repeat([*"abcdef"], 2)
    result = evaluate(np.full((12, 3), 1 / 3), y, tracks, GENRES)
    assert result["chance"] == result["segment_accuracy"]["value"] == pytest.approx(1 / 3)
    assert result["loss"] == pytest.approx(np.log(3))


def test_a_known_case_with_a_genre_absent_from_the_test_split():
    y = np.array([0, 0, 0, 2, 2])
    predicted = np.array([0, 1, 1, 2, 0])
    result = evaluate(certain(predicted), y, np.array(["a", "a", "b", "c", "c"]), GENRES)
    assert result["segment_accuracy"]["value"] == pytest.approx(2 / 5)
    assert result["segment_accuracy"]["n_tracks"] == result["track_accuracy"]["n_segments"] == 3
    assert result["track_accuracy"]["value"] == pytest.approx(1 / 3)  # ties go to the first genre
    assert result["macro_recall"]["segment"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert result["macro_recall"]["track"] == pytest.approx((1 / 2 + 0) / 2)
    assert {g: r["value"] for g, r in result["per_genre"].items()} == {
        "blues": pytest.approx(1 / 3),
        "metal": 1 / 2,
    }
    assert result["confusion_segments"].tolist() == [[1, 2, 0], [0, 0, 0], [1, 0, 1]]  # rows true
    assert result["confusion_tracks"].tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]
    right, wrong = -np.log(0.98), -np.log(0.01)
    assert result["loss"] == pytest.approx((2 * right + 3 * wrong) / 5)


def test_band_statistics_are_mean_and_deviation_over_time(X):
    statistics = band_statistics(X)
    np.testing.assert_allclose(statistics[:, :128], X.mean(axis=2), rtol=1e-6)
    np.testing.assert_allclose(statistics[:, 128:], X.std(axis=2), rtol=1e-6)


def test_the_baseline_learns_planted_bands_and_gives_unseen_genres_nothing():
    rng = np.random.default_rng(0)
    X, y = rng.random((40, 128, 130), dtype=np.float32) / 2, np.arange(40) % 2 * 2
    X[y == 0, 20:25] += 0.2
    X[y == 2, 90:95] += 0.2
    probabilities = baseline_probabilities(X[:30], y[:30], X[30:], 3)
    assert (probabilities.argmax(axis=1) == y[30:]).all()
    assert (probabilities[:, 1] == 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
