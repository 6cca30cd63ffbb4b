"""Where everything lives: paths come from the package, never from the working directory."""

import hashlib
import os
import unicodedata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT / "data" / "raw"
NOTEBOOKS = ROOT / "notebooks"
LONGEST_NAME = 200  # bytes of a name that files are called after; with what they add, 255 at most
METRICS = ROOT / "results" / "metrics"
EMBEDDED_CORPUS = "synthetic"  # the data set that is composed here
COLLECTED = ("real", "embedded")  # folders of committed results: no names of runs
CORPORA = (EMBEDDED_CORPUS, "gtzan_mini", "gtzan")  # data sets with a name; others are paths

STAGES = {
    "explore": "01_data_exploration",
    "preprocess": "02_preprocessing",
    "train": "03_model_training",
    "attack": "04_adversarial_attacks",
    "explain": "05_gradcam_analysis",
}


class RunPaths:
    """The folders of one run; runs of other names never share a file with it.

    Attributes
    ----------
    run : its name
    processed : tracks, segments and arrays, written by `explore` and `preprocess`
    figures, metrics : PNG; JSON and CSV of all stages
    models : checkpoints, one folder per recipe
    audio : WAV files to listen to
    page : the page to listen, opened from disk at its index.html
    notebooks : executed copies of the notebooks
    parameters : the file of parameters that differ from the defaults; `make clean` keeps it
    """

    def __init__(self, run: str):
        self.run = run
        self.processed = ROOT / "data" / "processed" / run
        results = ROOT / "results"
        self.figures = results / "figures" / run
        self.metrics = results / "metrics" / run
        self.models = results / "models" / run
        self.audio = results / "audio" / run
        self.page = results / "page" / run
        self.notebooks = results / "notebooks" / run
        self.parameters = results / "parameters" / f"{run}.toml"

    def checkpoint(self, name: str) -> Path:
        """Return the file of a network: of this run, or of the repository: `pretrained/<name>`."""
        folder, _, pretrained = name.partition("/")
        if folder == "pretrained":
            return pretrained_file(pretrained)
        return self.models / name / "checkpoint.pt"

    def unfinished(self, stage: str) -> Path:
        """Return the results that an interrupted stage leaves for its next run: `src.shards`."""
        return self.processed / "unfinished" / stage


def pretrained_file(name: str, kind: str = "safetensors") -> Path:
    """Return a file of a network that comes with the repository: its weights, card or tracks."""
    return ROOT / "pretrained" / f"{name}.{kind}"


def pretrained_names() -> list[str]:
    """Return the names of the networks that come with the repository, by cards and weights."""
    folder, kinds = ROOT / "pretrained", ("md", "safetensors")
    return sorted({file.stem for kind in kinds for file in folder.glob(f"*.{kind}")})


def missing_file(path: Path) -> FileNotFoundError:
    """Return the error for a file or folder of the repository that is missing."""
    return FileNotFoundError(
        f"{from_root(path)} is missing, probably because the repository was copied or "
        "cloned without it: restore it by `git checkout -- pretrained`, or clone anew."
    )


def run_name(dataset: str) -> str:
    """Return the default name of a run: the data set's name or the last part of its path."""
    name = Path(dataset).resolve().name if os.sep in dataset else dataset
    return short_name(unicodedata.normalize("NFC", name.removesuffix(".npz")))


def short_name(name: str) -> str:
    """Return a name of at most 200 bytes: a longer one is cut and ends in a digest of the whole."""
    content = name.encode()
    if len(content) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(content).hexdigest()[:8]
    return f"{content[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"


def from_root(path: Path) -> Path:
    """Return a path from the repository's root on, if it lies below it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def require(path: Path, stage: str) -> Path:
    """Return `path` if it exists; else raise FileNotFoundError naming the stage that makes it."""
    if path.exists():
        return path
    raise FileNotFoundError(
        f"{from_root(path)} is missing: it is written by notebooks/{STAGES[stage]}.ipynb; "
        f"run `make {stage}` first, with the same DATASET and RUN."
    )


def walk_files(folder: Path) -> list[Path]:
    """Return all files below a folder except hidden ones and those in hidden folders.

    Links are followed; each folder is entered once. Raises PermissionError, or another OSError,
    for a folder that cannot be listed.
    """
    found, entered = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        entered.add(os.path.realpath(parent))
        new = (n for n in folders if os.path.realpath(os.path.join(parent, n)) not in entered)
        folders[:] = sorted(name for name in new if not name.startswith("."))
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return found


def _refuse_folder(error: OSError) -> None:
    raise type(error)(
        f"{error.filename} cannot be listed ({error.strerror}): the permissions or the disk may be "
        "at fault; correct them or take the folder out of the corpus."
    )
