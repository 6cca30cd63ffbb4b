"""Damaged and foreign checkpoints and states of training: refused in one sentence."""

import os
import random
import re
import shutil

import pytest
import torch

from src.models import cnn, trainer
from src.models.checkpoints import CHECKPOINT_FILE, load_checkpoint, save_checkpoint
from src.models.trainer import BEST_FILE, STATE_FILE
from tests.test_trainer import train

SENTENCE = re.compile(r"[^\n]+: it was damaged, edited[^\n:]+; delete it and run `make [^\n:]+\.")
FACTS = {"genres": ["blues", "jazz"], "fingerprint": "data"}
N_MUTATED = [200, pytest.param(5000, marks=pytest.mark.long)]


@pytest.fixture(name="_slim", autouse=True)
def _slim_network(monkeypatch):
    monkeypatch.setattr(cnn, "WIDTHS", (4, 4, 4, 4))
    monkeypatch.setattr(cnn, "DENSE", (8, 8))


@pytest.fixture(name="path")
def _path(tmp_path):
    """Return the path of a whole checkpoint."""
    folder = tmp_path / "documented"
    return save_checkpoint(folder / CHECKPOINT_FILE, cnn.GenreClassifierCNN(2), **FACTS)


def edit(**changes):
    """Return a function that changes parts of what torch saved; None takes one away."""

    def spoil(path):
        content = torch.load(path, weights_only=True) | changes
        torch.save({key: part for key, part in content.items() if part is not None}, path)

    return spoil


def edit_tensor(group, name, change):
    """Return a function that changes one tensor of what torch saved; None takes it away."""

    def spoil(path):
        content = torch.load(path, weights_only=True)
        changed = change(content[group].pop(name))
        content[group] |= {} if changed is None else {name: changed}
        torch.save(content, path)

    return spoil


def add_a_layer(path):
    """Add weights that the network does not have."""
    edit(weights=cnn.GenreClassifierCNN(2).state_dict() | {"extra": torch.ones(3)})(path)


def first_number(value):
    """Return a function that sets the first number of a tensor."""
    return lambda tensor: torch.cat([torch.tensor([value]), tensor.flatten()[1:]]).view_as(tensor)


def cut(share):
    """Return a function that keeps the first part of a file."""
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def flip_a_weight(path):
    """Flip one bit of a tensor, as a failing disk does."""
    content = bytearray(path.read_bytes())
    saved = torch.load(path, weights_only=True)
    tensor = (saved.get("weights") or saved["model"])["dense1.weight"]
    content[content.index(tensor.numpy().tobytes()) + 40] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "empty": (cut(0), r"cannot be read \(File is not a zip file\)"),
    "cut": (cut(0.7), r"cannot be read \(File is not a zip file\)"),
    "text": (lambda path: path.write_text("weights"), "cannot be read"),
    "a flipped bit": (flip_a_weight, r"cannot be read \(the checksum of \S+ is another\)"),
}
SPOILT = DAMAGES | {
    "no dict": (lambda path: torch.save([1], path), "lacks a table of parts"),
    "weights alone": (lambda path: torch.save({"output.bias": torch.ones(2)}, path), "fingerprint"),
    "no weights": (edit(weights=None), "lacks weights"),
    "no genres": (edit(genres=None), "lacks genres"),
    "weights of another kind": (edit(weights=[1.0]), "lacks weights"),
    "genres of another kind": (edit(genres=3), "lacks genres"),
    "data of another kind": (edit(fingerprint=b"data"), "lacks fingerprint"),
    "more genres": (edit(genres=[*"abc"]), r"output\.weight: .*\[2, 8\]\) from .*\[3, 8\]"),
    "another width": (
        edit_tensor("weights", "conv1_1.weight", lambda t: torch.ones(8, 1, 3, 3)),
        r"conv1_1\.weight: .*\[8, 1, 3, 3\]\) from .*\[4, 1, 3, 3\]",
    ),
    "a layer less": (
        edit_tensor("weights", "dense1.bias", lambda t: None),
        r"does not fit \(.* Missing key\(s\) in state_dict: \"dense1\.bias\"",
    ),
    "a layer more": (add_a_layer, r"does not fit \(.* Unexpected key\(s\) .*: \"extra\""),
    "NaN": (
        edit_tensor("weights", "conv1_1.weight", first_number(float("nan"))),
        r"weights that are no numbers in conv1_1\.weight",
    ),
    "infinity": (
        edit_tensor("weights", "bn4_2.running_var", first_number(float("inf"))),
        r"weights that are no numbers in bn4_2\.running_var",
    ),
}


@pytest.mark.parametrize(("spoil", "found"), SPOILT.values(), ids=SPOILT)
def test_a_checkpoint_that_is_not_whole_or_of_another_network_is_refused(path, spoil, found):
    load_checkpoint(path, "data")
    spoil(path)
    with pytest.raises(ValueError, match=rf"documented/checkpoint\.pt .*{found}") as refusal:
        load_checkpoint(path, "data")
    assert SENTENCE.fullmatch(str(refusal.value))


def read(path):
    """Return the weights of a checkpoint and None, or None and why it was refused."""
    try:
        return load_checkpoint(path)[0].state_dict(), None
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("n", N_MUTATED)
def test_mutated_checkpoints_are_whole_or_refused(path, n):
    expected = load_checkpoint(path)[0].state_dict()
    content, moments, refused = path.read_bytes(), random.Random(os.environ.get("FUZZ_SEED", 0)), 0
    for _ in range(n):
        data = bytearray(content)
        for _ in range(2 ** moments.randrange(4)):
            data[moments.randrange(len(data))] ^= 1 << moments.randrange(8)
        path.write_bytes(
            data[: moments.choice([len(data), len(data), moments.randrange(len(data))])]
        )
        found, said = read(path)
        assert said is None or SENTENCE.fullmatch(said)
        assert found is None or all(found[name].equal(t) for name, t in expected.items())
        refused += said is not None
    assert n / 2 < refused < n


@pytest.fixture(name="unfinished", scope="module")
def _unfinished(tmp_path_factory):
    """Return the folder of a training that was interrupted after two epochs of four."""
    folder = tmp_path_factory.mktemp("unfinished") / "documented"
    real, calls = trainer._save_epoch, []

    def stop(*args):
        real(*args)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cnn, "WIDTHS", (4, 4, 4, 4))
        patch.setattr(cnn, "DENSE", (8, 8))
        patch.setattr(trainer, "_save_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(folder)
    return folder


STATES = DAMAGES | {
    "no history": (edit(history=None), "lacks history"),
    "no optimizer": (edit(optimizer=None), r"does not fit its training \(KeyError\)"),
    "another optimizer": (edit(optimizer={}), r"does not fit its training \(\w+\)"),
    "another network": (
        edit_tensor("model", "dense1.bias", lambda t: None),
        r"does not fit its training \(RuntimeError\)",
    ),
    "NaN": (
        edit_tensor("model", "dense1.bias", first_number(float("nan"))),
        r"weights that are no numbers in dense1\.bias",
    ),
}
BESTS = DAMAGES | {
    "no weights": (edit(weights=None), "lacks weights"),
    "no key": (edit(key=None), "lacks key"),
    "NaN": (
        edit_tensor("weights", "dense1.bias", first_number(float("nan"))),
        r"weights that are no numbers in dense1\.bias",
    ),
}
CASES = [(STATE_FILE, *case) for case in STATES.values()]
CASES += [(BEST_FILE, *case) for case in BESTS.values()]


@pytest.mark.parametrize(
    ("name", "spoil", "found"),
    CASES,
    ids=[f"state: {k}" for k in STATES] + [f"best: {k}" for k in BESTS],
)
def test_a_damaged_state_is_refused_until_it_is_deleted(unfinished, tmp_path, name, spoil, found):
    folder = tmp_path / "documented"
    shutil.copytree(unfinished, folder)
    spoil(folder / name)
    with pytest.raises(ValueError, match=rf"documented/{re.escape(name)} .*{found}") as refusal:
        train(folder)
    assert SENTENCE.fullmatch(str(refusal.value))
    assert not (folder / CHECKPOINT_FILE).exists()


def weights_in(folder):
    """Return the weights of the checkpoint in a folder."""
    return load_checkpoint(folder / CHECKPOINT_FILE)[0].state_dict()


def test_after_a_damaged_state_was_deleted_training_starts_anew(unfinished, tmp_path):
    undisturbed = train(tmp_path / "undisturbed")
    expected = weights_in(tmp_path / "undisturbed")
    for name in (STATE_FILE, BEST_FILE):
        folder = tmp_path / f"without_{name}"
        shutil.copytree(unfinished, folder)
        (folder / name).unlink()
        assert train(folder) == undisturbed
        assert all(expected[key].equal(tensor) for key, tensor in weights_in(folder).items())


def test_a_damaged_checkpoint_of_a_finished_training_is_made_again(tmp_path):
    history = train(tmp_path)
    before = weights_in(tmp_path)
    cut(0.5)(tmp_path / CHECKPOINT_FILE)
    assert train(tmp_path) == history
    after = weights_in(tmp_path)
    assert all(after[name].equal(tensor) for name, tensor in before.items())
