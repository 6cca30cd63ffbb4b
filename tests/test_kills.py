import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import soundfile as sf
import torch

from src.data.segments import load_metadata, load_split
from src.paths import STAGES, RunPaths
from src.pipeline import defaults_of
from src.results import read_json
from tests import kills

N_KILLS = {"explore": 2, "preprocess": 2, "train": 2, "attack": 1, "explain": 1}
CAMPAIGN = dict.fromkeys(STAGES, 50)
SEED = int(os.environ.get("KILLS_SEED", 0))


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory):
    """Return a function that runs a stage, killed after some seconds; it returns the exit code."""
    told = tmp_path_factory.mktemp("told") / "errors.txt"
    with told.open("w") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.kills"],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"MPLBACKEND": "agg"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert server.stdout.readline() == "ready\n", told.read_text()

    def run(stage, folder, seconds=0):
        print(stage, seconds, folder, file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        assert code in (0, -signal.SIGKILL), told.read_text()[-3000:]
        return code

    yield run
    server.stdin.close()
    server.wait()


def is_read(path):
    """Tell whether a file of a run is of its results: neither of the corpus nor a hidden part."""
    return path.parts[0] != "corpus" and not any(part.startswith(".") for part in path.parts)


def contents(folder):
    """Map every file of a run to a hash of its content: of tensors, and of results but for times.

    A training's history tells how long its epochs took, and nothing else does.
    """
    hashes, found = {".pt": _hash_of_weights, ".json": _hash_without_times}, {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and is_read(path.relative_to(folder)):
            hash_of = hashes.get(path.suffix, lambda path: _hash(path.read_bytes()))
            found[path.relative_to(folder).as_posix()] = hash_of(path)
    found.pop("results/models/kills/documented/state.pt", None)  # holds times
    return found


def _hash(content):
    return hashlib.sha256(content).hexdigest()


def _hash_of_weights(path):
    weights = torch.load(path, weights_only=True).get("weights", {})
    return _hash(b"".join(tensor.numpy().tobytes() for tensor in weights.values()))


def _hash_without_times(path):
    """Return a hash of JSON, in which the seconds of each epoch do not count."""
    content = read_json(path)
    for epoch in content.get("history", ()):
        assert epoch.pop("seconds") > 0
    return _hash(json.dumps(content).encode())


def check_no_half_file_is_read(folder):
    """Read all that stands under its final name: it is whole, or refused as missing."""
    for path in folder.rglob("*"):
        if not is_read(path.relative_to(folder)):
            continue
        if path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".csv":
            pd.read_csv(path)
        elif path.suffix == ".wav":
            sf.read(path)
    paths = RunPaths(kills.RUN)
    if (paths.processed / "metadata.json").exists():
        load_metadata(paths)
        for split in ("train", "val", "test"):
            load_split(paths, split)


@pytest.fixture(name="undisturbed", scope="module")
def _undisturbed(run, tmp_path_factory):
    """Return by stage: the folder as it was before, what it holds after, the seconds between."""
    folder, runs = tmp_path_factory.mktemp("undisturbed") / "repository", {}
    kills.make_corpus(folder)
    for stage in STAGES:
        before = folder.with_name(f"before_{stage}")
        shutil.copytree(folder, before)
        begin = time.perf_counter()
        assert run(stage, folder) == 0
        runs[stage] = before, contents(folder), time.perf_counter() - begin
    return runs


def check_it_ends_as_expected(run, stage, folder, expected):
    """Run a stage to its end: its files are those of an undisturbed run."""
    assert run(stage, folder) == 0
    assert contents(folder) == expected
    assert not list(folder.rglob(".part"))


def test_a_killed_run_changes_no_parameter_that_its_notebooks_lack():
    known = {name for stage in STAGES for name in defaults_of(stage)}
    assert set(kills.TINY) - known == set()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "n_kills", [N_KILLS, pytest.param(CAMPAIGN, marks=pytest.mark.long)], ids=["few", "many"]
)
def test_a_killed_stage_ends_as_an_undisturbed_one(
    n_kills, stage, undisturbed, run, tmp_path, monkeypatch
):
    before, expected, seconds = undisturbed[stage]
    folder = tmp_path / "repository"
    shutil.copytree(before, folder)
    monkeypatch.setattr("src.paths.ROOT", folder)
    moments, killed = random.Random(f"{stage} {SEED}"), 0
    while killed < n_kills[stage]:
        moment = moments.uniform(0, seconds)
        code = run(stage, folder, moment)
        check_no_half_file_is_read(folder)
        killed += code == -signal.SIGKILL
        seconds = moment if code == 0 else seconds  # it had ended by then
        if code == 0 or killed % 5 == 0:  # it ended first, or is to start anew
            check_it_ends_as_expected(run, stage, folder, expected)
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
    check_it_ends_as_expected(run, stage, folder, expected)


def test_the_same_seed_gives_the_same_results_to_the_bit(undisturbed, run, tmp_path):
    kills.make_corpus(tmp_path)
    assert [run(stage, tmp_path) for stage in STAGES] == [0] * len(STAGES)
    again, (_, expected, _) = contents(tmp_path), undisturbed["explain"]
    assert again == expected
    assert len([name for name in again if name.endswith((".json", ".csv"))]) > 20
