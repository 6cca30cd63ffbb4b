import numpy as np
import pandas as pd
import pytest
import torch

from src.explainability import experiments
from src.explainability.experiments import Attacked, partners, shuffled_change
from src.explainability.failures import own_genre_gap, resemblance
from src.explainability.methods import CONTROLS, Clips, Subject, blurred_random, maps_of
from src.explainability.sanity import randomized
from src.explainability.table import COLUMNS, KEYS, differences, records, summarize
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits

GENRES = ["blues", "jazz"]


def table(names, genres):
    numbers = range(len(names))
    return pd.DataFrame({"segment": numbers, "track": names, "genre": genres})


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    priors = blurred_random((10, 128, 130), 3)
    background = np.full((128, 130), 0.5, dtype=np.float32)
    return Subject("tiny", GenreClassifierCNN().eval(), "conv4_2", 42, priors, background)


@pytest.fixture(scope="module")
def clips(subject):
    X = np.random.default_rng(0).random((4, 128, 130), dtype=np.float32)
    y = predict_logits(subject.model, X).argmax(axis=1)
    return Clips(X, y, table([*"aabb"], ["blues", "blues", "jazz", "jazz"]))


@pytest.fixture(scope="module")
def half_flipped(clips):
    """Clips of which the first two changed and flipped, the others changed and did not."""
    X = np.clip(clips.X + 0.05, 0, 1)
    predicted = clips.y.copy()
    predicted[:2] = (predicted[:2] + 1) % 10
    return Attacked(0.05, X, predicted, clips.X.copy())


def test_noise_has_the_norms_of_the_attack_in_other_places():
    rng = np.random.default_rng(0)
    X = rng.uniform(0.3, 0.7, (2, 128, 130)).astype(np.float32)
    change = rng.uniform(-0.1, 0.1, X.shape).astype(np.float32)
    noise = shuffled_change(X, X + change, 1) - X
    for power in (1, 2, np.inf):
        expected = np.linalg.norm(change.reshape(2, -1), power, axis=1)
        np.testing.assert_allclose(
            np.linalg.norm(noise.reshape(2, -1), power, axis=1), expected, rtol=1e-4
        )
    assert abs(np.corrcoef(noise.ravel(), change.ravel())[0, 1]) < 0.05


def test_attacked_clips_stay_inside_eps(subject, clips):
    (found,) = experiments.attack_clips(subject, clips, [0.01], iterations=2)
    assert np.abs(found.X - clips.X).max() == pytest.approx(0.01, abs=1e-6)
    np.testing.assert_array_equal(
        found.predicted, predict_logits(subject.model, found.X).argmax(axis=1)
    )


def test_only_clips_that_are_right_are_kept(subject, clips):
    wrong = clips._replace(y=np.where([1, 0, 0, 1], (clips.y + 1) % 10, clips.y))
    assert experiments.right_clips(subject, wrong).segments["segment"].tolist() == [1, 2]


def test_genres_take_turns():
    y = np.repeat([0, 1, 2], [5, 1, 3])
    order = experiments.take_turns(y, 1)
    assert sorted(order) == list(range(9))
    assert sorted(y[order[:3]]) == [0, 1, 2]
    assert sorted(y[order[3:5]]) == [0, 2]
    assert not np.array_equal(order, experiments.take_turns(y, 2))


def test_partners_are_other_tracks_of_the_same_genre():
    clips = Clips(None, np.array([0, 0, 0, 1]), table([*"aabc"], ["blues"] * 3 + ["jazz"]))
    assert partners(clips).tolist() == [2, 2, 0, -1]


def test_shift_is_recorded_by_what_became_of_the_clip(subject, clips, half_flipped):
    clean = maps_of("gradcam", subject, clips.X, clips.y)
    rows = experiments.shift_records(subject, "gradcam", clips, half_flipped, clean)
    found = rows[rows["measure"] == "spearman"].groupby("condition")
    segments = {name: group["segment"].tolist() for name, group in found}
    flipped, stood = [0, 1], [2, 3]
    assert segments == {
        "succeeded_true": flipped,
        "noise_succeeded": flipped,
        "failed": stood,
        "noise": flipped + stood,
    }
    still = found.get_group("noise")["value"]  # this noise changes nothing
    np.testing.assert_allclose(still, 1, atol=1e-6)
    assert (found.get_group("succeeded_true")["value"] < 1).all()
    assert set(rows["eps"]) == {0.05}


def test_maps_of_the_prediction_are_compared_with_asking_the_clean_clip(
    subject, clips, half_flipped
):
    clean = maps_of("gradcam", subject, clips.X, clips.y)
    found = {}
    for name, attacked in (("attack", half_flipped), ("none", half_flipped._replace(X=clips.X))):
        rows = experiments.prediction_records(subject, "gradcam", clips, attacked, clean)
        rows = rows[rows["measure"] == "ssim"]
        found[name] = rows.pivot_table(index="segment", columns="condition", values="value")
        assert found[name].index.tolist() == [0, 1]
    asked = found["attack"]["asked_predicted"]
    np.testing.assert_allclose(asked, found["none"]["succeeded_predicted"])
    assert not np.allclose(asked, found["attack"]["succeeded_predicted"])
    assert (asked < 0.999).all()


def test_an_attack_that_flips_nothing_has_no_records_of_success(subject, clips, half_flipped):
    calm = half_flipped._replace(predicted=clips.y)
    clean = maps_of("gradcam", subject, clips.X, clips.y)
    rows = experiments.shift_records(subject, "gradcam", clips, calm, clean)
    assert set(rows["condition"]) == {"failed", "noise"}
    assert len(experiments.prediction_records(subject, "gradcam", clips, calm, clean)) == 0
    none = np.arange(0)
    natural = clips.take(none)
    rows = experiments.failure_records(subject, "gradcam", natural, none, clips, calm)
    assert len(rows) == 0
    nothing = (clips.take(none), clips.X[none], none, np.zeros((0, 128, 130), dtype=bool))
    for method in ("gradcam", "integrated_gradients", *CONTROLS):
        assert len(experiments.box_records(subject, method, *nothing)) == 0


def test_another_clip_is_compared_where_there_is_one(subject, clips):
    lone = clips._replace(
        y=np.array([0, 0, 0, 1]), segments=table([*"aabc"], ["blues"] * 3 + ["jazz"])
    )
    maps = maps_of("gradcam", subject, lone.X, lone.y)
    rows = experiments.other_clip_records(subject, "gradcam", lone, maps)
    assert rows["segment"].unique().tolist() == [0, 1, 2]


def test_methods_are_compared_with_controls_on_the_same_clips(subject, clips):
    maps = {
        "gradcam": maps_of("gradcam", subject, clips.X, clips.y)[:2],
        "blurred_random": maps_of("blurred_random", subject, clips.X, clips.y),
    }
    rows, lines = experiments.faithfulness_records(subject, clips, maps, ("blurred_random",), 1)
    wide = rows.pivot_table(index=["method", "segment"], columns="measure", values="value")
    method, control = wide.loc["gradcam"], wide.loc["blurred_random"]
    assert (method.index.tolist(), control.index.tolist()) == ([0, 1], [0, 1, 2, 3])
    difference = method["insertion"] - control["insertion"]
    np.testing.assert_allclose(method["insertion above blurred_random"], difference.dropna())
    assert method["road above blurred_random"].notna().tolist() == [True, False]
    assert control.filter(like="above").isna().all(axis=None)
    assert {name: found["deletion"].shape for name, found in lines.items()} == {
        "gradcam": (2, 6),
        "blurred_random": (4, 6),
    }


def test_attention_is_recorded_by_true_genre_before_and_after(subject, clips, half_flipped):
    rows = experiments.band_records(subject, "gradcam", clips, half_flipped)
    kinds = {f"{when} {genre}" for when in ("clean", "attacked") for genre in GENRES}
    assert set(rows["condition"]) == kinds | {"clean", "asked_any"}
    attention = rows[rows["measure"].str.startswith("attention")]
    sums = attention.groupby(["condition", "segment"])["value"].sum()
    np.testing.assert_allclose(sums, 1)


def test_each_question_is_compared_with_the_mean_map_of_its_genre(subject, clips, half_flipped):
    rows = experiments.band_records(subject, "frequency_prior", clips, half_flipped)
    gaps = rows[rows["measure"] == "own_genre_gap"]
    assert gaps.groupby("condition").size().to_dict() == {"asked_any": 4, "clean": 4}
    assert (gaps["value"] > 0.5).all()  # each map is the mean map of the genre it was asked for


def answered_by(monkeypatch, answer):
    monkeypatch.setattr(experiments, "maps_of", lambda method, subject, X, targets: answer(targets))


def test_what_the_question_makes_is_asked_of_every_genre(subject, clips, monkeypatch):
    priors = subject.priors
    own = own_genre_gap(priors, np.arange(10), priors)
    answered_by(monkeypatch, lambda targets: priors[targets])
    gap = experiments.any_genre_gap(subject, "gradcam", clips)
    np.testing.assert_allclose(gap, own.mean())

    def empty_for_the_first(targets):
        return priors[targets] * (targets > 0)[:, None, None]

    answered_by(monkeypatch, empty_for_the_first)
    gap = experiments.any_genre_gap(subject, "gradcam", clips)
    np.testing.assert_allclose(gap, own[1:].mean())


def test_what_the_clip_shows_whatever_it_is_asked_for_is_not_of_the_question(
    subject, clips, monkeypatch
):
    answered_by(monkeypatch, lambda targets: subject.priors[clips.y])
    gap = experiments.any_genre_gap(subject, "gradcam", clips)
    np.testing.assert_allclose(gap, 0, atol=1e-6)


def test_sanity_is_recorded_layer_by_layer(subject, clips):
    rows = experiments.sanity_records(subject, "gradcam", clips.take(np.arange(1)))
    first, *_, last = rows["condition"].unique()
    assert (first, last) == ("randomized_output", "randomized_conv1_1")
    assert rows.groupby("condition").size().unique().tolist() == [2]


def test_maps_of_another_network_are_compared_with_the_learnt_ones(subject, clips):
    same, other = (
        experiments.other_network_records(subject, "gradcam", clips, model, "random_labels")
        for model in (subject.model, list(randomized(subject.model, 0))[-1][1])
    )
    assert set(same["condition"]) == {"random_labels"}
    np.testing.assert_allclose(same["value"].dropna(), 1, atol=1e-5)
    assert (other["value"].dropna() < 0.9).all()


def test_parts_are_recorded_by_genre(subject, clips):
    cells = np.zeros(clips.X.shape, dtype=int)  # drums everywhere
    rows = experiments.part_records(subject, "blurred_random", clips, cells)
    drums = rows[rows["measure"] == "mass above area, drums"]
    assert drums.groupby("condition").size().to_dict() == {"blues": 2, "jazz": 2}
    np.testing.assert_allclose(drums["value"], 0, atol=1e-6)


def test_a_map_resembles_the_genre_whose_mean_map_it_is():
    priors = blurred_random((3, 128, 130), 1)
    found = resemblance(priors[[2]], np.array([0]), np.array([2]), priors)
    assert found["resembles_taken_for"] == pytest.approx(1)
    assert found["resembles_taken_for_more"] == pytest.approx(1 - found["resembles_true"])
    gap = own_genre_gap(priors, np.arange(3), priors)
    assert (gap > 0.5).all()
    assert (own_genre_gap(priors, np.array([1, 2, 0]), priors) < 0).all()


def test_genres_that_are_listened_to_alike_have_no_gap_and_empty_priors_do_not_count():
    priors = np.repeat(blurred_random((1, 128, 130), 1), 3, axis=0)
    np.testing.assert_allclose(own_genre_gap(priors[:1], np.array([0]), priors), 0, atol=1e-9)
    priors[2] = 0
    assert own_genre_gap(priors[:1], np.array([0]), priors) == pytest.approx(0)


KEYED = {"checkpoint": "tiny", "method": "gradcam", "condition": "noise", "eps": 0.01}


@pytest.mark.usefixtures("intervals_of_any")
def test_a_table_has_the_mean_of_each_measure_with_its_interval():
    clips = table([*"aabb"], ["blues"] * 4)
    rows = records(clips, {"spearman": np.array([0.2, 0.4, np.nan, 0.9])}, **KEYED)
    (line,) = summarize(rows, "corpus").to_dict("records")
    assert list(line) == COLUMNS
    assert {key: line[key] for key in KEYS} == KEYED | {"measure": "spearman"}
    assert (line["value"], line["n_clips"]) == (pytest.approx(0.5), 3)
    assert (line["low"], line["high"]) == (pytest.approx(0.3), pytest.approx(0.9))


def test_clips_without_any_value_leave_a_table_without_rows():
    rows = records(table(["a"], ["blues"]), {"own_genre_gap": np.array([np.nan])}, **KEYED)
    found = summarize(rows, "corpus")
    assert found.empty
    assert found.columns.tolist() == COLUMNS


def test_nissim_becomes_its_mean_and_its_variation():
    values = np.array([0.1, 0.2, 0.3, 0.4])
    rows = records(table([*"abcd"], ["blues"] * 4), {"nissim": values}, **KEYED)
    found = summarize(rows, "corpus").set_index("measure")["value"]
    assert found.to_dict() == {"mod": pytest.approx(0.25), "vid": pytest.approx(values.var())}


@pytest.mark.usefixtures("intervals_of_any")
def test_values_that_never_differ_have_an_interval_without_width():
    rows = records(table([*"ab"], ["blues"] * 2), {"centre_shift_s": np.zeros(2)}, **KEYED)
    (line,) = summarize(rows, "corpus").to_dict("records")
    assert (line["value"], line["low"], line["high"]) == (0, 0, 0)


@pytest.mark.usefixtures("intervals_of_any")
def test_a_count_that_is_never_true_keeps_its_uncertainty():
    rows = records(table([*"ab"], ["blues"] * 2), {"empty": np.zeros(2)}, **KEYED)
    (line,) = summarize(rows, "corpus").to_dict("records")
    assert (line["low"], line["high"] > 0.3) == (0, True)


def test_differences_are_between_conditions_of_the_same_method():
    many = [f"t{k}" for k in range(10)]
    clips, rng = table(many, ["blues"] * 10), np.random.default_rng(0)
    low, high = rng.normal(0.2, 0.05, 10), rng.normal(0.6, 0.05, 10)
    rows = pd.concat(
        [
            records(clips, {"spearman": low}, **KEYED | {"condition": "natural", "eps": 0.0}),
            records(clips, {"spearman": high}, **KEYED | {"condition": "adversarial"}),
            records(clips, {"spearman": low}, **KEYED | {"condition": "adversarial", "eps": 0.5}),
        ]
    )
    pairs = [("spearman", "natural", "adversarial", 0.01), ("spearman", "natural", "never", 0.01)]
    (line,) = differences(rows, pairs, "corpus").to_dict("records")
    assert line["condition"] == "natural - adversarial"
    assert line["value"] == pytest.approx(low.mean() - high.mean())
    assert line["low"] < line["value"] < line["high"] < 0
    assert (line["n_clips"], line["eps"]) == (10, 0.01)


def test_a_difference_of_one_track_has_no_interval():
    rows = [
        records(table(["a"], ["blues"]), {"ssim": np.array([v])}, **KEYED | {"condition": c})
        for c, v in (("x", 0.1), ("y", 0.3))
    ]
    (line,) = differences(pd.concat(rows), [("ssim", "x", "y", 0.01)], "c").to_dict("records")
    assert (line["value"], line["low"]) == (pytest.approx(-0.2), None)


NO_ATTACK = "which is no attack"
IN_DB = "probably in dB"


@pytest.mark.parametrize(
    ("eps", "cause"), [(0, NO_ATTACK), (-0.1, NO_ATTACK), (float("nan"), NO_ATTACK), (1.5, IN_DB)]
)
def test_an_eps_of_no_meaning_is_refused_before_anything_is_made(eps, cause):
    experiments.check_request("gradcam", [0.01, 1])
    with pytest.raises(ValueError, match=f"eps is {eps}, {cause}: give it as a share"):
        experiments.check_request("gradcam", [0.01, eps])


@pytest.mark.parametrize("method", ["gradcamm", "randomcam"])
def test_a_method_that_is_none_is_refused_before_anything_is_made(method):
    with pytest.raises(ValueError, match=f"METHOD={method} is unknown: give one of gradcam, hires"):
        experiments.check_request(method, [0.01])
