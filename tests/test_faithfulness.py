import numpy as np
import pytest
import torch

from src.explainability.faithfulness import (
    FRACTIONS,
    LAYERS,
    above_control,
    areas,
    confidence,
    curves,
    randomized,
    road,
)
from src.explainability.gradcam import explain
from src.models.evaluation import predict_logits, softmax

MARKED = np.zeros((128, 130), dtype=bool)
MARKED[:16, :26] = True  # 2.5% of the cells hold all evidence


def mean_of_marked(X, targets):
    """Score segments by a linear toy: the mean level of the marked cells."""
    return X[:, MARKED].mean(axis=1)


def toy(heat):
    """Return the toy's curves for one segment of ones on a background of zeros."""
    X, background = np.ones((1, 128, 130)), np.zeros((128, 130))
    return curves(mean_of_marked, X, np.zeros(1), heat[None].astype(float), background, seed=0)


@pytest.mark.parametrize(
    ("heat", "insertion"), [(MARKED, [0, 1, 1, 1, 1, 1]), (~MARKED, [0, 0, 0, 0, 0, 1])]
)
def test_the_right_map_changes_the_score_at_once_and_the_opposite_at_the_end(heat, insertion):
    found = toy(heat)
    assert found["insertion"][0].tolist() == insertion
    assert found["deletion"][0].tolist() == [1 - score for score in insertion]


def test_equal_cells_come_in_random_order_and_score_their_share():
    np.testing.assert_allclose(toy(np.ones((128, 130)))["insertion"][0], FRACTIONS, atol=0.06)


def test_areas_lie_under_the_curves():
    scores = {"insertion": np.array([FRACTIONS, np.ones(len(FRACTIONS))])}
    np.testing.assert_allclose(areas(scores)["insertion"], [0.5, 1])


def test_a_method_is_more_faithful_where_it_inserts_higher_and_deletes_lower():
    method = {"insertion": 0.8, "deletion": 0.1, "road": 0.3}
    control = {"insertion": 0.5, "deletion": 0.3, "road": 0.4}
    expected = {"insertion": 0.3, "deletion": 0.2, "road": -0.1}  # falling lower is more faithful
    assert above_control(method, control) == pytest.approx(expected)


def test_confidence_is_the_probability_of_each_genre(model):
    X = np.random.default_rng(0).random((2, 128, 130), dtype=np.float32)
    expected = softmax(predict_logits(model, X))[[0, 1], [3, 5]]
    np.testing.assert_allclose(confidence(model)(X, np.array([3, 5])), expected)


class Loudness(torch.nn.Module):
    """A network of two genres whose first logit is the level of the marked cells."""

    def forward(self, x):
        level = 20 * x[:, 0][:, torch.from_numpy(MARKED)].mean(dim=1)
        return torch.stack([level, torch.full_like(level, 10)], dim=1)


def test_road_prefers_the_right_map_to_its_opposite():
    X = np.zeros((2, 128, 130), dtype=np.float32)
    X[:, MARKED] = 1
    heat = np.stack([MARKED, ~MARKED]).astype(np.float32)
    heat += np.random.default_rng(0).random(heat.shape, dtype=np.float32) / 10  # no ties
    right, wrong = road(Loudness(), X, np.array([0, 0]), heat, seed=0)
    assert right > 0.3
    assert wrong == pytest.approx(-right, abs=0.05)


def test_empty_maps_have_no_value():
    found, X = toy(np.zeros((128, 130))), np.ones((1, 128, 130), dtype=np.float32)
    assert np.isnan(areas(found)["insertion"]).all()
    assert np.isnan(found["deletion"]).all()
    assert np.isnan(road(Loudness(), X, np.array([0]), np.zeros_like(X), seed=0)).all()


def test_layers_become_random_from_the_last_one_down(model):
    learnt = model.state_dict()
    for depth, (name, changed) in enumerate(randomized(model, 0), start=1):
        assert name == LAYERS[depth - 1]
        weights = changed.state_dict()
        same = {k.split(".")[0] for k in weights if k.endswith("weight") and "bn" not in k
                and weights[k].equal(learnt[k])}  # fmt: skip
        assert same == set(LAYERS[depth:])
    assert depth == len(LAYERS) == 11


def test_random_weights_change_the_map_and_leave_the_network_itself_alone(model):
    X = np.random.default_rng(0).random((2, 128, 130), dtype=np.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learnt = explain(model, X, np.array([1, 2]))
    (_, changed), *_ = randomized(model, 1)
    assert not np.allclose(explain(changed, X, np.array([1, 2])), learnt, atol=0.05)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_layers_do_not_share_their_random_weights(model):
    *_, (_, last) = randomized(model, 1)
    drawn = [last.get_submodule(name).weight.detach().flatten() for name in ("conv2_1", "conv3_2")]
    one, other = (weights[: len(drawn[0])].numpy() for weights in drawn)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_random_weights_do_not_depend_on_what_is_drawn_between_the_layers(model):
    drawn = [changed.state_dict() for _, changed in randomized(model, 1)]
    for expected, (_, changed) in zip(drawn, randomized(model, 1), strict=True):
        assert all(value.equal(expected[name]) for name, value in changed.state_dict().items())
        torch.rand(1)
