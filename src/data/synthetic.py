"""The embedded corpus: ten genres composed from seeded grammars and played by sampled instruments.

A track is 30 s of four parts. `grammars` says how each genre plays them. A track draws one style,
may borrow a component from a related genre, and ends in a recording of its own: band limits, room,
saturation, hiss. The corpus is an imitation, made so that everything runs without a download;
results on it say nothing about recorded music.
"""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import midirenderer
import numpy as np
import pretty_midi
import soundfile
from joblib import Parallel, delayed
from scipy import signal

from src.data.grammars import (
    BASE,
    CHORDS,
    COMPONENTS,
    DRUMS,
    GENRES,
    GROOVES,
    KITS,
    PROGRAMS,
    RELATED,
    SCALES,
    STYLES,
    VELOCITY,
)
from src.progress import progress

VERSION = 1  # of the music: raise it with every change that alters a sample
PARTS = ("drums", "bass", "harmony", "lead")
SAMPLE_RATE = 22_050
N_SAMPLES = 661_500
SYNTH_RATE = 48_000  # midirenderer has no other
BORROW = 0.05  # chance of each component to come from a related genre


class Note(NamedTuple):
    """One note; times in seconds from the start of the track."""

    start: float
    end: float
    pitch: int
    velocity: int


class Bar(NamedTuple):
    """What all parts know about one bar."""

    start: float  # seconds
    length: float  # seconds
    swing: float  # delay of every second sixteenth, in sixteenths
    key: int  # in semitones above C
    root: int  # of the chord, in semitones above C
    chord: tuple[int, ...]  # intervals above the root
    following: int  # root of the next bar's chord
    playing: tuple[str, ...]  # the parts that play
    section: int
    fill: bool  # whether it ends a section

    def times(self, steps: int) -> np.ndarray:
        """Return when each step of a pattern starts and the last ends: (steps + 1,) seconds."""
        grid = np.arange(steps + 1.0)
        if steps == 16:
            grid[1::2] += self.swing
        return self.start + grid * self.length / steps


def render(genre: str, index: int, seed: int = 42) -> np.ndarray:
    """Return one finished track: float32 (661500,) in [-1, 1] at 22,050 Hz.

    It depends on genre, index and seed alone. Raises ValueError for an unknown genre.
    """
    stems, recording = _perform(genre, index, seed)
    return finish(_place(stems.sum(axis=0, keepdims=True), recording)[0], recording)


def render_parts(genre: str, index: int, seed: int = 42) -> dict[str, np.ndarray]:
    """Return the parts of the same track: float32 (661500,) for each of `PARTS`.

    Each has the level, amplifier, band limits and room that it has in the mix. The recording's
    last stage, `finish`, saturates, adds noise and sets the gain: it acts on the sum of the parts,
    and within float32 rounding of that sum gives what `render` returns. A part that does not play
    is all zeros, as drums in classical. Raises ValueError for an unknown genre.
    """
    stems, recording = _perform(genre, index, seed)
    return dict(zip(PARTS, _place(stems, recording), strict=True))


def finish(mix: np.ndarray, recording: dict[str, float]) -> np.ndarray:
    """Return the sum of the parts (661500,) as recorded: saturated, with hiss, at its gain."""
    driven = np.tanh(mix * (recording["saturation"] / np.abs(mix).max()))
    rng = np.random.default_rng(recording["noise_seed"])
    hiss = signal.lfilter([1], [1, -recording["hiss_colour"]], rng.standard_normal(len(mix)))
    driven += hiss / hiss.std() * driven.std() * 10 ** (recording["hiss_db"] / 20)
    return (driven * (recording["peak"] / np.abs(driven).max())).astype(np.float32)


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
    """Render one track into its file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        soundfile.write(
            temporary, render(genre, index, seed), SAMPLE_RATE, subtype="PCM_16", format="WAV"
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _perform(genre: str, index: int, seed: int) -> tuple[np.ndarray, dict[str, float]]:
    """Compose and play a track: parts (4, n) at SYNTH_RATE and its recording."""
    if genre not in STYLES:
        raise ValueError(
            f"unknown genre {genre!r}, probably misspelt: choose one of {', '.join(GENRES)}"
        )
    rng = np.random.default_rng([seed, GENRES.index(genre), index])
    style = _draw_style(rng, genre)
    recording = _draw_recording(rng, style)
    programs = [KITS[_pick(rng, style["kits"])]]
    programs += [PROGRAMS[_pick(rng, style[key])] for key in ("basses", "harmonies", "leads")]
    stems = _synthesise(rng, _compose(rng, style), programs, slide=style["lead"][2])
    if style["drive"]:
        amplified = 10 ** (style["drive"] / 20) / max(np.abs(stems[2]).max(), 1e-9)
        stems[2] = np.tanh(stems[2] * amplified)
    return _balance(rng, stems, style["levels"]), recording


def _pick(rng: np.random.Generator, options: Sequence):
    """Return one of the options; those of a string are its words."""
    options = options.split() if isinstance(options, str) else options
    return options[rng.integers(len(options))]


def _draw_style(rng: np.random.Generator, genre: str) -> dict:
    """Draw a style of the genre, some of its components borrowed from related genres."""
    style = BASE | _pick(rng, STYLES[genre])
    for component in COMPONENTS:
        donor = BASE | _pick(rng, STYLES[_pick(rng, RELATED[genre])])
        drumless = style["grooves"] == "none" and "grooves" in component
        fits = _metre(donor) == _metre(style) and not drumless
        if rng.random() < BORROW and fits:
            style |= {key: donor[key] for key in component}
    return style


def _metre(style: dict) -> tuple[int, int]:
    """Return beats and pattern steps in a bar."""
    return style["beats"], len(style["comp"].split()[0])


def _compose(rng: np.random.Generator, style: dict) -> list[list[Note]]:
    """Write the notes of each part."""
    bars = _draw_bars(rng, style)
    grooves, comps = ([_pick(rng, style[key]) for _ in range(2)] for key in ("grooves", "comp"))
    bass, spread = _pick(rng, style["bass"]), rng.uniform(0, 0.02)
    players = {
        "drums": lambda bar: _drums(bar, GROOVES[grooves[bar.section % 2]]),
        "bass": lambda bar: _bass(rng, bar, bass),
        "harmony": lambda bar: _harmony(bar, comps[bar.section % 2], spread),
        "lead": _lead_player(rng, style),
    }
    return [
        [note for bar in bars if part in bar.playing for note in players[part](bar)]
        for part in PARTS
    ]


def _draw_bars(rng: np.random.Generator, style: dict) -> list[Bar]:
    """Lay out the bars of 30 s, entered somewhere in the first one."""
    length = style["beats"] * 60 / rng.uniform(*style["tempo"])
    key, swing = int(rng.integers(12)), rng.uniform(*style["swing"])
    symbols = [symbol.partition(":") for symbol in _pick(rng, style["chords"]).split()]
    entry, bars = rng.uniform(0, length), []
    for i in range(int(np.ceil((N_SAMPLES / SAMPLE_RATE + entry) / length))):
        if i % 4 == 0:
            playing = _draw_ensemble(rng, style["sparse"])
            fill = rng.random() < 0.6
        (degree, _, quality), (following, _, _) = (symbols[(i + k) % len(symbols)] for k in (0, 1))
        bars.append(
            Bar(
                start=i * length - entry,
                length=length,
                swing=swing,
                key=key,
                root=key + int(degree),
                chord=CHORDS[quality],
                following=key + int(following),
                playing=playing,
                section=i // 4,
                fill=fill and i % 4 == 3,
            )
        )
    return bars


def _draw_ensemble(rng: np.random.Generator, sparse: float) -> tuple[str, ...]:
    """Draw the parts that play a section; harmony and lead never rest together."""
    drums, bass, harmony, lead = rng.random(4) > (sparse, sparse / 2, 0.1, 0.25)
    plays = {"drums": drums, "bass": bass, "harmony": harmony, "lead": lead or not harmony}
    return tuple(part for part in PARTS if plays[part])


def _hits(pattern: str) -> Iterator[tuple[int, int, str]]:
    """Yield step, first step that is not held and character of each hit in a pattern."""
    for hit in re.finditer(r"[^.-]-*", pattern):
        yield hit.start(), hit.end(), hit[0][0]


def _drums(bar: Bar, groove: dict[str, str]) -> list[Note]:
    """Play a groove; a fill replaces its last quarter by toms."""
    hits = [
        (bar.times(len(pattern))[step], DRUMS[drum], VELOCITY[char])
        for drum, pattern in groove.items()
        for step, _, char in _hits(pattern)
        if not bar.fill or step < 0.75 * len(pattern)
    ]
    if bar.fill and groove:
        hits += [(bar.times(16)[12 + i], DRUMS[drum], 100) for i, drum in enumerate("sTTt")]
    return [Note(time, time + 0.1, pitch, velocity) for time, pitch, velocity in hits]


def _bass(rng: np.random.Generator, bar: Bar, pattern: str) -> list[Note]:
    """Play the bass from E1 up; walking steps touch the chord and lead into the next root."""
    times, root = bar.times(len(pattern)), _fold(bar.root, 28)
    seventh = bar.chord[3] if len(bar.chord) > 3 else 9
    offsets = {"r": 0, "R": 12, "f": 7, "t": bar.chord[1], "v": seventh}
    notes = []
    for step, end, char in _hits(pattern):
        if char != "w":
            pitch = root + offsets[char]
        elif end == len(pattern):
            pitch = _fold(bar.following, 28) + rng.choice([-1, 1])
        else:
            pitch = root + (rng.choice(bar.chord) if step else 0)
        notes.append(Note(times[step], times[end] - 0.01, int(pitch), 98))
    return notes


def _harmony(bar: Bar, pattern: str, spread: float) -> list[Note]:
    """Play chords in close position below middle C, or power chords from E2 up."""
    times, notes = bar.times(len(pattern)), []
    voicing = sorted(_fold(bar.root + interval, 54) for interval in bar.chord)
    low = _fold(bar.root, 40)
    ladder = cycle([*voicing, voicing[0] + 12])
    for step, end, char in _hits(pattern):
        pitches = {"p": [low, low + 7, low + 12], "m": [low], "x": voicing, "X": voicing}
        stop = times[step] + 0.07 if char == "m" else times[end] - 0.01
        for i, pitch in enumerate([next(ladder)] if char == "a" else pitches[char]):
            notes.append(Note(times[step] + i * spread, stop, pitch, 110 if char == "X" else 90))
    return notes


def _fold(pitch: int, lowest: int) -> int:
    """Return the pitch moved by octaves into the one that starts at `lowest`."""
    return lowest + (pitch - lowest) % 12


def _lead_player(rng: np.random.Generator, style: dict) -> Callable[[Bar], list[Note]]:
    """Return a player that walks along the scale in two rhythmic motifs, on chords at the beats."""
    beats, steps = _metre(style)
    density, legato, _ = style["lead"]
    weight = np.where(np.arange(steps) % (steps // beats) == 0, 1.6, 0.8)
    motifs = [np.flatnonzero(rng.random(steps) < density * weight) for _ in range(2)]
    scale, place = SCALES[style["scale"]], 0

    def play(bar: Bar) -> list[Note]:
        nonlocal place
        times, notes = bar.times(steps), []
        onsets = motifs[int(bar.fill)]
        for step, end in zip(onsets, [*onsets[1:], steps], strict=False):
            place = int(np.clip(place + rng.choice([-2, -1, -1, 0, 1, 1, 2]), -6, 8))
            octave, degree = divmod(place, len(scale))
            pitch = _fold(bar.key, 66) + 12 * octave + scale[degree]
            if step % (steps // beats) == 0:
                tones = np.array([_fold(bar.root + interval, pitch - 6) for interval in bar.chord])
                pitch = int(tones[np.abs(tones - pitch).argmin()])
            stop = times[step] + legato * (times[end] - times[step])
            notes.append(Note(times[step], stop, pitch, 96))
        return notes

    return play


def _synthesise(
    rng: np.random.Generator, parts: list[list[Note]], programs: list[int], slide: float
) -> np.ndarray:
    """Play the parts with sampled instruments: float32 (4, n) at SYNTH_RATE.

    Two parts share a rendering, one on each side of the stereo, which halves the cost.
    """
    sides = []
    for pair in ((0, 1), (2, 3)):
        midi = pretty_midi.PrettyMIDI(initial_tempo=120)
        for side, part in enumerate(pair):
            player = _instrument(rng, parts[part], programs[part], slide if part == 3 else 0)
            player.is_drum = part == 0
            # Pan (coarse and fine) hard to one side; no reverb, no chorus.
            player.control_changes = [
                pretty_midi.ControlChange(control, value, 0)
                for control, value in ((10, 127 * side), (42, 127 * side), (91, 0), (93, 0))
            ]
            midi.instruments.append(player)
        sides.append(_play_midi(midi))
    return np.concatenate(sides)


def _instrument(
    rng: np.random.Generator, notes: list[Note], program: int, slide: float
) -> pretty_midi.Instrument:
    """Return a part as a human plays it: uneven in time and force, sliding into some notes."""
    player = pretty_midi.Instrument(program)
    duration = N_SAMPLES / SAMPLE_RATE
    for note in notes:
        late, force, bend = rng.normal(0, 0.006), rng.normal(0, 7), rng.random() < slide
        start, end = max(note.start + late, 0), min(note.end + late, duration)
        if end - start > 0.02:
            velocity = int(np.clip(note.velocity + force, 20, 127))
            player.notes.append(pretty_midi.Note(velocity, note.pitch, start, end))
            for i in range(5 if bend else 0):
                player.pitch_bends.append(pretty_midi.PitchBend(-1024 * (4 - i), start + 0.025 * i))
    return player


def _play_midi(midi: pretty_midi.PrettyMIDI) -> np.ndarray:
    """Render 30 s of MIDI: float32 (2, n) at SYNTH_RATE."""
    file = io.BytesIO()
    midi.write(file)
    wave = io.BytesIO(midirenderer.render_wave_from(_soundfont(), file.getvalue()))
    audio = soundfile.read(wave, dtype="float32", always_2d=True)[0].T
    wanted = N_SAMPLES * SYNTH_RATE // SAMPLE_RATE
    return np.pad(audio, ((0, 0), (0, max(0, wanted - audio.shape[1]))))[:, :wanted]


@cache
def _soundfont() -> bytes:
    """Return pretty_midi's soundfont without its pannings and effect sends.

    A sample's own place in the stereo would leak a part into its neighbour's side.
    """
    font = bytearray((Path(pretty_midi.__file__).parent / "TimGM6mb.sf2").read_bytes())
    start = font.index(b"igen") + 8
    size = int.from_bytes(font[start - 4 : start], "little")
    generators = np.frombuffer(font, "<i2", size // 2, start).reshape(-1, 2)
    generators[np.isin(generators[:, 0], (15, 16, 17)), 1] = 0  # chorus, reverb, pan
    return bytes(font)


def _balance(rng: np.random.Generator, stems: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    """Scale each part to its level (dB) where it plays, give or take; silence stays silent."""
    frames = np.square(stems).reshape(len(stems), -1, SYNTH_RATE // 10).mean(axis=-1)
    plays = frames > 0.01 * frames.max(axis=1, keepdims=True)  # a part's rests must not raise it
    loudness = np.sqrt((frames * plays).sum(axis=1) / np.maximum(plays.sum(axis=1), 1))
    wanted = 0.1 * 10 ** ((levels + rng.normal(0, 1.5, len(stems))) / 20)
    gain = np.where(loudness > 0, wanted / np.maximum(loudness, 1e-9), 0)
    return (stems * gain[:, None]).astype(np.float32)


def _draw_recording(rng: np.random.Generator, style: dict) -> dict[str, float]:
    """Draw how the track was recorded; old recordings are narrow, noisy and saturated."""
    old = rng.random() < style["lofi"]
    return {
        "low_cut": rng.uniform(60, 180) if old else rng.uniform(20, 60),
        "high_cut": rng.uniform(2800, 6000) if old else rng.uniform(7000, 10500),
        "tilt_db": rng.normal(style["tilt"], 1.2),
        "reverb": rng.uniform(0, 0.4),
        "decay": rng.uniform(0.2, 1.6),
        "saturation": rng.uniform(1, 4) if old else rng.uniform(0.3, 2),
        "hiss_db": rng.uniform(-45, -25) if old else rng.uniform(-80, -45),
        "hiss_colour": rng.uniform(0, 0.95),
        "peak": rng.uniform(0.3, 0.99),
        "noise_seed": int(rng.integers(2**32)),
    }


def _place(stems: np.ndarray, recording: dict[str, float]) -> np.ndarray:
    """Bring (parts, n) at SYNTH_RATE through the recording's linear steps to (parts, 661500)."""
    audio = signal.resample_poly(stems, 147, 320, axis=1).astype(np.float32)  # SAMPLE / SYNTH
    response = _response(recording)[None, :]
    return signal.oaconvolve(audio, response, axes=1)[:, :N_SAMPLES]


def _response(recording: dict[str, float]) -> np.ndarray:
    """Return the recording's impulse response, float32: room, spectral tilt and band limits."""
    rng = np.random.default_rng(recording["noise_seed"])
    time = np.arange(int(recording["decay"] * SAMPLE_RATE)) / SAMPLE_RATE
    room = rng.standard_normal(len(time)) * np.exp(-6.9 * time / recording["decay"])
    room *= recording["reverb"] / np.linalg.norm(room)
    room[: SAMPLE_RATE // 100] = 0  # the room answers 10 ms after the direct sound
    room[0] = 1
    dark = signal.sosfilt(signal.butter(1, 800, fs=SAMPLE_RATE, output="sos"), room)
    room += (10 ** (recording["tilt_db"] / 20) - 1) * dark
    band = (recording["low_cut"], recording["high_cut"])
    limits = signal.butter(2, band, "bandpass", fs=SAMPLE_RATE, output="sos")
    return signal.sosfilt(limits, room).astype(np.float32)
