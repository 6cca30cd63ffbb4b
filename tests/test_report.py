import gzip
import io
import json
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from src import report
from src.paths import METRICS, ROOT, RunPaths
from src.report import DOCS, LARGEST_FIGURE, SOUND, collect, lighter, main, smaller
from src.results import read_json, write_csv, write_json

LARGEST_NOTEBOOK = 1_500_000  # bytes of a copy
TEXTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
GROWTH = [
    {"tracks": 100, "seconds": {"explore": 20, "preprocess": 21, "train": 9}},
    {"tracks": 1000, "seconds": {"explore": 56, "preprocess": 93}},
]
RATES = {"training": 70, "attacks": 287, "gradcam": 50, "features": 120}


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """Return a function that writes a committed table of rows."""
    monkeypatch.setattr(report, "METRICS", tmp_path)
    report.read.cache_clear()

    def write(name, rows, folder="real"):
        write_csv(tmp_path / folder / f"{name}.csv", pd.DataFrame(rows))
        return tmp_path / folder

    yield write
    report.read.cache_clear()


# ---------- numbers and tables


def test_committed_pages_are_rendered_byte_for_byte(tmp_path, monkeypatch, capsys):
    for folder, name in ((tmp_path, "ROOT"), (tmp_path / "docs", "DOCS")):
        monkeypatch.setattr(report, name, folder)
    (tmp_path / "docs").mkdir()
    for name in ("templates", "figures"):
        (tmp_path / "docs" / name).symlink_to(DOCS / name)
    assert main(["docs"]) == 0
    for page in report.pages():
        written, message = ROOT / page.relative_to(tmp_path), f"{page.name}: run `make docs`"
        assert page.read_bytes() == written.read_bytes(), message
    assert len(capsys.readouterr().out.splitlines()) == len(report.pages()) == 4


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(text):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text.read_text(encoding="utf-8"))
    assert [link for link in links if not (text.parent / link).exists()] == []


def test_numbers_are_percentages_with_intervals_of_either_corpus(committed):
    row = {"corpus": "gtzan", "accuracy": 0.5, "low": 0.25, "high": 1}
    committed("robustness", [row])
    committed("robustness", [row | {"corpus": "synthetic", "low": None}], "embedded")
    assert report.number("robustness", corpus="gtzan") == "50.0% [25, 100]"
    assert report.number("robustness", corpus="synthetic") == "50.0%"


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_a_number_that_is_not_one_is_refused(committed, attack):
    row = {"attack": "pgd", "accuracy": 0.5, "low": 0.25, "high": 1}
    committed("robustness", [row, row])
    with pytest.raises(ValueError, match=r"^robustness\.csv has (no row|2 rows) with [^\n]*\.$"):
        report.number("robustness", attack=attack)


def test_a_missing_table_names_its_command():
    with pytest.raises(FileNotFoundError, match="`make collect`"):
        report.read("nothing")


def cells(table):
    """Return the cells of a Markdown table, without its heading."""
    _, _, *lines = table.splitlines()
    return [[cell.strip() for cell in line.split("|")][1:-1] for line in lines]


def test_checkpoints_are_columns_and_names_have_their_labels(committed):
    rows = [
        {"corruption": kind, "severity": severity, "checkpoint": name, "accuracy": severity / 100}
        for kind, severity in (("none", 0.0), ("mp3", 32.0), ("mp3", 8.0))
        for name in ("documented", "robust")
    ]
    rows = pd.DataFrame(rows).assign(low=None, high=None)
    assert cells(report.compare(rows, ["corruption", "severity"])) == [
        ["none", "0", "0.0%", "0.0%"],
        ["MP3", "32", "32.0%", "32.0%"],
        ["MP3", "8", "8.0%", "8.0%"],
    ]


def test_a_value_has_the_interval_of_its_own_column(committed):
    row = {"segment_accuracy": 0.5, "segment_low": 0.1, "segment_high": 0.9, "low": 0, "high": 0}
    assert report.percentage(row, "segment_accuracy") == "50.0% [10, 90]"
    row = {"survival": 1, "survival_low": None, "survival_high": None}
    assert report.percentage(row, "survival") == "100.0%"
    assert report.percentage({"value": float("nan")}) == ""
    assert report.percentage({"value": 0.5}) == "50.0%"


def test_methods_are_lines_and_each_measure_has_its_own_condition(committed):
    row = {"corpus": "c", "checkpoint": "n", "low": None, "high": None, "eps": 0.01, "value": 0.25}
    row |= dict.fromkeys(report.LABELS, "")
    similar = row | {"method": "gradcam", "measure": "spearman", "condition": "succeeded_true"}
    rows = [
        similar | {"checkpoint": "other", "value": 1},
        similar | {"part": "drums", "value": 1},
        similar | {"eps": 1, "value": 1},
        similar,
        row | {"method": "gradcam", "measure": "insertion", "condition": "clean"},
        row | {"method": "hirescam", "measure": "insertion", "control": "noise", "value": 0.5},
    ]
    committed("explanations", rows)
    columns = {"similar": {"measure": "spearman", "eps": 0.01}}
    columns |= {"faithful": {"measure": "insertion", "control": "noise"}}
    table = report.compare_methods(columns, corpus="c", checkpoint="n")
    assert cells(table) == [["Grad-CAM", "0.25", ""], ["HiResCAM", "", "0.50"]]


def test_whole_tracks_count_as_correct_if_they_are_so_without_the_attack_too(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "METRICS", tmp_path)
    track = {"true": "jazz", "clean_prediction": "jazz", "adversarial_prediction": "rock"}
    track |= {"clean_prediction_shifted": "jazz", "adversarial_prediction_shifted": "jazz"}
    tracks = [{"track": "a"} | track, {"track": "b"} | track | {"clean_prediction": "rock"}]
    other = {"checkpoint": "pretrained_b_gtzan_mini", "noise_prediction": "jazz"}
    runs = {"old": [one | {"checkpoint": "pretrained_a"} for one in tracks]}
    runs |= {"new": [one | other for one in tracks]}
    for run, found in runs.items():
        write_json(tmp_path / "real" / run / "audio_attacks.json", {"tracks": found})
    table = report.whole_tracks([*runs])
    assert "| a, 2 tracks   | b, 2 tracks   |" in table
    assert {line[0]: line[1:] for line in cells(table)} == {
        "clean": ["50.0%", "50.0%"],
        "PGD on the waveform": ["0.0%", "0.0%"],
        "white noise (control)": ["", "50.0%"],
        "clean, 1.5 s later": ["100.0%", "100.0%"],
        "PGD, 1.5 s later": ["100.0%", "100.0%"],
    }


def test_confusions_are_those_of_wrong_segments_most_frequent_first(committed):
    folder = committed("training", [{"corpus": "c"}])
    counts = [[9, 2, 0], [5, 9, 0], [0, 0, 0]]  # c has no test segments
    test = {"per_genre": {"a": 1, "b": 1}, "confusion_segments": counts}
    write_json(folder / "r" / "training_n.json", {"test": test})
    write_json(folder / "r" / "data.json", {"genres": [*"abc"]})
    assert report.confusions("r", "n", 2) == "b as a (5), a as b (2)"


def test_accuracy_without_near_copies_counts_the_other_tracks(committed):
    pairs = [{"run": "r", "track": t, "difference_db": d} for t, d in (("a.1", 0.1), ("a.10", 5.0))]
    folder = committed("near_copies", [*pairs, {"run": "other", "track": "b", "difference_db": 1}])
    rows = pd.DataFrame({"track": ["a.1", "a.10", "a.10", "b"] * 2, "true": "a"})
    rows["checkpoint"], rows["eps"] = "n", [0.01] * 4 + [0.02] * 4
    rows["clean_prediction"] = ["a", "a", "a", "b"] * 2
    rows["adversarial_prediction"] = ["a", "a", "b", "b"] * 2
    (folder / "r").mkdir()
    rows.to_csv(folder / "r" / "attacks.csv.gz", index=False)
    assert report.near_copies("r")["track"].tolist() == ["a.1"]
    found = report.without_near_copies("r", "n", 0.01)
    assert found["clean"]["value"] == pytest.approx(2 / 3)
    assert found["worst_case"]["value"] == pytest.approx(1 / 3)
    assert found["clean"]["n_segments"] == 3
    assert report.near_copies("none").empty


def test_hours_and_bytes_are_computed_from_the_measured_rates(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "METRICS", tmp_path)
    same = {"ratio": 4.04, "share_of_limit": 0.5, "unit": "x/s", "difference": 0.001}
    same |= {"cpu": "AVX2", "precision": "float32", "memory_format": "contiguous_format"}
    for file, factor in (("bench_avx2_float32", 1), ("bench_avx512_bfloat16", 2)):
        stages = {name: same | {"rate": factor * rate} for name, rate in RATES.items()}
        write_json(tmp_path / f"{file}.json", stages)
    rows = [row | {"peak_rss_gib": dict.fromkeys(row["seconds"], 1.25)} for row in GROWTH]
    write_json(tmp_path / "growth.json", {"growth": rows})
    page = report.render("scaling.md")
    assert "| 100 | 20 | 1.25 | 21 | 1.25 | 9 | 1.25 |\n" in page
    assert "| 1,000 | 56 | 1.25 | 93 | 1.25 | | |\n" in page
    assert "| AVX2, float32 | 4.0 | 120 x/s | 50% | at most 0.001 dB |\n" in page
    assert "| AVX2, float32, contiguous_format | 4.0 | 140 x/s | 50% |" in page
    expected = {
        "arrays": 1000 * (0.6656 + 0.7 * 0.330752) / 1000,
        "explore": 1000 * 0.04 / 3600,
        "preprocess": 1000 * 0.08 / 3600,
        "train, one epoch": 7000 / 70 / 3600,
        "train, 30 epochs": 30 * 7000 / 70 / 3600,
        "FGSM and PGD, all test": 1500 * 7 * 41 / 287 / 3600,
        "maps, all test": 1500 / 50 / 3600,
    }
    for title, value in expected.items():
        line = [line for line in page.splitlines() if line.startswith(f"| {title}")][-1]
        assert line.split("|")[3].strip() == f"{value:.2g}"


def test_without_measurements_no_duration_is_claimed(monkeypatch):
    monkeypatch.setattr(report, "measurements", lambda kind: [])
    assert "`make run` takes" not in report.render("README.md")
    page = report.render("scaling.md")
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## How do I use more cores, machines or GPUs?",
        "## Which folders do FMA and MTG-Jamendo need?",
    ]


def test_durations_of_stages_are_those_of_each_machine(monkeypatch):
    found = [
        {
            "machine": {"cpu": cpu, "gradients": "float32"},
            "stages": {k: {"seconds": s, "peak_rss_gib": 1.5} for k in ("train", "attack")},
        }
        for cpu, s in (("AVX2", 61), ("AVX512", 30))
    ]
    monkeypatch.setattr(report, "measurements", lambda kind: found if kind == "stages" else [])
    assert "`make run` takes about 3 min " in report.render("README.md")
    assert "| train | 61 | 1.50 | 30 | 1.50 |\n" in report.render("scaling.md")


def as_of_a_larger_run(table):
    """Return a committed table with the whole test set, other seeds and another split."""
    sizes = {"n_segments": 1500, "n_tracks": 150}
    table = table.assign(**{name: n for name, n in sizes.items() if name in table})
    seed = table[table["checkpoint"] == "documented"].assign(checkpoint="documented_43")
    if "seed" in table:
        seed = seed[:0]
    split = table.assign(split="stratified", run="gtzan_logmel_stratified")
    split = split[: len(table) if "split" in table else 0]
    return pd.concat([table, seed, split])


def later_tables(robustness):
    """Return tables of notebook 4 and of comparisons by name, from rows of robustness."""
    row = robustness[(robustness["attack"] == "worst_case") & (robustness["eps"] == 0.01)]
    row = row.assign(made_on=row["checkpoint"], unit="segment", mean_confidence=0.9)
    row["calibration_error"] = 0.25
    gains = {"equalizer_10": 3, "equalizer_10_random": 3, "equalizer_64": 6, "tempo_pitch": 0}
    gains |= {"equalizer_10_random_worst": 3, "clean": 0}
    clean = [row.assign(made_on="clean", unit=unit) for unit in ("segment", "track")]
    changes = '{"adversarial_steps": 2, "warp": 0.2}'
    ablation = {"recipe": "robust", "changes": changes, "seed": 42, "epochs": 24}
    ablation |= {"clean_accuracy": 0.78}
    ablation |= {"low": 0.7, "high": 0.8, "robust_accuracy": 0.43, "robust_low": 0.4}
    ablation |= {"robust_high": 0.5, "n_segments": 1500, "n_tracks": 150}
    measures = "clean_accuracy robust_accuracy class_specificity prototype_margin spearman".split()
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "n_segments": 150, "n_tracks": 147}
    share |= {"corpus": "gtzan_logmel", "split": "random", "recipe": "improved"}
    share |= {"answer": "undecided"}
    pooled = [share | {"seeds": "42"}, share | {"seeds": "42, 43", "n_segments": 300}]
    seeds = [row | {"measure": measure} for row in pooled for measure in measures]
    step = {"run": "gtzan_mini", "checkpoint": "robust", "input": "audio", "accuracy": 0.78}
    step |= {"low": 0.7, "high": 0.8, "difference_value": 0.02, "difference_low": 0.01}
    step |= {"difference_high": 0.03, "difference_p_holm": 0.01}
    return {
        "equalizer": pd.concat(row.assign(attack=k, eps_db=db) for k, db in gains.items()),
        "universal": pd.concat(row.assign(attack=k) for k in ("universal", "universal_random")),
        "genre_robustness": pd.concat(row.assign(true=genre) for genre in ("blues", "jazz")),
        "transfer": pd.concat([row, *clean]),
        "ablation": pd.DataFrame([ablation, ablation | {"changes": "{}"}]),
        "seeds": pd.DataFrame(seeds),
        "black_box": row.assign(attack="hop_skip_jump", only=2, median_db=1.25),
        "audio_step": pd.DataFrame([step | {"n_segments": 190, "n_tracks": 19}]),
    }


def add_filtered_split(folder):
    """Give `improved_brief` the rows of `improved` on another split, of notebooks 4 and 5."""
    for name in ("attacks.json", "explanations.json"):
        shutil.copy(folder / "gtzan_logmel" / name, folder / "gtzan_logmel_filtered" / name)
    for name in ("robustness", "equalizer", "transfer", "explanations"):
        table = pd.read_csv(folder / f"{name}.csv")
        table = table[table["run"] != "gtzan_logmel_filtered"]
        own = table[(table["run"] == "gtzan_logmel") & (table["checkpoint"] == "improved")]
        changes = {"run": "gtzan_logmel_filtered", "split": "filtered"}
        changes |= {"checkpoint": "improved_brief"}
        changes = {column: changes[column] for column in changes if column in own}
        own = own.assign(**changes, **{"accuracy" if "accuracy" in own else "value": 0.125})
        write_csv(folder / f"{name}.csv", pd.concat([table, own]))


SECTIONS = {  # of later tables: a line in the page
    "equalizer": "## Does an equaliser mislead them?",
    "universal": "| mean of random signs of the same eps ",
    "genre_robustness": "| blues ",
    "transfer": "## Does an attack on one network mislead another?",
    "robustness": "| measure | `improved`, random | `improved_brief`, filtered |",
    "ablation": "| `robust` | adversarial_steps 2, warp 0.2 | 42 | 24 | 78.0% [70, 80] | ",
    "seeds": "| `improved` | 42, 43 | 50.0% [40, 60] | 50.0% [40, 60] | 300 (147) | ",
    "black_box": "1.2 dB (`robust`).",
    "audio_step": "| `robust` | audio | 78.0% [70, 80] | 2.0 [1.0, 3.0], p 0.01 | 190 (19) |",
}


@pytest.mark.usefixtures("committed")
def test_pages_can_show_larger_runs_with_other_seeds_splits_and_later_tables():
    """No page fails or shows a missing number; each later table has a section, none without it."""
    folder = report.METRICS / "real"
    shutil.copytree(METRICS, folder.parent, dirs_exist_ok=True)
    needed = ("transfer", "genre_robustness", "robustness")
    absent = [name for name in SECTIONS if name not in needed]
    for name in absent:
        (folder / f"{name}.csv").unlink(missing_ok=True)
    page = report.render("results.md")
    assert [name for name in absent if SECTIONS[name] in page] == []
    report.read.cache_clear()
    for file in folder.glob("*.csv"):
        table = pd.read_csv(file)
        if "checkpoint" in table and "corpus" in table:
            write_csv(file, as_of_a_larger_run(table))
    for name, table in later_tables(pd.read_csv(folder / "robustness.csv")).items():
        write_csv(folder / f"{name}.csv", table)
    audio = pd.read_csv(folder / "audio_attacks.csv")
    sounds = audio[audio["attack"] == "pgd_spectrogram_resynthesized"]
    more = [sounds.assign(attack=k) for k in ("pgd_spectrogram_optimized", "equalizer_file")]
    write_csv(folder / "audio_attacks.csv", pd.concat([audio, *more]))
    explanations = pd.read_csv(folder / "explanations.csv").assign(p_holm=0.2, p_value=0.1)
    explanations = explanations[~explanations["condition"].str.startswith("manipulated")]
    own = explanations[explanations["condition"] == "succeeded_true"]
    map_attack = own[own["compared_with"].isna() & (own["eps"] == 0.01)]
    margin = map_attack[map_attack["measure"] == "spearman"].assign(measure="prototype_margin")
    more = [map_attack.assign(condition=c) for c in ("manipulated", "manipulated_noise")]
    more += [margin.assign(condition="adversarial", compared_with="documented")]
    write_csv(folder / "explanations.csv", pd.concat([explanations, *more]))
    add_filtered_split(folder)
    page = report.render("results.md")
    assert [line for line in SECTIONS.values() if line not in page] == []
    assert "The whole test set of `gtzan_logmel`, random split: 1500 segments of 150 tracks" in page
    assert "| documented_43 " in page
    assert "| `robust` | PGD, 0.8 dB | " in page
    apart = {line.split(" | ")[0]: line.split(" | ")[1:] for line in page.splitlines()}
    assert apart["| worst equaliser, 10 bands"][1].startswith("12.5% [")
    assert apart["| finding 3"][1].startswith("0.12 [")
    assert "| Grad-CAM " in page
    assert "| attack on the map " in page
    assert "| spectrogram PGD, optimised sound " in page
    assert "An equaliser of 10 bands, the worst one " in page
    assert "  `robust` less `documented` " in page
    assert "the whole test set" in report.render("README.md")
    assert "| 1,500 segments of 150 tracks | the whole test set |" in report.render(
        "documentation.md"
    )
    for name in ("README.md", "results.md", "documentation.md"):
        assert not re.search(r"\bnan\b|\bNone\b|\n\n\n", report.render(name))


def test_a_figure_is_shown_with_its_reading_once_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "DOCS", tmp_path)
    assert report.figure("curve", "A curve", "Higher is better.") == ""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "curve.png").touch()
    shown = report.figure("curve", "A curve", "Higher is better.")
    assert shown == "![A curve](figures/curve.png)\n\n*Higher is better.*\n\n"


def test_every_figure_that_is_copied_is_shown_with_an_alternative_text():
    texts = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "templates").glob("*.md"))
    shown = set(re.findall(r"!\[[^\]]{9,}\]\((?:docs/)?figures/(\w+)\.png\)", texts))
    shown |= set(re.findall(r'figure\("(\w+)", "[^"]{9,}", "[^"]+"\)', texts))
    assert set(report.FIGURES) <= shown


# ---------- copies of figures and notebooks


def test_figures_and_notebooks_are_small_and_without_sound():
    figures = list((DOCS / "figures").glob("*.png"))
    assert figures
    assert [f.name for f in figures if f.stat().st_size > LARGEST_FIGURE] == []
    notebooks = list((DOCS / "notebooks").glob("*.ipynb"))
    assert len(notebooks) == 5
    for notebook in notebooks:
        text = notebook.read_text(encoding="utf-8")
        assert len(text) <= LARGEST_NOTEBOOK
        assert SOUND not in text
        assert '"execution_count": 1' in text


def test_a_large_figure_is_made_smaller():
    noise = np.random.default_rng(0).integers(256, size=(700, 700, 3), dtype=np.uint8)
    found = io.BytesIO()
    Image.fromarray(noise).save(found, "PNG")
    small = smaller(found.getvalue())
    assert len(small) <= LARGEST_FIGURE < found.tell()
    assert Image.open(io.BytesIO(small)).width > 300
    assert Image.open(io.BytesIO(smaller(found.getvalue(), 200))).width == 200


def test_a_copy_of_a_notebook_has_no_sound_no_bars_and_keeps_its_answers(tmp_path):
    sound = {"text/html": f'<p>{SOUND} src="data:audio/wav;base64,AAAA"></p>', "text/plain": "x"}
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": "<table></table>"}),
        nbformat.v4.new_output("display_data", sound),
        nbformat.v4.new_output("display_data", {report.WIDGET: {}, "text/plain": "bar"}),
        nbformat.v4.new_output("stream", name="stderr", text="50%"),
        nbformat.v4.new_output("stream", name="stdout", text="80 tracks"),
    ]
    cell = nbformat.v4.new_code_cell("1", outputs=outputs, metadata={"papermill": {"duration": 1}})
    facts = {"papermill": {"path": "/x"}, "kernelspec": {"name": "python3", "display_name": "p"}}
    cells = [nbformat.v4.new_markdown_cell("text", metadata=cell.metadata), cell]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=facts), tmp_path / "n.ipynb")
    light = nbformat.reads(lighter(tmp_path / "n.ipynb"), as_version=4)
    kept = light.cells[1].outputs
    assert [output.output_type for output in kept] == ["display_data", "stream"]
    assert kept[0].data["text/html"] == "<table></table>"
    assert "papermill" not in json.dumps(light)
    assert light.metadata.kernelspec.name == "python3"
    nbformat.validate(light)


# ---------- collected results


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return the root of runs whose metadata need no arrays."""
    monkeypatch.setattr("src.paths.ROOT", tmp_path)
    metadata = lambda paths: read_json(paths.processed / "metadata.json")  # noqa: E731
    monkeypatch.setattr(report, "load_metadata", metadata)
    return tmp_path


def make_run(run, names, corpus="gtzan"):
    """Write the results of a run with these checkpoints."""
    folder = RunPaths(run).metrics
    data = {"corpus": corpus, "n_tracks": 7, "fingerprint": "new"}
    write_json(RunPaths(run).processed / "metadata.json", data)
    for name in names:
        result = {"corpus": "x", "checkpoint": name, "fingerprint": "new"}
        write_json(folder / f"training_{name}.json", result)
    rows = [{"corpus": corpus, "recipe": name, "checkpoint": name} for name in sorted(names)]
    write_csv(folder / "training.csv", pd.DataFrame(rows))


def test_tables_of_runs_are_concatenated_and_missing_ones_named(root, capsys):
    make_run("one", ["documented", "robust"])
    make_run("two", ["documented"])
    write_csv(RunPaths("one").metrics / "robustness.csv", pd.DataFrame({"eps": [0.1]}))
    collect(["one", "two"], root)
    table = pd.read_csv(root / "real" / "training.csv")
    assert table["recipe"].tolist() == ["documented", "robust", "documented"]
    assert table["run"].tolist() == ["one", "one", "two"]
    assert read_json(root / "real/one/training_robust.json")["checkpoint"] == "robust"
    said = capsys.readouterr().out.splitlines()
    assert "real/training: 2 runs" in said
    assert "real/robustness: 1 runs, none of two" in said
    assert "real/corruptions: 0 runs, none of one, none of two" in said
    assert not (root / "real" / "corruptions.csv").exists()

    (RunPaths("one").metrics / "robustness.csv").unlink()
    (RunPaths("one").metrics / "training_robust.json").unlink()
    write_csv(RunPaths("one").metrics / "training.csv", table.iloc[:1].drop(columns="run"))
    collect(["one"], root)
    assert not (root / "real" / "robustness.csv").exists()  # of an earlier collection
    assert not (root / "real/one/training_robust.json").exists()

    (RunPaths("one").metrics / "audit.json").write_text("{")
    with pytest.raises(ValueError, match=r"audit\.json"):
        collect(["one"], root)
    assert read_json(root / "real/one/training_documented.json")["checkpoint"] == "documented"


def test_results_of_other_arrays_are_not_collected(root):
    make_run("one", ["documented"])
    old = {"checkpoint": "robust", "fingerprint": "old"}
    write_json(RunPaths("one").metrics / "training_robust.json", old)
    collect(["one"], root)
    assert [file.name for file in (root / "real/one").glob("training_*")] == [
        "training_documented.json"
    ]
    facts = {"documented": {"key": "k"}, "robust": {"key": "k"}}
    write_json(RunPaths("one").metrics / "attacks.json", {"checkpoints": facts})
    said = r"attacks\.json has robust .* run `make train attack RUN=one`"
    with pytest.raises(ValueError, match=said):
        collect(["one"], root)


def test_the_embedded_corpus_is_not_taken_for_real(root):
    make_run("toy", ["documented"], corpus="synthetic")
    make_run("one", ["documented", "robust"])
    collect(["toy", "one"], root)
    assert len(pd.read_csv(root / "embedded" / "training.csv")) == 1
    assert pd.read_csv(root / "real" / "training.csv")["corpus"].tolist() == ["gtzan"] * 2
    assert not (root / "real" / "toy").exists()


def test_data_and_records_are_collected_and_are_the_same_bytes_twice(root):
    make_run("one", ["documented"])
    attacks = pd.DataFrame({"attack": ["pgd", "worst_case"], "segment": [3, 4], "l2": ["0.10", ""]})
    write_csv(RunPaths("one").metrics / "attacks.csv", attacks)
    collect(["one"], root)
    records = root / "real/one/attacks.csv.gz"
    first = records.read_bytes()
    assert first[4:8] == bytes(4)  # no time in the archive
    collect(["one"], root)
    assert records.read_bytes() == first
    assert gzip.decompress(first) == b"attack,segment,l2\nworst_case,4,\n"
    assert read_json(root / "real/one/data.json")["n_tracks"] == 7


REFUSALS = {
    ("collect",): r"^No run to collect: [^\n]*make collect RUNS=[^\n]*\.$",
    ("collect", " my run, two"): r"^results/metrics/my run has no results: [^\n]*\.$",
    ("collect", "none"): r"^results/metrics/none has no results: [^\n]*\.$",
    ("docs", "none"): r"^results/figures/none has no results: [^\n]*\.$",
}


@pytest.mark.parametrize("words", REFUSALS)
def test_a_run_without_results_ends_in_one_sentence_and_writes_nothing(words, root):
    with pytest.raises(SystemExit, match=REFUSALS[words]):
        main([*words])
    assert not (root / "results").exists()
