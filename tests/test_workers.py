import os

import pytest
from dask.distributed import LocalCluster
from joblib import Parallel, delayed

from src.data.corpus import audit
from src.data.preprocessor import write_processed
from src.data.splits import split
from src.workers import workers


@pytest.fixture(scope="module")
def cluster():
    """Return the address of a cluster of two processes, stopped afterwards."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
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
    alone = write_processed(corpus, tracks, tmp_path / "alone", {})
    with workers(cluster):
        shared = write_processed(corpus, tracks, tmp_path / "shared", {})
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
