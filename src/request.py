"""The words of a command line, checked: stages of a run, its data set, its parameters.

Words are stages and `NAME=VALUE`. Names are those of the notebooks' parameters, and in capitals
those of recipes (`EPOCHS`, src/models/recipes.py) and of efforts (`N_SEGMENTS`, src/effort.py).
"""

import ast
import re
import unicodedata
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import NamedTuple

import papermill

from src.effort import EFFORTS, choose_effort
from src.models.recipes import DOCUMENTED, checkpoint_name, default_recipes
from src.parameters import LARGEST, check_value, load_parameters, read_value, show_value
from src.paths import (
    COLLECTED,
    CORPORA,
    EMBEDDED_CORPUS,
    LONGEST_NAME,
    NOTEBOOKS,
    ROOT,
    STAGES,
    RunPaths,
    from_root,
    run_name,
)
from src.results import read_json

GROUPS = {"CHANGES": DOCUMENTED, "EFFORT_CHANGES": EFFORTS["quick"]._asdict()}  # in notebooks
LIMITS = {"TRACKS_PER_GENRE": (7, LARGEST), "N_JOBS": (1, LARGEST)}
ENDINGS = {"EPS": (1e-6, 1), "EPSILONS": (1e-6, 1), "DB": (-120, 120)}
METHODS = "gradcam hirescam gradcam++ layercam xgradcam eigencam scorecam integrated_gradients"
CHOICES = {
    "SPLIT": ("random", "filtered", "stratified", "gtzan_mini", "all"),
    "METHOD": tuple(METHODS.split()),
    "TARGET_LAYER": tuple(f"conv{block}_{layer}" for block in (1, 2, 3, 4) for layer in (1, 2)),
}
MAY_BE_EMPTY = {"RECIPES", "CHECKPOINTS", "COMPARED", "SUITE_EPSILONS"}
SWEEPS = {"REPORT_EPS": "EPSILONS", "SUITE_EPSILONS": "EPSILONS"}


class Request(NamedTuple):
    """Stages in order, the run's paths and data set, and per stage what differs from defaults."""

    stages: list[str]
    paths: RunPaths
    dataset: str
    tables: dict[str, dict]

    def given(self, stage: str) -> dict:
        """Return the parameters that the notebook of a stage gets.

        Without `CHECKPOINTS`, notebooks 4 and 5 get the networks that notebook 3 trained last.
        """
        declared, table = defaults_of(stage), self.tables[stage]
        values = {"RUN": self.paths.run, "DATASET": self.dataset} | table
        values = {name: value for name, value in values.items() if name in declared}
        for group in GROUPS.keys() & declared.keys():
            own = {name: table[name.upper()] for name in GROUPS[group] if name.upper() in table}
            values |= {group: declared[group] | own} if own else {}
        if "CHECKPOINTS" in declared:
            values.setdefault("CHECKPOINTS", self._trained())
        return values

    def complete(self, stage: str) -> dict:
        """Return all parameters of a notebook; empty `RECIPES` stand for the default ones."""
        values = defaults_of(stage) | self.given(stage)
        if values.get("RECIPES") == []:
            values["RECIPES"] = default_recipes(run_name(self.dataset))
        return values

    def _trained(self) -> list[str]:
        """Return the checkpoints of notebook 3 with the parameters that the run has for it."""
        train = self.complete("train")
        return [checkpoint_name(name, train["SUFFIX"], train["SEED"]) for name in train["RECIPES"]]


def read_request(words: list[str]) -> Request:
    """Return what the words of a command line stand for.

    Raises ValueError for an unknown stage, parameter, run or data set, and for a value of another
    type or out of range.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    named = [word for word in words if "=" not in word]
    if unknown := [word for word in named if word not in {*STAGES, "show"}]:
        raise ValueError(f"{unknown[0]}: not a stage; give some of {', '.join(STAGES)}.")
    stages = [stage for stage in STAGES if stage in named] or list(STAGES)
    run, dataset = given.pop("RUN", None), given.pop("DATASET", None)
    of_dataset = run_name(dataset or EMBEDDED_CORPUS)
    name = of_dataset if run is None else unicodedata.normalize("NFC", run)
    _check_name("RUN", name, name)
    if name.casefold() in COLLECTED:
        raise ValueError(
            f"RUN={name} is the name of a folder of committed results, which the run would "
            "overwrite: give RUN another name."
        )
    paths = RunPaths(name)
    may_be_new = "explore" in named and (dataset or run is None)
    if named and not may_be_new and (run or named != ["show"]):
        _check_exists(paths)
    reset = read_value("RESET", given.pop("RESET", "false"), False)
    file = _file_of(paths)
    dataset = _dataset_of(paths, dataset or file.get("DATASET"), "explore" in stages)
    _check_known(given, stages)
    tables = {}
    for stage in STAGES:
        runs = stage in stages
        remembered = {} if reset and runs else file.get(stage, {})
        tables[stage] = _table(stage, remembered, given if runs else {})
    if "train" not in named and tables["preprocess"].get("SPLIT") == "all":
        stages = [stage for stage in stages if stage != "train"]  # there are test tracks only
    request = Request(stages, paths, dataset, tables)
    for stage in stages:
        _check_values(request.complete(stage))
    return request


def _file_of(paths: RunPaths) -> dict:
    """Return the content of a run's file; ValueError for names that no stage has."""
    file = load_parameters(paths.parameters)
    for table, content in file.items():
        known = parameters_of(table) if table in STAGES else ()
        names = set(content) - set(known) if isinstance(content, dict) else {table} - {"DATASET"}
        if names or not isinstance(content, (dict, str)):
            raise ValueError(
                f"{from_root(paths.parameters)} has {', '.join(sorted(names)) or table}, "
                "which is no parameter there, probably after an edit: correct or delete the line."
            )
    return file


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


def parameters_of(stage: str) -> dict:
    """Return the parameters that can be given to a stage, each with a value of its type."""
    declared, found = defaults_of(stage), {}
    for group in GROUPS.keys() & declared.keys():
        found |= {name.upper(): value for name, value in GROUPS[group].items()}
    if stage == "train":  # reads one number of the effort
        found = {k: v for k, v in found.items() if k.lower() in {*DOCUMENTED, "n_corrupted"}}
    return {k: v for k, v in (found | declared).items() if k not in {"RUN", "DATASET", *GROUPS}}


def _table(stage: str, remembered: dict, given: dict) -> dict:
    """Return what differs from the defaults of a stage, by the run's file and the command line."""
    types, defaults = parameters_of(stage), defaults_of(stage)
    texts = {name: show_value(value) for name, value in remembered.items()} | given
    table = {name: read_value(name, t, types[name]) for name, t in texts.items() if name in types}
    return {name: value for name, value in table.items() if defaults.get(name) != value}


def _check_known(given: dict, stages: list[str]) -> None:
    """Raise ValueError for a parameter that none of the stages has."""
    names = {stage: parameters_of(stage) for stage in STAGES}
    for name in given:
        owners = [stage for stage in STAGES if name in names[stage]]
        if set(owners) & set(stages):
            continue
        there = {"RUN", "DATASET", "RESET"}.union(*names.values())
        close = [f"did you mean {n}?" for n in get_close_matches(name.upper(), sorted(there), 1)]
        hint = [f"give it to `make {owner}`." for owner in owners]
        raise ValueError(
            f"{name} is no parameter of {', '.join(stages)}, probably mistyped: "
            + (hint + close + ["`make show` prints those there are."])[0]
        )


def _check_name(parameter: str, value: str, name: str) -> None:
    """Raise ValueError for a value that makes a name which no folder or file can have."""
    if not re.fullmatch(r"[^\s.~/\\-][^/\\\x00-\x1f]*", name):
        raise ValueError(
            f"{parameter}={value!r} cannot name a folder, being empty, a path or with a sign in "
            "front: give letters, digits, spaces, - _ ."
        )
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"{parameter}={value!r} is {len(name.encode()) - LONGEST_NAME} bytes too long for the "
            "names of files that are made of it: give a shorter one."
        )


def _check_exists(paths: RunPaths) -> None:
    """Raise ValueError for a run that was never begun, with the names of those that were."""
    runs = {file.stem for file in paths.parameters.parent.glob("*.toml")}
    runs |= {file.parent.name for file in paths.processed.parent.glob("*/source.json")}
    if paths.run not in runs:
        there = f"give one of those there are ({', '.join(sorted(runs))}), or " if runs else ""
        raise ValueError(
            f"run {paths.run} does not exist, RUN or DATASET may be missing or mistyped: {there}"
            f"make it by `make run RUN={paths.run} DATASET={EMBEDDED_CORPUS}` or another DATASET."
        )


def _dataset_of(paths: RunPaths, dataset: str | None, is_read: bool) -> str:
    """Return the data set of a run: the given one, or that which the run is made of.

    Raises ValueError for another one than that, and for a path to read that does not exist.
    """
    source = paths.processed / "source.json"
    made = read_json(source, {"corpus", "path"}) if source.exists() else {"corpus": EMBEDDED_CORPUS}
    name = made["corpus"] if made["corpus"] in CORPORA else made["path"]
    path = (ROOT / Path(dataset or name).expanduser()).resolve()
    there = (ROOT / made.get("path", "")).resolve()
    is_same = name == dataset or path in (there, there.parent if there.suffix == ".npz" else there)
    if dataset and source.exists() and not is_same:
        raise ValueError(
            f"run {paths.run} was made of {name}, not of {dataset}: its results are kept; "
            "give RUN another name."
        )
    dataset = dataset or name
    if is_read and dataset not in CORPORA and not path.exists():
        raise ValueError(
            f"DATASET={dataset} does not exist, probably mistyped: give a path from the "
            f"repository's root, or one of {', '.join(CORPORA)}."
        )
    return dataset


def _check_values(values: dict) -> None:
    """Raise ValueError for parameters of a notebook that are out of range or contradict."""
    for name, value in values.items():
        limits = LIMITS.get(name) or ENDINGS.get(name.rpartition("_")[2], (0, LARGEST))
        items = value if isinstance(value, list) else [value]
        if not items and name not in MAY_BE_EMPTY:
            raise ValueError(f"{name} is empty, probably by mistake: give at least one value.")
        for item in items:
            check_value(name, item, item, limits, CHOICES.get(name, ()))
    for recipe in values.get("RECIPES", ()):
        suffix, seed = values["SUFFIX"], values["SEED"]
        _check_name("SUFFIX", suffix, checkpoint_name(recipe, suffix, seed))
    if "EFFORT" in values:
        choose_effort(values["EFFORT"], values["EFFORT_CHANGES"])
    for name, sweep in SWEEPS.items() if "SUITE_EPSILONS" in values else ():
        value = values[name] if isinstance(values[name], list) else [values[name]]
        if lacking := [item for item in value if item not in values[sweep]]:
            raise ValueError(
                f"{name} has {lacking[0]}, which is not in {sweep}={show_value(values[sweep])}, "
                "probably because one of the two was changed: change the other as well."
            )
