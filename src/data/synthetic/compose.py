"""From a genre's grammar to the notes of a track: style, bars, and what each part plays."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np

from src.data.synthetic.grammars import (
    BASE,
    CHORDS,
    COMPONENTS,
    DRUMS,
    GROOVES,
    RELATED,
    SCALES,
    STYLES,
    VELOCITY,
)

PARTS = ("drums", "bass", "harmony", "lead")
SECONDS = 30
BORROW = 0.05  # chance of each component to come from a related genre


class Note(NamedTuple):
    """One note; times in seconds from the start of the track."""

    start: float
    end: float
    pitch: int
    velocity: int


class Bar(NamedTuple):
    """Properties of one bar that all parts share."""

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


def pick(rng: np.random.Generator, options: Sequence):
    """Return one of the options; those of a string are its words."""
    options = options.split() if isinstance(options, str) else options
    return options[rng.integers(len(options))]


def draw_style(rng: np.random.Generator, genre: str) -> dict:
    """Draw a style of the genre, some of its components borrowed from related genres."""
    style = BASE | pick(rng, STYLES[genre])
    for component in COMPONENTS:
        donor = BASE | pick(rng, STYLES[pick(rng, RELATED[genre])])
        drumless = style["grooves"] == "none" and "grooves" in component
        fits = _metre(donor) == _metre(style) and not drumless
        if rng.random() < BORROW and fits:
            style |= {key: donor[key] for key in component}
    return style


def compose(rng: np.random.Generator, style: dict) -> list[list[Note]]:
    """Write the notes of each part."""
    bars = _draw_bars(rng, style)
    grooves, comps = ([pick(rng, style[key]) for _ in range(2)] for key in ("grooves", "comp"))
    bass, spread = pick(rng, style["bass"]), rng.uniform(0, 0.02)
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


def _metre(style: dict) -> tuple[int, int]:
    """Return beats and pattern steps in a bar."""
    return style["beats"], len(style["comp"].split()[0])


def _draw_bars(rng: np.random.Generator, style: dict) -> list[Bar]:
    """Lay out the bars of 30 s, entered somewhere in the first one."""
    length = style["beats"] * 60 / rng.uniform(*style["tempo"])
    key, swing = int(rng.integers(12)), rng.uniform(*style["swing"])
    symbols = [symbol.partition(":") for symbol in pick(rng, style["chords"]).split()]
    entry, bars = rng.uniform(0, length), []
    for i in range(int(np.ceil((SECONDS + entry) / length))):
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
