"""Transfer; the universal change of a linear network is known, a learnt one beats its controls."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import planted
from test_equalizer import BandMeans
from torch import nn

from src.attacks.adversarial import Search, attack
from src.attacks.transfer import (
    BANDS,
    DRAWS,
    LIMIT_DB,
    Universal,
    _versions,
    attack_tracks,
    learn,
    transfer_records,
    transfer_table,
    universal_records,
    universal_table,
)
from src.data.segments import Segments
from src.models.augment import gain_curve
from src.models.evaluation import predict_logits, softmax

EPS = 0.05


@pytest.fixture(scope="module")
def models(slim_model):
    """Return the slim network and one that predicts the first two genres the other way round."""
    other = copy.deepcopy(slim_model)
    for values in (other.output.weight.data, other.output.bias.data):
        values[:2] = values[:2].flip(0)
    return {"one": slim_model, "other": other}


@pytest.fixture(scope="module")
def versions(models, clips):
    return attack_tracks(models, clips, EPS, Search(5, 1))


@pytest.fixture(scope="module")
def transferred(models, clips):
    return transfer_records(models, clips, EPS, Search(5, 1))


@pytest.fixture(scope="module")
def table(transferred):
    return transfer_table(transferred, "tiny", "random")


def test_the_diagonal_of_transfer_is_the_white_box_attack(models, clips, transferred, table):
    lines = table.set_index(["made_on", "checkpoint", "unit"])
    for name, model in models.items():
        attacked = attack("pgd", model, clips.X, clips.y, EPS, Search(5, 1))
        right = predict_logits(model, attacked).argmax(axis=1) == clips.y
        line = lines.loc[(name, name, "segment")]
        assert line["accuracy"] == right.mean()
        assert right.mean() < lines.loc[("clean", name, "segment"), "accuracy"]
        group = transferred.query("made_on == checkpoint == @name and unit == 'segment'")
        assert line["mean_confidence"] == pytest.approx(group["confidence"].mean())
        wrong = group["confidence"].mean() - line["accuracy"]
        assert abs(wrong) - 1e-9 <= line["calibration_error"] <= 1
    assert len(table) == 4 * 2 * 2


def test_every_version_is_as_large_as_it_says(versions, clips):
    assert list(versions) == ["clean", "noise_linf", "one", "other"]
    assert np.array_equal(versions["clean"], clips.X)
    for name in ("noise_linf", "one", "other"):
        change = np.abs(versions[name] - clips.X).max(axis=(1, 2))
        np.testing.assert_allclose(change, EPS, rtol=1e-2)  # wrong segments too


def test_songs_are_judged_by_the_mean_probability_of_all_their_segments(
    models, versions, clips, transferred
):
    songs = transferred[transferred["unit"] == "track"]
    assert (songs.groupby(["made_on", "checkpoint"]).size() == 6).all()
    rows = songs[(songs["made_on"] == "one") & (songs["checkpoint"] == "other")]
    probabilities = softmax(predict_logits(models["other"], versions["one"]))
    tracks = clips.table["track"]
    for row in rows.itertuples():
        assert row.predicted == probabilities[tracks == row.track].mean(axis=0).argmax()


def test_the_table_states_its_eps_and_its_tracks(table):
    clean = table["made_on"] == "clean"
    assert (table.loc[clean, "eps"] == 0).all()
    assert (table.loc[~clean, "eps"] == EPS).all()
    np.testing.assert_allclose(table["eps_db"], 80 * table["eps"])
    counted = table.groupby("unit")["n_segments"].unique().to_dict()
    assert {unit: list(n) for unit, n in counted.items()} == {"segment": [24], "track": [6]}
    assert (table["n_tracks"] == 6).all()


class Linear(nn.Module):
    """Two genres whose logits are weighted sums of all bins."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 128, 130, generator=torch.manual_seed(0)))

    def forward(self, x):
        return torch.einsum("nchw,khw->nk", x, self.weight) / 1000


def one_genre():
    X = np.random.default_rng(0).uniform(0.5, 0.9, (40, 128, 130)).astype(np.float32)
    return Segments(X, np.zeros(40, dtype=int), pd.DataFrame({"segment": range(40)}))


def test_the_universal_pattern_of_a_linear_network_has_the_signs_of_its_weights():
    network = Linear()
    network.weight.data[0] += 1  # no segment is wrong for sure
    found = learn(network, one_genre(), 0.01, Search(20, 0)).pattern
    weights = (network.weight[1] - network.weight[0]).detach().numpy()
    clear = np.abs(weights) > 0.05  # smaller ones may vanish in bfloat16
    assert clear.mean() > 0.9
    np.testing.assert_allclose(found[clear], 0.01 * np.sign(weights[clear]), atol=1e-7)


def test_the_universal_equaliser_of_a_linear_network_has_the_signs_of_its_weights():
    network = BandMeans()
    found = learn(network, one_genre(), 0.01, Search(20, 0)).gains_db
    weights = (network.weight[1] - network.weight[0]).detach()
    expected = LIMIT_DB * torch.sign(gain_curve(torch.eye(BANDS)) @ weights)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def evaluated(target):
    train = Segments(*planted(5, 60), pd.DataFrame({"segment": range(60), "track": "other"}))
    return universal_records({"one": target, "two": target}, train, 0.05, Search(20, 0))


def test_a_learnt_pattern_harms_segments_that_it_was_not_learnt_on(evaluated):
    records, learnt = evaluated
    pattern, gains = learnt["one"]
    assert np.abs(pattern).max() <= 0.05 + 1e-7
    assert np.abs(gains).max() <= LIMIT_DB
    own = records[(records["made_on"] == "one") & (records["checkpoint"] == "one")]
    accuracy = (own["adversarial_prediction"] == own["true"]).groupby(own["attack"]).mean()
    controls = accuracy[["universal_shuffled", "universal_random"]]
    assert accuracy["universal"] < controls.min() - 0.1


def test_without_training_segments_there_are_no_records(target):
    none = target.data.take(np.zeros(0, dtype=int))
    records, learnt = universal_records({"one": target}, none, 0.05, Search(20, 0))
    table = universal_table(records, "tiny", "all")
    assert (len(table), learnt) == (0, {})
    assert {"made_on", "checkpoint", "attack", "eps_db", "accuracy", "low"} <= set(table)


def test_the_draws_of_a_control_differ_and_have_its_size():
    X, pattern = np.full((1, 128, 130), 0.5), np.linspace(-0.01, 0.01, 128 * 130)
    changes = {}
    learnt = Universal(pattern.reshape(128, 130), np.zeros(BANDS))
    for name, start, _, attacked in _versions(learnt, X, 0.01, seed=0):
        changes.setdefault(name, []).append(np.sort((attacked - X).ravel()))
        changes.setdefault(f"{name}_places", set()).add((attacked - X).tobytes())
        assert start == len(changes[name])
    for name in ("universal_shuffled", "universal_random", "universal_equalizer_random"):
        assert len(changes[name]) == len(changes[f"{name}_places"]) == DRAWS
    assert np.allclose(changes["universal_shuffled"], pattern)
    assert np.allclose(np.abs(changes["universal_random"]), 0.01)


def test_every_model_is_evaluated_under_every_change(evaluated):
    records, _ = evaluated
    counts = records.groupby(["made_on", "checkpoint", "attack"]).size().unstack()
    assert counts.shape == (4, 6)  # with the clean segments
    drawn = [f"universal_{name}" for name in ("shuffled", "random", "equalizer_random")]
    assert (counts[drawn] == 24 * DRAWS).all(axis=None)
    assert (counts.drop(columns=drawn) == 24).all(axis=None)
    table = universal_table(records, "tiny", "random")
    assert (table["n_segments"] == 24).all()
    np.testing.assert_allclose(table["eps_db"].unique(), [0, 0.05 * 80, LIMIT_DB])
