import ast
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from src.attacks.corruptions import CORRUPTIONS
from src.attacks.flags import FLAGS
from src.explainability.attributions import CONTROLS, METHODS
from src.explainability.records import COLUMNS, KEYS
from src.models import cnn
from src.models.cnn import GenreClassifierCNN, count_parameters
from src.parameters import show_value
from src.paths import NOTEBOOKS, ROOT, STAGES
from src.pipeline import ATTACK_TABLES

BOOKS = sorted(NOTEBOOKS.glob("*.ipynb"))
CODE_LINES = 15
INTERVAL = "95%"  # the level of all intervals: the one percentage that may stand in prose
FIGURES = """
    exploration_genres exploration_waveforms exploration_spectrograms
    preprocessing_segments preprocessing_bands
    documented/training_history documented/confusion_matrix documented/genre_accuracy
    improved/training_history improved/confusion_matrix improved/genre_accuracy
    robust/training_history robust/confusion_matrix robust/genre_accuracy recipes corruptions
    adversarial_robustness adversarial_fragility adversarial_flow adversarial_perturbations
    adversarial_equalizer adversarial_universal audio_success audio_survival
    gradcam/baseline_correct gradcam_natural_failure gradcam_fgsm_comparison gradcam_pgd_comparison
    explanations_shift explanations_shift_measures explanations_faithfulness
    explanations_box explanations_manipulated explanations_parts
    explanations_sanity explanations_bands explanations_methods
""".split()
TRAINING_COLUMNS = """
    corpus split recipe seed epochs segment_accuracy segment_low segment_high
    track_accuracy track_low track_high macro_recall n_tracks
    track_macro_recall checkpoint changes
""".split()
ACCURACIES = ("segment_accuracy", "track_accuracy")
EFFORT = """
    n_segments 20 iterations 3 n_restarts 2 square_queries 2 n_hard_label 1 hard_label_steps 1
    n_minimal 4 n_universal 8 n_tracks 2 n_corrupted 4 n_audio 4 n_audio_tracks 1 audio_iterations 2
    n_explained 12 n_methods 2 n_slow 1 explain_iterations 2
    n_per_genre 1 n_failures 2 n_listened 1
""".split()
EFFORT = dict(zip(EFFORT[::2], map(int, EFFORT[1::2]), strict=True))
TINY = {name.upper(): number for name, number in EFFORT.items()} | {
    "TRACKS_PER_GENRE": 7,
    "EPOCHS": 2,
    "BATCH_SIZE": 16,
    "RECIPES": ["documented", "improved", "robust"],
    "CHECKPOINTS": ["documented", "robust"],
    "SUITE_EPSILONS": [0.01],
    "SNR_DB": [20, 40],
}
EPSILONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
SLIM = {"WIDTHS": (8, 16, 16, 16), "DENSE": (64, 64)}  # of the network

every_notebook = pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def code(path):
    return "\n".join(cell.source for cell in cells(path, "code"))


def test_there_is_one_notebook_a_stage():
    assert [path.stem for path in BOOKS] == list(STAGES.values())


@every_notebook
def test_no_outputs_are_committed(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    for cell in cells(path, "code"):
        assert cell.outputs == []
        assert cell.execution_count is None


@every_notebook
def test_code_that_is_used_twice_lies_in_src(path):
    nodes = list(ast.walk(ast.parse(code(path))))
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    assert not [node for node in nodes if isinstance(node, definitions)]


@every_notebook
def test_nothing_bends_the_environment(path):
    forbidden = r"sys\.path|os\.chdir|filterwarnings|simplefilter|\bpip\b|\bconda\b|get_ipython"
    assert not re.findall(forbidden, code(path))
    assert not re.findall(r"^\s*[!%]", code(path), re.MULTILINE)


@every_notebook
def test_code_cells_are_short(path):
    for cell in cells(path, "code"):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        long = _only_imports(cell.source) or "parameters" in cell.metadata.get("tags", [])
        assert len(lines) <= CODE_LINES or long, cell.source


def _only_imports(source):
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source).body)


@every_notebook
def test_imports_stand_first(path):
    (first, *others) = cells(path, "code")
    assert _only_imports(first.source)
    for cell in others:
        assert not re.search(r"^\s*(import|from) ", cell.source, re.MULTILINE)


@every_notebook
def test_one_cell_of_parameters_explains_each(path):
    tagged = [cell for cell in cells(path, "code") if "parameters" in cell.metadata.get("tags", [])]
    (parameters,) = tagged
    for line in parameters.source.splitlines():
        assert re.fullmatch(r"[A-Z_]+ = [^#]+  # \S.*", line), line


@every_notebook
def test_every_parameter_is_used(path):
    tagged = [cell for cell in cells(path, "code") if "parameters" in cell.metadata.get("tags", [])]
    (declared,) = (re.findall(r"^[A-Z_]+", cell.source, re.MULTILINE) for cell in tagged)
    names = [node.id for node in ast.walk(ast.parse(code(path))) if isinstance(node, ast.Name)]
    assert [name for name in declared if names.count(name) < 2] == []


@pytest.mark.parametrize("path", BOOKS[3:4], ids=lambda path: path.stem)
def test_it_is_short(path):
    n_cells = len(nbformat.read(path, as_version=4).cells)
    n_lines = sum(len(cell.source.splitlines()) for cell in cells(path, "code"))
    n_words = sum(len(cell.source.split()) for cell in cells(path, "markdown"))
    assert (n_cells <= 45, n_lines <= 160, n_words <= 800) == (True, True, True)


@every_notebook
def test_a_cell_can_run_again_after_later_cells(path):
    """A name that several cells assign is assigned anew by each cell that reads it."""
    names = [
        [
            (node.id, type(node.ctx))
            for node in ast.walk(ast.parse(cell.source))
            if isinstance(node, ast.Name)
        ]
        for cell in cells(path, "code")
    ]
    assigned = [{name for name, how in found if how is ast.Store} for found in names]
    counts = Counter(name for found in assigned for name in found)
    for found, own in zip(names, assigned, strict=True):
        read = {name for name, how in found if how is ast.Load}
        assert {name for name in read - own if counts[name] > 1} == set()


@every_notebook
def test_it_opens_with_what_it_reads_writes_and_costs(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith(f"# {int(path.name[:2])}. ")
    for row in ("reads", "writes", "costs"):
        assert re.search(rf"^\| {row} \| \S.+ \|$", first.source, re.MULTILINE), row


@every_notebook
def test_no_result_is_typed_into_prose(path):
    for cell in cells(path, "markdown")[1:]:
        assert not re.findall(r"\d\s*%", cell.source.replace(INTERVAL, "")), cell.source


def test_tracked_text_names_no_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository")
    here = re.escape(str(ROOT))
    for name in listed.stdout.splitlines():
        if (ROOT / name).suffix not in {".py", ".ipynb", ".md", ".toml", ".txt", ".json", ".csv"}:
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(rf"{here}\b|/home/\w|/Users/\w|\b[A-Z]:\\\w", text), name


def copy_of_the_repository(folder):
    """Return a folder with what a run needs and no data or results."""
    for name in ("notebooks", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, folder)
    return folder


def slim(folder):
    """Give the network of a copy of the repository few channels; return the folder."""
    with (folder / "src" / "models" / "cnn.py").open("a") as file:
        file.writelines(f"{name} = {widths}\n" for name, widths in SLIM.items())
    return folder


def pipeline(folder, *arguments, **parameters):
    """Run `python -m src.pipeline` in a copy of the repository; return what it printed."""
    given = [f"{name}={show_value(value)}" for name, value in parameters.items()]
    done = subprocess.run(
        [sys.executable, "-m", "src.pipeline", *arguments, *given],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def results(folder, run):
    """Return the JSON results of a run by name."""
    files = (folder / "results" / "metrics" / run).glob("*.json")
    return {path.stem: json.loads(path.read_text()) for path in files}


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return a copy of the repository in which all five notebooks ran on a small corpus."""
    folder = slim(copy_of_the_repository(tmp_path_factory.mktemp("repository")))
    pipeline(folder, "RUN=tiny", **TINY)
    return folder


def test_the_five_notebooks_run_without_errors(tiny):
    executed = sorted((tiny / "results" / "notebooks" / "tiny").glob("*.ipynb"))
    assert [path.stem for path in executed] == list(STAGES.values())
    for path in executed:
        done = cells(path, "code")
        assert all(cell.execution_count for cell in done)
        kinds = {output.output_type for cell in done for output in cell.outputs}
        assert "error" not in kinds
        assert "display_data" in kinds  # figures show


def test_results_say_what_they_depend_on(tiny):
    found = results(tiny, "tiny")
    training = {f"training_{name}" for name in TINY["RECIPES"]}
    attacks = {"attacks", "audio_attacks"}
    assert set(found) == {"audit", "gradcam", "explanations"} | attacks | training
    for name, result in found.items():
        assert (result["corpus"], result["seed"]) == ("synthetic", 42)
        assert {"python", "torch", "numpy"} <= set(result["versions"])
        assert result["machine"]["threads"] == 1
        assert result["machine"]["gradients"] in {"float32", "bfloat16"}
        assert result["machine"]["evaluation"] == "float32"
        stated = {key.upper(): value for key, value in result["parameters"].items()}
        given = {key: value for key, value in TINY.items() if key in stated}
        assert stated.get("EFFORT_CHANGES", {}).items() <= EFFORT.items()
        assert given, name
        assert stated | given == stated
    processed = json.loads((tiny / "data/processed/tiny/metadata.json").read_text())
    stages = [found[name] for name in ("attacks", "gradcam", "explanations", *training)]
    assert {result["fingerprint"] for result in stages} == {processed["fingerprint"]}


def test_results_are_fractions_of_the_segments_there_are(tiny, monkeypatch):
    found = results(tiny, "tiny")
    assert (found["audit"]["n_tracks"], found["audit"]["n_used"]) == (70, 70)
    training = found["training_documented"]
    for name, widths in SLIM.items():
        monkeypatch.setattr(cnn, name, widths)
    assert training["n_parameters"] == count_parameters(GenreClassifierCNN())
    assert len(training["history"]) == TINY["EPOCHS"]
    assert np.sum(training["test"]["confusion_segments"]) == 100
    assert np.sum(training["test"]["confusion_tracks"]) == 10
    measures = [training[who][what] for who in ("test", "baseline") for what in ACCURACIES]
    measures += training["test"]["per_genre"].values()
    for measure in measures:
        assert 0 <= measure["value"] <= 1
        assert measure["low"] is None or 0 <= measure["low"] <= measure["high"] <= 1
    assert training["baseline"]["segment_accuracy"]["value"] > 2 * training["test"]["chance"]


def test_each_recipe_has_a_row_and_its_predictions(tiny):
    metrics = tiny / "results" / "metrics" / "tiny"
    table = pd.read_csv(metrics / "training.csv")
    assert table["recipe"].tolist() == TINY["RECIPES"]
    assert list(table) == TRAINING_COLUMNS
    for row in table.itertuples():
        told = pd.read_csv(metrics / f"predictions_{row.recipe}.csv")
        assert (told["predicted"] == told["true"]).mean() == pytest.approx(row.segment_accuracy)
        songs = told.drop_duplicates("track")
        right = songs["track_predicted"] == songs["true"]
        assert right.mean() == pytest.approx(row.track_accuracy)
        assert (len(told), len(songs)) == (100, row.n_tracks)
    history = results(tiny, "tiny")["training_robust"]["history"]
    assert all(0 <= epoch["robust_accuracy"] <= 1 for epoch in history)


def test_tables_have_one_row_a_record(tiny):
    metrics = tiny / "results" / "metrics" / "tiny"
    maps, shown = pd.read_csv(metrics / "gradcam.csv"), results(tiny, "tiny")["gradcam"]["maps"]
    assert maps.groupby("category").size().to_dict() == {k: v["n_maps"] for k, v in shown.items()}
    n_correct = shown["baseline_correct"]["n_maps"]
    assert 1 <= n_correct <= 10
    assert shown["natural_failures"]["n_maps"] == 2 * EFFORT["n_failures"]
    for name in ("fgsm", "pgd"):  # each clip at its smallest flip and at the documented eps
        assert shown[f"adversarial_{name}"]["n_maps"] == 2 * n_correct


def test_attacks_are_told_segment_by_segment(tiny):
    metrics = tiny / "results" / "metrics" / "tiny"
    attacks = pd.read_csv(metrics / "attacks.csv", keep_default_na=False)
    keys = ["checkpoint", "attack", "eps"]
    counts = attacks.groupby(keys).size().unstack("eps")
    everywhere = ["fgsm", "pgd", "worst_case", "noise_linf", "noise_l2"]
    for checkpoint in ("documented", "robust"):
        own = counts.loc[checkpoint]
        assert (own.loc[everywhere] == EFFORT["n_segments"]).all(axis=None)
        assert (own.loc["apgd_dlr"].dropna() == EFFORT["n_segments"]).all()
    assert sorted(attacks["eps"].unique()) == list(EPSILONS)
    robustness = pd.read_csv(metrics / "robustness.csv").set_index(keys)
    right = attacks["adversarial_prediction"] == attacks["true"]
    told = right.groupby([attacks[key] for key in keys]).mean()
    pd.testing.assert_series_equal(robustness["accuracy"].loc[told.index], told, check_names=False)
    assert (robustness["low"].dropna() <= robustness["accuracy"][robustness["low"].notna()]).all()


def test_attacks_on_audio_are_recorded_by_attack_ratio_and_codec(tiny):
    metrics = tiny / "results" / "metrics" / "tiny"
    table = pd.read_csv(metrics / "audio_attacks.csv")
    assert set(table["checkpoint"]) == {"documented", "robust"}
    assert {"clean", "noise", "fgsm_waveform", "pgd_waveform", "pgd_masked"} <= set(table["attack"])
    files = table[(table["codec"] == "wav16") & (table["attack"] == "pgd_waveform")]
    assert set(files["snr_db"]) == set(TINY["SNR_DB"])
    assert (table["n_segments"] == EFFORT["n_audio"]).all()
    assert list((tiny / "results" / "audio" / "tiny" / "documented").rglob("*.wav"))


def test_a_report_of_robustness_has_all_of_its_parts(tiny):
    metrics = tiny / "results" / "metrics" / "tiny"
    names = (*ATTACK_TABLES, "corruptions")
    tables = {name: pd.read_csv(metrics / f"{name}.csv") for name in names}
    for name in ("robustness", "corruptions", "transfer", "comparison"):
        assert (tables[name]["split"] == "random").all()
    severities = {(name, s) for name, kind in CORRUPTIONS.items() for s in kind.severities}
    corrupted = tables["corruptions"]
    told = set(zip(corrupted["corruption"], corrupted["severity"], strict=True))
    assert told == severities | {("none", 0)}
    assert (corrupted["n_segments"] == EFFORT["n_corrupted"]).all()
    assert (
        tables["transfer_tracks"]
        .groupby(["checkpoint", "made_on"])
        .size()
        .eq(EFFORT["n_tracks"])
        .all()
    )
    assert tables["minimal_eps"].groupby("checkpoint").size().le(EFFORT["n_minimal"]).all()
    assert set(tables["comparison"]["checkpoint"]) == {"robust"}
    told = results(tiny, "tiny")["attacks"]
    flags = {(flag["checkpoint"], flag["flag"]) for flag in told["flags"]}
    assert flags == {(name, flag) for name in ("documented", "robust") for flag in [*FLAGS][:-1]}
    assert all({"raised", "raised_if", "what_to_do", "found"} <= set(f) for f in told["flags"])
    assert set(told["pgd_to_worst_case"]) == {"documented", "robust"}


def test_explanations_have_their_controls(tiny):
    metrics = tiny / "results" / "metrics" / "tiny"
    table = pd.read_csv(
        metrics / "explanations.csv", keep_default_na=False, na_values={"low": [""], "high": [""]}
    )
    assert list(table) == COLUMNS
    assert set(table["method"]) == {*METHODS, *CONTROLS}
    assert set(table["corpus"]) == {"synthetic"}
    assert (table["n_segments"] >= 1).all()
    swept = table[(table["measure"] == "spearman") & (table["condition"] == "noise")]
    assert set(swept["eps"]) == set(EPSILONS)
    assert {"insertion", "road", "relevance_mass", "mod", "vid", "empty"} <= set(table["measure"])
    assert set(table.loc[table["measure"] == "insertion", "control"]) == {"", *CONTROLS}
    means = table[table["compared_with"] == ""].set_index([*KEYS, "genre"])
    rows = pd.read_csv(
        metrics / "explanations_records.csv", keep_default_na=False, na_values={"value": [""]}
    )
    rows["genre"] = rows["genre"].where(rows["part"] != "", "")
    for key, group in rows.dropna(subset="value").groupby([*KEYS, "genre"]):
        if "nissim" not in key:
            line = means.loc[key]
            mean = pytest.approx(group["value"].mean(), abs=1e-5)
            assert (line["n_segments"], line["value"]) == (len(group), mean)


def test_maps_can_be_heard(tiny):
    sounds = list((tiny / "results" / "audio" / "tiny" / "explanations").glob("*.wav"))
    assert len(sounds) in (0, 5 * EFFORT["n_listened"])  # none if no attack flips a clip


def test_every_documented_figure_is_drawn(tiny):
    folder = tiny / "results" / "figures" / "tiny"
    maps = results(tiny, "tiny")["gradcam"]["maps"]
    n_correct = maps["baseline_correct"]["n_maps"]
    singles = {
        "baseline_correct": n_correct,
        "natural_failures": EFFORT["n_failures"],
        "adversarial_fgsm": n_correct,
        "adversarial_pgd": n_correct,
    }
    for name, n in singles.items():
        assert len(list((folder / "gradcam" / name).glob("*.png"))) == n
    drawn = list(folder.rglob("*.png"))
    assert {f"{folder / name}.png" for name in FIGURES} <= set(map(str, drawn))
    cases = {p.stem for p in folder.glob("audio_*.png")} - set(FIGURES)
    assert cases <= {"audio_good", "audio_middle", "audio_bad"}
    correct = list(folder.glob("gradcam_correct_*.png"))  # of metal, if there is a correct one
    assert len(correct) == 1
    assert len(drawn) == len(FIGURES + correct) + len(cases) + sum(singles.values())
    assert all(plt.imread(path).std() > 0 for path in drawn)


def test_figures_are_named_in_the_opening_of_their_notebook(tiny):
    opening = " ".join(cells(path, "markdown")[0].source for path in BOOKS)
    patterns = re.findall(r"(\w+)(\*|\.png)", opening)
    for name in FIGURES:
        stem = Path(name).name
        assert any(
            stem.startswith(start) if end == "*" else stem == start for start, end in patterns
        ), name


def test_a_second_run_executes_nothing_and_remembers_its_parameters(tiny):
    before = times(tiny / "results") | times(tiny / "data")
    said = pipeline(tiny, "RUN=tiny")
    assert re.findall(r"^(--|\.) +(\w+)$", said, re.MULTILINE) == [("--", s) for s in STAGES]
    after = times(tiny / "results") | times(tiny / "data")
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {".doit.db"}
