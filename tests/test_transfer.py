import copy

import numpy as np
import pytest

from src.attacks.adversarial import Search, attack
from src.attacks.transfer import attack_tracks, transfer_records, transfer_table
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
def evaluated(models, clips):
    return transfer_records(models, clips, EPS, Search(5, 1))


def test_the_diagonal_of_transfer_is_the_white_box_attack(models, clips, evaluated):
    table = transfer_table(evaluated, "tiny", "random").set_index(["made_on", "checkpoint", "unit"])
    for name, model in models.items():
        attacked = attack("pgd", model, clips.X, clips.y, EPS, Search(5, 1))
        right = predict_logits(model, attacked).argmax(axis=1) == clips.y
        assert table.loc[(name, name, "segment"), "accuracy"] == right.mean()
        assert right.mean() < table.loc[("clean", name, "segment"), "accuracy"]
    assert len(table) == 4 * 2 * 2


def test_every_version_is_as_large_as_it_says(versions, clips):
    assert list(versions) == ["clean", "noise_linf", "one", "other"]
    assert np.array_equal(versions["clean"], clips.X)
    for name in ("noise_linf", "one", "other"):
        change = np.abs(versions[name] - clips.X).max(axis=(1, 2))
        np.testing.assert_allclose(change, EPS, rtol=1e-2)  # wrong segments too


def test_songs_are_judged_by_the_mean_probability_of_all_their_segments(
    models, versions, clips, evaluated
):
    songs = evaluated[evaluated["unit"] == "track"]
    assert (songs.groupby(["made_on", "checkpoint"]).size() == 6).all()
    rows = songs[(songs["made_on"] == "one") & (songs["checkpoint"] == "other")]
    probabilities = softmax(predict_logits(models["other"], versions["one"]))
    tracks = clips.table["track"]
    for row in rows.itertuples():
        assert row.predicted == probabilities[tracks == row.track].mean(axis=0).argmax()


def test_the_table_states_its_eps_and_its_tracks(evaluated):
    table = transfer_table(evaluated, "tiny", "random")
    clean = table["made_on"] == "clean"
    assert (table.loc[clean, "eps"] == 0).all()
    assert (table.loc[~clean, "eps"] == EPS).all()
    np.testing.assert_allclose(table["eps_db"], 80 * table["eps"])
    counted = table.groupby("unit")["n_segments"].unique().to_dict()
    assert {unit: list(n) for unit, n in counted.items()} == {"segment": [24], "track": [6]}
    assert (table["n_tracks"] == 6).all()


def test_the_table_states_how_sure_the_models_are(evaluated):
    table = transfer_table(evaluated, "tiny", "random").set_index(["made_on", "checkpoint", "unit"])
    group = evaluated[(evaluated["made_on"] == "one") & (evaluated["checkpoint"] == "one")]
    group = group[group["unit"] == "segment"]
    line = table.loc[("one", "one", "segment")]
    assert line["mean_confidence"] == pytest.approx(group["confidence"].mean())
    wrong = group["confidence"].mean() - line["accuracy"]
    assert abs(wrong) - 1e-9 <= line["calibration_error"] <= 1
