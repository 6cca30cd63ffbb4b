from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

from src.data import synthetic
from src.data.synthetic import (
    GENRES,
    N_SAMPLES,
    PARTS,
    compose,
    make_corpus,
    render,
    render_parts,
    sound,
)
from src.data.synthetic.grammars import GROOVES, STYLES


@pytest.fixture
def quick_render(monkeypatch):
    """Replace composing by a constant, for tests of files alone; count the calls."""
    calls = []

    def constant(genre, index, seed):
        calls.append((genre, index))
        return np.full(N_SAMPLES, 0.5, np.float32)

    monkeypatch.setattr(synthetic, "render", constant)
    return calls


@cache
def track(genre, index, seed=42):
    """Return a rendered track that several tests look at."""
    return render(genre, index, seed)


@cache
def parts(genre, index):
    return render_parts(genre, index)


def test_same_seed_gives_same_samples():
    np.testing.assert_array_equal(track("pop", 0), render("pop", 0))


def test_the_music_is_that_of_its_version():
    levels = track("pop", 0).reshape(10, -1).std(axis=1)
    expected = [0.0668, 0.0607, 0.0694, 0.0659, 0.0639, 0.0644, 0.0592, 0.0644, 0.0708, 0.066]
    assert (synthetic.VERSION, levels.tolist()) == (1, pytest.approx(expected, abs=1e-4))


def test_tracks_differ_by_index_seed_and_genre():
    tracks = [track("pop", 0), track("pop", 1), track("pop", 0, seed=7), track("classical", 0)]
    for i, one in enumerate(tracks):
        for other in tracks[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


def test_a_track_is_thirty_audible_seconds_in_range():
    samples = track("pop", 1)
    assert samples.shape == (661_500,)
    assert samples.dtype == np.float32
    assert 0.25 < np.abs(samples).max() <= 1
    assert samples.reshape(30, -1).std(axis=1).min() > 1e-3


def test_parts_sum_to_the_mix_before_its_last_stage():
    assert tuple(parts("pop", 0)) == PARTS
    _, recording = synthetic._perform("pop", 0, 42)
    mix = sum(parts("pop", 0).values())
    np.testing.assert_allclose(sound.finish(mix, recording), track("pop", 0), atol=1e-5)


def test_each_part_is_heard_alone():
    notes = [compose.Note(1.0, 2.0, 60, 100)]
    for part in range(4):
        score = [notes if part == other else [] for other in range(4)]
        stems = sound.synthesise(np.random.default_rng(0), score, [0, 33, 0, 40], slide=0)
        np.testing.assert_array_equal(stems.any(axis=1), np.arange(4) == part)


def test_classical_has_harmony_and_no_drums():
    assert not parts("classical", 0)["drums"].any()
    assert parts("classical", 0)["harmony"].any()


def test_a_genre_without_drums_borrows_none(monkeypatch):
    monkeypatch.setattr(compose, "BORROW", 1)
    for index in range(20):
        style = compose.draw_style(np.random.default_rng(index), "classical")
        assert style["grooves"] == "none"


def test_every_pattern_fills_the_bar_of_its_style():
    for styles in STYLES.values():
        for style in styles:
            rows = style["bass"].split() + style["comp"].split()
            for groove in style["grooves"].split():
                rows += GROOVES[groove].values()
            assert len(set(map(len, rows))) == 1, rows


def test_unknown_genre_is_refused():
    with pytest.raises(ValueError, match=r"unknown genre 'hip-hop'.*hiphop"):
        render("hip-hop", 0)


def test_corpus_has_the_kaggle_layout_and_format(tmp_path, quick_render):
    assert make_corpus(tmp_path, 2, n_jobs=1) == tmp_path
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert names == {f"{genre}/{genre}.0000{i}.wav" for genre in GENRES for i in range(2)}
    info = soundfile.info(tmp_path / "jazz" / "jazz.00001.wav")
    assert (info.samplerate, info.channels, info.frames) == (22_050, 1, 661_500)
    assert (info.format, info.subtype) == ("WAV", "PCM_16")


def test_files_are_the_rendered_track_in_any_process(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "GENRES", GENRES[:2])
    make_corpus(tmp_path, 1, n_jobs=2)
    samples, _ = soundfile.read(tmp_path / "classical" / "classical.00000.wav", dtype="float32")
    np.testing.assert_allclose(samples, track("classical", 0), atol=2**-15)


def test_corpus_is_resumed_not_rewritten(tmp_path, quick_render):
    make_corpus(tmp_path, 1, n_jobs=1)
    old = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")}
    quick_render.clear()
    make_corpus(tmp_path, 2, n_jobs=1)
    assert sorted(quick_render) == [(genre, 1) for genre in GENRES]
    assert {path: path.stat().st_mtime_ns for path in old} == old


def test_interrupted_write_leaves_no_half_file(tmp_path, quick_render, monkeypatch):
    def interrupt(*args, **kwargs):
        Path(args[0]).write_bytes(b"RIFF")
        raise KeyboardInterrupt

    monkeypatch.setattr(soundfile, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_corpus(tmp_path, 1, n_jobs=1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
