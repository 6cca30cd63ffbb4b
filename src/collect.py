"""Gather the results of finished runs into `results/metrics/real/`, which is committed.

`python -m src.collect gtzan_logmel gtzan_mini` puts the tables of these runs one below the other,
with their JSON and the attacks' records beside them. Runs of the embedded corpus, whose results say
nothing about real music, go to `results/metrics/embedded/`. Figures, checkpoints and audio stay
where they are.
"""

import argparse
import gzip
import sys
from pathlib import Path

import pandas as pd

from src.data.loader import load_metadata
from src.paths import METRICS, RunPaths
from src.results import read_json, whole_file, write_csv, write_json

TABLES = (
    "training",
    "recipe_gains",
    "robustness",
    "comparison",
    "songs",
    "transfer",
    "corruptions",
    "audio_attacks",
    "explanations",
)
RECORDS = ("attacks", "smallest_eps")
FOLDERS = REAL, EMBEDDED = "real", "embedded"
PGD, PGD_EPS = "pgd_restarts", 0.01


def main(arguments: list[str]) -> int:
    """Collect the runs given on the command line; return 0."""
    parser = argparse.ArgumentParser(prog="src.collect", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="run", help="name of a run's folders")
    collect(parser.parse_args(arguments).runs)
    return 0


def collect(runs: list[str], target: Path = METRICS) -> None:
    """Write tables, JSON and records of runs into `target`; tell what is missing.

    Tables are made anew of the runs that are given. Raises FileNotFoundError for a run without a
    single result.
    """
    folders = {run: _folder(run) for run in runs}
    for folder in dict.fromkeys(folders.values()):
        same = [run for run in runs if folders[run] == folder]
        for run in same:
            _copy_results(run, target / folder / run)
        for name in TABLES:
            _gather(name, same, target / folder)


def _folder(run: str) -> str:
    """Return the folder of a run's results, by its corpus."""
    files = sorted(RunPaths(run).metrics.glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"results/metrics/{run} has no results: the name may be misspelt; `make run` with "
            f"RUN={run} makes them."
        )
    return EMBEDDED if read_json(files[0])["corpus"] == "synthetic" else REAL


def _copy_results(run: str, target: Path) -> None:
    """Write a run's JSON, what its arrays are made of (`data.json`) and its records, compressed."""
    paths = RunPaths(run)
    for file in sorted(paths.metrics.glob("*.json")):
        write_json(target / file.name, read_json(file))
    write_json(target / "data.json", load_metadata(paths))
    for name in RECORDS:
        file = paths.metrics / f"{name}.csv"
        if file.exists():
            with whole_file(target / f"{name}.csv.gz") as part:
                part.write_bytes(gzip.compress(file.read_bytes(), mtime=0))  # the same bytes again


def _gather(name: str, runs: list[str], target: Path) -> None:
    """Write one table of several runs, and say which have none."""
    found = {run: _table(run, name) for run in runs}
    parts = [table for table in found.values() if table is not None]
    if parts:
        write_csv(target / f"{name}.csv", pd.concat(parts, ignore_index=True))
    missing = [run for run, table in found.items() if table is None]
    print(f"{target.name}/{name}: {len(parts)} runs" + "".join(f", none of {r}" for r in missing))


def _table(run: str, name: str) -> pd.DataFrame | None:
    """Return a table of a run, or None if its stage has not been run."""
    file = RunPaths(run).metrics / f"{name}.csv"
    if not file.exists():
        return None
    table = pd.read_csv(file)
    return _with_robust_accuracy(table, run) if name == "training" else table


def _with_robust_accuracy(training: pd.DataFrame, run: str) -> pd.DataFrame:
    """Add to each training its accuracy under PGD with restarts, where attacks have been run."""
    measures = ["accuracy", "low", "high", "n_segments"]
    robustness = _table(run, "robustness")
    if robustness is None:
        robustness = pd.DataFrame(columns=["checkpoint", "attack", "eps", *measures])
    rows = robustness[(robustness["attack"] == PGD) & (robustness["eps"] == PGD_EPS)]
    rows = rows[["checkpoint", *measures]].set_index("checkpoint").add_prefix("pgd_")
    return training.assign(pgd_eps=PGD_EPS).join(rows, on="checkpoint")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
