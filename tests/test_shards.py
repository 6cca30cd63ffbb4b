import copy
import subprocess
import sys

import numpy as np
import pytest

from src import shards
from src.attacks.adversarial import Job, Search, attack
from src.explainability.gradcam import explain
from src.explainability.localization import BOX_EPS
from src.models.own import OwnNetwork
from src.paths import ROOT
from src.shards import SHARD, forget_results, in_shards, keep_results, once


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
    return attack("pgd", model, X, y, np.full_like(X, BOX_EPS), Search(1, seed))


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


CALLS = []


def interrupted(number, X, *_options):
    CALLS.append(number)
    if number == 2 and CALLS.count(2) == 1:
        raise KeyboardInterrupt
    return X + number


@pytest.fixture
def kept(tmp_path):
    CALLS.clear()
    keep_results(tmp_path / "kept")
    yield tmp_path / "kept"
    forget_results()


def test_interrupted_work_continues_with_the_shards_that_are_there(kept):
    X = np.arange(3 * SHARD)
    with pytest.raises(KeyboardInterrupt):
        in_shards("work", interrupted, (X,))
    made = in_shards("work", interrupted, (X,))
    assert CALLS == [0, 1, 2, 2]
    np.testing.assert_array_equal(made, X + np.repeat(np.arange(3), SHARD))
    np.testing.assert_array_equal(in_shards("work", interrupted, (X,)), made)
    assert CALLS == [0, 1, 2, 2]


def test_finished_work_leaves_nothing_and_is_done_anew(kept):
    once(interrupted, 0, np.arange(3))
    assert list(kept.iterdir())
    forget_results()
    assert not kept.exists()
    once(interrupted, 0, np.arange(3))
    assert CALLS == [0, 0]
    assert not kept.exists()


def others(clips, slim_model):
    """Return arguments that differ in one thing each."""
    changed = copy.deepcopy(slim_model)
    changed.output.bias.data[0] += 1e-6
    X = clips.X[:1]
    yield 0, X, Job(slim_model, Search(1))
    yield 1, X, Job(slim_model, Search(1))
    yield 0, X + np.float32(1e-6), Job(slim_model, Search(1))
    yield 0, X, Job(slim_model, Search(1, seed=1))
    yield 0, X, Job(changed, Search(1))


def test_results_are_kept_for_the_same_weights_data_and_search_only(kept, clips, slim_model):
    for n, arguments in enumerate(others(clips, slim_model), 1):
        once(interrupted, *arguments)
        assert len(CALLS) == n
    once(interrupted, 0, clips.X[:1], Job(copy.deepcopy(slim_model), Search(1)))
    assert len(CALLS) == n


@pytest.mark.parametrize("what", ["_code", "describe"])
def test_results_of_other_code_or_of_another_machine_are_made_anew(what, kept, monkeypatch):
    once(interrupted, 0, np.arange(3))
    monkeypatch.setattr(shards, what, lambda: "other")
    once(interrupted, 0, np.arange(3))
    assert CALLS == [0, 0]


def test_a_file_that_appears_meanwhile_does_not_shift_the_others(kept, monkeypatch):
    X, files = np.arange(3 * SHARD), []
    keep = shards._keep

    def keep_all(file, made):
        """Write the second shard's file too, as another process would."""
        if not files:
            files.append(shards._file(interrupted, 1, X[SHARD : 2 * SHARD]))
            keep(files[0], X[SHARD : 2 * SHARD] + 1)
        return keep(file, made)

    CALLS.append(2)  # so that nothing is interrupted
    monkeypatch.setattr(shards, "_keep", keep_all)
    made = in_shards("work", interrupted, (X,))
    np.testing.assert_array_equal(made, X + np.repeat(np.arange(3), SHARD))


def test_a_damaged_result_is_named(kept):
    once(interrupted, 0, np.arange(3))
    (file,) = kept.iterdir()
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{file.name} is no whole array .*: delete it\.$"):
        once(interrupted, 0, np.arange(3))


def test_results_of_networks_from_outside_are_not_kept(kept, clips, slim_model):
    outside = Job(OwnNetwork(slim_model, 10), Search(1))
    for n in (1, 2):
        once(interrupted, 0, clips.X[:1], outside)
        assert len(CALLS) == n


def test_another_process_finds_what_was_kept():
    program = (
        "from src.shards import _content; from src.models.cnn import GenreClassifierCNN as C; "
        "from src.runtime import set_seed; import joblib; set_seed(0); "
        "print(joblib.hash(_content(C(n_genres=2))))"
    )
    run = [sys.executable, "-c", program]
    first, second = (subprocess.run(run, capture_output=True, text=True, cwd=ROOT) for _ in "ab")
    assert len(first.stdout.strip()) == 32
    assert first.stdout == second.stdout
