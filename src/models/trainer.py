"""Training: one loop for all recipes, resumed after interruptions.

It runs in one process or, by `accelerate launch`, in several that share each batch.
"""

import copy
import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, broadcast
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset
from torchvision.transforms import v2

from src.data.segments import SegmentDataset, make_loader
from src.models import adversarial_training, augment
from src.models.checkpoints import (
    CHECKPOINT_FILE,
    FACTS,
    damage,
    first_infinite,
    read_tensors,
    save_checkpoint,
)
from src.models.cnn import GenreClassifierCNN
from src.models.recipes import DOCUMENTED, Training
from src.progress import progress
from src.results import save_with
from src.runtime import device, fast_dtype, fast_precision, memory_format, set_seed

PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.5, 5
WARM_UP = 0.2
TRAINING_VERSION = 4  # raise it with every change of code that changes trained weights
STATE_FILE, BEST_FILE = "state.pt", "best.pt"
SHOWN = ("val_accuracy", "robust_accuracy", "val_loss", "train_loss")  # while training


class Crew(NamedTuple):
    """The processes that train together (often one) and the network as they share it."""

    accelerator: Accelerator
    model: nn.Module


def fit(
    train: Dataset,
    val: SegmentDataset,
    folder: Path,
    training: Training,
    start: GenreClassifierCNN | None = None,
) -> list[dict]:
    """Train a model and keep its best epoch as `checkpoint.pt`; a finished training is read.

    It is finished if `checkpoint.pt` has the same recipe, seed, data and start, wherever and by
    whichever version it was trained: delete the folder to train anew. The best epoch has the lowest
    validation loss; in adversarial training and with random labels it is the last one. After each
    epoch the state goes to `folder`; a later call with the same data, training, start and
    `TRAINING_VERSION` resumes from there and ends with the same weights as an uninterrupted one.
    The best epoch so far is `best.pt`; it becomes `checkpoint.pt` when training has ended. Several
    processes share each batch; batch norms see the part of their own process.

    Parameters
    ----------
    train, val : segments (1, 128, 130) with genre numbers.
    folder : where state and checkpoint are written.
    training : recipe, seed, genres and fingerprint of the data.
    start : model whose weights training starts from; by default random ones.

    Returns
    -------
    The history, one dict per epoch.

    Raises
    ------
    FloatingPointError if the loss is no longer finite, ValueError if the state of an interrupted
    training is damaged.
    """
    if (history := _finished(folder / CHECKPOINT_FILE, training, start)) is not None:
        return history
    set_seed(training.seed)
    recipe, n_genres = training.recipe, len(training.genres)
    parts = _assemble(start or GenreClassifierCNN(n_genres), len(train), recipe)
    crew = _gather_crew(parts["model"])
    key = state_key(training, start)
    history = _load_state(folder, key, parts)
    done, total, name = len(history), recipe["epochs"], training.checkpoint
    options = {"initial": done, "mininterval": 0, "disable": not crew.accelerator.is_main_process}
    for epoch in (bar := progress(range(done, total), name, total, "epoch", **options)):
        if epochs_since_best(history, recipe) >= recipe["patience"]:
            break
        set_seed(training.seed, epoch)
        history.append(_run_epoch(parts, crew, train, val, recipe, n_genres))
        if recipe["schedule"] == "plateau":
            watched = "train_loss" if recipe["random_labels"] else "val_loss"
            parts["scheduler"].step(history[-1][watched])
        if crew.accelerator.is_main_process:
            facts = training.facts() | {"epoch": epoch + 1, "key": key, "start": _hash_of(start)}
            _save_epoch(folder, parts, history, facts)
        shown = {name: f"{history[-1][name]:.3g}" for name in SHOWN if name in history[-1]}
        bar.set_postfix(shown, refresh=False)
    if crew.accelerator.is_main_process:
        kept = read_tensors(folder / BEST_FILE, FACTS) | {"history": history}
        save_with(folder / CHECKPOINT_FILE, lambda part: torch.save(kept, part))
    crew.accelerator.wait_for_everyone()
    return history


def epochs_since_best(history: list[dict], recipe: dict) -> int:
    """Return how many epochs ago the best one was; 0 without history.

    The best has the lowest validation loss. In adversarial training it is the last: robust
    accuracy is measured on too few segments to choose by, and the schedule ends at a rate of zero.
    With random labels it is the last too: true validation labels do not show what was learnt.
    """
    if not history or recipe["adversarial_eps"] or recipe["random_labels"]:
        return 0
    losses = [epoch["val_loss"] for epoch in history]
    return len(losses) - 1 - int(np.argmin(losses))


def kept_model(parts: dict) -> GenreClassifierCNN:
    """Return the model that is validated and kept: the averaged one if there is one."""
    return parts["average"].module if "average" in parts else parts["model"]


def state_key(training: Training, start: GenreClassifierCNN | None = None) -> str:
    """Return a hash of what decides the weights: data, seed, recipe, start, versions, precision."""
    changed = {k: v for k, v in training.recipe.items() if v != DOCUMENTED[k]}
    decides = [training.fingerprint, training.seed, changed, _hash_of(start)]
    content = [*decides, TRAINING_VERSION, torch.__version__, str(fast_dtype())]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _finished(file: Path, training: Training, start: nn.Module | None) -> list[dict] | None:
    """Return the history of a finished training of this recipe, seed, data and start, or None.

    It is empty in checkpoints of earlier versions.
    """
    try:
        content = read_tensors(file, FACTS)
    except ValueError:  # none yet, or damaged: made again, from the state if there is one
        return None
    wanted = {name: getattr(training, name) for name in ("recipe", "seed", "fingerprint")}
    wanted["start"] = _hash_of(start)
    if "recipe" in content:  # without the parameters that came later
        content["recipe"] = DOCUMENTED | content["recipe"]
    same = all(content.get(name, "") == value for name, value in wanted.items())
    return content.get("history", []) if same else None


def _hash_of(start: nn.Module | None) -> str:
    """Return the SHA-256 of the weights of a network to start from; empty for random weights."""
    digest = hashlib.sha256()
    for tensor in start.state_dict().values() if start else ():
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest() if start else ""


def _assemble(model: GenreClassifierCNN, n_train: int, recipe: dict) -> dict:
    """Return network, optimizer, scheduler and, if the recipe averages, the averaged network."""
    model = copy.deepcopy(model).requires_grad_(True)
    model = model.to(device(), memory_format=memory_format())
    optimizer = torch.optim.Adam(
        model.parameters(), lr=recipe["lr"], weight_decay=recipe["weight_decay"]
    )
    full, rest = divmod(n_train, recipe["batch_size"])
    steps = max(1, full + (2 * rest >= recipe["batch_size"]))  # per epoch, as `make_loader` drops
    if recipe["schedule"] == "one_cycle":
        total = recipe["epochs"] * steps
        scheduler = OneCycleLR(optimizer, recipe["lr"], total_steps=total, pct_start=WARM_UP)
    else:
        scheduler = ReduceLROnPlateau(optimizer, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if recipe["averaging"]:
        decay = max(0, 1 - 1 / (recipe["averaging"] * steps))
        average = get_ema_multi_avg_fn(decay)
        parts["average"] = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    return parts


def _gather_crew(model: nn.Module) -> Crew:
    """Return the processes that this one was launched with and the network as they share it."""
    shared_batches = DataLoaderConfiguration(split_batches=True)
    accelerator = Accelerator(mixed_precision="no", dataloader_config=shared_batches)
    return Crew(accelerator, accelerator.prepare_model(model))


def _run_epoch(
    parts: dict, crew: Crew, train: Dataset, val: SegmentDataset, recipe: dict, n_genres: int
) -> dict:
    """Train for one epoch, then validate; return losses, accuracies, rate and time."""
    begin = time.perf_counter()
    rate = parts["optimizer"].param_groups[0]["lr"]
    trained = _learn(parts, crew, train, recipe, n_genres)
    seconds = time.perf_counter() - begin
    model = kept_model(parts)
    for buffer in model.buffers():
        broadcast(buffer)  # batch norms: those of the first process, which are saved
    validated = _validate(model, crew, val, recipe["batch_size"])
    _check_number(validated["loss"])  # the last step may have spoilt the weights
    measured = adversarial_training.measure(model, train, val, recipe["adversarial_eps"])
    for name, value in measured.items():
        value = torch.tensor(value, device=crew.accelerator.device)  # NCCL takes no others
        measured[name] = crew.accelerator.reduce(value, "mean").item()
    return {
        "train_loss": trained["loss"],
        "train_accuracy": trained["accuracy"],
        "val_loss": validated["loss"],
        "val_accuracy": validated["accuracy"],
        **measured,
        "lr": rate,
        "seconds": seconds,
    }


def _learn(parts: dict, crew: Crew, train: Dataset, recipe: dict, n_genres: int) -> dict:
    """Make one pass of steps over the training data; return mean loss and accuracy."""
    model, optimizer = parts["model"], parts["optimizer"]
    mixup = v2.MixUp(alpha=recipe["mixup"], num_classes=n_genres) if recipe["mixup"] else None
    loader = make_loader(train, recipe["batch_size"], shuffle=True)
    batches = crew.accelerator.prepare_data_loader(loader)
    sums = torch.zeros(3, dtype=torch.float64)
    options = {"leave": False, "disable": not crew.accelerator.is_main_process}
    for X, y in progress(batches, "current epoch", unit="batch", **options):
        X, y = X.to(device(), memory_format=memory_format()), y.to(device())
        X = augment.filtered(X, recipe["filter_db"])
        X = augment.warped(X, recipe["warp"])
        X = augment.mask(X, recipe["mask_bands"], recipe["mask_frames"])
        X, targets = augment.cut_mix(X, y, n_genres, recipe["cutmix"])
        if recipe["adversarial_eps"]:
            steps = recipe["adversarial_steps"]
            X = adversarial_training.perturb(model, X, targets, recipe["adversarial_eps"], steps)
        X, targets = mixup(X, targets) if mixup else (X, targets)
        size = recipe["adversarial_weights"]
        with adversarial_training.perturbed_weights(model, X, targets, size):
            crew.model.train()
            with fast_precision():
                logits = crew.model(X).float()
            loss = nn.functional.cross_entropy(
                logits, targets, label_smoothing=recipe["label_smoothing"]
            )
            _check_number(loss.item())
            optimizer.zero_grad()
            loss.backward()
        _step(parts, recipe)
        sums += _sums(loss * len(y), logits, y)
    return _means(sums, crew)


def _sums(loss: torch.Tensor, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return summed loss, correct predictions and number of a batch."""
    correct = (logits.argmax(dim=1) == y).sum()
    return torch.tensor([loss.item(), correct.item(), len(y)], dtype=torch.float64)


def _means(sums: torch.Tensor, crew: Crew) -> dict:
    """Return mean loss and accuracy over what all processes have summed."""
    total = crew.accelerator.reduce(sums.to(crew.accelerator.device), "sum")
    loss, correct, n = total.tolist()
    return {"loss": loss / n, "accuracy": correct / n}


def _step(parts: dict, recipe: dict) -> None:
    """Follow the gradient; bring schedule and average up to date."""
    parts["optimizer"].step()
    if recipe["schedule"] == "one_cycle":
        parts["scheduler"].step()
    if "average" in parts:
        parts["average"].update_parameters(parts["model"])


def _check_number(loss: float) -> None:
    """Raise FloatingPointError for a loss that is no number."""
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"The loss became {loss}: the learning rate may be too high or the data "
            "damaged; lower the rate and run again, what best.pt holds of earlier epochs is kept."
        )


@torch.no_grad()
def _validate(model: nn.Module, crew: Crew, val: SegmentDataset, batch_size: int) -> dict:
    """Return mean loss and accuracy over all segments, of which each process takes its share."""
    model.eval()
    share = slice(crew.accelerator.process_index, None, crew.accelerator.num_processes)
    sums = torch.zeros(3, dtype=torch.float64)
    for X, y in make_loader(SegmentDataset(val.X[share], val.y[share]), batch_size):
        X, y = X.to(device(), memory_format=memory_format()), y.to(device())
        with fast_precision():
            logits = model(X).float()
        sums += _sums(nn.functional.cross_entropy(logits, y, reduction="sum"), logits, y)
    return _means(sums, crew)


def _save_epoch(folder: Path, parts: dict, history: list, facts: dict) -> None:
    """Write the network, if the last epoch is the best, and all that the next depends on."""
    if epochs_since_best(history, facts["recipe"]) == 0:
        save_checkpoint(folder / BEST_FILE, kept_model(parts), **facts)
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"key": facts["key"], "history": history}
    save_with(folder / STATE_FILE, lambda part: torch.save(state, part))


def _load_state(folder: Path, key: str, parts: dict) -> list[dict]:
    """Restore the state of an interrupted training of the same key; return its history.

    Raises ValueError for a damaged state: hours of training are not begun anew unasked.
    """
    path = folder / STATE_FILE
    if not path.exists() or not (folder / BEST_FILE).exists():
        return []
    state = read_tensors(path, {"key": str, "history": list})
    kept = read_tensors(folder / BEST_FILE, FACTS | {"key": str})
    if not state["key"] == kept["key"] == key:
        return []
    if name := first_infinite(kept["weights"]):
        raise damage(folder / BEST_FILE, f"has weights that are no numbers in {name}")
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise damage(path, f"does not fit its training ({type(error).__name__})") from error
    for name in {"model", "average"} & set(parts):
        if tensor := first_infinite(parts[name].state_dict()):
            raise damage(path, f"has weights that are no numbers in {tensor}")
    return state["history"]
