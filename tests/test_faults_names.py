"""Names that users give: drawn as they are, kept as they are."""

import warnings

import numpy as np
import pandas as pd
import pytest

from src import plots
from src.paths import ROOT
from src.results import read_csv, write_csv

LETTERS = "\N{CJK UNIFIED IDEOGRAPH-65E5}\N{CJK UNIFIED IDEOGRAPH-672C}"


def levels_of(genres):
    """Return the axes of the mean levels of some genres."""
    X = np.random.default_rng(0).random((len(genres), 128, 130), dtype=np.float32)
    figure, axes = plots.grid(1, 1)
    return figure, plots.band_levels(axes[0, 0], X, np.arange(len(genres)), genres)


def test_a_name_is_no_formula(tmp_path):
    names = ["Joey Bada$$ - 1", "$uicideboy$", "A$AP_x^y"]
    figure, ax = levels_of(names)
    plots.waveform(ax, np.zeros(99), names[0])
    plots.save_figure(figure, tmp_path / "a.png", names[1])
    texts = [ax.title, *ax.get_yticklabels(), *figure.texts]
    assert not any(text.get_parse_math() for text in texts)
    assert [text.get_text() for text in ax.get_yticklabels()] == names


def test_every_genre_is_named_at_a_row_of_its_own():
    genres = ["_pop", *(f"g{k}" for k in range(39))]
    _, ax = levels_of(genres)
    assert [text.get_text() for text in ax.get_yticklabels()] == genres
    assert ax.collections[0].get_array().shape == (40, 128)


def test_letters_of_other_scripts_are_drawn_by_a_font_that_has_them(tmp_path, monkeypatch):
    fonts = {"first.ttf": "ab", "Regular.ttf": LETTERS[0], "all.ttf": LETTERS}

    class Font:
        def __init__(self, path):
            self.family_name, self.path = path, path

        def get_charmap(self):
            return dict.fromkeys(map(ord, fonts.get(self.path, "x")))

    added = []
    monkeypatch.setattr(plots, "findSystemFonts", lambda: list(fonts))
    monkeypatch.setattr(plots, "get_font", Font)
    monkeypatch.setattr(plots.fontManager, "addfont", added.append)
    plots._fonts_for.cache_clear()
    assert plots._fonts_for(LETTERS) == added == ["Regular.ttf", "all.ttf"]
    with pytest.warns(UserWarning, match="No installed font has '\N{HIRAGANA LETTER A}': ") as seen:
        assert plots._fonts_for("\N{HIRAGANA LETTER A}") == []
    plots._fonts_for.cache_clear()
    assert len(seen) == 1
    monkeypatch.setattr(plots, "_fonts_for", lambda letters: [f"has {letters}"])
    figure, axes = plots.grid(1, 1)
    plots.counts(axes[0, 0], pd.Series({LETTERS: 3}), "genre", "tracks")
    plots._choose_fonts(figure)
    (label,) = axes[0, 0].get_xticklabels()
    assert label.get_fontfamily()[-1] == f"has {''.join(sorted(LETTERS))}"


def test_letters_that_no_font_has_are_one_warning_of_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "findSystemFonts", list)
    plots._fonts_for.cache_clear()
    figure, axes = plots.grid(1, 1)
    plots.counts(axes[0, 0], pd.Series({LETTERS: 3}), LETTERS, LETTERS)
    with warnings.catch_warnings(record=True) as seen:
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        plots.save_figure(figure, tmp_path / "a.png", LETTERS)
        plots.save_figure(figure, tmp_path / "b.png", LETTERS)
    plots._fonts_for.cache_clear()
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["NA", "None", "null", "nan", "N/A"])
def test_a_genre_may_be_called_as_if_it_were_missing(tmp_path, name):
    table = pd.DataFrame({"genre": [name, "pop", None], "value": [1, np.nan, 0.5]})
    pd.testing.assert_frame_equal(read_csv(write_csv(tmp_path / "a.csv", table)), table)


def test_no_module_reads_our_tables_otherwise():
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("app/*.py")]
    reading = {file.name for file in files if "pd.read_csv(" in file.read_text(encoding="utf-8")}
    assert reading == {"results.py", "corpus.py", "segments.py"}  # the last two name their texts
