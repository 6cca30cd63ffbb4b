import hashlib
import os
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from conftest import audit, corpus_at, refused
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data import corpus as corpora
from src.data.audio import find_tracks, measure, read_audio, to_mono
from src.data.corpus import (
    AudioFolder,
    LogMelArchive,
    audit_table,
    check_usable,
    claim_run,
    corpus_of,
    open_corpus,
    read_segments,
)
from src.data.log_mel_archive import fill_frames, read_archive
from src.results import write_csv


@pytest.fixture
def archive(tmp_path):
    """Return a function writing a log-mel archive of tracks a.00000, a.00002 and b.00001."""

    def write(**changed):
        rng = np.random.default_rng(0)
        exact = rng.random((3, 1293)) < 0.7
        arrays = {
            "X": rng.integers(0, 256, (3, 128, 1293), dtype=np.uint8) * exact[:, None],
            "exact": exact,
            "floor_db": np.float32([-80, -60, -80]),
            "n_frames": np.int64([1293, 1293, 1200]),
            "names": np.array(["a.00000", "a.00002", "b.00001"]),
            "y": np.array(["a", "a", "b"]),
            "genres": np.array(["a", "b"]),
        } | changed
        path = tmp_path / "tiny_logmel.npz"
        np.savez(path, **{key: values for key, values in arrays.items() if values is not None})
        return path

    return write


@pytest.mark.parametrize("layout", ["", "genres_original/", "Data/genres_original/", "{}/"])
def test_genre_folders_are_found_at_any_depth_in_order(write_track, noise, layout):
    names = ["rock.00001", "blues.00010", "blues.00002", "rock.00000"]
    for i, name in enumerate(names):
        genre = name[:-6]
        above = layout.format({"rock": "a", "blues": "z"}[genre])
        corpus = write_track(f"{above}{genre}/{name}.wav", noise(i))
    tracks = audit(corpus)
    assert tracks["track"].tolist() == ["blues.00002", "blues.00010", "rock.00000", "rock.00001"]
    assert tracks["genre"].tolist() == ["blues", "blues", "rock", "rock"]
    assert tracks["used"].all()
    assert [(corpus / path).stem for path in tracks["path"]] == tracks["track"].tolist()


def test_any_audio_in_a_genres_folder_is_a_track_and_other_audio_is_listed(write_track, noise):
    corpus = write_track("rock/rock.00000.wav", noise(0))
    for number, name in enumerate(("rock/01 - Song", "rock/rock_00000", "Jazz/jazz.00001"), 1):
        write_track(f"{name}.wav", noise(number))
    decomposed = "Mu\u0301sica"  # as macOS stores it, in the folder alone
    write_track(f"{decomposed}/M\u00fasica.1.wav", noise(4))
    write_track("intro.wav", noise(5))
    (corpus / "rock" / "rock.00009.m4a").touch()
    tracks = audit(corpus)
    names = ["jazz.00001", "M\u00fasica.1", "rock.01 - Song", "rock.00000", "rock.rock_00000"]
    assert tracks["track"].tolist() == [*names, "intro.wav", "rock/rock.00009.m4a"]
    assert tracks["genre"].tolist() == ["Jazz", "M\u00fasica", *["rock"] * 3, "", "rock"]
    assert tracks["used"].tolist() == tracks["named"].tolist() == [True] * 5 + [False] * 2
    assert tracks["reason"][5:].str.partition(":")[0].tolist() == ["name", "format"]
    assert [corpus_at(corpus).read(row).size for row in tracks[:5].itertuples()] == [77_175] * 5


def test_hidden_and_foreign_files_are_no_tracks(write_track, noise):
    corpus = write_track("rock/rock.00000.wav", noise(0))
    write_track("rock/._rock.00001.wav", noise(1))
    write_track(".cache/rock/rock.00002.wav", noise(2))
    (corpus / "rock" / "rock.00004.txt").write_text("notes")
    (corpus / "rock" / "rock.00005.M4A").touch()
    (corpus / "rock" / ".notes.txt").touch()
    (corpus / "rock" / "rock.00006").touch()
    (corpus / "rock" / "cover").touch()
    assert [path.name for path in find_tracks(corpus)] == ["rock.00000.wav"]
    assert open_corpus(str(corpus), 0, 0).ignored_files() == {".txt": 1, "no ending": 2}


@pytest.mark.parametrize("ending", [".wav", ".au", ".flac", ".mp3", ".ogg", ".WAV"])
def test_every_ending_is_read(write_track, ending):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(80_000) / 22_050)
    corpus = write_track(f"rock/rock.00000{ending}", tone)
    row = audit(corpus).iloc[0]
    assert (row["used"], row["n_segments"], row["sample_rate_hz"]) == (True, 1, 22_050)
    read = read_audio(corpus / row["path"])
    assert np.abs(np.fft.rfft(read[:66_150])).argmax() == 440 * 3


def truncate(path, samples):
    sf.write(path, samples, 22_050)
    path.write_bytes(path.read_bytes()[:-10_000])


def written_as(change, **options):
    """Return a function that writes changed samples into a file."""
    return lambda path, samples: sf.write(path, change(samples), 22_050, **options)


as_floats = partial(written_as, subtype="FLOAT")
FAULTS = {
    "text named wav": (
        ".wav",
        lambda path, samples: path.write_text("no sound " * 9000),
        "unreadable: Format not recognised; the file may be damaged or no WAV, convert",
    ),
    "text named au": (
        ".au",
        lambda path, samples: path.write_text("<html>" * 9000),
        "unreadable: Format not recognised",
    ),
    "zero bytes": (".wav", lambda path, samples: path.touch(), "unreadable: .+"),
    "truncated": (".wav", truncate, "truncated: 10000 of 154350 bytes of samples"),
    "truncated flac": (".flac", truncate, "unreadable: .+"),
    "no samples": (".wav", written_as(lambda x: x[:0]), "too short"),
    "too short": (".wav", written_as(lambda x: x[:66_149]), r"too short: 3\.00 s"),
    "silent": (".wav", written_as(lambda x: x / 2000), r"silent: 1 of 1 segments, peak 0\.0002"),
    "constant": (".wav", written_as(lambda x: 0 * x + 0.4), "silent: 1 of 1 segments"),
    "silent where it is used": (
        ".wav",
        written_as(lambda x: np.append(np.zeros(31 * 22_050), x)),
        "silent: 10 of 10 segments",
    ),
    "not a number": (
        ".wav",
        as_floats(lambda x: np.where(np.arange(len(x)) == 9, np.nan, x)),
        "damaged: samples that are not finite",
    ),
    "infinite": (
        ".wav",
        as_floats(lambda x: x / np.float32(0)),
        "damaged: samples that are not finite",
    ),
}


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize(("ending", "spoil", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_track_is_listed_with_its_reason_and_not_used(
    write_track, noise, ending, spoil, reason
):
    corpus = write_track("rock/rock.00000.wav", noise(0))
    bad = corpus / "bad" / f"bad.00000{ending}"
    bad.parent.mkdir()
    spoil(bad, noise(1))
    tracks = audit(corpus)
    assert tracks["track"].tolist() == ["bad.00000", "rock.00000"]
    assert tracks["used"].tolist() == [False, True]
    assert re.match(reason, tracks["reason"][0])
    assert str(corpus) not in tracks["reason"][0]
    assert tracks["reason"][1] == ""


def test_a_whole_corpus_of_faulty_tracks_is_a_table_and_then_refused(write_track, noise):
    corpus = write_track("rock/rock.00000.wav", noise(0)[:100])
    tracks = audit(corpus)
    assert tracks.columns.tolist() == corpora.COLUMNS
    assert tracks["used"].tolist() == [False]
    with refused(r"None of 1 tracks can be used \(1 too short\)"):
        check_usable(tracks)


def test_measures_of_a_known_track(write_track):
    samples = np.full(7 * 22_050, 0.1, dtype=np.float32)  # constant: silence
    samples[1024 * 16 : 1024 * 32] *= np.resize([1, -1], 1024 * 16)
    samples[-1600:] = 1  # behind the two segments
    corpus = write_track("rock/rock.00000.wav", samples, subtype="FLOAT")
    row = audit(corpus).iloc[0]
    assert row["peak"] == 1
    assert row["clipped"] == pytest.approx(1600 / len(samples))
    assert row["silent"] == 1 - 16 / 128
    assert (row["used"], row["reason"][:24]) == (True, "silent: 1 of 2 segments,")
    assert row["duration_s"] == pytest.approx(len(samples) / 22_050)
    assert row["sha256"] == hashlib.sha256(samples.tobytes()).hexdigest()


def test_opposite_channels_are_silent_since_their_mean_is_used(write_track, noise):
    left = noise(0)
    write_track("rock/rock.00000.wav", np.stack([left, left], axis=1))
    corpus = write_track("rock/rock.00001.wav", np.stack([left, -left], axis=1))
    tracks = audit(corpus)
    assert tracks["used"].tolist() == [True, False]
    assert tracks["reason"].iloc[1].startswith("silent: ")


def test_at_most_ten_segments_are_taken(write_track, noise):
    write_track("rock/rock.00000.wav", noise(0, seconds=33.5))
    corpus = write_track("rock/rock.00001.wav", noise(1, seconds=29.9))
    assert audit(corpus)["n_segments"].tolist() == [10, 9]


def test_stereo_at_another_rate_becomes_mono_at_22050_hz(write_track):
    left = 0.4 * np.sin(2 * np.pi * 440 * np.arange(4 * 44_100) / 44_100)
    right = 0.2 * np.sin(2 * np.pi * 880 * np.arange(4 * 44_100) / 44_100)
    corpus = write_track("rock/rock.00000.wav", np.stack([left, right], axis=1), rate=44_100)
    row = audit(corpus).iloc[0]
    assert (row["channels"], row["sample_rate_hz"], row["n_segments"]) == (2, 44_100, 1)
    samples = read_audio(corpus / row["path"])
    assert (samples.shape, samples.dtype) == ((4 * 22_050,), np.float32)
    expected = ((left + right) / 2)[::2]
    np.testing.assert_allclose(samples[500:-500], expected[500:-500], atol=1e-3)


@pytest.mark.parametrize("rate", [8000, 11_025, 32_000, 44_100, 48_000, 96_000])
def test_three_seconds_are_one_segment_at_any_rate(noise, rate):
    samples = noise(0, seconds=3, rate=rate)[:, None]
    assert measure(samples, rate)["n_segments"] == 1
    assert len(to_mono(samples, rate)) >= 66_150


def test_equal_samples_are_named_duplicates_and_stay_in_use(write_track, noise):
    samples = (noise(0) * 32_767).astype(np.int16)
    write_track("pop/pop.00000.wav", samples)
    write_track("pop/pop.00001.flac", samples)
    write_track("pop/pop.00002.wav", noise(1))
    corpus = write_track("rock/rock.00000.wav", samples)
    tracks = audit(corpus).set_index("track")
    assert tracks["used"].all()
    assert tracks["duplicate_of"].tolist() == ["", "pop.00000", "", "pop.00000"]
    same = "duplicate: the same samples as pop.00000"
    assert tracks["reason"].tolist() == ["", same, "", f"{same}, under another genre"]


def test_tracks_left_out_are_no_ones_duplicates(write_track):
    write_track("pop/pop.00000.wav", np.zeros(80_000))
    corpus = write_track("pop/pop.00001.wav", np.zeros(80_000))
    assert audit(corpus)["duplicate_of"].tolist() == ["", ""]


NO_TRACKS = "has no sub-folder with .* but {}: .* give the folder whose sub-folders are genres"
TWICE = r"both track rock\.00000: .* two formats"
FOREIGN = {
    "a missing path": ([], "nowhere", "DATASET=.*/nowhere is neither .* give a path"),
    "a track": (["jazz.0.wav"], "jazz.0.wav", r"is a single file and no \.npz archive"),
    "an empty folder": ([], "", NO_TRACKS.format("no file")),
    "no genre": (["1.wav", "rock/a.m4a", "rock/b.M4A"], "", NO_TRACKS.format("2 .m4a, 1 .wav")),
    "archive and audio": (["a.npz", "pop/1.wav"], "", r"holds both a\.npz and pop/1\.wav"),
    "two archives": (["a.npz", "b.npz"], "", r"holds both a\.npz and b\.npz"),
    "two spellings": (["a/Rock/1.wav", "b/rock/2.wav"], "", "has genres Rock and rock"),
    "a track twice": (["a/rock/rock.00000.wav", "b/rock/rock.00000.wav"], "", TWICE),
    "two formats": (["a/rock/rock.00000.wav", "a/rock/rock.00000.au"], "", TWICE),
}


@pytest.mark.parametrize(("files", "path", "found"), FOREIGN.values(), ids=FOREIGN)
def test_a_corpus_of_something_else_is_refused(tmp_path, files, path, found):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with refused(found, (FileNotFoundError, ValueError)) as error:
        audit(tmp_path / path)
    assert str(tmp_path) in str(error.value)


def test_fewer_tracks_than_can_be_split_are_not_composed(monkeypatch):
    monkeypatch.setattr(corpora.synthetic, "make_corpus", lambda folder, *_: folder)
    with refused("TRACKS_PER_GENRE=6 are too few .* give 7 or more"):
        open_corpus("synthetic", 6, 0)
    folder = corpora.RAW / f"synthetic_7_per_genre_seed_3_v{corpora.synthetic.VERSION}"
    assert open_corpus("synthetic", 7, 3) == AudioFolder(folder, "synthetic", 3)


def test_an_archive_is_taken_where_it_lies_alone(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "._a.npz").touch()
    assert open_corpus(str(corpus), 10, 0) == AudioFolder(corpus, "corpus")
    (corpus / "a.npz").touch()
    assert open_corpus(str(corpus), 10, 0) == LogMelArchive(corpus / "a.npz", "corpus")
    assert open_corpus(str(corpus / "a.npz"), 10, 0) == LogMelArchive(corpus / "a.npz", "a")


@settings(deadline=None)
@given(
    st.lists(st.booleans(), min_size=2, max_size=40).filter(any),
    st.integers(0, 1000),
    st.sampled_from([-80.0, -57.0]),
)
def test_exact_frames_are_kept_and_gaps_are_linear(exact, seed, floor_db):
    exact = np.array(exact)
    values = np.random.default_rng(seed).integers(0, 256, (3, len(exact)), dtype=np.uint8)
    filled = fill_frames(values * exact, exact, floor_db)
    known = np.flatnonzero(exact)
    decibel = floor_db * (1 - values / 255)
    for row, measured in zip(filled, decibel, strict=True):
        expected = np.interp(np.arange(len(exact)), known, measured[known])
        np.testing.assert_allclose(row, expected, atol=1e-4)
        assert row[known] == pytest.approx(measured[known])


def test_numbers_that_an_archive_lacks_are_listed_as_missing(archive):
    tracks = audit(archive())
    names = ["a.00000", "a.00001", "a.00002", "b.00000", "b.00001", "b.00002"]
    assert tracks["track"].tolist() == names
    assert tracks["genre"].tolist() == list("aaabbb")
    assert tracks["used"].tolist() == [True, False, True, False, True, False]
    assert tracks.loc[~tracks["used"], "reason"].str.startswith("missing: ").all()
    assert tracks["n_segments"].tolist() == [10, 0, 10, 0, 9, 0]  # the last has 1200 frames
    assert tracks["duration_s"][0] == pytest.approx(1293 * 512 / 22_050)
    assert tracks["row"].dropna().to_dict() == {0: 0, 2: 1, 4: 2}
    assert set(tracks["path"][tracks["used"]]) == {"tiny_logmel.npz"}


def test_an_archive_that_changed_is_read_again(archive):
    path = archive()
    before = read_archive(path)
    assert read_archive(path) is before
    archive(floor_db=before["floor_db"] - 1)
    os.utime(path, ns=(0, 0))
    assert read_archive(path)["floor_db"][0] == before["floor_db"][0] - 1


def test_a_folder_named_as_the_embedded_corpus_is_refused(tmp_path):
    (tmp_path / "synthetic").mkdir()
    with refused("would be taken for the embedded corpus by its name: rename it"):
        open_corpus(str(tmp_path / "synthetic"), 0, 0)


def test_a_log_mel_is_that_of_the_row_of_its_track(archive):
    path = archive()
    arrays, corpus = read_archive(path), open_corpus(str(path), 0, 0)
    tracks = audit_table(corpus).set_index("track", drop=False)
    expected = fill_frames(arrays["X"][1], arrays["exact"][1], -60)
    np.testing.assert_array_equal(corpus.log_mel(tracks.loc["a.00002"]), expected)
    within = arrays["exact"][2] & (np.arange(1293) < 1200)  # its number of frames
    expected = fill_frames(arrays["X"][2], within, -80)
    np.testing.assert_array_equal(corpus.log_mel(tracks.loc["b.00001"]), expected)
    arrays["X"][2, 0, 0] += 1
    with refused("is not the archive that was audited"):
        corpus.log_mel(tracks.loc["b.00001"])
    with refused("has log-mels and no audio"):
        corpus.read(tracks.loc["b.00001"])


def test_frames_that_are_missing_or_were_never_measured(archive):
    exact = np.ones((3, 1293), bool)
    exact[1] = False
    tracks = audit(archive(exact=exact, n_frames=np.int64([1293, 1293, 1320])))
    tracks = tracks[tracks["sha256"] != ""].set_index("track")
    assert tracks["used"].tolist() == [True, False, True]
    assert tracks["reason"]["a.00002"].startswith("damaged: no frame that was measured")
    assert tracks["n_segments"]["b.00001"] == 10  # cut to fit the archive


def test_segments_are_read_from_their_places_in_their_tracks(write_track, noise, paths):
    for number, name in enumerate(("jazz.00000", "jazz.00001")):
        folder = write_track(f"jazz/{name}.wav", noise(number, 10.0), subtype="FLOAT")
    corpus = open_corpus(str(folder), 0, 0)
    claim_run(paths, corpus)
    write_csv(paths.processed / "tracks.csv", audit_table(corpus))
    places = [("jazz.00001", 2), ("jazz.00000", 0), ("jazz.00001", 1)]
    table = pd.DataFrame({"track": [name for name, _ in places]}, index=[7, 3, 5])
    samples = read_segments(paths, table.assign(start_s=[3.0 * k for _, k in places]))
    assert (samples.shape, samples.dtype) == ((3, 66_150), np.float32)
    for clip, (name, k) in zip(samples, places, strict=True):
        np.testing.assert_array_equal(clip, noise(int(name[-1]), 10.0)[66_150 * k :][:66_150])


def test_equal_tracks_of_an_archive_are_named_duplicates(archive):
    arrays = read_archive(archive())
    X, exact = arrays["X"], arrays["exact"]
    X[2], exact[2] = X[0], exact[0]
    duplicates = audit(archive(X=X, exact=exact)).set_index("track")["duplicate_of"]
    assert duplicates[duplicates != ""].to_dict() == {"b.00001": "a.00000"}


WRONG = {
    "without frames": ({"exact": None, "names": None}, "lacks exact, names"),
    "too few frames": (
        {"X": np.zeros((3, 128, 1200), np.uint8), "exact": np.ones((3, 1200), bool)},
        r"has X of shape \(3, 128, 1200\) instead of \(3, 128, 1293\)",
    ),
    "other bands": ({"X": np.zeros((3, 96, 1293), np.uint8)}, r"has X of shape \(3, 96, 1293\)"),
    "flat": ({"X": np.zeros(3, np.uint8)}, r"has X of shape \(3,\)"),
    "other mask": ({"exact": np.ones((3, 1292), bool)}, r"has exact of shape \(3, 1292\)"),
    "too few floors": ({"floor_db": np.float32([-80])}, r"has floor_db of shape \(1,\)"),
    "floats": ({"X": np.zeros((3, 128, 1293), np.float32)}, "X that is not uint8"),
    "mask of numbers": ({"exact": np.ones((3, 1293))}, "exact that is not boolean"),
    "floor above": ({"floor_db": np.float32([-80, 3, -80])}, "floor_db that is not below 0"),
    "floor nan": ({"floor_db": np.float32([-80, np.nan, -80])}, "floor_db that is not below 0"),
    "negative": ({"n_frames": np.int64([1293, -1, 1293])}, "n_frames below 0"),
    "fractions": ({"n_frames": np.float64([1, 2, 3])}, "n_frames that are not integers"),
    "twice": ({"names": np.array(["a.00000", "a.00000", "b.00000"])}, "the same name twice"),
    "short number": ({"names": np.array(["a.0", "a.1", "b.0"])}, "names that are not <genre>"),
    "huge number": (
        {"names": np.array(["a.00000", "a.99999999", "b.00000"])},
        "names that are not <genre>",
    ),
    "other genre": ({"y": np.array(["a", "b", "b"])}, "names of another genre than y"),
    "objects": ({"names": np.array([1, "a", None], dtype=object)}, "plain arrays"),
    "no track": (
        {
            "X": np.zeros((0, 128, 1293), np.uint8),
            "exact": np.zeros((0, 1293), bool),
            **dict.fromkeys(("floor_db", "n_frames", "names", "y"), np.zeros(0, int)),
        },
        "has no track",
    ),
}


@pytest.mark.parametrize(("changed", "message"), WRONG.values(), ids=WRONG)
def test_an_archive_of_something_else_is_refused(archive, changed, message):
    path = archive(**changed)
    with refused(message) as error:
        audit(path)
    assert str(path) in str(error.value)


def test_a_run_keeps_the_corpus_that_it_was_made_of(paths, tmp_path, monkeypatch):
    corpus = AudioFolder(tmp_path / "one", "synthetic", 13)
    for _ in range(2):
        claim_run(paths, corpus)
    with refused("Run fake was made of"):
        claim_run(paths, AudioFolder(tmp_path / "two", "gtzan_mini"))
    assert corpus_of(paths) == corpus  # with the seed of what this version has composed
    monkeypatch.setattr(corpora.synthetic, "VERSION", 0)
    assert corpus_of(paths).seed is None


def test_the_real_tracks_are_all_usable_but_the_unreadable_one():
    if "GTZAN_DIR" not in os.environ:
        pytest.skip("set GTZAN_DIR to the folder of the audio to check real tracks")
    tracks = audit(os.environ["GTZAN_DIR"])
    assert set(tracks.loc[~tracks["used"], "track"]) <= {"jazz.00054"}
    assert tracks.loc[tracks["used"], "n_segments"].isin([9, 10]).all()
