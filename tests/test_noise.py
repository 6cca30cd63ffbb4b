from dataclasses import replace

import numpy as np
import pytest

from src.attacks.adversarial import Search
from src.attacks.noise import noise_l2, noise_linf, noise_records
from src.attacks.records import make_target
from src.attacks.suite import sweep


@pytest.fixture(scope="module")
def cut():
    """Return segments a third of whose bins lie at the floor, where noise is cut."""
    X = np.random.default_rng(0).random((5, 128, 130), dtype=np.float32)
    return np.where(X < 1 / 3, 0, X)


@pytest.mark.parametrize("eps", [0.001, 0.01, 0.1])
def test_uniform_noise_has_exactly_its_linf_norm(cut, eps):
    middle = np.full_like(cut, 0.5)
    change = noise_linf(middle, eps, seed=1) - middle
    np.testing.assert_allclose(np.abs(change).max(axis=(1, 2)), eps, atol=1e-7)
    assert np.abs(change).mean() == pytest.approx(eps / 2, rel=0.02)  # uniform
    noisy = noise_linf(cut, eps, seed=1)
    assert np.abs(noisy - cut).max() <= eps + 1e-7
    assert (noisy.min(), noisy.max() <= 1) == (0, True)


@pytest.mark.parametrize("share", [0.01, 0.3, 1, 3])
def test_gaussian_noise_has_exactly_its_l2_norm_after_cutting(cut, share):
    wanted = share * np.arange(1, 6)
    noisy = noise_l2(cut, wanted, seed=1)
    assert (noisy.min(), noisy.max() <= 1) == (0, True)
    reached = np.sqrt(np.square(noisy - cut).sum(axis=(1, 2)))
    np.testing.assert_allclose(reached, wanted, rtol=1e-3)


def test_noise_depends_on_the_seed_alone(cut):
    one, two, other = (noise_linf(cut, 0.01, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_noise_on_record_is_as_large_as_the_attack(target):
    pgd = sweep("pgd", target, (0.005, 0.05), Search(5))
    noise = noise_records(target, pgd, seed=1)
    assert noise.groupby(["attack", "eps"]).size().tolist() == [24] * 4
    for eps, rows in noise.groupby("eps"):
        made = pgd[pgd["eps"] == eps].set_index("segment")
        l2 = rows[rows["attack"] == "noise_l2"].set_index("segment")["l2"]
        share = made["l2"] / made["linf"]  # missing for the two that were wrong before
        assert share.isna().sum() == 2
        np.testing.assert_allclose(l2, eps * share.fillna(share.median()), rtol=1e-3)
        fresh = made.index[made["linf"] > 0.999 * eps]
        assert len(fresh) >= 2
        np.testing.assert_allclose(l2[fresh], made.loc[fresh, "l2"], rtol=2e-3)
        uniform = rows[rows["attack"] == "noise_linf"]
        assert (uniform["linf"] <= eps + 1e-7).all()
        assert (uniform["linf"] > 0.9 * eps).all()


def test_noise_may_be_measured_where_no_segment_is_right(slim_model, clips):
    two = clips.take(np.arange(2))
    wrong = make_target(slim_model, replace(two, y=(two.y + 1) % 3))
    pgd = sweep("pgd", wrong, (0.01,), Search(1))
    noise = noise_records(wrong, pgd, seed=1)
    assert np.isfinite(noise["l2"]).all()
    assert not noise["success"].any()
