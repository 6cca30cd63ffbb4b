"""Run stages on a tiny corpus and kill them: `python -m tests.kills`, then `STAGE SECONDS FOLDER`.

`FOLDER` stands for the repository: it holds `corpus`, and everything is written below it. A stage
executes the cells of its notebook, in one process, with a slim network and with stand-ins for
figures, which take long to draw. Each line of the standard input starts a process, forked from one
that has imported all that is needed. It is killed after so many seconds (0: never); its exit code
is printed.
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

from src.data.features import SAMPLE_RATE
from src.effort import Effort
from src.models import cnn
from src.paths import NOTEBOOKS, STAGES

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
            execute(stage)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    """Fork a process for each line of the standard input, kill it in time, print how it ended."""
    for stage in STAGES:
        exec(cells_of(stage)[0].source, {})  # the imports
    librosa.feature.melspectrogram(y=np.zeros(4096))  # what librosa imports late
    print("ready", flush=True)
    for line in sys.stdin:
        stage, seconds, folder = line.rstrip("\n").split(" ", maxsplit=2)
        child = os.fork()
        if child == 0:
            run(stage, Path(folder))
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


if __name__ == "__main__":
    main()
