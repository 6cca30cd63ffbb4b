import json
import os
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from conftest import audit, corpus_at

from benchmarks import ablation, audio_step, bench, black_box, growth, near_copies, plain, seeds
from benchmarks import stages as all_stages
from src import paths
from src.attacks.adversarial import Search, attack
from src.data.preprocessor import write_processed
from src.data.segments import Segments, file_hash
from src.data.splits import split
from src.data.synthetic import GENRES
from src.explainability import selection
from src.explainability.attributions import Subject
from src.explainability.records import records
from src.models import cnn
from src.models.checkpoints import CHECKPOINT_FILE, save_checkpoint
from src.models.cnn import GenreClassifierCNN
from src.paths import RunPaths
from src.results import read_csv, write_csv, write_json
from src.runtime import describe

SIZES = {"TRACKS": 2, "SEGMENTS": 16, "ATTACKED": 4, "MAPS": 4, "BATCH": 2}
SIZES |= {"EPSILONS": (0.01,), "ITERATIONS": 2}


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
    save_checkpoint(run.models / "short" / CHECKPOINT_FILE, GenreClassifierCNN(2), **known)
    return run


def test_the_bench_measures_each_stage_with_its_cpu_precision_and_layout(
    run, tmp_path, monkeypatch, capsys, in_precision
):
    in_precision("bfloat16")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
    for name, size in SIZES.items():
        monkeypatch.setattr(bench, name, size)
    monkeypatch.setattr(bench, "METRICS", tmp_path)
    measure, seen = bench.measure, []

    def look(options, apart):
        seen.append(apart(os.getenv, "GLIBC_TUNABLES"))
        return measure(options, apart)

    monkeypatch.setattr(bench, "measure", look)
    assert bench.main(["--run", "tiny"]) == 0
    assert seen == [None]  # the plain implementation runs without our settings of memory
    cpu = describe()["cpu"].lower().replace(" ", "_")
    found = json.loads((tmp_path / f"bench_{cpu}_bfloat16.json").read_text())
    assert {"versions", "machine", "corpus"} <= set(found)
    printed = capsys.readouterr().out
    for name in ("features", "training", "attacks", "gradcam"):
        stage = found[name]
        assert all(stage[key] > 0 for key in ("ratio", "rate", "plain_rate", "limit"))
        assert stage["share_of_limit"] == pytest.approx(stage["rate"] / stage["limit"])
        assert 0 <= stage["difference"] < 0.5
        assert stage["cpu"] == describe()["cpu"]
        fast = name in ("training", "attacks")
        assert stage["precision"] == ("bfloat16" if fast else "float32")
        assert name == "features" or stage["memory_format"] == describe()["memory_format"]
        assert name in printed
    assert found["features"]["difference"] < 0.01  # dB


def test_a_run_that_does_not_exist_ends_in_one_sentence():
    with pytest.raises(SystemExit, match=r"^[^\n]*nosuch[^\n]*\.$"):
        bench.main(["--run", "nosuch"])


def test_the_plain_implementation_is_float32_without_autocast():
    seen = []
    model = GenreClassifierCNN(2)
    model.conv1_1.register_forward_hook(
        lambda _module, inputs, output: seen.append((output.dtype, inputs[0].is_contiguous()))
    )
    X = np.random.default_rng(0).random((2, 128, 130), dtype=np.float32)
    plain.train(model, X, np.array([0, 1]), 2)
    assert seen == [(torch.float32, True)]


def test_a_ratio_is_the_median_over_turns_and_a_rate_counts_the_work_done():
    times = np.array([(4, 1), (9, 1), (4, 2)])
    found = bench.report(times, (10, 5), "x/s", 20, 0)
    assert (found["ratio"], found["rate"], found["plain_rate"]) == (4, 5, 2.5)
    assert found["share_of_limit"] == 0.25
    assert bench.report(times, 10, "x/s", 20, 0)["rate"] == 10


def test_the_limit_is_that_of_the_precision_and_the_layout(monkeypatch):
    monkeypatch.setattr(bench, "BATCH", 2)
    monkeypatch.setattr(cnn, "WIDTHS", (4, 8))
    seen = []

    def seconds(work):
        layer, x = work.__defaults__[:2]
        layout = x.is_contiguous(memory_format=torch.channels_last)
        seen.append((layer.weight.dtype, tuple(x.shape), layout, x.requires_grad))
        work()
        return 0.25

    monkeypatch.setattr(bench, "seconds", seconds)
    monkeypatch.setattr(bench, "memory_format", lambda: torch.channels_last)
    rate = bench.convolution_rate(torch.bfloat16, weights=True, backward=True)
    assert rate == 2 / (4 * 0.25)
    assert {row[0] for row in seen} == {torch.bfloat16}
    assert [row[1][1:] for row in seen] == [(1, 128, 130), (4, 128, 130), (4, 64, 65), (8, 64, 65)]
    assert all(row[2] for row in seen)
    assert [row[3] for row in seen] == [False, True, True, True]


def test_gradients_are_counted_per_segment_and_predictions_are_not(slim_model, target):
    count = [0]
    with bench._counted_gradients(count):
        target.predict(target.data.X)
        attack("pgd", slim_model, target.data.X[:3], target.data.y[:3], 0.01, Search(5))
    assert count == [15]
    attack("fgsm", slim_model, target.data.X[:3], target.data.y[:3], 0.01)
    assert count == [15]


CHILD = "import numpy, time; x = numpy.ones(40_000_000); del x; time.sleep(0.5)"  # 305 MiB
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def test_memory_is_the_peak_of_the_largest_process(tmp_path):
    little = growth.watch([sys.executable, "-c", "import time; time.sleep(0.5)"], tmp_path)
    much = growth.watch([sys.executable, "-c", PARENT], tmp_path)
    assert 0 < little[2] < 0.1
    assert 0.29 < much[2] < 0.45
    assert much[1] > 0.5
    failed = growth.watch([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
    assert (failed[0], little[0]) == (3, 0)


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

    raw = tmp_path / "data" / "raw"
    changes = {"make_corpus": make_corpus, "RAW": raw, "ROOT": tmp_path, "METRICS": tmp_path}
    for name, value in (changes | {"COMPOSED_PER_GENRE": 2, "N_SAMPLES": 66_150}).items():
        monkeypatch.setattr(growth, name, value)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return raw


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


def test_growth_is_recorded_by_size_and_stage_and_leaves_nothing_behind(raw, tmp_path, monkeypatch):
    called = []

    def watch(command, folder):
        stage, size = command[3], int(command[5].removeprefix("RUN=growth_"))
        assert command[4] == f"DATASET=data/raw/growth_{size}"
        assert len(command) == 6  # defaults otherwise: the whole notebook
        assert (raw / f"growth_{size}").exists()
        assert not left.exists()
        called.append((stage, size))
        (tmp_path / "data/processed" / f"growth_{size}").mkdir(parents=True, exist_ok=True)
        return 0, size / 10, 0.5

    left = RunPaths("growth_20").models / "documented"  # by an interrupted measurement
    left.mkdir(parents=True)
    monkeypatch.setattr(growth, "watch", watch)
    assert growth.main(["--tracks", "30", "20"]) == 0
    stages = ["explore", "preprocess", "train"]
    assert called == [*((s, 20) for s in stages), *((s, 30) for s in stages[:2])]
    rows = json.loads((tmp_path / "growth.json").read_text())["growth"]
    assert [row["tracks"] for row in rows] == [20, 30]
    assert rows[1]["seconds"] == {"explore": 3.0, "preprocess": 3.0}
    assert rows[0]["peak_rss_gib"] == dict.fromkeys(stages, 0.5)
    assert not list(raw.glob("growth_[23]0"))
    assert not list((tmp_path / "data/processed").iterdir())


def test_a_stage_that_fails_ends_the_measurement_and_leaves_the_smaller_sizes(
    raw, tmp_path, monkeypatch
):
    def watch(command, folder):
        return int("DATASET=data/raw/growth_30" in command), 1, 1

    monkeypatch.setattr(growth, "watch", watch)
    with pytest.raises(RuntimeError, match=r"explore failed with .*growth_30"):
        growth.main(["--tracks", "20", "30"])
    assert not list(raw.glob("growth_[23]0"))
    rows = json.loads((tmp_path / "growth.json").read_text())["growth"]
    assert [row["tracks"] for row in rows] == [20]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Return test segments of two genres; runs write their results below `tmp_path`."""
    rng = np.random.default_rng(0)
    X, y = rng.random((6, 128, 130), dtype=np.float32), np.arange(6) % 2
    table = pd.DataFrame({"segment": range(6), "track": list("abcdef"), "start_s": 0.0})
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return Segments(X, y, table.assign(genre=np.array(["blues", "rock"])[y], split="test"))


def test_the_ablation_has_a_row_per_checkpoint_and_keeps_those_that_are_there(
    small, monkeypatch, capsys
):
    facts = {"name": "robust", "changes": {"cutmix": 0.5}, "seed": 43, "recipe": {"epochs": 24}}
    loaded = []

    def load(run, name):
        loaded.append(name)
        torch.manual_seed(0)
        return GenreClassifierCNN(2).eval(), facts | {"key": name}

    monkeypatch.setattr(ablation, "load_named", load)
    monkeypatch.setattr(ablation, "load_split", lambda run, split: small)
    monkeypatch.setattr(ablation, "load_metadata", lambda run: {"corpus": "c", "split": "random"})
    monkeypatch.setattr(ablation, "EFFORT", ablation.EFFORT._replace(iterations=1))
    evaluated, evaluate = [], ablation.suite.evaluate
    monkeypatch.setattr(
        ablation.suite, "evaluate", lambda *job: evaluated.append(job) or evaluate(*job)
    )
    assert ablation.main(["tiny", "one", "--segments", "4"]) == 0
    assert ablation.main(["tiny", "one", "two", "--segments", "4"]) == 0
    table = read_csv(RunPaths("tiny").metrics / "ablation.csv")
    assert table["checkpoint"].tolist() == ["one", "two"]
    assert len(evaluated) == 2
    assert (table["changes"] == '{"cutmix": 0.5}').all()
    monkeypatch.setattr(ablation, "load_named", lambda run, name: (load(run, name)[0], again))
    again = facts | {"key": "one, trained again"}
    assert ablation.main(["tiny", "one", "--segments", "4"]) == 0
    file = RunPaths("tiny").metrics / "ablation.csv"
    write_csv(file, pd.concat([table[table["checkpoint"] == "one"], read_csv(file)]))
    assert ablation.main(["tiny", "one", "--segments", "4"]) == 0  # an old row beside the new one
    table = read_csv(file)
    assert table[["checkpoint", "key"]].to_numpy().tolist() == [
        ["two", "two"],
        ["one", "one, trained again"],
    ]
    assert (table["n_segments"] == 4).all()
    assert (table["robust_accuracy"] <= table["clean_accuracy"]).all()
    assert "two" in capsys.readouterr().out


def test_attacks_without_gradients_are_compared_with_gradients_on_the_same_segments(
    small, monkeypatch, capsys
):
    def load(run, name):
        torch.manual_seed(0)
        return GenreClassifierCNN(3).eval(), {"key": name}

    monkeypatch.setattr(black_box, "load_named", load)
    monkeypatch.setattr(black_box, "load_split", lambda run, split: small)
    monkeypatch.setattr(black_box, "load_metadata", lambda run: {"corpus": "c", "split": "random"})
    numbers = {"iterations": 1, "square_queries": 2, "hard_label_steps": 1}
    monkeypatch.setattr(black_box, "EFFORT", black_box.EFFORT._replace(**numbers))
    assert black_box.main(["tiny", "one", "--segments", "2"]) == 0
    assert black_box.main(["tiny", "one", "two", "--segments", "2"]) == 0
    table = read_csv(RunPaths("tiny").metrics / "black_box.csv")
    attacks = table.groupby("checkpoint")["attack"].agg(sorted).to_dict()
    assert attacks == dict.fromkeys(["one", "two"], sorted(black_box.SHOWN))
    assert (table["n_segments"] == 2).all()
    flips = table["attack_success_rate"] * table["n_segments"]
    assert (table["only"] <= flips).all()
    assert "two" in capsys.readouterr().out


def test_segments_that_no_gradient_flips_are_counted(small, monkeypatch):
    def records(attack, flips, distances=(np.nan, np.nan)):
        facts = {"attack": attack, "made_by": attack, "eps": 0.01, "eps_db": 0.8, "checkpoint": "m"}
        table = pd.DataFrame({"segment": [0, 2], "track": ["a", "c"], "success": flips, "true": 0})
        facts |= {"clean_prediction": 0, "adversarial_prediction": np.array(flips, dtype=int)}
        return table.assign(**facts, distance=distances)

    both = [records("pgd", [True, False]), records("apgd_dlr", [True, False])]
    monkeypatch.setattr(black_box.suite, "evaluate", lambda *given: pd.concat(both))
    searched = records("hop_skip_jump", [True, True], [0.002, 0.004])
    monkeypatch.setattr(black_box.suite, "alone", lambda *given: searched)
    target = black_box.make_target(GenreClassifierCNN(3).eval(), small)
    target = target._replace(logits=np.eye(3)[small.y])
    found = black_box.evaluate("m", target, {"corpus": "c", "split": "random"}, 2)
    found = found.set_index("attack")
    assert found["only"].to_dict() == {"apgd_dlr": 0, "hop_skip_jump": 1}
    assert found.loc["hop_skip_jump", "median_db"] == pytest.approx(0.24)


@pytest.fixture
def trained(small, monkeypatch):
    """Return names of untrained networks, which `seeds` loads as trainings of two recipes.

    An attack flips all segments.
    """
    facts = {"a": ("one", "", 42), "b": ("one", "", 43), "c": ("one", "_wide", 43)}
    keys = "name", "suffix", "seed"
    labels = {name: dict(zip(keys, each, strict=True)) for name, each in facts.items()}

    def load(run, names, own):
        torch.manual_seed(0)
        return {
            name: (GenreClassifierCNN(2).eval(), labels[name] | {"key": name}) for name in names
        }

    def make_case(*given):
        case = selection.make_case(*given)
        flipped = case.attacked[seeds.EPS]._replace(predicted=1 - case.data.y)
        return case._replace(attacked={seeds.EPS: flipped})

    data = {"corpus": "c", "run": "tiny", "split": "random", "fingerprint": "0"}
    monkeypatch.setattr(seeds, "make_case", make_case)
    monkeypatch.setattr(seeds, "load_networks", load)
    monkeypatch.setattr(seeds, "load_metadata", lambda run: data)
    monkeypatch.setattr(seeds, "load_split", lambda run, split: small)
    monkeypatch.setattr(seeds, "ITERATIONS", 1)
    return list(facts)


def test_trainings_with_several_seeds_have_lines_of_each_seed_and_of_all(trained, capsys):
    assert seeds.main(["tiny", *trained]) == 0
    table = read_csv(RunPaths("tiny").metrics / "seeds.csv")
    share = table[table["measure"] == "clean_accuracy"].set_index(["recipe", "seeds"])["n_segments"]
    assert share.to_dict() == {
        ("one", "42"): 6,
        ("one", "43"): 6,
        ("one_wide", "43"): 6,
        ("one", "42, 43"): 12,
    }
    accuracy = table.set_index(["recipe", "seeds", "measure"])["value"].unstack()
    assert (accuracy["clean_accuracy"] > 0).all()
    assert (accuracy["robust_accuracy"] == 0).all()
    facts = json.loads((RunPaths("tiny").metrics / "seeds.json").read_text())
    assert list(facts["checkpoints"]) == trained
    assert not RunPaths("tiny").unfinished("seeds").exists()
    assert "42, 43" in capsys.readouterr().out


def test_seeds_are_pooled_within_tracks():
    def rows(seed, measure, condition, values):
        table = pd.DataFrame({"segment": range(30), "track": range(30), "genre": "blues"})
        subject = Subject("", None, "", 0, None, None)
        found = records(subject, "gradcam", table, {measure: values}, condition=condition)
        return found.assign(recipe="one", seed=seed)

    specific = "class_specificity"
    table = pd.concat(
        [
            *(rows(42, name, "clean", np.arange(30) % 2.0) for name in seeds.ACCURACIES),
            *(rows(43, name, "clean", np.ones(30)) for name in seeds.ACCURACIES),
            rows(42, specific, "clean", 1 + np.arange(30) % 2),
            rows(43, specific, "clean", 3 + np.arange(30) % 2),
            *(rows(seed, specific, "target_any", np.arange(30) % 2) for seed in (42, 43)),
        ],
        ignore_index=True,
    )
    found = seeds.by_seeds(table, "c").set_index(["seeds", "measure"])
    accuracy = found.xs("clean_accuracy", level="measure")
    assert accuracy["value"].to_dict() == {"42": 0.5, "43": 1, "42, 43": 0.75}
    assert accuracy["n_segments"].to_dict() == {"42": 30, "43": 30, "42, 43": 60}
    assert (accuracy["n_tracks"] == 30).all()
    claim = found.xs(specific, level="measure")
    assert claim["value"].to_dict() == pytest.approx({"42": 1, "43": 3, "42, 43": 2})
    assert claim["n_segments"].to_dict() == {"42": 30, "43": 30, "42, 43": 60}
    assert (claim["answer"] == "supported").all()


def test_log_mels_and_audio_are_compared_on_the_segments_that_both_runs_have(small, monkeypatch):
    table = pd.DataFrame({"track": [*"abcdefgg"], "start_s": [0.0] * 7 + [2.9954]})
    log = Segments(np.zeros((8, 128, 130), np.float32), np.array([1, 0, 0, 0, 0, 0, 1, 0]), table)
    audio = log.take(np.arange(7))
    loaded = []
    load = lambda run, names: loaded.extend(names) or {"pretrained_a": (None, {})}  # noqa: E731
    monkeypatch.setattr(audio_step, "load_networks", load)
    tests = {"log": log, "audio": replace(audio, y=1 - audio.y)}
    monkeypatch.setattr(audio_step, "unseen_test", lambda run, networks: tests[run.run])
    zeros = lambda model, X: np.eye(2)[np.zeros(len(X), int)]  # noqa: E731
    monkeypatch.setattr(audio_step, "predict_logits", zeros)
    monkeypatch.setattr(audio_step, "evaluate_corruptions", lambda *job: pd.DataFrame({"n": [1]}))
    monkeypatch.setattr(audio_step, "load_metadata", lambda run: {"corpus": "c"})
    for name in ("per_checkpoint", "save_figure"):
        monkeypatch.setattr(audio_step.plots, name, lambda *_, **__: None)
    assert audio_step.main(["log", "audio", "--networks", "a"]) == 0
    assert loaded == ["pretrained/a"]
    table = read_csv(RunPaths("audio").metrics / "audio_step.csv")
    assert table["input"].tolist() == ["log-mels", "audio"]
    assert table["checkpoint"].tolist() == ["a", "a"]
    assert (table["n_segments"] == 7).all()  # the second segment of the last track has no audio
    assert table["accuracy"].tolist() == pytest.approx([5 / 7, 2 / 7])
    step = table.iloc[1]
    assert step["difference_value"] == pytest.approx(-3 / 7)
    assert step["difference_low"] < -3 / 7 < step["difference_high"]
    assert step["difference_p_holm"] == step["difference_p_value"] < 1


def test_the_most_similar_track_of_training_is_found_for_each_test_track(
    small, monkeypatch, capsys
):
    parts = {
        "train": small.take(np.array([0, 3, 1])),  # tracks a, d and b
        "val": small.take(np.array([4])),
        "test": replace(small.take(np.array([2, 3, 4])), X=small.X[[2, 0, 4]].copy()),
    }
    parts["test"].X[1] += 0.5 / 80
    monkeypatch.setattr(near_copies, "load_split", lambda run, part: named(parts[part], part))
    monkeypatch.setattr(near_copies, "load_metadata", lambda run: {"fingerprint": "f"})
    assert near_copies.main(["tiny"]) == 0
    table = read_csv(RunPaths("tiny").metrics / "near_copies.csv").set_index("track")
    assert table.index.tolist() == ["e", "d", "c"]
    assert table["nearest"].tolist()[:2] == ["e", "a"]
    assert table["split"].tolist()[:2] == ["val", "train"]
    assert table["difference_db"].tolist()[:2] == pytest.approx([0, 0.5], abs=1e-4)
    assert table["difference_db"]["c"] > 20  # of noise
    assert (table["fingerprint"] == "f").all()
    assert "nearest" in capsys.readouterr().out


def named(data: Segments, split: str) -> Segments:
    """Return segments whose table names their split."""
    return replace(data, table=data.table.assign(split=split).reset_index(drop=True))


@pytest.mark.parametrize("left", ["results/models/synthetic", "data/raw/synthetic_24_per_genre"])
def test_stages_are_measured_in_a_fresh_clone_only(left, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(all_stages, "RAW", tmp_path / "data" / "raw")
    monkeypatch.setattr(all_stages, "measure", lambda *words: pytest.fail("measured"))
    (tmp_path / left).mkdir(parents=True)
    with pytest.raises(SystemExit, match="exists, so a stage would be shorter"):
        all_stages.main()
