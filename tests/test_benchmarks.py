import json
import sys
import time

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from conftest import audit, corpus_at

import benchmarks.__main__ as bench
from benchmarks import growth, limits, profiles
from src import paths
from src.data.loader import file_hash
from src.data.preprocessor import write_processed
from src.data.splits import split
from src.data.synthetic import GENRES
from src.models import cnn
from src.models.checkpoints import CHECKPOINT_FILE, save_checkpoint
from src.models.cnn import GenreClassifierCNN
from src.paths import RunPaths
from src.results import write_csv, write_json

SIZES = {
    "TRACKS": 2,
    "SEGMENTS": 16,
    "ATTACKED": 4,
    "MAPS": 4,
    "EPSILONS": (0.01,),
    "ITERATIONS": 2,
    "SOUNDS": 2,
    "SOUND_STEPS": 2,
}


@pytest.fixture
def run(tmp_path, monkeypatch, write_track, noise):
    """Return the paths of a run of two genres with an untrained, slim network."""
    for module in (paths, growth):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(cnn, "WIDTHS", (8, 8, 8, 8))
    for k in range(14):
        genre = ("blues", "jazz")[k % 2]
        corpus = write_track(f"{genre}/{genre}.{k:05d}.wav", noise(k, 30))
    run, tracks = RunPaths("tiny"), audit(corpus)
    write_csv(run.processed / "tracks.csv", tracks)
    write_json(run.processed / "source.json", {"corpus": "tiny", "path": str(corpus)})
    tracks["split"] = split(tracks, "random", "", 42)
    facts = {"corpus": "tiny", "tracks_sha256": file_hash(run.processed / "tracks.csv")}
    metadata = write_processed(corpus_at(corpus), tracks, run.processed, facts)
    known = {"genres": metadata["genres"], "fingerprint": metadata["fingerprint"]}
    save_checkpoint(run.models / "documented" / CHECKPOINT_FILE, GenreClassifierCNN(2), **known)
    return run


def test_the_bench_measures_each_stage_and_its_profile(run, tmp_path, monkeypatch, capsys):
    for name, size in SIZES.items():
        monkeypatch.setattr(bench, name, size)
    monkeypatch.setattr(bench, "METRICS", tmp_path)
    monkeypatch.setattr(limits, "BATCH", 2)
    monkeypatch.setattr(limits, "WIDTHS", (8, 8, 8, 8))
    assert bench.main(["--run", "tiny"]) == 0
    told = json.loads((tmp_path / "bench.json").read_text())
    assert {"versions", "machine", "corpus"} <= set(told)
    printed = capsys.readouterr().out
    for stage in ("features", "training", "attacks", "gradcam", "waveform"):
        found = told[stage]
        assert all(found[key] > 0 for key in ("ratio", "rate", "plain_rate", "limit"))
        assert found["share_of_limit"] == pytest.approx(found["rate"] / found["limit"])
        assert 0 <= found["difference"] < 0.5
        assert len(found["largest"]) == 3
        assert all(item in printed for item in found["largest"])
    assert told["features"]["difference"] < 0.01  # dB


def test_a_ratio_is_the_median_over_turns_and_a_rate_counts_what_was_done():
    told = bench.report(([4, 9, 4], [1, 1, 2]), 10, "x/s", 20, 0, done=5)
    assert (told["ratio"], told["rate"], told["plain_rate"]) == (4, 5, 2.5)
    assert told["share_of_limit"] == 0.25


def test_steps_are_counted_until_a_segment_is_broken():
    rows = [("pgd", 1, 0.01, True), ("pgd", 1, 0.02, True), ("pgd", 2, 0.01, False)]
    rows += [("pgd", 2, 0.02, False), ("fgsm", 1, 0.01, False), ("pgd", 3, 0.01, False)]
    table = pd.DataFrame(rows, columns=["attack", "segment", "eps", "success"])
    table = table.assign(true=0, clean_prediction=table["segment"] // 3)  # the third is wrong
    assert bench._steps_made(table) == 3 * bench.ITERATIONS + 1


def busy():
    end = time.perf_counter() + 0.2
    while time.perf_counter() < end:
        pass


def test_a_profile_names_the_largest_items_as_shares():
    calls = profiles.largest_calls(busy)
    assert sum("busy" in name for name in calls) == 1
    assert 0.5 < sum(calls.values()) <= 1
    assert list(calls.values()) == sorted(calls.values(), reverse=True)
    operations = profiles.largest_operations(
        lambda: [limits.torch.rand(500, 500).sort() for _ in "ab"]
    )
    assert "aten::sort" in operations


CHILD = "import numpy, time; x = numpy.ones(40_000_000); time.sleep(0.5)"  # 305 MiB
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def test_the_memory_of_children_counts(tmp_path):
    little = growth.watch([sys.executable, "-c", "import time; time.sleep(0.5)"], tmp_path)
    much = growth.watch([sys.executable, "-c", PARENT], tmp_path)
    assert 0 < little.peak_rss_gib < 0.1
    assert 0.29 < much.peak_rss_gib < much.peak_rss_all_gib < 0.45
    assert much.seconds > 0.5
    failed = growth.watch([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
    assert (failed.code, little.code) == (3, 0)


@pytest.fixture
def raw(tmp_path, monkeypatch, noise):
    """Return the folder of corpora, in which noise stands for the composed tracks."""

    def make_corpus(folder, n, seed):
        for genre in GENRES:
            (folder / genre).mkdir(parents=True, exist_ok=True)
            for k in range(n):
                path = folder / genre / f"{genre}.{k:05d}.wav"
                sf.write(path, noise(GENRES.index(genre) * 9 + k, 3), 22_050)
        return folder

    monkeypatch.setattr(growth, "make_corpus", make_corpus)
    monkeypatch.setattr(growth, "RAW", tmp_path / "data" / "raw")
    monkeypatch.setattr(growth, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(growth, "METRICS", tmp_path)
    monkeypatch.setattr(growth, "COMPOSED_PER_GENRE", 2)
    monkeypatch.setattr(growth, "N_SAMPLES", 66_150)
    return tmp_path / "data" / "raw"


def test_a_corpus_grows_without_duplicates(raw):
    tracks = audit(growth.grow_corpus(50))
    assert tracks["genre"].value_counts().tolist() == [5] * 10
    assert tracks["used"].all()
    assert (tracks["duplicate_of"] == "").all()
    first, third = (
        sf.read(raw / "growth_50" / "rock" / f"rock.{k:05d}.wav", dtype="int16")[0] for k in (0, 2)
    )
    assert np.array_equal(np.roll(first, -22_050), third)
    with pytest.raises(ValueError, match="15 tracks cannot be shared by 10 genres"):
        growth.grow_corpus(15)


def test_growth_is_told_by_size_and_stage_and_leaves_nothing_behind(raw, tmp_path, monkeypatch):
    called = []

    def watch(command, folder):
        stage, size = command[3], int(command[7].removeprefix("growth_"))
        assert (raw / f"growth_{size}").exists()
        called.append((stage, size))
        (tmp_path / "data/processed" / f"growth_{size}").mkdir(parents=True, exist_ok=True)
        return growth.Cost(0, size / 10, 0.5, 0.75)

    monkeypatch.setattr(growth, "watch", watch)
    assert growth.main(["--tracks", "30", "20", "--train-up-to", "20"]) == 0
    stages = ["explore", "preprocess", "train"]
    assert called == [*((s, 20) for s in stages), *((s, 30) for s in stages[:2])]
    told = json.loads((tmp_path / "growth.json").read_text())
    assert [row["tracks"] for row in told["growth"]] == [20, 30]
    assert told["growth"][1]["seconds"] == {"explore": 3.0, "preprocess": 3.0}
    assert told["growth"][0]["peak_rss_gib"] == dict.fromkeys(stages, 0.5)
    assert told["growth"][0]["peak_rss_all_gib"] == dict.fromkeys(stages, 0.75)
    assert not list(raw.glob("growth_[23]0"))
    assert not list((tmp_path / "data/processed").iterdir())


def test_a_stage_that_fails_ends_the_measurement_and_leaves_the_smaller_sizes(
    raw, tmp_path, monkeypatch
):
    def watch(command, folder):
        return growth.Cost(int("data/raw/growth_30" in command), 1, 1, 1)

    monkeypatch.setattr(growth, "watch", watch)
    with pytest.raises(RuntimeError, match="explore failed on growth_30"):
        growth.main(["--tracks", "20", "30"])
    assert not list(raw.glob("growth_[23]0"))
    told = json.loads((tmp_path / "growth.json").read_text())
    assert [row["tracks"] for row in told["growth"]] == [20]
