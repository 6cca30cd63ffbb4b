from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import LONG
from matplotlib.image import imread

from src import plots
from src.data.segments import Segments
from src.explainability import figures
from src.explainability.faithfulness import FRACTIONS, LAYERS
from src.explainability.selection import Confined, Example
from src.paths import short_name

SEGMENT = SimpleNamespace(track="blues.00003", start_s=6.0, genre="blues", segment=12)

ENDS = {"value": 0.5, "low": 0.4, "high": 0.6, "n_segments": 20}


def table(*rows, names):
    return pd.DataFrame([dict(zip(names, row, strict=True)) | ENDS for row in rows])


def test_a_model_keeps_its_colour_and_marker_where_another_has_no_value():
    rows = [("one", "gradcam"), ("two", "gradcam")]
    both = table(*rows, names=("checkpoint", "method"))
    _, axes = plots.grid(1, 3)
    for ax, part in zip(axes[0], (both, both[1:], both[:0]), strict=True):
        figures.by_method(ax, part, ["one", "two"], "value")
    marks = [[c for c in ax.collections if c.get_label() in ("one", "two")] for ax in axes[0]]
    (_, second), (alone,), nothing = marks
    assert alone.get_label() == second.get_label() == "two"
    assert np.array_equal(alone.get_facecolor(), second.get_facecolor())
    assert np.array_equal(alone.get_paths()[0].vertices, second.get_paths()[0].vertices)
    assert alone.get_offsets()[0, 1] == second.get_offsets()[0, 1]
    assert nothing == []
    assert [text.get_text() for text in axes[0, 2].texts] == ["no segment to measure"]


def test_values_of_few_segments_are_faint():
    rows = table(("one", "gradcam"), ("one", "scorecam"), names=("checkpoint", "method"))
    _, axes = plots.grid(1, 1)
    figures.by_method(axes[0, 0], rows.assign(n_segments=[20, 19]), ["one"], "value")
    (points,) = (c for c in axes[0, 0].collections if c.get_label() == "one")
    assert points.get_alpha().tolist() == [1, 0.3]


def test_a_point_stands_at_its_layer_whatever_is_missing():
    layers = [LAYERS[3], LAYERS[1]]
    rows = [("gradcam", layer) for layer in layers]
    _, axes = plots.grid(1, 1)
    figures.by_depth(axes[0, 0], table(*rows, names=("method", "layer")), "SSIM")
    (line,) = axes[0, 0].get_lines()
    assert line.get_xdata().tolist() == [1, 3]
    assert [tick.get_text() for tick in axes[0, 0].get_xticklabels()] == list(LAYERS)


def test_a_legend_gathers_all_axes_and_says_each_thing_once():
    figure, axes = plots.grid(1, 3)
    for ax, labels in zip(axes[0], ([], ["clean"], ["clean", "attacked"]), strict=True):
        for label in labels:
            ax.plot([0, 1], label=label)
    plots.legend_below(figure)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"clean", "attacked"}
    assert len(figure.legends[0].get_texts()) == 2


@pytest.mark.filterwarnings("error")
def test_curves_leave_out_segments_whose_map_is_empty():
    known = np.tile(np.linspace(0, 1, len(FRACTIONS)), (2, 1))
    scores = {"gradcam": np.vstack([known, np.full(len(FRACTIONS), np.nan)])}
    scores["hirescam"] = scores["gradcam"][2:]
    _, axes = plots.grid(1, 1)
    figures.faithfulness_curves(axes[0, 0], scores, "gradcam")
    first, second = axes[0, 0].get_lines()
    assert np.allclose(first.get_ydata(), known[0])
    assert np.isnan(second.get_ydata()).all()
    assert (first.get_label(), second.get_label()) == ("Grad-CAM", "other methods")


@pytest.fixture(name="maps")
def _maps():
    return np.random.default_rng(0).random((2, 128, 130))


def test_panels_name_prediction_explained_genre_and_attack(maps):
    first = Example("kind", SEGMENT, *maps, "blues", "blues", "blues")
    attacked = first._replace(predicted="jazz", explained="jazz", attack="pgd", eps=0.01)
    other = SimpleNamespace(**vars(SEGMENT) | {"segment": 3, "track": "jazz.00001"})
    empty = first._replace(segment=other, heat=0 * maps[1])
    figure = figures.draw_examples([first, attacked, empty], "Why?")
    assert figure.get_suptitle() == "Why? blues.00003 at 6 s, true genre blues"
    assert [ax.get_title() for ax in figure.axes[:4]] == [
        "spectrogram",
        "clean\npredicted blues\nevidence for blues",
        "PGD, eps 0.01 (0.8 dB)\npredicted jazz\nevidence for jazz",
        "jazz.00001 at 6 s\npredicted blues\nevidence for blues: none",
    ]


def test_a_segment_that_no_eps_flips_is_called_so():
    assert figures.attack_note("fgsm", float("nan")) == "FGSM: no eps flips it"


def test_examples_are_written_by_several_processes_in_place_of_earlier_ones(tmp_path, maps):
    example = Example("kind", SEGMENT, *maps, "blues", "blues", "blues")
    others = [SimpleNamespace(**vars(SEGMENT) | {"segment": k, "track": LONG}) for k in (1, 2, 3)]
    shown = [[example._replace(segment=segment), example] for segment in others]
    paths = figures.save_examples(shown, "Why?", tmp_path / "maps" / "kind", "tiny")
    assert [path.name for path in paths] == [f"{short_name(LONG)}_{k}.png" for k in (1, 2, 3)]
    assert all(imread(path).std() > 0 for path in paths)
    (alone,) = figures.save_examples(shown[1:2], "Why?", tmp_path / "maps" / "kind", "tiny")
    assert list((tmp_path / "maps" / "kind").iterdir()) == [alone]  # others were of another model


@pytest.mark.parametrize("labels", [{"mod": "MOD", "ssim": "SSIM"}, {"mod": "MOD"}])
def test_measures_are_drawn_by_model(labels):
    rows = [
        (m, c, k, 0.1) for m in ("one", "two") for c in ("noise", "failed") for k in ("mod", "ssim")
    ]
    rows += [("one", "other_track", "mod", 0.0)]
    both = table(*rows, names=("checkpoint", "condition", "measure", "eps"))
    figure = figures.by_checkpoint(both, figures.shift_over_eps, labels, "How far?")
    assert [ax.get_ylabel() for ax in figure.axes] == [*labels.values()] * 2
    assert [ax.get_title() for ax in figure.axes] == ["one"] * len(labels) + ["two"] * len(labels)
    grid = figure.axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == ((2, 2) if len(labels) == 2 else (1, 2))
    dotted = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in dotted] == [0.5]


def test_panels_of_methods_hold_no_contrasts_controls_or_parts():
    keys = "checkpoint method measure control condition compared_with part eps layer".split()
    wanted = ("one", "gradcam", "mass_above_area", "randomcam", "confined", "", "", 0.2, "")
    rows = [wanted, (*wanted[:6], "drums", 0.2, ""), (*wanted[:5], "clean", "", 0.2, "")]
    rows += [(*wanted[:3], "", *wanted[4:])]  # above its area, not above the control
    insertion = ("one", "hirescam", "insertion", "", "clean", "", "", 0, "")
    rows += [insertion, (*insertion[:3], "randomcam", *insertion[4:])]
    figure = figures.methods(table(*rows, names=keys), 0.01, ["one"])
    points = [[c for c in ax.collections if c.get_label() == "one"] for ax in figure.axes]
    assert [sum(len(c.get_offsets()) for c in own) for own in points] == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("n", [0, 2])
def test_the_box_is_outlined_on_the_first_segment_that_the_attack_flips(n, maps):
    boxes = np.zeros((n, 128, 130), dtype=bool)
    boxes[:1, 10:20, 30:50] = True
    segments = pd.DataFrame([vars(SEGMENT)] * n, columns=[*vars(SEGMENT)])
    data = Segments(maps[:n], np.zeros(n, dtype=int), segments)
    subject = SimpleNamespace(name="tiny")
    found = Confined(subject, data, maps[:n], np.ones(n, dtype=int), boxes)
    figure = figures.box(found, {"gradcam": maps[:n]}, ["blues", "jazz"])
    drawn = [patch.get_height() for ax in figure.axes[:2] for patch in ax.patches]
    assert drawn == ([10, 10] if n else [])
    if n:
        assert figure.axes[1].get_title() == "Grad-CAM\nevidence for jazz (predicted)"
        assert figure.get_suptitle().endswith("tiny, true genre blues")


def test_mass_on_parts_is_a_table_of_genres_and_parts_in_percentage_points():
    names = ("checkpoint", "method", "measure", "part", "genre")
    keys = [("one", "gradcam", "mass_above_area", part, "blues") for part in ("bass", "drums")]
    keys += [("one", "randomcam", *keys[0][2:]), ("one", "gradcam", "band_mass", "bass", "blues")]
    figure = figures.parts(table(*keys, names=names), "gradcam")
    assert [text.get_text() for text in figure.axes[0].texts] == ["+50", "+50"]
    assert not figures.parts(table(*keys[2:], names=names), "gradcam").axes[0].has_data()
