"""The words of a command line: which values they become, what is refused before anything runs."""

import json
import os
import re
import subprocess
import sys

import pytest

import src.paths
from src import pipeline, request
from src.data.splits import MINI, PUBLISHED, WHOLE
from src.effort import EFFORTS, choose_effort
from src.explainability.attributions import METHODS
from src.models.cnn import GenreClassifierCNN
from src.models.recipes import recipe
from src.parameters import save_parameters
from src.paths import STAGES, RunPaths
from src.request import CHOICES, LIMITS, MAY_BE_EMPTY, SWEEPS, parameters_of, read_request

REPOSITORY = src.paths.ROOT


@pytest.fixture(name="root", autouse=True)
def _root(tmp_path, monkeypatch):
    """Return an empty folder that stands for the repository, but for its notebooks."""
    for module in (src.paths, request, pipeline):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(pipeline, "run_stages", lambda *_: pytest.fail("stages ran"))
    return tmp_path


def begin(run, path="data/raw/synthetic", corpus="synthetic"):
    """Write the source of a run, as `explore` does; return its paths."""
    paths = RunPaths(run)
    paths.processed.mkdir(parents=True)
    (paths.processed / "source.json").write_text(json.dumps({"corpus": corpus, "path": path}))
    return paths


def remember(*words):
    """Read a request and write the file of its run; return the file's lines without comments."""
    asked = read_request(words)
    file = asked.paths.parameters
    save_parameters(file, asked.dataset, asked.tables)
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (
            ["attack", "N_SEGMENTS=50", "N_HARD_LABEL=0"],
            {"EFFORT_CHANGES": {"n_segments": 50, "n_hard_label": 0}},
        ),
        (["train", "EPOCHS=20", "LR=0.01"], {"CHANGES": {"epochs": 20, "lr": 0.01}}),
        (["train", "START_FROM=", "SUFFIX=_20"], {"CHANGES": {"start_from": ""}, "SUFFIX": "_20"}),
        (
            ["train", "CROPS=false", "RANDOM_LABELS=1"],
            {"CHANGES": {"crops": False, "random_labels": True}},
        ),
        (["attack", "CHECKPOINTS=documented, robust"], {"CHECKPOINTS": ["documented", "robust"]}),
        (["train", "N_CORRUPTED=5"], {"EFFORT_CHANGES": {"n_corrupted": 5}}),
        (["attack", "SUITE_EPSILONS="], {"SUITE_EPSILONS": []}),
        (["attack", "SNR_DB=32.5,40"], {"SNR_DB": [32.5, 40.0]}),
        (["preprocess", "SPLIT_LISTS=my lists/a=b, c"], {"SPLIT_LISTS": "my lists/a=b, c"}),
        (["explore", "SEED=42"], {}),  # the default
    ],
)
def test_words_become_values_of_the_types_of_their_defaults(words, values):
    begin("synthetic")
    given = read_request(words).given(words[0])
    own = {
        "explore": {"DATASET": "synthetic"},
        "attack": {"CHECKPOINTS": ["short", "short_robust"]},
    }
    assert given == {"RUN": "synthetic"} | own.get(words[0], {}) | values
    assert all(str(given[name]) == str(value) for name, value in values.items())  # True is no 1


def test_a_parameter_goes_to_those_of_the_stages_that_have_it():
    asked = read_request(["SEED=43", "N_SEGMENTS=5", "EPSILONS=0.01", "TRACKS_PER_GENRE=7"])
    attacks = {"SEED": 43, "N_SEGMENTS": 5, "EPSILONS": [0.01]}
    both = {"SEED": 43, "TRACKS_PER_GENRE": 7}, {"SEED": 43}, {"SEED": 43}, attacks, attacks
    assert asked.tables == dict(zip(STAGES, both, strict=True))
    assert asked.complete("attack")["CHECKPOINTS"] == ["short_43", "short_robust_43"]


def test_networks_that_were_trained_last_are_attacked_and_explained_unless_others_are_given():
    last = read_request(["RECIPES=short", "SUFFIX=_x"])
    for stage in ("attack", "explain"):
        assert last.given(stage)["CHECKPOINTS"] == ["short_x"]
    remember("RECIPES=documented", "SEED=43")
    file = begin("synthetic").parameters
    file.write_text(file.read_text().replace('["documented"]', '"documented"'))  # by a person
    given = [read_request(["attack", *more]).given("attack") for more in ([], ["CHECKPOINTS=a"])]
    assert [values["CHECKPOINTS"] for values in given] == [["documented_43"], ["a"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("dance", "dance: not a stage; give some of explore"),
        ("-p EPOCHS 3", "-p: not a stage"),
        ("dataset=x", "dataset is no parameter of .* did you mean DATASET?"),
        ("run=x", "run is no parameter of .* did you mean RUN?"),
        ("ARG=x", "ARG is no parameter of .* `make show` prints those there are"),
        ("EPOCH=3", "EPOCH is no parameter of .* did you mean EPOCHS?"),
        ("CHANGES={}", "CHANGES is no parameter of"),
        ("explore EPOCHS=3", "EPOCHS is no parameter of explore, .*: give it to `make train`"),
        ("EPOCHS=1.5", "EPOCHS=1.5 is of another type, .* give a whole number"),
        ("EPOCHS=three", "EPOCHS=three is of another type, .* give a whole number"),
        ("EPOCHS=True", "EPOCHS=True is of another type"),
        ("CROPS=maybe", "CROPS=maybe is of another type, .* give true or false"),
        ("EPSILONS=0.1,x", "EPSILONS=x is of another type, .* give a number"),
        ("EPSILONS=[0.1]", r"EPSILONS=\[0.1\] is of another type"),
        ("EPSILONS=0.01,0.01", "EPSILONS=0.01,0.01 has an item twice"),
        ("RECIPES=short,", "RECIPES=short, has an empty item, .* a comma too many"),
        ("EPSILONS=", "EPSILONS is empty"),
        ("EPSILONS=0.01,8", "EPSILONS=8.0 is out of range, .* at least 1e-06 and at most 1"),
        ("EPSILONS=0.1", "REPORT_EPS has 0.01, which is not in EPSILONS=0.1, .* change the other"),
        ("SUITE_EPSILONS=0.03", "SUITE_EPSILONS has 0.03, which is not in EPSILONS="),
        ("RECIPES=best", "RECIPES=best is unknown, .* give one of documented"),
        ("SCHEDULE=onecycle", "SCHEDULE=onecycle is unknown, .* give one of plateau, one_cycle"),
        ("METHOD=gradcan", "METHOD=gradcan is unknown"),
        ("TARGET_LAYER=conv9_1", "TARGET_LAYER=conv9_1 is unknown"),
        ("SPLIT=rnd", "SPLIT=rnd is unknown"),
        ("EFFORT=fast", "EFFORT=fast is unknown, .* give one of quick, full"),
        ("EPOCHS=0", "EPOCHS=0 is out of range, .* give at least 1"),
        ("PATIENCE=0", "PATIENCE=0 is out of range"),
        ("BATCH_SIZE=0", "BATCH_SIZE=0 is out of range"),
        ("LR=nan", "LR=nan is out of range"),
        ("WEIGHT_DECAY=inf", "WEIGHT_DECAY=inf is out of range"),
        ("N_SEGMENTS=0", "N_SEGMENTS=0 is out of range"),
        ("N_HARD_LABEL=-1", "N_HARD_LABEL=-1 is out of range, .* give at least 0"),
        ("N_AUDIO=0", "N_AUDIO=0 is out of range, .* give at least 1"),
        ("SEED=-1", "SEED=-1 is out of range"),
        ("N_JOBS=0", "N_JOBS=0 is out of range"),
        ("N_PER_GENRE=0", "N_PER_GENRE=0 is out of range"),
        ("train RUN=begun N_SEGMENTS=5", "N_SEGMENTS is no parameter of train, .*`make attack`"),
        ("RESET=yes", "RESET=yes is of another type, .* give true or false"),
        ("RUN=Real", "RUN=Real is the name of a folder of committed results"),
        ("RUN=a/b", "RUN='a/b' cannot name a folder"),
        ("RUN=..", r"RUN='\.\.' cannot name a folder"),
        ("RUN=", "RUN='' cannot name a folder"),
        (f"RUN={'é' * 101}", "RUN='é+' is 2 bytes too long for the names of files"),
        ("SUFFIX=/20", "SUFFIX='/20' cannot name a folder"),
        (f"SUFFIX={'x' * 196}", "SUFFIX='x+' is 1 bytes too long for the names of files"),
        ("DATASET=no/where", "DATASET=no/where does not exist, .* repository's root"),
        ("RECIPES=robust", "train reads the checkpoint improved, .* START_FROM .*none yet"),
        ("RECIPES=improved,robust SUFFIX=_x", "train reads the checkpoint improved, which"),
        (
            "RECIPES=documented CHECKPOINTS=short",
            "attack reads the checkpoint short, .* give CHECKPOINTS .* is documented",
        ),
        (
            "explore preprocess attack CHECKPOINTS=typo",
            "attack reads the .* typo, .*:function",
        ),
        (
            "explore preprocess attack CHECKPOINTS=pretrained/typo",
            "pretrained/typo.safetensors is missing, .* cloned without it: restore it by",
        ),
        (
            "explore preprocess attack CHECKPOINTS=no.module:net",
            r"no.module:net: there is no module no.module \(ModuleNotFoundError",
        ),
        (
            "explore preprocess attack CHECKPOINTS=broken.part:net",
            r"broken.part:net: there is no module broken.part \(KeyError: 'absent'\), or",
        ),
        ("attack RUN=begun", "data/processed/begun/tracks.csv is missing: .*`make explore` first"),
        (
            "attack RUN=beg",
            r"run beg does not exist, .* \(begun\), or make it by `make run RUN=beg",
        ),
        ("train", "run synthetic does not exist, RUN or DATASET may be missing"),
        ("explore RUN=beg", "run beg does not exist"),
        ("show RUN=beg", "run beg does not exist"),
    ],
)
def test_a_request_without_meaning_is_refused_in_one_sentence(
    words, said, root, capsys, tmp_path_factory, monkeypatch
):
    begin("begun")
    package = tmp_path_factory.mktemp("installed") / "broken" / "__init__.py"
    package.parent.mkdir()
    package.write_text("raise KeyError('absent')")
    monkeypatch.syspath_prepend(package.parent.parent)
    before = sorted(root.rglob("*"))
    assert pipeline.main(words.split()) == 2
    assert re.fullmatch(f"error: {said}[^\n]*[.?]\n", capsys.readouterr().err)
    assert sorted(root.rglob("*")) == before  # no folder, no file


def test_parameters_are_shown_before_the_first_run(root, capsys):
    assert pipeline.main(["show"]) == 0
    assert capsys.readouterr().out.count("no run has finished yet") == len(STAGES)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: choose_effort("fast", {}), "EFFORT=fast is unknown"),
        (lambda: choose_effort("quick", {"n_clips": 3}), "EFFORT_CHANGES=n_clips is unknown"),
        (lambda: choose_effort("quick", {"n_audio": "3"}), "N_AUDIO='3' is of another type"),
        (lambda: choose_effort("quick", {"n_audio": True}), "N_AUDIO=True is of another type"),
        (lambda: choose_effort("quick", {"n_audio": -1}), "N_AUDIO=-1 is out of range"),
        (lambda: recipe("best", {}), "RECIPES=best is unknown"),
        (lambda: recipe("documented", {"adversarial_eps": 0.01}), "ADVERSARIAL_STEPS=0 with"),
        (lambda: recipe("robust", {"mixip": 0}), "CHANGES=mixip is unknown"),
        (lambda: recipe("robust", {"random_labels": "False"}), "'False' is of another type"),
        (lambda: recipe("robust", {"epochs": "4"}), "EPOCHS='4' is of another type"),
        (lambda: recipe("robust", {"schedule": "onecycle"}), "SCHEDULE=onecycle is unknown"),
    ],
)
def test_numbers_of_recipes_and_efforts_are_checked_in_jupyter_too(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_numbers_of_recipes_and_efforts_can_be_changed():
    assert recipe("improved", {"mixup": 0})["mixup"] == 0
    assert choose_effort("quick", {"n_segments": 5}) == EFFORTS["quick"]._replace(n_segments=5)


def test_full_effort_is_nowhere_smaller_than_quick():
    pairs = zip(EFFORTS["quick"], EFFORTS["full"], strict=True)
    assert all(quick <= full for quick, full in pairs)
    assert EFFORTS["full"].n_hard_label >= 30


def test_choices_are_those_of_the_code_and_limits_those_of_parameters():
    layers = [name for name, _ in GenreClassifierCNN().named_modules() if name.startswith("conv")]
    assert CHOICES["METHOD"] == METHODS
    assert CHOICES["TARGET_LAYER"] == tuple(layers)
    assert CHOICES["SPLIT"] == ("random", *PUBLISHED, MINI, WHOLE)
    known = {name for stage in STAGES for name in parameters_of(stage)}
    assert {*CHOICES, *LIMITS, *MAY_BE_EMPTY, *SWEEPS, *SWEEPS.values()} <= known


def test_a_run_remembers_its_parameters_until_they_are_reset():
    assert remember("N_SEGMENTS=50", "CHECKPOINTS=a,b", 'SUFFIX=é"') == [
        'DATASET = "synthetic"',
        "[train]",
        'SUFFIX = "é\\""',
        "[attack]",
        "N_SEGMENTS = 50",
        'CHECKPOINTS = ["a", "b"]',
        "[explain]",
        "N_SEGMENTS = 50",
        'CHECKPOINTS = ["a", "b"]',
    ]
    assert remember("attack", "N_SEGMENTS=60", "CHECKPOINTS=")[3:] == [
        "[attack]",
        "N_SEGMENTS = 60",
        "[explain]",
        "N_SEGMENTS = 50",
        'CHECKPOINTS = ["a", "b"]',
    ]
    assert remember("explain", "RESET=1")[3:] == ["[attack]", "N_SEGMENTS = 60"]
    assert remember("RESET=1") == ['DATASET = "synthetic"']


def test_a_run_keeps_to_its_file_as_a_person_has_edited_it(root):
    file = RunPaths("small").parameters
    file.parent.mkdir(parents=True)
    text = '# mine\nDATASET = "gtzan"\n[attack]\nN_SEGMENTS = 7\nEPSILONS = [0.01]\n'
    file.write_text(text)
    asked = read_request(["RUN=small"])
    assert asked.dataset == "gtzan"
    assert asked.given("attack") == {
        "RUN": "small",
        "CHECKPOINTS": ["documented", "improved", "robust"],
        "EPSILONS": [0.01],
        "EFFORT_CHANGES": {"n_segments": 7},
    }
    remember("RUN=small")
    assert file.read_text() == text
    assert "# mine" not in remember("attack", "RUN=small", "N_SEGMENTS=8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("N_SEGMENTS: 7", r"small\.toml is not valid TOML"),
        ("N_SEGMENTS = 7", r"small\.toml has N_SEGMENTS, which"),
        ("RUN = 'x'", r"small\.toml has RUN"),
        ("[atack]\nN_SEGMENTS = 7", r"small\.toml has N_SEGMENTS"),
        ("DATASET = 3", r"small\.toml has DATASET"),
        ("[attack]\nN_SEGMENT = 7", r"small\.toml has N_SEGMENT, which"),
        ("[attack]\nN_SEGMENTS = 1.5", "N_SEGMENTS=1.5 is of another type"),
        ("[train]\nEPOCHS = 0", "EPOCHS=0 is out of range"),
    ],
)
def test_a_file_of_a_run_without_meaning_is_refused(text, said, capsys):
    file = RunPaths("small").parameters
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert pipeline.main(["RUN=small"]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_stage_of_a_new_run_needs_explore_with_a_data_set(root):
    (root / "a" / "tracks").mkdir(parents=True)
    asked = read_request(["explore", "preprocess", "DATASET=a/tracks"])
    assert (asked.paths.run, asked.dataset) == ("tracks", "a/tracks")
    assert read_request(["RUN=new"]).dataset == "synthetic"
    assert read_request(["explore"]).paths.run == "synthetic"


@pytest.mark.parametrize("stages", [[], ["preprocess"], ["attack"]])
def test_a_run_of_another_corpus_of_the_same_name_is_refused(stages, root):
    for parent in "ab":
        (root / parent / "tracks").mkdir(parents=True)
    begin("tracks", "a/tracks", "tracks")
    assert read_request([*stages, "DATASET=a/tracks"]).dataset == "a/tracks"
    assert read_request([*stages, "RUN=tracks"]).dataset == "a/tracks"
    for other in ("b/tracks", "gtzan"):
        with pytest.raises(ValueError, match=f"run tracks was made of a/tracks, not of {other}"):
            read_request([*stages, "RUN=tracks", f"DATASET={other}"])


def test_a_run_of_an_archive_is_known_by_its_folder(root):
    (root / "logmels").mkdir()
    begin("logmels", "logmels/a.npz", "logmels")
    assert read_request(["preprocess", "DATASET=./logmels"]).dataset == "./logmels"


@pytest.mark.parametrize("run", ["archive (1)", "音楽", "cafe\u0301", "a.b-c_d", "(new) it's"])
def test_names_of_other_scripts_and_signs_name_a_run(run, root):
    (root / "corpora" / run).mkdir(parents=True)
    composed = run.replace("e\u0301", "é")
    assert read_request([f"DATASET=corpora/{run}"]).paths.run == composed
    assert read_request([f"RUN={run}"]).paths.run == composed
    assert src.paths.run_name(f"corpora/{run}") == composed


def made(root, *words):
    """Return the arguments that `make` with these words, and RUN in the environment, gives on."""
    (root / "bin").mkdir()
    (root / "run").touch()
    command = root / "bin" / "python"
    command.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[2:]))\n")
    command.chmod(0o755)
    words = ["make", "-s", f"VENV={root}", "-o", f"{root}/run", *words]
    environment = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "DATASET", "RUN"}}
    done = subprocess.run(
        words, cwd=REPOSITORY, env=environment | {"RUN": "a b"}, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def test_make_passes_its_variables_on_as_they_are(root):
    values = ['DATASET=my music/it\'s "x" (1), `a` \\ #;*?', "CHECKPOINTS=a,b", "SUFFIX="]
    module, *arguments = made(root, "train", "attack", *values)
    assert module == "src.pipeline"
    assert sorted(arguments) == sorted(["RUN=a b", "train", "attack", *values])


def test_make_evaluates_a_network_with_the_parameters_of_the_attack_stage(root):
    module, *arguments = made(root, "evaluate", "MODEL=own.part:net", "N_SEGMENTS=5")
    assert module == "src.evaluate_own"
    assert sorted(arguments) == ["CHECKPOINTS=own.part:net", "N_SEGMENTS=5", "RUN=a b"]


def test_make_publishes_checkpoints(root):
    arguments = made(root, "publish", "RUN=x y", "CHECKPOINTS=improved,robust")
    assert arguments == ["src.models.publish", "x y", "improved,robust"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["attack", "evaluate", "RUN=x"], "make evaluate needs MODEL"),
        (["publish", "RUN=x"], "make publish needs CHECKPOINTS"),
        (["page", "run=x"], "make page does not read run"),
        (["clean", "RUN=x"], "make clean does not read RUN"),
        (["N_SEGMENTS=3"], "make help does not read N_SEGMENTS"),
    ],
)
def test_make_refuses_variables_that_a_command_does_not_read_or_lacks(words, said):
    environment = {k: v for k, v in os.environ.items() if k != "MAKEFLAGS"}
    done = subprocess.run(
        ["make", "-n", *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, said in done.stderr) == (2, True)
