"""The embedded corpus: ten genres composed from seeded grammars and played by sampled instruments.

A track is 30 s of four parts. `grammars` holds each genre's patterns and instruments, `compose`
makes notes of them, `sound` plays and records them. A track draws one style and may borrow a
component from a related genre. The corpus is an imitation, so that everything runs without a
download; results on it do not apply to recorded music.
"""

from pathlib import Path

import numpy as np
import soundfile
from joblib import Parallel, delayed

from src.data.synthetic import compose, sound
from src.data.synthetic.compose import PARTS
from src.data.synthetic.grammars import GENRES, KITS, PROGRAMS, STYLES
from src.data.synthetic.sound import N_SAMPLES, SAMPLE_RATE
from src.progress import progress
from src.results import save_with

__all__ = ["GENRES", "N_SAMPLES", "PARTS", "SAMPLE_RATE", "make_corpus", "render", "render_parts"]

VERSION = 1  # of the music: raise it with every change that alters a sample


def render(genre: str, index: int, seed: int = 42) -> np.ndarray:
    """Return one finished track: float32 (661500,) in [-1, 1] at 22,050 Hz.

    It depends on genre, index and seed alone. Raises ValueError for an unknown genre.
    """
    stems, recording = _perform(genre, index, seed)
    mix = sound.place(stems.sum(axis=0, keepdims=True), recording)[0]
    return sound.finish(mix, recording)


def render_parts(genre: str, index: int, seed: int = 42) -> dict[str, np.ndarray]:
    """Return the parts of the same track: float32 (661500,) for each of `PARTS`.

    Each has the level, amplifier, band limits and room that it has in the mix. The last stage of
    the recording, `sound.finish`, saturates, adds noise and sets the gain: applied to the sum of
    the parts it gives, within float32 rounding, the track of `render`. A part that does not play is
    all zeros, as drums in classical. Raises ValueError for an unknown genre.
    """
    stems, recording = _perform(genre, index, seed)
    return dict(zip(PARTS, sound.place(stems, recording), strict=True))


def make_corpus(folder: str | Path, tracks_per_genre: int, seed: int = 42, n_jobs: int = 2) -> Path:
    """Write the missing tracks `<folder>/<genre>/<genre>.NNNNN.wav` and return the folder.

    Files are 30 s of mono PCM-16 at 22,050 Hz, whole or absent; the same bytes whatever n_jobs.
    Existing files are kept, so a folder holds one seed's corpus, and more tracks only add files.
    """
    folder = Path(folder)
    tracks = [(genre, index) for genre in GENRES for index in range(tracks_per_genre)]
    paths = {track: folder / track[0] / "{}.{:05d}.wav".format(*track) for track in tracks}
    missing = {track: path for track, path in paths.items() if not path.exists()}
    written = Parallel(n_jobs, return_as="generator_unordered")(
        delayed(_write)(genre, index, seed, path) for (genre, index), path in missing.items()
    )
    for _ in progress(written, "composing", len(missing), unit="track"):
        pass
    return folder


def _write(genre: str, index: int, seed: int, path: Path) -> None:
    samples = render(genre, index, seed)
    options = {"subtype": "PCM_16", "format": "WAV"}
    save_with(path, lambda part: soundfile.write(part, samples, SAMPLE_RATE, **options))


def _perform(genre: str, index: int, seed: int) -> tuple[np.ndarray, dict[str, float]]:
    """Compose and play a track: parts (4, n) at 48 kHz and its recording."""
    if genre not in STYLES:
        raise ValueError(
            f"unknown genre {genre!r}, probably misspelt: choose one of {', '.join(GENRES)}"
        )
    rng = np.random.default_rng([seed, GENRES.index(genre), index])
    style = compose.draw_style(rng, genre)
    recording = sound.draw_recording(rng, style)
    programs = [KITS[compose.pick(rng, style["kits"])]]
    instruments = (style[key] for key in ("basses", "harmonies", "leads"))
    programs += [PROGRAMS[compose.pick(rng, options)] for options in instruments]
    notes = compose.compose(rng, style)
    stems = sound.synthesise(rng, notes, programs, slide=style["lead"][2])
    if style["drive"]:
        amplified = 10 ** (style["drive"] / 20) / max(np.abs(stems[2]).max(), 1e-9)
        stems[2] = np.tanh(stems[2] * amplified)
    return sound.balance(rng, stems, style["levels"]), recording
