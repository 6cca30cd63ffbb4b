import pandas as pd
import pytest

from src.collect import collect
from src.paths import RunPaths
from src.results import read_json, write_csv, write_json


def _metadata(paths):
    return read_json(paths.processed / "metadata.json")


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    monkeypatch.setattr("src.paths.ROOT", tmp_path)
    monkeypatch.setattr("src.collect.load_metadata", _metadata)


def make_run(run, names, corpus="gtzan", robust=None):
    """Write what the stages leave of a run with these checkpoints; `robust` maps them to PGD."""
    folder = RunPaths(run).metrics
    write_json(RunPaths(run).processed / "metadata.json", {"corpus": corpus, "n_tracks": 7})
    for name in names:
        write_json(folder / f"training_{name}.json", {"corpus": corpus, "checkpoint": name})
    rows = [{"corpus": corpus, "recipe": name, "checkpoint": name} for name in sorted(names)]
    write_csv(folder / "training.csv", pd.DataFrame(rows))
    if robust:
        rows = [
            {"checkpoint": name, "attack": attack, "eps": eps, "accuracy": value / eps}
            | {"low": 0, "high": 1, "n_segments": 60}
            for name, value in robust.items()
            for attack in ("pgd", "pgd_restarts")
            for eps in (0.01, 0.1)
        ]
        write_csv(folder / "robustness.csv", pd.DataFrame(rows))


def test_tables_of_runs_stand_one_below_the_other(tmp_path):
    make_run("one", ["documented", "robust"], robust={"robust": 0.005, "documented": 0.0001})
    make_run("two", ["documented"])
    collect(["one", "two"], tmp_path)
    table = pd.read_csv(tmp_path / "real" / "training.csv")
    assert table["recipe"].tolist() == ["documented", "robust", "documented"]
    assert table["pgd_accuracy"].fillna(-1).tolist() == [0.01, 0.5, -1]
    assert (table["pgd_eps"] == 0.01).all()
    assert table["pgd_n_segments"].fillna(-1).tolist() == [60, 60, -1]
    assert len(pd.read_csv(tmp_path / "real" / "robustness.csv")) == 8
    assert read_json(tmp_path / "real/one/training_robust.json")["checkpoint"] == "robust"


def test_what_is_missing_is_told(tmp_path, capsys):
    make_run("one", ["documented"], robust={"documented": 0})
    make_run("two", ["documented"])
    collect(["one", "two"], tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert "real/training: 2 runs" in said
    assert "real/robustness: 1 runs, none of two" in said
    assert "real/corruptions: 0 runs, none of one, none of two" in said
    assert not (tmp_path / "real" / "corruptions.csv").exists()


def test_the_embedded_corpus_is_not_taken_for_real(tmp_path):
    make_run("toy", ["documented"], corpus="synthetic")
    make_run("one", ["documented", "robust"])
    collect(["toy", "one"], tmp_path)
    assert len(pd.read_csv(tmp_path / "embedded" / "training.csv")) == 1
    assert pd.read_csv(tmp_path / "real" / "training.csv")["corpus"].tolist() == ["gtzan"] * 2
    assert not (tmp_path / "real" / "toy").exists()


def test_data_and_records_stand_beside_and_are_the_same_bytes_twice(tmp_path):
    make_run("one", ["documented"])
    write_csv(RunPaths("one").metrics / "attacks.csv", pd.DataFrame({"segment": range(50)}))
    collect(["one"], tmp_path)
    records = tmp_path / "real/one/attacks.csv.gz"
    first = records.read_bytes()
    collect(["one"], tmp_path)
    assert records.read_bytes() == first
    assert pd.read_csv(records)["segment"].tolist() == list(range(50))
    assert read_json(tmp_path / "real/one/data.json")["n_tracks"] == 7


def test_a_run_without_results_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results/metrics/none has no results: [^\n]*\.$"):
        collect(["none"], tmp_path)
