"""`python -m benchmarks.seeds RUN CHECKPOINT ...`: do the findings hold for other trainings?

Measures accuracy under PGD and the findings of notebook 5, by Grad-CAM, for recipes that were
trained with several seeds: for each seed, and for all together. The segments are the same for all,
at most one per track in a run of 150 test tracks. Writes `results/metrics/<run>/seeds.csv` and
`seeds.json`. An interrupted run continues.
"""

import argparse
import sys

import numpy as np
import pandas as pd
from torch import nn

from src.data.segments import Segments, load_metadata, load_split
from src.effort import EFFORTS
from src.explainability import experiments
from src.explainability.attributions import make_subject
from src.explainability.records import (
    CLAIMS,
    pick,
    records,
    results_table,
    verdict,
    with_ends,
)
from src.explainability.selection import make_case
from src.models.recipes import DEFAULT_SEED
from src.models.runs import load_networks
from src.paths import RunPaths
from src.progress import progress
from src.results import provenance, write_csv, write_json
from src.runtime import prepare_process
from src.shards import forget_results, keep_results
from src.statistics import mean_over_tracks

METHOD, EPS, N_SEGMENTS = "gradcam", 0.01, 150
ITERATIONS = EFFORTS["full"].explain_iterations
ACCURACIES = CLEAN, ROBUST = ("clean_accuracy", "robust_accuracy")
COPIED = ("compared_with", "value", "low", "high", "p_holm", "n_segments", "n_tracks")


def main(arguments: list[str]) -> int:
    """Write and print the table; return 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.seeds", description=__doc__)
    parser.add_argument("run")
    parser.add_argument("checkpoints", nargs="+")
    options = parser.parse_args(arguments)
    prepare_process()
    paths = RunPaths(options.run)
    keep_results(paths.unfinished("seeds"))
    loaded = load_networks(paths, options.checkpoints, own=False)
    data = load_metadata(paths)
    splits = load_split(paths, "test"), load_split(paths, "train")
    parts = []
    for name in progress(list(loaded), "checkpoints", unit="model"):
        model, facts = loaded[name]
        found = measure(name, model, *splits)
        parts.append(found.assign(recipe=facts["name"] + facts["suffix"], seed=facts["seed"]))
    table = by_seeds(pd.concat(parts, ignore_index=True), data["corpus"])
    write_csv(paths.metrics / "seeds.csv", table.assign(split=data["split"]))
    facts = {name: data[name] for name in ("corpus", "run", "split", "fingerprint")}
    facts |= {"checkpoints": {name: each for name, (_, each) in loaded.items()}}
    given = {"METHOD": METHOD, "EPS": EPS, "N_SEGMENTS": N_SEGMENTS, "ITERATIONS": ITERATIONS}
    write_json(paths.metrics / "seeds.json", provenance(DEFAULT_SEED, given, **facts))
    forget_results()
    print(table.to_string())
    return 0


def measure(name: str, model: nn.Module, test: Segments, train: Segments) -> pd.DataFrame:
    """Return the records of a model: whether segments are predicted correctly, and its maps."""
    drawn = test.sample_genres(N_SEGMENTS, DEFAULT_SEED)
    case = make_case(make_subject(name, model, train, DEFAULT_SEED), drawn, [EPS], ITERATIONS)
    stay = case.attacked[EPS].predicted == case.data.y
    correct = {CLEAN: case.data.numbers, ROBUST: case.data.numbers[stay]}
    right = {name: np.isin(drawn.numbers, numbers) for name, numbers in correct.items()}
    found = [
        records(case.subject, METHOD, drawn.table, right),
        *experiments.shift_under_attack(case, METHOD),
        *experiments.specificity(case, METHOD),
        *experiments.failures(case, METHOD, test, 2 * N_SEGMENTS, EPS),
    ]
    return pd.concat(found, ignore_index=True).astype({"value": float})


def by_seeds(rows: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """Return accuracies and claims of each recipe, for each seed and for all of its seeds.

    `rows` are records with the `recipe` and `seed` of their model. A track counts with all its
    seeds: the intervals do not cover seeds that were not trained. `n_segments` counts a segment
    once per seed. `answer` is that of `records.verdict`; `p_holm` is corrected for the contrasts of
    all recipes with the same seeds, as in notebook 5.
    """
    rows = rows.assign(segment=rows.groupby(["seed", "segment"]).ngroup())
    seeds = sorted(rows["seed"].unique())
    parts = [_lines(rows[rows["seed"].isin(chosen)], corpus) for chosen in [*zip(seeds), seeds]]
    table = pd.concat(parts).drop_duplicates(["recipe", "seeds", "measure"])
    return table.sort_values("recipe", kind="stable", ignore_index=True)


def _lines(rows: pd.DataFrame, corpus: str) -> pd.DataFrame:
    """Return a line per recipe and accuracy or claim."""
    maps = rows[~rows["measure"].isin(ACCURACIES)].assign(checkpoint=rows["recipe"])
    table, found = results_table(maps, corpus, EPS), []
    for recipe, own in rows.groupby("recipe", sort=False):
        seeds = ", ".join(map(str, sorted(own["seed"].unique())))
        facts = {"corpus": corpus, "recipe": recipe, "seeds": seeds}
        for measure in ACCURACIES:
            few = own[own["measure"] == measure]
            share = mean_over_tracks(few["value"].to_numpy(), few["track"].to_numpy())
            found.append(facts | {"measure": measure} | share)
        for claim in (claim for claim in CLAIMS if claim.row):
            for line in with_ends(pick(table[table["checkpoint"] == recipe], claim.row, EPS)):
                row = facts | {"measure": claim.row.measure, "answer": verdict(claim, line)}
                found.append(row | {name: getattr(line, name) for name in COPIED})
    return pd.DataFrame(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
