from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from src.data.segments import Segments
from src.effort import choose_effort
from src.explainability import attributions, experiments
from src.explainability.attributions import CONTROLS, METHODS, Subject, attribute, blurred_random
from src.explainability.experiments import Manipulated, MapSet, Plan
from src.explainability.faithfulness import LAYERS, confidence, curves, randomized
from src.explainability.manipulation import MANIPULATED
from src.explainability.records import (
    CLAIMS,
    COLUMNS,
    FEWEST_SEGMENTS,
    KEYS,
    LABELS,
    NULLS,
    RATE,
    answers,
    contrast_tables,
    differences,
    headline,
    model_differences,
    records,
    results_table,
    success_rates,
    summarize,
    verdict,
    write_results,
)
from src.explainability.selection import Attacked, Case, Confined, make_case, null_segments
from src.explainability.similarity import class_specificity
from src.labels import CONDITIONS, MEASURES
from src.models import cnn
from src.models.evaluation import predict_logits
from src.results import read_json


def table(names, genres):
    numbers = range(len(names))
    return pd.DataFrame({"segment": numbers, "track": names, "genre": genres})


@pytest.fixture(scope="module")
def subject():
    prototypes = blurred_random((10, 128, 130), 3)
    background = np.full((128, 130), 0.5, dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cnn, "WIDTHS", (8, 16, 16, 16))
        patch.setattr(cnn, "DENSE", (64, 64))
        torch.manual_seed(3)
        model = cnn.GenreClassifierCNN().eval()
    return Subject("tiny", model, "conv4_2", 42, prototypes, background)


@pytest.fixture(scope="module")
def case(subject):
    """Four segments of which an attack changes all and flips the first two."""
    X = np.random.default_rng(0).random((4, 128, 130), dtype=np.float32)
    y = predict_logits(subject.model, X).argmax(axis=1)
    data = Segments(X, y, table([*"aabb"], ["blues", "blues", "jazz", "jazz"]))
    predicted = y.copy()
    predicted[:2] = (predicted[:2] + 1) % 10
    attacked = Attacked(np.clip(X + 0.05, 0, 1), predicted)
    return Case(subject, data, {0.05: attacked})


@pytest.fixture
def calm(case):
    """The same segments, none of which the attack flips."""
    return case._replace(attacked={0.05: case.attacked[0.05]._replace(predicted=case.data.y)})


def joined(tables):
    return pd.concat(list(tables), ignore_index=True)


def rows_of(experiment, *options):
    """Return the records that an experiment yields; none are an empty table."""
    return joined([pd.DataFrame(), *experiment(*options)])


def shift(case, in_full=False):
    """Return the records of the shift of Grad-CAM maps at the one eps of a case."""
    return rows_of(experiments.shift, case, "gradcam", 0.05, clean_maps(case), in_full)


def clean_maps(case):
    return attribute(case.subject, "gradcam", case.data.X, case.data.y)


@pytest.fixture
def perturbed():
    """Segments and a smooth perturbation of each: one whose spectrum is not flat."""
    X = np.random.default_rng(0).uniform(0.3, 0.7, (2, 128, 130)).astype(np.float32)
    return X, X + (blurred_random(X.shape, 1) - 0.5) / 10


def test_noise_has_the_norms_of_the_attack_in_other_places(perturbed):
    X, attacked = perturbed
    change, noise = attacked - X, null_segments(X, attacked, 1)["noise"] - X
    for power in (1, 2, np.inf):
        expected = np.linalg.norm(change.reshape(2, -1), power, axis=1)
        np.testing.assert_allclose(
            np.linalg.norm(noise.reshape(2, -1), power, axis=1), expected, rtol=1e-4
        )
    assert abs(np.corrcoef(noise[0].ravel(), change[0].ravel())[0, 1]) < 0.05


def test_each_null_keeps_its_part_of_the_perturbation(perturbed):
    X, attacked = perturbed
    change = attacked - X
    nulls = {name: null - X for name, null in null_segments(X, attacked, 1).items()}
    np.testing.assert_allclose(nulls["minus"], -change, atol=1e-6)
    np.testing.assert_allclose(nulls["other_segment"], change[::-1], atol=1e-6)
    spectra = [np.abs(np.fft.rfft2(part)) for part in (nulls["same_spectrum"], change)]
    np.testing.assert_allclose(*spectra, atol=0.01)
    same = nulls["same_spectrum"][0]
    assert abs(np.corrcoef(same.ravel(), change[0].ravel())[0, 1]) < 0.2


def test_perturbed_segments_stay_in_their_range(perturbed):
    X, attacked = perturbed
    for null in null_segments(np.round(X), np.round(X) + attacked - X, 1).values():
        assert (null.min(), null.max(), null.dtype) == (0, 1, np.float32)


def test_correct_segments_are_attacked_inside_each_eps(subject, case):
    y = np.where([1, 0, 0, 1], (case.data.y + 1) % 10, case.data.y)
    made = make_case(subject, replace(case.data, y=y), [0.01, 0.02], iterations=2)
    assert made.data.numbers.tolist() == [1, 2]
    for eps, found in made.attacked.items():
        assert np.abs(found.X - made.data.X).max() == pytest.approx(eps, abs=1e-6)
        expected = predict_logits(subject.model, found.X).argmax(axis=1)
        np.testing.assert_array_equal(found.predicted, expected)
    rates = success_rates([made])
    flipped = [np.mean(found.predicted != made.data.y) for found in made.attacked.values()]
    assert (rates["eps"].tolist(), rates["value"].tolist()) == ([0.01, 0.02], flipped)
    assert set(rates["checkpoint"]) == {"tiny"}


def test_a_case_of_its_first_segments_has_their_attacks(case):
    few = case.take(3)
    assert few.data.numbers.tolist() == [0, 1, 2]
    for name in ("X", "predicted"):
        whole = getattr(case.attacked[0.05], name)
        np.testing.assert_array_equal(getattr(few.attacked[0.05], name), whole[:3])


def test_shift_is_recorded_by_the_success_of_the_attack(case):
    rows = shift(case)
    found = rows[rows["measure"] == "spearman"].groupby("condition")
    segments = {name: group["segment"].tolist() for name, group in found}
    flipped, robust = [0, 1], [2, 3]
    assert segments == {
        "succeeded_true": flipped,
        "noise_succeeded": flipped,
        "failed": robust,
        "noise": flipped + robust,
    }
    still = found.get_group("noise")["value"]  # the same level more in all bins changes nothing
    np.testing.assert_allclose(still, 1, atol=0.05)
    assert (found.get_group("succeeded_true")["value"] < 1).all()
    assert set(rows["eps"]) == {0.05}


def test_maps_of_the_prediction_are_compared_with_the_same_target_on_the_clean_segment(case):
    found = {}
    unchanged = case.attacked[0.05]._replace(X=case.data.X)
    for name, shown in (("attack", case), ("none", case._replace(attacked={0.05: unchanged}))):
        rows = shift(shown, in_full=True)
        predicted = rows["condition"].isin(["succeeded_predicted", "target_predicted"])
        rows = rows[predicted & (rows["measure"] == "ssim")]
        found[name] = rows.pivot_table(index="segment", columns="condition", values="value")
        assert found[name].index.tolist() == [0, 1]
    target = found["attack"]["target_predicted"]
    np.testing.assert_allclose(target, found["none"]["succeeded_predicted"])
    assert not np.allclose(target, found["attack"]["succeeded_predicted"])
    assert (target < 0.999).all()


def test_the_nulls_are_recorded_on_flipped_segments(case):
    rows = shift(case, in_full=True)
    found = rows[(rows["measure"] == "spearman") & rows["condition"].isin(NULLS)]
    segments = found.groupby("condition")["segment"].agg(list).to_dict()
    assert segments == {null: [0, 1] for null in NULLS}


def test_an_attack_that_flips_nothing_has_no_records_of_success(calm):
    assert set(shift(calm, in_full=True)["condition"]) == {"failed", "noise"}
    none, nothing = np.arange(0), np.zeros((0, 128, 130), dtype=np.float32)
    found = Confined(calm.subject, calm.data.take(none), nothing, none, nothing > 0)
    effort = choose_effort("quick", {})
    assert rows_of(experiments.localization, found, "gradcam", effort).empty


def test_another_track_is_compared_where_there_is_one(case):
    y, lone = np.array([0, 0, 0, 1]), table([*"aabc"], ["blues"] * 3 + ["jazz"])
    data = replace(case.data, y=y, table=lone)
    rows = rows_of(experiments.shift_under_attack, Case(case.subject, data, {}), "gradcam")
    assert set(rows["condition"]) == {"other_track"}
    assert rows["segment"].unique().tolist() == [0, 1, 2]


def test_all_methods_map_the_first_segments_and_slow_ones_fewer(case):
    effort = choose_effort("quick", {"n_methods": 2, "n_slow": 1})
    found = experiments.map_by_all_methods(case, effort)
    counts = {name: len(maps) for name, maps in found.maps.items()}
    assert set(counts) == {*METHODS, *CONTROLS}
    assert {name for name, n in counts.items() if n == 1} == {"scorecam", "integrated_gradients"}
    assert {len(curves["insertion"]) for curves in found.curves.values()} == {1, 2}
    rows = rows_of(experiments.shift_of_methods, found, "gradcam", 0.05)
    assert set(rows["method"]) == set(counts) - {"gradcam"}
    assert rows.loc[rows["method"] == "scorecam", "segment"].unique().tolist() == [0]


def test_methods_are_compared_with_controls_on_the_same_segments(case):
    maps = {
        "gradcam": clean_maps(case)[:2],
        "blurred_random": attribute(case.subject, "blurred_random", case.data.X, case.data.y),
    }
    rng = np.random.default_rng(0)
    curves = {
        name: {kind: rng.random((len(heat), 6)) for kind in ("insertion", "deletion")}
        for name, heat in maps.items()
    }
    rows = rows_of(experiments.faithfulness_of_methods, MapSet(case, maps, curves), 1)
    keys = ["control", "method", "segment"]
    wide = rows.pivot_table(index=keys, columns="measure", values="value", dropna=False)
    method, control = wide.loc["", "gradcam"], wide.loc["", "blurred_random"]
    above = wide.loc["blurred_random", "gradcam"]
    assert method["insertion"].dropna().index.tolist() == [0, 1]
    assert control["insertion"].dropna().index.tolist() == [0, 1, 2, 3]
    assert above["insertion"].dropna().to_dict() == pytest.approx(
        (method["insertion"] - control["insertion"]).dropna().to_dict()
    )
    assert above["deletion"].dropna().to_dict() == pytest.approx(
        (control["deletion"] - method["deletion"]).dropna().to_dict()
    )
    assert method["road"].dropna().index.tolist() == [0]
    assert set(rows.loc[rows["control"] != "", "method"]) == {"gradcam"}


def test_attacks_on_maps_are_recorded_with_noise_of_the_same_norm(case):
    """Grad-CAM's segments are left alone, those of the other methods are changed a little."""
    maps = {name: clean_maps(case)[:2] for name in MANIPULATED}
    found = experiments.attack_maps(
        MapSet(case, maps, {}), 0.02, choose_effort("quick", {"iterations": 2})
    )
    for X in found.X.values():
        assert np.abs(X - case.data.X[:2]).max() <= 0.02 + 1e-6
    X = {"gradcam": case.data.X[:2]}
    rows = rows_of(experiments.manipulation, Manipulated(MapSet(case, maps, {}), X), 0.02)
    means = rows.groupby(["condition", "measure"])["value"].mean()
    for condition in ("manipulated", "manipulated_noise"):
        assert means[condition, "kept"] == 1
        assert means[condition, "probability_change"] == 0
        assert means[condition, "spearman"] == pytest.approx(1)
    assert set(rows["segment"]) == {0, 1}


def test_the_box_is_localized_on_attacked_and_on_clean_segments(case):
    attacked, flipped = case.attacked[0.05], np.arange(2)
    boxes = np.zeros((2, 128, 130), dtype=bool)
    boxes[:, :64] = True
    data = case.data.take(flipped)
    found = Confined(case.subject, data, attacked.X[:2], attacked.predicted[:2], boxes)
    effort = choose_effort("quick", {"n_slow": 1})
    rows = rows_of(experiments.localization, found, "gradcam", effort)
    counts = rows[rows["measure"] == "relevance_mass"].groupby(["condition", "method"]).size()
    assert counts["target_predicted"].to_dict() == {"gradcam": 2}
    assert counts["confined"].to_dict() == {
        name: 1 if name in ("scorecam", "integrated_gradients") else 2
        for name in (*METHODS, *CONTROLS)
    }
    above = rows[(rows["measure"] == "mass_above_area") & (rows["control"] == "randomcam")]
    assert set(above["method"]) == {*METHODS, *CONTROLS} - {"randomcam"}
    values = rows[(rows["measure"] == "mass_above_area") & (rows["condition"] == "confined")]
    wide = values.pivot_table(index="segment", columns=["control", "method"], values="value")
    np.testing.assert_allclose(
        wide["randomcam", "gradcam"], wide["", "gradcam"] - wide["", "randomcam"], atol=1e-7
    )


def test_a_random_control_is_averaged_over_its_draws(case, monkeypatch):
    monkeypatch.setattr(attributions, "DRAWS", 3)
    effort = choose_effort("quick", {"n_methods": 2, "n_slow": 1})
    few = case.take(2)
    drawn = attributions.draws(few.subject, "blurred_random", few.data.X, few.data.y)
    assert len({maps.tobytes() for maps in drawn}) == 3
    monkeypatch.setattr(experiments, "METHODS", ())
    found = experiments.map_by_all_methods(case, effort)
    np.testing.assert_array_equal(found.maps["blurred_random"], drawn[0])
    score = confidence(few.subject.model)
    options = few.subject.background, few.subject.seed
    each = [curves(score, few.data.X, few.data.y, maps, *options)["deletion"] for maps in drawn]
    np.testing.assert_allclose(found.curves["blurred_random"]["deletion"], np.mean(each, axis=0))
    assert len(attributions.draws(few.subject, "gradcam", few.data.X, few.data.y)) == 1


def test_mass_is_recorded_by_band_before_and_after_the_attack(case):
    rows = rows_of(experiments.mass_by_band, case, "gradcam", 0.05)
    assert set(zip(rows["condition"], rows["eps"], strict=True)) == {
        ("clean", 0),
        ("attacked", 0.05),
    }
    sums = rows.groupby(["condition", "segment"])["value"].sum()
    np.testing.assert_allclose(sums, 1)
    assert rows["part"].nunique() == 6


def test_each_target_class_is_compared_with_its_prototype(case):
    rows = rows_of(experiments.specificity, case, "frequency_prior")
    assert rows.groupby("condition").size().to_dict() == {"target_any": 4, "clean": 4}
    assert (rows["value"] > 0.5).all()  # each map is the prototype of its target class


def maps_by(monkeypatch, answer):
    monkeypatch.setattr(
        experiments, "attribute", lambda subject, method, X, targets: answer(targets)
    )


def test_the_share_of_the_target_class_is_averaged_over_all_genres(case, monkeypatch):
    prototypes = case.subject.prototypes
    own = class_specificity(prototypes, np.arange(10), prototypes)
    maps_by(monkeypatch, lambda targets: prototypes[targets])
    found = experiments.mean_class_specificity(case, "gradcam")
    np.testing.assert_allclose(found, own.mean())
    maps_by(monkeypatch, lambda targets: prototypes[targets] * (targets > 0)[:, None, None])
    found = experiments.mean_class_specificity(case, "gradcam")
    np.testing.assert_allclose(found, own[1:].mean())  # empty maps do not count


def test_structure_that_does_not_depend_on_the_target_class_cancels_out(case, monkeypatch):
    maps_by(monkeypatch, lambda targets: case.subject.prototypes[case.data.y])
    found = experiments.mean_class_specificity(case, "gradcam")
    np.testing.assert_allclose(found, 0, atol=1e-6)


def test_randomization_is_recorded_layer_by_layer(case):
    rows = rows_of(experiments.cascading_randomization, case, 1)
    assert rows["layer"].unique().tolist() == list(LAYERS)
    assert rows.groupby(["method", "layer"]).size().unique().tolist() == [2]
    assert set(rows["condition"]) == {"randomized"}


def test_maps_of_another_model_are_compared_with_the_trained_ones(case):
    model = case.subject.model
    same, other = (
        rows_of(experiments.random_labels, case, 2, network)
        for network in (model, list(randomized(model, 0))[-1][1])
    )
    assert set(same["condition"]) == {"random_labels"}
    np.testing.assert_allclose(same["value"].dropna(), 1, atol=1e-5)
    assert other["value"].dropna().mean() < 0.9


def test_parts_are_recorded_by_genre(case):
    cells = {number: np.zeros((128, 130), dtype=int) for number in range(4)}  # drums everywhere
    rows = rows_of(experiments.mass_on_parts, case, "frequency_prior", cells)
    drums = rows[(rows["part"] == "drums") & (rows["method"] == "frequency_prior")]
    assert drums.groupby("genre")["segment"].nunique().to_dict() == {"blues": 2, "jazz": 2}
    np.testing.assert_allclose(drums["value"], 0, atol=1e-6)


def test_failures_are_recorded_by_kind(case):
    y = case.data.y.copy()
    y[3] = (y[3] + 1) % 10
    options = replace(case.data, y=y), 5, 0.05
    rows = rows_of(experiments.failures, case, "gradcam", *options)
    margins = rows[rows["measure"] == "prototype_margin"].groupby("condition")
    assert {name: group["segment"].tolist() for name, group in margins} == {
        "natural": [3],
        "adversarial": [0, 1],
        "target_predicted": [0, 1],
    }
    assert rows_of(experiments.failures, case, "gradcam", case.data, 5, 0.05).empty


ATTACK = {"condition": "noise", "eps": 0.01}


@pytest.mark.usefixtures("intervals_of_any")
def test_a_table_has_the_mean_of_each_measure_with_its_interval(subject):
    segments, values = table([*"aabb"], ["blues"] * 4), np.array([0.2, 0.4, np.nan, 0.9])
    rows = records(subject, "gradcam", segments, {"spearman": values}, **ATTACK)
    assert list(rows) == ["segment", "track", "genre", *KEYS[:2], *LABELS, "measure", "value"]
    (line,) = summarize(rows, "corpus").to_dict("records")
    assert list(line) == COLUMNS
    keys = {"checkpoint": "tiny", "method": "gradcam", "measure": "spearman"} | LABELS | ATTACK
    assert {key: line[key] for key in KEYS} == keys
    assert (line["genre"], line["compared_with"]) == ("", "")
    assert (line["value"], line["n_segments"]) == (pytest.approx(0.5), 3)
    assert line["low"] < 0.5 < line["high"]
    assert line["n_tracks"] == 2


def test_measures_of_a_part_are_averaged_by_genre(subject):
    segments = table([*"aabb"], ["blues", "blues", "jazz", "jazz"])
    values = {"band_mass": np.array([0.1, 0.3, 0.5, 0.7])}
    rows = records(subject, "gradcam", segments, values, part="0-250 Hz")
    found = summarize(rows, "corpus").set_index("genre")["value"]
    assert found.to_dict() == pytest.approx({"blues": 0.2, "jazz": 0.6})


def test_segments_without_any_value_leave_a_table_without_rows(subject):
    values = {"class_specificity": np.array([np.nan])}
    found = summarize(records(subject, "gradcam", table(["a"], ["blues"]), values), "corpus")
    assert found.empty
    assert found.columns.tolist() == COLUMNS


def test_nissim_becomes_its_mean_and_its_variation(subject):
    values = np.array([0.1, 0.2, 0.3, 0.4])
    rows = records(subject, "gradcam", table([*"abcd"], ["blues"] * 4), {"nissim": values})
    found = summarize(rows, "corpus").set_index("measure")["value"]
    assert found.to_dict() == {"mod": pytest.approx(0.25), "vid": pytest.approx(values.var())}


@pytest.mark.usefixtures("intervals_of_any")
@pytest.mark.parametrize(("measure", "width"), [("centre_shift_s", 0), ("empty", 0.3)])
def test_only_a_count_that_is_never_true_keeps_its_uncertainty(measure, width, subject):
    rows = records(subject, "gradcam", table([*"ab"], ["blues"] * 2), {measure: np.zeros(2)})
    (line,) = summarize(rows, "corpus").to_dict("records")
    assert (line["value"], line["low"]) == (0, 0)
    assert line["high"] == 0 if width == 0 else line["high"] > width


def test_differences_are_between_conditions_of_the_same_method(subject):
    segments = table([f"t{k}" for k in range(10)], ["blues"] * 10)
    rng = np.random.default_rng(0)
    low, high = rng.normal(0.2, 0.05, 10), rng.normal(0.6, 0.05, 10)
    rows = [
        records(subject, "gradcam", segments, {"spearman": values}, condition=condition, eps=eps)
        for values, condition, eps in (
            (low, "natural", 0.0),
            (high, "adversarial", 0.01),
            (low, "adversarial", 0.5),
        )
    ]
    pairs = [("spearman", "natural", "adversarial", 0.01), ("spearman", "natural", "never", 0.01)]
    (line,) = differences(joined(rows), pairs, "corpus").to_dict("records")
    assert (line["condition"], line["compared_with"]) == ("natural", "adversarial")
    assert line["value"] == pytest.approx(low.mean() - high.mean())
    assert line["low"] < line["value"] < line["high"] < 0
    assert (line["n_segments"], line["eps"], line["genre"]) == (10, 0.01, "")


def test_a_difference_of_one_track_has_no_interval(subject):
    segments = table(["a"], ["blues"])
    rows = [
        records(subject, "gradcam", segments, {"ssim": np.array([value])}, condition=condition)
        for condition, value in (("x", 0.1), ("y", 0.3))
    ]
    (line,) = differences(joined(rows), [("ssim", "x", "y", 0)], "c").to_dict("records")
    assert (line["value"], line["low"]) == (pytest.approx(-0.2), None)


def test_models_are_compared_on_the_segments_that_both_have():
    """The second model's maps move by 0.2 more, and it lacks the first of eight segments."""
    first = np.linspace(0.3, 0.8, 8)
    segments = table([f"t{k}" for k in range(8)], ["blues"] * 8)
    models = {"one": first, "two": np.where(first > 0.3, first - 0.2, np.nan)}
    rows = [
        records(SimpleNamespace(name=name), "gradcam", segments, {"spearman": values}, **labels)
        for name, moved in models.items()
        for values, labels in (
            (moved, {"condition": "succeeded_true", "eps": 0.01}),
            (moved + 0.1, {"condition": "minus", "eps": 0.01}),
            (moved - 9, {"condition": "succeeded_true", "eps": 0.05}),
        )
    ]
    plain, contrast = model_differences(joined(rows), 0.01, "c").to_dict("records")
    assert (plain["checkpoint"], plain["compared_with"]) == ("two", "one")
    assert (plain["value"], plain["n_segments"]) == (pytest.approx(-0.2), 7)
    assert plain["low"] - 1e-9 <= plain["value"] <= plain["high"] + 1e-9
    assert (plain["condition"], plain["eps"]) == ("succeeded_true", 0.01)
    assert contrast["condition"] == "succeeded_true less minus"
    assert contrast["value"] == pytest.approx(0, abs=1e-9)
    assert model_differences(joined(rows[:3]), 0.01, "c").empty


def test_the_table_has_means_and_contrasts_in_the_order_of_methods(subject):
    segments = table([*"ab"], ["blues"] * 2)
    rows = [
        records(subject, method, segments, {"class_specificity": values}, condition=condition)
        for method in ("randomcam", "gradcam")
        for condition, values in (("clean", np.ones(2)), ("target_any", np.zeros(2)))
    ]
    found = results_table(joined(rows), "corpus", 0.01)
    assert found["method"].tolist() == ["gradcam"] * 3 + ["randomcam"] * 3
    contrast = found[found["compared_with"] == "target_any"]
    assert contrast["value"].tolist() == [1, 1]


@pytest.mark.usefixtures("intervals_of_any")
def test_adversarial_margins_differ_between_models_in_the_family_of_their_measure():
    """The second model's margin is higher by 0.5; the contrast and the difference are corrected."""
    rng, segments = np.random.default_rng(0), table([f"t{k}" for k in range(8)], ["blues"] * 8)
    noise = rng.normal(0, 0.1, (4, 8))
    rows = [
        records(SimpleNamespace(name=name), "gradcam", segments, {"prototype_margin": values}, **at)
        for name, level, (first, second) in (("one", 0, noise[:2]), ("two", 0.5, noise[2:]))
        for values, at in (
            (level + first, {"condition": "adversarial", "eps": 0.01}),
            (second, {"condition": "target_predicted", "eps": 0.01}),
        )
    ]
    found = results_table(joined(rows), "c", 0.01)
    (line,) = found[found["compared_with"] == "one"].to_dict("records")
    assert (line["measure"], line["condition"]) == ("prototype_margin", "adversarial")
    assert line["value"] == pytest.approx(0.5, abs=0.1)
    assert line["n_segments"] == 8
    family = found.dropna(subset="p_value").sort_values("p_value")
    assert len(family) == 3  # two contrasts within models, one between them
    assert family["p_holm"].iloc[0] == pytest.approx(3 * family["p_value"].iloc[0])


def test_tables_of_contrasts_are_in_words_within_models_and_between_them():
    lines = [
        interval("spearman", "succeeded_true", 0.1, 0.3, compared_with="minus"),
        interval("spearman", "succeeded_true", 0.1, 0.3),  # a mean, no contrast
        interval("insertion", "clean", 0.1, 0.3, compared_with="tiny", control="blurred_random"),
        interval("class_specificity", "clean less target_any", 0, 1, compared_with="tiny"),
    ]
    lines = [lines[0], lines[1], *(line | {"checkpoint": "other"} for line in lines[2:])]
    within, between = contrast_tables(pd.DataFrame(lines), "gradcam")
    assert within.reset_index().to_numpy().tolist() == [
        [
            "rank correlation with the clean map",
            "successful attack, true genre's map",
            "opposite perturbation, true genre's map",
            "0.20 [0.10, 0.30], n = 20",
        ]
    ]
    clean = "no attack, true genre's map"
    assert list(between) == ["other less tiny"]
    assert between.index.tolist() == [
        ("insertion", "smooth noise", clean),
        (MEASURES["class_specificity"], "", f"{clean}, less {CONDITIONS['target_any']}"),
    ]
    assert contrast_tables(pd.DataFrame(lines[:2]), "gradcam")[1].empty


def interval(measure, condition, low, high, **labels):
    """Return a line of the table of the measures of Grad-CAM."""
    means = {"value": (low + high) / 2, "low": low, "high": high, "n_segments": 20, "p_holm": 0.01}
    keys = {"checkpoint": "tiny", "method": "gradcam", "measure": measure, "genre": ""}
    return dict.fromkeys(COLUMNS, "") | LABELS | keys | {"condition": condition} | means | labels


def success_of(low, high):
    """Return the attack success rate of one model at one eps."""
    line = interval(RATE, "", low, high, eps=0.01)
    return pd.DataFrame([line])[
        ["checkpoint", "measure", "eps", "value", "low", "high", "p_holm", "n_segments"]
    ]


@pytest.mark.parametrize(
    ("claim", "low", "high", "answer"),
    [
        (0, 0.1, 0.2, "supported"),
        (0, -0.1, 0.2, "undecided"),
        (0, 0.0, 0.2, "undecided"),
        (0, -0.2, -0.1, "not supported"),
        (0, np.nan, np.nan, "undecided"),
        (2, -0.2, -0.1, "supported"),
        (2, 0.1, 0.2, "not supported"),
        (3, 0.6, 0.9, "supported"),
        (3, 0.4, 0.9, "undecided"),
        (3, 0.1, 0.4, "not supported"),
    ],
)
def test_an_answer_follows_from_the_interval(claim, low, high, answer):
    (line,) = pd.DataFrame([interval("", "", low, high)]).itertuples()
    assert verdict(CLAIMS[claim], line) == answer
    assert verdict(CLAIMS[claim], line._replace(n_segments=FEWEST_SEGMENTS - 1)) == "too few"


@pytest.mark.parametrize(("p_holm", "answer"), [(0.049, "supported"), (0.051, "undecided")])
def test_a_claim_stands_after_correction_for_several_contrasts(p_holm, answer):
    (line,) = pd.DataFrame([interval("", "", 0.1, 0.2, p_holm=p_holm)]).itertuples()
    assert verdict(CLAIMS[0], line) == answer


def test_each_claim_is_answered_by_its_contrast():
    lines = [
        interval("class_specificity", "clean", 0.1, 0.3, compared_with="target_any"),
        interval("class_specificity", "clean", -0.3, -0.1),  # a mean, no contrast
        interval("prototype_margin", "natural", -0.1, 0.1, compared_with="adversarial", eps=0.01),
        interval("spearman", "succeeded_true", -0.6, -0.5, compared_with="minus", eps=0.01),
        interval("spearman", "succeeded_true", 0.1, 0.2, compared_with="noise_succeeded", eps=0.01),
        interval("spearman", "succeeded_true", -0.7, -0.6, compared_with="other_segment", eps=0.01),
        interval("spearman", "succeeded_true", -1, -1, compared_with="noise_succeeded", eps=0.05),
    ]
    found = answers(pd.DataFrame(lines), success_of(0.7, 0.9), "gradcam", 0.01)
    assert found["answer"].tolist() == ["supported", "undecided", "not supported", "supported"]
    assert found["value"].tolist()[::3] == ["0.20 [0.10, 0.30], n = 20", "80% [70%, 90%], n = 20"]
    assert found["claim"].tolist() == [claim.text for claim in CLAIMS]
    assert found[["claim", "measured by"]].map(len).max(axis=None) < 50  # what pandas displays


def test_the_headline_has_one_column_per_model_and_no_interval_where_there_is_none():
    line = interval("mass_above_area", "confined", 0.1, 0.3, control="randomcam", eps=0.2)
    other = line | {"checkpoint": "other", "low": None, "high": None}
    parts = [line, other, line | {"part": "drums"}]
    shown = headline(pd.DataFrame(parts), success_of(0.2, 0.4), "gradcam", 0.01)
    assert shown.to_dict("index") == {
        RATE: {"tiny": "30% [20%, 40%], n = 20", "other": ""},
        "localization: mass in the box above random weights": {
            "tiny": "0.20 [0.10, 0.30], n = 20",
            "other": "0.20, n = 20",
        },
    }


@pytest.mark.parametrize("shuffled", [False, True])
def test_all_experiments_run_and_their_results_are_written(shuffled, case, calm, tmp_path):
    sizes = dict.fromkeys(
        ("n_explained", "n_methods", "n_slow", "explain_iterations", "iterations"), 1
    )
    model = case.subject.model if shuffled else None
    plan = Plan("gradcam", 0.05, choose_effort("quick", sizes), None, model)
    test = replace(case.data, y=(case.data.y + np.eye(4, dtype=int)[3]) % 10)
    found = experiments.run_all([case], test, plan)
    expected = {"other_track", "succeeded_true", "noise", "clean", "randomized", "natural"}
    assert expected <= set(found.records["condition"])
    assert ("random_labels" in set(found.records["condition"])) == shuffled
    assert set(found.records["method"]) == {*METHODS, *CONTROLS}
    assert not (found.records["part"] == "drums").any()  # no embedded corpus
    table, success = results_table(found.records, "corpus", 0.05), success_rates([case])
    claims = answers(table, success, "gradcam", 0.05)
    maps = pd.DataFrame({"category": ["a", "a", "b"], "empty": [True, False, False]})
    write_results(tmp_path, {"seed": 1}, maps, found.records, table, claims)
    shown = read_json(tmp_path / "gradcam.json")
    assert shown["maps"] == {"a": {"n_maps": 2, "n_empty": 1}, "b": {"n_maps": 1, "n_empty": 0}}
    result = read_json(tmp_path / "explanations.json")
    assert (result["seed"], len(result["answers"])) == (1, len(claims))
    empty = found.records[found.records["measure"] == "empty"]
    assert sum(result["empty_maps"]["tiny"].values()) == empty["value"].sum()
    assert len(pd.read_csv(tmp_path / "explanations_records.csv")) == len(found.records)


def test_parts_are_known_of_the_embedded_corpus_alone(case, monkeypatch):
    monkeypatch.setattr(experiments, "loudest_parts", lambda table, seed: [seed] * len(table))
    assert experiments.known_parts([case, case], 7) == dict.fromkeys(range(4), 7)
    assert experiments.known_parts([case], None) == {}


NO_ATTACK = "which is no attack"
IN_DB = "probably in dB"


@pytest.mark.parametrize(
    ("eps", "cause"), [(0, NO_ATTACK), (-0.1, NO_ATTACK), (float("nan"), NO_ATTACK), (1.5, IN_DB)]
)
def test_an_eps_of_no_meaning_is_refused_before_any_work(eps, cause):
    experiments.check_request("gradcam", [0.01, 1])
    with pytest.raises(ValueError, match=f"eps is {eps}, {cause}: give it as a share"):
        experiments.check_request("gradcam", [0.01, eps])


@pytest.mark.parametrize("method", ["gradcamm", "randomcam"])
def test_an_unknown_method_is_refused_before_any_work(method):
    with pytest.raises(ValueError, match=f"METHOD={method} is unknown: give one of gradcam, hires"):
        experiments.check_request(method, [0.01])
