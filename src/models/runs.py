"""Networks of a run: loaded by name, or trained by a recipe.

`accelerate launch -m src.models.runs gtzan robust` trains in several processes or machines what
notebook 3 trains in one, and the notebook then finds it done.
"""

import argparse
import json
import re
import sys
from typing import NamedTuple

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from src.data.segments import SegmentDataset, load_metadata, load_split, load_whole_tracks
from src.models import recipes, zoo
from src.models.augment import CropDataset, shuffled_labels
from src.models.checkpoints import load_checkpoint
from src.models.cnn import GenreClassifierCNN
from src.models.comparison import training_results
from src.models.own import load_own, takes_samples
from src.models.trainer import fit
from src.paths import RunPaths
from src.runtime import prepare_process


class Trained(NamedTuple):
    """A network with the facts of its checkpoint and its history, one dict an epoch."""

    model: GenreClassifierCNN
    checkpoint: dict
    history: list[dict]


def load_named(paths: RunPaths, name: str) -> tuple[nn.Module, dict]:
    """Return a network and its facts: a checkpoint of the run, or one from elsewhere.

    `name` is that of the checkpoint, `pretrained/<name>` for a network that comes with the
    repository, or `package.module:function` (`src.models.own`).

    Raises FileNotFoundError if it was not trained, ValueError if the arrays or the genres are other
    ones.
    """
    data = load_metadata(paths)
    if ":" in name:
        return load_own(name, len(data["genres"])), {"name": name, "key": None}
    if not name.startswith(zoo.PREFIX):
        return load_checkpoint(paths.checkpoint(name), data["fingerprint"])
    facts = zoo.network_facts(name.removeprefix(zoo.PREFIX))
    if facts["genres"] != data["genres"]:
        raise ValueError(
            f"{name} was trained on the genres {', '.join(facts['genres'])}, run {paths.run} has "
            f"{', '.join(data['genres'])}: name the folders of its corpus as these, or train anew."
        )
    return zoo.load_pretrained(facts["pretrained"]), facts


def load_networks(
    paths: RunPaths, names: list[str], own: bool = True
) -> dict[str, tuple[nn.Module, dict]]:
    """Return networks and facts, as `load_named` does, by the names they have in results.

    Raises ValueError for networks on samples, and without `own` for all from outside: explanations
    read their layers.
    """
    if outside := [name for name in names if ":" in name and not own]:
        raise ValueError(
            f"{outside[0]} has no layers that are known here, which explanations read: leave it "
            "out of CHECKPOINTS; `make attack` evaluates it."
        )
    loaded = {result_name(name): load_named(paths, name) for name in names}
    if on_samples := [name for name in names if takes_samples(loaded[result_name(name)][0])]:
        raise ValueError(
            f"{on_samples[0]} takes samples, not log-mels: `make evaluate MODEL={on_samples[0]}` "
            "evaluates it on audio."
        )
    return loaded


def result_name(name: str) -> str:
    """Return the name of a network in results and files, which have no `/` and `:`."""
    return re.sub("[/:]", "_", name)


def load_trained(paths: RunPaths) -> dict[str, GenreClassifierCNN]:
    """Return all models of a run that were trained on its arrays, by checkpoint name.

    Trainings whose checkpoint was deleted are left out.
    """
    fingerprint = load_metadata(paths)["fingerprint"]
    names = [result["checkpoint"] for result in training_results(paths, fingerprint)]
    return {name: load_named(paths, name)[0] for name in names if paths.checkpoint(name).exists()}


def train_recipe(paths: RunPaths, name: str, changes: dict, suffix: str, seed: int) -> Trained:
    """Train a recipe on the arrays of a run into `results/models/<run>/<checkpoint>/`.

    `changes` replace parameters of the recipe. A finished training is read, an interrupted one is
    resumed. Raises ValueError for an unknown recipe or parameter and FileNotFoundError if the
    checkpoint to start from is missing.
    """
    metadata = load_metadata(paths)
    facts = metadata["genres"], metadata["fingerprint"]
    training = recipes.Training(name, changes, suffix, seed, *facts)
    source, validation = training.recipe["start_from"], load_split(paths, "val")
    history = fit(
        _training_data(paths, training.recipe, seed),
        SegmentDataset(validation.X, validation.y),
        paths.models / training.checkpoint,
        training,
        load_named(paths, recipes.checkpoint_name(source, "", seed))[0] if source else None,
    )
    return Trained(*load_named(paths, training.checkpoint), history)


def _training_data(paths: RunPaths, recipe: dict, seed: int) -> Dataset:
    """Return the segments or crops and labels that a recipe is trained on."""
    if recipe["crops"]:
        tracks, lengths, y = load_whole_tracks(paths)
        if recipe["crop_frames"] > lengths.min():
            raise ValueError(
                f"CROP_FRAMES={recipe['crop_frames']} exceeds the {lengths.min()} frames of the "
                "shortest training track: give at most these."
            )
        numbers = np.arange(len(y))
    else:
        data = load_split(paths, "train")
        y, numbers = data.y, data.tracks
    if recipe["random_labels"]:
        y = shuffled_labels(y, numbers, seed)
    if recipe["crops"]:
        return CropDataset(tracks, lengths, y, recipe["crop_frames"])
    return SegmentDataset(data.X, y)


def main(arguments: list[str]) -> int:
    """Train recipes from the command line, as notebook 3 does by default; return 0."""
    parser = argparse.ArgumentParser(prog="src.models.runs", description=__doc__)
    parser.add_argument("run", help="name of the run's folders")
    parser.add_argument("recipes", nargs="+", help=f"of {', '.join(recipes.RECIPES)}")
    parser.add_argument("--seed", type=int, default=recipes.DEFAULT_SEED)
    parser.add_argument("--changes", type=json.loads, default={}, help="as JSON")
    parser.add_argument("--suffix", default="")
    options = parser.parse_args(arguments)
    prepare_process()
    try:
        for name in options.recipes:
            train_recipe(RunPaths(options.run), name, options.changes, options.suffix, options.seed)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
