"""`python -m benchmarks`: each stage against a plain implementation, as ratios, in one run.

Plain and ours take turns on the same work; the ratio is the median over turns. Results must be
equal within the tolerance that stands beside each. The plain ones run in a process of their own,
which knows nothing of how ours treats memory and precision. Needs a run with a trained checkpoint.
Last, each of ours tells its three largest items. About seven minutes on two CPU cores.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks import limits, plain
from benchmarks.profiles import largest_calls, largest_operations
from src.attacks.adversarial import EPSILONS, ITERATIONS, draw_segments, sweep
from src.attacks.audio import load_clips
from src.attacks.channels import judge
from src.attacks.waveform import attack_waveform, make_waveform_classifier
from src.data import corpus as corpora
from src.data import preprocessor
from src.data.loader import SegmentDataset, load_metadata, load_split
from src.explainability.gradcam import explain
from src.models import trainer
from src.models.evaluation import predict_logits
from src.models.recipes import DOCUMENTED
from src.models.runs import load_named
from src.paths import METRICS, RunPaths
from src.results import provenance, write_json
from src.runtime import fast_dtype, one_thread, prepare_process

TRACKS, SEGMENTS, ATTACKED, MAPS = 60, 320, 24, 64
SOUNDS, SOUND_STEPS, SNR_DB = 64, 20, 40
SEED = 42


def main(arguments: list[str]) -> int:
    """Measure all stages, print a table and write `results/metrics/bench.json`."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--run", default="synthetic", help="run with arrays and a checkpoint")
    parser.add_argument("--checkpoint", default="documented")
    options = parser.parse_args(arguments)
    prepare_process()
    paths = RunPaths(options.run)
    model, _ = load_named(paths, options.checkpoint)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:

        def apart(work: Callable, *arguments):
            return pool.submit(work, *arguments).result()

        stages = {
            "features": features(paths, apart),
            "training": training(paths, apart),
            "attacks": attacks(paths, model, apart),
            "gradcam": maps(paths, model, apart),
        }
        if corpora.corpus_of(paths).has_audio:
            stages["waveform"] = waveform(paths, model, apart)
    measured = {name: found for name, (found, _) in stages.items()}
    print(pd.DataFrame(measured).T.to_string())
    for name, (found, ours) in stages.items():
        found["largest"] = (largest_calls if name == "features" else largest_operations)(ours)
        print(name, *(f"{share:6.1%} {item}" for item, share in found["largest"].items()), sep="\n")
    facts = provenance(SEED, vars(options), corpus=load_metadata(paths)["corpus"])
    write_json(METRICS / "bench.json", facts | measured)
    return 0


def take_turns(first: Callable, second: Callable, turns: int) -> tuple[list[float], list[float]]:
    """Return the seconds that two pieces of work take, called in turns."""
    times = ([], [])
    for _ in range(turns):
        for work, taken in zip((first, second), times, strict=True):
            begin = time.perf_counter()
            work()
            taken.append(time.perf_counter() - begin)
    return times


def report(
    times: tuple,
    amount: float,
    unit: str,
    limit: float,
    difference: float,
    done: float | None = None,
) -> dict:
    """Return ratio, rate and share of the machine's limit (in the rate's unit).

    `amount` of work was asked for; `done`, if given, is what of it ours did not spare itself.
    """
    plainly, ours = (np.array(taken) for taken in times)
    rate = (done or amount) / np.median(ours)
    return {
        "ratio": float(np.median(plainly / ours)),
        "share_of_limit": float(rate / limit),
        "rate": float(rate),
        "unit": unit,
        "plain_rate": float(amount / np.median(plainly)),
        "limit": float(limit),
        "difference": float(difference),
        "turns": len(ours),
    }


def features(paths: RunPaths, apart: Callable) -> tuple[dict, Callable]:
    """Measure log-mels of whole tracks, read from disk; difference: largest, in dB."""
    corpus, tracks = corpora.corpus_of(paths), corpora.load_tracks(paths)
    rows = tracks[tracks["used"] & (tracks["n_segments"] == 10)].head(TRACKS)
    files = [corpus.path / path for path in rows["path"]]

    def ours(n_jobs=2):
        with one_thread():
            blocks = preprocessor._in_order(corpus, corpus.segments, rows, n_jobs)
            return np.concatenate(list(blocks))

    difference = 80 * np.abs(apart(plain.features, files[:2]) - ours()[:20]).max()
    times = take_turns(lambda: apart(plain.features, files), ours, turns=5)
    limit = 1 / (1 / limits.stft_rate() + 1 / limits.read_rate(files))
    profiled = partial(ours, n_jobs=1)  # the profiler sees the calling thread alone
    return report(times, len(rows), "tracks/s", limit, difference), profiled


def training(paths: RunPaths, apart: Callable) -> tuple[dict, Callable]:
    """Measure one epoch without validation; difference: of the mean loss, in nats."""
    X, y, _ = load_split(paths, "train")
    data = SegmentDataset(np.array(X[:SEGMENTS]), y[:SEGMENTS])
    X, y = torch.from_numpy(data.X)[:, None], torch.from_numpy(data.y)

    def ours():
        torch.manual_seed(SEED)
        parts = trainer._assemble(trainer.GenreClassifierCNN(), len(data), DOCUMENTED)
        trainer._learn(parts, trainer._gather_crew(parts["model"]), data, DOCUMENTED, 10)
        return parts["model"]

    def plainly():
        torch.manual_seed(SEED)
        return apart(plain.train, trainer.GenreClassifierCNN(), X, y, DOCUMENTED["batch_size"])

    losses = [_loss(work(), X, y) for work in (plainly, ours)]
    times = take_turns(plainly, ours, turns=3)
    limit = limits.convolution_rate(fast_dtype(), weights=True, backward=True)
    return report(times, len(data), "segments/s", limit, abs(losses[0] - losses[1])), ours


def attacks(paths: RunPaths, model: nn.Module, apart: Callable) -> tuple[dict, Callable]:
    """Measure the documented sweep; difference: by how much plain ART was ever more successful.

    Ours spares itself segments that are wrong or broken already; the rates count steps made.
    """
    X, y, segments = load_split(paths, "test")
    rows = draw_segments(segments["track"].to_numpy(), ATTACKED, SEED)
    X, y, segments = np.array(X[rows]), y[rows], segments.iloc[rows]
    found = {}

    def plainly():
        found["plain"] = apart(plain.sweep, model, X, y, EPSILONS, ITERATIONS)

    def ours():
        arguments = model, X, segments, y, EPSILONS, ITERATIONS
        found["ours"] = pd.concat(sweep(name, *arguments) for name in ("fgsm", "pgd"))

    times = take_turns(plainly, ours, turns=1)
    steps = len(X) * len(EPSILONS) * (ITERATIONS + 1)
    limit = limits.convolution_rate(fast_dtype(), weights=False, backward=True)
    lost, made = _lost(model, found, y), _steps_made(found["ours"])
    return report(times, steps, "segment-steps/s", limit, lost, made), ours


def waveform(paths: RunPaths, model: nn.Module, apart: Callable) -> tuple[dict, Callable]:
    """Measure PGD on samples; difference: by how much the plain one is more successful.

    Ours writes 16-bit samples, too, and checks the ratio.
    """
    _, y, segments = load_split(paths, "test")
    rows = draw_segments(segments["track"].to_numpy(), SOUNDS, SEED)
    samples, y, found = load_clips(paths, segments.iloc[rows]), y[rows], {}

    def plainly():
        options = model, samples, y, SNR_DB, SOUND_STEPS
        found["plain"] = apart(plain.waveform_pgd, *options)

    def ours():
        classifier = make_waveform_classifier(model)
        options = samples, y, SNR_DB, SOUND_STEPS
        found["ours"] = attack_waveform("pgd_waveform", classifier, *options)

    times = take_turns(plainly, ours, turns=1)
    wrong = {name: (judge(model, made).argmax(axis=1) != y).mean() for name, made in found.items()}
    limit = limits.convolution_rate(fast_dtype(), weights=False, backward=True)
    lost = max(0.0, wrong["plain"] - wrong["ours"])
    return report(times, len(y) * SOUND_STEPS, "clip-steps/s", limit, lost), ours


def maps(paths: RunPaths, model: nn.Module, apart: Callable) -> tuple[dict, Callable]:
    """Measure Grad-CAM maps; difference: largest of all cells of maps in [0, 1]."""
    X, y, segments = load_split(paths, "test")
    rows = draw_segments(segments["track"].to_numpy(), MAPS, SEED)
    X, y = np.array(X[rows]), y[rows]

    def ours():
        return explain(model, X, y)

    difference = np.abs(apart(plain.grad_cam, model, X, y) - ours()).max()
    times = take_turns(lambda: apart(plain.grad_cam, model, X, y), ours, turns=5)
    limit = limits.convolution_rate(torch.float32, weights=False, backward=False)
    return report(times, len(X), "maps/s", limit, difference), ours


def _loss(model: nn.Module, X: torch.Tensor, y: torch.Tensor) -> float:
    """Return the mean training-mode loss of a network on the first segments."""
    with torch.no_grad():
        logits = model.train()(X[:64]).float()
    return nn.functional.cross_entropy(logits, y[:64]).item()


def _steps_made(ours: pd.DataFrame) -> int:
    """Return how many steps on a segment a sweep's records tell of."""
    right = ours[ours["clean_prediction"] == ours["true"]].sort_values("eps")
    pgd = right[right["attack"] == "pgd"]
    broken_before = pgd.groupby("segment")["success"].cumsum() - pgd["success"]
    return int((right["attack"] == "fgsm").sum() + ITERATIONS * (broken_before == 0).sum())


def _lost(model: nn.Module, found: dict, y: np.ndarray) -> float:
    """Return the largest excess of plain ART's success over ours, over attacks and eps."""
    ours = found["ours"]
    wrong = ours["adversarial_prediction"] != ours["true"]
    shares = wrong.groupby([ours["attack"], ours["eps"]]).mean()
    excess = [
        (predict_logits(model, attacked).argmax(axis=1) != y).mean() - shares[key]
        for key, attacked in found["plain"].items()
    ]
    return max(0.0, *excess)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
