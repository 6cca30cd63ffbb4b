import numpy as np
import pandas as pd
import pytest

from src import plots, plots_explain
from src.explainability.faithfulness import FRACTIONS
from src.explainability.sanity import LAYERS

ENDS = {"value": 0.5, "low": 0.4, "high": 0.6}


def table(*rows, names):
    return pd.DataFrame([dict(zip(names, row, strict=True)) | ENDS for row in rows])


def test_a_network_keeps_its_colour_and_marker_where_another_has_no_value():
    rows = [("one", "gradcam"), ("two", "gradcam")]
    both = table(*rows, names=("checkpoint", "method"))
    _, axes = plots.grid(1, 3)
    for ax, part in zip(axes[0], (both, both[1:], both[:0]), strict=True):
        plots_explain.by_method(ax, part, ["one", "two"], "value")
    marks = [[c for c in ax.collections if c.get_label() in ("one", "two")] for ax in axes[0]]
    (_, second), (alone,), nothing = marks
    assert alone.get_label() == second.get_label() == "two"
    assert np.array_equal(alone.get_facecolor(), second.get_facecolor())
    assert np.array_equal(alone.get_paths()[0].vertices, second.get_paths()[0].vertices)
    assert alone.get_offsets()[0, 1] == second.get_offsets()[0, 1]
    assert nothing == []
    assert [text.get_text() for text in axes[0, 2].texts] == ["no clip to measure"]


def test_a_point_stands_at_its_layer_whatever_is_missing():
    layers = [LAYERS[3], LAYERS[1]]
    rows = [("gradcam", f"randomized_{layer}") for layer in layers]
    _, axes = plots.grid(1, 1)
    plots_explain.by_depth(axes[0, 0], table(*rows, names=("method", "condition")), "SSIM")
    (line,) = axes[0, 0].get_lines()
    assert line.get_xdata().tolist() == [1, 3]
    assert [tick.get_text() for tick in axes[0, 0].get_xticklabels()] == list(LAYERS)


def test_a_legend_gathers_all_axes_and_says_each_thing_once():
    figure, axes = plots.grid(1, 3)
    for ax, labels in zip(axes[0], ([], ["clean"], ["clean", "attacked"]), strict=True):
        for label in labels:
            ax.plot([0, 1], label=label)
    plots_explain.legend_below(figure)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"clean", "attacked"}
    assert len(figure.legends[0].get_texts()) == 2


@pytest.mark.filterwarnings("error")
def test_curves_leave_out_clips_whose_map_is_empty():
    known = np.tile(np.linspace(0, 1, len(FRACTIONS)), (2, 1))
    scores = {"gradcam": np.vstack([known, np.full(len(FRACTIONS), np.nan)])}
    scores["hirescam"] = scores["gradcam"][2:]
    _, axes = plots.grid(1, 1)
    plots_explain.faithfulness_curves(axes[0, 0], scores, FRACTIONS)
    first, second = axes[0, 0].get_lines()
    assert np.allclose(first.get_ydata(), known[0])
    assert np.isnan(second.get_ydata()).all()
