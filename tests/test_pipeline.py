import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from doit.exceptions import TaskFailed
from filelock import FileLock

import src.paths
from src import pipeline, request
from src.parameters import save_parameters
from src.paths import LONGEST_NAME, NOTEBOOKS, STAGES, RunPaths, run_name, short_name
from src.pipeline import main, modules_of

REAL_ROOT = NOTEBOOKS.parent
FIRST_CELL = 'RUN = "fake"  # run\nN = 1  # number\n'
READ_CELL = FIRST_CELL + 'CHECKPOINTS = ["documented"]  # names\n'
TRAIN_CELL = (
    FIRST_CELL + 'RECIPES = ["documented"]  # recipes\nCHANGES = {}  # of them\n'
    'SUFFIX = ""  # suffix\nSEED = 42  # seed\n'
)


def imported(name):
    """Return the modules of this project that a notebook depends on, relative to its root."""
    files = modules_of(NOTEBOOKS / f"{name}.ipynb")
    return {Path(file).relative_to(NOTEBOOKS.parent).as_posix() for file in files}


def write_notebook(path, *sources):
    """Write a notebook of code cells, the first of them tagged `parameters`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Return a folder with five notebooks, of which `explore` imports one module of its own."""
    monkeypatch.setenv("STAGE", "")  # the pipeline sets it
    for module in (src.paths, pipeline, request):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(request, "NOTEBOOKS", tmp_path / "notebooks")
    RunPaths("fake").notebooks.mkdir(parents=True)
    save_parameters(RunPaths("fake").parameters, "synthetic", {})  # the run exists
    (tmp_path / "src").mkdir()
    for name in STAGES.values():
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", FIRST_CELL, "N + 1")
    (tmp_path / "src" / "__init__.py").write_text("")
    (tmp_path / "src" / "part.py").write_text("VALUE = 1\n")
    write_notebook(tmp_path / "notebooks" / "03_model_training.ipynb", TRAIN_CELL)
    for stage in ("attack", "explain"):
        write_notebook(tmp_path / "notebooks" / f"{STAGES[stage]}.ipynb", READ_CELL)
    explore = tmp_path / "notebooks" / "01_data_exploration.ipynb"
    write_notebook(explore, FIRST_CELL + 'DATASET = "x"  # corpus', "from src import part")
    return tmp_path


@pytest.fixture
def executed(repository, monkeypatch):
    """Return the list of stages run so far; stages do no more than to write their outputs."""
    stages = []

    def run(stage, parameters, paths):
        stages.append(stage)
        complete = request.defaults_of(stage) | parameters
        for output in pipeline.outputs_of(stage, complete, paths):
            output.parent.mkdir(parents=True, exist_ok=True)
            dataset = parameters.get("DATASET", "")
            facts = {"stage": stage, "corpus": run_name(dataset), "path": dataset, **parameters}
            output.write_text(json.dumps(facts))

    monkeypatch.setattr(pipeline, "run_notebook", run)
    return stages


def ran_by(executed, *arguments):
    """Return the stages that the pipeline runs for these arguments."""
    del executed[:]
    assert main(["RUN=fake", *arguments]) == 0
    return list(executed)


def test_a_notebook_depends_on_all_it_imports_at_any_depth_and_on_nothing_else():
    attacks = imported("04_adversarial_attacks")
    assert {"src/attacks/adversarial.py", "src/models/cnn.py", "src/statistics.py"} <= attacks
    assert not {"src/data/preprocessor.py", "src/explainability/gradcam.py"} & attacks
    exploration = imported("01_data_exploration")
    assert {"src/data/corpus.py", "src/data/synthetic/sound.py", "src/paths.py"} <= exploration
    assert not any(name.startswith(("src/attacks/", "src/models/")) for name in exploration)
    assert all(name.startswith("src/") for name in attacks | exploration)


def test_every_module_that_is_no_command_is_used_by_some_notebook():
    used = set().union(*(imported(name) for name in STAGES.values()))
    root = NOTEBOOKS.parent
    there = {path.relative_to(root).as_posix() for path in (root / "src").rglob("*.py")}
    commands = "pipeline request report try_track evaluate_own models/publish".split()
    commands += "plots_track data/own_track models/calibration".split()  # theirs alone
    assert there - used == {f"src/{name}.py" for name in commands}


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("synthetic", "synthetic"),
        ("gtzan_mini", "gtzan_mini"),
        ("data/my corpus/", "my corpus"),
        ("../elsewhere/logmel.npz", "logmel"),
        ("logmel.npz", "logmel"),
    ],
)
def test_a_run_is_named_after_its_corpus(dataset, name):
    assert run_name(dataset) == name


def test_a_name_near_the_limit_of_the_system_is_shortened_and_stays_one_of_its_kind():
    long = ["é" * 124 + end for end in ("é", "a", "b")]
    short = list(map(short_name, long))
    assert len({*short}) == 3
    assert all(len(name.encode()) <= LONGEST_NAME for name in short)
    assert all(name.startswith("é" * 95 + "-") for name in short)
    assert short_name("é" * 100) == run_name("é" * 100) == "é" * 100
    assert run_name(f"music/{long[0]}") == short[0]


def test_an_up_to_date_run_imports_no_heavy_library(repository, executed):
    (repository / "corpus").mkdir()
    ran_by(executed, "DATASET=corpus")
    code = f"""import sys
import src.paths
from src import pipeline, request
for module in (src.paths, pipeline, request):
    module.ROOT = src.paths.Path({str(repository)!r})
request.NOTEBOOKS = pipeline.ROOT / "notebooks"
code = pipeline.main(["RUN=fake", "DATASET=corpus"]) or pipeline.main(["show", "RUN=fake"])
heavy = {{"torch", "librosa", "pandas", "numpy", "matplotlib"}} & set(sys.modules)
print(sorted(heavy), code)"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REAL_ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[:5] == [f"-- {stage}" for stage in STAGES]
    assert [line for line in lines if "up to date" in line] == [f"{s}: up to date" for s in STAGES]
    assert lines[-1] == "[] 0"


def test_a_changed_parameter_runs_the_stages_that_declare_it(executed):
    ran_by(executed)
    # the fake's outputs hold their parameters, so stages that read them follow
    assert ran_by(executed, "EPOCHS=2") == ["train", "attack", "explain"]
    assert ran_by(executed, "EPOCHS=2") == []
    assert ran_by(executed) == []  # remembered
    assert ran_by(executed, "RESET=1") == ["train", "attack", "explain"]


def shown(capsys, *words):
    """Return what is shown of each stage of the fake run, and all lines."""
    capsys.readouterr()
    assert main(["show", "RUN=fake", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    states = dict(line.split(": ", 1) for line in lines if line.split(": ")[0] in STAGES)
    return states, [line.strip() for line in lines]


def test_a_run_shows_its_parameters_and_why_a_stage_is_stale(repository, executed, capsys):
    assert set(shown(capsys)[0].values()) == {"no run has finished yet"}
    assert not list(RunPaths("fake").notebooks.iterdir())
    ran_by(executed, "CHECKPOINTS=documented")
    states, lines = shown(capsys)
    assert states == dict.fromkeys(STAGES, "up to date")
    assert {"run fake, DATASET=synthetic", "RECIPES=documented", "N=1"} <= set(lines)

    states, lines = shown(capsys, "train", "EPOCHS=2", "SUFFIX=_2")
    assert states["train"].startswith("EPOCHS changed; SUFFIX changed; results/")
    assert {"EPOCHS=2  (default: by recipe or effort)", "SUFFIX=_2  (default: empty)"} <= set(lines)
    assert shown(capsys)[0]["train"] == "up to date"  # not remembered

    (repository / "src" / "part.py").write_text("VALUE = 2\n")
    write_notebook(repository / "notebooks" / "03_model_training.ipynb", TRAIN_CELL, "N + 2")
    (RunPaths("fake").metrics / "attacks.csv").unlink()
    assert shown(capsys)[0] == {
        "explore": "src/part.py changed",
        "preprocess": "up to date, unless explore changes its input",
        "train": "notebooks/03_model_training.ipynb changed",
        "attack": "results/metrics/fake/attacks.csv is missing",
        "explain": "up to date, unless explore or preprocess or train changes its input",
    }
    assert executed == list(STAGES)  # nothing ran


def test_a_changed_notebook_module_or_input_or_a_lost_output_runs_its_stage(repository, executed):
    ran_by(executed)
    write_notebook(repository / "notebooks" / "05_gradcam_analysis.ipynb", READ_CELL, "N + 2")
    assert ran_by(executed) == ["explain"]
    (repository / "src" / "part.py").write_text("VALUE = 2\n")
    assert ran_by(executed) == ["explore"]  # it writes the same as before: the others rest
    (repository / "results/models/fake/documented/checkpoint.pt").write_text("other weights")
    assert ran_by(executed) == ["attack", "explain"]
    (RunPaths("fake").metrics / "attacks.csv").unlink()
    assert ran_by(executed) == ["attack"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_changed_corpus_folder_is_explored_again(linked, repository, executed, capsys):
    folder = repository / ("elsewhere" if linked else "corpus") / "jazz"
    track = folder / "jazz.00000.wav"
    folder.mkdir(parents=True)
    track.write_bytes(b"a")
    if linked:
        (repository / "corpus").mkdir()
        (repository / "corpus" / "jazz").symlink_to(folder)
    ran_by(executed, "DATASET=corpus")
    assert ran_by(executed) == []
    track.write_bytes(b"ab")
    assert shown(capsys)[0]["explore"] == "the corpus changed"
    assert ran_by(executed) == ["explore"]
    (folder / "notes.txt").touch()  # is passed over, and told so
    assert ran_by(executed) == ["explore"]


def test_a_stage_asked_for_by_name_runs_alone_and_in_any_case(executed):
    ran_by(executed)
    assert ran_by(executed, "attack") == ["attack"]
    assert ran_by(executed, "explain", "attack") == ["attack", "explain"]
    assert ran_by(executed) == []


def test_a_notebook_is_executed_with_its_parameters_into_the_folder_of_the_run(repository):
    explore = repository / "notebooks" / "01_data_exploration.ipynb"
    write_notebook(explore, FIRST_CELL, "import os\nprint(N, os.getcwd())")
    assert main(["explore", "RUN=fake", "N=5"]) == 0
    (copy,) = (repository / "results" / "notebooks" / "fake").glob("*.ipynb")
    assert copy.name == explore.name
    printed = nbformat.read(copy, as_version=4).cells[-1].outputs[0].text
    assert printed == f"5 {repository}\n"
    assert nbformat.read(explore, as_version=4).cells[-1].outputs == []


@pytest.mark.usefixtures("executed")
def test_the_numbers_of_an_effort_are_shown_with_their_changes(repository, capsys):
    sizes = 'EFFORT = "quick"  # level\nEFFORT_CHANGES = {}  # numbers\n'
    write_notebook(repository / "notebooks" / f"{STAGES['attack']}.ipynb", READ_CELL + sizes)
    (line,) = (line for line in shown(capsys, "N_SEGMENTS=7")[1] if "by EFFORT" in line)
    assert line.startswith("by EFFORT: N_SEGMENTS=7 ITERATIONS=10 ")


def test_a_stage_shows_its_progress_and_no_warning_of_its_kernel(repository, capfd, monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # with it a kernel does not capture its descriptors
    explore = repository / "notebooks" / "01_data_exploration.ipynb"
    shutil.copy(pipeline.__file__.replace("pipeline", "progress"), repository / "src")
    work = """import warnings
from src.progress import progress
for number in progress(range(N), "tracks", unit="track"):
    warnings.warn(f"track {number} is short")"""
    write_notebook(explore, FIRST_CELL, work)
    before = set(repository.iterdir())
    assert main(["explore", "RUN=fake", "N=2"]) == 0
    shown = capfd.readouterr()
    assert re.fullmatch(r"explore: tracks, track 2/2, 00:\d\d elapsed, 00:00 left\n", shown.err)
    assert re.search(r"^explore finished in 00:\d\d$", shown.out, re.MULTILINE)
    assert {path.name for path in set(repository.iterdir()) - before} <= {"results"}
    cell = nbformat.read(RunPaths("fake").notebooks / explore.name, as_version=4).cells[-1]
    (output,) = cell.outputs
    assert output.name == "stderr"
    assert "track 1 is short" in output.text
    assert "track 2/2" not in output.text


def test_a_failing_notebook_is_told_in_one_sentence_and_its_traceback_kept(repository):
    explore = repository / "notebooks" / "01_data_exploration.ipynb"
    write_notebook(explore, FIRST_CELL, 'raise ValueError(f"{N} tracks are too few.")')
    failure = pipeline.run_notebook("explore", {"N": 5}, RunPaths("fake"))
    sentence, where = failure.message.splitlines()
    assert sentence == "explore: ValueError: 5 tracks are too few."
    (copy,) = RunPaths("fake").notebooks.glob("*.ipynb")
    assert copy.name == "01_data_exploration.failed.ipynb"
    assert str(copy.relative_to(repository)) in where
    assert "Traceback" in copy.read_text()

    write_notebook(explore, FIRST_CELL)
    assert pipeline.run_notebook("explore", {"N": 5}, RunPaths("fake")) is None
    (copy,) = RunPaths("fake").notebooks.glob("*.ipynb")
    assert copy.name == explore.name


def test_a_kernel_that_dies_is_told_in_one_sentence(repository):
    explore = repository / "notebooks" / "01_data_exploration.ipynb"
    write_notebook(explore, FIRST_CELL, "import os", "os._exit(1)")
    failure = pipeline.run_notebook("explore", {}, RunPaths("fake"))
    assert failure.message.startswith("explore: the kernel died")


def test_a_kernel_ends_with_the_pipeline_that_was_killed(repository):
    if not Path("/proc/self").exists():
        pytest.skip("this system does not tell of processes in /proc")
    explore = repository / "notebooks" / "01_data_exploration.ipynb"
    note = "import os\nwith open('pid', 'w') as file:\n    print(os.getpid(), file=file)"
    write_notebook(
        explore, FIRST_CELL + 'DATASET = "x"', note, "while True:\n    sum(range(10**6))"
    )
    child, written = os.fork(), repository / "pid"
    if child == 0:
        with suppress(BaseException):
            main(["explore", "RUN=fake"])
        os._exit(0)
    assert becomes(lambda: written.exists() and written.read_text().strip())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    state = Path("/proc", written.read_text().strip(), "stat")
    assert becomes(lambda: not state.exists() or " Z " in state.read_text())


def test_ctrl_c_during_a_notebook_prints_one_sentence(repository):
    explore = repository / "notebooks" / "01_data_exploration.ipynb"
    long = "open('begun', 'w').close()\nwhile True:\n    sum(range(10**6))"
    write_notebook(explore, FIRST_CELL + 'DATASET = "x"', long)
    child, said = os.fork(), repository / "said"
    if child == 0:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with said.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        signal.signal(signal.SIGINT, pipeline.interrupt)
        code = main(["explore", "RUN=fake"])
        gc.collect()
        sys.stdout.flush()
        os._exit(code)
    assert becomes((repository / "begun").exists)
    os.kill(child, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    time.sleep(1)  # of the kernel
    lines = said.read_text().splitlines()
    assert [line for line in lines if not line.endswith("explore")] == [
        "interrupted: what is finished is kept; the same command continues from there"
    ]


def becomes(true, seconds=60):
    """Wait until a condition holds; tell whether it did in time."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(true())


def test_a_failing_stage_ends_the_run_and_is_tried_again(executed, monkeypatch):
    working = pipeline.run_notebook
    monkeypatch.setattr(pipeline, "run_notebook", lambda *_: TaskFailed("no"))
    assert main(["RUN=fake"]) != 0
    monkeypatch.setattr(pipeline, "run_notebook", working)
    assert ran_by(executed) == list(STAGES)


def test_a_second_process_does_not_touch_a_run_in_the_making(executed, capsys):
    folder = RunPaths("fake").notebooks
    with FileLock(folder / ".lock"):
        with pytest.raises(SystemExit) as refusal:
            main(["RUN=fake"])
        assert executed == []
        assert main(["RUN=other"]) == 0  # another run is none of its business
    assert re.fullmatch(r"run fake is being made by another process[^\n]+", refusal.value.code)
    assert ran_by(executed) == list(STAGES)


@pytest.mark.parametrize(("path", "there"), [("corpus", True), ("logmels.npz", False)])
def test_a_run_of_audio_is_asked_for_its_attacks_on_audio(repository, path, there):
    paths = RunPaths("fake")
    paths.processed.mkdir(parents=True)
    (paths.processed / "source.json").write_text(
        json.dumps({"corpus": "c", "path": path, "has_audio": there})
    )
    names = {file.name for file in pipeline.outputs_of("attack", {}, paths)}
    assert ("audio_attacks.csv" in names) is there
    assert "attacks.csv" in names


def test_a_stage_reads_networks_from_elsewhere():
    names = ["pretrained/robust", "json.decoder:decode"]
    files = pipeline.inputs_of("attack", {"CHECKPOINTS": names}, RunPaths("fake"))
    parameters = {"RECIPES": [], "COMPARED": names}
    assert pipeline.inputs_of("train", parameters, RunPaths("fake")) == files
    assert files[2:] == [
        REAL_ROOT / "pretrained" / "robust.safetensors",
        Path(json.decoder.__file__),
    ]


def test_a_stage_names_the_remedy_for_weights_that_are_missing(repository, capsys):
    (repository / "pretrained").mkdir()
    (repository / "pretrained" / "robust.md").touch()
    words = ["explore", "preprocess", "attack"]
    assert pipeline.main([*words, "CHECKPOINTS=pretrained/robust"]) == 2
    assert "pretrained/robust.safetensors is missing, probably" in capsys.readouterr().err
    assert pipeline.main([*words, "CHECKPOINTS=pretrained/robst"]) == 2
    assert "another name (there is pretrained/robust; a network of" in capsys.readouterr().err


def test_a_corpus_that_is_a_test_set_as_a_whole_is_not_trained_on(repository, executed, capsys):
    (repository / "pretrained").mkdir()
    (repository / "pretrained" / "robust.safetensors").touch()
    split = FIRST_CELL + 'SPLIT = "random"  # split\n'
    write_notebook(repository / "notebooks" / "02_preprocessing.ipynb", split)
    ran = ran_by(executed, "SPLIT=all", "CHECKPOINTS=pretrained/robust")
    assert ran == ["explore", "preprocess", "attack", "explain"]
    assert ran_by(executed) == []  # remembered
    capsys.readouterr()
    assert pipeline.main(["RUN=fake", "show"]) == 0
    assert "train: left out of `make run`: SPLIT=all leaves no tracks" in capsys.readouterr().out
    assert ran_by(executed, "train") == ["train"]  # and refused by its notebook


ROBUST = {"RECIPES": ["robust"], "CHANGES": {}, "SUFFIX": "", "SEED": 43}


@pytest.mark.parametrize(
    ("stage", "parameters", "names"),
    [
        ("attack", {"CHECKPOINTS": ["a", "b"]}, ["a", "b"]),
        ("explain", {"CHECKPOINTS": ["a", "b"]}, ["a", "b"]),
        ("train", ROBUST, ["improved_43"]),
        ("train", ROBUST | {"CHANGES": {"start_from": ""}}, []),
        ("train", ROBUST | {"RECIPES": ["improved", "robust"]}, []),
        (
            "train",
            ROBUST | {"RECIPES": ["improved", "robust"], "SUFFIX": "_x"},
            ["improved_43"],
        ),
    ],
)
def test_a_stage_reads_the_checkpoints_that_its_parameters_name(stage, parameters, names):
    inputs = pipeline.inputs_of(stage, parameters, RunPaths("fake"))
    assert [file.parent.name for file in inputs if file.name == "checkpoint.pt"] == names
