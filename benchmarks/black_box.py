"""`python -m benchmarks.black_box RUN CHECKPOINT ...`: do attacks without gradients flip more?

Square (1,000 queries) and HopSkipJump (20 steps, about 4,000 queries) attack test segments that a
model predicts correctly, at most one per track, next to attacks with gradients on the same
segments. Many segments that only they flip would be a sign of masked gradients. Each checkpoint has
rows in `results/metrics/<run>/black_box.csv`; those that are there are kept.
"""

import argparse
import sys

import numpy as np
import pandas as pd

from src.attacks import suite
from src.attacks.flags import flipped_by_gradients
from src.attacks.records import Target, make_target, robustness_table
from src.data.features import DYNAMIC_RANGE_DB
from src.data.segments import load_metadata, load_split
from src.effort import EFFORTS
from src.models.recipes import DEFAULT_SEED
from src.models.runs import load_named
from src.paths import RunPaths
from src.results import read_csv, write_csv
from src.runtime import prepare_process

EPS = 0.01
EFFORT = EFFORTS["full"]._replace(iterations=20, n_restarts=1, square_queries=1000)
GRADIENTS = "apgd_dlr"  # the last of the attacks with gradients: it combines all before it
SHOWN = ("noise_linf", GRADIENTS, "square_alone", "hop_skip_jump")


def main(arguments: list[str]) -> int:
    """Add rows to the table of a run and print it; return 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.black_box", description=__doc__)
    parser.add_argument("run")
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--segments", type=int, default=EFFORT.n_hard_label)
    options = parser.parse_args(arguments)
    prepare_process()
    paths = RunPaths(options.run)
    file = paths.metrics / "black_box.csv"
    empty = pd.DataFrame(columns=["key", "checkpoint", "n_segments"])
    table = read_csv(file) if file.exists() else empty
    for name in options.checkpoints:
        model, facts = load_named(paths, name)
        target = make_target(model, load_split(paths, "test"))
        n = min(options.segments, int(target.correct.sum()))
        if not ((table["key"] == facts["key"]) & (table["n_segments"] == n)).any():
            rows = evaluate(name, target, load_metadata(paths), n).assign(key=facts["key"])
            others = table[table["checkpoint"] != name]
            table = pd.concat([others, rows], ignore_index=True) if len(others) else rows
            write_csv(file, table)
    print(table.drop(columns="key").to_string())
    return 0


def evaluate(name: str, target: Target, data: dict, n: int) -> pd.DataFrame:
    """Return accuracy under the attacks `SHOWN` on `n` segments that are predicted correctly.

    Besides the columns of `robustness_table`: `only`, how many segments an attack flips that no
    gradient does, and `median_db`, the median change that HopSkipJump needs, within eps or not.
    """
    few = target.take(np.flatnonzero(target.correct)).sample(n, DEFAULT_SEED)
    effort, budgets = EFFORT._replace(n_hard_label=n), suite.Budgets((EPS,), (EPS,), EPS)
    alone = suite.alone(target, budgets, effort, DEFAULT_SEED).assign(checkpoint=name)
    gradients = effort._replace(n_hard_label=0, square_queries=0)
    records = suite.evaluate({name: few}, budgets, gradients, DEFAULT_SEED)
    records = pd.concat([records, alone], ignore_index=True)
    found = robustness_table(records, data["corpus"], data["split"])
    only = records[records["success"] & ~flipped_by_gradients(records)].groupby("attack").size()
    median_db = DYNAMIC_RANGE_DB * records.groupby("attack")["distance"].median()
    found = found[found["attack"].isin(SHOWN)]
    return found.assign(
        only=found["attack"].map(only).fillna(0).astype(int),
        median_db=found["attack"].map(median_db),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
