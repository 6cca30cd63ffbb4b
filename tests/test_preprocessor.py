import math
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from conftest import audit, corpus_at, refused

from src.data import preprocessor
from src.data.audio import read_audio
from src.data.features import (
    edged_log_mel,
    log_mel_starts,
    segment_audio,
    segment_log_mel,
    to_decibel,
    to_unit,
)
from src.data.log_mel_archive import fill_frames
from src.data.preprocessor import _pad, write_processed
from src.data.segments import (
    SegmentDataset,
    file_hash,
    load_metadata,
    load_split,
    load_whole_tracks,
    make_loader,
)
from src.data.splits import SPLITS, split_tracks
from src.models.augment import CropDataset
from src.results import read_json, write_csv, write_json


@pytest.fixture
def corpus(write_track, noise):
    """Two genres named like numbers, seven tracks each of one or two segments, one too short."""
    for i in range(7):
        write_track(f"1980/1980.{i:05d}.wav", noise(i, seconds=3.1 + 3 * (i % 2)))
        write_track(f"1990/1990.{i:05d}.wav", noise(10 + i, seconds=6.2))
    return write_track("1990/1990.00007.wav", noise(20, seconds=1))


def preprocess(corpus, paths, **options):
    """Audit, split and write a corpus as the notebooks do; return the metadata."""
    tracks = audit(corpus)
    write_csv(paths.processed / "tracks.csv", tracks)
    tracks["split"] = split_tracks(tracks, 0)
    facts = {"tracks_sha256": file_hash(paths.processed / "tracks.csv")}
    return write_processed(corpus_at(corpus), tracks, paths.processed, facts, **options)


def test_arrays_table_and_metadata_agree(corpus, paths):
    metadata = preprocess(corpus, paths)
    assert metadata == load_metadata(paths)
    assert metadata["genres"] == ["1980", "1990"]
    assert sum(metadata["n_tracks"].values()) == 14
    assert sum(metadata["n_segments"].values()) == 4 + 3 * 2 + 7 * 2
    seen = []
    for split in SPLITS:
        data = load_split(paths, split)
        X, y, table = data.X, data.y, data.table
        assert table.columns.tolist() == ["segment", "track", "genre", "start_s", "split"]
        seen += table["track"].unique().tolist()
        assert isinstance(X, np.memmap)
        assert (X.dtype, y.dtype, X.flags.writeable) == (np.float32, np.int64, False)
        assert X.shape == (metadata["n_segments"][split], 128, 130)
        assert X.min() >= 0
        assert X.max(axis=(1, 2)).tolist() == [1] * len(X)
        assert table["segment"].tolist() == list(range(len(X)))
        assert table["track"].nunique() == metadata["n_tracks"][split]
        assert [metadata["genres"][number] for number in y] == table["genre"].tolist()
        assert [name.split(".")[0] for name in table["track"]] == table["genre"].tolist()
    assert len(seen) == len(set(seen))


def test_every_row_is_the_segment_that_the_table_names(corpus, paths):
    preprocess(corpus, paths)
    for split in SPLITS:
        data = load_split(paths, split)
        for row in data.table.itertuples():
            samples = read_audio(corpus / row.genre / f"{row.track}.wav")
            alone = samples[round(row.start_s * 22_050) :][:66_150]
            np.testing.assert_allclose(data.X[row.segment], segment_audio(alone, 1)[0], atol=1e-6)


def test_tracks_of_equal_samples_are_one_track(corpus, paths):
    tracks = audit(corpus)
    first, copy = tracks.loc[[0, 1], "track"]
    tracks.loc[1, "duplicate_of"] = first
    file = write_csv(paths.processed / "tracks.csv", tracks)
    tracks["split"] = split_tracks(tracks, 0)
    tracks.loc[[0, 1], "split"] = "train"
    facts = {"tracks_sha256": file_hash(file)}
    metadata = write_processed(corpus_at(corpus), tracks, paths.processed, facts)
    data, n_segments = load_split(paths, "train"), tracks["n_segments"]
    counts = data.table["track"].value_counts()
    assert copy not in counts
    assert counts[first] == n_segments[0] + n_segments[1]
    assert data.numbers.tolist() == list(range(len(data)))
    assert [len(each) for each in load_whole_tracks(paths)] == [metadata["n_tracks"]["train"]] * 3


def test_tracks_without_a_split_are_left_out(corpus, paths):
    tracks = audit(corpus)
    tracks["split"] = split_tracks(tracks, 0)
    left_out = tracks.index[tracks["used"] & (tracks["split"] == "train")][-1]
    tracks.loc[left_out, "split"] = ""
    metadata = write_processed(corpus_at(corpus), tracks, paths.processed, {})
    assert sum(metadata["n_tracks"].values()) == 13
    written = set(pd.read_csv(paths.processed / "segments.csv")["track"].map("{:.5f}".format))
    assert written == set(tracks.loc[tracks["used"], "track"]) - {tracks.at[left_out, "track"]}


@pytest.mark.parametrize(("split_of_1990", "found"), [("", "none"), ("test", "test")])
def test_a_genre_that_cannot_be_learnt_is_refused(corpus, paths, split_of_1990, found):
    tracks = audit(corpus)
    tracks["split"] = split_tracks(tracks, 0).where(tracks["genre"] != "1990", split_of_1990)
    before = preprocess(corpus, paths)
    with refused(f"no usable track of 1990 to train on .1990.00000: its split is {found}"):
        write_processed(corpus_at(corpus), tracks, paths.processed, {})
    assert load_metadata(paths) == before


@pytest.mark.parametrize(
    ("name", "reason"), [("pop/pop.1.wav", "unreadable"), ("pop/pop.1.m4a", "format")]
)
def test_a_genre_that_would_vanish_is_refused(corpus, paths, name, reason):
    (corpus / name).parent.mkdir()
    (corpus / name).touch()
    tracks = audit(corpus)
    tracks["split"] = split_tracks(tracks[tracks["genre"] != "pop"], 0)
    tracks["split"] = tracks["split"].fillna("train")
    with refused(f"of pop to train on .pop.*1.*: {reason}"):
        write_processed(corpus_at(corpus), tracks, paths.processed, {})


def test_one_genre_is_refused(write_track, noise, paths):
    for number in range(7):
        corpus = write_track(f"pop/{number}.wav", noise(number))
    with pytest.raises(ValueError, match="usable tracks of pop alone"):
        preprocess(corpus, paths)


def test_a_split_without_usable_tracks_is_refused(corpus, paths):
    tracks = audit(corpus).assign(split="train")
    with refused("no usable track for test, val"):
        write_processed(corpus_at(corpus), tracks, paths.processed, {})
    assert not (paths.processed / "metadata.json").exists()


def test_the_fingerprint_belongs_to_the_data(corpus, paths):
    first = preprocess(corpus, paths)["fingerprint"]
    threads = torch.get_num_threads()
    for jobs, n in ((1, 1), (1, 2), (2, 2)):
        torch.set_num_threads(n)
        assert preprocess(corpus, paths, n_jobs=jobs)["fingerprint"] == first
        assert torch.get_num_threads() == n
    torch.set_num_threads(threads)
    tracks = audit(corpus)
    tracks["split"] = split_tracks(tracks, 0)
    tracks["genre"] = tracks["genre"].replace("1990", "pop")  # other labels
    assert write_processed(corpus_at(corpus), tracks, paths.processed, {})["fingerprint"] != first
    track = corpus / "1990" / "1990.00002.wav"
    samples, rate = sf.read(track, dtype="int16")
    samples[40_000] = 32_000
    sf.write(track, samples, rate)
    assert preprocess(corpus, paths)["fingerprint"] != first


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError("no space left")])
def test_an_interrupted_run_leaves_nothing_half_written(corpus, paths, monkeypatch, stop):
    leftover = paths.processed / ".part" / "train" / ".X-killed.npy"
    leftover.parent.mkdir(parents=True)
    leftover.touch()  # of a killed run
    whole = preprocess(corpus, paths)
    assert not list(paths.processed.rglob(".*"))
    before = (paths.processed / "val" / "X.npy").read_bytes()
    in_order = preprocessor.in_order

    def interrupted(corpus, work, rows, n_jobs):
        blocks = in_order(corpus, work, rows, n_jobs)
        yield next(blocks)
        if rows["split"].iloc[0] == "val":
            assert load_metadata(paths) == whole
            assert list(paths.processed.glob(".part/val/.X-*.npy"))
            raise stop
        yield from blocks

    with monkeypatch.context() as patch:
        patch.setattr(preprocessor, "in_order", interrupted)
        with pytest.raises(type(stop)):
            preprocess(corpus, paths)
    assert load_metadata(paths) == whole
    assert not list(paths.processed.glob("**/.*"))
    assert (paths.processed / "val" / "X.npy").read_bytes() == before
    assert preprocess(corpus, paths) == whole
    assert (paths.processed / "val" / "X.npy").read_bytes() == before


def test_arrays_that_take_their_places_count_only_when_all_have(corpus, paths, monkeypatch):
    preprocess(corpus, paths)

    def take_one_place(part, name):
        os.replace(part, name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", take_one_place)
        with pytest.raises(KeyboardInterrupt):
            preprocessor._take_places(fill(paths.processed / ".part"), paths.processed)
    with pytest.raises(FileNotFoundError, match=r"metadata\.json is missing.*`make preprocess`"):
        load_split(paths, "train")


def fill(part):
    for name in ("metadata.json", "a/X.npy", "z/X.npy"):
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_text(name)
    return part


def test_arrays_need_the_audit_that_they_were_made_of(corpus, paths):
    preprocess(corpus, paths)
    tracks = paths.processed / "tracks.csv"
    with tracks.open("a") as file:
        file.write("\n")
    with refused("run `make preprocess` again"):
        load_split(paths, "train")
    tracks.unlink()
    with pytest.raises(FileNotFoundError, match=r"tracks\.csv is missing.*run `make explore`"):
        load_metadata(paths)


def test_the_spectrogram_of_a_whole_track_begins_with_its_first_segment(corpus):
    track = next(audit(corpus).itertuples())
    whole = to_unit(corpus_at(corpus).log_mel(track))
    first = segment_audio(read_audio(corpus / track.path), 1)[0]
    assert whole.shape == (128, 1 + round(3.1 * 22_050) // 512)
    assert whole.max() == 1
    apart = to_decibel(whole[:, :127]) - to_decibel(first[:, :127])
    assert np.ptp(apart) < 0.01


def test_segments_of_a_log_mel_start_every_129_2_frames():
    starts = [round(number * 129.2) for number in range(10)]
    assert log_mel_starts(10).tolist() == starts
    decibel = -np.abs(np.random.default_rng(0).normal(0, 20, (128, 1293))).astype(np.float32)
    segments = segment_log_mel(decibel, 10)
    assert segments.shape == (10, 128, 130)
    for start, x in zip(starts, segments, strict=True):
        part = decibel[:, start : start + 130]
        expected = np.maximum(part - part.max(), -80)
        np.testing.assert_allclose(to_decibel(x), expected, atol=1e-4)


def noisy_archive(folder):
    """Write an archive of two genres of seven tracks, the last of them short; return it."""
    rng = np.random.default_rng(0)
    exact = rng.random((14, 1293)) < 0.7
    X = rng.integers(1, 256, (14, 128, 1293), dtype=np.uint8) * exact[:, None]
    names = [f"{genre}.{number:05d}" for genre in ("a", "b") for number in range(7)]
    arrays = {"X": X, "exact": exact, "floor_db": np.full(14, -80, np.float32), "names": names}
    arrays |= {"n_frames": [1293] * 13 + [1250], "y": ["a"] * 7 + ["b"] * 7, "genres": ["a", "b"]}
    np.savez(folder / "tiny_logmel.npz", **arrays)
    return folder / "tiny_logmel.npz", arrays


def test_an_archive_of_log_mels_gives_the_segments_that_a_track_fills(tmp_path, paths):
    archive, arrays = noisy_archive(tmp_path)
    X, exact, names = arrays["X"], arrays["exact"], arrays["names"]
    metadata = preprocess(archive, paths)
    assert sum(metadata["n_segments"].values()) == 13 * 10 + 9
    for split in SPLITS:
        data = load_split(paths, split)
        segments, table = data.X, data.table
        assert segments.dtype == np.float32
        for track, rows in table.groupby("track"):
            i = names.index(track)
            measured = exact[i] & (np.arange(1293) < arrays["n_frames"][i])
            n = 9 if i == 13 else 10
            expected = segment_log_mel(fill_frames(X[i], measured, -80), n)
            np.testing.assert_allclose(segments[rows["segment"]], expected, atol=1e-6)
            starts = [round(number * 129.2) * 512 / 22_050 for number in range(n)]
            assert rows["start_s"].tolist() == pytest.approx(starts, abs=1e-4)


def test_crops_at_the_starts_of_segments_are_those_segments(tmp_path, paths):
    preprocess(noisy_archive(tmp_path)[0], paths)
    data = load_split(paths, "train")
    X, y, table = data.X, data.y, data.table
    tracks, lengths, genres = load_whole_tracks(paths)
    names = list(table["track"].unique())
    assert tracks.shape == (len(names), 128, 1292)
    assert genres.tolist() == [y[table["track"] == name][0] for name in names]
    for row in table.itertuples():
        i, start = names.index(row.track), round(row.start_s * 22_050 / 512)
        crop = tracks[i, :, start : start + 130].astype(np.float32)
        same = (crop + 1 - crop.max()).clip(0, 1)[:, : lengths[i] - start]
        np.testing.assert_allclose(same, X[row.segment][:, : same.shape[1]], atol=1e-3)


def test_whole_tracks_of_audio_follow_their_segments(corpus, paths):
    preprocess(corpus, paths)
    data = load_split(paths, "train")
    X, table = data.X, data.table
    tracks, lengths, _ = load_whole_tracks(paths)
    counts = table.groupby("track", sort=False).size().to_numpy()
    assert lengths.tolist() == (counts * 66_150 // 512 + 1).tolist()
    crops = CropDataset(tracks, lengths, np.zeros(len(tracks)))
    crop = crops._crop(tracks[0], 0).astype(np.float32)
    difference = (crop + 1 - crop.max()).clip(0, 1) - X[0]
    assert np.abs(difference).max() < 0.01


def test_crops_of_audio_have_the_edges_of_segments(noise):
    """Anywhere in a track, at frames that no segment begins with."""
    samples = noise(1, seconds=9)
    tracks = _pad(edged_log_mel(samples)).astype(np.float16)
    crops = CropDataset(tracks, np.array([387]), np.array([0]))
    for start in (37, 200):
        segment = segment_audio(samples[start * 512 : start * 512 + 66_150], 1)[0]
        crop = crops._crop(tracks[0], start).astype(np.float32)
        apart = np.abs((crop + 1 - crop.max()).clip(0, 1) - segment)
        assert to_decibel(1 + apart.max()) < 0.1
        plain = tracks[0, 0, :, start : start + 130].astype(np.float32)
        before = np.abs((plain + 1 - plain.max()).clip(0, 1) - segment).mean(axis=0)
        assert (80 * before[[0, -1]] > 2).all()


def test_a_track_changed_since_the_audit_is_refused(corpus):
    tracks = audit(corpus)
    row = next(tracks.itertuples())
    samples = corpus_at(corpus).read(row)
    assert np.array_equal(samples, read_audio(corpus / row.path))
    (corpus / row.path).write_bytes((corpus / tracks["path"][1]).read_bytes())
    with pytest.raises(ValueError, match=r"is not the file that was audited.*make explore"):
        corpus_at(corpus).read(row)
    (corpus / row.path).unlink()
    with pytest.raises(ValueError, match=r"cannot be read any more \(.*No such file.*restore it"):
        corpus_at(corpus).read(row)


def test_batches_hold_every_segment_once_with_its_label():
    X = np.arange(10, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    dataset = SegmentDataset(X, np.arange(10))
    torch.manual_seed(0)
    for shuffle, size in ((False, 4), (True, 5)):
        batches = list(make_loader(dataset, size, shuffle))
        shapes = [(n, 1, 2, 3) for n in ((5, 5) if shuffle else (4, 4, 2))]
        assert [tuple(images.shape) for images, _ in batches] == shapes
        images, labels = map(torch.cat, zip(*batches, strict=True))
        assert sorted(labels.tolist()) == list(range(10))
        assert images[:, 0, 0, 0].tolist() == labels.tolist()
        assert (labels.tolist() == list(range(10))) is not shuffle


@pytest.mark.parametrize(
    ("n", "shuffle", "sizes"),
    [
        (9, True, [4, 4]),
        (9, False, [4, 4, 1]),
        (10, True, [4, 4, 2]),
        (8, True, [4, 4]),
        (1, True, [1]),
    ],
)
def test_a_last_batch_of_less_than_half_is_dropped_in_training_unless_it_is_all(n, shuffle, sizes):
    dataset = SegmentDataset(np.zeros((n, 2, 3), np.float32), np.zeros(n, np.int64))
    assert [len(labels) for _, labels in make_loader(dataset, 4, shuffle)] == sizes


@pytest.mark.parametrize(
    "value", [math.nan, -math.inf, np.float32("nan"), np.array([1, np.nan]), {1}]
)
def test_json_without_meaning_is_refused_and_the_old_file_stays(tmp_path, value):
    path = write_json(tmp_path / "result.json", {"value": 1})
    with pytest.raises((ValueError, TypeError), match=r"not JSON compliant|set does not belong"):
        write_json(path, {"value": value})
    assert read_json(path) == {"value": 1}


def test_json_returns_what_was_written(tmp_path):
    values = {"n": np.int64(3), "share": np.float64(0.1), "row": np.arange(3), "path": tmp_path}
    written = read_json(write_json(tmp_path / "new" / "result.json", values))
    assert written == {"n": 3, "share": 0.1, "row": [0, 1, 2], "path": str(tmp_path)}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"[1]", "a table of parts"),
        (b'{"path": "x"}', "lacks corpus"),
        (b"\xff{}", "whole JSON"),
        (b'{"corpus": "x", "pa', "whole JSON"),
    ],
)
def test_json_of_something_else_is_named_in_one_sentence(tmp_path, content, found):
    path = tmp_path / "source.json"
    path.write_bytes(content)
    with refused(f"{re.escape(str(path))} .*{found}"):
        read_json(path, {"corpus", "path"})
