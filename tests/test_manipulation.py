import numpy as np
import pytest
from torch import nn

from src.explainability import manipulation
from src.explainability.attributions import Subject, attribute
from src.explainability.manipulation import MANIPULATED, TOLERANCE, manipulate, same_prediction
from src.explainability.selection import null_segments
from src.explainability.similarity import spearman
from src.models.evaluation import predict_logits

EPS = 0.02


@pytest.fixture(scope="module")
def subject(slim_model, clips):
    background = np.full((128, 130), clips.X.mean(), dtype=np.float32)
    return Subject("slim", slim_model, "conv4_2", 42, np.zeros((3, 128, 130)), background)


@pytest.fixture(name="X", scope="module")
def _segments(clips):
    return clips.X[[0, 1, 2, 3, 5, 6]]


@pytest.mark.parametrize("method", MANIPULATED)
def test_maps_move_further_than_by_noise_while_prediction_and_probability_stay(method, subject, X):
    targets = predict_logits(subject.model, X).argmax(axis=1)
    changed = manipulate(subject, method, X, targets, EPS, iterations=10)
    assert np.abs(changed - X).max() <= EPS + 1e-6
    assert (changed.min() >= 0, changed.max() <= 1) == (True, True)
    kept, change = same_prediction(subject.model, X, changed)
    assert kept.all()
    assert np.abs(change).max() <= TOLERANCE
    noise = null_segments(X, changed, 1)["noise"]
    clean, moved, shaken = (attribute(subject, method, x, targets) for x in (X, changed, noise))
    assert spearman(clean, moved).mean() < spearman(clean, shaken).mean() - 0.05


def test_a_segment_without_any_such_change_is_returned_as_it_is(subject, X, monkeypatch):
    nothing_counts = lambda model, X, changed: (np.zeros(len(X), bool), np.zeros(len(X)))  # noqa: E731
    monkeypatch.setattr(manipulation, "same_prediction", nothing_counts)
    targets = predict_logits(subject.model, X).argmax(axis=1)
    np.testing.assert_array_equal(manipulate(subject, "gradcam", X, targets, EPS, 1), X)
    assert len(manipulate(subject, "gradcam", X[:0], targets[:0], EPS, 1)) == 0


def test_changed_predictions_and_probabilities_are_noticed(subject, X):
    kept, change = same_prediction(subject.model, X, X[::-1])
    before = predict_logits(subject.model, X).argmax(axis=1)
    assert kept.tolist() == (before == before[::-1]).tolist()
    assert (change[~kept] < -0.1).all()
    assert same_prediction(subject.model, X, X)[1].tolist() == [0] * len(X)


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_the_maps_of_the_search_are_those_of_the_method(method, subject, X, monkeypatch):
    """With ReLU left in place: rank by rank the maps that are shown."""
    monkeypatch.setattr(manipulation.nn, "Softplus", lambda beta: nn.ReLU())
    shown = attribute(subject, method, X, np.zeros(len(X), dtype=int))
    job = manipulation.Job(subject, method, EPS, 1)
    batch = manipulation.torch.from_numpy(X)[:, None].requires_grad_()
    model = manipulation._smooth(subject)
    maps, logits = manipulation._map(model, batch, np.zeros(len(X), dtype=int), job)
    np.testing.assert_allclose(logits.detach(), predict_logits(subject.model, X), atol=1e-4)
    large = nn.functional.interpolate(maps.detach()[:, None], X.shape[1:], mode="bilinear")
    known = shown.any(axis=(1, 2))
    assert known.any()
    assert spearman(shown[known], large[known, 0].numpy()).min() > 0.95
