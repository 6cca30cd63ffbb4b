"""Training the recipes of a run, and their results side by side.

`accelerate launch -m src.models.runs gtzan robust` trains in several processes or machines what
notebook 3 trains in one, and the notebook then finds it done.
"""

import argparse
import json
import sys
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch.utils.data import Dataset

from src.data.loader import SegmentDataset, load_metadata, load_split, load_whole_tracks
from src.models import recipes
from src.models.augment import CropDataset, shuffled_labels
from src.models.checkpoints import CHECKPOINT_FILE, load_checkpoint
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import vote
from src.models.trainer import fit
from src.paths import RunPaths
from src.results import read_json
from src.runtime import prepare_process
from src.statistics import difference_over_tracks

ACCURACIES = ("clip_accuracy", "song_accuracy")


class Trained(NamedTuple):
    """A network with the facts of its checkpoint and its history, one dict an epoch."""

    model: GenreClassifierCNN
    checkpoint: dict
    history: list[dict]


def load_named(paths: RunPaths, name: str) -> tuple[GenreClassifierCNN, dict]:
    """Return a network of a run by its checkpoint's name, and the facts saved with it.

    Raises FileNotFoundError if it was not trained, ValueError if the arrays are other ones.
    """
    fingerprint = load_metadata(paths)["fingerprint"]
    return load_checkpoint(paths.models / name / CHECKPOINT_FILE, fingerprint)


def train_recipe(paths: RunPaths, name: str, changes: dict, suffix: str, seed: int) -> Trained:
    """Train a recipe on the arrays of a run into `results/models/<run>/<name><suffix>/`.

    `changes` replace parameters of the recipe; what it starts from has the same suffix. What was
    trained already is read; what was interrupted is gone on with. Raises ValueError for an unknown
    recipe or parameter and FileNotFoundError if the checkpoint to start from is missing.
    """
    recipe = recipes.recipe(name, changes)
    metadata = load_metadata(paths)
    source = recipe["start_from"]
    folder = paths.models / (name + suffix)
    history = fit(
        _training_data(paths, recipe, seed),
        SegmentDataset(*load_split(paths, "val")[:2]),
        folder,
        genres=metadata["genres"],
        fingerprint=metadata["fingerprint"],
        seed=seed,
        recipe=recipe,
        start=load_named(paths, source + suffix)[0] if source else None,
    )
    return Trained(*load_named(paths, folder.name), history)


def _training_data(paths: RunPaths, recipe: dict, seed: int) -> Dataset:
    """Return the segments or crops that a recipe learns from, with the labels that it asks for."""
    if recipe["crops"]:
        tracks, lengths, y = load_whole_tracks(paths)
        numbers, parts = np.arange(len(y)), (tracks, lengths)
    else:
        X, y, segments = load_split(paths, "train")
        numbers, parts = segments["track"].to_numpy(), (X,)
    if recipe["random_labels"]:
        y = shuffled_labels(y, numbers, seed)
    return (CropDataset if recipe["crops"] else SegmentDataset)(*parts, y)


def predictions(segments: pd.DataFrame, y: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Return one row a segment: segment, track, true and predicted genre number, song's vote.

    `probabilities` (n, n_genres); `confidence` is that of the predicted genre.
    """
    songs = vote(probabilities, segments["track"].to_numpy(), y).set_index("track")
    return pd.DataFrame(
        {
            "segment": segments["segment"].to_numpy(),
            "track": segments["track"].to_numpy(),
            "true": y,
            "predicted": probabilities.argmax(axis=1),
            "confidence": probabilities.max(axis=1),
            "song_predicted": songs["predicted"].loc[segments["track"]].to_numpy(),
        }
    )


def paired_gain(pairs: list[tuple[pd.DataFrame, pd.DataFrame]]) -> dict:
    """Return what the second table of `predictions` of each pair has over the first, by accuracy.

    One pair a seed, all of the same segments, which `n_segments` counts once a seed. The value is
    the mean over seeds; the interval is that of paired tracks, each drawn with all its seeds: it
    tells nothing of seeds not trained.
    """
    gains = {}
    for measure, column in zip(ACCURACIES, ("predicted", "song_predicted"), strict=True):
        sides = zip(*pairs, strict=True)
        if measure == "song_accuracy":
            sides = ([table.drop_duplicates("track") for table in side] for side in sides)
        sides = [pd.concat(side) for side in sides]
        right = [(table[column] == table["true"]).to_numpy() for table in sides]
        gains[measure] = difference_over_tracks(*right, sides[0]["track"].to_numpy())
    return gains


def recipe_gains(paths: RunPaths, data: dict) -> pd.DataFrame:
    """Return what each recipe has over each before it by name, on the same tracks and seeds.

    Reads all `predictions_*.csv` of a run whose `training_*.json` has the fingerprint of `data`,
    the metadata of the run's arrays. One row a pair, accuracy and seed, and one of all seeds that
    both were trained with, if these are several; recipes with other changes are other recipes. No
    rows for a single one.
    """
    told, rows = _told_by_recipe(paths, data["fingerprint"]), []
    for first, second in combinations(sorted(told), 2):
        seeds = sorted(told[first].keys() & told[second].keys())
        for chosen in [[seed] for seed in seeds] + [seeds] * (len(seeds) > 1):
            gain = paired_gain([(told[first][seed], told[second][seed]) for seed in chosen])
            row = {name: data[name] for name in ("corpus", "split")}
            row |= {"recipe": second[0], "compared_with": first[0]}
            row |= {"seeds": ", ".join(map(str, chosen))}
            rows += [row | {"measure": name} | values for name, values in gain.items()]
    return pd.DataFrame(rows)


def _told_by_recipe(paths: RunPaths, fingerprint: str) -> dict[tuple, dict[int, pd.DataFrame]]:
    """Return the predictions made on arrays, by seed, of each recipe with the same changes."""
    told = {}
    for file in sorted(paths.metrics.glob("training_*.json")):
        result = read_json(file)
        table = paths.metrics / f"predictions_{result['checkpoint']}.csv"
        if result["fingerprint"] == fingerprint and table.exists():
            changes = json.dumps(result["parameters"]["CHANGES"], sort_keys=True)
            by_seed = told.setdefault((_recipe_of(result), changes), {})
            by_seed[result["seed"]] = pd.read_csv(table)
    return told


def _recipe_of(result: dict) -> str:
    """Return a checkpoint's name without its seed, which may be the suffix: `_43`."""
    return result["checkpoint"].removesuffix(f"_{result['seed']}")


def training_rows(paths: RunPaths) -> pd.DataFrame:
    """Return one row a checkpoint of a run, of its `training_*.json`, in order of their names."""
    files = sorted(paths.metrics.glob("training_*.json"))
    return pd.DataFrame([_training_row(read_json(file)) for file in files])


def _training_row(result: dict) -> dict:
    """Return the row of one training: accuracies with their intervals."""
    row = {key: result[key] for key in ("corpus", "split")} | {
        "recipe": _recipe_of(result),
        "seed": result["seed"],
        "epochs": result["epochs"],
    }
    for measure in ACCURACIES:
        values = result["test"][measure]
        row |= {measure: values["value"]}
        row |= {f"{measure.split('_')[0]}_{end}": values[end] for end in ("low", "high")}
    recall = result["test"]["macro_recall"]
    return row | {
        "macro_recall": recall["clip"],
        "n_tracks": result["test"]["song_accuracy"]["n_tracks"],
        "song_macro_recall": recall["song"],
        "checkpoint": result["checkpoint"],
        "changes": json.dumps(result["parameters"]["CHANGES"]),
    }


def main(arguments: list[str]) -> int:
    """Train recipes from the command line, as notebook 3 does by default; return 0."""
    parser = argparse.ArgumentParser(prog="src.models.runs", description=__doc__)
    parser.add_argument("run", help="name of the run's folders")
    parser.add_argument("recipes", nargs="+", help=f"of {', '.join(recipes.RECIPES)}")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--changes", type=json.loads, default={}, help="as JSON")
    parser.add_argument("--suffix", default="")
    options = parser.parse_args(arguments)
    prepare_process()
    for name in options.recipes:
        train_recipe(RunPaths(options.run), name, options.changes, options.suffix, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
