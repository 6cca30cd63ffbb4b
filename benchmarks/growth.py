"""`python -m benchmarks.growth`: time and memory of notebooks 1 to 3 while the corpus grows.

Each notebook runs by itself, as `make explore` and its like run it; training is one epoch of the
documented recipe. Memory is resident memory, files mapped into it included: that of the largest
process, which is the notebook's kernel, and the sum over all processes of the stage, which counts
shared libraries several times. The corpora and all that was made of them are removed again;
they take 2.3 MB of disk a track.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import soundfile
from tqdm.auto import tqdm

from src.data.synthetic import GENRES, N_SAMPLES, SAMPLE_RATE, make_corpus
from src.paths import METRICS, RAW, ROOT, RunPaths
from src.results import provenance, whole_file, write_json

COMPOSED_PER_GENRE = 10
STAGES = {
    "explore": [],
    "preprocess": [],
    "train": ["-p", "RECIPES", "['documented']", "-p", "CHANGES", "{'epochs': 1}"],
}
LOOK_EVERY_S = 0.1
SEED = 42


class Cost(NamedTuple):
    """What a command took: its return code, seconds, and the most memory at any time in GiB.

    Memory of the largest of its processes, and of all together.
    """

    code: int
    seconds: float
    peak_rss_gib: float
    peak_rss_all_gib: float


def main(arguments: list[str]) -> int:
    """Measure all sizes, the smallest first, into `results/metrics/growth.json`; print a table."""
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=__doc__)
    parser.add_argument("--tracks", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--train-up-to", type=int, default=1000, help="no more tracks than these")
    options = parser.parse_args(arguments)
    facts, rows = provenance(SEED, vars(options), corpus="synthetic"), []
    for n in sorted(options.tracks):
        stages = [stage for stage in STAGES if stage != "train" or n <= options.train_up_to]
        try:
            rows.append({"tracks": n} | measure(grow_corpus(n), stages))
        finally:
            clear(n)
        write_json(METRICS / "growth.json", facts | {"growth": rows})
    print(pd.json_normalize(rows).set_index("tracks").T.to_string(float_format="{:.2f}".format))
    return 0


def grow_corpus(n: int) -> Path:
    """Return a folder of `n` tracks of the embedded corpus, as many of each genre.

    A hundred are composed; more are the same ones with their beginning moved to the end, so that
    no two are alike, sample by sample. Raises ValueError if genres cannot have as many each.
    """
    if n % len(GENRES):
        raise ValueError(f"{n} tracks cannot be shared by {len(GENRES)} genres: give tens.")
    composed = min(COMPOSED_PER_GENRE, n // len(GENRES))
    source = make_corpus(RAW / f"growth_{COMPOSED_PER_GENRE}_composed", composed, SEED)
    turns = -(-n // (len(GENRES) * composed))
    for number in tqdm(range(n // len(GENRES)), desc=f"{n} tracks", unit="track a genre"):
        turn, original = divmod(number, composed)
        for genre in GENRES:
            samples, _ = soundfile.read(
                source / genre / f"{genre}.{original:05d}.wav", dtype="int16"
            )
            moved = np.roll(samples, -turn * (N_SAMPLES // turns))
            with whole_file(folder_of(n) / genre / f"{genre}.{number:05d}.wav") as part:
                soundfile.write(part, moved, SAMPLE_RATE, subtype="PCM_16")
    return folder_of(n)


def folder_of(n: int) -> Path:
    """Return the folder of the corpus of `n` tracks; its name is that of the run."""
    return RAW / f"growth_{n}"


def clear(n: int) -> None:
    """Remove the corpus of `n` tracks and all that was made of it."""
    paths = RunPaths(folder_of(n).name)
    made = paths.processed, paths.figures, paths.metrics, paths.models, paths.notebooks
    for folder in (folder_of(n), *made):
        shutil.rmtree(folder, ignore_errors=True)


def measure(corpus: Path, stages: list[str]) -> dict:
    """Return seconds and memory by stage, as `Cost` has them.

    Raises RuntimeError if a stage failed.
    """
    costs = {}
    for stage in stages:
        where = ["--dataset", str(corpus.relative_to(ROOT)), "--run", corpus.name]
        costs[stage] = watch(
            [sys.executable, "-m", "src.pipeline", stage, *where, *STAGES[stage]], ROOT
        )
        if costs[stage].code:
            raise RuntimeError(f"{stage} failed on {corpus.name}: its output above says why.")
    return {
        name: {stage: getattr(cost, name) for stage, cost in costs.items()}
        for name in Cost._fields[1:]
    }


def watch(command: list[str], folder: Path) -> Cost:
    """Run a command in a folder and return what it and all of its children took."""
    begin, largest, total = time.perf_counter(), 0, 0
    with subprocess.Popen(command, cwd=folder) as process:
        while process.poll() is None:
            sizes = _resident(psutil.Process(process.pid))
            largest, total = max(largest, *sizes), max(total, sum(sizes))
            time.sleep(LOOK_EVERY_S)
    seconds = time.perf_counter() - begin
    return Cost(process.returncode, seconds, largest / 2**30, total / 2**30)


def _resident(process: psutil.Process) -> list[int]:
    """Return the resident bytes of a process and its children; those that have ended have none."""
    sizes = [0]
    try:
        for one in (process, *process.children(recursive=True)):
            sizes.append(one.memory_info().rss)
    except psutil.NoSuchProcess:
        pass
    return sizes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
