import io
import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from src.docs import numbers, tables
from src.docs.__main__ import DOCS, PAGES, render
from src.docs.copies import LARGEST_FIGURE, LARGEST_NOTEBOOK, SOUND, lighter, smaller
from src.paths import ROOT
from src.results import write_csv, write_json

OF = {"corpus": "gtzan", "checkpoint": "documented"}
TEXTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """Return a function that writes a committed table of rows."""
    monkeypatch.setattr(numbers, "METRICS", tmp_path)
    numbers.read.cache_clear()

    def write(name, rows, folder="real"):
        write_csv(tmp_path / folder / f"{name}.csv", pd.DataFrame(rows))
        return tmp_path / folder

    yield write
    numbers.read.cache_clear()


@pytest.mark.parametrize("page", PAGES)
def test_committed_pages_say_what_the_committed_results_say(page):
    written = (PAGES[page] / page).read_text(encoding="utf-8")
    assert written == render(page), f"{page} and results/metrics disagree: run `make docs`"


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(text):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text.read_text(encoding="utf-8"))
    assert [link for link in links if not (text.parent / link).exists()] == []


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


def test_a_number_is_a_percentage_with_its_interval(committed):
    committed("robustness", [{"attack": "pgd", "accuracy": 0.5, "low": 0.25, "high": 1}])
    assert numbers.number("robustness", attack="pgd") == "50.0% [25, 100]"


def test_numbers_of_the_embedded_corpus_stand_beside_those_of_real_music(committed):
    for folder, corpus, accuracy in (("real", "gtzan", 0.5), ("embedded", "synthetic", 0.9)):
        row = {"corpus": corpus, "accuracy": accuracy, "low": None, "high": None}
        committed("robustness", [row], folder)
    assert numbers.number("robustness", corpus="gtzan") == "50.0%"
    assert numbers.number("robustness", corpus="synthetic") == "90.0%"


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_a_number_that_is_not_one_is_refused(committed, attack):
    row = {"attack": "pgd", "accuracy": 0.5, "low": 0.25, "high": 1}
    committed("robustness", [row, row])
    with pytest.raises(ValueError, match=r"^robustness\.csv has (no row|2 rows) with [^\n]*\.$"):
        numbers.number("robustness", attack=attack)


def test_a_missing_table_names_its_command():
    with pytest.raises(FileNotFoundError, match="`make collect`"):
        numbers.read("nothing")


def test_attacks_stand_beside_the_specification(committed):
    names = ("fgsm", "pgd", "worst_case", "noise_linf")
    rows = [
        {"attack": name, "eps": eps, "accuracy": eps, "low": None, "high": None} | OF
        for name in names
        for eps in (0.01, 0.05)
    ]
    committed("robustness", rows)
    lines = tables.attacks("gtzan", "documented").splitlines()
    assert lines[2] == "| 0.01 | 0.8 | 12.0 / 2.5% | 1.0% | 1.0% | 1.0% | 1.0% |"
    assert lines[3] == "| 0.05 | 4 |  | 5.0% | 5.0% | 5.0% | 5.0% |"


def test_baselines_stand_beside_chance(committed):
    folder = committed("training", [OF])
    right = {"value": 0.5, "low": 0.25, "high": 0.75, "n_tracks": 12}
    trained = {"corpus": "gtzan", "split": "random", "test": {"per_genre": dict.fromkeys("abcd")}}
    trained["baseline"] = {"clip_accuracy": right, "song_accuracy": right | {"value": 0.75}}
    write_json(folder / "gtzan" / "training_documented.json", trained)
    (line,) = tables.baselines("gtzan").splitlines()[2:]
    assert line == "| gtzan | random | 50.0% [25, 75] | 75.0% [25, 75] | 25% | 12 |"


def test_checkpoints_stand_side_by_side(committed):
    rows = [
        {"corruption": kind, "severity": severity, "checkpoint": name, "accuracy": severity / 100}
        for kind, severity in (("none", 0), ("mp3", 8))
        for name in ("documented", "robust")
    ]
    committed("corruptions", [row | {"corpus": "c", "low": None, "high": None} for row in rows])
    assert tables.corruptions("c").splitlines() == [
        "|  | `documented` | `robust` |",
        "| --- | --- | --- |",
        "| none | 0.0% | 0.0% |",
        "| MP3, 8 kbit/s | 8.0% | 8.0% |",
    ]


def test_a_large_figure_is_made_smaller():
    noise = np.random.default_rng(0).integers(256, size=(700, 700, 3), dtype=np.uint8)
    found = io.BytesIO()
    Image.fromarray(noise).save(found, "PNG")
    small = smaller(found.getvalue())
    assert len(small) <= LARGEST_FIGURE < found.tell()
    assert Image.open(io.BytesIO(small)).width > 300


def test_a_copy_of_a_notebook_has_no_sound_no_bars_and_keeps_its_answers():
    sound = {"text/html": f'<p>{SOUND} src="data:audio/wav;base64,AAAA"></p>', "text/plain": "x"}
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": "<table></table>"}),
        nbformat.v4.new_output("display_data", sound),
        nbformat.v4.new_output("stream", name="stderr", text="50%"),
        nbformat.v4.new_output("stream", name="stdout", text="80 tracks"),
    ]
    cell = nbformat.v4.new_code_cell("1", outputs=outputs, metadata={"papermill": {"duration": 1}})
    light = lighter(
        nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {"path": "/x"}}), 600
    )
    kept = light.cells[0].outputs
    assert [output.output_type for output in kept] == ["display_data", "stream"]
    assert kept[0].data["text/html"] == "<table></table>"
    assert "papermill" not in json.dumps(light)


def test_gains_are_points_of_the_same_tracks(committed):
    pair = {"corpus": "c", "recipe": "robust", "compared_with": "documented", "seeds": "42, 43"}
    rows = [
        pair | {"measure": f"{unit}_accuracy", "value": value, "low": -0.1, "high": 0.2}
        for unit, value in (("clip", 0.015), ("song", -0.02))
    ]
    other = [row | {"split": "filtered", "value": 0.5} for row in rows]
    other += [row | {"split": "random", "compared_with": "improved"} for row in rows]
    committed("recipe_gains", [row | {"split": "random"} for row in rows] + other)
    line = "| `robust` less `documented` | 42, 43 | 1.5 [-10, 20] | -2.0 [-10, 20] |"
    assert tables.gains("c", "random").splitlines()[2:] == [line]


def test_survival_is_that_of_one_budget_and_masked_changes_stand_by_their_margin(committed):
    folder = committed("audio_attacks", [{"corpus": "c"}])
    half, all_of_them = ({"value": v, "low": None, "high": None} for v in (0.5, 1))
    attack = {"checkpoint": "robust", "attack": "pgd_waveform", "channel": "ogg"}
    rows = [
        attack | {"budget_db": 40, "survival": half, "accuracy": half},
        attack | {"budget_db": 20, "survival": all_of_them, "accuracy": half},
    ]
    masked = {"attack": "pgd_masked", "channel": "wav16", "survival": None}
    rows += [
        attack | masked | {"budget_db": margin, "accuracy": half if margin else all_of_them}
        for margin in (0, 10)
    ]
    write_json(folder / "r" / "audio_attacks.json", {"attacks": rows})
    assert tables.survival("r", "pgd_waveform", 40).splitlines()[2:] == ["| Ogg Vorbis | 50.0% |"]
    lines = ["| 10 dB below | 50.0% |", "| 0 dB below | 100.0% |"]
    assert tables.masked("r").splitlines()[2:] == lines


def test_songs_count_those_heard_rightly_before(committed):
    folder = committed("audio_attacks", [{"corpus": "c"}])
    songs = [
        {"checkpoint": "robust", "true": "a", "clean_prediction": c, "adversarial_prediction": x}
        for c, x in ("ab", "aa", "bb")
    ]
    write_json(folder / "r" / "audio_attacks.json", {"songs": songs})
    assert tables.songs("r").splitlines()[2:] == ["| `robust` | 1 of 2 flipped |"]


def test_the_largest_drop_is_that_of_any_checkpoint_and_eps(committed):
    drops = {("documented", 0.01): 0.01, ("documented", 0.02): 0, ("robust", 0.01): 0.04}
    rows = [
        {"corpus": "c", "checkpoint": name, "eps": eps, "attack": attack, "accuracy": accuracy}
        for (name, eps), drop in drops.items()
        for attack, accuracy in (("pgd", 0.5), ("worst_case", 0.5 - drop))
    ]
    committed("robustness", rows)
    assert tables.pgd_to_worst("c") == "4"
