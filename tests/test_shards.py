import numpy as np
import pytest

from src import shards
from src.attacks.adversarial import Search, attack
from src.explainability.gradcam import explain
from src.explainability.localization import attack_boxes
from src.shards import SHARD, in_shards


def note(number, X, y, factor):
    return np.stack([np.full(len(X), number), X * factor + y, np.full(len(X), len(X))], axis=1)


def test_shards_are_of_fixed_size_in_order_and_numbered():
    X, y = np.arange(2 * SHARD + 3), np.ones(2 * SHARD + 3, dtype=int)
    numbers, values, sizes = in_shards("note", note, (X, y), 10).T
    assert np.array_equal(values, 10 * X + 1)
    assert np.unique(numbers, return_counts=True)[1].tolist() == [SHARD, SHARD, 3]
    assert sizes[::SHARD].tolist() == [SHARD, SHARD, 3]


@pytest.fixture
def alike(clips, monkeypatch):
    """Return the same segment twelve times over, in shards of four."""
    monkeypatch.setattr(shards, "SHARD", 4)
    return np.repeat(clips.X[:1], 12, axis=0), np.repeat(clips.y[:1], 12)


def everywhere(model, X, y, seed):
    return attack_boxes(model, X, y, np.ones(X.shape, dtype=bool), Search(1, seed))


RANDOM = {
    "pgd": lambda model, X, y, seed: attack("pgd", model, X, y, 0.05, Search(1, seed)),
    "square": lambda model, X, y, seed: attack("square", model, X, y, 0.05, Search(2, seed)),
    "boxes": everywhere,
    "randomcam": lambda model, X, y, seed: explain(model, X, y, method="randomcam", seed=seed),
}


@pytest.mark.parametrize("name", RANDOM)
def test_each_shard_draws_its_own_and_does_not_depend_on_the_others(name, slim_model, alike):
    X, y = alike
    made = RANDOM[name](slim_model, X, y, 3)
    assert not np.allclose(made[:4], made[4:8])
    assert not np.allclose(made[4:8], made[8:])
    changed = X.copy()
    changed[:4] = 0.5
    np.testing.assert_array_equal(RANDOM[name](slim_model, changed, y, 3)[4:], made[4:])
    np.testing.assert_array_equal(RANDOM[name](slim_model, X[:4], y[:4], 3), made[:4])
    assert not np.allclose(RANDOM[name](slim_model, X, y, 4), made)
