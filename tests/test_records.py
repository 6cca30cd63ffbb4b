import numpy as np
import pandas as pd
import pytest

from src.attacks.records import (
    Target,
    compare,
    genre_table,
    headline,
    make_records,
    percent_table,
    robustness_table,
    worst_case,
)
from src.attacks.suite import robust_mask
from src.data.segments import Segments


def rows(attack, eps, right, after, checkpoint="documented"):
    """Return records of segments 0.., two a track, right before and after as listed."""
    n = len(right)
    table = pd.DataFrame({"segment": range(n), "track": [f"t{i // 2}" for i in range(n)]})
    table = table.assign(true=0, attack=attack, eps=eps, checkpoint=checkpoint)
    table["clean_prediction"] = 1 - np.array(right)
    table["adversarial_prediction"] = 1 - np.array(after)
    table["success"] = np.array(right, bool) & ~np.array(after, bool)
    return table.assign(made_by=attack, eps_db=80 * eps)


@pytest.fixture
def records():
    right = [1, 1, 1, 1, 0, 1]
    one = rows("fgsm", 0.01, right, [0, 1, 1, 1, 0, 1])
    two = rows("pgd", 0.01, right, [1, 0, 1, 1, 0, 1])
    more = rows("pgd", 0.1, right, [0, 0, 0, 1, 0, 1])
    return pd.concat([more, one, two], ignore_index=True)


def test_a_record_tells_the_size_of_the_change():
    X = np.full((2, 128, 130), 0.5, dtype=np.float32)
    attacked = X.copy()
    attacked[0] += 0.1
    attacked[0, 0, 0] = 0.75
    data = Segments(X, np.array([0, 1]), pd.DataFrame({"segment": [4, 9], "track": ["a", "b"]}))
    target = Target(None, data, np.eye(2))
    table = make_records(target, "pgd", 0.3, attacked, np.array([1, 1]))
    changed, same = table.to_dict("records")
    assert (changed["linf"], changed["highest"]) == (0.25, 0.75)
    assert changed["lowest"] == pytest.approx(0.6)
    energy = 0.01 * (128 * 130 - 1) + 0.0625
    assert changed["l2"] == pytest.approx(np.sqrt(energy), rel=1e-4)
    assert changed["snr_db"] == pytest.approx(10 * np.log10(0.25 * 16640 / energy), rel=1e-4)
    assert (changed["success"], changed["made_by"], changed["eps_db"]) == (True, "pgd", 24)
    assert (same["linf"], same["success"], same["made_by"]) == (0, False, "")
    assert np.isnan(same["snr_db"])


def test_the_worst_case_takes_each_segment_at_its_weakest(records):
    worst = worst_case(records, 0.01)
    assert worst["segment"].tolist() == [0, 1, 2, 3, 4, 5]
    assert worst["success"].tolist() == [True, True, False, False, False, False]
    assert worst["made_by"].tolist()[:2] == ["fgsm", "pgd"]
    assert set(worst["attack"]) == {"worst_case"}


def test_a_larger_ball_holds_what_a_smaller_one_broke(records):
    worst = worst_case(records, 0.1)
    assert worst["success"].tolist() == [True, True, True, False, False, False]
    assert worst["made_by"].tolist()[:3] == ["fgsm", "pgd", "pgd"]  # 0.01 before 0.1
    assert (worst["eps"] == 0.1).all()
    assert worst["eps_db"].tolist() == [8] * 6


def test_what_was_wrong_before_neither_stands_nor_falls(records):
    data = Segments(np.zeros((6, 1, 1)), np.zeros(6, int), pd.DataFrame({"segment": range(6)}))
    target = Target(None, data, np.eye(2)[[0, 0, 0, 0, 1, 0]])
    robust = {eps: np.flatnonzero(robust_mask(target, records, eps)) for eps in (0.001, 0.01, 0.1)}
    assert robust[0.001].tolist() == [0, 1, 2, 3, 5]
    assert robust[0.01].tolist() == [2, 3, 5]
    assert robust[0.1].tolist() == [3, 5]


def test_the_table_is_counted_from_the_records(records):
    worst = worst_case(records, 0.01)
    table = robustness_table(pd.concat([records, worst]), "tiny", "random")
    assert list(table) == (
        "corpus,split,checkpoint,attack,eps,eps_db,accuracy,low,high,n_segments,n_tracks,"
        "attack_success_rate,attack_success_rate_low,attack_success_rate_high,"
        "attack_success_rate_n_segments,attack_success_rate_n_tracks".split(",")
    )
    lines = table.set_index(["attack", "eps"])
    clean = lines.loc["clean", 0.0]
    assert (clean["accuracy"], clean["n_segments"], clean["n_tracks"]) == (5 / 6, 6, 3)
    assert np.isnan(clean["attack_success_rate"])
    line = lines.loc["worst_case", 0.01]
    assert line["accuracy"] == 3 / 6
    assert line["attack_success_rate"] == 2 / 5
    assert (line["attack_success_rate_n_segments"], line["attack_success_rate_n_tracks"]) == (5, 3)
    assert line["eps_db"] == pytest.approx(0.8)
    assert (table["corpus"] == "tiny").all()
    assert table["attack"].iloc[0] == "clean"


@pytest.mark.usefixtures("intervals_of_any")
def test_intervals_are_those_of_tracks():
    """Five tracks of 40 like segments each: as uncertain as six coin flips, not as 200."""
    after = np.repeat([1, 1, 1, 0, 0], 40)
    table = rows("pgd", 0.01, [1] * 200, after).assign(track=np.repeat([*"abcde"], 40))
    line = robustness_table(table, "tiny", "random").set_index("attack").loc["pgd"]
    assert (line["accuracy"], line["n_tracks"]) == (0.6, 5)
    assert (line["low"], line["high"]) == pytest.approx((0.24, 0.88), abs=0.02)  # Wilson's, n = 6
    ends = line["attack_success_rate_low"], line["attack_success_rate_high"]
    assert ends == pytest.approx((1 - line["high"], 1 - line["low"]))
    alone = rows("pgd", 0.01, [1, 1], [1, 0])
    line = robustness_table(alone, "tiny", "random").set_index("attack").loc["pgd"]
    assert pd.isna(line["low"])


def test_where_nothing_was_right_there_is_no_success_rate():
    table = robustness_table(rows("pgd", 0.01, [0, 0], [0, 0]), "tiny", "random")
    assert table[[name for name in table if "success" in name]].isna().all(axis=None)
    assert (table["accuracy"] == 0).all()


@pytest.mark.usefixtures("intervals_of_any")
def test_checkpoints_are_compared_segment_by_segment():
    before, weak, strong = [1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1], [1, 0, 1, 0, 0, 1]
    table = pd.concat(
        [
            rows("worst_case", 0.01, before, weak),
            rows("worst_case", 0.01, before[::-1], strong, "robust"),
        ]
    )
    clean, worst = compare(table).to_dict("records")
    assert (clean["attack"], clean["eps"], clean["difference"]) == ("clean", 0, 0)
    assert (worst["checkpoint"], worst["compared_with"]) == ("robust", "documented")
    assert worst["difference"] == pytest.approx(2 / 6)
    assert worst["low"] <= 2 / 6 <= worst["high"]
    assert clean["low"] < 0 < clean["high"]
    assert clean["p_value"] == clean["p_holm"] == 1
    assert worst["p_holm"] == 2 * worst["p_value"]
    assert (worst["n_segments"], worst["n_tracks"]) == (6, 3)
    assert compare(table[:6]).empty


def test_robustness_by_genre_is_clean_and_under_the_worst_case(records):
    records = pd.concat([records, worst_case(records, 0.01)]).assign(true=0)
    records["true"] = (records["segment"] >= 4).astype(int)
    table = genre_table(records, "tiny", "random").set_index(["attack", "true"])
    assert table["n_segments"].to_dict() == {
        ("clean", 0): 4,
        ("clean", 1): 2,
        ("worst_case", 0): 4,
        ("worst_case", 1): 2,
    }
    assert table.loc[("clean", 0), "accuracy"] == 1
    assert table.loc[("worst_case", 0), "accuracy"] == 1 / 2
    assert {"low", "high", "n_tracks", "eps_db"} <= set(table)


def test_the_worst_case_names_the_attack_that_broke_a_segment_first():
    columns = ["segment", "attack", "eps", "success", "true"]
    rows = [(1, "fgsm", 0.01, True, 0), (1, "pgd", 0.01, True, 0), (1, "square", 0.02, True, 0)]
    rows += [(2, "fgsm", 0.01, False, 0), (2, "pgd", 0.01, False, 0)]
    table = pd.DataFrame(rows, columns=columns).assign(eps_db=0.0)
    table["made_by"] = table["attack"]
    assert worst_case(table, 0.02)["made_by"].tolist() == ["fgsm", "pgd"]


def test_tables_to_read_have_percent_and_intervals():
    columns = ["attack", "checkpoint", "accuracy", "low", "high"]
    rows = [("pgd", "one", 0.314, 0.2, 0.45), ("pgd", "two", 1, None, None)]
    table = percent_table(
        pd.DataFrame([*rows, ("clean", "one", 0.5, 0, 1)], columns=columns), ["attack"]
    )
    assert table.to_numpy().tolist() == [
        ["31% [20, 45]", "100%"],
        ["50% [0, 100]", ""],
    ]
    assert table.index.tolist() == ["PGD", "clean"]
    assert list(table) == ["one", "two"]


def test_the_headline_has_a_row_per_attack_with_its_number_of_segments(records):
    hard = rows("hop_skip_jump", 0.01, [1, 1], [1, 0])
    robustness = robustness_table(pd.concat([records, hard]), "tiny", "random")
    line = {"checkpoint": "documented", "codec": "wav16", "accuracy": 0.5, "low": 0, "high": 1}
    line |= {"n_segments": 4, "n_tracks": 2}
    budgets = [("clean", None), ("noise", 40), ("noise", 20), ("pgd_masked", 0), ("pgd_masked", 10)]
    files = pd.DataFrame([line | {"attack": a, "budget_db": b} for a, b in budgets])
    table = headline(robustness, files, 0.01, 40).reset_index()
    assert table[["input", "attack", "budget", "segments"]].to_numpy().tolist() == [
        ["log-mel", "clean", "", 6],
        ["log-mel", "FGSM", "0.8 dB per bin", 6],
        ["log-mel", "PGD", "0.8 dB per bin", 6],
        ["log-mel", "HopSkipJump, on few segments", "0.8 dB per bin", 2],
        ["WAV", "clean", "", 4],
        ["WAV", "white noise (control)", "40 dB SNR", 4],
        ["WAV", "PGD below the masking threshold", "masking threshold", 4],
    ]
    assert table.shape[1] <= 8
    assert len(headline(robustness, files[:0], 0.01, 40)) == 4
