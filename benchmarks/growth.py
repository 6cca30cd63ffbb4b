"""`python -m benchmarks.growth`: time and memory of notebooks 1 to 3 while the corpus grows.

Each notebook runs whole with its defaults, as `make explore` and its like run it; notebook 3
only on the smallest corpus. Memory is the
peak resident memory of the stage's largest process, the notebook's kernel, with the files mapped
into it. Corpora and everything made of them are removed again; they take 2.3 MB per track. The
hundred tracks that are composed for them stay in `data/raw/`.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import soundfile
from tqdm.auto import tqdm

from src.data.synthetic import GENRES, N_SAMPLES, SAMPLE_RATE, make_corpus
from src.paths import METRICS, RAW, ROOT, RunPaths
from src.results import provenance, whole_file, write_json

COMPOSED_PER_GENRE = 10
STAGES = ("explore", "preprocess", "train")
INTERVAL_S = 0.1
SEED = 42


def main(arguments: list[str]) -> int:
    """Measure all sizes, the smallest first, into `results/metrics/growth.json`; print a table."""
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=__doc__)
    parser.add_argument("--tracks", type=int, nargs="+", default=[100, 1000, 10_000])
    options = parser.parse_args(arguments)
    facts, rows = provenance(SEED, vars(options), corpus="synthetic"), []
    for n in sorted(options.tracks):
        stages = STAGES if n == min(options.tracks) else STAGES[:2]
        clear(n)  # of an interrupted measurement: a finished training would be read
        try:
            corpus = grow_corpus(n)
            words = f"DATASET={corpus.relative_to(ROOT)}", f"RUN={corpus.name}"
            rows.append({"tracks": n} | measure(stages, *words))
        finally:
            clear(n)
        write_json(METRICS / "growth.json", facts | {"growth": rows})
    print(pd.json_normalize(rows).set_index("tracks").T.to_string(float_format="{:.2f}".format))
    return 0


def grow_corpus(n: int) -> Path:
    """Return a folder of `n` tracks of the embedded corpus, the same number of each genre.

    A hundred are composed; the others are copies of them, rotated in time, so that no two are
    alike. Raises ValueError if `n` is not a multiple of the number of genres.
    """
    if n % len(GENRES):
        raise ValueError(f"{n} tracks cannot be shared by {len(GENRES)} genres: give tens.")
    folder = RAW / f"growth_{n}"
    composed = min(COMPOSED_PER_GENRE, n // len(GENRES))
    source = make_corpus(RAW / f"growth_{COMPOSED_PER_GENRE}_composed", composed, SEED)
    turns = -(-n // (len(GENRES) * composed))
    for number in tqdm(range(n // len(GENRES)), desc=f"{n} tracks", unit="track per genre"):
        turn, original = divmod(number, composed)
        for genre in GENRES:
            file = source / genre / f"{genre}.{original:05d}.wav"
            samples, _ = soundfile.read(file, dtype="int16")
            rotated = np.roll(samples, -turn * (N_SAMPLES // turns))
            with whole_file(folder / genre / f"{genre}.{number:05d}.wav") as part:
                soundfile.write(part, rotated, SAMPLE_RATE, subtype="PCM_16")
    return folder


def clear(n: int) -> None:
    """Remove the corpus of `n` tracks and everything made of it."""
    paths = RunPaths(f"growth_{n}")
    made = paths.processed, paths.figures, paths.metrics, paths.models, paths.notebooks
    for folder in (RAW / paths.run, *made):
        shutil.rmtree(folder, ignore_errors=True)
    paths.parameters.unlink(missing_ok=True)


def measure(stages: Iterable[str], *words: str) -> dict[str, dict]:
    """Return `seconds` and `peak_rss_gib` by stage, run with these words of the command line.

    Raises RuntimeError if a stage fails.
    """
    costs = {"seconds": {}, "peak_rss_gib": {}}
    for stage in stages:
        code, seconds, peak = watch([sys.executable, "-m", "src.pipeline", stage, *words], ROOT)
        if code:
            raise RuntimeError(f"{stage} failed with {' '.join(words)}: see its output above.")
        costs["seconds"][stage], costs["peak_rss_gib"][stage] = seconds, peak
    return costs


def watch(command: list[str], folder: Path) -> tuple[int, float, float]:
    """Run a command in a folder; return its code, its seconds and its peak memory in GiB.

    The peak is that of the largest among its processes.
    """
    begin, peak = time.perf_counter(), 0
    with subprocess.Popen(command, cwd=folder) as process:
        while process.poll() is None:
            peak = max(peak, _peak_rss(psutil.Process(process.pid)))
            time.sleep(INTERVAL_S)
    return process.returncode, time.perf_counter() - begin, peak / 2**30


def _peak_rss(process: psutil.Process) -> int:
    """Return the peak resident bytes so far of the largest among a process and its children.

    Linux records the peak; elsewhere it is the present size.
    """
    peak = 0
    try:
        for each in (process, *process.children(recursive=True)):
            status = Path(f"/proc/{each.pid}/status")
            lines = status.read_text().splitlines() if status.exists() else []
            recorded = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
            peak = max(peak, *(recorded or [each.memory_info().rss]))
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        pass
    return peak


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
