"""Run stages on a tiny corpus and kill them: `python -m tests.kills`, then `STAGE SECONDS FOLDER`.

`FOLDER` stands for the repository: it holds `corpus`, and everything is written below it. The
first three stages do what notebooks 1 to 3 do, without their figures, with a slim network; `attack`
and `explain` execute the cells of notebooks 4 and 5, in one process, with stand-ins for figures,
which take long to draw. Each line of the standard input starts a process, forked from one that has
imported all that is needed. It is killed after so many seconds (0: never); its exit code is
printed.
"""

import os
import signal
import sys
import time
import traceback
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from unittest import mock

import librosa
import nbformat
import numpy as np
import soundfile as sf
from joblib import parallel_config
from matplotlib.figure import Figure

from src.data import corpus as corpora
from src.data import splits
from src.data.frontend import SAMPLE_RATE
from src.data.loader import SegmentDataset, file_hash, load_metadata, load_split
from src.data.preprocessor import write_processed
from src.models import cnn, trainer
from src.models.recipes import DOCUMENTED
from src.paths import NOTEBOOKS, RunPaths
from src.paths import STAGES as FILES
from src.results import write_csv, write_json

RUN = "kills"
NAME = "documented"
RECIPE = DOCUMENTED | {"epochs": 4, "batch_size": 8, "lr": 0.02}
TINY = {
    "RUN": RUN,
    "CHECKPOINTS": [NAME],
    "EPSILONS": [0.01, 0.1],
    "SUITE_EPSILONS": [0.01],
    "ITERATIONS": 2,
    "N_SEGMENTS": 4,
    "N_RESTARTS": 1,
    "SQUARE_QUERIES": 1,
    "N_HARD_LABEL": 1,
    "HARD_LABEL_STEPS": 1,
    "N_BISECTED": 1,
    "N_TRACKS": 1,
    "N_CORRUPTED": 1,
    "N_AUDIO_CLIPS": 2,
    "N_SONGS": 1,
    "SNR_DB": [40],
    "MASKING_MARGINS_DB": [0],
    "AUDIO_ITERATIONS": 1,
    "PER_GENRE": 1,
    "N_FAILURES": 1,
    "N_CLIPS": 4,
    "METHOD_CLIPS": 1,
    "SLOW": {"scorecam": 1, "integrated_gradients": 1, "road": 1},
    "N_LISTEN": 1,
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
    facts = {"corpus": "noise", "run": RUN, "split": "random"}
    facts["tracks_sha256"] = file_hash(paths.processed / "tracks.csv")
    write_processed(folder / "corpus", tracks, paths.processed, facts)


def train(folder: Path) -> None:
    """Train a slim network for some epochs; write its checkpoint and history."""
    paths = RunPaths(RUN)
    metadata = load_metadata(paths)
    data = [SegmentDataset(*load_split(paths, split)[:2]) for split in ("train", "val")]
    facts = {key: metadata[key] for key in ("genres", "fingerprint")}
    history = trainer.fit(*data, paths.models / NAME, **facts, seed=0, recipe=RECIPE)
    told = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]
    write_json(paths.metrics / "training.json", {"history": told})


def attack(folder: Path) -> None:
    """Execute notebook 4."""
    execute("attack")


def explain(folder: Path) -> None:
    """Execute notebook 5."""
    execute("explain")


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
    notebook = nbformat.read(NOTEBOOKS / f"{FILES[stage]}.ipynb", as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


STAGES = {
    "explore": explore,
    "preprocess": preprocess,
    "train": train,
    "attack": attack,
    "explain": explain,
}


def run(stage: str, folder: Path) -> None:
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
            STAGES[stage](folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    """Fork a process for each line of the standard input, kill it in time, print how it ended."""
    for stage in ("attack", "explain"):
        exec(cells_of(stage)[0].source, {})  # the imports
    librosa.feature.melspectrogram(y=np.zeros(4096))  # what librosa imports late
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
