"""The stages: papermill runs each notebook, again only if something it depends on has changed.

`python -m src.pipeline` runs all five, `python -m src.pipeline attack -p N_SEGMENTS 50` one of
them with another parameter. doit compares contents: a stage depends on its notebook, the modules
that the notebook imports, its input files and its parameters.
"""

import argparse
import ast
import json
import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from modulefinder import ModuleFinder
from pathlib import Path

import nbformat
import papermill
from doit.api import run_tasks
from doit.cmd_base import ModuleTaskLoader
from doit.exceptions import TaskFailed
from doit.tools import config_changed
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from src.models.recipes import DEFAULT_SEED, checkpoint_name, default_recipes
from src.paths import NOTEBOOKS, ROOT, STAGES, RunPaths, run_name, walk_files
from src.results import read_json

CELL_TIMEOUT = 24 * 3600  # seconds: a kernel killed for memory must not hang the run for ever
START_TIMEOUT = 120
QUIET = ["--IPKernelApp.log_level=ERROR"]  # a kernel on this machine need not warn of its ports
ATTACK_TABLES = "attacks robustness comparison minimal_eps transfer transfer_tracks".split()
AUDIO_TABLES = "audio_attacks audio_attacks_records".split()


def main(arguments: list[str]) -> int:
    """Run stages from the command line; return 0 if all succeeded."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        stages, parameters, paths = _plan(options)
    except ValueError as error:
        parser.error(str(error))
    try:
        with _alone(paths):
            return run_stages(stages, parameters, paths, bool(options.stages))
    except KeyboardInterrupt:
        print("interrupted: finished stages are kept; the same command continues from there")
        return 130
    except (OSError, sqlite3.Error) as error:  # of the disk, or of a corpus given by path
        sys.exit(str(error))


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="src.pipeline", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--dataset", help="name or path of the corpus (default: synthetic)")
    parser.add_argument("--run", help="name of the run's folders (default: after the corpus)")
    parser.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of a notebook; may be repeated: -p EPSILONS '[0.01]'",
    )
    return parser


def _plan(options: argparse.Namespace) -> tuple[list[str], dict[str, dict], RunPaths]:
    """Return the stages to run, the parameters of all stages, the paths of the run.

    Raises ValueError for an unknown stage or parameter, a value of another type than the default,
    and the name of a run that cannot be used.
    """
    if unknown := set(options.stages) - set(STAGES):
        raise ValueError(
            f"{', '.join(sorted(unknown))}: not a stage; give some of {', '.join(STAGES)}"
        )
    given = {name: _value(text) for name, text in options.parameters}
    for name in {"DATASET", "RUN"} & set(given):
        raise ValueError(f"{name}: give it as --{name.lower()}")
    dataset = options.dataset or "synthetic"
    given |= {"DATASET": dataset, "RUN": options.run or run_name(dataset)}
    stages, paths = options.stages or list(STAGES), RunPaths(given["RUN"])
    parameters = {stage: stage_parameters(stage, given) for stage in STAGES}
    _check_all_known(given, stages, parameters)
    _check_types(given, {k: v for stage in STAGES for k, v in defaults_of(stage).items()})
    _check_run(paths, options.dataset)
    return stages, parameters, paths


def run_stages(stages: list[str], parameters: dict, paths: RunPaths, only: bool) -> int:
    """Run stages through doit; with `only`, those stages alone and in any case.

    Returns 0 if all succeeded. One call of doit per stage: doit notes at the end of a call which
    stages are up to date, so that a finished stage stays so if a later one is killed.
    """
    config = {"dep_file": str(paths.notebooks / ".doit.db"), "backend": "sqlite3"}
    config |= {"single": True, "always": only, "verbosity": 2}
    for stage in [stage for stage in STAGES if stage in stages]:
        loader = ModuleTaskLoader({f"task_{stage}": _task(stage, parameters[stage], paths)})
        if code := run_tasks(loader, {stage: {}}, {"GLOBAL": config}):
            return code
    kinds = ("figures", "metrics", "notebooks")
    print("results:", *(f"results/{kind}/{paths.run}" for kind in kinds))
    return 0


def stage_parameters(stage: str, given: dict) -> dict:
    """Return those of the given parameters that the stage's notebook declares."""
    return {name: value for name, value in given.items() if name in defaults_of(stage)}


def defaults_of(stage: str) -> dict:
    """Return the parameters that a stage's notebook declares, with their default values."""
    notebook = notebook_of(stage)
    return dict(_defaults(notebook, notebook.stat().st_mtime_ns))


@cache
def _defaults(notebook: Path, _modified_ns: int) -> dict:
    """Return the parameters of a notebook, read once as long as its file stays the same."""
    declared = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(facts["default"]) for name, facts in declared.items()}


def notebook_of(stage: str) -> Path:
    """Return the path of a stage's notebook."""
    return NOTEBOOKS / f"{STAGES[stage]}.ipynb"


def modules_of(notebook: Path) -> list[str]:
    """Return the files of all modules of this project that a notebook imports, at any depth."""
    finder = ModuleFinder(path=[str(ROOT)])
    cells = nbformat.read(notebook, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    finder.scan_code(compile(code, str(notebook), "exec"), finder.add_module("__main__"))
    return sorted(module.__file__ for module in finder.modules.values() if module.__file__)


def inputs_of(stage: str, parameters: dict, paths: RunPaths) -> list[Path]:
    """Return the files that a stage, with all of its parameters, reads from earlier stages."""
    data = [paths.processed / "tracks.csv", paths.processed / "metadata.json"]
    names = parameters.get("CHECKPOINTS") or default_recipes(_corpus_of(paths))
    checkpoints = [paths.models / name / "checkpoint.pt" for name in names]
    return {
        "explore": [],
        "preprocess": [paths.processed / "source.json", data[0]],
        "train": data,
        "attack": [*data, *checkpoints],
        "explain": [*data, *checkpoints],
    }[stage]


def outputs_of(stage: str, parameters: dict, paths: RunPaths) -> list[Path]:
    """Return the files of a stage, with all of its parameters, that show that it has finished."""
    recipes = parameters.get("RECIPES") or default_recipes(_corpus_of(paths))
    suffix, seed = parameters.get("SUFFIX", ""), parameters.get("SEED", DEFAULT_SEED)
    names = [checkpoint_name(recipe, suffix, seed) for recipe in recipes]
    outputs = {
        "explore": [paths.processed / "source.json", paths.processed / "tracks.csv"],
        "preprocess": [
            paths.processed / "metadata.json",
            paths.processed / "segments.csv",
            paths.processed / "train" / "tracks.npy",
            *(paths.processed / split / "X.npy" for split in ("train", "val", "test")),
        ],
        "train": [
            *(paths.models / name / "checkpoint.pt" for name in names),
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


def _corpus_of(paths: RunPaths) -> str:
    """Return the name of the corpus of a run; empty before `explore`."""
    source = paths.processed / "source.json"
    return read_json(source, {"corpus"})["corpus"] if source.exists() else ""


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
        papermill.execute_notebook(
            notebook_of(stage),
            running,
            parameters,
            cwd=ROOT,
            kernel_name="python3",
            execution_timeout=CELL_TIMEOUT,
            start_timeout=START_TIMEOUT,
            extra_arguments=QUIET,
            progress_bar=False,
        )
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
    return TaskFailed(f"{stage}: {reason}\n(more is in {failed.relative_to(ROOT)})")


def _task(stage: str, parameters: dict, paths: RunPaths):
    """Return doit's description of a stage, as a function: doit calls it."""
    notebook, complete = notebook_of(stage), defaults_of(stage) | parameters
    inputs = inputs_of(stage, complete, paths)
    settings = json.dumps([parameters, _source_state(stage, parameters)], sort_keys=True)
    task = {
        "actions": [(run_notebook, [stage, parameters, paths])],
        "file_dep": [str(f) for f in [notebook, *modules_of(notebook), *inputs]],
        "targets": [str(f) for f in outputs_of(stage, complete, paths)],
        "uptodate": [config_changed(settings)],
    }
    return lambda: task


def _source_state(stage: str, parameters: dict) -> list:
    """Return names, sizes and times of the files of a corpus given by path, for `explore`."""
    source = ROOT / Path(parameters.get("DATASET", "")).expanduser()
    if stage != "explore" or source == ROOT or not source.exists():
        return []
    files = [source] if source.is_file() else sorted(walk_files(source))
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file()]


@contextmanager
def _alone(paths: RunPaths) -> Iterator[None]:
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


def _check_all_known(given: dict, stages: list[str], parameters: dict) -> None:
    """Raise ValueError for a parameter that none of the stages declares."""
    known = set().union(*(parameters[stage] for stage in stages)) | {"DATASET", "RUN"}
    if set(given) - known:
        raise ValueError(
            f"{', '.join(sorted(set(given) - known))}: no notebook of {', '.join(stages)} has such "
            "a parameter; see the cell tagged `parameters` of each."
        )


def _check_types(given: dict, defaults: dict) -> None:
    """Raise ValueError for a parameter whose value is of another type than its default."""
    for name, value in given.items():
        default = defaults.get(name, value)
        types = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, types) or isinstance(value, bool) != isinstance(default, bool):
            raise ValueError(
                f"{name}={value!r} is of type {type(value).__name__}, not "
                f"{type(default).__name__}, probably a slip of quoting: quote it for the shell, "
                f'as in -p {name} "{default!r}".'
            )


def _check_run(paths: RunPaths, dataset: str | None) -> None:
    """Raise ValueError for a run whose name is no folder's, or that is made of another corpus."""
    if not re.fullmatch(r"\w[\w .-]*", paths.run):
        raise ValueError(f"RUN={paths.run!r} cannot name a folder: give letters, digits, - _ .")
    source = paths.processed / "source.json"
    made = read_json(source, {"corpus"})["corpus"] if source.exists() else None
    if dataset and made not in (None, run_name(dataset)):
        raise ValueError(
            f"run {paths.run} was made of {made}, not of {run_name(dataset)}: its results are "
            "kept; give RUN another name."
        )


def _value(text: str) -> object:
    """Read a parameter's value as a Python literal, or as text if it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
