"""What the machine can do at most: rates of the operations that each stage cannot avoid."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from joblib import Parallel, delayed
from torch import nn

from src.data.frontend import HOP_LENGTH, N_FFT, SEGMENT_SAMPLES
from src.models.cnn import WIDTHS
from src.runtime import memory_format, prepare_process

BATCH = 64


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Return the median time of a piece of work, in seconds, after one call to warm up."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def convolution_rate(dtype: torch.dtype, weights: bool, backward: bool) -> float:
    """Return segments/s of the eight convolutions alone, with what gradients a stage needs.

    In `channels_last`, batches of 64; `weights`: gradients of weights too; `backward`: any.
    """
    prepare_process()
    total, channels, height, width = 0.0, 1, 128, 130
    for out in WIDTHS:
        for _ in range(2):
            total += _convolution(channels, out, (height, width), dtype, weights, backward)
            channels = out
        height, width = height // 2, width // 2
    return BATCH / total


def stft_rate() -> float:
    """Return tracks/s of the short-time Fourier transforms of ten segments alone."""
    samples = torch.rand(10, SEGMENT_SAMPLES)
    window = torch.hann_window(N_FFT)
    return 1 / seconds(
        lambda: torch.stft(samples, N_FFT, HOP_LENGTH, window=window, return_complex=True)
    )


def read_rate(paths: list[Path]) -> float:
    """Return tracks/s of reading audio files alone, in one thread or two, whichever is faster."""
    jobs = [delayed(soundfile.read)(path, dtype="float32") for path in paths]
    times = [seconds(lambda n=n: Parallel(n, prefer="threads")(jobs)) for n in (1, 2)]
    return len(paths) / min(times)


def _convolution(
    channels: int, out: int, size: tuple, dtype: torch.dtype, weights: bool, backward: bool
) -> float:
    """Return the seconds of one convolution of a batch, forward and backward."""
    layer = nn.Conv2d(channels, out, 3, padding=1).to(dtype=dtype, memory_format=memory_format())
    layer.requires_grad_(weights)
    x = torch.rand(BATCH, channels, *size).to(dtype=dtype, memory_format=memory_format())
    x.requires_grad_(backward and (channels > 1 or not weights))  # the first needs none to train
    gradient = torch.rand(BATCH, out, *size).to(dtype=dtype, memory_format=memory_format())

    def work():
        result = layer(x)
        if backward:
            result.backward(gradient)

    return seconds(work)
