from itertools import pairwise

import numpy as np
import pytest

from src.data.features import mel_frequencies
from src.explainability.attributions import blurred_random
from src.explainability.similarity import (
    BANDS,
    EDGES_HZ,
    band_shares,
    band_shift,
    class_specificity,
    compare_maps,
    mel_shares,
    prototype_similarity,
    spearman,
    top_overlap,
)

FRAME_S = 512 / 22_050


def blob(band, frame):
    """Return one map (1, 128, 130) with a block of mass around a band and a frame."""
    heat = np.zeros((1, 128, 130), dtype=np.float32)
    heat[0, band - 2 : band + 3, frame - 2 : frame + 3] = 1
    return heat


@pytest.fixture(name="maps", scope="module")
def _maps():
    return np.random.default_rng(0).random((3, 128, 130), dtype=np.float32)


def test_identical_maps_are_not_shifted(maps):
    for name, values in compare_maps(maps, maps.copy()).items():
        same = 1 if name in ("spearman", "ssim", "top_overlap") else 0
        np.testing.assert_allclose(values, same, atol=1e-6)


def test_rank_correlation_depends_on_order_alone(maps):
    np.testing.assert_allclose(spearman(maps, maps**3), 1)
    np.testing.assert_allclose(spearman(maps, 1 - maps), -1)


def test_unrelated_maps_have_no_rank_correlation_and_overlap_by_chance(maps):
    found = compare_maps(maps, np.random.default_rng(1).random(maps.shape))
    np.testing.assert_allclose(found["spearman"], 0, atol=0.05)
    np.testing.assert_allclose(found["top_overlap"], 0.1, atol=0.02)


def test_overlap_is_the_share_of_common_top_cells():
    first, second = np.zeros((2, 1, 128, 130))
    first[0, :64, :26] = second[0, 32:96, :26] = 1  # a tenth of the cells each, half in common
    assert top_overlap(first, second) == pytest.approx(0.5)


def test_nissim_lies_between_same_and_opposite(maps):
    opposite = compare_maps(maps, 1 - maps)
    assert ((opposite["nissim"] > 0.8) & (opposite["nissim"] <= 1)).all()
    np.testing.assert_allclose(opposite["nissim"], (1 - opposite["ssim"]) / 2)


@pytest.mark.parametrize(("bands", "frames"), [(0, -20), (0, 7), (0, 43), (60, 0)])
def test_a_moved_blob_moves_the_centre_by_its_seconds_bands_and_hertz(bands, frames):
    found = compare_maps(blob(30, 60), blob(30 + bands, 60 + frames))
    hertz = mel_frequencies()
    assert found["centre_shift_s"] == pytest.approx(abs(frames) * FRAME_S)
    assert found["centre_shift_mel"] == pytest.approx(bands)
    assert found["centre_shift_hz"] == pytest.approx(hertz[30 + bands] - hertz[30])


def test_mass_lies_in_the_band_of_its_frequency():
    for k, (low, high) in enumerate(pairwise(EDGES_HZ)):
        heat = np.zeros((1, 128, 130))
        heat[0, (mel_frequencies() >= low) & (mel_frequencies() < high)] = 1
        np.testing.assert_allclose(band_shares(heat)[0], np.eye(len(BANDS))[k])
        assert BANDS[k] == f"{low}-{high} Hz"


def test_shares_add_up_and_do_not_depend_on_scale(maps):
    np.testing.assert_allclose(mel_shares(maps).sum(axis=1), 1)
    np.testing.assert_allclose(band_shares(maps / 2), band_shares(maps))


def test_band_shift_is_the_mass_that_changes_its_band():
    low, high = blob(5, 60), blob(120, 60)
    assert band_shift(low, high) == pytest.approx(1)
    assert band_shift(low, low + high) == pytest.approx(0.5)


def test_empty_maps_have_no_shift_and_are_counted(maps):
    after = maps.copy()
    after[1] = 0
    found = compare_maps(maps, after)
    assert found.pop("empty").tolist() == [0, 1, 0]
    for values in found.values():
        assert np.isnan(values).tolist() == [False, True, False]
    assert np.isnan(compare_maps(after, maps)["spearman"][1])
    assert {len(values) for values in compare_maps(maps[:0], maps[:0]).values()} == {0}


def test_a_map_resembles_the_genre_whose_prototype_it_is():
    prototypes = blurred_random((3, 128, 130), 1)
    found = prototype_similarity(prototypes[[2]], np.array([0]), np.array([2]), prototypes)
    assert found["prototype_predicted"] == pytest.approx(1)
    assert found["prototype_margin"] == pytest.approx(1 - found["prototype_true"])
    assert (class_specificity(prototypes, np.arange(3), prototypes) > 0.5).all()
    assert (class_specificity(prototypes, np.array([1, 2, 0]), prototypes) < 0).all()


def test_equal_prototypes_have_no_specificity_and_empty_ones_do_not_count():
    prototypes = np.repeat(blurred_random((1, 128, 130), 1), 3, axis=0)
    first = prototypes[:1], np.array([0])
    np.testing.assert_allclose(class_specificity(*first, prototypes), 0, atol=1e-9)
    prototypes[2] = 0
    assert class_specificity(*first, prototypes) == pytest.approx(0)
