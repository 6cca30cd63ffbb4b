"""`python -m benchmarks.audio_step RUN AUDIO_RUN`: log-mels against audio of the same tracks.

Evaluates the published networks on the test tracks of both runs that none of them was trained on,
into `results/metrics/<AUDIO_RUN>/audio_step.csv`.
"""

import argparse
import sys

import numpy as np
import pandas as pd

from src.models.evaluation import predict_logits
from src.models.runs import load_networks
from src.models.unseen import unseen_test
from src.models.zoo import PREFIX, pretrained_names
from src.paths import RunPaths
from src.results import write_csv
from src.runtime import prepare_process
from src.statistics import mean_over_tracks


def main(arguments: list[str]) -> int:
    """Write and print the table; return 0."""
    parser = argparse.ArgumentParser(prog="benchmarks.audio_step", description=__doc__)
    parser.add_argument("log_mels", help="run of log-mels")
    parser.add_argument("audio", help="run of the audio of some of its tracks")
    options = parser.parse_args(arguments)
    prepare_process()
    runs = {"log-mels": RunPaths(options.log_mels), "audio": RunPaths(options.audio)}
    networks = load_networks(runs["audio"], [PREFIX + name for name in pretrained_names()])
    tests = {name: unseen_test(paths, networks) for name, paths in runs.items()}
    shared = set(tests["log-mels"].tracks) & set(tests["audio"].tracks)
    rows = []
    for checkpoint, (model, _) in networks.items():
        for name, test in tests.items():
            data = test.take(np.flatnonzero(np.isin(test.tracks, list(shared))))
            right = predict_logits(model, data.X).argmax(axis=1) == data.y
            found = mean_over_tracks(right, data.tracks)
            row = {"checkpoint": checkpoint.removeprefix("pretrained_"), "input": name}
            rows.append(row | {"accuracy": found.pop("value")} | found)
    table = pd.DataFrame(rows)
    write_csv(runs["audio"].metrics / "audio_step.csv", table)
    print(table.to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
