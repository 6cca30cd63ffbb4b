"""From samples to a file and back: what an attack has to survive before it counts.

A clip is written as a file, read again, analysed by librosa and judged by the float32 network.
"""

import io
from collections.abc import Callable

import librosa
import numpy as np
import soundfile as sf
from joblib import Parallel, delayed
from torch import nn

from src.data.audio import to_mono
from src.data.features import HOP_LENGTH, N_FFT, N_MELS, SAMPLE_RATE, to_unit
from src.models.evaluation import predict_logits

N_JOBS = 2
FULL_SCALE = 32_768
GAIN_DB = -3.0
SHIFT_S = 0.01
MP3_64K = 96 / 152  # libsndfile: 0 is 160 kbit/s, 1 is 8 kbit/s at this sampling rate
FORMATS = {
    "wav16": {"format": "WAV", "subtype": "PCM_16"},
    "mp3_64k": {
        "format": "MP3",
        "subtype": "MPEG_LAYER_III",
        "bitrate_mode": "CONSTANT",
        "compression_level": MP3_64K,
    },
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
}
CHANNELS = (*FORMATS, "gain", "shift")


def to_16_bit(samples: np.ndarray) -> np.ndarray:
    """Return the nearest values of 16-bit samples, float32 in [-1, 1)."""
    steps = np.rint(np.asarray(samples, dtype=np.float64) * FULL_SCALE)
    return (steps.clip(-FULL_SCALE, FULL_SCALE - 1) / FULL_SCALE).astype(np.float32)


def write_audio(file, samples: np.ndarray, form: str = "wav16") -> None:
    """Write mono samples at 22,050 Hz to a path or a binary file, in one of `FORMATS`."""
    sf.write(file, samples, SAMPLE_RATE, **FORMATS[form])


def transmit(samples: np.ndarray, channel: str) -> np.ndarray:
    """Return clips (n, time) after one of `CHANNELS`.

    "wav16", "mp3_64k" and "ogg" (Vorbis, quality as libsndfile sets it) are written and read
    again; "gain" is 3 dB lower and "shift" 10 ms later (silence in front), both as 16-bit WAV.
    """
    if channel == "gain":
        samples = samples * np.float32(10 ** (GAIN_DB / 20))
    if channel == "shift":
        delay = round(SHIFT_S * SAMPLE_RATE)
        samples = np.pad(samples, ((0, 0), (delay, 0)))[:, : samples.shape[1]]
    form = channel if channel in FORMATS else "wav16"
    return np.stack(_each(_written_and_read, samples, form))


def librosa_log_mel(samples: np.ndarray) -> np.ndarray:
    """Return segments (n, 128, frames) float32 in [0, 1] of clips (n, time), by librosa alone."""
    return np.stack(_each(_log_mel, samples))


def judge(model: nn.Module, samples: np.ndarray, channel: str = "wav16") -> np.ndarray:
    """Return logits (n, n_genres) of clips (n, 66150) after a channel."""
    return predict_logits(model, librosa_log_mel(transmit(samples, channel)))


def _each(function: Callable, samples: np.ndarray, *options) -> list[np.ndarray]:
    """Return a function's results for each clip, several at once."""
    jobs = (delayed(function)(clip, *options) for clip in samples)
    return Parallel(N_JOBS, prefer="threads")(jobs)


def _written_and_read(clip: np.ndarray, form: str) -> np.ndarray:
    """Return a clip after one file, of the same length."""
    file = io.BytesIO()
    write_audio(file, clip, form)
    file.seek(0)
    read = to_mono(*sf.read(file, dtype="float32", always_2d=True))
    return librosa.util.fix_length(read, size=len(clip))


def _log_mel(clip: np.ndarray) -> np.ndarray:
    """Return 1 + dB / 80 (128, frames) of one clip."""
    power = librosa.feature.melspectrogram(
        y=clip, sr=SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP_LENGTH, n_mels=N_MELS
    )
    return to_unit(librosa.power_to_db(power, ref=np.max, top_db=None)).astype(np.float32)
