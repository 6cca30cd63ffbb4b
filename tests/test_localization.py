import numpy as np
import pandas as pd
import pytest
import torch

from src.data import synthetic
from src.data.features import SEGMENT_SAMPLES, LogMel
from src.data.segments import Segments
from src.data.synthetic import PARTS
from src.explainability.attributions import Subject, blurred_random
from src.explainability.localization import (
    BOX_BANDS,
    BOX_EPS,
    BOX_FRAMES,
    NO_PART,
    box_measures,
    draw_boxes,
    loudest_parts,
    part_mass_above_area,
)
from src.explainability.selection import Case, confine


@pytest.fixture(name="X", scope="module")
def _segments():
    return np.random.default_rng(0).random((3, 128, 130), dtype=np.float32)


def test_boxes_are_whole_and_random_and_reproducible():
    boxes = draw_boxes(20, 1)
    assert (boxes.sum(axis=(1, 2)) == BOX_BANDS * BOX_FRAMES).all()
    for box in boxes:
        assert (box.any(axis=1).sum(), box.any(axis=0).sum()) == (BOX_BANDS, BOX_FRAMES)
    assert len({box.tobytes() for box in boxes}) > 10
    np.testing.assert_array_equal(boxes, draw_boxes(20, 1))
    assert not np.array_equal(boxes, draw_boxes(20, 2))


def test_an_attack_stays_in_its_box_and_inside_eps(X, model):
    data = Segments(X, np.array([0, 1, 2]), pd.DataFrame({"track": [*"abc"]}))
    found = confine(Case(Subject("tiny", model, "conv4_2", 5, None, None), data, {}), iterations=2)
    change = np.abs(found.X - found.data.X)
    assert len(change) > 1
    assert (change[~found.boxes] == 0).all()
    largest = [part[box].max() for part, box in zip(change, found.boxes, strict=True)]
    np.testing.assert_allclose(largest, BOX_EPS, atol=1e-6)
    assert (found.X.min() >= 0, found.X.max() <= 1) == (True, True)


def test_a_planted_box_is_found():
    boxes = draw_boxes(3, 1)
    found = box_measures(boxes.astype(np.float32), boxes)
    np.testing.assert_allclose(found["relevance_mass"], 1)
    np.testing.assert_allclose(found["mass_above_area"], 1 - boxes.mean(axis=(1, 2)))
    assert found["pointing_game"].tolist() == [1, 1, 1]
    outside = box_measures((~boxes).astype(np.float32), boxes)
    for name in ("relevance_mass", "pointing_game"):
        assert outside[name].tolist() == [0, 0, 0]


def test_a_random_map_scores_its_area():
    boxes = draw_boxes(200, 1)
    maps = np.random.default_rng(0).random(boxes.shape)
    found = box_measures(maps, boxes)
    np.testing.assert_allclose(found["mass_above_area"], 0, atol=0.01)
    assert found["pointing_game"].mean() == pytest.approx(boxes[0].mean(), abs=0.08)
    smooth = box_measures(blurred_random(boxes.shape, 2), boxes)["mass_above_area"]
    assert smooth.mean() == pytest.approx(0, abs=0.01)


def test_mass_on_a_part_is_counted_above_its_area():
    cells = np.full((2, 128, 130), NO_PART)
    cells[:, :64], cells[:, 64:96] = 0, 1  # drums below, bass above, silence on top
    on_drums = (cells == 0).astype(float)
    even = np.ones_like(on_drums)
    found = part_mass_above_area(np.stack([on_drums[0], even[1]]), cells)
    np.testing.assert_allclose(found["drums"], [0.5, 0])
    np.testing.assert_allclose(found["bass"], [-0.25, 0])
    assert np.isnan(found["lead"]).all()


def test_an_empty_map_has_no_value():
    boxes, empty = draw_boxes(1, 1), np.zeros((1, 128, 130))
    measures = box_measures(empty, boxes) | part_mass_above_area(empty, empty.astype(int))
    assert all(np.isnan(value).all() for value in measures.values())


def test_each_cell_belongs_to_its_loudest_part():
    segments = pd.DataFrame({"track": ["disco.00001"] * 2, "start_s": [6.0, 0.0]})
    cells = loudest_parts(segments, seed=7, n_jobs=1)
    parts = synthetic.render_parts("disco", 1, seed=7)
    assert cells.shape == (2, 128, 130)
    for row, start in zip(cells, (2, 0), strict=True):
        cut = slice(start * SEGMENT_SAMPLES, (start + 1) * SEGMENT_SAMPLES)
        power = [LogMel().power(torch.from_numpy(parts[name][cut][None]))[0] for name in PARTS]
        known = row != NO_PART
        assert known.mean() > 0.2
        np.testing.assert_array_equal(row[known], np.argmax(power, axis=0)[known])
