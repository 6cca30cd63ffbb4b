import re

import numpy as np
import pandas as pd
import pytest

from src.data.segments import Segments
from src.models import runs
from src.models.comparison import (
    MEASURED_BY,
    accuracy_difference,
    check_current,
    prediction_table,
    recipe_gains,
    training_rows,
)
from src.paths import RunPaths
from src.results import write_csv, write_json

DATA = {"corpus": "c", "split": "random", "fingerprint": "abc"}


@pytest.fixture(name="segments")
def _segments():
    return pd.DataFrame({"segment": range(6), "track": list("aaabbb")})


def certain(predicted):
    return np.eye(3)[predicted] * 0.7 + 0.1


def test_predictions_have_a_row_a_segment_and_the_vote_of_its_song(segments):
    table = prediction_table(segments, np.array([0, 0, 0, 2, 2, 2]), certain([0, 0, 1, 1, 1, 2]))
    assert table["predicted"].tolist() == [0, 0, 1, 1, 1, 2]
    assert table["track_predicted"].tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(table["confidence"], 0.8)


def test_a_gain_is_counted_by_clip_and_by_song(segments):
    y = np.array([0, 0, 0, 2, 2, 2])
    first = prediction_table(segments, y, certain([0, 0, 1, 1, 1, 2]))  # 3 of 6 clips, 1 of 2 songs
    second = prediction_table(segments, y, certain([0, 0, 1, 2, 2, 2]))  # 5 of 6 clips, both songs
    gain = accuracy_difference([(first, second)])
    assert gain["segment_accuracy"]["value"] == pytest.approx(1 / 3)
    assert gain["track_accuracy"]["value"] == 0.5
    assert gain["track_accuracy"]["n_tracks"] == gain["track_accuracy"]["n_segments"] == 2
    assert accuracy_difference([(first, first)])["segment_accuracy"]["value"] == 0
    both = accuracy_difference([(first, second), (first, first)])
    assert both["segment_accuracy"]["value"] == pytest.approx(1 / 6)
    assert both["track_accuracy"]["value"] == 0.25
    assert both["track_accuracy"]["n_tracks"] == 2


def training_result(name, seed):
    measured = {"value": 0.8, "low": 0.7, "high": 0.9, "n_tracks": 15}
    test = {"segment_accuracy": measured, "track_accuracy": measured | {"value": 0.9}}
    test |= {"macro_recall": {"segment": 0.75, "track": 0.85}}
    facts = {"corpus": "c", "split": "random", "checkpoint": name, "seed": seed, "epochs": 3}
    facts |= {"recipe": name.removesuffix(f"_{seed}"), "suffix": ""}
    facts |= {"fingerprint": DATA["fingerprint"], "parameters": {}}
    facts["parameters"] |= {"CHANGES": {"epochs": 3}, "random_labels": name == "shuffled"}
    return facts | {"test": test}


def test_every_training_on_the_arrays_of_a_run_has_a_row(paths):
    for name, seed in (("robust", 42), ("improved_43", 43)):
        write_json(paths.metrics / f"training_{name}.json", training_result(name, seed))
    old = training_result("documented", 42) | {"fingerprint": "of other arrays"}
    write_json(paths.metrics / "training_documented.json", old)
    table = training_rows(paths, DATA["fingerprint"])
    assert table["recipe"].tolist() == ["improved", "robust"]
    assert table.loc[0].to_dict() == {
        "corpus": "c",
        "split": "random",
        "recipe": "improved",
        "seed": 43,
        "epochs": 3,
        "segment_accuracy": 0.8,
        "segment_low": 0.7,
        "segment_high": 0.9,
        "track_accuracy": 0.9,
        "track_low": 0.7,
        "track_high": 0.9,
        "macro_recall": 0.75,
        "n_tracks": 15,
        "track_macro_recall": 0.85,
        "checkpoint": "improved_43",
        "changes": '{"epochs": 3}',
    }


@pytest.mark.parametrize("name", [*MEASURED_BY, "training.csv"])
def test_results_of_other_arrays_or_of_an_earlier_training_are_refused(name, paths):
    trained = training_result("robust", 42) | {"key": "first"}
    write_json(paths.metrics / "training_robust.json", trained)
    write_csv(paths.metrics / "training.csv", training_rows(paths, DATA["fingerprint"]))
    other = {"checkpoint": "of_another_run", "key": "unknown"}
    if name.endswith("json"):
        write_json(paths.metrics / name, {"checkpoints": {"robust": {"key": "first"}}})
    elif name != "training.csv":
        rows = [{"checkpoint": "robust", "key": "first"}, other]
        write_csv(paths.metrics / name, pd.DataFrame(rows))
    check_current(paths, DATA["fingerprint"])
    with pytest.raises(ValueError, match=r"/fake/training\.csv has robust as it was"):
        check_current(paths, "of other arrays")
    if name != "training.csv":
        write_json(paths.metrics / "training_robust.json", trained | {"key": "second"})
        with pytest.raises(ValueError, match=rf"/{re.escape(name)} has robust as it was before"):
            check_current(paths, DATA["fingerprint"])


def test_near_copies_of_another_split_are_refused(paths):
    write_csv(paths.metrics / "near_copies.csv", pd.DataFrame({"fingerprint": ["one", "one"]}))
    check_current(paths, "one")
    with pytest.raises(
        ValueError, match=r"has the split as it was .*benchmarks\.near_copies fake`"
    ):
        check_current(paths, "other")


def test_each_pair_of_recipes_is_compared_on_the_same_seeds(paths, segments):
    y = np.array([0, 0, 0, 2, 2, 2])
    numbers = {"a": "1970.1", "b": "1970.10"}  # two tracks as texts, one as numbers
    segments = segments.assign(track=segments["track"].map(numbers))
    assert recipe_gains(paths, DATA).empty
    told = {
        ("documented", 42): [0, 0, 1, 1, 1, 2],
        ("documented_43", 43): [0, 0, 1, 2, 2, 2],
        ("improved", 42): [0, 0, 1, 2, 2, 2],
        ("improved_43", 43): y,
        ("robust", 42): y,
        ("robust_43", 43): y,
        ("shuffled", 42): y,
    }
    for (name, seed), predicted in told.items():
        table = prediction_table(segments, y, certain(predicted))
        write_csv(paths.metrics / f"predictions_{name}.csv", table)
        result = training_result(name, seed)
        if name == "robust_43":
            result["parameters"]["CHANGES"] = {"epochs": 9}
        write_json(paths.metrics / f"training_{name}.json", result)
    write_json(paths.metrics / "training_other.json", training_result("other", 42))  # not judged
    gains = recipe_gains(paths, DATA)
    assert (gains["corpus"] == "c").all()
    assert (gains["n_tracks"] == 2).all()
    gains = gains.set_index(["recipe", "compared_with", "seeds", "measure"])["value"].unstack()
    assert gains["segment_accuracy"].to_dict() == {
        ("improved", "documented", "42"): pytest.approx(1 / 3),
        ("improved", "documented", "43"): pytest.approx(1 / 6),
        ("improved", "documented", "42, 43"): pytest.approx(1 / 4),
        ("robust", "documented", "42"): pytest.approx(1 / 2),
        ("robust", "improved", "42"): pytest.approx(1 / 6),
        ("robust", "documented", "43"): pytest.approx(1 / 6),
        ("robust", "improved", "43"): 0,
    }
    assert recipe_gains(paths, DATA | {"fingerprint": "of another split"}).empty


@pytest.mark.parametrize("crops", [False, True])
@pytest.mark.parametrize("random_labels", [False, True])
def test_labels_are_shuffled_only_if_a_recipe_says_so(monkeypatch, crops, random_labels):
    y, tracks = np.arange(10), pd.DataFrame({"track": [f"t{k}" for k in range(10)]})
    X = np.zeros((10, 128, 130), np.float32)
    monkeypatch.setattr(runs, "load_split", lambda paths, split: Segments(X, y, tracks))
    monkeypatch.setattr(runs, "load_whole_tracks", lambda paths: (X, np.full(10, 130), y))
    recipe = {"crops": crops, "crop_frames": 65, "random_labels": random_labels}
    data = runs._training_data(RunPaths("r"), recipe, seed=0)
    assert isinstance(data, runs.CropDataset) == crops
    assert sorted(data.y) == list(y)
    assert (list(data.y) != list(y)) == random_labels
    if crops:
        with pytest.raises(ValueError, match=r"^CROP_FRAMES=131 exceeds the 130 frames"):
            runs._training_data(RunPaths("r"), recipe | {"crop_frames": 131}, seed=0)
