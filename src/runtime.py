"""How the machine is used: seeds, device, precision, memory format, threads and memory."""

import ctypes
import mmap
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import numpy as np
import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NATIVE_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16")  # of torch.cpu.get_capabilities()
WORTHWHILE_SPEEDUP = 1.25
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


@cache
def fast_dtype() -> torch.dtype:
    """Return the number format of training, its validation and of gradients.

    Evaluation on test segments is always in float32.

    bfloat16 where the hardware computes it faster than float32, else float32. The environment
    variable PRECISION (float32 or bfloat16) overrides the choice; another value is a ValueError.
    """
    name = os.environ.get("PRECISION", "")
    if name and name not in PRECISIONS:
        raise ValueError(f"PRECISION={name} is unknown: give one of {', '.join(PRECISIONS)}.")
    if name:
        return PRECISIONS[name]
    if device().type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = has_native_bfloat16() and bfloat16_speedup() > WORTHWHILE_SPEEDUP
    return torch.bfloat16 if native else torch.float32


def has_native_bfloat16() -> bool:
    """Return whether this CPU has bfloat16 instructions that oneDNN may use.

    `ONEDNN_MAX_CPU_ISA` limits what oneDNN may use. Elsewhere it emulates bfloat16, about thirteen
    times slower than float32.
    """
    capabilities = torch.cpu.get_capabilities()
    has_instructions = any(capabilities.get(name) for name in NATIVE_BFLOAT16)
    is_available = torch.backends.mkldnn.is_available()
    return has_instructions and is_available and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def bfloat16_speedup(repeats: int = 5) -> float:
    """Return how many times faster a convolution runs in bfloat16 than in float32.

    Above 1.5 on AMD CPUs with bfloat16 instructions and wherever there is AMX; below 1 on Intel
    CPUs that have AVX-512 BF16 without AMX.
    """
    seconds = {torch.float32: [], torch.bfloat16: []}
    with torch.random.fork_rng(devices=[]):  # training may call this after seeding
        layer, x = torch.nn.Conv2d(32, 64, 3, padding=1), torch.rand(8, 32, 64, 64)
    with torch.inference_mode():
        for _ in range(1 + repeats):
            for dtype, times in seconds.items():
                kernel = layer.to(dtype, memory_format=torch.channels_last)
                image = x.to(dtype, memory_format=torch.channels_last)
                begin = time.perf_counter()
                kernel(image)
                times.append(time.perf_counter() - begin)
    float32, bfloat16 = (min(times[1:]) for times in seconds.values())  # the least disturbed
    return float(float32 / bfloat16)


@cache
def memory_format() -> torch.memory_format:
    """Return the faster layout of batches: `channels_last` with AVX2, bfloat16 or a GPU."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    fast = wide or fast_dtype() == torch.bfloat16 or device().type == "cuda"
    return torch.channels_last if fast else torch.contiguous_format


def fast_precision() -> AbstractContextManager:
    """Return the context of training and of gradients: autocast where `fast_dtype` is bfloat16."""
    if fast_dtype() == torch.float32:
        return nullcontext()
    return torch.autocast(device().type, fast_dtype())


def describe() -> dict:
    """Return how this process computes, as results record it."""
    return {
        "gradients": str(fast_dtype()).removeprefix("torch."),
        "evaluation": "float32",
        "memory_format": str(memory_format()).removeprefix("torch."),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "native_bfloat16": has_native_bfloat16(),
        "device": device().type,
        "threads": torch.get_num_threads(),
    }


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


def prepare_process() -> None:
    """Set what holds for a whole process: once, at the start of each program.

    On a GPU convolutions in float32 are not rounded to TF32, as they are by default.

    glibc keeps freed memory. Activations and spectrograms are large blocks, which glibc maps and
    unmaps each time; the page faults cost up to half of a training step or of a track's log-mels on
    a CPU. `GLIBC_TUNABLES`, which must be set before a process starts, keeps small objects from
    splitting these blocks (see the Makefile). Only on Linux with glibc.
    """
    torch.backends.cudnn.allow_tf32 = False
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(MALLOC_MMAP_MAX, 0)
        ctypes.CDLL(None).mallopt(MALLOC_TRIM_THRESHOLD, 2**31 - 1)
