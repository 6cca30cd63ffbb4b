import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import audit, corpus_at
from dask.distributed import LocalCluster
from joblib import Parallel, delayed

from src import shards
from src.attacks.adversarial import Search, attack
from src.attacks.records import make_target
from src.attacks.suite import Budgets, evaluate
from src.data.preprocessor import write_processed
from src.data.splits import split
from src.effort import choose_effort
from src.explainability.attributions import Subject, attribute
from src.explainability.localization import BOX_EPS, draw_boxes
from src.paths import ROOT
from src.runtime import one_thread
from src.workers import workers


@pytest.fixture(scope="module")
def cluster():
    """Return the address of a cluster of two processes, stopped afterwards."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as cluster:
        yield cluster.scheduler_address


def processes():
    return set(Parallel(2, prefer="threads")(delayed(os.getpid)() for _ in range(8)))


def test_work_goes_to_the_cluster_only_inside(cluster):
    with workers(cluster):
        assert os.getpid() not in processes()
    assert processes() == {os.getpid()}
    with workers(""):
        assert processes() == {os.getpid()}


def test_a_cluster_writes_the_arrays_that_one_machine_writes(cluster, tmp_path, write_track, noise):
    for genre in ("blues", "jazz"):
        for k in range(7):
            corpus = write_track(f"{genre}/{genre}.{k:05d}.wav", noise(hash_of(genre, k)))
    tracks = audit(corpus)
    tracks["split"] = split(tracks, "random", "", 42)
    alone = write_processed(corpus_at(corpus), tracks, tmp_path / "alone", {})
    with workers(cluster):
        shared = write_processed(corpus_at(corpus), tracks, tmp_path / "shared", {})
    assert shared == alone  # with the fingerprint of all that was written
    one, two = (tmp_path / name / "train" / "X.npy" for name in ("alone", "shared"))
    assert one.read_bytes() == two.read_bytes()


def hash_of(genre, k):
    return len(genre) * 100 + k


def test_an_address_where_nothing_answers_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setattr("src.workers.Client", refuse)
    said = r"SCHEDULER=tcp://127\.0\.0\.1:9 does not answer"
    with pytest.raises(OSError, match=said) as failure, workers("tcp://127.0.0.1:9"):
        pass
    assert "\n" not in str(failure.value)


def refuse(address, timeout):
    raise OSError(f"Timed out trying to connect to {address} after {timeout}")


def test_workers_of_several_threads_are_refused():
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
    ) as several:
        said = "has a worker with 2 threads: random numbers"
        with pytest.raises(ValueError, match=said), workers(several.scheduler_address):
            pass


def process_of(number, X):
    return np.full(len(X), os.getpid())


def test_shards_go_to_the_cluster_only_inside(cluster, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 2)
    alone = shards.in_shards("processes", process_of, (np.zeros(8),))
    assert alone.tolist() == [os.getpid()] * 8
    with workers(cluster):
        assert os.getpid() not in shards.in_shards("processes", process_of, (np.zeros(8),))


@pytest.mark.parametrize("name", ["gradcam", "randomcam", "integrated_gradients"])
def test_a_cluster_makes_the_maps_that_one_machine_makes(
    name, cluster, slim_model, clips, monkeypatch
):
    monkeypatch.setattr(shards, "SHARD", 5)
    subject = Subject("slim", slim_model, "conv4_2", 7, None, clips.X.mean(axis=0))
    with one_thread():
        alone = attribute(subject, name, clips.X, clips.y)
        with workers(cluster):
            assert np.array_equal(attribute(subject, name, clips.X, clips.y), alone)
    assert alone.any()


def test_a_cluster_makes_the_suite_and_the_boxes_that_one_machine_makes(
    cluster, slim_model, clips, monkeypatch
):
    monkeypatch.setattr(shards, "SHARD", 5)
    budgets = Budgets((0.005, 0.05), (0.05,), 0.05)
    numbers = {"iterations": 2, "n_restarts": 2, "square_queries": 2, "n_hard_label": 0}
    effort = choose_effort("quick", numbers)
    limits, search = BOX_EPS * draw_boxes(24, 1).astype(np.float32), Search(3, 1)
    target = make_target(slim_model, clips)
    with one_thread():
        alone = evaluate({"model": target}, budgets, effort, 1)
        boxed = attack("pgd", slim_model, clips.X, clips.y, limits, search)
        with workers(cluster):
            shared = evaluate({"model": target}, budgets, effort, 1)
            assert np.array_equal(
                attack("pgd", slim_model, clips.X, clips.y, limits, search), boxed
            )
    pd.testing.assert_frame_equal(shared, alone)


def test_a_notebook_uses_the_cluster_until_it_ends(cluster):
    code = (
        "import os; from joblib import Parallel, delayed; from src.workers import use_cluster;"
        f"use_cluster({cluster!r});"
        "print(os.getpid() not in Parallel(2)(delayed(os.getpid)() for _ in range(8)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
