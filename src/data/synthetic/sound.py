"""From notes to sound: sampled instruments, the balance of the parts, the recording."""

import io
from functools import cache
from pathlib import Path

import midirenderer
import numpy as np
import pretty_midi
import soundfile
from scipy import signal

from src.data.synthetic.compose import SECONDS, Note

SAMPLE_RATE = 22_050
N_SAMPLES = SECONDS * SAMPLE_RATE
SYNTH_RATE = 48_000  # midirenderer has no other


def synthesise(
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


def balance(rng: np.random.Generator, stems: np.ndarray, levels: tuple[int, ...]) -> np.ndarray:
    """Scale each part to its level (dB) where it plays, give or take; silence stays silent."""
    frames = np.square(stems).reshape(len(stems), -1, SYNTH_RATE // 10).mean(axis=-1)
    plays = frames > 0.01 * frames.max(axis=1, keepdims=True)  # a part's rests must not raise it
    loudness = np.sqrt((frames * plays).sum(axis=1) / np.maximum(plays.sum(axis=1), 1))
    wanted = 0.1 * 10 ** ((levels + rng.normal(0, 1.5, len(stems))) / 20)
    gain = np.where(loudness > 0, wanted / np.maximum(loudness, 1e-9), 0)
    return (stems * gain[:, None]).astype(np.float32)


def draw_recording(rng: np.random.Generator, style: dict) -> dict[str, float]:
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


def place(stems: np.ndarray, recording: dict[str, float]) -> np.ndarray:
    """Bring (parts, n) at SYNTH_RATE through the recording's linear steps to (parts, 661500)."""
    audio = signal.resample_poly(stems, 147, 320, axis=1).astype(np.float32)  # SAMPLE / SYNTH
    response = _response(recording)[None, :]
    return signal.oaconvolve(audio, response, axes=1)[:, :N_SAMPLES]


def finish(mix: np.ndarray, recording: dict[str, float]) -> np.ndarray:
    """Return the sum of the parts (661500,) as recorded: saturated, with hiss, at its gain."""
    driven = np.tanh(mix * (recording["saturation"] / np.abs(mix).max()))
    rng = np.random.default_rng(recording["noise_seed"])
    hiss = signal.lfilter([1], [1, -recording["hiss_colour"]], rng.standard_normal(len(mix)))
    driven += hiss / hiss.std() * driven.std() * 10 ** (recording["hiss_db"] / 20)
    return (driven * (recording["peak"] / np.abs(driven).max())).astype(np.float32)


def _instrument(
    rng: np.random.Generator, notes: list[Note], program: int, slide: float
) -> pretty_midi.Instrument:
    """Return a part as a human plays it: uneven in time and force, sliding into some notes."""
    player = pretty_midi.Instrument(program)
    for note in notes:
        late, force, bend = rng.normal(0, 0.006), rng.normal(0, 7), rng.random() < slide
        start, end = max(note.start + late, 0), min(note.end + late, SECONDS)
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
