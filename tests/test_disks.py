"""Full and read-only disks: the system's error in one line; earlier results stay."""

import errno
import os
import re
import resource
from contextlib import contextmanager, suppress
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from doit.exceptions import TaskFailed

from src import pipeline, results
from src.data import corpus as corpora
from src.data.preprocessor import write_processed
from src.data.segments import load_metadata
from src.data.splits import split_tracks
from src.paths import RunPaths
from src.pipeline import main
from src.plots import save_figure
from src.results import read_json, save_with, write_csv, write_json
from tests.test_pipeline import FIRST_CELL, executed, ran_by, repository, write_notebook

__all__ = ["executed", "repository"]  # fixtures

LIMIT_BYTES = 4000
TOO_LARGE = r"\[Errno 27\] File too large"
REFUSED = (OSError, RuntimeError)  # torch and libsndfile raise the latter


@contextmanager
def limited(n_bytes=LIMIT_BYTES):
    """Let no file become larger, as a disk does that is full; also for root and for children."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def draw(path):
    figure, ax = plt.subplots()
    ax.imshow(np.random.default_rng(0).random((99, 99)))
    save_figure(figure, path, "fake")


NUMBERS = np.random.default_rng(0).random(20_000)
WRITERS = {
    "a.json": lambda path: write_json(path, {"value": NUMBERS}),
    "a.csv": lambda path: write_csv(path, pd.DataFrame({"value": NUMBERS})),
    "a.npy": lambda path: save_with(path, lambda part: part.write_bytes(NUMBERS.tobytes())),
    "a.pt": lambda path: save_with(
        path, lambda part: torch.save({"weights": torch.from_numpy(NUMBERS)}, part)
    ),
    "a.wav": lambda path: save_with(path, lambda part: sf.write(part, NUMBERS, 22_050)),
    "a.png": draw,
}


@pytest.mark.parametrize(("name", "write"), WRITERS.items(), ids=WRITERS)
def test_a_full_disk_leaves_the_earlier_file(tmp_path, name, write):
    path = tmp_path / name
    path.write_text("earlier")
    with limited(), pytest.raises(REFUSED):
        write(path)
    assert path.read_text() == "earlier"
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.filterwarnings("ignore:.*tasks have been:UserWarning")  # of joblib
def test_arrays_on_a_full_disk_are_an_error_not_a_crash(written, tmp_path):
    before, metadata = (written.processed / "train" / "X.npy").read_bytes(), load_metadata(written)
    tracks = corpora.load_tracks(written)
    tracks["split"] = split_tracks(tracks, 0)
    corpus = corpora.AudioFolder(tmp_path / "corpus", "c")
    with limited(), pytest.raises(OSError, match=TOO_LARGE):
        write_processed(corpus, tracks, written.processed, {})
    assert (written.processed / "train" / "X.npy").read_bytes() == before
    assert load_metadata(written) == metadata
    assert not list(written.processed.glob(".*"))


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_folder_that_cannot_be_written_leaves_the_earlier_file(tmp_path, monkeypatch, code):
    path = write_json(tmp_path / "result.json", {"value": 1})

    def refuse(dir, **options):
        raise OSError(code, os.strerror(code), str(dir))

    monkeypatch.setattr(results.tempfile, "mkstemp", refuse)
    with pytest.raises(OSError, match=f"{os.strerror(code)}: '{tmp_path}'"):
        write_json(path, {"value": 2})
    assert read_json(path) == {"value": 1}


# The command line


@pytest.fixture(name="failures")
def _failures(monkeypatch):
    """Return the list of the sentences about stages that failed."""
    said = []
    monkeypatch.setattr(pipeline, "TaskFailed", lambda text: said.append(text) or TaskFailed(text))
    return said


def test_a_stage_that_cannot_write_ends_in_one_sentence(repository, failures):
    earlier = write_json(repository / "results" / "metrics" / "a.json", {"value": "earlier"})
    cell = f"""import importlib, resource, sys
sys.path.insert(0, {str(Path(pipeline.__file__).parents[1])!r})
results = importlib.import_module("src.results")
resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT_BYTES}, -1))
results.write_json(results.Path("results/metrics/a.json"), {{"value": list(range(5000))}})"""
    explore = repository / "notebooks" / "01_data_exploration.ipynb"
    write_notebook(explore, FIRST_CELL + 'DATASET = "x"  # corpus', cell)
    assert main(["explore", "RUN=fake"]) == 1
    found = rf"explore: OSError: {TOO_LARGE}\n\(more is in results/notebooks/fake/"
    assert re.match(found, failures[0])
    assert read_json(earlier) == {"value": "earlier"}
    assert [path.name for path in earlier.parent.iterdir()] == ["a.json"]


def test_a_copy_of_a_notebook_that_cannot_be_written_is_one_sentence(repository, failures):
    copy = RunPaths("fake").notebooks / "01_data_exploration.ipynb"
    assert main(["explore", "RUN=fake"]) == 0
    before = copy.read_bytes()
    notebook = repository / "notebooks" / copy.name
    write_notebook(notebook, FIRST_CELL + 'DATASET = "x"', "print('x' * 99_999)")
    with limited(60_000):
        assert main(["explore", "RUN=fake"]) == 1
    assert re.fullmatch(f"explore: {TOO_LARGE}", failures[0])
    assert copy.read_bytes() == before


def test_a_folder_of_the_run_that_cannot_be_made_is_told(repository):
    folder = repository / "results" / "notebooks" / "other"
    folder.write_text("a file")
    with pytest.raises(SystemExit) as refusal:
        main(["RUN=other"])
    assert refusal.value.code == f"[Errno 17] File exists: '{folder}'"


def test_notes_that_cannot_be_written_are_one_sentence_and_the_earlier_ones_stay(executed):
    ran_by(executed)
    notes = RunPaths("fake").notebooks / ".doit.db"
    before = notes.read_bytes()
    with limited(), pytest.raises(SystemExit) as refusal:
        main(["explore", "RUN=fake"])
    assert refusal.value.code == "disk I/O error"
    assert notes.read_bytes() == before


def test_a_stage_that_has_finished_stays_so_when_the_run_is_killed_after_it(executed, monkeypatch):
    working = pipeline.run_notebook

    def killed(stage, parameters, paths):
        if stage == "train":
            os._exit(9)  # as SIGKILL: nothing is tidied up
        return working(stage, parameters, paths)

    monkeypatch.setattr(pipeline, "run_notebook", killed)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            main(["RUN=fake"])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.setattr(pipeline, "run_notebook", working)
    assert ran_by(executed) == ["train", "attack", "explain"]
