"""`python -m benchmarks.bench`: each stage compared with a plain implementation, in one run.

Both take turns on the same work; the ratio is the median over turns. The plain implementation
(`plain.py`, float32) runs in a process of its own, without our settings of memory: it trains in
NCHW, attacks and explains the network in the layout in which it is loaded here. The limit is the
rate of the operations that no implementation can avoid. Needs a trained checkpoint.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from joblib import Parallel, delayed
from torch import nn

from benchmarks import plain
from src.attacks.adversarial import EPSILONS, ITERATIONS, FastGradients, Search
from src.attacks.records import make_target
from src.attacks.suite import sweep
from src.data import preprocessor
from src.data.corpus import corpus_of, load_tracks
from src.data.features import HOP_LENGTH, N_FFT, SEGMENT_SAMPLES
from src.data.segments import SegmentDataset, Segments, load_metadata, load_split
from src.explainability.gradcam import explain
from src.models import cnn
from src.models.checkpoints import CHECKPOINT_FILE, load_checkpoint
from src.models.recipes import Training
from src.models.runs import load_named
from src.models.trainer import fit
from src.paths import METRICS, RunPaths
from src.results import provenance, write_json
from src.runtime import describe, fast_dtype, memory_format, one_thread, prepare_process

TRACKS, SEGMENTS, ATTACKED, MAPS, BATCH = 60, 320, 12, 64, 64
SEED = 42


def main(arguments: list[str]) -> int:
    """Measure all stages, print a table and write `bench_<cpu>_<precision>.json`; return 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.bench", description=__doc__)
    parser.add_argument("--run", default="synthetic", help="run with arrays and a checkpoint")
    parser.add_argument("--checkpoint", default="short")
    options = parser.parse_args(arguments)
    os.environ.pop("GLIBC_TUNABLES", None)  # this process has read it, the plain one shall not
    prepare_process()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            stages = measure(options, lambda *call: pool.submit(*call).result())
        except (FileNotFoundError, ValueError) as error:
            sys.exit(str(error))
    print(pd.DataFrame(stages).T.to_string())
    facts = provenance(SEED, vars(options), corpus=load_metadata(RunPaths(options.run))["corpus"])
    name = "bench_{cpu}_{gradients}.json".format(**describe()).lower().replace(" ", "_")
    print(write_json(METRICS / name, facts | stages).name)
    return 0


def measure(options: argparse.Namespace, apart: Callable) -> dict[str, dict]:
    """Return the measurement of each stage, with the CPU's class, precision and memory format.

    `apart` calls a function in the process of the plain implementation.
    """
    paths = RunPaths(options.run)
    model, _ = load_named(paths, options.checkpoint)
    machine = describe()
    layout = {"memory_format": machine["memory_format"], "cpu": machine["cpu"]}
    fast, exact = {"precision": machine["gradients"]}, {"precision": machine["evaluation"]}
    return {
        "features": features(paths, apart) | exact | layout | {"memory_format": "none"},
        "training": training(paths, apart) | fast | layout,
        "attacks": attacks(paths, model, apart) | fast | layout,
        "gradcam": maps(paths, model, apart) | exact | layout,
    }


def features(paths: RunPaths, apart: Callable) -> dict:
    """Measure log-mels of whole tracks, read from disk; difference: largest, in dB."""
    corpus, tracks = corpus_of(paths), load_tracks(paths)
    rows = tracks[tracks["used"] & (tracks["n_segments"] == 10)].head(TRACKS)
    files = [corpus.path / path for path in rows["path"]]

    def ours():
        with one_thread():
            blocks = preprocessor.in_order(corpus, corpus.segments, rows, n_jobs=2)
            return np.concatenate(list(blocks))

    times, (expected, found) = take_turns(lambda: apart(plain.features, files), ours, 5)
    limit = 1 / (1 / stft_rate() + 1 / read_rate(files))
    return report(times, len(rows), "tracks/s", limit, 80 * np.abs(expected - found).max())


def training(paths: RunPaths, apart: Callable) -> dict:
    """Measure one epoch; difference: of the mean loss, in nats."""
    data = load_split(paths, "train")
    X, y = np.array(data.X[:SEGMENTS]), data.y[:SEGMENTS]
    train, val = SegmentDataset(X, y), SegmentDataset(X[:BATCH], y[:BATCH])
    genres = load_metadata(paths)["genres"]
    one_epoch = Training("documented", {"epochs": 1}, "", SEED, genres, "")

    def ours():
        with tempfile.TemporaryDirectory() as folder:
            fit(train, val, Path(folder), one_epoch)
            return load_checkpoint(Path(folder) / CHECKPOINT_FILE)[0]

    def plainly():
        model = cnn.GenreClassifierCNN(len(genres))
        return apart(plain.train, model, X, y, one_epoch.recipe["batch_size"])

    times, models = take_turns(plainly, ours, 3)
    first, second = (plain.loss(model, X[:BATCH], y[:BATCH]) for model in models)
    limit = convolution_rate(fast_dtype(), weights=True, backward=True)
    return report(times, len(X), "segments/s", limit, abs(first - second))


def attacks(paths: RunPaths, model: nn.Module, apart: Callable) -> dict:
    """Measure FGSM and PGD at all eps; difference: by how much plain ART was ever more successful.

    Ours skips segments that are wrong or flipped already; the rate counts gradients computed.
    """
    data, made = _test_segments(paths, ATTACKED), [0]

    def ours():
        target, search = make_target(model, data), Search(ITERATIONS, SEED, early_stopping=True)
        with _counted_gradients(made):
            return pd.concat(sweep(name, target, EPSILONS, search) for name in ("fgsm", "pgd"))

    times, (expected, records) = take_turns(
        lambda: apart(plain.sweep, model, data.X, data.y, EPSILONS, ITERATIONS), ours, 1
    )
    wrong = records["adversarial_prediction"] != records["true"]
    shares = wrong.groupby([records["attack"], records["eps"]]).mean()
    target = make_target(model, data)
    lost = [(target.predict(X) != data.y).mean() - shares[key] for key, X in expected.items()]
    amount = len(data.y) * len(EPSILONS) * (ITERATIONS + 1), made[0]
    limit = convolution_rate(fast_dtype(), weights=False, backward=True)
    return report(times, amount, "segment-steps/s", limit, max(0.0, *lost))


def maps(paths: RunPaths, model: nn.Module, apart: Callable) -> dict:
    """Measure Grad-CAM maps; difference: largest of all cells of maps in [0, 1]."""
    data = _test_segments(paths, MAPS)
    X, y = data.X, data.y
    times, (expected, found) = take_turns(
        lambda: apart(plain.grad_cam, model, X, y), lambda: explain(model, X, y), 5
    )
    limit = convolution_rate(torch.float32, weights=False, backward=False)
    return report(times, len(X), "maps/s", limit, np.abs(expected - found).max())


def take_turns(first: Callable, second: Callable, turns: int) -> tuple[np.ndarray, list]:
    """Return the seconds (turns, 2) of two pieces of work, called in turns, and their results."""
    seconds = np.zeros((turns, 2))
    for turn in seconds:
        results = []
        for k, work in enumerate((first, second)):
            begin = time.perf_counter()
            results.append(work())
            turn[k] = time.perf_counter() - begin
    return seconds, results


def report(times: np.ndarray, amount: object, unit: str, limit: float, difference: float) -> dict:
    """Return ratio, rate and share of the machine's limit (in the rate's unit).

    `times` (turns, 2) are seconds of the plain and of our implementation for the same result,
    `amount` is their work: one number, or two if ours needs less.
    """
    plain_rate, rate = np.broadcast_to(amount, 2) / np.median(times, axis=0)
    return {
        "ratio": float(np.median(times[:, 0] / times[:, 1])),
        "rate": float(rate),
        "unit": unit,
        "plain_rate": float(plain_rate),
        "limit": float(limit),
        "share_of_limit": float(rate / limit),
        "difference": float(difference),
        "turns": len(times),
    }


def convolution_rate(dtype: torch.dtype, weights: bool, backward: bool) -> float:
    """Return segments/s of the eight convolutions alone, in our memory format.

    `weights`: with gradients of weights; `backward`: with gradients at all.
    """
    total, channels, size, form = 0.0, 1, (128, 130), memory_format()
    for k, out in enumerate(np.repeat(cnn.WIDTHS, 2).tolist()):
        layer = nn.Conv2d(channels, out, 3, padding=1).to(dtype=dtype, memory_format=form)
        layer.requires_grad_(weights)
        x, gradient = (
            torch.rand(BATCH, n, *size).to(dtype=dtype, memory_format=form) for n in (channels, out)
        )
        x.requires_grad_(backward and (channels > 1 or not weights))  # unused by training

        def work(layer=layer, x=x, gradient=gradient):
            return layer(x).backward(gradient) if backward else layer(x)

        total += seconds(work)
        channels, size = out, (size[0] // 2, size[1] // 2) if k % 2 else size
    return BATCH / total


def stft_rate() -> float:
    """Return tracks/s of the short-time Fourier transforms of ten segments alone."""
    samples, window = torch.rand(10, SEGMENT_SAMPLES), torch.hann_window(N_FFT)
    options = {"window": window, "return_complex": True}
    return 1 / seconds(lambda: torch.stft(samples, N_FFT, HOP_LENGTH, **options))


def read_rate(files: list[Path]) -> float:
    """Return tracks/s of reading audio files alone, in one thread or two, whichever is faster."""
    jobs = [delayed(soundfile.read)(file, dtype="float32") for file in files]
    times = [seconds(lambda n=n: Parallel(n, prefer="threads")(jobs)) for n in (1, 2)]
    return len(files) / min(times)


def seconds(work: Callable[[], object]) -> float:
    """Return the median time of a piece of work, in seconds, after one call to warm up."""
    work()
    return float(np.median(take_turns(work, int, 5)[0][:, 0]))


def _test_segments(paths: RunPaths, n: int) -> Segments:
    data = load_split(paths, "test").sample(n, SEED)
    return replace(data, X=np.array(data.X))


@contextmanager
def _counted_gradients(count: list[int]) -> Iterator[None]:
    """Add to `count[0]` the segments whose gradients are computed meanwhile."""

    def look(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if isinstance(module, FastGradients) and inputs[0].requires_grad:
            count[0] += len(output)

    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
