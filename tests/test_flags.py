import copy

import numpy as np
import pandas as pd
import pytest

from src.attacks.adversarial import make_classifier
from src.attacks.flags import FLAGS, are_probabilities, raise_flags, readable, zero_gradients
from src.effort import EFFORTS
from src.models.evaluation import softmax

NOTHING = {"probabilities": False, "zero_gradients": 0}
ATTACKS = {  # accuracies of 100 segments at eps 0.01 and 0.1 without a reason for suspicion
    "fgsm": (0.4, 0.2),
    "pgd": (0.3, 0),
    "pgd_restarts": (0.3, 0),
    "pgd_doubled": (0.3, None),
    "square": (0.3, None),
    "hop_skip_jump": (0.8, 0.7),
    "worst_case": (0.3, 0),
    "noise_linf": (0.8, 0.7),
    "noise_l2": (0.8, 0.6),
}


def made_up(**changes):
    """Return records of 100 segments, 80 of them right, of the accuracies above but for changes."""
    tables = []
    for attack, pair in (ATTACKS | changes).items():
        for eps, accuracy in zip((0.01, 0.1), pair or (), strict=False):
            if accuracy is not None:
                table = pd.DataFrame({"segment": range(100), "track": range(100), "true": 0})
                table["clean_prediction"] = np.where(table["segment"] < 80, 0, 1)
                standing = table["segment"] < round(100 * accuracy)
                table["adversarial_prediction"] = np.where(standing, 0, 1)
                tables.append(table.assign(attack=attack, eps=eps))
    records = pd.concat(tables, ignore_index=True)
    right = records["clean_prediction"] == 0
    records["success"] = right & (records["adversarial_prediction"] == 1)
    records = records.assign(linf=records["eps"], lowest=0.0, highest=1.0, start=1)
    maker = records["attack"].where(records["success"], "")
    return records.assign(made_by=maker)


def raised(records, evidence=NOTHING):
    return {f["flag"]: f["raised"] for f in raise_flags(records, evidence, 0.1, EFFORTS["full"])}


def test_figures_without_a_fault_raise_nothing():
    flags = raise_flags(made_up(), NOTHING, 0.1, EFFORTS["full"])
    assert [flag["flag"] for flag in flags] == [*FLAGS][:-1]  # the last is of audio
    for flag in flags:
        assert flag["raised"] is False, flag
        assert flag["found"] == []
        assert flag["raised_if"]
        assert flag["power"] is True
        assert flag["what_to_do"]


@pytest.mark.parametrize(("n_right", "expected"), [(12, True), (30, False)])
def test_a_network_at_chance_is_told(n_right, expected):
    records = made_up()
    lucky = records["segment"] < n_right
    records["clean_prediction"] = np.where(lucky, 0, 1)
    assert raised(records)["no_better_than_chance"] is expected


def test_few_tracks_are_judged_by_their_accuracy_alone():
    records = made_up().assign(track=0)
    assert raised(records)["no_better_than_chance"] is False
    assert raised(records.assign(clean_prediction=1))["no_better_than_chance"] is True


PROVOKED = {  # flag: attack, accuracies that raise it, accuracies a point away that do not
    "single_step_stronger": ("fgsm", (0.28, 0.2), (0.29, 0.2)),
    "iterations_matter": ("pgd_doubled", (0.28, None), (0.29, None)),
    "above_chance_at_large_eps": ("worst_case", (0.3, 0.11), (0.3, 0.1)),
    "black_box_stronger": ("hop_skip_jump", (0.28, 0.2), (0.29, 0.2)),
    "noise_as_harmful": ("noise_l2", (0.31, 0.6), (0.32, 0.6)),
}


@pytest.mark.parametrize("name", PROVOKED)
def test_a_figure_that_gives_reason_raises_its_flag_alone_and_a_point_is_allowed(name):
    attack, raising, allowed = PROVOKED[name]
    flags = raised(made_up(**{attack: raising}))
    assert [flag for flag, up in flags.items() if up] == [name]
    assert not any(raised(made_up(**{attack: allowed})).values())


@pytest.mark.parametrize("change", [{"linf": 0.0101}, {"highest": 1.01}, {"lowest": -0.01}])
def test_a_segment_out_of_bounds_raises_a_flag(change):
    records = made_up()
    row = records.index[(records["attack"] == "square")][50]
    records.loc[row, list(change)] = list(change.values())
    (flag,) = [f for f in raise_flags(records, NOTHING, 0.1, EFFORTS["full"]) if f["raised"]]
    assert (flag["flag"], flag["found"]) == ("outside_bounds", ["square at eps 0.01"])


def test_a_success_of_unknown_size_is_out_of_bounds_and_a_failure_is_not():
    records = made_up()
    records.loc[records["attack"] == "noise_l2", "linf"] = 0.5  # Gaussian noise leaves the ball
    apgd = records["attack"] == "square"
    records.loc[apgd & ~records["success"], ["linf", "lowest", "highest"]] = np.nan
    assert not raised(records)["outside_bounds"]
    records.loc[apgd & records["success"], "linf"] = np.nan
    assert raised(records)["outside_bounds"]


def test_what_square_alone_broke_raises_a_flag():
    records = made_up(square=(0.28, None), worst_case=(0.28, 0))
    assert raised(records)["black_box_stronger"]
    cascade = records["attack"] == "square"
    records.loc[cascade & (records["segment"] >= 28), "made_by"] = "pgd"
    records.loc[(records["attack"] == "pgd") & records["segment"].isin((28, 29)), "success"] = True
    assert not raised(records)["black_box_stronger"]


def test_what_square_broke_is_not_put_down_to_gradients_at_larger_eps():
    sizes = {"fgsm": (0.4, 0.3), "pgd": (0.3, 0.3), "pgd_restarts": (0.3, 0.28)}
    records = made_up(**sizes, square=(0.28, 0.28), hop_skip_jump=None)
    later = (records["attack"] == "pgd_restarts") & records["segment"].isin((28, 29))
    records.loc[later & records["success"], "made_by"] = "square"
    found = {f["flag"]: f["found"] for f in raise_flags(records, NOTHING, 0.1, EFFORTS["full"])}
    assert found["black_box_stronger"] == ["square: 2.0% at eps 0.01", "square: 2.0% at eps 0.1"]


def test_late_starts_that_still_break_segments_raise_a_flag():
    records = made_up()
    late = (records["attack"] == "pgd_restarts") & records["segment"].isin((40, 41))
    late &= records["eps"] == 0.01
    records.loc[late, "start"] = 2  # the third of five
    assert raised(records)["restarts_matter"]
    records.loc[late, "start"] = 1
    assert not raised(records)["restarts_matter"]


def test_evidence_from_the_network_raises_flags():
    assert raised(made_up(), {"probabilities": True, "zero_gradients": 0})["probabilities"]
    assert raised(made_up(), {"probabilities": False, "zero_gradients": 1})["zero_gradients"]


def test_what_was_not_run_is_not_called_sound():
    gone = dict.fromkeys(("pgd_doubled", "pgd_restarts", "square", "hop_skip_jump"))
    flags = raised(made_up(**gone))
    unknown = {name for name, up in flags.items() if up is None}
    assert unknown == {"iterations_matter", "restarts_matter", "black_box_stronger"}
    small = made_up()
    assert raised(small[small["eps"] < 0.1])["above_chance_at_large_eps"] is None


def powerless(records, **changes):
    effort = EFFORTS["full"]._replace(**changes)
    flags = raise_flags(records, NOTHING, 0.1, effort)
    return {flag["flag"] for flag in flags if not flag["power"]}


def test_a_flag_has_no_power_where_too_little_was_tried():
    few = made_up(hop_skip_jump=None)
    assert powerless(few) == set()
    assert powerless(few, square_queries=999) == {"black_box_stronger"}
    some = made_up(square=None)
    assert powerless(some, square_queries=0) == set()
    missed = some.assign(success=some["success"] & (some["attack"] != "hop_skip_jump"))
    assert powerless(missed, square_queries=0) == {"black_box_stronger"}
    some = some[(some["attack"] != "hop_skip_jump") | some["segment"].between(0, 28)]
    assert powerless(some, square_queries=0) == {"black_box_stronger"}


@pytest.mark.parametrize("left", [0, 0.01])
def test_a_flag_has_no_power_where_a_point_or_less_is_left_to_flip(left):
    attacks = ("pgd", "pgd_restarts", "pgd_doubled", "square")
    everything = dict.fromkeys(attacks, (left, left))
    records = made_up(**everything, hop_skip_jump=None, worst_case=(left, left))
    records["made_by"] = np.where(records["success"], "pgd", "")
    names = {"single_step_stronger", "restarts_matter", "iterations_matter", "black_box_stronger"}
    assert powerless(records) == names
    harmless = dict.fromkeys(ATTACKS, (0.8, 0.8))
    assert powerless(made_up(**harmless)) == {"noise_as_harmful"}


def test_probabilities_are_told_from_logits():
    logits = np.random.default_rng(0).normal(size=(5, 3))
    assert are_probabilities(softmax(logits))
    assert not are_probabilities(logits)
    assert not are_probabilities(np.full((5, 3), 0.5))


def test_segments_without_gradient_are_counted(slim_model, clips):
    assert zero_gradients(make_classifier(slim_model), clips.X[:3], clips.y[:3]) == 0
    dead = copy.deepcopy(slim_model)
    dead.output.weight.data[:] = 0
    assert zero_gradients(make_classifier(dead), clips.X[:3], clips.y[:3]) == 3


def test_the_readable_table_has_evidence_and_remedy_of_raised_flags_only():
    effort = EFFORTS["full"]._replace(square_queries=999)
    made = {
        "one": made_up(pgd_doubled=(0.28, None), square=None, hop_skip_jump=None),
        "two": made_up(hop_skip_jump=None),
    }
    table = readable(
        [
            {"checkpoint": name} | flag
            for name, records in made.items()
            for flag in raise_flags(records, NOTHING, 0.1, effort)
        ]
    )
    assert table.index.tolist() == [*FLAGS][:-1]
    assert table["one"].value_counts().to_dict() == {"no": 8, "not checked": 1, "raised": 1}
    assert table["two"].value_counts().to_dict() == {"no": 9, "no power": 1}
    assert table.loc["black_box_stronger", "two"] == "no power"
    assert table.loc["iterations_matter", "evidence"].startswith("one: 2.0 points less at eps 0.01")
    assert (table["remedy"] != "").tolist() == (table["one"] == "raised").tolist()
