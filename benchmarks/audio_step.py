"""`python -m benchmarks.audio_step RUN AUDIO_RUN`: log-mels, audio and corrupted audio.

Evaluates networks of `pretrained/` (all, or those after `--networks`) on the test tracks that none
of them was trained on: segments of both runs into `results/metrics/<AUDIO_RUN>/audio_step.csv`,
corruptions of the audio into `corruptions.csv`.
"""

import argparse
import sys

import numpy as np
import pandas as pd
from torch import nn

from src import plots
from src.attacks.corruptions import corrupt_segments, corruption_table
from src.data.corpus import corpus_of, load_tracks
from src.data.segments import Segments, load_metadata
from src.models.evaluation import predict_logits
from src.models.runs import load_networks
from src.models.unseen import unseen_test
from src.models.zoo import PREFIX, pretrained_names
from src.paths import RunPaths
from src.results import write_csv
from src.runtime import prepare_process
from src.statistics import difference_over_tracks, holm, mean_over_tracks

CORRUPTED = 3  # segments per track
SEED = 42


def main(arguments: list[str]) -> int:
    """Write and print the table; return 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.audio_step", description=__doc__)
    parser.add_argument("log_mels", help="run of log-mels")
    parser.add_argument("audio", help="run of the audio of some of its tracks")
    parser.add_argument("--networks", nargs="+", default=pretrained_names(), metavar="NAME")
    options = parser.parse_args(arguments)
    prepare_process()
    runs = {"log-mels": RunPaths(options.log_mels), "audio": RunPaths(options.audio)}
    networks = load_networks(runs["audio"], [PREFIX + name for name in options.networks])
    tests = {name: unseen_test(paths, networks) for name, paths in runs.items()}
    table = compare_inputs(networks, tests)
    write_csv(runs["audio"].metrics / "audio_step.csv", table)
    print(table.to_string(index=False))
    few = tests["audio"].sample(CORRUPTED * len(set(tests["audio"].tracks)), SEED)
    corrupted = evaluate_corruptions(runs["audio"], networks, few)
    write_csv(runs["audio"].metrics / "corruptions.csv", corrupted)
    title = f"Which corruptions cost accuracy? Percent of {len(few)} segments"
    figure = plots.per_checkpoint(plots.corruptions, corrupted, title, height=4.6)
    corpus = load_metadata(runs["audio"])["corpus"]
    plots.save_figure(figure, runs["audio"].figures / "corruptions.png", corpus)
    return 0


def compare_inputs(networks: dict, tests: dict[str, Segments]) -> pd.DataFrame:
    """Return accuracy per network on log-mels and audio of the segments that both have.

    Rows of audio have the difference to the log-mels, paired over tracks, and its p-value,
    corrected for the number of networks (Holm).
    """
    shared = set(tests["log-mels"].tracks) & set(tests["audio"].tracks)
    rows = []
    for checkpoint, (model, _) in networks.items():
        right = {name: correct(model, test, shared) for name, test in tests.items()}
        paired = pd.concat(right, axis=1, join="inner")
        tracks = paired.index.get_level_values("track")
        step = difference_over_tracks(paired["log-mels"], paired["audio"], tracks)
        changes = {f"difference_{key}": step[key] for key in ("value", "low", "high", "p_value")}
        for name in tests:
            found = mean_over_tracks(paired[name], tracks)
            row = {"checkpoint": checkpoint.removeprefix("pretrained_"), "input": name}
            row |= {"accuracy": found.pop("value")} | found
            rows.append(row | (changes if name == "audio" else {}))
    table = pd.DataFrame(rows)
    table["difference_p_holm"] = holm(table["difference_p_value"].astype(float))
    return table


def correct(model: nn.Module, test: Segments, tracks: set[str]) -> pd.Series:
    """Return whether segments of some tracks are predicted correctly, by track and place in it."""
    data = test.take(np.flatnonzero(np.isin(test.tracks, list(tracks))))
    right = predict_logits(model, data.X).argmax(axis=1) == data.y
    place = data.table.groupby("track").cumcount()
    return pd.Series(
        right, pd.MultiIndex.from_arrays([data.tracks, place], names=["track", "place"])
    )


def evaluate_corruptions(paths: RunPaths, networks: dict, few: Segments) -> pd.DataFrame:
    """Return accuracy per network, corruption and severity, as notebook 3 does for its own."""
    made = corrupt_segments(corpus_of(paths), load_tracks(paths), few.table, SEED)
    models = {name: model for name, (model, _) in networks.items()}
    where = {name: load_metadata(paths)[name] for name in ("corpus", "split")}
    return corruption_table(models, made, few, **where)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
