"""Comparing the trainings of a run: predictions, accuracy differences on the same tracks."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from src.labels import percent
from src.models.evaluation import vote
from src.models.zoo import read_card
from src.paths import RunPaths, from_root
from src.results import read_csv, read_json
from src.statistics import difference_over_tracks, holm

ACCURACIES = ("segment_accuracy", "track_accuracy")
MEASURED_BY = {  # files of results: the command that makes them
    "attacks.json": "make train attack RUN={}",
    "audio_attacks.json": "make train attack RUN={}",
    "explanations.json": "make train explain RUN={}",
    "seeds.json": "python -m benchmarks.seeds {} CHECKPOINT ...",
    "ablation.csv": "python -m benchmarks.ablation {} CHECKPOINT ...",
    "black_box.csv": "python -m benchmarks.black_box {} CHECKPOINT ...",
}


def prediction_table(
    segments: pd.DataFrame, y: np.ndarray, probabilities: np.ndarray
) -> pd.DataFrame:
    """Return one row per segment: segment, track, true, predicted, prediction of its track.

    `probabilities` (n, n_genres); `confidence` is that of the predicted genre.
    """
    voted = vote(probabilities, segments["track"].to_numpy(), y).set_index("track")
    return pd.DataFrame(
        {
            "segment": segments["segment"].to_numpy(),
            "track": segments["track"].to_numpy(),
            "true": y,
            "predicted": probabilities.argmax(axis=1),
            "confidence": probabilities.max(axis=1),
            "track_predicted": voted["predicted"].loc[segments["track"]].to_numpy(),
        }
    )


def accuracy_difference(pairs: list[tuple[pd.DataFrame, pd.DataFrame]]) -> dict:
    """Return the accuracy of the second table of each pair less that of the first.

    One pair of `prediction_table`s per seed, all of the same segments, which `n_segments` counts
    once per seed. The value is the mean over seeds; the interval is that of paired tracks, each
    drawn with all its seeds: it does not cover seeds that were not trained.
    """
    gains = {}
    for measure, column in zip(ACCURACIES, ("predicted", "track_predicted"), strict=True):
        sides = zip(*pairs, strict=True)
        if measure == "track_accuracy":
            sides = ([table.drop_duplicates("track") for table in side] for side in sides)
        sides = [pd.concat(side) for side in sides]
        right = [(table[column] == table["true"]).to_numpy() for table in sides]
        gains[measure] = difference_over_tracks(*right, sides[0]["track"].to_numpy())
    return gains


def recipe_gains(paths: RunPaths, data: dict) -> pd.DataFrame:
    """Return the accuracy differences between all pairs of recipes, on the same tracks and seeds.

    Reads all `predictions_*.csv` of a run whose `training_*.json` has the fingerprint of `data`,
    the metadata of the run's arrays. One row per pair, accuracy and seed, and one over all seeds
    that both were trained with, if these are several; recipes with other changes are other recipes.
    Networks trained on random labels are controls of notebook 5 and are not compared.
    `p_holm` is corrected for the number of pairs with the same seeds. No rows for a single recipe.
    """
    tables, rows = _predictions_by_recipe(paths, data["fingerprint"]), []
    for first, second in combinations(sorted(tables), 2):
        seeds = sorted(tables[first].keys() & tables[second].keys())
        for chosen in [[seed] for seed in seeds] + [seeds] * (len(seeds) > 1):
            gain = accuracy_difference(
                [(tables[first][seed], tables[second][seed]) for seed in chosen]
            )
            row = {name: data[name] for name in ("corpus", "split")}
            row |= {"recipe": second[0], "compared_with": first[0]}
            row |= {"seeds": ", ".join(map(str, chosen))}
            rows += [row | {"measure": name} | values for name, values in gain.items()]
    table = pd.DataFrame(rows)
    if len(table):
        table["p_holm"] = table.groupby(["seeds", "measure"])["p_value"].transform(holm)
    return table


def _predictions_by_recipe(
    paths: RunPaths, fingerprint: str
) -> dict[tuple, dict[int, pd.DataFrame]]:
    """Return the predictions made on arrays, by seed, of each recipe with the same changes."""
    found = {}
    for result in training_results(paths, fingerprint):
        table = paths.metrics / f"predictions_{result['checkpoint']}.csv"
        if table.exists() and not result["parameters"]["random_labels"]:
            changes = json.dumps(result["parameters"]["CHANGES"], sort_keys=True)
            by_seed = found.setdefault((result["recipe"] + result["suffix"], changes), {})
            by_seed[result["seed"]] = read_csv(table, dtype={"track": str})  # 1970.1 is not 1970.10
    return found


def training_results(paths: RunPaths, fingerprint: str) -> list[dict]:
    """Return the content of each `training_*.json` of a run that was trained on these arrays."""
    results = map(read_json, sorted(paths.metrics.glob("training_*.json")))
    return [result for result in results if result["fingerprint"] == fingerprint]


def training_rows(paths: RunPaths, fingerprint: str) -> pd.DataFrame:
    """Return one row per checkpoint of a run that was trained on these arrays, ordered by name."""
    return pd.DataFrame(map(_training_row, training_results(paths, fingerprint)))


def readable_trainings(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a table to read: recipe, seed, epochs and both accuracies in percent, by checkpoint.

    `rows` come from `training_rows`.
    """
    table = rows.set_index("checkpoint")[["recipe", "seed", "epochs", "changes"]]
    for measure in ACCURACIES:
        unit = measure.split("_")[0]
        columns = rows[[measure, f"{unit}_low", f"{unit}_high"]].itertuples(index=False)
        table[f"{unit}s correct"] = [percent(*values) for values in columns]
    return table


def check_current(paths: RunPaths, fingerprint: str) -> None:
    """Raise ValueError if a run has results of other arrays, or of an earlier training.

    Accuracies, attacks and explanations are joined by the names of checkpoints: all must be of the
    same ones. `fingerprint` is that of the run's arrays.
    """
    trained = {result["checkpoint"]: result for result in training_results(paths, fingerprint)}
    table = paths.metrics / "training.csv"
    if table.exists() and (old := set(read_csv(table)["checkpoint"]) - set(trained)):
        raise _outdated(table, min(old), "make train RUN={}")
    for file, command in MEASURED_BY.items():
        for checkpoint, facts in _evaluated(paths.metrics / file, trained):
            newest = trained.get(checkpoint, {"key": None})
            if name := facts.get("pretrained"):
                newest = {"key": read_card(name)["sha256"]}
            if newest.get("key", facts["key"]) != facts["key"]:
                raise _outdated(paths.metrics / file, checkpoint, command)
    pairs = paths.metrics / "near_copies.csv"
    if pairs.exists() and (read_csv(pairs)["fingerprint"] != fingerprint).any():
        raise _outdated(pairs, "the split", "python -m benchmarks.near_copies {}")


def _evaluated(file: Path, trained: dict[str, dict]) -> list[tuple[str, dict]]:
    """Return checkpoint and facts of the networks of a file of results; none without the file.

    Of tables only those that are `trained` in this run: others' keys cannot be looked up.
    """
    if not file.exists():
        return []
    if file.suffix == ".json":
        return list(read_json(file)["checkpoints"].items())
    rows = read_csv(file).query("checkpoint in @trained")
    return [(row["checkpoint"], {"key": row["key"]}) for row in rows.to_dict("records")]


def _outdated(file: Path, checkpoint: str, command: str) -> ValueError:
    """Return the error for a result of a checkpoint or of arrays that were made again since."""
    return ValueError(
        f"{from_root(file)} has {checkpoint} as it was before the arrays or the checkpoint were "
        f"made again: run `{command.format(file.parent.name)}`."
    )


def _training_row(result: dict) -> dict:
    """Return the row of one training: accuracies with their intervals."""
    row = {key: result[key] for key in ("corpus", "split")} | {
        "recipe": result["recipe"] + result["suffix"],
        "seed": result["seed"],
        "epochs": result["epochs"],
    }
    for measure in ACCURACIES:
        values = result["test"][measure]
        row |= {measure: values["value"]}
        row |= {f"{measure.split('_')[0]}_{end}": values[end] for end in ("low", "high")}
    recall = result["test"]["macro_recall"]
    return row | {
        "macro_recall": recall["segment"],
        "n_tracks": result["test"]["track_accuracy"]["n_tracks"],
        "track_macro_recall": recall["track"],
        "checkpoint": result["checkpoint"],
        "changes": json.dumps(result["parameters"]["CHANGES"]),
    }
