import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from src.data.segments import SegmentDataset
from src.models import cnn, trainer
from src.models.checkpoints import CHECKPOINT_FILE, load_checkpoint, save_checkpoint
from src.models.evaluation import predict_logits
from src.models.recipes import DOCUMENTED, Training
from src.models.trainer import BEST_FILE, STATE_FILE, epochs_since_best, fit
from src.runtime import one_thread

GENRES = ["blues", "jazz"]
RECIPE = DOCUMENTED | {"epochs": 4, "batch_size": 8, "lr": 0.003}

EVERYTHING = {
    "schedule": "one_cycle",
    "averaging": 2.0,
    "mixup": 0.2,
    "mask_bands": 8,
    "mask_frames": 4,
    "label_smoothing": 0.05,
    "adversarial_eps": 0.01,
    "adversarial_steps": 2,
    "cutmix": 0.5,
    "adversarial_weights": 0.01,
}


@pytest.fixture(autouse=True)
def _slim_network(monkeypatch):
    monkeypatch.setattr(cnn, "WIDTHS", (8, 16, 16, 16))
    monkeypatch.setattr(cnn, "DENSE", (64, 64))


def planted(seed, n=40):
    """Return noise of 32 frames with a steady tone for the first genre, a stroke for the second."""
    rng = np.random.default_rng(seed)
    X, y = rng.random((n, 128, 32), dtype=np.float32) * 0.5, np.arange(n) % 2
    X[y == 0, 60:64] += 0.4
    X[y == 1, :, 12:16] += 0.4
    return SegmentDataset(X, y)


def train(folder, seed=0, fingerprint="data", start=None, **changed):
    """Train on planted patterns; return the history without times."""
    history = fit(
        planted(1),
        planted(2, 16),
        folder,
        Training("documented", RECIPE | changed, "", seed, GENRES, fingerprint),
        start,
    )
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in history]


def weights(folder):
    return load_checkpoint(folder / CHECKPOINT_FILE)[0].state_dict()


def equal(one, other):
    return all(one[name].equal(other[name]) for name in one)


@pytest.fixture
def epochs_run(monkeypatch):
    """Return a list that grows by one entry with each epoch that is run."""
    run, real = [], trainer._run_epoch

    def counting(*args):
        run.append(len(run))
        return real(*args)

    monkeypatch.setattr(trainer, "_run_epoch", counting)
    return run


@pytest.fixture
def scripted(monkeypatch):
    """Return a function after which each epoch has the next of the given validation losses.

    The epoch's number, from 1, is written into the weights; the training loss falls.
    """

    def script(*losses):
        remaining = iter(enumerate(losses, start=1))

        def epoch(parts, *_):
            number, loss = next(remaining)
            torch.nn.init.constant_(parts["model"].output.bias, number)
            return {"train_loss": 1 / number, "val_loss": loss}

        monkeypatch.setattr(trainer, "_run_epoch", epoch)

    return script


def test_training_learns_planted_patterns(tmp_path):
    history = train(tmp_path, epochs=12)
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert min(epoch["val_loss"] for epoch in history) < 0.2
    assert max(epoch["val_accuracy"] for epoch in history) == 1


def test_every_epoch_is_shown_with_its_losses(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("STAGE", "train")
    history = train(tmp_path / "documented", epochs=2)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    for number, (line, epoch) in enumerate(zip(lines, history, strict=True), start=1):
        names = ("val_accuracy", "val_loss", "train_loss")
        values = ", ".join(f"{name}={epoch[name]:.3g}" for name in names)
        start = f"train: documented_0, epoch {number}/2, "
        assert re.fullmatch(rf"{start}00:\d\d elapsed, 00:\d\d left, {values}", line)


@pytest.mark.parametrize(
    ("epochs_done", "changed"), [(0, {}), (1, {}), (3, {}), (1, EVERYTHING), (3, EVERYTHING)]
)
def test_an_interrupted_training_ends_bit_equal_to_an_undisturbed_one(
    epochs_done, changed, tmp_path, monkeypatch
):
    undisturbed = train(tmp_path / "undisturbed", **changed)
    real, calls = trainer._run_epoch, []

    def interrupted(*args):
        calls.append(real(*args))
        if len(calls) > epochs_done:
            raise KeyboardInterrupt
        return calls[-1]

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_run_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", **changed)
    assert train(tmp_path / "cut", **changed) == undisturbed
    assert equal(weights(tmp_path / "cut"), weights(tmp_path / "undisturbed"))


def test_a_resumed_training_runs_only_the_missing_epochs(tmp_path, epochs_run, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.lr_scheduler.ReduceLROnPlateau, "step", fail)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    assert len(epochs_run) == 1
    assert len(train(tmp_path)) == RECIPE["epochs"]
    assert len(epochs_run) == 1 + RECIPE["epochs"]  # the one cut off before it was written counts


@pytest.mark.parametrize("moved", [False, True], ids=["here", "from another version"])
def test_a_finished_training_is_not_repeated(moved, tmp_path, epochs_run, monkeypatch):
    first = train(tmp_path)
    before = weights(tmp_path)
    del epochs_run[:]
    if moved:
        monkeypatch.setattr(trainer, "TRAINING_VERSION", 0)
        (tmp_path / STATE_FILE).unlink()
        (tmp_path / BEST_FILE).unlink()
        content = torch.load(tmp_path / CHECKPOINT_FILE)
        del content["recipe"]["cutmix"]  # a parameter that came later
        torch.save(content, tmp_path / CHECKPOINT_FILE)
    assert train(tmp_path) == first
    assert equal(weights(tmp_path), before)
    assert epochs_run == []


def test_training_from_another_network_starts_anew_from_its_weights(tmp_path, epochs_run):
    train(tmp_path / "first")
    start, _ = load_checkpoint(tmp_path / "first" / CHECKPOINT_FILE)
    train(tmp_path / "third", start=start, epochs=1, lr=1e-6, weight_decay=0)
    before, after = weights(tmp_path / "first"), weights(tmp_path / "third")
    names = [name for name in before if name.endswith("weight")]
    assert all(after[name].allclose(before[name], atol=1e-4) for name in names)
    train(tmp_path / "second")
    del epochs_run[:]
    train(tmp_path / "second", start=start)
    assert len(epochs_run) == RECIPE["epochs"]
    train(tmp_path / "second", start=start)
    assert len(epochs_run) == RECIPE["epochs"]


@pytest.mark.parametrize("lost", [[CHECKPOINT_FILE], [BEST_FILE], [CHECKPOINT_FILE, BEST_FILE]])
def test_a_lost_checkpoint_is_made_again(lost, tmp_path):
    train(tmp_path)
    before = weights(tmp_path)
    for name in lost:
        (tmp_path / name).unlink()
    train(tmp_path)
    assert equal(weights(tmp_path), before)


def test_an_unfinished_training_leaves_the_earlier_checkpoint_in_its_place(tmp_path, monkeypatch):
    train(tmp_path)
    before = weights(tmp_path)

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.lr_scheduler.ReduceLROnPlateau, "step", fail)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, lr=0.006)
    assert equal(weights(tmp_path), before)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"fingerprint": "other"}, {"lr": 0.006}])
def test_training_of_other_seed_data_or_recipe_starts_anew(changed, tmp_path, epochs_run):
    first = train(tmp_path)
    before = weights(tmp_path)
    del epochs_run[:]
    second = train(tmp_path, **changed)
    assert len(epochs_run) == RECIPE["epochs"]
    same = "fingerprint" in changed  # the name of the data does not change the data
    assert (second == first) is same
    assert equal(weights(tmp_path), before) is same


def test_training_stops_after_patience_and_keeps_the_best_epoch(tmp_path, scripted):
    scripted(3, 1, 2, 1, 2, 0.5)
    assert len(train(tmp_path, epochs=6, patience=3)) == 5
    model, facts = load_checkpoint(tmp_path / CHECKPOINT_FILE)
    assert facts["epoch"] == 2
    assert (model.output.bias == 2).all()


@pytest.mark.parametrize(("random_labels", "divisor"), [(False, 2), (True, 1)])
def test_the_learning_rate_is_halved_on_a_plateau(tmp_path, scripted, random_labels, divisor):
    """Of the validation loss, but with random labels of the training loss, which falls here."""
    scripted(*[1.0] * 8)
    train(tmp_path, epochs=8, patience=20, random_labels=random_labels)
    (group,) = torch.load(tmp_path / STATE_FILE, weights_only=True)["optimizer"]["param_groups"]
    assert group["lr"] == RECIPE["lr"] / divisor


def test_one_cycle_warms_up_and_cools_down(tmp_path):
    rates = [epoch["lr"] for epoch in train(tmp_path, schedule="one_cycle")]
    assert rates[0] < rates[-1] < max(rates) <= RECIPE["lr"]


@pytest.mark.parametrize(
    ("changes", "ago"), [({}, 2), ({"adversarial_eps": 0.01}, 0), ({"random_labels": True}, 0)]
)
def test_the_lowest_loss_is_best_or_the_last_epoch_where_the_loss_does_not_count(changes, ago):
    history = [{"val_loss": 0.5}, {"val_loss": 1.0}, {"val_loss": 0.9}]
    assert epochs_since_best(history, DOCUMENTED | changes) == ago


def test_random_labels_keep_the_last_epoch(tmp_path, scripted):
    scripted(0.5, 1.0, 0.9)
    train(tmp_path, epochs=3, patience=1, random_labels=True)
    assert load_checkpoint(tmp_path / CHECKPOINT_FILE)[1]["epoch"] == 3


def test_the_averaged_network_is_the_one_that_is_kept(tmp_path):
    train(tmp_path, epochs=1, averaging=2.0)
    state, kept = torch.load(tmp_path / STATE_FILE, weights_only=True), weights(tmp_path)
    assert all(value.equal(state["average"][f"module.{name}"]) for name, value in kept.items())
    assert not equal(kept, state["model"])


@pytest.mark.parametrize("epochs", [0.2, 1, 3])
def test_weights_are_averaged_over_so_many_epochs(epochs, tmp_path, monkeypatch):
    decays, real = [], trainer.get_ema_multi_avg_fn
    monkeypatch.setattr(
        trainer, "get_ema_multi_avg_fn", lambda decay: decays.append(decay) or real(decay)
    )
    train(tmp_path, epochs=1, averaging=epochs)
    assert decays == [pytest.approx(1 - 1 / (5 * epochs))]  # five steps an epoch


def test_a_checkpoint_carries_its_recipe(tmp_path):
    train(tmp_path, epochs=1)
    model, facts = load_checkpoint(tmp_path / CHECKPOINT_FILE, "data")
    assert len(facts.pop("key")) == 64
    assert facts == {
        "name": "documented",
        "changes": RECIPE | {"epochs": 1},
        "suffix": "",
        "genres": GENRES,
        "fingerprint": "data",
        "seed": 0,
        "recipe": RECIPE | {"epochs": 1},
        "epoch": 1,
        "start": "",
    }
    assert not model.training


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    real = trainer._run_epoch

    def damaging(parts, crew, data, *args):
        epoch = real(parts, crew, data, *args)
        data.X[:] = np.nan
        return epoch

    monkeypatch.setattr(trainer, "_run_epoch", damaging)
    with pytest.raises(FloatingPointError, match="loss became nan"):
        train(tmp_path)
    kept, facts = load_checkpoint(tmp_path / BEST_FILE)
    assert facts["epoch"] == 1
    assert all(value.isfinite().all() for value in kept.state_dict().values())
    assert not (tmp_path / CHECKPOINT_FILE).exists()


def test_weights_that_the_last_step_of_an_epoch_spoilt_are_not_kept(tmp_path, monkeypatch):
    real, calls = trainer._learn, []

    def spoiling(parts, *args):
        calls.append(real(parts, *args))
        if len(calls) == 2:
            torch.nn.init.constant_(parts["model"].output.bias, np.nan)
        return calls[-1]

    monkeypatch.setattr(trainer, "_learn", spoiling)
    with pytest.raises(FloatingPointError, match="loss became nan"):
        train(tmp_path)
    kept, facts = load_checkpoint(tmp_path / BEST_FILE)
    assert facts["epoch"] == 1
    assert all(value.isfinite().all() for value in kept.state_dict().values())


def test_a_checkpoint_of_other_data_is_refused_in_one_sentence(tmp_path):
    model = cnn.GenreClassifierCNN(2)
    path = save_checkpoint(tmp_path / "c.pt", model, genres=GENRES, fingerprint="0" * 64)
    with pytest.raises(ValueError, match=r"data 0{12}, here is 1{12}: [^\n]+`make train`\.$"):
        load_checkpoint(path, "1" * 64)


def test_a_missing_checkpoint_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pt is missing.*run `make train`"):
        load_checkpoint(tmp_path / "gone.pt")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_or_state_is_not_executed(tmp_path):
    trap = tmp_path / "executed"
    for name in (CHECKPOINT_FILE, BEST_FILE, STATE_FILE):
        torch.save({"key": Malicious(trap)}, tmp_path / name)
    torch.load(tmp_path / CHECKPOINT_FILE, weights_only=False)
    assert trap.exists()  # the trap works
    trap.unlink()
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read \(Weights only load"):
        load_checkpoint(tmp_path / CHECKPOINT_FILE)
    (tmp_path / CHECKPOINT_FILE).unlink()
    with pytest.raises(ValueError, match=r"state\.pt cannot be read \(Weights only load"):
        train(tmp_path)
    assert not trap.exists()


SHARED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from tests import test_trainer as t

crews, gather = [], t.trainer._gather_crew
plain = t.trainer.make_loader

class Twice(BatchSampler):
    def __iter__(self):
        half = BatchSampler(self.sampler, self.batch_size // 2, self.drop_last)
        return (batch + batch for batch in half)

def twice(dataset, batch_size, shuffle=False):
    if not shuffle:
        return plain(dataset, batch_size)
    batches = Twice(SequentialSampler(dataset), 2 * batch_size, drop_last=False)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=lambda batch: batch)

t.trainer._gather_crew = lambda model: crews.append(gather(model)) or crews[-1]
t.cnn.WIDTHS, t.cnn.DENSE = (8, 16, 16, 16), (64, 64)
t.train(Path(sys.argv[2]) / "halves", epochs=14, batch_size=16)
assert Accelerator().num_processes == 2
for weight in crews[0].model.parameters():
    assert weight.equal(broadcast(weight.detach().clone()))
t.trainer.make_loader = twice
torch.nn.Dropout.forward = torch.nn.Dropout2d.forward = lambda layer, x: x
t.train(Path(sys.argv[2]) / "twice")
"""


@pytest.fixture(name="shared", scope="module")
def _shared(tmp_path_factory):
    """Return the folder in which two processes trained: on halves of batches, on the same twice."""
    folder = tmp_path_factory.mktemp("shared")
    script = folder / "shared.py"
    script.write_text(SHARED)
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1"
    words = [sys.executable, *launch.split(), "--main_process_port", "29517", str(script)]
    root = Path(trainer.__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*words, str(root), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_of_the_same_batch_train_as_one_does(shared, tmp_path, monkeypatch):
    for layer in (torch.nn.Dropout, torch.nn.Dropout2d):
        monkeypatch.setattr(layer, "forward", lambda layer, x: x)
    in_order = trainer.make_loader
    monkeypatch.setattr(trainer, "make_loader", lambda data, n, shuffle=False: in_order(data, n))
    with one_thread():  # in the order of the two processes: bfloat16 distinguishes orders
        alone = train(tmp_path)
    together = torch.load(shared / "twice" / STATE_FILE, weights_only=True)["history"]
    for one, two in zip(alone, together, strict=True):
        assert set(two) >= set(one)
        for measure, value in one.items():
            assert two[measure] == pytest.approx(value, abs=1e-4), measure
    kept = load_checkpoint(shared / "twice" / CHECKPOINT_FILE)[0].state_dict()
    assert all(kept[name].allclose(value, atol=1e-4) for name, value in weights(tmp_path).items())


def test_two_processes_share_a_batch_and_learn(shared):
    history = torch.load(shared / "halves" / STATE_FILE, weights_only=True)["history"]
    assert history[-1]["val_accuracy"] == 1
    kept = load_checkpoint(shared / "halves" / CHECKPOINT_FILE)[0]
    val = planted(2, 16)
    assert (predict_logits(kept, val.X).argmax(axis=1) == val.y).all()
