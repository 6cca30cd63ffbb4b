"""`python -m benchmarks.ablation RUN CHECKPOINT ...`: which parts of training help robustness.

Evaluates checkpoints of a run on the same test segments, at most one per track: clean accuracy and
that under the worst of FGSM, PGD-20, PGD-40, targeted PGD-20 and APGD-20 on two losses. Rows are
added to `results/metrics/<run>/ablation.csv` one by one; those that are there are kept. Checkpoints
come from `make train`, such as `make train RECIPES=robust SUFFIX=_eps15 ADVERSARIAL_EPS=0.015`.
"""

import argparse
import json
import sys

import pandas as pd

from src.attacks import suite
from src.attacks.records import CLEAN, WORST_CASE, make_target, robustness_table
from src.data.segments import load_metadata, load_split
from src.effort import EFFORTS
from src.models.recipes import DEFAULT_SEED
from src.models.runs import load_named
from src.paths import RunPaths
from src.results import read_csv, write_csv
from src.runtime import prepare_process

EPS = 0.01
EFFORT = EFFORTS["full"]._replace(iterations=20, n_restarts=1, square_queries=0, n_hard_label=0)
INTERVAL = {"accuracy": "clean_accuracy", "low": "low", "high": "high"}


def main(arguments: list[str]) -> int:
    """Add rows to the table of a run and print it; return 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.ablation", description=__doc__)
    parser.add_argument("run")
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--segments", type=int, default=150)
    options = parser.parse_args(arguments)
    prepare_process()
    paths = RunPaths(options.run)
    file = paths.metrics / "ablation.csv"
    rows = read_csv(file).to_dict("records") if file.exists() else []
    for name in options.checkpoints:
        known = {(row["key"], row["n_segments"]) for row in rows}
        key, new = evaluate(paths, name, options.segments, known)
        rows = [row for row in rows if row["checkpoint"] != name or row["key"] == key] + new
        write_csv(file, pd.DataFrame(rows))
    print(pd.DataFrame(rows).to_string())
    return 0


def evaluate(
    paths: RunPaths, name: str, n: int, known: set[tuple[str, int]]
) -> tuple[str, list[dict]]:
    """Return the key of a checkpoint and its row on n segments; no row if it is `known`."""
    (model, facts), data = load_named(paths, name), load_metadata(paths)
    segments = load_split(paths, "test").sample(n, DEFAULT_SEED)
    if (facts["key"], len(segments)) in known:
        return facts["key"], []
    target = make_target(model, segments)
    budgets = suite.Budgets((EPS,), (EPS,), EPS)
    records = suite.evaluate({name: target}, budgets, EFFORT, DEFAULT_SEED)
    found = robustness_table(records, data["corpus"], data["split"]).set_index("attack")
    clean, worst = (found.loc[attack, list(INTERVAL)] for attack in (CLEAN, WORST_CASE))
    row = {fact: data[fact] for fact in ("corpus", "split")} | {"checkpoint": name}
    row |= {"recipe": facts["name"], "changes": json.dumps(facts["changes"], sort_keys=True)}
    row |= {"seed": facts["seed"], "epochs": facts["recipe"]["epochs"], "eps": EPS}
    row |= clean.rename(INTERVAL).to_dict()
    row |= {f"robust_{key}": value for key, value in worst.items()}
    numbers = found.loc[CLEAN, ["n_segments", "n_tracks"]].astype(int)
    return facts["key"], [row | numbers.to_dict() | {"key": facts["key"]}]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
