"""Seeds, devices, precision and memory: how the machine is used, the same in every stage."""

import ctypes
import mmap
import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch

FAST_DTYPE, EXACT_DTYPE = torch.bfloat16, torch.float32
MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_MAX = -1, -4


def set_seed(*parts: int) -> int:
    """Seed Python, numpy and torch from one or several integers; return the seed made of them."""
    seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the libraries below us draw from the global state
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return seed


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_precision() -> AbstractContextManager:
    """Return a bfloat16 autocast context: for gradients and training, not for judging."""
    return torch.autocast(device().type, FAST_DTYPE)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: what several compute is rounded as the work is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def forget_read(X: np.ndarray) -> None:
    """Give up the pages of a read-only memory map, if X is one: they stay in the system's cache.

    What was read of a map counts as memory of this process for as long as the map lives.
    """
    mapped = isinstance(X, np.memmap) and X.mode == "r" and hasattr(mmap, "MADV_DONTNEED")
    if mapped and X._mmap is not None:
        X._mmap.madvise(mmap.MADV_DONTNEED)


def chunks(X: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield `size` rows of an array after the other; of a memory map, no more is held at a time."""
    for start in range(0, len(X), size):
        yield np.asarray(X[start : start + size])
        forget_read(X)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back to the system.

    Activations and spectrograms are large blocks, which glibc maps and unmaps each time; the page
    faults cost about half of a training step or of a track's log-mels on a CPU. Elsewhere than on
    Linux this does nothing.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MALLOC_MMAP_MAX, 0)
        libc.mallopt(MALLOC_TRIM_THRESHOLD, 2**31 - 1)
