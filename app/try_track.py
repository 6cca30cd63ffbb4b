"""Report of the reader's own track: `python -m app.try_track song.mp3`; of several, a table."""

import argparse
import base64
import hashlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile as sf

from app import render
from src import plots_track, try_track
from src.attacks.codecs import write_audio
from src.data.features import SAMPLE_RATE, SEGMENT_SAMPLES, SEGMENT_SECONDS
from src.data.own_track import LONGEST_S, own_tracks, read_track
from src.models.zoo import PREFIX
from src.parameters import read_value
from src.paths import ROOT, short_name
from src.plots import DPI
from src.progress import progress
from src.results import save_with, write_csv, write_json
from src.runtime import prepare_process
from src.try_track import NETWORKS, Reading, Trial

RESULTS = ROOT / "results" / "try"
MARK = "report.html"  # a folder with this file may be replaced
LOSSLESS = ("clean", "noise", "attack")  # as the network classified them
TITLES = {"clean": "The excerpt", "noise": "With white noise", "attack": "Under attack"}
COLUMNS = ["track", "used (s)", "network", "genre", "confidence (%)", "second genre", "warning"]


def report(path: Path, networks: tuple[str, ...] = NETWORKS, results: Path = RESULTS) -> Trial:
    """Write `<results>/<folder>-<track>-<digest of its path>/` or nothing; return what it shows.

    Files: report.html, which holds its pictures and sounds, and timeline.png, votes.png, one WAV
    for each sound, segments.csv and results.json. Raises FileNotFoundError and ValueError in one
    sentence.
    """
    with _new_folder(results / _folder_name(path)) as folder:
        trial = try_track.try_track(path, networks)
        figures = {"timeline": plots_track.timeline(trial), "votes": plots_track.votes(trial)}
        for name, figure in figures.items():
            save_with(folder / f"{name}.png", lambda part, f=figure: f.savefig(part, dpi=DPI))
        for kind, samples in trial.sounds.items():
            write_audio(folder / f"{kind}.wav", np.clip(samples, -1, 1))
        write_csv(folder / "segments.csv", try_track.segment_table(trial))
        write_json(folder / "results.json", try_track.facts(trial))
        images = {
            name: _data("image/png", (folder / f"{name}.png").read_bytes()) for name in figures
        }
        (folder / MARK).write_text(_render(trial, images), encoding="utf-8")
    return trial


def table(paths: list[Path], networks: tuple[str, ...], folder: Path) -> pd.DataFrame:
    """Write predictions of several tracks as report.html and tracks.csv; return them.

    One row per track and network; a file that cannot be used has one row without a network, whose
    warning is the reason. Raises ValueError if no file can be used.
    """
    loaded, rows = try_track.load_networks(networks), []
    common = os.path.commonpath([path.absolute().parent for path in paths])
    with _new_folder(folder) as part:
        for path in progress(paths, "tracks", unit="track"):
            shown = _text(path.absolute().relative_to(common))
            try:
                track = read_track(path)
            except ValueError as error:
                rows.append([shown, *[""] * (len(COLUMNS) - 2), _text(str(error))])
                continue
            _, readings = try_track.predict(track, loaded)
            rows += [[shown, round(track.used_s), *_in_short(*pair)] for pair in readings.items()]
        found = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
        if not found["network"].any():
            raise ValueError(f"None of {len(paths)} files can be used: {rows[0][-1]}")
        write_csv(part / "tracks.csv", found)
        page = render("try_tracks.html", n=len(paths), table=found)
        (part / MARK).write_text(page, encoding="utf-8")
    return found


def verdict(trial: Trial) -> list[str]:
    """Return the results of a trial in four lines."""
    (first, reading), *others = trial.readings.items()
    winners = {kind: _winner(reading, vote) for kind, vote in trial.votes.items()}
    genres = [reading.genres[k] for k in reading.probabilities.argmax(axis=1)]
    best, n = reading.ranking(1)[0][0], len(genres)
    unlike = _networks_where(trial, "unfamiliar")
    warning = f"; it sounds unlike the training data of {', '.join(unlike)}" if unlike else ""
    known = _networks_where(trial, "known")
    if known:
        warning += f"; {', '.join(known)} knows a track of this name from training"
    ranking = [f"{genre} {p:.0%}" for genre, p in reading.ranking()]
    second = [f"; {name}: {_top(each)}" for name, each in others]
    audio = [f"{name}: {genre} ({p:.0%})" for name, (genre, p) in winners.items()]
    return [
        f"{trial.track.name}: {', '.join(ranking)} (network {first}{''.join(second)})",
        f"{genres.count(best)} of {n} segments of 3 s are predicted as {best}{warning}",
        "smallest change of the spectrogram that alters the prediction of the excerpt: "
        + "; ".join(f"{name} {_minimal(each)}" for name, each in trial.readings.items()),
        f"audio at {try_track.SNR_DB} dB SNR: {', '.join(audio)}",
    ]


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `target`, a report or nothing, if the block succeeds."""
    if target.exists() and not (target / MARK).exists():
        raise FileExistsError(
            f"{target} exists and is no report of this program: give another folder as OUT."
        )
    there = next(folder for folder in target.absolute().parents if folder.exists())
    with tempfile.TemporaryDirectory(dir=there, prefix=".part-") as part:
        folder = Path(part) / "report"
        folder.mkdir()
        yield folder
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)


def _folder_name(path: Path) -> str:
    """Return the name of the results of a file or folder, another one for each path."""
    path = path.resolve()
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:6]
    return short_name(_text(f"{path.parent.name}-{path.name}-{digest}"))


def _text(path: Path | str) -> str:
    """Return a path as text that can be written, whatever bytes it has."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _render(trial: Trial, images: dict[str, str]) -> str:
    """Return the report of a trial, whose `images` are data URLs."""
    (first, reading), *_ = trial.readings.items()
    segments = try_track.segment_table(trial)
    start, end = trial.track.starts_s[trial.excerpt[[0, -1]]]
    return render(
        "try_track.html",
        trial=trial,
        first=first,
        reading=reading,
        images=images,
        sounds=_sounds(trial),
        titles=TITLES,
        unlike=_networks_where(trial, "unfamiliar"),
        known=_networks_where(trial, "known"),
        winners={kind: _winner(reading, vote) for kind, vote in trial.votes.items()},
        table=segments[segments["network"] == first].drop(columns="network"),
        length=_length(trial.track.length_s),
        excerpt=f"{_clock(start)} to {_clock(end + SEGMENT_SECONDS)}",
        ratio="unchanged" if np.isnan(trial.snr_db) else f"{trial.snr_db:.0f} dB",
        largest_db=try_track.MINIMAL_DB[1],
        steps=try_track.SEARCH.iterations,
        left=plots_track.LEFT,
        right=plots_track.RIGHT,
    )


def _sounds(trial: Trial) -> dict[str, str]:
    """Return data URLs of the whole track and of the sounds: FLAC of classified ones, else MP3."""
    n = round(trial.track.used_s / SEGMENT_SECONDS)
    places = np.rint(trial.track.starts_s / SEGMENT_SECONDS).astype(int)
    whole = np.zeros((n, SEGMENT_SAMPLES), dtype=np.float32)
    whole[places] = trial.track.samples
    urls = {}
    for kind, samples in {"track": whole.ravel(), **trial.sounds}.items():
        file, clipped = io.BytesIO(), np.clip(samples, -1, 1)
        if kind in LOSSLESS:
            sf.write(file, clipped, SAMPLE_RATE, format="FLAC")
        else:
            write_audio(file, clipped, "mp3_64k")
        urls[kind] = _data("audio/flac" if kind in LOSSLESS else "audio/mpeg", file.getvalue())
    return urls


def _in_short(network: str, reading: Reading) -> list:
    """Return the columns of the table that describe a reading."""
    (genre, confidence), (second, _), *_ = reading.ranking()
    warnings = ["unlike the training data"] * reading.unfamiliar
    warnings += ["known from training"] * reading.known
    return [network, genre, round(100 * confidence, 1), second, "; ".join(warnings)]


def _top(reading: Reading) -> str:
    """Return the most probable genre and its probability."""
    ((genre, probability),) = reading.ranking(1)
    return f"{genre} {probability:.0%}"


def _winner(reading: Reading, vote: np.ndarray) -> tuple[str, float]:
    """Return the most probable genre of a vote (n_genres,) and its probability."""
    return reading.genres[vote.argmax()], float(vote.max())


def _networks_where(trial: Trial, field: str) -> list[str]:
    """Return the networks whose reading has a field that is true."""
    return [name for name, reading in trial.readings.items() if getattr(reading, field)]


def _minimal(reading: Reading) -> str:
    """Return the smallest change that alters a prediction, as text."""
    if reading.minimal_db is None:
        return f"none below {try_track.MINIMAL_DB[1]:g} dB"
    return f"{reading.minimal_db:.2g} dB (to {reading.flipped_to})"


def _length(seconds: float | None) -> str:
    """Return how long a file is and how much of it is used, as a sentence."""
    used = f"its first {_clock(LONGEST_S)} min are used"
    if seconds is None:
        return f"The file lasts more than {_clock(LONGEST_S)} min: {used}."
    return f"The file lasts {_clock(seconds)} min{f': {used}' if seconds > LONGEST_S else ''}."


def _clock(seconds: float) -> str:
    """Return seconds as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def main(arguments: list[str]) -> int:
    """Write the report of one track, or the table of several; return 0."""
    parser = argparse.ArgumentParser(prog="app.try_track", description=__doc__)
    parser.add_argument("tracks", nargs="+", type=Path, help="audio files or folders of them")
    parser.add_argument("--model", default="", help="separated by commas; default: all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    prepare_process()
    try:
        names = read_value("MODEL", options.model, []) or NETWORKS
        networks = tuple(name.removeprefix(PREFIX) for name in names)
        paths = own_tracks(options.tracks)
        if paths == options.tracks[:1]:
            trial, folder = report(paths[0], networks, options.out), paths[0]
            print("\n".join(verdict(trial)))
        else:
            folder = options.tracks[0]
            found = table(paths, networks, options.out / _folder_name(folder))
            used = found["network"] != ""
            print("\n".join([found[used].to_string(index=False), *found.loc[~used, "warning"]]))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"report: {options.out / _folder_name(folder) / MARK}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
