import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from conftest import LONG

from src.data.features import mel_frequencies
from src.data.segments import Segments
from src.explainability import sonify
from src.explainability.attributions import Subject, blurred_random
from src.explainability.selection import Attacked, Case
from src.explainability.sonify import filter_by_map, write_parts
from src.paths import RunPaths

RATE = 22_050


def tone(hertz, seconds=3.0):
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)


def level(samples):
    return np.sqrt(np.mean(np.square(samples[2048:-2048])))


def test_a_map_of_ones_returns_the_clip_and_one_of_zeros_silence(noise):
    clip = noise(1, 3.0)
    np.testing.assert_allclose(filter_by_map(clip, np.ones((128, 130))), clip, atol=1e-5)
    assert np.abs(filter_by_map(clip, np.zeros((128, 130)))).max() == 0


def test_a_clip_is_what_its_map_keeps_and_what_it_leaves_out(noise):
    clip, heat = noise(1, 3.0), np.random.default_rng(0).random((128, 130))
    kept, left = filter_by_map(clip, heat), filter_by_map(clip, 1 - heat)
    np.testing.assert_allclose(kept + left, clip, atol=1e-5)
    assert min(level(kept), level(left)) > 0.1


@pytest.mark.parametrize("hertz", [300, 1000, 6000])
def test_a_tone_is_kept_where_the_map_marks_its_band_and_time(hertz):
    heat = np.zeros((128, 130))
    band = np.abs(mel_frequencies() - hertz).argmin()
    heat[max(0, band - 3) : band + 4, :60] = 1
    kept = filter_by_map(tone(hertz), heat)
    half = 60 * 512
    assert level(kept[: half - 4096]) == pytest.approx(level(tone(hertz)), rel=0.02)
    assert level(kept[half + 4096 :]) < 1e-3
    assert level(filter_by_map(tone(2.5 * hertz), heat)) < 0.02


def test_files_hold_the_clip_and_both_parts_of_each_map(tmp_path, noise):
    clip = noise(2, 3.0)
    heat = np.random.default_rng(0).random((128, 130))
    paths = write_parts(tmp_path / "new", "jazz_1", clip, {"clean": heat})
    assert list(paths) == ["clip", "clean_kept", "clean_left_out"]
    sounds = {kind: sf.read(path) for kind, path in paths.items()}
    assert {(rate, len(samples)) for samples, rate in sounds.values()} == {(RATE, 66_150)}
    both = sounds["clean_kept"][0] + sounds["clean_left_out"][0]
    np.testing.assert_allclose(both, sounds["clip"][0], atol=1e-3)
    np.testing.assert_allclose(sounds["clip"][0], clip, atol=1e-3)


def test_flipped_segments_are_written_in_place_of_earlier_ones(tmp_path, noise, monkeypatch):
    monkeypatch.setattr("src.paths.ROOT", tmp_path)
    table = pd.DataFrame({"segment": [0, 1, 2], "track": ["a", "b", LONG], "start_s": 0.0})
    X, y = np.zeros((3, 128, 130), dtype=np.float32), np.zeros(3, dtype=int)
    subject = Subject("tiny", None, "", 1, blurred_random((2, 128, 130), 1), X[0])
    case = Case(subject, Segments(X, y, table), {0.01: Attacked(X, np.array([0, 1, 1]))})
    samples = [noise(k, 3.0) for k in range(3)]
    monkeypatch.setattr(
        sonify, "read_segments", lambda paths, rows: [samples[k] for k in rows.segment]
    )
    options = RunPaths("tiny"), case, "frequency_prior", 0.01
    for n, names in ((2, ["b", LONG]), (1, ["b"])):
        written = sonify.write_flipped(*options, n)
        assert [(row.track, genre) for row, genre, _ in written] == [(name, 1) for name in names]
        files = [path for *_, sounds in written for path in sounds.values()]
        assert sorted((tmp_path / "results/audio/tiny/explanations").iterdir()) == sorted(files)
    kept, _ = sf.read(written[0][2]["attacked_kept"])
    expected = filter_by_map(samples[1], subject.prototypes[1])  # of the predicted genre
    np.testing.assert_allclose(kept, expected, atol=1e-3)
    assert sonify.write_flipped(*options, 0) == []
