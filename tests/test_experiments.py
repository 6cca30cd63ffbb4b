from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from src.data.segments import Segments
from src.effort import choose_effort
from src.explainability import attributions, experiments
from src.explainability import records as tables
from src.explainability.attributions import CONTROLS, METHODS, Subject, attribute, blurred_random
from src.explainability.experiments import MapSet, Plan
from src.explainability.faithfulness import LAYERS, confidence, curves, randomized
from src.explainability.manipulation import MANIPULATED
from src.explainability.records import CLAIMS, COLUMNS, LABELS, NULLS, RATE, answers, results_table
from src.explainability.selection import Attacked, Case, Confined, make_case, null_segments
from src.explainability.similarity import class_specificity
from src.labels import CONDITIONS, MEASURES
from src.models import cnn
from src.models.evaluation import predict_logits
from src.results import read_json

SLOW = {"scorecam", "integrated_gradients"}


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


def rows_of(experiment, *options):
    """Return the records that an experiment yields; none are an empty table."""
    return pd.concat([pd.DataFrame(), *experiment(*options)], ignore_index=True)


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
    rates = tables.success_rates([made])
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
    rows = shift(case, in_full=True)
    found = rows[rows["measure"] == "spearman"].groupby("condition")
    attacked = "succeeded_true", "succeeded_predicted", "target_predicted", *NULLS
    flipped = {condition: [0, 1] for condition in attacked}
    segments = {name: group["segment"].tolist() for name, group in found}
    assert segments == flipped | {"failed": [2, 3], "noise": [0, 1, 2, 3]}
    still = found.get_group("noise")["value"]  # the same level more in all bins changes nothing
    np.testing.assert_allclose(still, 1, atol=0.05)
    assert (found.get_group("succeeded_true")["value"] < 1).all()
    assert set(rows["eps"]) == {0.05}
    assert set(shift(case)["condition"]) == {"succeeded_true", "failed", "noise", "noise_succeeded"}


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
    assert {name for name, n in counts.items() if n == 1} == SLOW
    assert {len(curves["insertion"]) for curves in found.curves.values()} == {1, 2}
    rows = rows_of(experiments.shift_of_methods, found, "gradcam", 0.05)
    assert set(rows["method"]) == set(counts) - {"gradcam"}
    assert rows.loc[rows["method"] == "scorecam", "segment"].unique().tolist() == [0]


def test_methods_are_compared_with_controls_on_the_same_segments(case):
    maps = {"gradcam": clean_maps(case)[:2]}
    maps["blurred_random"] = attribute(case.subject, "blurred_random", case.data.X, case.data.y)
    rng = np.random.default_rng(0)
    curves = {
        name: {kind: rng.random((len(heat), 6)) for kind in ("insertion", "deletion")}
        for name, heat in maps.items()
    }
    rows = rows_of(experiments.faithfulness_of_methods, MapSet(case, maps, curves, {}), 1)
    keys = ["control", "method", "segment"]
    wide = rows.pivot_table(index=keys, columns="measure", values="value")
    method, control = wide.loc["", "gradcam"], wide.loc["", "blurred_random"]
    above = wide.loc["blurred_random", "gradcam"]
    assert (method.index.tolist(), control.index.tolist()) == ([0, 1], [0, 1, 2, 3])
    np.testing.assert_allclose(above["insertion"], method["insertion"] - control["insertion"][:2])
    np.testing.assert_allclose(above["deletion"], control["deletion"][:2] - method["deletion"])
    assert method["road"].dropna().index.tolist() == [0]
    assert set(rows.loc[rows["control"] != "", "method"]) == {"gradcam"}


def test_attacks_on_maps_are_recorded_with_noise_of_the_same_norm(case):
    """Grad-CAM's segments are left alone, those of the other methods are changed a little."""
    found = MapSet(case, {name: clean_maps(case)[:2] for name in MANIPULATED}, {}, {})
    changed = experiments.attack_maps(found, 0.02, choose_effort("quick", {"iterations": 2}))
    for X in changed.manipulated.values():
        assert np.abs(X - case.data.X[:2]).max() <= 0.02 + 1e-6
    unchanged = found._replace(manipulated={"gradcam": case.data.X[:2]})
    rows = rows_of(experiments.manipulation, unchanged, 0.02)
    means = rows.groupby(["condition", "measure"])["value"].mean()
    for condition in ("manipulated", "manipulated_noise"):
        expected = {"kept": 1, "probability_change": 0, "spearman": pytest.approx(1)}
        assert means[condition][[*expected]].to_dict() == expected
    assert set(rows["segment"]) == {0, 1}


def test_the_box_is_localized_on_attacked_and_on_clean_segments(case):
    attacked, data = case.attacked[0.05], case.data.take(np.arange(2))
    boxes = np.zeros((2, 128, 130), dtype=bool)
    boxes[:, :64] = True
    found = Confined(case.subject, data, attacked.X[:2], attacked.predicted[:2], boxes)
    effort = choose_effort("quick", {"n_slow": 1})
    rows = rows_of(experiments.localization, found, "gradcam", effort)
    counts = rows[rows["measure"] == "relevance_mass"].groupby(["condition", "method"]).size()
    assert counts["target_predicted"].to_dict() == {"gradcam": 2}
    assert counts["confined"].to_dict() == {n: 2 - (n in SLOW) for n in (*METHODS, *CONTROLS)}
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
    assert rows.groupby("condition")["eps"].unique().to_dict() == {"clean": [0], "attacked": [0.05]}
    sums = rows.groupby(["condition", "segment"])["value"].sum()
    np.testing.assert_allclose(sums, 1)
    assert rows["part"].nunique() == 6


@pytest.mark.parametrize("kind", ["prototype of the target", "some empty", "of no target"])
def test_the_share_of_the_target_class_is_averaged_over_all_genres(kind, case, monkeypatch):
    """Empty maps do not count; structure that does not depend on the target class cancels out."""
    prototypes = case.subject.prototypes
    own = class_specificity(prototypes, np.arange(10), prototypes)
    maps, expected = {
        "prototype of the target": (lambda targets: prototypes[targets], own.mean()),
        "some empty": (lambda k: prototypes[k] * (k > 0)[:, None, None], own[1:].mean()),
        "of no target": (lambda _: prototypes[case.data.y], 0),
    }[kind]
    monkeypatch.setattr(experiments, "attribute", lambda _subject, _method, _X, k: maps(k))
    found = rows_of(experiments.specificity, case, "gradcam").set_index("condition")["value"]
    np.testing.assert_allclose(found["target_any"], [expected] * 4, atol=1e-6)
    assert len(found["clean"]) == 4
    assert (found["clean"].dropna() > 0.5).all()


def test_randomization_is_recorded_layer_by_layer(case):
    rows = rows_of(experiments.similarity_of_models, case, 1)
    assert rows["layer"].unique().tolist() == list(LAYERS)
    assert rows.groupby(["method", "layer"]).size().unique().tolist() == [2]
    assert set(rows["condition"]) == {"randomized"}


def test_maps_of_another_model_are_compared_with_the_trained_ones(case):
    model = case.subject.model
    same, other = (
        rows_of(experiments.similarity_of_models, case, 2, network)
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


def records_of(values, measure="spearman", name="tiny", method="gradcam", tracks="", **labels):
    """Return records of one segment per value; each of its own track, or of `tracks`."""
    values = np.array(values, dtype=float)
    names = [*tracks] or [f"t{k}" for k in range(len(values))]
    segments = table(names, ["blues"] * len(names))
    return tables.records(SimpleNamespace(name=name), method, segments, {measure: values}, **labels)


@pytest.mark.usefixtures("intervals_of_any")
def test_a_table_has_the_mean_of_each_measure_with_its_interval():
    measured = records_of([0.2, 0.4, np.nan, 0.9], tracks="aabb", condition="noise", eps=0.01)
    (line,) = results_table(measured, "corpus", 0.01).to_dict("records")
    assert list(line) == COLUMNS
    keys = {"corpus": "corpus", "checkpoint": "tiny", "method": "gradcam", "measure": "spearman"}
    keys |= LABELS | {"condition": "noise", "eps": 0.01, "genre": "", "compared_with": ""}
    keys |= {"value": pytest.approx(0.5), "n_segments": 3, "n_tracks": 2}
    assert {key: line[key] for key in keys} == keys
    assert line["low"] < 0.5 < line["high"]


def test_measures_of_a_part_are_averaged_by_genre():
    measured = records_of([0.1, 0.3, 0.5, 0.7], "band_mass", part="0-250 Hz")
    found = tables.means(measured.assign(genre=["blues", "blues", "jazz", "jazz"]))
    means = {line["genre"]: line["value"] for line in found}
    assert means == pytest.approx({"blues": 0.2, "jazz": 0.6})


def test_segments_without_any_value_leave_a_table_without_rows():
    assert list(tables.means(records_of([np.nan], "class_specificity"))) == []


def test_nissim_becomes_its_mean_and_its_variation():
    values = np.array([0.1, 0.2, 0.3, 0.4])
    found = {line["measure"]: line["value"] for line in tables.means(records_of(values, "nissim"))}
    assert found == {"mod": pytest.approx(0.25), "vid": pytest.approx(values.var())}


@pytest.mark.usefixtures("intervals_of_any")
@pytest.mark.parametrize(("measure", "width"), [("centre_shift_s", 0), ("empty", 0.3)])
def test_only_a_count_that_is_never_true_keeps_its_uncertainty(measure, width):
    (line,) = tables.means(records_of([0, 0], measure))
    assert (line["value"], line["low"]) == (0, 0)
    assert line["high"] == 0 if width == 0 else line["high"] > width


@pytest.mark.usefixtures("intervals_of_any")
def test_means_over_draws_of_a_random_control_are_no_counts():
    """Ten draws count as one where each segment's value is one of true or false."""
    hits, means = ([0.0, 0.0, 1.0, 1.0], [0.4, 0.5, 0.5, 0.6])
    widths = []
    for values in (hits, means):
        (line,) = tables.means(records_of(values, "pointing_game"))
        widths.append(line["high"] - line["low"])
    assert widths[1] < 0.5 * widths[0]


def test_differences_are_between_conditions_of_the_same_method():
    low, high = np.random.default_rng(0).normal([[0.2], [0.6]], 0.05, (2, 10))
    measured = [
        records_of(low, "prototype_margin", condition="natural"),
        records_of(high, "prototype_margin", condition="adversarial", eps=0.01),
        records_of(low, "prototype_margin", condition="adversarial", eps=0.5),
    ]
    (line,) = tables.differences(pd.concat(measured), 0.01)
    assert (line["condition"], line["compared_with"]) == ("natural", "adversarial")
    assert line["value"] == pytest.approx(low.mean() - high.mean())
    assert line["low"] < line["value"] < line["high"] < 0
    assert (line["n_segments"], line["eps"], line["genre"]) == (10, 0.01, "")


def test_a_difference_of_one_track_has_no_interval():
    measured = [
        records_of([value], "class_specificity", condition=condition)
        for condition, value in (("clean", 0.1), ("target_any", 0.3))
    ]
    (line,) = tables.differences(pd.concat(measured), 0.01)
    assert (line["value"], line["low"]) == (pytest.approx(-0.2), None)


def test_models_are_compared_on_the_segments_that_both_have():
    """The second model's maps move by 0.2 more, and it lacks the first of eight segments."""
    first = np.linspace(0.3, 0.8, 8)
    models = {"one": first, "two": np.where(first > 0.3, first - 0.2, np.nan)}
    measured = [
        records_of(moved + shift, name=name, condition=condition, eps=eps)
        for name, moved in models.items()
        for shift, condition, eps in (
            (0, "succeeded_true", 0.01),
            (0.1, "minus", 0.01),
            (-9, "succeeded_true", 0.05),
        )
    ]
    plain, contrast = tables.model_differences(pd.concat(measured), 0.01)
    assert (plain["checkpoint"], plain["compared_with"]) == ("two", "one")
    assert (plain["value"], plain["n_segments"]) == (pytest.approx(-0.2), 7)
    assert plain["low"] - 1e-9 <= plain["value"] <= plain["high"] + 1e-9
    assert (plain["condition"], plain["eps"]) == ("succeeded_true", 0.01)
    assert contrast["condition"] == "succeeded_true less minus"
    assert contrast["value"] == pytest.approx(0, abs=1e-9)
    assert list(tables.model_differences(pd.concat(measured[:3]), 0.01)) == []


def test_the_table_has_means_and_contrasts_in_the_order_of_methods():
    measured = [
        records_of([value] * 2, "class_specificity", method=method, condition=condition)
        for method in ("randomcam", "gradcam")
        for condition, value in (("clean", 1), ("target_any", 0))
    ]
    found = results_table(pd.concat(measured), "corpus", 0.01)
    assert found["method"].tolist() == ["gradcam"] * 3 + ["randomcam"] * 3
    contrast = found[found["compared_with"] == "target_any"]
    assert contrast["value"].tolist() == [1, 1]


@pytest.mark.usefixtures("intervals_of_any")
def test_adversarial_margins_differ_between_models_in_the_family_of_their_measure():
    """The second model's margin is higher by 0.5; the contrast and the difference are corrected."""
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 2, 8))
    measured = [
        records_of(level + values, "prototype_margin", name=name, condition=condition, eps=0.01)
        for name, higher, own in (("one", 0, noise[0]), ("two", 0.5, noise[1]))
        for condition, level, values in (
            ("adversarial", higher, own[0]),
            ("target_predicted", 0, own[1]),
        )
    ]
    found = results_table(pd.concat(measured), "c", 0.01)
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
    within, between = tables.contrast_tables(pd.DataFrame(lines), "gradcam")
    (keys,) = within.index
    assert keys == (
        "rank correlation with the clean map",
        "successful attack, true genre's map",
        "opposite perturbation, true genre's map",
    )
    assert within.to_numpy() == [["0.20 [0.10, 0.30], n = 20"]]
    clean = "no attack, true genre's map"
    assert list(between) == ["other less tiny"]
    assert between.index.tolist() == [
        ("insertion", "smooth noise", clean),
        (MEASURES["class_specificity"], "", f"{clean}, less {CONDITIONS['target_any']}"),
    ]
    assert tables.contrast_tables(pd.DataFrame(lines[:2]), "gradcam")[1].empty


def interval(measure, condition, low, high, **labels):
    """Return a line of the table of the measures of Grad-CAM."""
    means = {"value": (low + high) / 2, "low": low, "high": high, "n_segments": 20, "p_holm": 0.01}
    keys = {"checkpoint": "tiny", "method": "gradcam", "measure": measure, "genre": ""}
    return dict.fromkeys(COLUMNS, "") | LABELS | keys | {"condition": condition} | means | labels


def success_of(low, high):
    """Return the attack success rate of one model at one eps."""
    columns = "checkpoint measure eps value low high p_holm n_segments".split()
    return pd.DataFrame([interval(RATE, "", low, high, eps=0.01)])[columns]


@pytest.mark.parametrize(
    ("claim", "low", "high", "p_holm", "answer"),
    [
        (0, 0.1, 0.2, 0.049, "supported"),
        (0, 0.1, 0.2, 0.051, "undecided"),  # after correction for several contrasts
        (0, -0.1, 0.2, 0.01, "undecided"),
        (0, 0.0, 0.2, 0.01, "undecided"),
        (0, -0.2, -0.1, 0.01, "not supported"),
        (0, np.nan, np.nan, 0.01, "undecided"),
        (2, -0.2, -0.1, 0.01, "supported"),
        (2, 0.1, 0.2, 0.01, "not supported"),
        (3, 0.6, 0.9, 0.01, "supported"),
        (3, 0.4, 0.9, 0.01, "undecided"),
        (3, 0.1, 0.4, 0.01, "not supported"),
    ],
)
def test_an_answer_follows_from_the_interval(claim, low, high, p_holm, answer):
    lines = [interval("", "", low, high, p_holm=p_holm, n_segments=n) for n in (20, 19)]
    found = [tables.verdict(CLAIMS[claim], line) for line in pd.DataFrame(lines).itertuples()]
    assert found == [answer, "too few"]


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
    shown = tables.headline(pd.DataFrame(parts), success_of(0.2, 0.4), "gradcam", 0.01)
    assert shown.to_dict("index") == {
        RATE: {"tiny": "30% [20%, 40%], n = 20", "other": ""},
        "localization: mass in the box above random weights": {
            "tiny": "0.20 [0.10, 0.30], n = 20",
            "other": "0.20, n = 20",
        },
    }


@pytest.mark.parametrize("shuffled", [False, True])
def test_all_experiments_run_and_their_results_are_written(shuffled, case, tmp_path):
    sizes = "n_explained n_methods n_slow explain_iterations iterations".split()
    effort = choose_effort("quick", dict.fromkeys(sizes, 1))
    plan = Plan("gradcam", 0.05, effort, None, case.subject.model if shuffled else None)
    test = replace(case.data, y=(case.data.y + np.eye(4, dtype=int)[3]) % 10)
    found = experiments.run_all([case], test, plan)
    expected = {"other_track", "succeeded_true", "noise", "clean", "randomized", "natural"}
    assert expected <= set(found.records["condition"])
    assert ("random_labels" in set(found.records["condition"])) == shuffled
    assert set(found.records["method"]) == {*METHODS, *CONTROLS}
    assert not (found.records["part"] == "drums").any()  # no embedded corpus
    table, success = results_table(found.records, "corpus", 0.05), tables.success_rates([case])
    claims = answers(table, success, "gradcam", 0.05)
    maps = pd.DataFrame({"category": ["a", "a", "b"], "empty": [True, False, False]})
    tables.write_results(tmp_path, {"seed": 1}, maps, found.records, table, claims)
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


KNOWN = "METHOD={} is unknown: give one of gradcam, hires"


@pytest.mark.parametrize(
    ("method", "eps", "said"),
    [
        ("gradcam", 0, "eps is 0, which is no attack: give it as a share"),
        ("gradcam", -0.1, "eps is -0.1, which is no attack: give it as a share"),
        ("gradcam", float("nan"), "eps is nan, which is no attack: give it as a share"),
        ("gradcam", 1.5, "eps is 1.5, probably in dB: give it as a share"),
        ("gradcamm", 0.01, KNOWN.format("gradcamm")),
        ("randomcam", 0.01, KNOWN.format("randomcam")),
    ],
)
def test_a_request_without_meaning_is_refused_before_any_work(method, eps, said):
    experiments.check_request("gradcam", [0.01, 1])
    with pytest.raises(ValueError, match=said):
        experiments.check_request(method, [0.01, eps])
