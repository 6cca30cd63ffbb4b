import copy

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from src.explainability import gradcam
from src.explainability.gradcam import CAMS, explain, is_empty
from src.models.evaluation import predict_logits


class Listener(nn.Module):
    """A network whose maps are known: the first logit is the mean level, the second its opposite.

    Its only feature is the spectrogram itself, so the map of genre 0 is the spectrogram scaled
    to its own range, and nothing speaks for genre 1.
    """

    def __init__(self):
        super().__init__()
        self.conv4_2 = nn.Conv2d(1, 1, 1, bias=False)
        self.output = nn.Linear(1, 2, bias=False)
        nn.init.ones_(self.conv4_2.weight)
        self.output.weight = nn.Parameter(torch.tensor([[1.0], [-1.0]]))

    def forward(self, x):
        return self.output(self.conv4_2(x).mean(dim=(2, 3)))


@pytest.fixture(name="X", scope="module")
def _segments():
    return np.random.default_rng(0).random((5, 128, 130), dtype=np.float32)


def test_maps_have_the_shape_of_the_segments_and_span_their_range(X, model):
    maps = explain(model, X, np.arange(5))
    assert (maps.shape, maps.dtype) == (X.shape, np.float32)
    assert (maps.min(axis=(1, 2)) == 0).all()
    np.testing.assert_allclose(maps[~is_empty(maps)].max(axis=(1, 2)), 1, rtol=0, atol=1e-6)
    assert not is_empty(maps).all()


def test_the_map_of_a_batch_is_that_of_each_segment_alone(X, model, monkeypatch):
    targets = np.array([3, 1, 4, 1, 5])
    alone = np.concatenate([explain(model, X[[i]], targets[[i]]) for i in range(5)])
    np.testing.assert_allclose(explain(model, X, targets), alone, rtol=0, atol=1e-3)
    monkeypatch.setattr(gradcam, "BATCH_SIZE", 2)
    np.testing.assert_allclose(explain(model, X, targets), alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "eigencam"])
@pytest.mark.parametrize("layer", ["conv4_2", "conv3_1"])
def test_maps_are_those_that_the_library_makes_one_at_a_time(method, layer, X, model):
    found = explain(model, X[:3], np.array([3, 1, 4]), layer, method)
    plain = copy.deepcopy(model).requires_grad_(True)
    for x, target, heat in zip(X, (3, 1, 4), found, strict=False):
        cam = CAMS[method](plain, [plain.get_submodule(layer)])
        alone = cam(torch.from_numpy(x)[None, None], [ClassifierOutputTarget(target)])[0]
        cam.activations_and_grads.release()
        np.testing.assert_allclose(heat, alone, rtol=0, atol=1e-3)


def test_gradients_begin_at_the_target_layer(X, model):
    reached, watched = [], copy.deepcopy(model)
    watched.pool.register_forward_hook(lambda m, i, o: reached.append(o.requires_grad))
    explain(watched, X[:1], np.array([0]))
    assert reached == [False, False, False, True]  # the way back to the input is what costs


def test_a_mistake_inside_the_library_is_not_hidden(X, model, monkeypatch):
    def stumble(self, *arguments):
        raise IndexError("as in a block of the library")

    monkeypatch.setattr(GradCAM, "forward", stumble)
    with pytest.raises(IndexError, match="as in a block"):
        explain(model, X, np.zeros(5))


def test_a_map_falls_on_what_speaks_for_its_genre():
    x = np.full((1, 128, 130), 0.2, dtype=np.float32)
    x[0, 40:60, 30:90] = 0.8
    heat = explain(Listener(), x, np.array([0]))[0]
    np.testing.assert_allclose(heat, x[0] == np.float32(0.8), rtol=0, atol=1e-4)


def test_a_map_without_positive_evidence_is_empty(X):
    maps = explain(Listener(), X[:2], np.array([1, 0]))
    assert is_empty(maps).tolist() == [True, False]


def test_explaining_changes_neither_weights_nor_predictions(X, model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = predict_logits(model, X)
    explain(model, X, np.zeros(5))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert np.array_equal(predict_logits(model, X), logits)


def test_a_frozen_network_can_be_explained(X):
    maps = explain(Listener().requires_grad_(False), X[:1], np.array([0]))
    assert not is_empty(maps).any()


@pytest.mark.parametrize("layer", [f"conv{block}_{k}" for block in (1, 2, 3, 4) for k in (1, 2)])
def test_every_convolution_has_a_map(layer, X, model):
    maps = explain(model, X[:1], np.array([3]), layer)
    assert (maps.shape, np.isfinite(maps).all()) == ((1, 128, 130), True)


NO_CONVOLUTIONS = ("bn4_2", "pool", "relu", "dense1", "conv5_1", "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": []}, "0 targets for 5 segments"),
        ({"targets": [0] * 6}, "6 targets for 5 segments"),
        ({"targets": [0, 0, 0, 0, -1]}, "Genre -1 cannot be explained"),
        ({"targets": [10, 0, 0, 0, 0]}, "Genre 10 cannot be explained"),
        ({"method": "smile"}, "Method smile is unknown"),
        *(({"target_layer": k}, f"TARGET_LAYER={k} is no conv.*: give") for k in NO_CONVOLUTIONS),
    ],
)
def test_a_request_without_meaning_is_refused(changes, said, X, model):
    with pytest.raises(ValueError, match=said):
        explain(model, X, **{"targets": [0] * 5} | changes)
