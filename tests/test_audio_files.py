"""Audio as other programs write it: all of it is used, or there is a reason."""

import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile as sf
from conftest import corpus_at, only_row

RATE, SECONDS = 22_050, 13


@pytest.fixture(name="source")
def _source(tmp_path, noise):
    """Return a WAV of 13 s: noise, then a tone, which takes far fewer bytes in an MP3."""
    samples = 0.2 * np.sin(2 * np.pi * 440 * np.arange(SECONDS * RATE) / RATE)
    samples[: 5 * RATE] = noise(0, 5)
    path = tmp_path / "a.wav"
    sf.write(path, samples, RATE)
    return path


def made_by(command, ending, folder):
    """Return the row and the corpus of the file x.<ending> that a command of the shell makes."""
    for tool in command.split("|")[0].split(";"):
        if shutil.which(tool.split()[0]) is None:
            pytest.skip(f"{tool.split()[0]} is not installed")
    corpus = folder / "corpus"
    (corpus / "rock").mkdir(parents=True)
    command = command.replace("X", f"corpus/rock/x.{ending}")
    subprocess.run(command, shell=True, cwd=folder, check=True, capture_output=True)
    return only_row(corpus), corpus


WHOLE = {
    "MP3 of a constant rate": ("lame --quiet -b 64 a.wav X", "mp3", 1),
    "MP3 of a constant rate without a header": ("lame --quiet -t -b 64 a.wav X", "mp3", 1),
    "MP3 of sox": ("sox a.wav X", "mp3", 1),
    "MP3 of a variable rate": ("lame --quiet -V4 a.wav X", "mp3", 1),
    "MP3 of a variable rate without a header": ("lame --quiet -V4 a.wav - | cat > X", "mp3", 1),
    "MP3 with tags at both ends": ("lame --quiet --add-id3v2 --tt t -V4 a.wav X", "mp3", 1),
    "joined MP3s without headers": ("lame --quiet -V4 -t a.wav b; cat b b > X", "mp3", 2),
    "FLAC of unknown length": ("ffmpeg -i a.wav -f flac - | cat > X", "flac", 1),
    "FLAC": ("ffmpeg -i a.wav X", "flac", 1),
    "Ogg": ("oggenc -Q a.wav -o X", "ogg", 1),
    "WAV in a pipe of ffmpeg": ("ffmpeg -i a.wav -f wav - | cat > X", "wav", 1),
    "WAV in a pipe of sox": ("sox a.wav -t wav - | cat > X", "wav", 1),
    "WAV in a pipe of lame": (
        "lame --quiet a.wav b; lame --quiet --decode b - | cat > X",
        "wav",
        1,
    ),
    "AU in a pipe": ("sox a.wav -t au - | cat > X", "au", 1),
}


@pytest.mark.parametrize(("command", "ending", "times"), WHOLE.values(), ids=WHOLE)
def test_files_of_other_programs_are_used_to_their_end(source, tmp_path, command, ending, times):
    row, corpus = made_by(command, ending, tmp_path)
    assert (row.used, row.reason) == (True, "")
    assert row.duration_s == pytest.approx(times * SECONDS, abs=0.2)
    assert row.n_segments == times * SECONDS // 3
    samples = corpus_at(corpus).read(row)
    assert np.abs(np.fft.rfft(samples[-2 * RATE : -RATE])).argmax() == 440


REFUSED = {
    "joined MP3s": (
        "lame --quiet -V4 a.wav b; cat b b > X",
        "mp3",
        "unread: .* header states, 13.00 s; files may have been joined",
    ),
    "chained Ogg": (
        "oggenc -Q a.wav -o b; cat b b > X",
        "ogg",
        "unread: .* header states, 13.00 s; files may have been joined",
    ),
    "joined WAVs": ("sox a.wav -t wav b; cat b b > X", "wav", "unreadable: Error in WAV file"),
    "M4A named MP3": ("ffmpeg -i a.wav -f mp4 X", "mp3", "unreadable: Format not .* or no MP3"),
}


@pytest.mark.parametrize(("command", "ending", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_shortened_has_a_reason(source, tmp_path, capfd, command, ending, reason):
    row, _ = made_by(command, ending, tmp_path)
    assert not row.used
    assert re.match(reason, row.reason)
    assert "libmpg123" not in capfd.readouterr().err


def little(number):
    return number.to_bytes(4, "little")


UNKNOWN = [0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
HEADERS = {f"both {n:#x}": (n, n) for n in UNKNOWN}
HEADERS["never closed"] = (8, 0)
HEADERS |= {f"RIFF {by:+}": (SECONDS * RATE * 2 + 36 + by, None) for by in (-2, 1, 8, 44)}


@pytest.mark.parametrize(("riff", "data"), HEADERS.values(), ids=HEADERS)
def test_a_wav_is_whole_if_the_bytes_of_its_samples_are_there(source, tmp_path, riff, data):
    corpus, content = tmp_path / "corpus", source.read_bytes()
    (corpus / "rock").mkdir(parents=True)
    length = content[40:44] if data is None else little(data)
    path = corpus / "rock" / "x.wav"
    path.write_bytes(content[:4] + little(riff) + content[8:40] + length + content[44:])
    row = only_row(corpus)
    assert (row.used, row.n_segments, row.reason) == (True, 4, "")
    path.write_bytes(path.read_bytes() + b"id3 " + little(50_000) + bytes(50_000))
    assert only_row(corpus).used
    path.write_bytes(content[:4] + little(0) + content[8:40] + little(0) + content[44:])
    assert only_row(corpus).reason.startswith("unread: 573300 bytes behind the end")


def test_an_ogg_without_the_flag_of_its_end_is_used(write_track, noise):
    corpus = write_track("rock/rock.00000.ogg", noise(0, seconds=10))
    path = corpus / "rock" / "rock.00000.ogg"
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"OggS")])
    assert only_row(corpus).used
    path.write_bytes(content[: content.rindex(b"OggS") + 50])
    assert only_row(corpus).reason.startswith("truncated: the last page is not whole")
