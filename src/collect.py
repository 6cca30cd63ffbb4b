"""Gather the results of runs on real music into `results/metrics/real/`, which is committed.

`python -m src.collect gtzan_logmel gtzan_mini` puts the tables of these runs one below the other
and copies the JSON of every training. Figures, checkpoints and audio stay where they are.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from src.paths import METRICS, RunPaths
from src.results import read_json, write_csv, write_json

REAL = METRICS / "real"
TABLES = ("training", "robustness", "corruptions", "audio_attacks", "explanations")
PGD_EPS = 0.01


def main(arguments: list[str]) -> int:
    """Collect the runs given on the command line; return 0."""
    parser = argparse.ArgumentParser(prog="src.collect", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="run", help="name of a run's folders")
    collect(parser.parse_args(arguments).runs)
    return 0


def collect(runs: list[str], target: Path = REAL) -> None:
    """Write one table of each kind and each training's JSON into `target`; tell what is missing.

    Raises FileNotFoundError for a run without a single result and ValueError for the embedded
    corpus, whose results say nothing about real music.
    """
    for run in runs:
        _check(run)
        for file in sorted(RunPaths(run).metrics.glob("training_*.json")):
            write_json(target / run / file.name, read_json(file))
    for name in TABLES:
        found = {run: _table(run, name) for run in runs}
        parts = [table for table in found.values() if table is not None]
        if parts:
            write_csv(target / f"{name}.csv", pd.concat(parts, ignore_index=True))
        missing = [run for run, table in found.items() if table is None]
        print(f"{name}: {len(parts)} runs" + "".join(f", none of {run}" for run in missing))


def _check(run: str) -> None:
    """Refuse a run that does not exist or was made of the embedded corpus."""
    files = sorted(RunPaths(run).metrics.glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"results/metrics/{run} has no results: the name may be misspelt; `make run` with "
            f"RUN={run} makes them."
        )
    if read_json(files[0])["corpus"] == "synthetic":
        raise ValueError(f"run {run} is of the embedded corpus, not of real music: leave it out.")


def _table(run: str, name: str) -> pd.DataFrame | None:
    """Return a table of a run, or None if its stage has not been run."""
    file = RunPaths(run).metrics / f"{name}.csv"
    if not file.exists():
        return None
    table = pd.read_csv(file)
    return _with_robust_accuracy(table, run) if name == "training" else table


def _with_robust_accuracy(training: pd.DataFrame, run: str) -> pd.DataFrame:
    """Add to each training its accuracy under PGD, where the attacks have been run."""
    training = training.assign(pgd_eps=PGD_EPS, pgd_accuracy=float("nan"))
    robustness = _table(run, "robustness")
    if robustness is None:
        return training
    rows = robustness[(robustness["attack"] == "pgd") & (robustness["eps"] == PGD_EPS)]
    accuracy = rows.set_index("checkpoint")["accuracy"]
    names = sorted(RunPaths(run).metrics.glob("training_*.json"))
    names = [file.stem.removeprefix("training_") for file in names]
    return training.assign(pgd_accuracy=[accuracy.get(name) for name in names])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
