"""The stages: papermill runs each notebook, again only if something it depends on has changed.

`python -m src.pipeline RUN=small` runs all five, `python -m src.pipeline attack N_SEGMENTS=50` one
of them with another parameter; `show` in front prints parameters and which stages are up to date.
doit compares contents: a stage depends on its notebook, the modules that the notebook imports, its
input files and its parameters.
"""

import json
import logging
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from modulefinder import ModuleFinder
from pathlib import Path

import nbformat
import papermill
from doit.api import run_tasks
from doit.cmd_base import ModuleTaskLoader
from doit.dependency import Dependency, SqliteDB
from doit.exceptions import TaskFailed
from doit.task import dict_to_task
from doit.tools import config_changed
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from src.effort import choose_effort
from src.models.recipes import checkpoint_name, recipe
from src.parameters import save_parameters, show_value
from src.paths import (
    ROOT,
    STAGES,
    RunPaths,
    from_root,
    missing_file,
    pretrained_names,
    require,
    walk_files,
)
from src.request import GROUPS, Request, defaults_of, notebook_of, read_request
from src.results import read_json

KERNEL = {
    "kernel_name": "python3",
    "execution_timeout": 24 * 3600,  # seconds: one killed for memory must not hang for ever
    "start_timeout": 120,
    "extra_arguments": ["--IPKernelApp.log_level=CRITICAL"],  # no warnings of ports and sockets
    "progress_bar": False,
}
ARRAYS = "metadata.json segments.csv train/tracks.npy train/X.npy val/X.npy test/X.npy".split()
ATTACK_TABLES = """
    attacks robustness genre_robustness comparison minimal_eps equalizer universal transfer
    transfer_tracks
""".split()
AUDIO_TABLES = "audio_attacks audio_attacks_records audio_comparison".split()


def main(words: list[str]) -> int:
    """Run or show stages from the command line; return 0 if all succeeded."""
    try:
        request = read_request(words)
        if "show" in words:
            show(request)
            return 0
        check_inputs(request)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with alone(request.paths):
            save_parameters(request.paths.parameters, request.dataset, request.tables)
            return run_stages(request, bool(set(words) & set(STAGES)))
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept; the same command continues from there")
        return 130
    except (OSError, sqlite3.Error) as error:  # of the disk, or of a corpus given by path
        sys.exit(str(error))


def run_stages(request: Request, only: bool) -> int:
    """Run stages through doit; with `only`, those stages alone and in any case.

    Returns 0 if all succeeded. One call of doit per stage: doit notes at the end of a call which
    stages are up to date, so that a finished stage stays so if a later one is killed.
    """
    config = {"dep_file": str(_notes(request.paths)), "backend": "sqlite3"}
    config |= {"single": True, "always": only, "verbosity": 2}
    for stage in request.stages:
        loader = ModuleTaskLoader({f"task_{stage}": lambda s=stage: _task(s, request)})
        if code := run_tasks(loader, {stage: {}}, {"GLOBAL": config}):
            return code
    kinds = ("figures", "metrics", "notebooks")
    print("results:", *(f"results/{kind}/{request.paths.run}" for kind in kinds))
    return 0


def show(request: Request) -> None:
    """Print the parameters of a run, and per stage whether it is up to date or why it is not."""
    print(f"run {request.paths.run}, DATASET={request.dataset}")
    stale = []
    for stage in STAGES:
        if stage == "train" and request.tables["preprocess"].get("SPLIT") == "all":
            print("\ntrain: left out of `make run`: SPLIT=all leaves no tracks for training")
            continue
        task, defaults = _task(stage, request), defaults_of(stage)
        reasons = stale_because(stage, task, request.paths)
        earlier = [s for s, targets in stale if targets & set(task["file_dep"])]
        after = f"up to date, unless {' or '.join(earlier)} changes its input"
        print(f"\n{stage}: {'; '.join(reasons) or (after if earlier else 'up to date')}")
        if reasons or earlier:
            stale.append((stage, set(task["targets"])))
        for name, value in (request.complete(stage) | request.tables[stage]).items():
            if name not in {"RUN", "DATASET", *GROUPS}:
                was = show_value(defaults.get(name, "by recipe or effort"))
                note = f"  (default: {was or 'empty'})" if name in request.tables[stage] else ""
                print(f"  {name}={show_value(value)}{note}")
        if "EFFORT" in defaults:
            chosen = request.complete(stage)
            numbers = choose_effort(chosen["EFFORT"], chosen["EFFORT_CHANGES"])._asdict()
            print("  by EFFORT:", *(f"{name.upper()}={value}" for name, value in numbers.items()))


def stale_because(stage: str, task: dict, paths: RunPaths) -> list[str]:
    """Return why a stage is to be run: what changed or is missing; nothing if it is up to date."""
    if not _notes(paths).exists():
        return ["no run has finished yet"]
    notes = Dependency(SqliteDB, str(_notes(paths)))
    reasons = notes.get_status(dict_to_task({"name": stage, **task}), {}, get_log=True).reasons
    before = notes.get_values(stage).get("_config_changed")
    if before is None:
        return ["no run has finished yet"]
    (old, files), (new, files_now) = json.loads(before), json.loads(task["uptodate"][0].config)
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    changed += ["the corpus"] if files != files_now else []
    kinds = ("changed_file_dep", "added_file_dep", "removed_file_dep")  # added are changed as well
    files = {file for kind in kinds for file in reasons.get(kind, ())}
    changed += [from_root(Path(file)) for file in sorted(files)]
    missing = sorted({*reasons.get("missing_target", ()), *reasons.get("missing_file_dep", ())})
    missing = [f"{from_root(Path(file))} is missing" for file in missing]
    return [f"{name} changed" for name in changed] + missing


def modules_of(notebook: Path) -> list[str]:
    """Return the files of all modules of this project that a notebook imports, at any depth."""
    finder = ModuleFinder(path=[str(ROOT)])
    cells = nbformat.read(notebook, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    finder.scan_code(compile(code, str(notebook), "exec"), finder.add_module("__main__"))
    return sorted(module.__file__ for module in finder.modules.values() if module.__file__)


def inputs_of(stage: str, parameters: dict, paths: RunPaths) -> list[Path]:
    """Return the files that a stage, with all of its parameters, reads from earlier stages."""
    tracks = paths.processed / "tracks.csv"
    if stage in ("explore", "preprocess"):
        return {"explore": [], "preprocess": [paths.processed / "source.json", tracks]}[stage]
    names = parameters.get("CHECKPOINTS", [])
    if stage == "train":
        names = _starts(parameters) + parameters.get("COMPARED", [])
    networks = [_network_file(paths, name) for name in names if name]
    return [tracks, paths.processed / "metadata.json", *networks]


def _network_file(paths: RunPaths, name: str) -> Path:
    """Return the file that a network is read from; ValueError for a module that is not there."""
    module, is_own, _ = name.partition(":")
    if not is_own:
        return paths.checkpoint(name)
    try:
        spec, found = find_spec(module), ""
    except Exception as error:  # packages are imported to find their modules: code not ours
        spec, found = None, " ".join(f" ({type(error).__name__}: {error})".split("\n"))
    if spec is None or not spec.origin:
        raise ValueError(
            f"{name}: there is no module {module}{found}, or it is a folder: give the network "
            "as package.module:function, with the module below the repository's root or installed."
        )
    return Path(spec.origin)


def _starts(parameters: dict) -> list[str]:
    """Return the checkpoints that recipes start from, without those trained before them."""
    trained, starts = [], []
    for name in parameters["RECIPES"]:
        start = recipe(name, parameters["CHANGES"])["start_from"]
        start = start and checkpoint_name(start, "", parameters["SEED"])
        starts += [start] if start not in trained else []
        trained.append(checkpoint_name(name, parameters["SUFFIX"], parameters["SEED"]))
    return starts


def check_inputs(request: Request) -> None:
    """Raise an error for a file that a stage reads, is missing and no stage before it makes."""
    made = set()
    for stage in request.stages:
        parameters = request.complete(stage)
        for path in inputs_of(stage, parameters, request.paths):
            if path in made or path.exists():
                continue
            if path.suffix in {".pt", ".safetensors"}:
                raise _missing_network(stage, path, request.paths, made)
            require(path, "preprocess" if path.name == "metadata.json" else "explore")
        made |= set(outputs_of(stage, parameters, request.paths))


def _missing_network(stage: str, path: Path, paths: RunPaths, made: set[Path]) -> Exception:
    """Return the error about a network that is not there, with the names of those that are."""
    published = pretrained_names()
    if path.suffix == ".safetensors" and (path.stem in published or not published):
        return missing_file(path)
    there = made | set(paths.models.glob("*/checkpoint.pt"))
    names = sorted({file.parent.name for file in there if file.name == "checkpoint.pt"})
    names += [f"pretrained/{name}" for name in published]
    missing = path.parent.name if path.suffix == ".pt" else f"pretrained/{path.stem}"
    parameter = "START_FROM or COMPARED" if stage == "train" else "CHECKPOINTS"
    own = "; a network of yours is package.module:function" if stage == "attack" else ""
    return ValueError(
        f"{stage} reads the checkpoint {missing}, which run {paths.run} does not have: train it "
        f"first, or give {parameter} another name (there is {', '.join(names) or 'none yet'}{own})."
    )


def outputs_of(stage: str, parameters: dict, paths: RunPaths) -> list[Path]:
    """Return the files of a stage, with all of its parameters, that show that it has finished."""
    kind = [parameters.get(name) for name in ("SUFFIX", "SEED")]
    names = [checkpoint_name(recipe, *kind) for recipe in parameters.get("RECIPES", ())]
    outputs = {
        "explore": [paths.processed / "source.json", paths.processed / "tracks.csv"],
        "preprocess": [paths.processed / name for name in ARRAYS],
        "train": [
            *map(paths.checkpoint, names),
            *(paths.metrics / f"training_{name}.json" for name in names),
            paths.metrics / "corruptions.csv",
        ],
        "attack": [
            paths.metrics / "attacks.json",
            *(paths.metrics / f"{name}.csv" for name in ATTACK_TABLES),
            *(paths.metrics / f"{name}.csv" for name in AUDIO_TABLES if _has_audio(paths)),
        ],
        "explain": [
            paths.metrics / f"{name}.{kind}"
            for name in ("gradcam", "explanations")
            for kind in ("json", "csv")
        ],
    }
    return [*outputs[stage], paths.notebooks / f"{STAGES[stage]}.ipynb"]


def _has_audio(paths: RunPaths) -> bool:
    """Return whether a run is made of audio; False before notebook 1 has run."""
    source = paths.processed / "source.json"
    return source.exists() and read_json(source).get("has_audio", False)


def run_notebook(stage: str, parameters: dict, paths: RunPaths) -> TaskFailed | None:
    """Execute a stage's notebook into the run's folder; a failure is returned as one sentence.

    The copy is called `*.running.ipynb` until the end; that of a notebook that failed keeps its
    traceback and is called `*.failed.ipynb`.
    """
    output = paths.notebooks / f"{STAGES[stage]}.ipynb"
    running, failed = (output.with_suffix(f".{state}.ipynb") for state in ("running", "failed"))
    os.environ["STAGE"] = stage  # for `src.progress` in the kernel
    begin = time.monotonic()
    try:
        papermill.execute_notebook(notebook_of(stage), running, parameters, cwd=ROOT, **KERNEL)
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        reason = "the kernel died: there may be too little memory; close other programs, run again."
    except OSError as error:  # of the copy itself
        return TaskFailed(f"{stage}: {error}")
    else:
        running.replace(output)
        failed.unlink(missing_ok=True)
        print(f"{stage} finished in {tqdm.format_interval(time.monotonic() - begin)}")
        return None
    running.replace(failed)
    return TaskFailed(f"{stage}: {reason}\n(more is in {from_root(failed)})")


def _task(stage: str, request: Request) -> dict:
    """Return doit's description of a stage."""
    notebook, paths = notebook_of(stage), request.paths
    parameters, complete = request.given(stage), request.complete(stage)
    inputs = inputs_of(stage, complete, paths)
    flat = {k: v for k, v in parameters.items() if k not in GROUPS} | request.tables[stage]
    flat |= {"PRECISION": os.environ.get("PRECISION", "")}
    settings = json.dumps([flat, _source_state(stage, parameters)], sort_keys=True)
    return {
        "actions": [(run_notebook, [stage, parameters, paths])],
        "file_dep": [str(f) for f in [notebook, *modules_of(notebook), *inputs]],
        "targets": [str(f) for f in outputs_of(stage, complete, paths)],
        "uptodate": [config_changed(settings)],
    }


def _notes(paths: RunPaths) -> Path:
    """Return the file in which doit notes what each stage of a run was made of."""
    return paths.notebooks / ".doit.db"


def _source_state(stage: str, parameters: dict) -> list:
    """Return names, sizes and times of the files of a corpus given by path, for `explore`."""
    source = ROOT / Path(parameters.get("DATASET", "")).expanduser()
    if stage != "explore" or source == ROOT or not source.exists():
        return []
    files = [source] if source.is_file() else sorted(walk_files(source))
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file()]


@contextmanager
def alone(paths: RunPaths) -> Iterator[None]:
    """Hold the lock of a run, so that no two processes write the same files.

    Leaves with one sentence if another process holds it; the lock of a process that died is free.
    """
    paths.notebooks.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(paths.notebooks / ".lock", blocking=False):
            yield
    except Timeout:
        sys.exit(
            f"run {paths.run} is being made by another process, probably another terminal: wait "
            "until it has finished, or give RUN another name."
        )


def interrupt(*_: object) -> None:
    """End by Ctrl-C; libraries need not report as well that their kernel has ended."""
    logging.disable()
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    sys.exit(main(sys.argv[1:]))
