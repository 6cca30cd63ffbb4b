import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from src.data import synthetic
from src.data.synthetic import GENRES, N_SAMPLES, PARTS, make_corpus, render, render_parts


@pytest.fixture
def quick_render(monkeypatch):
    """Replace composing by a constant, for tests of files alone; count the calls."""
    calls = []

    def constant(genre, index, seed):
        calls.append((genre, index))
        return np.full(N_SAMPLES, 0.5, np.float32)

    monkeypatch.setattr(synthetic, "render", constant)
    return calls


def test_same_seed_gives_same_samples():
    np.testing.assert_array_equal(render("reggae", 3), render("reggae", 3))


def test_tracks_differ_by_index_seed_and_genre():
    tracks = [render("pop", 0), render("pop", 1), render("pop", 0, seed=7), render("rock", 0)]
    for i, track in enumerate(tracks):
        for other in tracks[:i]:
            assert abs(np.corrcoef(track, other)[0, 1]) < 0.5


def test_a_track_is_thirty_audible_seconds_in_range():
    track = render("metal", 0)
    assert track.shape == (661_500,)
    assert track.dtype == np.float32
    assert np.abs(track).max() <= 1
    seconds = track.reshape(30, -1)
    assert seconds.std(axis=1).min() > 1e-3


def test_parts_sum_to_the_mix_before_its_last_stage():
    parts = render_parts("country", 1)
    assert tuple(parts) == PARTS
    _, recording = synthetic._perform("country", 1, 42)
    np.testing.assert_allclose(
        synthetic.finish(sum(parts.values()), recording), render("country", 1), atol=1e-5
    )


def test_parts_do_not_leak_into_each_other(monkeypatch):
    monkeypatch.setitem(synthetic.STYLES, "jazz", [synthetic.STYLES["jazz"][0] | {"grooves": "none"}])
    parts = render_parts("jazz", 0)
    assert not parts["drums"].any()
    assert all(parts[part].any() for part in ("bass", "harmony", "lead"))


def test_classical_has_no_drums():
    for index in range(2):
        parts = render_parts("classical", index)
        assert not parts["drums"].any()
        assert parts["harmony"].any()


def test_every_pattern_fills_the_bar_of_its_style():
    for styles in synthetic.STYLES.values():
        for style in styles:
            rows = style["bass"].split() + style["comp"].split()
            for groove in style["grooves"].split():
                rows += synthetic.GROOVES[groove].values()
            assert len(set(map(len, rows))) == 1, rows


def test_unknown_genre_is_refused():
    with pytest.raises(ValueError, match="unknown genre 'hip-hop'.*hiphop"):
        render("hip-hop", 0)


def test_corpus_has_the_kaggle_layout_and_format(tmp_path, quick_render):
    assert make_corpus(tmp_path, 2, n_jobs=1) == tmp_path
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert names == {f"{genre}/{genre}.0000{i}.wav" for genre in GENRES for i in range(2)}
    info = soundfile.info(tmp_path / "jazz" / "jazz.00001.wav")
    assert (info.samplerate, info.channels, info.frames) == (22_050, 1, 661_500)
    assert (info.format, info.subtype) == ("WAV", "PCM_16")


def test_files_are_the_rendered_track_in_any_process(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "GENRES", ("blues", "disco"))
    make_corpus(tmp_path, 1, n_jobs=2)
    samples, _ = soundfile.read(tmp_path / "disco" / "disco.00000.wav", dtype="float32")
    np.testing.assert_allclose(samples, render("disco", 0), atol=2**-15)


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


def test_files_appear_by_renaming_within_their_folder(tmp_path, quick_render, monkeypatch):
    moves, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moves.append((a, b)), replace(a, b)))
    make_corpus(tmp_path, 1, n_jobs=1)
    assert all(a.parent == b.parent and a.name.startswith(".") for a, b in moves)
    assert len(moves) == len(GENRES)
