import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from src.data.segments import Segments
from src.explainability import attributions
from src.explainability.attributions import (
    CONTROLS,
    METHODS,
    Subject,
    attribute,
    blurred_random,
    integrated_gradients,
    make_subject,
    scaled,
)
from src.explainability.gradcam import explain, is_empty


class Weighing(nn.Module):
    """A linear network: logit k is the sum of a spectrogram weighted by `weights[k]`."""

    def __init__(self, weights):
        super().__init__()
        self.output = nn.Linear(128 * 130, len(weights), bias=False)
        self.output.weight = nn.Parameter(torch.tensor(weights).flatten(1))

    def forward(self, x):
        return self.output(x.flatten(1))


@pytest.fixture(name="X", scope="module")
def _segments():
    return np.random.default_rng(0).random((3, 128, 130), dtype=np.float32)


@pytest.fixture(scope="module")
def subject(model):
    priors = blurred_random((10, 128, 130), 3)
    background = np.full((128, 130), 0.5, dtype=np.float32)
    return Subject("tiny", model, "conv4_2", 42, priors, background)


@pytest.mark.parametrize("method", [*METHODS, *CONTROLS])
def test_each_method_maps_each_segment_to_its_own_range_and_none_to_none(method, X, subject):
    few = X[:1] if method == "scorecam" else X
    maps = attribute(subject, method, few, np.array([3, 1, 4])[: len(few)])
    assert (maps.shape, maps.dtype) == (few.shape, np.float32)
    assert (maps.min(), maps.max() <= 1 + 1e-6) == (0, True)
    # Score-CAM weighs the channels of this untrained network alike, and their sum is negative.
    assert not is_empty(maps).all() or method == "scorecam"
    assert attribute(subject, method, X[:0], np.zeros(0, dtype=int)).shape == (0, 128, 130)


def test_methods_differ(X, subject):
    names = set(METHODS) - {"scorecam"}
    maps = {name: attribute(subject, name, X[:1], np.array([3])) for name in names}
    assert len({heat.tobytes() for heat in maps.values()}) == len(maps)


@pytest.mark.parametrize("method", ["randomcam", "blurred_random"])
def test_random_maps_are_the_same_for_the_same_seed(method, X, subject):
    targets = np.zeros(3, dtype=int)
    first, again = (attribute(subject, method, X, targets) for _ in range(2))
    other = attribute(subject._replace(seed=1), method, X, targets)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_the_prior_is_the_prototype_of_the_target_class(X, subject):
    maps = attribute(subject, "frequency_prior", X, np.array([7, 7, 2]))
    np.testing.assert_array_equal(maps, subject.prototypes[[7, 7, 2]])


def test_integrated_gradients_of_a_linear_network_are_weight_times_change(X):
    weights = np.random.default_rng(1).normal(size=(2, 128, 130)).astype(np.float32)
    background = np.full((128, 130), 0.25, dtype=np.float32)
    maps = integrated_gradients(Weighing(weights), X, np.array([0, 1, 0]), background)
    expected = scaled(np.clip(weights[[0, 1, 0]] * (X - background), 0, None))
    np.testing.assert_allclose(maps, expected, atol=0.02)  # gradients are bfloat16


def test_scaling_spans_each_map_and_empties_constants(X):
    maps = np.stack([3 * X[0] - 1, np.full((128, 130), 2)])
    found = scaled(maps)
    assert (found[0].min(), found[0].max()) == (0, 1)
    assert not found[1].any()


def test_prototypes_come_from_segments_that_are_predicted_correctly(model, monkeypatch):
    X = np.random.default_rng(2).random((6, 128, 130), dtype=np.float32)
    y, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    known = {x.tobytes(): np.eye(10)[k] for x, k in zip(X, predicted, strict=True)}
    by_segment = lambda _, drawn: np.stack([known[x.tobytes()] for x in drawn])  # noqa: E731
    monkeypatch.setattr(attributions, "predict_logits", by_segment)
    segments = pd.DataFrame({"track": [*"abcdef"]})
    subject = make_subject("tiny", model, Segments(X, y, segments))
    for genre, rows in {0: [0, 1], 1: [3, 4]}.items():
        mean = explain(model, X[rows], y[rows]).mean(axis=0)
        np.testing.assert_allclose(subject.prototypes[genre], scaled(mean[None])[0], atol=1e-3)
    assert not subject.prototypes[2:].any()  # of these it gets none right
    np.testing.assert_allclose(subject.background[:, 0], X.mean(axis=(0, 2)), rtol=1e-5)
    assert (subject.background == subject.background[:, :1]).all()
