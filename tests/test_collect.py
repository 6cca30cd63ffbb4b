import pandas as pd
import pytest

from src.collect import collect
from src.paths import RunPaths
from src.results import read_json, write_csv, write_json


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    monkeypatch.setattr("src.paths.ROOT", tmp_path)


def make_run(run, names, corpus="gtzan", robust=None):
    """Write what the stages leave of a run with these checkpoints; `robust` maps them to PGD."""
    folder = RunPaths(run).metrics
    for name in names:
        write_json(folder / f"training_{name}.json", {"corpus": corpus, "checkpoint": name})
    rows = [{"corpus": corpus, "recipe": name, "clip_accuracy": 0.8} for name in sorted(names)]
    write_csv(folder / "training.csv", pd.DataFrame(rows))
    if robust:
        rows = [
            {"checkpoint": name, "attack": attack, "eps": eps, "accuracy": value / eps}
            for name, value in robust.items()
            for attack in ("fgsm", "pgd")
            for eps in (0.01, 0.1)
        ]
        write_csv(folder / "robustness.csv", pd.DataFrame(rows))


def test_tables_of_runs_stand_one_below_the_other(tmp_path):
    make_run("one", ["documented", "robust"], robust={"robust": 0.005, "documented": 0.0001})
    make_run("two", ["documented"])
    collect(["one", "two"], tmp_path / "real")
    table = pd.read_csv(tmp_path / "real" / "training.csv")
    assert table["recipe"].tolist() == ["documented", "robust", "documented"]
    assert table["pgd_accuracy"].fillna(-1).tolist() == [0.01, 0.5, -1]
    assert (table["pgd_eps"] == 0.01).all()
    assert len(pd.read_csv(tmp_path / "real" / "robustness.csv")) == 8
    assert read_json(tmp_path / "real/one/training_robust.json")["checkpoint"] == "robust"


def test_what_is_missing_is_told(tmp_path, capsys):
    make_run("one", ["documented"], robust={"documented": 0})
    make_run("two", ["documented"])
    collect(["one", "two"], tmp_path / "real")
    said = capsys.readouterr().out.splitlines()
    assert "training: 2 runs" in said
    assert "robustness: 1 runs, none of two" in said
    assert "corruptions: 0 runs, none of one, none of two" in said
    assert not (tmp_path / "real" / "corruptions.csv").exists()


def test_the_embedded_corpus_is_not_taken_for_real(tmp_path):
    make_run("toy", ["documented"], corpus="synthetic")
    with pytest.raises(ValueError, match="run toy is of the embedded corpus"):
        collect(["toy"], tmp_path / "real")


def test_a_run_without_results_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results/metrics/none has no results: [^\n]*\.$"):
        collect(["none"], tmp_path / "real")
