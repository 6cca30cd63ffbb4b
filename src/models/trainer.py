"""Training: one loop, resumed after an interruption, and checkpoints that know their data."""

import hashlib
import inspect
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from src.data.loader import SegmentDataset, make_loader
from src.models import cnn
from src.models.cnn import GenreClassifierCNN
from src.paths import require
from src.results import save_with
from src.runtime import device, fast_precision, keep_freed_memory, set_seed

PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.5, 5
STATE_FILE, CHECKPOINT_FILE = "state.pt", "checkpoint.pt"


def fit(
    train: SegmentDataset,
    val: SegmentDataset,
    folder: Path,
    *,
    genres: list[str],
    fingerprint: str,
    seed: int,
    recipe: dict,
) -> list[dict]:
    """Train the network and return its history, one dict an epoch; the best epoch is kept.

    `recipe` holds `epochs`, `batch_size`, `lr`, `weight_decay` and `patience` (epochs without a
    lower validation loss before stopping). Adam, cross-entropy, learning rate halved on a
    plateau of the validation loss; bfloat16 and `channels_last`. After each epoch the state goes
    to `folder`; a later call with the same data, seed, recipe and code goes on from there and
    ends with the same weights as an undisturbed one. The best checkpoint lies in `folder` as
    `checkpoint.pt`. Raises FloatingPointError if the loss stops being a number.
    """
    keep_freed_memory()
    set_seed(seed)
    model = GenreClassifierCNN(len(genres)).to(device(), memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=recipe["lr"], weight_decay=recipe["weight_decay"]
    )
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE
    )
    key = state_key(fingerprint, seed, recipe)
    history = _load_state(folder, key, model, optimizer, scheduler)
    progress = tqdm(range(len(history), recipe["epochs"]), desc="epochs", unit="epoch")
    for epoch in progress:
        if epochs_since_best(history) >= recipe["patience"]:
            break
        set_seed(seed, epoch)
        history.append(_run_epoch(model, optimizer, train, val, recipe["batch_size"]))
        scheduler.step(history[-1]["val_loss"])
        if epochs_since_best(history) == 0:
            save_checkpoint(
                folder / CHECKPOINT_FILE,
                model,
                genres=genres,
                fingerprint=fingerprint,
                seed=seed,
                recipe=recipe,
                epoch=epoch + 1,
                key=key,
            )
        _save_state(folder, key, model, optimizer, scheduler, history)
        progress.set_postfix({k: f"{v:.3g}" for k, v in history[-1].items()})
    return history


def epochs_since_best(history: list[dict]) -> int:
    """Return how many epochs ago the validation loss was lowest; 0 without history."""
    losses = [epoch["val_loss"] for epoch in history]
    return len(losses) - 1 - int(np.argmin(losses)) if losses else 0


def state_key(fingerprint: str, seed: int, recipe: dict) -> str:
    """Return a hash of all that decides the weights: data, seed, recipe and training code."""
    code = [inspect.getsource(module) for module in (cnn, sys.modules[__name__])]
    content = json.dumps([fingerprint, seed, recipe, code, torch.__version__], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def save_checkpoint(path: Path, model: nn.Module, **facts: object) -> Path:
    """Write weights together with the facts they depend on, as plain tensors and values."""
    content = {"weights": model.state_dict(), **facts}
    return save_with(path, lambda part: torch.save(content, part))


def load_checkpoint(path: Path, fingerprint: str | None = None) -> tuple[GenreClassifierCNN, dict]:
    """Return the network in eval mode and the facts saved with it; no pickled code is executed.

    With `fingerprint`, raises ValueError if the checkpoint was trained on other data.
    """
    content = torch.load(require(path, "train"), map_location=device(), weights_only=True)
    if fingerprint is not None and content["fingerprint"] != fingerprint:
        raise ValueError(
            f"{path.parent.name}/{path.name} was trained on data {content['fingerprint'][:12]}, "
            f"here is {fingerprint[:12]}: the arrays were made again since; run `make train`."
        )
    model = GenreClassifierCNN(len(content["genres"])).to(device())
    model.load_state_dict(content.pop("weights"))
    return model.to(memory_format=torch.channels_last).eval(), content


def _run_epoch(
    model, optimizer, train: SegmentDataset, val: SegmentDataset, batch_size: int
) -> dict:
    """Train for one epoch, then validate; return losses, accuracies, rate and time."""
    start = time.perf_counter()
    trained = _pass(model, make_loader(train, batch_size, shuffle=True), optimizer)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        validated = _pass(model, make_loader(val, batch_size))
    return {
        "train_loss": trained["loss"],
        "train_accuracy": trained["accuracy"],
        "val_loss": validated["loss"],
        "val_accuracy": validated["accuracy"],
        "lr": optimizer.param_groups[0]["lr"],
        "seconds": seconds,
    }


def _pass(model: nn.Module, batches, optimizer: torch.optim.Optimizer | None = None) -> dict:
    """Run over all batches, learning if there is an optimizer; return mean loss and accuracy."""
    model.train(optimizer is not None)
    loss_sum, right, n = 0.0, 0, 0
    for X, y in tqdm(batches, desc="train" if optimizer else "val", leave=False, unit="batch"):
        X, y = X.to(device(), memory_format=torch.channels_last), y.to(device())
        with fast_precision():
            logits = model(X)
        loss = nn.functional.cross_entropy(logits.float(), y)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss became {loss.item()}: the learning rate may be too high or the data "
                "damaged; the best checkpoint so far is kept, lower LEARNING_RATE and run again."
            )
        if optimizer:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss_sum += loss.item() * len(y)
        right += (logits.argmax(dim=1) == y).sum().item()
        n += len(y)
    return {"loss": loss_sum / n, "accuracy": right / n}


def _save_state(folder: Path, key: str, model, optimizer, scheduler, history: list) -> None:
    """Write all that the next epoch depends on."""
    state = {
        "key": key,
        "history": history,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    save_with(folder / STATE_FILE, lambda part: torch.save(state, part))


def _load_state(folder: Path, key: str, model, optimizer, scheduler) -> list[dict]:
    """Restore the state of an interrupted training of the same key; return its history."""
    path = folder / STATE_FILE
    if not path.exists() or not (folder / CHECKPOINT_FILE).exists():
        return []
    state = torch.load(path, map_location=device(), weights_only=True)
    kept = torch.load(folder / CHECKPOINT_FILE, map_location=device(), weights_only=True)
    if not state["key"] == kept["key"] == key:
        return []
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    return state["history"]
