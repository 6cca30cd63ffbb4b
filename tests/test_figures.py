from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from src import plots
from src.data.segments import Segments
from src.explainability import figures
from src.explainability.experiments import Confined
from src.explainability.faithfulness import FRACTIONS
from src.explainability.randomization import LAYERS
from src.explainability.selection import Example

SEGMENT = SimpleNamespace(track="blues.00003", start_s=6.0, genre="blues", segment=12)

ENDS = {"value": 0.5, "low": 0.4, "high": 0.6}


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
    figures.legend_below(figure)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"clean", "attacked"}
    assert len(figure.legends[0].get_texts()) == 2


@pytest.mark.filterwarnings("error")
def test_curves_leave_out_segments_whose_map_is_empty():
    known = np.tile(np.linspace(0, 1, len(FRACTIONS)), (2, 1))
    scores = {"gradcam": np.vstack([known, np.full(len(FRACTIONS), np.nan)])}
    scores["hirescam"] = scores["gradcam"][2:]
    _, axes = plots.grid(1, 1)
    figures.faithfulness_curves(axes[0, 0], scores)
    first, second = axes[0, 0].get_lines()
    assert np.allclose(first.get_ydata(), known[0])
    assert np.isnan(second.get_ydata()).all()


@pytest.fixture(name="maps")
def _maps():
    return np.random.default_rng(0).random((2, 128, 130))


@pytest.mark.parametrize(
    ("predicted", "explained", "kind"),
    [
        ("blues", "blues", "true and predicted"),
        ("jazz", "jazz", "predicted"),
        ("jazz", "blues", "true"),
    ],
)
def test_titles_name_segment_prediction_and_explained_genre(predicted, explained, kind, maps):
    example = Example("kind", SEGMENT, *maps, "blues", predicted, explained, "pgd", 0.01)
    above, below = figures.titles(example)
    assert above == (
        f"blues.00003 at 6 s, pgd, eps 0.01 (0.8 dB)\ntrue blues, predicted {predicted}"
    )
    assert below == f"explains {explained} ({kind})"


def test_titles_say_that_a_map_is_empty_and_a_segment_clean(maps):
    example = Example("kind", SEGMENT, maps[0], 0 * maps[1], "blues", "blues", "blues")
    above, below = figures.titles(example)
    assert ", clean\n" in above
    assert below.endswith(": no positive evidence")


def test_a_segment_that_no_eps_flips_is_called_so():
    assert figures.attack_note("fgsm", float("nan")) == "fgsm: no eps flips it"


def test_examples_are_written_by_several_processes_in_place_of_earlier_ones(tmp_path, maps):
    example = Example("kind", SEGMENT, *maps, "blues", "blues", "blues")
    others = [SimpleNamespace(**vars(SEGMENT) | {"segment": k}) for k in (1, 2, 3)]
    shown = [[example._replace(segment=segment), example] for segment in others]
    paths = figures.save_examples(shown, tmp_path / "maps" / "kind", "tiny")
    assert [path.name for path in paths] == [f"blues.00003_{k}.png" for k in (1, 2, 3)]
    assert all(imread(path).std() > 0 for path in paths)
    (alone,) = figures.save_examples(shown[1:2], tmp_path / "maps" / "kind", "tiny")
    assert list((tmp_path / "maps" / "kind").iterdir()) == [alone]  # others were of another model


def test_a_figure_has_a_row_per_model_and_a_column_per_measure():
    rows = [
        (m, c, k, 0.1) for m in ("one", "two") for c in ("noise", "failed") for k in ("mod", "ssim")
    ]
    rows += [("one", "other_track", "mod", 0.0)]
    both = table(*rows, names=("checkpoint", "condition", "measure", "eps")).assign(
        method="gradcam"
    )
    labels = {"mod": "MOD", "ssim": "SSIM"}
    figure = figures.by_checkpoint(both, figures.shift_over_eps, labels)
    assert [ax.get_ylabel() for ax in figure.axes] == ["MOD", "SSIM"] * 2
    assert figure.axes[0].get_title() == "one: gradcam"
    dotted = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == ":"]
    assert [line.get_ydata()[0] for line in dotted] == [0.5]


def test_panels_of_methods_hold_no_contrasts_controls_or_parts():
    keys = (
        "checkpoint",
        "method",
        "measure",
        "control",
        "condition",
        "compared_with",
        "part",
        "eps",
    )
    wanted = ("one", "gradcam", "mass_above_area", "", "confined", "", "", 0.2)
    rows = [wanted, (*wanted[:6], "drums", 0.2), (*wanted[:5], "clean", "", 0.2)]
    rows += [
        ("one", "hirescam", "insertion", control, "clean", "", "", 0)
        for control in ("", "randomcam")
    ]
    figure = figures.methods(table(*rows, names=keys), 0.01, ["one"])
    drawn = [
        sum(len(c.get_offsets()) for c in ax.collections if c.get_label() == "one")
        for ax in figure.axes
    ]
    assert drawn == [0, 0, 1, 0, 0]


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
        assert figure.axes[1].get_title().endswith("explains jazz (predicted), true blues")
