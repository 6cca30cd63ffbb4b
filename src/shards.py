"""Work on segments in fixed shards, through joblib: here, or on a cluster (`src.workers`).

Results can be kept on disk until a notebook is finished, so that an interrupted one continues.
"""

import shutil
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import joblib
import numpy as np
import torch
from joblib import Parallel, delayed

from src.models.own import OwnNetwork
from src.paths import from_root
from src.progress import progress
from src.results import PACKAGES, save_with
from src.runtime import describe

SHARD = 64  # segments; results depend on it where something is random
LONG = 5  # shards that deserve a progress bar
_folders: list[Path] = []  # where results are kept: one or none


def keep_results(folder: Path) -> None:
    """Keep results of `in_shards` and `once` in a folder, and read those that lie there.

    Results of other code, versions, machines or precisions are not read. On a cluster the machine
    is that of this process.
    """
    _code()  # before the files change
    _folders[:] = [folder]


def forget_results() -> None:
    """Delete the results kept, and keep no more."""
    while _folders:
        shutil.rmtree(_folders.pop(), ignore_errors=True)


def in_shards(
    name: str, work: Callable[..., np.ndarray], arrays: tuple[np.ndarray, ...], *options: object
) -> np.ndarray:
    """Return `work(number, *rows of the arrays, *options)` of all shards of 64 rows, joined.

    The shards are the same wherever and by however many workers they are computed, and what is
    random in them is seeded by their number. Without a cluster they are computed one after the
    other in this process, each with all of torch's threads. `work` and `options` must be such
    that can be sent to another process; `name` is shown with the progress of long work.
    """
    starts = range(0, len(arrays[0]), SHARD)
    rows = [[np.asarray(array[start : start + SHARD]) for array in arrays] for start in starts]
    calls = [(number, *parts, *options) for number, parts in enumerate(rows)]
    files = [_file(work, *call) for call in calls]
    kept = [file is not None and file.exists() for file in files]
    missing = [call for call, there in zip(calls, kept, strict=True) if not there]
    made = Parallel(return_as="generator")(delayed(work)(*call) for call in missing)
    n, short, parts = len(arrays[0]), len(calls) < LONG, []
    with progress(None, name, n, "segment", leave=False, disable=short) as bar:
        for file, there in zip(files, kept, strict=True):
            parts.append(_read(file) if there else _keep(file, next(made)))
            bar.update(len(parts[-1]))
    return np.concatenate(parts)


def once(work: Callable[..., np.ndarray], *arguments: object) -> np.ndarray:
    """Return `work(*arguments)`, kept as a shard is."""
    file = _file(work, *arguments)
    return _read(file) if file is not None and file.exists() else _keep(file, work(*arguments))


def _file(work: Callable, *arguments: object) -> Path | None:
    """Return the file that keeps a result; None if none does.

    Its name is a digest of all that the result depends on: arguments, weights, code, versions,
    machine and precision. A network from outside is not kept: its weights do not determine what it
    computes.
    """
    if not _folders or not all(_is_known(argument) for argument in arguments):
        return None
    parts = _code(), describe(), work
    return _folders[0] / f"{joblib.hash((*parts, *map(_content, arguments)))}.npy"


@cache
def _code() -> str:
    """Return a digest of the repository's code and of the versions of the libraries."""
    sources = [file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py"))]
    return joblib.hash([sources, [version(name) for name in PACKAGES]])


def _read(file: Path) -> np.ndarray:
    """Return a kept result; ValueError with its path if it is damaged."""
    try:
        return np.load(file)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"{from_root(file)} is no whole array ({error}), probably after a power cut: delete it."
        ) from error


def _keep(file: Path | None, made: np.ndarray) -> np.ndarray:
    if file is not None:
        save_with(file, partial(np.save, arr=made))
    return made


def _is_known(value: object) -> bool:
    """Return whether a value contains no network from outside this repository."""
    if isinstance(value, tuple):
        return all(map(_is_known, value))
    return not any(isinstance(module, OwnNetwork) for module in _modules(value))


def _content(value: object) -> object:
    """Return a value with weights as arrays: the digest of a network differs between processes."""
    if isinstance(value, tuple):
        return tuple(map(_content, value))
    if not (modules := _modules(value)):
        return value
    weights = {name: weight.cpu().numpy() for name, weight in modules[0].state_dict().items()}
    return [type(module).__name__ for module in modules], weights


def _modules(value: object) -> list[torch.nn.Module]:
    """Return the parts of a network or of ART's classifier of one; of other values none."""
    network = getattr(value, "model", value)
    return list(network.modules()) if isinstance(network, torch.nn.Module) else []
