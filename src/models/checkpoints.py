"""Checkpoints and states of training: written whole, and read whole or refused in one sentence.

Files are torch's own, archives whose parts carry checksums. Torch does not compare them when it
reads, so that a flipped bit would become another weight: they are compared here.
"""

import textwrap
import zipfile
from pathlib import Path

import torch
from torch import nn

from src.models.cnn import GenreClassifierCNN
from src.paths import from_root, pretrained_file, require
from src.results import save_with
from src.runtime import device, memory_format

CHECKPOINT_FILE = "checkpoint.pt"
FACTS = {"weights": dict, "genres": list, "fingerprint": str}


def save_checkpoint(path: Path, model: nn.Module, **facts: object) -> Path:
    """Write weights together with the facts they depend on, as plain tensors and values."""
    content = {"weights": model.state_dict(), **facts}
    return save_with(path, lambda part: torch.save(content, part))


def load_checkpoint(path: Path, fingerprint: str | None = None) -> tuple[GenreClassifierCNN, dict]:
    """Return the network in eval mode and the facts saved with it; no pickled code is executed.

    With `fingerprint`, raises ValueError if the checkpoint was trained on other data; also if it
    is damaged, of another architecture or has weights that are no numbers.
    """
    content = read_tensors(require(path, "train"), FACTS)
    if fingerprint is not None and content["fingerprint"] != fingerprint:
        raise ValueError(
            f"{from_root(path)} was trained on data {content['fingerprint'][:12]}, "
            f"here is {fingerprint[:12]}: the arrays were made again since; run `make train`."
        )
    model = GenreClassifierCNN(len(content["genres"])).to(device())
    fill_weights(model, content.pop("weights"), path)
    content.pop("history", None)  # of its training, which `training_<checkpoint>.json` has
    return model.to(memory_format=memory_format()).eval(), content


def read_tensors(path: Path, parts: dict[str, type]) -> dict:
    """Return what torch saved in a file, a dict with these parts; no pickled code is executed.

    Raises ValueError for a file that is damaged or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():
                raise ValueError(f"the checksum of {damaged} is another")
        content = torch.load(path, map_location=device(), weights_only=True)
    except Exception as error:  # damaged bytes raise nearly anything
        found = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise damage(path, f"cannot be read ({found})") from error
    if not isinstance(content, dict):
        raise damage(path, "lacks a table of parts")
    if lacking := [name for name, kind in parts.items() if not isinstance(content.get(name), kind)]:
        raise damage(path, f"lacks {', '.join(lacking)}")
    return content


def damage(path: Path, found: str) -> ValueError:
    """Return the error for a file of a network that is not used, and how to get another."""
    remedy = "delete it and run `make train` with the same RUN."
    if path.parent == pretrained_file("").parent:
        remedy = "restore pretrained/ by `git checkout -- pretrained`."
    return ValueError(
        f"{from_root(path)} {found}: it was damaged, edited or written by other code; {remedy}"
    )


def first_infinite(tensors: dict) -> str | None:
    """Return the name of the first tensor that holds a NaN or an infinity, or None."""
    return next((name for name, t in tensors.items() if not torch.isfinite(t).all()), None)


def fill_weights(model: nn.Module, weights: dict, path: Path) -> None:
    """Load weights into a network; ValueError if they are those of another, or no numbers."""
    try:
        model.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as error:  # of one line per tensor
        raise damage(path, f"does not fit ({textwrap.shorten(str(error), 300)})") from error
    if name := first_infinite(weights):
        raise damage(path, f"has weights that are no numbers in {name}")
