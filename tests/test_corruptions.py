import numpy as np
import pandas as pd
import pytest
import torch
from conftest import corpus_at

from src.attacks.corruptions import (
    CORRUPTIONS,
    corrupt,
    corrupt_segments,
    corruption_table,
    excerpt,
)
from src.data.corpus import LogMelArchive, audit_table
from src.data.features import SEGMENT_SAMPLES, LogMel
from src.models import runs
from src.paths import RunPaths
from src.results import write_json

RATE = 22_050


@pytest.fixture(scope="module")
def music():
    """Return five seconds of a chord that swells and beats, with some hiss."""
    times = np.arange(5 * RATE) / RATE
    chord = sum(np.sin(2 * np.pi * f * times) / f**0.5 for f in (220, 277, 330, 880, 3520))
    hiss = np.random.default_rng(0).normal(0, 0.01, len(times))
    return ((chord * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * times))) * 0.1 + hiss).astype(np.float32)


def log_mel(samples):
    return LogMel()(torch.from_numpy(samples[None])).numpy()[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("begin", [0, RATE, 2 * RATE])
def test_every_corruption_gives_a_whole_segment(name, begin, music):
    for severity in CORRUPTIONS[name].severities:
        samples = corrupt(name, severity, music[: begin + SEGMENT_SAMPLES + RATE], begin, seed=1)
        assert (samples.shape, samples.dtype) == ((SEGMENT_SAMPLES,), np.float32)
        assert np.isfinite(samples).all()


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"reverberation", "none"}))
def test_a_corruption_changes_more_the_harder_it_is(name, music):
    kind = CORRUPTIONS[name]
    clean = log_mel(music[RATE : RATE + SEGMENT_SAMPLES])
    changed = [log_mel(corrupt(name, s, music, RATE, seed=1)) for s in kind.severities]
    distance = [float(np.abs(x - clean).mean()) for x in changed]
    assert distance[0] > 1e-4
    if name in ("time_stretch", "pitch_shift"):  # a beat moved by half a period is far already
        assert distance[-1] >= 0.8 * max(distance)
    else:
        assert distance == sorted(distance)


def test_white_noise_has_its_signal_to_noise_ratio(music):
    for snr in (40, 10, 0):
        clean = music[RATE : RATE + SEGMENT_SAMPLES]
        noise = corrupt("white_noise", snr, music, RATE, seed=1) - clean
        reached = 10 * np.log10(np.square(clean).mean() / np.square(noise).mean())
        assert reached == pytest.approx(snr, abs=0.3)


def test_a_low_pass_leaves_what_is_below_its_cutoff(music):
    spectrum = [
        np.abs(np.fft.rfft(x))[[660, 10560]]  # 220 and 3520 Hz in 3 s
        for x in (music[RATE : RATE + SEGMENT_SAMPLES], corrupt("low_pass", 1000, music, RATE, 1))
    ]
    loss = 20 * np.log10(spectrum[1] / spectrum[0])
    assert loss[0] > -1
    assert loss[1] < -30


def test_pitch_goes_up_by_as_much_as_stated():
    times = np.arange(5 * RATE) / RATE
    tone = np.sin(2 * np.pi * 440 * times).astype(np.float32)
    higher = corrupt("pitch_shift", 2, tone, RATE, seed=1)
    peak = np.abs(np.fft.rfft(higher)).argmax() / 3
    assert peak == pytest.approx(440 * 2 ** (2 / 12), abs=2)


def test_a_stretched_segment_begins_where_it_began_in_the_music_and_is_as_fast_as_stated():
    clicks = np.zeros(5 * RATE, dtype=np.float32)
    clicks[RATE + RATE // 2] = 1  # half a second into the segment
    clicks = np.convolve(clicks, np.hanning(400), "same")
    for rate in CORRUPTIONS["time_stretch"].severities:
        faster = corrupt("time_stretch", rate, clicks, RATE, seed=1)
        assert np.abs(faster).argmax() / RATE == pytest.approx(0.5 / rate, abs=0.03)


def test_a_room_rings_for_as_long_as_stated():
    clap = np.zeros(5 * RATE, dtype=np.float32)
    clap[RATE] = 1
    late = []
    for seconds in CORRUPTIONS["reverberation"].severities:
        rung = np.square(corrupt("reverberation", seconds, clap, RATE, seed=1))
        assert rung[0] > 0.5  # the clap itself, not delayed
        tenth = round(seconds * RATE / 10)
        level = [10 * np.log10(rung[k * tenth : (k + 1) * tenth].mean()) for k in (1, 6)]
        assert level[0] - level[1] == pytest.approx(30, abs=2)
        late.append(rung[RATE // 10 :].sum())
    assert late == sorted(late)


def test_corruptions_depend_on_the_seed_alone(music):
    for name in ("white_noise", "reverberation"):
        severity = CORRUPTIONS[name].severities[-1]
        one, two, other = (corrupt(name, severity, music, 0, seed) for seed in (1, 1, 2))
        assert np.array_equal(one, two)
        assert not np.array_equal(one, other)


def test_an_excerpt_holds_its_segment_and_what_is_around_it():
    samples = np.arange(6 * RATE, dtype=np.float32)
    for start in (0, RATE // 2, 2 * RATE, 3 * RATE):
        piece, begin = excerpt(samples, start)
        assert np.array_equal(
            piece[begin : begin + SEGMENT_SAMPLES], samples[start : start + SEGMENT_SAMPLES]
        )
        assert len(piece) >= SEGMENT_SAMPLES + RATE
        assert begin == min(start, RATE)


@pytest.fixture
def corpus(write_track, noise):
    for number, genre in enumerate("abc"):
        folder = write_track(f"{genre}/{genre}.00000.wav", noise(number, seconds=6.5))
    segments = pd.DataFrame({"track": np.repeat([f"{g}.00000" for g in "abc"], 2)})
    segments = segments.assign(segment=range(6), start_s=[0.0, 3] * 3)
    corpus = corpus_at(folder)
    return corpus, audit_table(corpus, 1), segments


def test_segments_go_through_the_front_end_in_their_order(corpus, noise, monkeypatch):
    for name in set(CORRUPTIONS) - {"none", "clipping"}:
        monkeypatch.delitem(CORRUPTIONS, name)
    corpus, tracks, segments = corpus
    rows = segments.iloc[[3, 0, 5]]
    made = list(corrupt_segments(corpus, tracks, rows, seed=1))
    assert [(name, severity) for name, severity, *_ in made] == [
        ("none", 0),
        *(("clipping", s) for s in CORRUPTIONS["clipping"].severities),
    ]
    for x, (number, start) in zip(made[0][3], [(1, 3), (0, 0), (2, 3)], strict=True):
        samples = noise(number, 6.5)[start * RATE :][:SEGMENT_SAMPLES]
        np.testing.assert_allclose(x, log_mel(samples), atol=1e-3)  # 16 bits


def test_log_mels_cannot_be_corrupted(tmp_path, corpus):
    archive = LogMelArchive(tmp_path / "x.npz", "x")
    with pytest.raises(ValueError, match="has log-mels and no audio"):
        next(corrupt_segments(archive, *corpus[1:], seed=1))


def test_the_table_counts_each_checkpoint_at_each_severity(slim_model, clips):
    made = [("none", 0, None, clips.X), ("mp3", 8, None, clips.X[::-1])]
    models = {"documented": slim_model, "robust": slim_model}
    table = corruption_table(models, made, clips, "tiny", "random")
    assert ",".join(table) == (
        "corpus,split,checkpoint,corruption,severity,unit,accuracy,low,high,n_segments,n_tracks"
    )
    assert table["accuracy"].iloc[:2].tolist() == [22 / 24] * 2
    assert (table["accuracy"].iloc[2:] < 0.9).all()
    assert table["unit"].tolist() == ["", "", "kbit/s", "kbit/s"]
    assert corruption_table(models, [], clips, "tiny", "random").empty


def test_models_trained_on_other_arrays_or_deleted_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("src.paths.ROOT", tmp_path)
    monkeypatch.setattr(runs, "load_metadata", lambda paths: {"fingerprint": "present"})
    monkeypatch.setattr(runs, "load_named", lambda paths, name: (f"model {name}", {}))
    run = RunPaths("run")
    trained = {"b": "present", "a": "present", "old": "past", "deleted": "present"}
    for name, fingerprint in trained.items():
        facts = {"checkpoint": name, "fingerprint": fingerprint}
        write_json(run.metrics / f"training_{name}.json", facts)
        run.checkpoint(name).parent.mkdir(parents=True)
        run.checkpoint(name).touch()
    run.checkpoint("deleted").unlink()
    assert runs.load_trained(run) == {"a": "model a", "b": "model b"}
