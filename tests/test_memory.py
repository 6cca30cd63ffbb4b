"""Memory stays flat however long an array is: what was read of a map is given up again."""

import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from src import plots
from src.data import preprocessor, segments
from src.data.corpus import AudioFolder
from src.data.segments import SegmentDataset, make_loader
from src.models.augment import CropDataset
from src.models.evaluation import band_statistics, baseline_probabilities, predict_logits
from src.runtime import chunks, forget_read

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is mapped")

N, SEGMENT_BYTES = 600, 128 * 130 * 4
FEW = 2**20  # bytes: the system reads a little ahead


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Return a file of 600 segments of noise, 40 MB."""
    path = tmp_path_factory.mktemp("arrays") / "X.npy"
    np.save(path, np.random.default_rng(0).random((N, 128, 130), dtype=np.float32))
    return path


@pytest.fixture(name="X")
def _array(file):
    return np.load(file, mmap_mode="r")


@pytest.fixture
def y():
    return np.arange(N) % 3


def mapped(path: Path) -> int:
    """Return how many bytes of a mapped file count as memory of this process."""
    maps = psutil.Process().memory_maps(grouped=True)
    return sum(m.rss for m in maps if m.path == str(path))


class Watcher(torch.nn.Module):
    """A network that notes how much of a file is in memory while it works."""

    def __init__(self, path):
        super().__init__()
        self.path, self.most = path, 0

    def forward(self, x):
        self.most = max(self.most, mapped(self.path))
        return x.mean(dim=(2, 3)).repeat(1, 3)


def test_a_map_counts_as_memory_until_it_is_forgotten(X, file):
    X.sum()
    assert mapped(file) > 0.9 * X.nbytes
    forget_read(X)
    assert mapped(file) < FEW
    assert X[7].sum() > 0  # and can be read again


def test_what_is_no_read_only_map_is_left_alone(tmp_path):
    for mode in ("c", "r+"):
        np.save(tmp_path / "x.npy", np.zeros(9))
        x = np.load(tmp_path / "x.npy", mmap_mode=mode)
        x[3] = 1
        forget_read(x)
        assert x[3] == 1
    forget_read(np.zeros(3))


def test_chunks_are_the_array_piece_by_piece(X, file):
    most = 0
    for k, part in enumerate(chunks(X, 64)):
        assert np.array_equal(part[-1], X[min(64 * k + 63, N - 1)])
        most = max(most, mapped(file))
    assert k == 9
    assert most < 2 * 64 * SEGMENT_BYTES


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_of_segments_do_not_stay_in_memory(shuffle, X, y, file):
    whole = torch.zeros(128, 130)
    for batch, _ in make_loader(SegmentDataset(X, y), 60, shuffle):
        assert mapped(file) < FEW
        whole += batch.sum(dim=(0, 1))
    np.testing.assert_allclose(whole.numpy(), X.sum(axis=0), rtol=1e-4)


def test_crops_do_not_stay_in_memory(X, y, file):
    crops = CropDataset(X, np.full(N, 130), y)
    for _ in make_loader(crops, 512):
        assert mapped(file) < FEW


def test_judging_holds_one_batch_at_a_time(X, file):
    network = Watcher(file)
    assert predict_logits(network, X).shape == (N, 3)
    assert network.most < 2 * 32 * SEGMENT_BYTES


@pytest.mark.parametrize(
    "read",
    [
        lambda X, y: segments._range_of(X),
        lambda X, y: band_statistics(X),
        lambda X, y: plots.band_levels(plt.figure().gca(), X, y, [*"abc"]),
    ],
)
def test_passes_over_an_array_leave_nothing_in_memory(read, X, y, file):
    read(X, y)
    plt.close("all")
    assert mapped(file) < FEW


def test_the_range_of_an_array_has_the_ends_of_all_of_its_parts(X):
    x = np.array(X)
    assert segments._range_of(x) == (x.min(), x.max())
    x[300, 5, 5], x[599, 0, 0] = -3, 7
    assert segments._range_of(x) == (-3, 7)
    x[10, 0, 0] = np.nan
    assert np.isnan(segments._range_of(x)).all()


def test_the_baseline_learns_from_so_many_segments_at_most(X, y, monkeypatch):
    fitted = []
    monkeypatch.setattr("src.models.evaluation.BASELINE_SEGMENTS", 25)
    monkeypatch.setattr(
        "src.models.evaluation.StandardScaler.fit_transform",
        lambda self, X, y=None: fitted.append((X, y)) or self.fit(X).transform(X),
    )
    probabilities = baseline_probabilities(X[:40], y[:40], X[:10], 3)
    ((statistics, labels),) = fitted
    rows = [np.flatnonzero((band_statistics(X[:40]) == x).all(axis=1))[0] for x in statistics]
    assert len(set(rows)) == 25
    assert np.array_equal(labels, y[rows])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_finished_tracks_do_not_pile_up_before_a_slow_disk(monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(preprocessor, "AHEAD", 4)
    rows = pd.DataFrame({"track": range(40)})

    def work(row):
        done.append(row.track)
        return np.full(2, row.track)

    made = preprocessor.in_order(AudioFolder(tmp_path, "x"), work, rows, 2)
    for k, block in enumerate(made):
        assert block.tolist() == [k, k]
        time.sleep(0.2 * (k < 5))  # a slow disk
        assert len(done) <= (k // 4 + 1) * 4
    assert sorted(done) == list(range(40))
