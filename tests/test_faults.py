"""What happens under bad input and failing disks: with the tests beside it, docs/reliability.md."""

import ast
import errno
import os
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from conftest import audit, corpus_at, only_row, refused
from hypothesis import example, given, settings
from hypothesis import strategies as st

from src.attacks.adversarial import Search, attack
from src.attacks.records import Target, make_records
from src.attacks.suite import sweep
from src.data.audio import find_tracks, read_audio
from src.data.corpus import load_tracks
from src.data.features import segment_audio
from src.data.log_mel_archive import read_archive
from src.data.segments import (
    Segments,
    draw_segments,
    load_metadata,
    load_split,
    load_whole_tracks,
)
from src.results import read_json, write_csv, write_json
from src.statistics import FEWEST_TRACKS, mean_over_tracks

ROOT = Path(__file__).parents[1]


def cut(corpus, name, kept):
    """Keep the first bytes of a file, given by number or share."""
    path = corpus / name
    path.write_bytes(path.read_bytes()[: round(kept if kept > 1 else path.stat().st_size * kept)])


# Audio files


@pytest.mark.parametrize("kept", [3, 11, 20, 40, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("ending", ["wav", "float.wav", "au", "flac", "ogg", "mp3"])
def test_a_cut_track_is_never_used_as_if_it_were_whole(write_track, noise, ending, kept):
    options = {"subtype": "FLOAT"} if ending == "float.wav" else {}
    corpus = write_track(f"rock/rock.00000.{ending}", noise(0, seconds=10), **options)
    assert only_row(corpus).used
    cut(corpus, f"rock/rock.00000.{ending}", kept)
    row = only_row(corpus)
    assert not row.used
    assert row.reason.startswith(("truncated: ", "unreadable: ", "too short: "))
    assert kept > 1 or not row.reason.startswith("too short: ")


def test_an_mp3_with_a_tag_before_its_header_is_whole_until_it_is_cut(write_track, noise):
    corpus = write_track("rock/rock.00000.mp3", noise(0))
    path = corpus / "rock" / "rock.00000.mp3"
    path.write_bytes(b"ID3\x04\0\0\0\0\x07\x68" + b"\0" * 1000 + path.read_bytes() + b"TAG" * 42)
    assert only_row(corpus).used
    cut(corpus, "rock/rock.00000.mp3", 0.7)
    assert only_row(corpus).reason.startswith("truncated: ")


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_a_wav_of_any_width_gives_the_same_segments(write_track, subtype):
    rng = np.random.default_rng(0)
    samples = np.round(rng.uniform(-100, 100, 70_000)) / 128  # exact in 8 bits
    corpus = write_track("rock/rock.00000.wav", samples, subtype=subtype)
    assert only_row(corpus).used
    read = read_audio(corpus / "rock" / "rock.00000.wav")
    np.testing.assert_allclose(read, samples, atol=1e-6)


@pytest.mark.parametrize("options", [{"rate": 500}, {"rate": 2_000_000}, {"channels": 9}])
def test_an_unlikely_rate_or_number_of_channels_is_told(write_track, noise, options):
    samples = np.tile(noise(0, seconds=0.5)[:, None], options.get("channels", 1))
    corpus = write_track("rock/rock.00000.wav", samples, rate=options.get("rate", 22_050))
    assert re.match(r"unreadable: \d channels at \d+ Hz, the header may", only_row(corpus).reason)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("factor", [1e12, 1e19, 1e30])
def test_samples_too_large_for_a_spectrogram_are_damaged(write_track, noise, factor):
    samples = noise(0) * np.float32(factor)
    corpus = write_track("rock/rock.00000.wav", samples, subtype="FLOAT")
    row = only_row(corpus)
    assert not row.used
    assert re.match(r"damaged: samples up to [\d.]+e\+\d+, full scale is 1", row.reason)


def test_of_an_hour_no_more_than_a_minute_is_read(write_track, noise, monkeypatch):
    corpus = write_track("rock/rock.00000.wav", noise(0, seconds=3600, rate=1000), rate=1000)
    taken = []
    real = sf.SoundFile.read

    def counting(file, frames=-1, **options):
        samples = real(file, frames, **options)
        taken.append(samples.shape)
        return samples

    monkeypatch.setattr(sf.SoundFile, "read", counting)
    row = only_row(corpus)
    assert (row.used, row.n_segments, row.duration_s) == (True, 10, 3600)
    assert len(corpus_at(corpus).read(row)) == 60 * 22_050
    assert taken == [(60_000, 1)] * 2


def test_the_first_segments_do_not_depend_on_the_length_of_a_track(write_track, noise):
    samples = noise(0, seconds=70)
    write_track("rock/rock.00000.wav", samples)
    corpus = write_track("rock/rock.00001.wav", samples[: 30 * 22_050])
    long, short = (corpus_at(corpus).read(row) for row in audit(corpus).itertuples())
    one, two = (segment_audio(s, 10) for s in (long, short))
    assert np.array_equal(one, two)


def test_permission_denied_is_a_reason(write_track, noise, monkeypatch):
    corpus = write_track("rock/rock.00000.wav", noise(0))

    def refuse(path, *args, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("src.data.audio._File", refuse)
    row = only_row(corpus)
    assert not row.used
    assert row.reason.startswith("unreadable: [Errno 13] Permission denied: 'rock.00000.wav';")


def test_a_folder_that_cannot_be_listed_is_refused_not_skipped(write_track, noise, monkeypatch):
    write_track("blues/blues.00000.wav", noise(0))
    corpus = write_track("rock/rock.00000.wav", noise(1))
    real = os.scandir

    def refuse(path):
        if str(path).endswith("rock"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with refused(r"rock cannot be listed \(Permission denied\)", PermissionError):
        audit(corpus)


NAMES = ["Música Ünïcode", "hip hop", "a.b", "rock, roll", 'the "best"', "日本", "NA", "null", "1"]


def test_genres_of_any_name_come_back_from_the_table(write_track, noise, paths):
    for number, genre in enumerate([*NAMES, *["1980"] * 7]):
        corpus = write_track(f"{genre}/{genre}.{number:05d}.wav", noise(number // 2))
    (corpus / "1980" / "1980.00099.wav").touch()
    tracks = audit(corpus)
    assert tracks["used"].sum() == len(NAMES) + 7
    assert set(tracks["genre"]) == {*NAMES, "1980"}
    write_csv(paths.processed / "tracks.csv", tracks)
    pd.testing.assert_frame_equal(load_tracks(paths), tracks, check_dtype=False)


def test_a_name_that_is_not_text_is_told(write_track, noise):
    corpus = write_track("rock/rock.00000.wav", noise(0))
    odd = os.fsencode(corpus / "rock") + b"/rock.caf\xe9.wav"
    try:
        Path(os.fsdecode(odd)).write_bytes((corpus / "rock" / "rock.00000.wav").read_bytes())
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    tracks = audit(corpus)
    assert tracks["used"].tolist() == [True, False]
    assert tracks["reason"][1].startswith("name: ")
    tracks.to_csv(corpus / "tracks.csv")


def test_links_are_followed_and_loops_end(write_track, noise, tmp_path):
    corpus = write_track("rock/rock.00000.wav", noise(0))
    elsewhere = tmp_path / "elsewhere" / "jazz"
    elsewhere.mkdir(parents=True)
    sf.write(elsewhere / "jazz.00000.wav", noise(1), 22_050)
    (corpus / "jazz").symlink_to(elsewhere)
    (corpus / "rock" / "rock.00001.wav").symlink_to(tmp_path / "gone.wav")
    for name in ("up", "also up"):
        (corpus / "rock" / name).symlink_to(corpus)
    (corpus / "itself").symlink_to(corpus / "itself")
    tracks = audit(corpus)
    assert tracks["track"].tolist() == ["jazz.00000", "rock.00000", "rock.00001"]
    assert tracks["used"].tolist() == [True, True, False]
    assert tracks["reason"][2].startswith("unreadable: ")


def test_a_pipe_does_not_hold_up_the_audit(write_track, noise):
    corpus = write_track("rock/rock.00000.wav", noise(0))
    os.mkfifo(corpus / "rock" / "rock.00001.wav")
    tracks = audit(corpus)
    assert tracks["reason"][1].startswith("unreadable: neither a file nor a link to one;")


def test_ten_thousand_tracks_are_listed_in_seconds(tmp_path):
    for genre in ("blues", "rock"):
        (tmp_path / genre).mkdir()
        for number in range(5000):
            os.close(os.open(tmp_path / genre / f"{genre}.{number:05d}.wav", os.O_CREAT))
    begin = time.process_time()
    tracks = find_tracks(tmp_path)
    assert len(tracks) == 10_000
    assert time.process_time() - begin < 5


# Log-mels, tables, arrays


@settings(max_examples=30, deadline=None)
@example(seed=0)
@given(seed=st.integers(0, 10_000))
def test_a_damaged_archive_is_refused_in_one_sentence(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("archive") / "logmel.npz"
    np.savez(path, X=np.zeros((1, 2, 3), np.uint8), names=np.array(["a.00000"]))
    content = bytearray(path.read_bytes())
    for position in rng.integers(len(content), size=4):
        content[position] ^= 1 << rng.integers(8)
    if seed == 0:
        content[:1] = b"?"
    path.write_bytes(content[: rng.integers(1, len(content) + 1)])
    with refused(re.escape(str(path))) as error:
        read_archive(path)
    assert "unsafely" not in str(error.value)  # no advice to unpickle


def spoil_bytes(paths):
    path = paths.processed / "test" / "X.npy"
    path.write_bytes(path.read_bytes()[:5000])


def spoil_array(edit):
    def spoil(paths):
        path = paths.processed / "test" / "X.npy"
        np.save(path, edit(np.load(path)))

    return spoil


def last(number):
    """Return an edit that sets the last value of an array."""
    return spoil_array(lambda X: np.append(X.ravel()[:-1], np.float32(number)).reshape(X.shape))


def spoil_table(edit):
    def spoil(paths):
        path = paths.processed / "segments.csv"
        edit(pd.read_csv(path)).to_csv(path, index=False)

    return spoil


def spoil_metadata(paths):
    path = paths.processed / "metadata.json"
    values = read_json(path)
    del values["n_segments"]
    write_json(path, values)


CHANGED_TABLE = r"segments\.csv is not the table that was written with the arrays"
SPOILT = {
    "half an array": (spoil_bytes, r"test/X\.npy is no whole array"),
    "fewer segments": (spoil_array(lambda X: X[:-1]), r"test/X\.npy is float32 \(\d+, 128, 130\)"),
    "fewer frames": (spoil_array(lambda X: X[:, :, :-1]), r"test/X\.npy is float32 .*, 129\)"),
    "another type": (spoil_array(lambda X: X.astype(np.float64)), r"test/X\.npy is float64"),
    "NaN": (last(np.nan), r"reaches \[nan, nan\] instead of \[0, 1\]"),
    "above 1": (last(1.5), r"reaches \[0\.\d+, 1\.5\] instead of \[0, 1\]"),
    "below 0": (last(-1), r"reaches \[-1\.0, 1\.0\] instead of \[0, 1\]"),
    "rows lost": (spoil_table(lambda table: table[:-1]), CHANGED_TABLE),
    "another order": (spoil_table(lambda table: table[::-1]), CHANGED_TABLE),
    "another genre": (
        spoil_table(lambda table: table.replace({"genre": {"a": "b"}})),
        CHANGED_TABLE,
    ),
    "a key lost": (spoil_metadata, r"metadata\.json lacks n_segments"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_what_was_changed_after_preprocessing_is_refused(written, spoil, message):
    load_split(written, "test")
    spoil(written)
    with refused(message) as error:
        load_split(written, "test")
    assert re.search("run (`make preprocess`|its stage)", str(error.value))


def test_half_an_array_of_whole_tracks_is_refused(written):
    path = written.processed / "train" / "tracks.npy"
    load_whole_tracks(written)
    tracks, content = np.load(path), path.read_bytes()
    for keep in (0.5, 0.999):
        path.write_bytes(content[: int(keep * len(content))])
        with refused(r"train/tracks\.npy is no whole array"):
            load_whole_tracks(written)
    np.save(path, tracks[:1])
    with pytest.raises(ValueError, match=r"\(1, 5, 128, \d+\), the metadata states float16"):
        load_whole_tracks(written)


def test_half_a_table_of_tracks_is_refused(written):
    path = written.processed / "tracks.csv"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="run `make preprocess` again"):
        load_metadata(written)
    text = path.read_text()
    path.write_text(text[: text.rindex("True") + 2])
    with refused("is not the audit's table"):
        load_tracks(written)


# Numbers


def test_draws_from_nothing_are_refused():
    for n in (0, -3, float("nan")):
        with pytest.raises(ValueError, match="The number of segments is"):
            draw_segments(np.array(["a"]), n, 0)
    with pytest.raises(ValueError, match="0 segments to draw from"):
        draw_segments(np.array([]), 5, 0)


def test_attacks_without_epsilons_or_iterations_are_refused():
    X, y = np.zeros((2, 128, 130), np.float32), np.zeros(2, int)
    with pytest.raises(ValueError, match="0 epsilons to attack at"):
        sweep("pgd", None, (), Search())
    with pytest.raises(ValueError, match="The number of iterations is 0"):
        attack("pgd", None, X, y, 0.01, Search(iterations=0))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    level=st.sampled_from([0, 1e-12, 1e-6, 1e-3, 1, 1e4, 2.0**31]),
    offset=st.sampled_from([0, 0.5, -3]),
    n_loud=st.integers(0, 66_150),
)
def test_spectrograms_are_finite_within_0_and_1_and_touch_1(seed, level, offset, n_loud):
    samples = np.zeros(66_150, np.float32)
    samples[:n_loud] = np.random.default_rng(seed).uniform(-1, 1, n_loud) * level + offset
    x = segment_audio(samples, 1)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert x.min() >= 0
    assert x.max() == 1  # silence, too: all of it is the loudest there is


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40),
    n_tracks=st.integers(1, 20),
    proportion=st.booleans(),
)
def test_an_interval_holds_its_value_and_a_proportions_has_a_width(values, n_tracks, proportion):
    values, tracks = np.array(values), np.arange(len(values)) % n_tracks
    values = values > 0 if proportion else values
    result = mean_over_tracks(values, tracks, proportion)
    assert result["n_tracks"] == min(n_tracks, len(values))
    if result["n_tracks"] < FEWEST_TRACKS:
        assert result["low"] is result["high"] is None
    else:
        assert result["low"] <= result["value"] <= result["high"]
        assert not proportion or 0 <= result["low"] < result["high"] <= 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), eps=st.floats(1e-4, 1), n=st.integers(1, 12))
def test_records_tell_success_only_of_what_was_right_before(seed, eps, n):
    rng = np.random.default_rng(seed)
    X = rng.random((n, 4, 5), dtype=np.float32)
    attacked = (X + rng.uniform(-eps, eps, X.shape).astype(np.float32)).clip(0, 1)
    y, clean, after = rng.integers(0, 3, (3, n))
    segments = pd.DataFrame({"segment": range(n), "track": "a", "genre": "b"})
    target = Target(None, Segments(X, y, segments), np.eye(3)[clean])
    records = make_records(target, "pgd", eps, attacked, after)
    assert len(records) == n
    assert (records["success"] == ((clean == y) & (after != y))).all()
    assert not records.isna().any().any()


# The table of docs/reliability.md


def by_file():
    """Return the names of all test functions by file."""
    return {
        path.name: {
            node.name
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        }
        for path in Path(__file__).parent.glob("test_*.py")
    }


def rows_of_the_table():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if not row.startswith("| input or fault")]


def test_every_row_of_the_table_names_a_test_that_exists():
    known = by_file()
    rows = rows_of_the_table()
    assert len(rows) > 40
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, row
        for file, name in named:
            assert name in known.get(file, ()), f"{file}::{name}"


def test_every_test_of_this_file_is_in_the_table():
    named = set(re.findall(r"`test_faults\.py::(test_\w+)`", "".join(rows_of_the_table())))
    own = by_file()[Path(__file__).name]
    assert own - named == {
        "test_every_row_of_the_table_names_a_test_that_exists",
        "test_every_test_of_this_file_is_in_the_table",
    }
