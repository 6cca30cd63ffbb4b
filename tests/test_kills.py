"""Stages of a tiny run that are killed at random moments end as undisturbed ones.

`python -m tests.test_kills` runs the stages: each line of its standard input, `STAGE SECONDS
FOLDER`, starts a process, forked from one that has imported all that is needed. It executes the
cells of a stage's notebook with a slim network and stand-ins for figures, which take long to draw;
`FOLDER` stands for the repository and holds `corpus`. It is killed after so many seconds, or never
(0); its exit code is printed.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from unittest import mock

import librosa
import nbformat
import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from joblib import parallel_config
from matplotlib.figure import Figure

from src.data.features import SAMPLE_RATE
from src.data.segments import load_metadata, load_split
from src.effort import Effort
from src.models import cnn
from src.paths import NOTEBOOKS, STAGES, RunPaths
from src.pipeline import defaults_of
from src.results import read_json

N_KILLS = {"explore": 2, "preprocess": 2, "train": 2, "attack": 1, "explain": 1}
CAMPAIGN = dict.fromkeys(STAGES, 50)
SEED = int(os.environ.get("KILLS_SEED", 0))
RUN = "kills"
NAME = "documented"
TINY = {
    "DATASET": "corpus",
    "RUN": RUN,
    "RECIPES": [NAME],
    "CHANGES": {"epochs": 4, "batch_size": 8, "lr": 0.02},
    "CHECKPOINTS": [NAME],
    "EPSILONS": [0.01, 0.1],
    "SUITE_EPSILONS": [0.01],
    "EFFORT_CHANGES": dict.fromkeys(Effort._fields, 1)
    | {"n_segments": 4, "iterations": 2, "n_audio": 2, "n_explained": 4},
    "SNR_DB": [40],
}


def make_corpus(folder: Path) -> None:
    """Write two genres of seven tracks, two segments each: noise, and noise with a tone."""
    for number in range(14):
        genre = ("blues", "rock")[number % 2]
        path = folder / "corpus" / genre / f"{genre}.{number // 2:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = np.random.default_rng(number).uniform(-0.5, 0.5, round(6.2 * SAMPLE_RATE))
        tone = np.sin(np.arange(len(samples)) / 20)
        sf.write(path, samples + 0.3 * tone * (genre == "rock"), SAMPLE_RATE)


def execute(stage: str) -> None:
    """Execute the cells of a stage's notebook with the parameters of a tiny run."""
    space = {}
    for cell in cells_of(stage):
        exec(compile(cell.source, stage, "exec"), space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= {name: value for name, value in TINY.items() if name in space}


def save_stand_in(figure: Figure, path: Path, **_) -> None:
    """Write how many axes a figure has, in the place of its picture."""
    path.write_bytes(len(figure.axes).to_bytes(4, "big") * 2000)


def cells_of(stage: str) -> list:
    """Return the cells of code of a stage's notebook."""
    notebook = nbformat.read(NOTEBOOKS / f"{STAGES[stage]}.ipynb", as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run_and_leave(stage: str, folder: Path) -> None:
    """Run a stage with `folder` for the repository, then leave the process."""
    code = 1
    try:
        with ExitStack() as patches:
            for name in ("src.paths.ROOT", "src.data.corpus.ROOT"):
                patches.enter_context(mock.patch(name, folder))
            patches.enter_context(mock.patch.object(Figure, "savefig", save_stand_in))
            patches.enter_context(mock.patch.multiple(cnn, WIDTHS=(4, 4, 4, 4), DENSE=(8, 8)))
            patches.enter_context(parallel_config("sequential"))
            patches.enter_context(redirect_stdout(sys.stderr))
            execute(stage)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def serve() -> None:
    """Fork a process for each line of the standard input, kill it in time, print how it ended."""
    for stage in STAGES:
        exec(cells_of(stage)[0].source, {})  # the imports
    librosa.feature.melspectrogram(y=np.zeros(4096))  # what librosa imports late
    print("ready", flush=True)
    for line in sys.stdin:
        stage, seconds, folder = line.rstrip("\n").split(" ", maxsplit=2)
        child = os.fork()
        if child == 0:
            run_and_leave(stage, Path(folder))
        print(end_of(child, float(seconds)), flush=True)


def end_of(child: int, seconds: float) -> int:
    """Wait for a process, killed after so many seconds if it still runs; return its exit code."""
    begin = time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if seconds and time.monotonic() > begin + seconds:
            os.kill(child, signal.SIGKILL)  # not waited for yet: the number is still its own
        time.sleep(0.001)


@pytest.fixture(name="run", scope="module")
def _run(tmp_path_factory):
    """Return a function that runs a stage, killed after some seconds; it returns the exit code."""
    told = tmp_path_factory.mktemp("told") / "errors.txt"
    with told.open("w") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.test_kills"],
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
    paths = RunPaths(RUN)
    if (paths.processed / "metadata.json").exists():
        load_metadata(paths)
        for split in ("train", "val", "test"):
            load_split(paths, split)


@pytest.fixture(name="undisturbed", scope="module")
def _undisturbed(run, tmp_path_factory):
    """Return by stage: the folder as it was before, what it holds after, the seconds between."""
    folder, runs = tmp_path_factory.mktemp("undisturbed") / "repository", {}
    make_corpus(folder)
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
    assert set(TINY) - known == set()


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
    make_corpus(tmp_path)
    assert [run(stage, tmp_path) for stage in STAGES] == [0] * len(STAGES)
    again, (_, expected, _) = contents(tmp_path), undisturbed["explain"]
    assert again == expected
    assert len([name for name in again if name.endswith((".json", ".csv"))]) > 20


if __name__ == "__main__":
    serve()
