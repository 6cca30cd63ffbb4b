"""The worst equaliser of a linear network is known; random ones of its size are weaker."""

import numpy as np
import pytest
import torch
from torch import nn

from src.attacks.adversarial import Search
from src.attacks.equalizer import (
    BANDS,
    LIMITS_DB,
    SEMITONES,
    TEMPI,
    equalize,
    equalizer_records,
    margin,
    random_gains,
    retime,
    worst_equalizer,
)
from src.attacks.records import robustness_table
from src.attacks.waveform import resynthesize
from src.data.features import LogMel
from src.models.augment import gain_curve

SEARCH = Search(6, 0)


class BandMeans(nn.Module):
    """Two genres whose logits are weighted means of the bands' levels; the weights add up to 0."""

    def __init__(self):
        super().__init__()
        weights = torch.randn(2, 128, generator=torch.manual_seed(0))
        self.weight = nn.Parameter(weights - weights.mean(dim=1, keepdim=True))

    def forward(self, x):
        return x.mean(dim=(1, 3)) @ self.weight.T


@pytest.mark.parametrize("bands", BANDS)
def test_the_worst_equaliser_of_a_linear_network_has_the_signs_of_its_weights(bands):
    network = BandMeans()
    X = np.random.default_rng(0).uniform(0.5, 0.9, (5, 128, 130)).astype(np.float32)
    y = np.array([0, 1, 0, 1, 1])
    found = worst_equalizer(network, X, y, bands, 3, SEARCH)
    weights = (network.weight[1] - network.weight[0]).detach()
    at_points = (gain_curve(torch.eye(bands)) @ weights).numpy()
    expected = 3 * np.sign(at_points) * np.where(y == 0, 1, -1)[:, None]
    np.testing.assert_array_equal(found, expected)


def test_an_equaliser_keeps_its_limit_and_the_best_point(slim_model, clips):
    gains = worst_equalizer(slim_model, clips.X, clips.y, 10, 3, SEARCH)
    assert gains.shape == (24, 10)
    assert np.abs(gains).max() <= 3

    def reached(gains):
        logits = slim_model(torch.from_numpy(equalize(clips.X, gains))[:, None])
        return margin(logits, torch.from_numpy(clips.y)).detach().numpy()

    assert (reached(gains) >= reached(0 * gains) - 1e-4).all()
    draws = [reached(random_gains(24, 10, 3, seed)).mean() for seed in range(5)]
    assert reached(gains).mean() > max(draws)


def test_random_equalisers_are_as_large_as_the_limit():
    gains = random_gains(4, 10, 6, 1)
    assert (np.abs(gains) == 6).all()
    assert len(np.unique(gains, axis=0)) == 4
    assert np.array_equal(gains, random_gains(4, 10, 6, 1))


def test_a_filter_of_samples_has_the_log_mel_of_the_equaliser(noise):
    samples = noise(0, 3)[None]
    gains = random_gains(1, 10, 3, 0)
    X = LogMel()(torch.from_numpy(samples)).numpy()
    change = gain_curve(torch.from_numpy(gains)).numpy()[..., None].repeat(130, axis=2)
    heard = LogMel()(torch.from_numpy(resynthesize(samples, change))).numpy()
    moved = (equalize(X, gains) - X)[:, :, 2:-2]
    assert 80 * np.abs(moved - (heard - X)[:, :, 2:-2]).mean() < 0.5
    assert 80 * np.abs(moved).mean() > 1.5


def test_tempo_and_pitch_move_beats_and_tones():
    X = np.zeros((1, 128, 130), dtype=np.float32)
    X[:, 60:63] = 1
    assert retime(X, 1, 1)[0, :, 65].argmax() in (62, 63)
    assert retime(X, 1, -1)[0, :, 65].argmax() in (58, 59)
    beats = np.broadcast_to(np.arange(130) % 10 < 5, (1, 128, 130)).astype(np.float32)
    n = [(np.diff(retime(beats, tempo, 0)[0, 64] > 0.5) != 0).sum() for tempo in (0.9, 1, 1.1)]
    assert n[0] < n[1] < n[2]


def test_records_hold_every_limit_and_the_worst_of_the_draws(target):
    records = equalizer_records({"model": target}, SEARCH)
    counts = records.groupby(["attack", "eps"]).size().unstack("eps")
    for bands in BANDS:
        assert (counts.loc[f"equalizer_{bands}"].dropna() == 24).all()
        assert (counts.loc[f"equalizer_{bands}_random"].dropna() == 24 * 6).all()
    for name in ("tempo_pitch_random", "tempo_pitch_noise"):
        assert counts.loc[name, 0] == 24 * len(TEMPI) * len(SEMITONES)
    wrong = records["clean_prediction"] != records["true"]
    assert (records.loc[wrong, "adversarial_prediction"] != records.loc[wrong, "true"]).all()
    worst = {"equalizer_10_random": "equalizer_10_random_worst"}
    worst["tempo_pitch_random"] = "tempo_pitch"
    worst["tempo_pitch_noise"] = "tempo_pitch_noise_worst"
    for drawn, name in worst.items():
        for eps, rows in records[records["attack"] == drawn].groupby("eps"):
            flipped = set(rows.loc[rows["success"], "segment"])
            at = records[(records["attack"] == name) & (records["eps"] == eps)]
            assert set(at.loc[at["success"], "segment"]) == flipped
    sizes = records.pivot_table(index=["segment", "start"], columns="attack", values="l2")
    sizes = sizes[sizes["tempo_pitch_random"] > 0]
    assert len(sizes) == 22 * 25
    np.testing.assert_allclose(sizes["tempo_pitch_noise"], sizes["tempo_pitch_random"], rtol=1e-2)
    table = robustness_table(records, "tiny", "random").set_index(["attack", "eps_db"])
    assert (table["n_segments"] == 24).all()
    assert (table["attack_success_rate_n_segments"].dropna() <= 24).all()
    found = [table.loc[("equalizer_10", limit), "accuracy"] for limit in LIMITS_DB]
    assert found == sorted(found, reverse=True)
    assert table.loc[("equalizer_10", 6), "accuracy"] < table.loc[("clean", 0), "accuracy"]
