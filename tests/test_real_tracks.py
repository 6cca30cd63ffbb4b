import os
from pathlib import Path

import pandas as pd
import pytest

from tests.test_notebooks import TINY, copy_of_the_repository, pipeline, results, slim


def test_real_tracks_go_the_whole_way(tmp_path):
    if "GTZAN_DIR" not in os.environ:
        pytest.skip("environment variable GTZAN_DIR does not name a folder of the real tracks")
    real = Path(os.environ["GTZAN_DIR"]).resolve()
    folder = slim(copy_of_the_repository(tmp_path))
    parameters = {k: v for k, v in TINY.items() if k != "TRACKS_PER_GENRE"}
    parameters |= {"RECIPES": ["documented"], "CHECKPOINTS": ["documented"]}
    parameters |= {"EPOCHS": 10, "SCHEDULE": "one_cycle", "LR": 0.002}  # two may stay at chance
    pipeline(folder, f"DATASET={real}", "RUN=tracks", **parameters)
    found = results(folder, "tracks")
    n_files = len([p for p in real.rglob("*.wav") if p.stem.startswith(f"{p.parent.name}.")])
    assert found["audit"]["n_tracks"] == n_files
    assert {result["corpus"] for result in found.values()} == {real.name}
    training = found["training_documented"]
    assert training["test"]["segment_accuracy"]["value"] > 2 * training["test"]["chance"]
    table = pd.read_csv(folder / "results/metrics/tracks/robustness.csv")
    table = table[table["checkpoint"] == "documented"].set_index(["attack", "eps"])["accuracy"]
    assert table["pgd", 0.1] < table["clean", 0] / 2
