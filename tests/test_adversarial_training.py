import numpy as np
import pytest
import torch
from torch import nn

from src.data.segments import SegmentDataset
from src.models import adversarial_training, cnn
from src.models.adversarial_training import (
    measure,
    overfitted_epochs,
    perturb,
    perturbed_weights,
)
from src.models.cnn import GenreClassifierCNN


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(cnn, "WIDTHS", (4, 8, 8, 8))
    monkeypatch.setattr(cnn, "DENSE", (16, 16))
    torch.manual_seed(0)
    return GenreClassifierCNN(3)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_inner_attack_stays_in_its_ball_and_raises_the_loss(network, steps):
    X, y = torch.rand(8, 1, 128, 32), torch.arange(8) % 3
    attacked = perturb(network, X, y, eps=0.02, steps=steps)
    assert (attacked - X).abs().max() <= 0.02 + 1e-6
    assert 0 <= attacked.min() <= attacked.max() <= 1
    network.eval()
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(network(x), y) for x in (X, attacked))
    assert after > before


def test_the_inner_attack_leaves_batch_norms_and_weights_alone(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    perturb(network, torch.rand(4, 1, 128, 32), torch.zeros(4, dtype=torch.long), 0.05, 2)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_weights_move_by_a_share_of_their_norm_to_a_higher_loss_and_back(network):
    X, y = torch.rand(8, 1, 128, 32), torch.arange(8) % 3
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.eval()
    loss = nn.functional.cross_entropy(network(X), y)
    with perturbed_weights(network, X, y, size=0.02):
        assert nn.functional.cross_entropy(network(X), y) > loss
        for name, value in network.state_dict().items():
            moved = (value - before[name]).float().norm()
            norm = before[name].float().norm()
            expected = 0.02 * norm if value.ndim > 1 else torch.zeros(())
            assert torch.isclose(moved, expected, rtol=1e-3, atol=1e-6), name
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    with perturbed_weights(network, X, y, size=0):
        assert all(value.equal(before[name]) for name, value in network.state_dict().items())


MEASURES = ("single_step_accuracy", "robust_accuracy", "train_robust_accuracy")


class Brightness(nn.Module):
    """Predict 0 for dark segments (mean below 0.5), 1 for bright ones."""

    def forward(self, x):
        excess = 100 * (x.mean(dim=(1, 2, 3)) - 0.5)
        return torch.stack([-excess, excess], dim=1)


def test_robust_accuracy_is_lost_where_the_budget_reaches_the_other_side(monkeypatch):
    monkeypatch.setattr(adversarial_training, "fold_batch_norm", lambda model: model)
    X = np.full((8, 128, 32), 0.4, dtype=np.float32)
    X[::2] = 0.7
    val = SegmentDataset(X, np.array([1, 0] * 4))
    assert measure(Brightness(), val, val, 0.0) == {}
    wrong = SegmentDataset(X, 1 - val.y)  # nothing is left to attack
    for eps, accuracy in ((0.05, 1), (0.15, 0.5), (0.25, 0)):
        found = measure(Brightness(), wrong, val, eps)
        assert (found["train_robust_accuracy"], found["robust_accuracy"]) == (0, accuracy)
    assert measure(Brightness(), wrong, wrong, 0.01) == dict.fromkeys(MEASURES, 0)


def test_catastrophic_overfitting_is_found_by_epoch():
    gaps = [(0.5, 0.45), (0.6, 0.2), (0.5, 0.4)]
    history = [{"single_step_accuracy": one, "robust_accuracy": many} for one, many in gaps]
    assert overfitted_epochs(history) == [2]
