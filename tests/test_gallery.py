from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread

from src.explainability import gallery

SEGMENT = SimpleNamespace(track="blues.00003", start_s=6.0, genre="blues", segment=12)


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
def test_a_panel_tells_clip_prediction_and_what_is_explained(predicted, explained, kind, maps):
    shown = gallery.panel(*maps, SEGMENT, predicted, explained, gallery.attack_note("pgd", 0.01))
    assert shown.title == (
        f"blues.00003 at 6 s, pgd, eps 0.01 (0.8 dB)\ntrue blues, predicted {predicted}"
    )
    assert shown.says == f"explains {explained} ({kind})"


def test_an_empty_map_says_so(maps):
    shown = gallery.panel(maps[0], 0 * maps[1], SEGMENT, "blues", "blues")
    assert shown.says.endswith(": no positive evidence")


def test_a_clip_that_no_eps_flips_says_so():
    assert gallery.attack_note("fgsm", float("nan")) == "fgsm: no eps flips it"


def test_figures_are_written_by_several_processes_and_cleared(tmp_path, maps):
    panel = gallery.panel(*maps, SEGMENT, "blues", "blues")
    others = [SimpleNamespace(**vars(SEGMENT) | {"segment": k}) for k in (1, 2, 3)]
    shown = [([panel], segment) for segment in others]
    paths = gallery.save_all(shown, tmp_path / "maps" / "kind", "tiny")
    assert [path.name for path in paths] == [f"blues.00003_{k}.png" for k in (1, 2, 3)]
    assert all(imread(path).std() > 0 for path in paths)
    gallery.clear(tmp_path / "maps")
    assert list((tmp_path / "maps" / "kind").iterdir()) == []
