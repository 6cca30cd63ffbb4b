"""Run stages on a tiny corpus and kill them: `python -m tests.kills`, then `STAGE SECONDS FOLDER`.

`FOLDER` stands for the repository: it holds `corpus`, and everything is written below it. The
stages do what notebooks 1 to 3 do, without their figures, with a slim network. Each line of the
standard input starts a process, forked from one that has imported all that is needed. It is killed
after so many seconds (0: never); its exit code is printed.
"""

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile as sf

from src.data import corpus as corpora
from src.data import splits
from src.data.frontend import SAMPLE_RATE
from src.data.loader import SegmentDataset, file_hash, load_metadata, load_split
from src.data.preprocessor import write_processed
from src.models import cnn, trainer
from src.models.recipes import DOCUMENTED
from src.paths import RunPaths
from src.results import write_csv, write_json

RUN = "kills"
RECIPE = DOCUMENTED | {"epochs": 4, "batch_size": 8}


def make_corpus(folder: Path) -> None:
    """Write two genres of seven tracks of noise, two segments each."""
    for number in range(14):
        genre = ("blues", "rock")[number % 2]
        path = folder / "corpus" / genre / f"{genre}.{number // 2:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = np.random.default_rng(number).uniform(-0.5, 0.5, round(6.2 * SAMPLE_RATE))
        sf.write(path, samples, SAMPLE_RATE)


def explore(folder: Path) -> None:
    """Audit the corpus into `source.json` and `tracks.csv`."""
    paths = RunPaths(RUN)
    corpora.claim_run(paths, folder / "corpus", "corpus")
    write_csv(paths.processed / "tracks.csv", corpora.audit(folder / "corpus"))


def preprocess(folder: Path) -> None:
    """Write arrays, table and metadata."""
    paths = RunPaths(RUN)
    tracks = corpora.load_tracks(paths)
    tracks["split"] = splits.split(tracks, "random", "", 0)
    facts = {"tracks_sha256": file_hash(paths.processed / "tracks.csv")}
    write_processed(folder / "corpus", tracks, paths.processed, facts)


def train(folder: Path) -> None:
    """Train a slim network for some epochs; write its checkpoint and history."""
    paths = RunPaths(RUN)
    metadata = load_metadata(paths)
    data = [SegmentDataset(*load_split(paths, split)[:2]) for split in ("train", "val")]
    facts = {key: metadata[key] for key in ("genres", "fingerprint")}
    with mock.patch.multiple(cnn, WIDTHS=(4, 4, 4, 4), DENSE=(8, 8)):
        history = trainer.fit(*data, paths.models, **facts, seed=0, recipe=RECIPE)
    told = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]
    write_json(paths.metrics / "training.json", {"history": told})


STAGES = {"explore": explore, "preprocess": preprocess, "train": train}


def run(stage: str, folder: Path) -> None:
    """Run a stage with `folder` for the repository, then leave the process."""
    code = 1
    try:
        with mock.patch("src.paths.ROOT", folder), mock.patch("src.data.corpus.ROOT", folder):
            STAGES[stage](folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    """Fork a process for each line of the standard input, kill it in time, print how it ended."""
    print("ready", flush=True)
    for line in sys.stdin:
        stage, seconds, folder = line.rstrip("\n").split(" ", maxsplit=2)
        child = os.fork()
        if child == 0:
            run(stage, Path(folder))
        if float(seconds):
            time.sleep(float(seconds))
            os.kill(child, signal.SIGKILL)  # not waited for yet: the number is still its own
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
