import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from axe_playwright_python.sync_playwright import Axe

from app import try_track as app
from src import plots_track, try_track
from src.attacks.adversarial import Search, attack
from src.attacks.codecs import file_logits
from src.attacks.waveform import ratio_db
from src.data import own_track
from src.data.features import segment_audio
from src.data.own_track import own_tracks, read_track
from src.models import cnn
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits, softmax

GENRES = ["blues", "jazz", "rock"]
CARD = {
    "genres": GENRES,
    "temperature": 2.0,
    "sound": {"mean": [0.5] * 8, "deviation": [1.0] * 8, "limit": 1e6},
}
NAME = "a & b <i> ñ 日本.flac"
needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")


def music(seconds=9.0, rate=22_050, seed=0):
    """Return chords whose tones change every second, over soft noise."""
    rng, time = np.random.default_rng(seed), np.arange(round(seconds * rate)) / rate
    hertz = rng.uniform(100, 3000, (4, int(seconds) + 1))[:, time.astype(int)]
    tones = np.sin(2 * np.pi * hertz * time).mean(axis=0)
    return 0.5 * np.exp(-3 * (time % 0.5)) * tones + 0.01 * rng.normal(size=len(time))


@pytest.fixture(scope="module")
def network():
    """Return a slim untrained network to which the music is jazz, close to the boundary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cnn, "WIDTHS", (4, 8, 8, 8))
        patch.setattr(cnn, "DENSE", (16, 16))
        torch.manual_seed(3)
        model = GenreClassifierCNN(3).eval()
    X = segment_audio(music().astype(np.float32), 3)
    logits = predict_logits(model, X) - model.output.bias.detach().numpy()
    model.output.weight.data *= 1e5
    model.output.bias.data = -torch.from_numpy(logits.mean(axis=0)) * 1e5
    model.output.bias.data[1] += 2
    return try_track.Network(model, CARD, {"known"})


@pytest.fixture
def zoo(network, monkeypatch):
    """Let two networks of the repository be the slim one; return the facts of their card."""
    card = dict(CARD)
    monkeypatch.setattr(try_track, "load_pretrained", lambda name: network.model)
    monkeypatch.setattr(try_track, "read_card", lambda name: card)
    monkeypatch.setattr(try_track, "known_tracks", lambda name: pd.DataFrame({"track": ["known"]}))
    monkeypatch.setattr(try_track, "AUDIO_SEARCH", Search(2))
    return card


@pytest.fixture(scope="module")
def reported(network, tmp_path_factory):
    """Return the folder of a report of 9 s of music, and the trial that it shows."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        zoo.__wrapped__(network, patch)
        sf.write(folder / NAME, music(), 22_050)
        trial = app.report(folder / NAME, ("improved", "robust"), folder / "try")
    return only_report(folder / "try"), trial


def refusal(*arguments):
    """Return the sentence in which a call from the command line ends."""
    with pytest.raises(SystemExit) as error:
        app.main([str(each) for each in arguments])
    message = str(error.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


def only_report(results):
    """Return the only folder of results."""
    (folder,) = results.iterdir()
    return folder


def test_a_report_is_one_file_with_all_pictures_and_sounds(reported):
    folder, _ = reported
    text = (folder / app.MARK).read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(sources) == 1 + 2 + 7  # icon, figures, players
    assert all(source.startswith("data:") for source in sources)
    assert "http" not in re.sub(r'"data:[^"]*"', "", text)
    assert "a &amp; b &lt;i&gt; ñ 日本.flac" in text
    sounds = ["clean", "noise", "attack", "difference", "kept", "left_out"]
    files = ["report.html", "timeline.png", "votes.png", "segments.csv", "results.json"]
    assert {path.name for path in folder.iterdir()} == {*files, *(f"{each}.wav" for each in sounds)}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    table = pd.read_csv(folder / "segments.csv")
    assert table["start_s"].tolist() == [0, 3, 6] * 2
    assert np.allclose(table[GENRES].sum(axis=1), 1)


def test_predictions_of_the_report_are_those_of_its_files(reported, network):
    folder, trial = reported
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    clean, _ = sf.read(folder / "clean.wav")
    for kind in ("clean", "noise", "attack"):
        samples, _ = sf.read(folder / f"{kind}.wav", dtype="float32")
        logits = file_logits(network.model, samples.reshape(3, -1)) / CARD["temperature"]
        expected = softmax(logits).mean(axis=0)
        assert list(results["audio"][kind].values()) == pytest.approx(expected, abs=1e-6)
        if kind != "clean":
            assert ratio_db(clean[None], samples[None]) == pytest.approx(try_track.SNR_DB, abs=0.1)
    parts = [sf.read(folder / f"{kind}.wav")[0] for kind in ("kept", "left_out")]
    assert np.allclose(sum(parts), clean, atol=1e-3)
    genre = trial.votes["clean"].argmax()
    assert trial.votes["attack"][genre] < trial.votes["noise"][genre]


def test_no_smallest_change_is_named_where_the_largest_alters_nothing(network, monkeypatch):
    tried = []

    def powerless(name, model, X, y, eps, search):
        tried.append(80 * eps)
        return X

    monkeypatch.setattr(try_track, "attack", powerless)
    X = np.random.default_rng(0).random((2, 128, 130), dtype=np.float32)
    assert try_track.minimal_change("one", network, X) == (None, "")
    assert tried == pytest.approx([8.0])


def test_the_smallest_change_alters_the_vote_and_a_smaller_one_does_not(reported, network):
    _, trial = reported
    reading = trial.readings["robust"]
    low, high = try_track.MINIMAL_DB
    precision = (high / low) ** 0.5**try_track.HALVINGS
    assert low < reading.minimal_db < high
    genre, X = reading.vote.argmax(), trial.X
    for decibel in (reading.minimal_db, reading.minimal_db / precision):
        y, eps = np.full(len(X), genre), decibel / 80
        attacked = attack("pgd", network.model, X, y, eps, try_track.SEARCH)
        vote = softmax(predict_logits(network.model, attacked) / CARD["temperature"]).mean(axis=0)
        expected = reading.flipped_to if decibel == reading.minimal_db else GENRES[genre]
        assert GENRES[vote.argmax()] == expected


def test_maps_explain_the_genre_of_the_track_at_their_places(reported):
    _, trial = reported
    figure = plots_track.timeline(trial)
    likely, _, heat = (ax.images[0].get_array() for ax in figure.axes)
    assert np.allclose(likely, trial.readings["improved"].probabilities.T)
    assert np.allclose(heat, np.concatenate(trial.maps, axis=1))
    assert f"evidence for {trial.readings['improved'].ranking(1)[0][0]}" in (
        figure.axes[2].get_title()
    )


def test_the_terminal_has_the_results_in_five_lines(zoo, tmp_path, capsys):
    sf.write(tmp_path / "song one.wav", music(), 22_050)
    app.main([str(tmp_path / "song one.wav"), "--out", str(tmp_path / "try"), "--model", "robust"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[-1] == f"report: {only_report(tmp_path / 'try')}/report.html"
    assert lines[0].startswith("song one.wav: ")
    assert all(word in lines[3] for word in ("clean", "noise", "attack", "40 dB"))


def test_a_long_track_is_used_in_part_and_attacked_in_its_middle(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(own_track, "LONGEST_S", 36)
    sf.write(tmp_path / "long.wav", music(50, 8000), 8000)
    track = read_track(tmp_path / "long.wav")
    assert (len(track.samples), track.used_s, track.length_s) == (12, 36, 50)
    assert try_track.middle(12).tolist() == list(range(1, 11))
    assert try_track.middle(3).tolist() == [0, 1, 2]
    assert "its first 10:00 min are used" in app._length(3600)
    assert "used" not in app._length(600)


def test_silent_segments_have_no_part_in_the_prediction(zoo, network, tmp_path):
    samples = music(12)
    samples[66_150:132_300] = 0
    sf.write(tmp_path / "gap.wav", samples, 22_050)
    track = read_track(tmp_path / "gap.wav")
    assert track.starts_s.tolist() == [0, 6, 9]
    assert track.used_s == 12
    X, readings = try_track.predict(track, {"robust": network})
    assert readings["robust"].probabilities.shape == (3, 3)
    row = plots_track._along(X.swapaxes(0, 1), np.array([0, 2, 3]), 4)
    assert np.flatnonzero(np.isnan(row).any(axis=0)).tolist() == list(range(130, 260))


@pytest.mark.parametrize(("name", "limit"), [("known", 1e6), ("other", 1e-6)])
def test_warnings_say_what_a_prediction_cannot_be_trusted_for(name, limit, zoo, tmp_path):
    zoo["sound"] = CARD["sound"] | {"limit": limit}
    sf.write(tmp_path / f"{name}.wav", music(3), 22_050)
    track, networks = read_track(tmp_path / f"{name}.wav"), try_track.load_networks(("robust",))
    (reading,) = try_track.predict(track, networks)[1].values()
    assert (reading.known, reading.unfamiliar) == (name == "known", name == "other")


def test_a_folder_gives_a_table_that_names_files_it_cannot_use(zoo, tmp_path, capsys):
    songs = tmp_path / "my songs"
    (songs / "inside").mkdir(parents=True)
    sf.write(songs / "b.wav", music(3), 22_050)
    sf.write(songs / "inside" / "ñ.flac", music(6, 44_100), 44_100)
    (songs / "a.mp3").write_bytes(b"no music")
    (songs / "list.txt").write_text("no audio")
    app.main([str(songs), "--out", str(tmp_path / "try"), "--model", "robust, improved"])
    folder = only_report(tmp_path / "try")
    table = pd.read_csv(folder / "tracks.csv")
    assert table["track"].tolist() == ["a.mp3", "b.wav", "b.wav", "inside/ñ.flac", "inside/ñ.flac"]
    assert table["used (s)"].tolist()[1:] == [3, 3, 6, 6]
    assert table["network"].tolist()[1:] == ["robust", "improved"] * 2
    assert set(table["genre"].dropna()) <= set(GENRES)
    assert table["confidence (%)"].dropna().between(100 / 3, 100).all()
    assert "a.mp3 is not used: unreadable" in table["warning"][0]
    shown = capsys.readouterr().out
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in (shown, page):
        assert "a.mp3 is not used" in text
        assert "inside/ñ.flac" in text
    assert str(tmp_path) not in page + (folder / "tracks.csv").read_text(encoding="utf-8")


def test_a_row_of_the_table_states_its_warnings(network):
    probabilities = np.array([[0.2, 0.7, 0.1], [0.4, 0.5, 0.1]])
    reading = try_track.Reading(GENRES, probabilities, True, False, True)
    warning = "unlike the training data"
    assert app._in_short("robust", reading) == ["robust", "jazz", 60.0, "blues", warning]
    known = reading._replace(known=True)
    assert app._in_short("robust", known)[-1] == f"{warning}; known from training"
    assert app._in_short("robust", known._replace(unfamiliar=False))[-1] == "known from training"


def test_files_of_equal_name_have_reports_of_their_own(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("x/cd 1/a.wav", "y/cd 1/a.wav", "y/cd 1/a.mp3")]
    names = [app._folder_name(path) for path in paths]
    assert len(set(names)) == 3
    assert all(name.startswith("cd 1-a.") for name in names)
    monkeypatch.chdir(tmp_path)
    assert app._folder_name(Path("x/../y/cd 1/a.wav")) == names[1]


def test_a_folder_of_files_that_cannot_be_used_leaves_nothing(zoo, tmp_path):
    (tmp_path / "songs").mkdir()
    (tmp_path / "songs" / "a.mp3").write_bytes(b"no music")
    message = refusal(tmp_path / "songs", "--out", tmp_path / "try")
    assert message.startswith("None of 1 files can be used: a.mp3 is not used: unreadable")
    assert [path.name for path in tmp_path.iterdir()] == ["songs"]


def bad_files(folder):
    """Write files that cannot be used; return the start of each sentence by name."""
    sf.write(folder / "short one.wav", music(2.5), 22_050)
    sf.write(folder / "silent.wav", np.zeros(99_000), 22_050)
    sf.write(folder / "whole.flac", music(), 22_050)
    sf.write(folder / "whole.mp3", music(), 22_050)
    for name in ("whole.flac", "whole.mp3"):
        content = (folder / name).read_bytes()
        (folder / f"cut {name}").write_bytes(content[: len(content) // 2])
    (folder / "text.mp3").write_text("no music")
    (folder / "空.wav").write_bytes(b"")
    (folder / "bought.m4p").write_bytes(b"\0\0\0\x18ftypM4P " + b"stsd" + b"\0" * 12 + b"drms")
    return {
        "short one.wav": "is not used: too short: 2.50 s",
        "silent.wav": "is silent: none of its 1 segments",
        "cut whole.flac": "is not used: unreadable",
        "cut whole.mp3": "is not used: truncated",
        "text.mp3": "is not used: unreadable",
        "空.wav": "is not used: unreadable",
        "bought.m4p": "is protected against copying",
    }


def test_each_bad_file_ends_in_one_sentence_and_leaves_nothing(zoo, tmp_path, capfd):
    bad, files = bad_files(tmp_path), set(tmp_path.iterdir())
    for name, sentence in bad.items():
        message = refusal(tmp_path / name, "--out", tmp_path / "mine" / "try")
        assert message.startswith(f"{name} {sentence}")
        assert set(tmp_path.iterdir()) == files
    assert capfd.readouterr() == ("", "")  # no words of decoders either


def test_paths_without_audio_are_refused(zoo, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no audio")
    assert "has 1 files and no audio" in refusal(tmp_path / "empty")
    assert "does not exist" in refusal(tmp_path / "no song.mp3")
    with pytest.raises(FileNotFoundError):
        own_tracks([tmp_path / "empty"])


@needs_ffmpeg
def test_ffmpeg_reads_other_formats_and_refuses_what_is_cut(tmp_path):
    sf.write(tmp_path / "song.wav", music(), 22_050)
    options = ["-v", "error", "-i", tmp_path / "song.wav", "-movflags", "+faststart"]
    subprocess.run(["ffmpeg", *options, tmp_path / "a song.m4a"], check=True)
    track = read_track(tmp_path / "a song.m4a")
    assert len(track.samples) == 3
    wav = read_track(tmp_path / "song.wav")
    assert (
        np.abs(segment_audio(track.samples[1], 1) - segment_audio(wav.samples[1], 1)).mean() < 0.1
    )
    content = (tmp_path / "a song.m4a").read_bytes()
    for name, part in {"cut.m4a": content[: len(content) // 2], "text.m4a": b"no music"}.items():
        (tmp_path / name).write_bytes(part)
        with pytest.raises(ValueError, match=f"^{name} is not used: ffmpeg cannot decode it"):
            read_track(tmp_path / name)


def test_without_ffmpeg_one_sentence_says_to_install_it_or_to_convert(tmp_path, monkeypatch):
    monkeypatch.setattr(own_track.shutil, "which", lambda name: None)
    (tmp_path / "song.m4a").write_bytes(b"some format")
    with pytest.raises(ValueError, match=r"^song.m4a .*install ffmpeg, or convert the file to WAV"):
        read_track(tmp_path / "song.m4a")


def test_an_unknown_network_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "song.wav").write_bytes(b"no music")
    message = refusal(
        tmp_path / "song.wav", "--model", "pretrained/robus", "--out", tmp_path / "try"
    )
    assert message.startswith("pretrained/robus is not a network")
    assert not (tmp_path / "try").exists()


def test_a_report_that_fails_leaves_the_old_one_and_no_folder_is_overwritten(
    zoo, tmp_path, monkeypatch
):
    sf.write(tmp_path / "song.wav", music(3), 22_050)
    old = tmp_path / "try" / app._folder_name(tmp_path / "song.wav")
    old.mkdir(parents=True)
    (old / "diary.txt").write_text("mine")
    assert "is no report of this program" in refusal(tmp_path / "song.wav", "--out", old.parent)
    (old / app.MARK).write_text("old")
    monkeypatch.setattr(try_track, "explain", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        app.report(tmp_path / "song.wav", ("robust",), old.parent)
    assert [path.name for path in old.parent.iterdir()] == [old.name]
    assert {path.name for path in old.iterdir()} == {"diary.txt", app.MARK}


def test_the_report_opens_in_a_browser_without_errors(reported, browser):
    said, folder = [], reported[0]
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((folder / app.MARK).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1280, "height": 900})
    widths = page.eval_on_selector_all("audio", "all => all.map(each => each.offsetWidth)")
    assert min(widths) > 400  # a seek bar of some length
    page.set_viewport_size({"width": 390, "height": 844})
    page.click("#timeline", position={"x": 300, "y": 50})
    page.wait_for_function("() => track.currentTime > 1 && !track.paused")
    assert float(page.get_attribute("#now", "style").split()[1].rstrip("%;")) > 9
    lengths = page.eval_on_selector_all("audio", "all => all.map(each => each.duration)")
    assert lengths == pytest.approx([9] * 7, abs=0.1)
    results = Axe().run(page, options={"preload": False})
    assert results.violations_count == 0, results.generate_report()
    page.close()
    assert said == []
