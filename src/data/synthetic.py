"""The embedded corpus: ten genres composed from seeded grammars and played by sampled instruments.

A track is 30 s of four parts. `STYLES` says how each genre plays them, in step patterns: one
string is one bar, so 16 characters are sixteenths and 12 are triplets (or sixteenths of a bar of
three beats). A track draws one style, may borrow a component from a related genre, and ends in a
recording of its own: band limits, room, saturation, hiss. The corpus is an imitation, made so that
everything runs without a download; results on it say nothing about recorded music.
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
from tqdm.auto import tqdm

PARTS = ("drums", "bass", "harmony", "lead")
SAMPLE_RATE = 22_050
N_SAMPLES = 661_500
SYNTH_RATE = 48_000  # midirenderer has no other
BORROW = 0.05  # chance of each component to come from a related genre

# General MIDI programs (from 0), by the names that the styles use.
PROGRAMS = {
    "piano": 0, "bright": 1, "honky": 3, "rhodes": 4, "fm": 5, "harpsichord": 6, "clavinet": 7,
    "vibes": 11, "organ": 16, "percorgan": 17, "rockorgan": 18, "church": 19, "accordion": 21,
    "harmonica": 22, "nylon": 24, "steel": 25, "jazzgt": 26, "clean": 27, "muted": 28,
    "overdrive": 29, "distortion": 30, "upright": 32, "fingered": 33, "picked": 34, "fretless": 35,
    "slap": 36, "synbass": 38, "subbass": 39, "violin": 40, "viola": 41, "cello": 42, "contra": 43,
    "tremolo": 44, "pizzicato": 45, "harp": 46, "strings": 48, "slowstrings": 49, "synstrings": 50,
    "aahs": 52, "oohs": 53, "synvoice": 54, "orchhit": 55, "trumpet": 56, "trombone": 57,
    "mutedtpt": 59, "horn": 60, "brass": 61, "synbrass": 62, "soprano": 64, "alto": 65,
    "tenor": 66, "oboe": 68, "bassoon": 70, "clarinet": 71, "flute": 73, "square": 80, "saw": 81,
    "voxlead": 85, "warmpad": 89, "polypad": 90, "banjo": 105, "fiddle": 110,
}  # fmt: skip
KITS = {"standard": 0, "room": 8, "power": 16, "electronic": 24, "tr808": 25, "jazz": 32,
        "brush": 40}  # fmt: skip
# kick, snare, rim, clap, closed hat, open hat, pedal hat, ride, crash, toms, tambourine, conga, bell
DRUMS = {"k": 36, "s": 38, "r": 37, "c": 39, "h": 42, "o": 46, "p": 44, "R": 51, "C": 49, "t": 45,
         "T": 48, "y": 54, "g": 63, "b": 56}  # fmt: skip
VELOCITY = {"X": 116, "x": 94, "o": 48}

CHORDS = {
    "": (0, 4, 7), "m": (0, 3, 7), "5": (0, 7, 12), "6": (0, 4, 7, 9), "7": (0, 4, 7, 10),
    "m7": (0, 3, 7, 10), "M7": (0, 4, 7, 11), "9": (0, 4, 10, 14), "m9": (0, 3, 10, 14),
    "o": (0, 3, 6, 9), "s": (0, 5, 7),
}  # fmt: skip
SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10), "blues": (0, 3, 5, 6, 7, 10),
    "penta": (0, 2, 4, 7, 9), "minpenta": (0, 3, 5, 7, 10), "mixo": (0, 2, 4, 5, 7, 9, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10), "harmonic": (0, 2, 3, 5, 7, 8, 11),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
}  # fmt: skip

# One bar each: X accent, x hit, o ghost note.
GROOVES = {
    "none": {},
    "rock": {"k": "x.......x.x.....", "s": "....X.......X...", "h": "X.x.X.x.X.x.X.x."},
    "push": {"k": "x.....xx..x.....", "s": "....X.......X..o", "h": "x.x.x.x.x.x.x.x."},
    "ride": {"k": "x..x....x.x..x..", "s": "....X.......X...", "R": "X.x.X.x.X.x.X.x."},
    "tomtom": {"k": "x...x...x...x...", "t": "x.x.x.x.x.x.x.x.", "s": "....X.......X..."},
    "punk": {"k": "x..x..x.x..x..x.", "s": "..X...X...X...X.", "C": "x...x...x...x..."},
    "double": {"k": "xxxxxxxxxxxxxxxx", "s": "....X.......X...", "C": "x...x...x...x..."},
    "gallop": {"k": "x.xxx.xxx.xxx.xx", "s": "....X.......X...", "R": "x.x.x.x.x.x.x.x."},
    "blast": {"k": "x.x.x.x.x.x.x.x.", "s": ".x.x.x.x.x.x.x.x", "R": "x.x.x.x.x.x.x.x."},
    "breakdown": {"k": "x..xx.x..x.xx.x.", "s": "........X.......", "C": "x...x...x...x..."},
    "disco": {"k": "X...X...X...X...", "s": "....x.......x...", "o": "..X...X...X...X.",
              "y": "xoxoxoxoxoxoxoxo"},
    "disco16": {"k": "X...X...X...X...", "c": "....x.......x...", "h": "xx.xxx.xxx.xxx.x",
                "o": "..x...x...x...x."},
    "funk": {"k": "x.x...x...x..x..", "s": "....X..o.o..X..o", "h": "xxxxxxxxxxxxxxxx"},
    "four": {"k": "X...X...X...X...", "c": "....x.......x...", "h": "..x...x...x...x."},
    "synpop": {"k": "x.....x.x.....x.", "s": "....X.......X...", "h": "xxxxxxxxxxxxxxxx"},
    "ballad": {"k": "x.......x.......", "r": "....x.......x...", "h": "x.x.x.x.x.x.x.x."},
    "boombap": {"k": "x.....x...xx....", "s": "....X.......X...", "h": "x.x.x.x.x.x.x.x."},
    "boombap2": {"k": "xx.....x..x..x..", "s": "....X..o.o..X...", "h": "x.xxx.x.x.xxx.x."},
    "trap": {"k": "x.....x..x......", "c": "........X.......", "h": "x.x.xxx.x.x.xxxx"},
    "onedrop": {"k": "........X.......", "r": "........X.......", "h": "x.o.x.o.x.o.x.o."},
    "steppers": {"k": "X...X...X...X...", "r": "........X....o..", "h": "x.xxx.xxx.xxx.xx"},
    "rockers": {"k": "x.......x.......", "s": "....o...X.......", "h": "..x...x...x...x."},
    "dancehall": {"k": "x.....x...x.....", "s": "...x..X....x..X.", "h": "x.x.x.x.x.x.x.x."},
    "train": {"k": "x...x...x...x...", "s": "ooXoooXoooXoooXo"},
    "twostep": {"k": "x.......x.......", "s": "....x.......x...", "h": "x.x.x.x.x.x.x.x."},
    "bossa": {"k": "x.....x.x.....x.", "r": "x..x..x...x..x..", "h": "xxxxxxxxxxxxxxxx"},
    "shuffle": {"k": "x.....x..x..", "s": "...X.....X..", "h": "x.xx.xx.xx.x"},
    "slow12": {"k": "x....xx.....", "s": "...X.....X..", "h": "xxxxxxxxxxxx"},
    "texas": {"k": "x..x..x..x..", "s": "o.oX.oo.oX.o", "R": "x.xx.xx.xx.x"},
    "swing": {"R": "x..X.xx..X.x", "p": "...x.....x..", "k": "o.....o....o", "s": ".....o......"},
    "swing2": {"R": "x..X.xx..X.x", "p": "...x.....x..", "s": "..o.....o..o", "k": "....x......."},
    "brushes": {"s": "o..x.oo..x.o", "p": "...x.....x..", "k": "o.....o....."},
    "waltz": {"k": "x...........", "s": "....x...x...", "h": "x...x...x..."},
}  # fmt: skip

# Patterns of bass and harmony: `-` holds the step before, `.` is a rest.
# bass: r root, R octave, f fifth, t third, v sixth or seventh, w a walking step.
# harmony: x chord, X accented chord, a next tone of the chord, p power chord, m its palm-muted root.
# lead: (notes per step, share of its time that a note sounds, chance of a slide into it).
# levels: dB of drums, bass, harmony, lead. drive: dB of gain into the guitar amplifier.
BASE = {"beats": 4, "swing": (0.0, 0.0), "kits": "standard room", "centre": 72, "drive": 0,
        "levels": (0, -2, -4, -3), "tilt": 0, "lofi": 0.1, "sparse": 0.07}  # fmt: skip
TWELVE = "0:7 0:7 0:7 0:7 5:7 5:7 0:7 0:7 7:7 5:7 0:7 7:7"
STYLES = {
    "blues": [
        {"tempo": (95, 140), "grooves": "shuffle texas",
         "bass": "r.rt.tf.fv.v r..t..f..v.. w--w--w--w--", "basses": "fingered upright",
         "comp": "x.xx.xx.xx.x ..X..X..X..X x--..x..x...", "harmonies": "organ clean",
         "leads": "overdrive harmonica", "lead": (0.4, 0.8, 0.5), "scale": "blues",
         "chords": [TWELVE, "0:7 5:7 0:7 0:7 5:7 5:7 0:7 0:7"], "lofi": 0.35},
        {"tempo": (52, 78), "grooves": "slow12", "bass": "r-----f--v-- r--r-tf--f-v",
         "basses": "fingered upright", "comp": "x-----x----- xxxxxxxxxxxx ..x..x..x..x",
         "harmonies": "organ clean", "leads": "overdrive harmonica", "lead": (0.4, 0.9, 0.6),
         "scale": "blues", "chords": [TWELVE, "0:m7 5:m7 0:m7 7:7"], "lofi": 0.35},
        {"tempo": (80, 125), "grooves": "shuffle brushes", "kits": "brush standard",
         "bass": "r..f..r..f.. r-----f-----", "basses": "upright",
         "comp": "x.xx.xx.xx.x a.aa.aa.aa.a", "harmonies": "steel honky", "leads": "harmonica",
         "lead": (0.35, 0.8, 0.5), "scale": "blues", "chords": [TWELVE], "lofi": 0.6,
         "sparse": 0.4},
    ],
    "classical": [
        {"tempo": (60, 130), "grooves": "none",
         "bass": "r-------f------- r---f---r---t--- r---------------",
         "basses": "cello contra piano",
         "comp": "aaaaaaaaaaaaaaaa a-a-a-a-a-a-a-a- x---------------",
         "harmonies": "piano harpsichord harp strings", "leads": "violin flute oboe",
         "lead": (0.4, 0.95, 0), "scale": "major",
         "chords": ["0 7:7 9:m 5 0 5 7:7 0", "0:m 5:m 7:7 0:m 8 3 7:7 0:m"]},
        {"tempo": (50, 110), "grooves": "none", "bass": "r-------r------- r---------------",
         "basses": "contra cello slowstrings",
         "comp": "x--------------- x-------x------- x---x---x---x---",
         "harmonies": "strings slowstrings tremolo horn aahs",
         "leads": "violin horn oboe flute trumpet cello", "lead": (0.3, 1.0, 0.1), "scale": "major",
         "chords": ["0 9:m 2:m 7 0 4:m 5 7", "0:m 8 5:m 7:7"]},
        {"tempo": (90, 160), "beats": 3, "grooves": "none", "bass": "r----------- r---....f---",
         "basses": "contra pizzicato cello", "comp": "....x...x... a-a-a-a-a-a- aaaaaaaaaaaa",
         "harmonies": "strings pizzicato piano", "leads": "violin clarinet flute piano",
         "lead": (0.35, 0.9, 0), "scale": "major",
         "chords": ["0 0 7:7 7:7 7:7 7:7 0 0", "0 5 7:7 0 9:m 2:m 7:7 0"]},
    ],
    "country": [
        {"tempo": (95, 130), "grooves": "train train twostep", "kits": "brush",
         "bass": "r.......f....... r...r...f...f...", "basses": "upright picked",
         "comp": "....x.......x... ..x...x...x...x. x...x.xxx...x.xx", "harmonies": "steel",
         "leads": "fiddle clean banjo", "lead": (0.35, 0.75, 0.45), "scale": "penta",
         "chords": ["0 5 0 7 0 5 7 0", "0 0 5 5 7 7 0 0", "0 9:m 5 7"]},
        {"tempo": (85, 125), "grooves": "train", "kits": "brush", "bass": "r.......f.......",
         "basses": "upright", "comp": "a.aaa.aaa.aaa.aa aaaaaaaaaaaaaaaa ....x.......x...",
         "harmonies": "banjo steel", "leads": "fiddle banjo", "lead": (0.45, 0.8, 0.3),
         "scale": "penta", "chords": ["0 0 5 0 0 7 0 0", "0 5 7 0"], "sparse": 0.4},
        {"tempo": (95, 150), "beats": 3, "grooves": "waltz", "kits": "brush standard",
         "bass": "r----------- r---....f---", "basses": "upright", "comp": "....x...x...",
         "harmonies": "steel accordion", "leads": "fiddle oohs", "lead": (0.22, 0.95, 0.5),
         "scale": "penta", "chords": ["0 0 5 5 7 7 0 0", "0 5 7 0"]},
    ],
    "disco": [
        {"tempo": (108, 132), "grooves": "disco disco16 funk",
         "bass": "r.R.r.R.r.R.r.R. r.R.r.RRf.R.v.R. r..r..R.r..rR.f.", "basses": "fingered slap",
         "comp": "..x...x...x...x. x..x..x...x.x... xx.xx.xxxx.xx.xx",
         "harmonies": "muted clavinet", "leads": "strings synstrings brass",
         "lead": (0.3, 0.85, 0.1), "scale": "dorian",
         "chords": ["0:m7 5:9 0:m7 5:9", "0:m 8 10 7:7", "9:m7 2:m7 7 0:M7"],
         "levels": (1, -1, -5, -3)},
        {"tempo": (112, 134), "grooves": "disco four disco16",
         "bass": "rrRRrrRRrrRRrrRR ..R...R...R...R. r.rrr.rrr.rrr.rr", "basses": "slap synbass",
         "comp": "x--------------- x.....x.....x... aaaaaaaaaaaaaaaa",
         "harmonies": "strings synstrings clavinet", "leads": "strings brass oohs",
         "lead": (0.3, 0.85, 0.1), "scale": "minor",
         "chords": ["0:m 10 8 10", "0:m7 0:m7 5:m7 7:m7"], "levels": (1, -1, -5, -3)},
    ],
    "hiphop": [
        {"tempo": (82, 104), "swing": (0.1, 0.35), "grooves": "boombap boombap2", "kits": "tr808",
         "bass": "r--...r...r--... r-----..r.f.....", "basses": "subbass subbass upright",
         "comp": "x------------... x.......x..x.... ....x.......x...",
         "harmonies": "rhodes piano vibes orchhit", "leads": "voxlead", "lead": (0.55, 0.5, 0.1),
         "scale": "minpenta", "chords": ["0:m7 0:m7 5:m7 5:m7", "0:m9 8:M7", "0:m 0:m"],
         "levels": (2, 1, -7, -3), "tilt": 5, "lofi": 0.2},
        {"tempo": (65, 90), "swing": (0.0, 0.1), "grooves": "trap", "kits": "tr808",
         "bass": "r-----..r-...... r-------..r-----", "basses": "subbass synbass",
         "comp": "x--------------- a-a-a-a-a-a-a-a-", "harmonies": "strings synstrings piano fm",
         "leads": "voxlead", "lead": (0.5, 0.5, 0.1), "scale": "harmonic",
         "chords": ["0:m 0:m 8 8", "0:m 1"], "levels": (2, 2, -7, -4), "tilt": 5},
    ],
    "jazz": [
        {"tempo": (110, 210), "grooves": "swing swing2", "kits": "jazz", "bass": "w--w--w--w--",
         "basses": "upright", "comp": "x....x...... ..x..x...... x--.....x... .....x.....x",
         "harmonies": "piano piano jazzgt rhodes",
         "leads": "tenor alto trumpet mutedtpt piano vibes jazzgt", "lead": (0.55, 0.9, 0.1),
         "scale": "mixo",
         "chords": ["2:m7 7:7 0:M7 9:7", "0:M7 9:7 2:m7 7:7", "2:m7 7:7 0:M7 0:M7 2:m7 7:7 4:m7 9:7", TWELVE],
         "levels": (-2, -1, -4, -1), "tilt": 2, "lofi": 0.35},
        {"tempo": (60, 105), "grooves": "brushes swing", "kits": "brush",
         "bass": "r-----f----- w--w--w--w--", "basses": "upright",
         "comp": "x----------- x-----x-----", "harmonies": "piano jazzgt rhodes",
         "leads": "tenor mutedtpt piano soprano clarinet", "lead": (0.4, 0.95, 0.15),
         "scale": "major", "chords": ["0:M7 9:m7 2:m7 7:9", "2:m7 7:7 0:M7 0:6"],
         "levels": (-4, -1, -3, -1), "tilt": 2, "lofi": 0.35, "sparse": 0.3},
        {"tempo": (105, 150), "grooves": "bossa", "kits": "jazz brush", "bass": "r-----f-f-----r-",
         "basses": "upright fretless", "comp": "x..x..x...x..x.. x.....x..x..x...",
         "harmonies": "nylon piano rhodes", "leads": "flute tenor nylon vibes",
         "lead": (0.35, 0.9, 0.1), "scale": "major",
         "chords": ["0:M7 2:7 2:m7 7:7", "0:m7 5:7 10:M7 3:M7"], "levels": (-3, -1, -3, -1),
         "tilt": 2},
    ],
    "metal": [
        {"tempo": (130, 205), "grooves": "double gallop blast punk", "kits": "power",
         "bass": "r.rrr.rrr.rrr.rr rrrrrrrrrrrrrrrr", "basses": "picked fingered",
         "comp": "m.mmm.mmp-m.m.mm pppppppppppppppp p---mmmmp---mmmm mmmmmmmmmmmmp---",
         "harmonies": "distortion", "drive": 15, "leads": "distortion overdrive voxlead",
         "lead": (0.5, 0.9, 0.2), "scale": "harmonic",
         "chords": ["0:5 0:5 8:5 10:5", "0:5 1:5 0:5 3:5", "0:5 3:5 5:5 6:5"],
         "levels": (0, -3, 0, -4), "tilt": -4},
        {"tempo": (80, 125), "grooves": "breakdown rock double", "kits": "power",
         "bass": "r--r--r-r-----r- r-------r-------", "basses": "picked fingered",
         "comp": "p---------m.m.m. p--m--p-m.p----- p---------------",
         "harmonies": "distortion overdrive", "drive": 18, "leads": "distortion voxlead",
         "lead": (0.25, 0.9, 0.3), "scale": "phrygian",
         "chords": ["0:5 0:5 1:5 0:5", "0:5 6:5 5:5 3:5"], "levels": (0, -3, 0, -5), "tilt": -4},
    ],
    "pop": [
        {"tempo": (96, 132), "grooves": "synpop four push", "kits": "electronic",
         "bass": "r.r.r.r.r.r.r.r. r-----r-r-----f- r..r..r.r..r..r.", "basses": "synbass",
         "comp": "x--------------- a.a.a.a.a.a.a.a. x..x..x...x..x.. x.x.x.xxx.x.x.xx",
         "harmonies": "polypad fm clean", "leads": "oohs synvoice square",
         "lead": (0.35, 0.85, 0.1), "scale": "major",
         "chords": ["0 7 9:m 5", "9:m 5 0 7", "0 5 7 5"], "tilt": -6},
        {"tempo": (66, 100), "grooves": "ballad synpop", "kits": "electronic",
         "bass": "r-------r-----f- r---------------", "basses": "synbass",
         "comp": "x---x---x---x--- a-a-a-a-a-a-a-a- x-------x-------", "harmonies": "fm polypad",
         "leads": "oohs aahs synvoice", "lead": (0.3, 0.95, 0.15), "scale": "major",
         "chords": ["0 7 9:m 5", "0 4:m 5 7", "0 9:m 2:m 7"], "tilt": -6},
    ],
    "reggae": [
        {"tempo": (66, 88), "swing": (0.0, 0.15), "grooves": "onedrop rockers",
         "bass": "r--.r-t-..f-r-.. ..r-r-t-f-..r--. r--r--f-....t-r-", "basses": "fingered",
         "comp": "....x.......x... ....x.x.....x.x. ..x...x...x...x.",
         "harmonies": "clean percorgan", "leads": "oohs trombone percorgan",
         "lead": (0.25, 0.8, 0.1), "scale": "minor",
         "chords": ["0:m 5:m 0:m 5:m", "0 5 0 7", "0:m 10", "0 2:m"], "levels": (-1, 2, 0, -4),
         "tilt": 2},
        {"tempo": (96, 150), "grooves": "steppers rockers dancehall",
         "bass": "r...r-t-f...f-t- r-r-..t-f-t-....", "basses": "fingered",
         "comp": "..x...x...x...x. ..xx..xx..xx..xx", "harmonies": "clean percorgan",
         "leads": "oohs trombone", "lead": (0.25, 0.8, 0.1), "scale": "major",
         "chords": ["0 5 7 5", "0 9:m 5 7", "0:m 10"], "levels": (-1, 2, 0, -4), "tilt": 2},
    ],
    "rock": [
        {"tempo": (100, 165), "grooves": "rock push ride punk", "kits": "room",
         "bass": "r.r.r.r.r.r.r.r. r..r..r.r.r.f.t.", "basses": "picked fingered",
         "comp": "p-p-p-p-p-p-p-p- p--p--p-p--p--p- p-----p-p---p---",
         "harmonies": "overdrive overdrive clean", "drive": 7, "leads": "oohs overdrive",
         "lead": (0.3, 0.85, 0.3), "scale": "minpenta",
         "chords": ["0:5 10:5 5:5 0:5", "0 5 7 5", "0:5 3:5 5:5 7:5"], "levels": (0, -3, -1, -4),
         "tilt": 1},
        {"tempo": (76, 112), "grooves": "rock push tomtom", "kits": "room standard",
         "bass": "r-----r-r-----f- r.......r.r.....", "basses": "picked fingered",
         "comp": "p-------p---p--- p.p.p.ppp.p.p.pp x-------x-------", "harmonies": "overdrive",
         "drive": 7, "leads": "oohs overdrive rockorgan", "lead": (0.3, 0.9, 0.3), "scale": "penta",
         "chords": ["0 10 5 0", "9:m 7 5 7", "0 7 5 5"], "levels": (0, -2, -2, -4), "tilt": 1},
    ],
}  # fmt: skip
GENRES = tuple(sorted(STYLES))
RELATED = {
    "blues": ("jazz", "rock", "country"), "classical": ("jazz", "pop"), "country": ("blues", "rock", "pop"),
    "disco": ("pop", "hiphop"), "hiphop": ("reggae", "disco", "pop"), "jazz": ("blues", "classical"),
    "metal": ("rock",), "pop": ("disco", "rock", "country"), "reggae": ("hiphop", "pop"),
    "rock": ("metal", "pop", "blues", "country"),
}  # fmt: skip
COMPONENTS = (("grooves", "kits"), ("bass", "basses"), ("comp", "harmonies", "drive"),
              ("leads", "lead"), ("tempo", "swing"), ("chords", "scale"))  # fmt: skip


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


def make_corpus(
    folder: str | Path, tracks_per_genre: int, seed: int = 42, n_jobs: int = 2
) -> Path:
    """Write the missing tracks `<folder>/<genre>/<genre>.NNNNN.wav` and return the folder.

    Files are 30 s of mono PCM-16 at 22,050 Hz, whole or absent; the same bytes whatever n_jobs.
    Existing files are kept, so a folder holds one seed's corpus, and more tracks only add files.
    """
    folder = Path(folder)
    wanted = [(g, i, folder / g / f"{g}.{i:05d}.wav") for g in GENRES for i in range(tracks_per_genre)]
    missing = [track for track in wanted if not track[2].exists()]
    written = Parallel(n_jobs, return_as="generator_unordered")(
        delayed(_write)(genre, index, seed, path) for genre, index, path in missing
    )
    for _ in tqdm(written, total=len(missing), desc="composing", unit="track"):
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
        fits = _metre(donor) == _metre(style) and style["grooves"] != ""
        if fits and rng.random() < BORROW:
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
            pitch = _fold(bar.key, style["centre"] - 6) + 12 * octave + scale[degree]
            if step % (steps // beats) == 0:
                pitch = min((_fold(bar.root + i, pitch - 6) for i in bar.chord), key=lambda p: abs(p - pitch))
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
    frames = stems.reshape(len(stems), -1, SYNTH_RATE // 10)
    loudness = np.quantile(np.sqrt(np.square(frames).mean(axis=-1)), 0.9, axis=-1)
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
    audio = signal.resample_poly(stems, 147, 320, axis=1).astype(np.float32)
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
