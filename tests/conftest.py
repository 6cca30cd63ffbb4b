import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # of every process: as many workers as cores run tests

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from filelock import FileLock
from playwright.sync_api import sync_playwright

from src import runtime
from src.attacks.records import make_target
from src.data.corpus import Corpus, audit_table, open_corpus
from src.data.preprocessor import write_processed
from src.data.segments import SegmentDataset, Segments, file_hash
from src.data.splits import split_tracks
from src.models import cnn
from src.models.checkpoints import CHECKPOINT_FILE, load_checkpoint
from src.models.evaluation import predict_logits
from src.models.recipes import Training
from src.models.trainer import fit
from src.paths import RunPaths
from src.results import write_csv

LONG = "é" * 125  # the longest name that a track may have: 250 bytes, and 255 are the limit
SLOWEST = """test_notebooks test_real_tracks test_page test_jupyter test_kills
    test_adversarial""".split()
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

SENTENCE = re.compile(r"[^\n]+: [^\n]+\.")

runtime.prepare_process()


@contextmanager
def refused(match: str = "", kind: type[Exception] = ValueError):
    """Expect an error of one sentence: the value found, the likely cause, the remedy."""
    with pytest.raises(kind, match=match) as error:
        yield error
    assert SENTENCE.fullmatch(str(error.value))


def pytest_collection_modifyitems(items):
    """Start with the slowest modules, so that all workers end at about the same time."""
    items.sort(key=lambda item: [*SLOWEST, item.path.stem].index(item.path.stem))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """Return a folder that all workers of this session share; changes need a lock."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def corpus_at(path: Path) -> Corpus:
    """Return the corpus at a path."""
    return open_corpus(str(path), 0, 0)


def audit(path: Path, n_jobs: int = 2) -> pd.DataFrame:
    """Return the audit's table of tracks of the corpus at a path."""
    return audit_table(corpus_at(path), n_jobs)


def only_row(corpus: Path):
    """Return the row of the only track of a corpus."""
    (row,) = audit(corpus, n_jobs=1).itertuples()
    return row


def planted(seed, n):
    """Return noise with tones, strokes or slanted lines for one of three genres, faint to loud."""
    rng = np.random.default_rng(seed)
    X, y = rng.random((n, 128, 130), dtype=np.float32) / 2, np.arange(n) % 3
    level = rng.uniform(0.1, 0.3, (n, 1, 1)).astype(np.float32)
    slant = np.add.outer(np.arange(128), np.arange(130)) % 8 == 0
    X[y == 0, ::8] += level[y == 0]
    X[y == 1, :, ::8] += level[y == 1]
    X[y == 2] += level[y == 2] * slant
    return X, y


@pytest.fixture(scope="session")
def slim_model(shared_folder):
    """Return a slim network that has learnt the planted patterns; one worker trains it.

    Rounding differs between CPUs, and on some the faster training never tells two patterns apart.
    """
    changes = {"epochs": 16, "batch_size": 8, "weight_decay": 0, "schedule": "one_cycle"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cnn, "WIDTHS", (8, 16, 16, 16))
        patch.setattr(cnn, "DENSE", (64, 64))
        train, val = (SegmentDataset(*planted(*how)) for how in ((1, 180), (2, 18)))
        for lr in (0.01, 0.005):
            folder = shared_folder / f"slim_model_{lr}"
            with FileLock(f"{folder}.lock"):
                training = Training("documented", changes | {"lr": lr}, "", 1, [*"abc"], "")
                history = fit(train, val, folder, training)
            if max(epoch["val_accuracy"] for epoch in history) > 0.75:
                break
        return load_checkpoint(folder / CHECKPOINT_FILE)[0]


@pytest.fixture(scope="session")
def model():
    """Return an untrained network of ten genres."""
    torch.manual_seed(0)
    return cnn.GenreClassifierCNN().eval()


@pytest.fixture
def in_precision(monkeypatch):
    """Return a function that makes training and gradients use a precision, whatever the CPU."""

    def choose(name: str) -> None:
        monkeypatch.setenv("PRECISION", name)
        runtime.fast_dtype.cache_clear()
        runtime.memory_format.cache_clear()

    yield choose
    monkeypatch.undo()
    runtime.fast_dtype.cache_clear()
    runtime.memory_format.cache_clear()


@pytest.fixture(scope="session")
def clips(slim_model):
    """Return 24 segments of six tracks, two of them predicted wrongly."""
    X, _ = planted(3, 24)
    y = predict_logits(slim_model, X).argmax(axis=1)
    y[[4, 9]] = (y[[4, 9]] + 1) % 3
    segments = pd.DataFrame({"segment": np.arange(24) * 2, "track": np.repeat([*"abcdef"], 4)})
    return Segments(X, y, segments.assign(genre=[*"abc"] * 8))


@pytest.fixture(scope="session")
def target(slim_model, clips):
    """Return the slim network with the segments that it is attacked on."""
    return make_target(slim_model, clips)


@pytest.fixture
def noise():
    """Return a function giving `seconds` of noise, the same for the same number."""

    def make(number: int, seconds: float = 3.5, rate: int = 22_050) -> np.ndarray:
        rng = np.random.default_rng(number)
        return rng.uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)

    return make


@pytest.fixture
def write_track(tmp_path):
    """Return a function writing samples to `<tmp_path>/corpus/<name>`, returning the corpus."""

    def write(name: str, samples: np.ndarray, rate: int = 22_050, **options) -> Path:
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, samples, rate, **options)
        return tmp_path / "corpus"

    return write


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """Return the paths of a run below a folder that stands for the repository."""
    monkeypatch.setattr("src.paths.ROOT", tmp_path)
    return RunPaths("fake")


@pytest.fixture
def written(write_track, noise, paths):
    """Return the paths of a run whose arrays were written."""
    for number in range(14):
        genre = "ab"[number % 2]
        corpus = write_track(f"{genre}/{genre}.{number // 2:05d}.wav", noise(number))
    tracks = audit(corpus)
    file = write_csv(paths.processed / "tracks.csv", tracks)
    tracks["split"] = split_tracks(tracks, 0)
    facts = {"corpus": "corpus", "run": "fake", "split": "random", "seed": 0}
    facts["tracks_sha256"] = file_hash(file)
    write_processed(corpus_at(corpus), tracks, paths.processed, facts)
    return paths


@pytest.fixture
def intervals_of_any(monkeypatch):
    """Let two tracks have an interval, so that it can be counted by hand."""
    monkeypatch.setattr("src.statistics.FEWEST_TRACKS", 2)


@pytest.fixture(scope="module")
def browser():
    """Return Debian's Chromium, driven by Playwright."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium brings one")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()
