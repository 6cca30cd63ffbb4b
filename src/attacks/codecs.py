"""Audio files: writing, lossy codecs, and classification of the decoded file.

A segment counts as a file: written, read again, analysed by librosa, and classified in float32.
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
from src.models.own import takes_samples

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
WAV = "wav16"
CODECS = (*FORMATS, "gain", "shift")


def to_16_bit(samples: np.ndarray) -> np.ndarray:
    """Return the nearest values of 16-bit samples, float32 in [-1, 1)."""
    steps = np.rint(np.asarray(samples, dtype=np.float64) * FULL_SCALE)
    return (steps.clip(-FULL_SCALE, FULL_SCALE - 1) / FULL_SCALE).astype(np.float32)


def write_audio(file, samples: np.ndarray, form: str = WAV) -> None:
    """Write mono samples at 22,050 Hz to a path or a binary file, in one of `FORMATS`."""
    sf.write(file, samples, SAMPLE_RATE, **FORMATS[form])


def encode_decode(samples: np.ndarray, codec: str) -> np.ndarray:
    """Return samples (n, time) after one of `CODECS`.

    "wav16", "mp3_64k" and "ogg" (Vorbis, default quality of libsndfile) are written and read
    again; "gain" is 3 dB lower and "shift" 10 ms later (silence in front), both as 16-bit WAV.
    """
    if codec == "gain":
        samples = samples * np.float32(10 ** (GAIN_DB / 20))
    if codec == "shift":
        delay = round(SHIFT_S * SAMPLE_RATE)
        samples = np.pad(samples, ((0, 0), (delay, 0)))[:, : samples.shape[1]]
    return np.stack(_each(_write_and_read, samples, codec if codec in FORMATS else WAV))


def librosa_log_mel(samples: np.ndarray) -> np.ndarray:
    """Return log-mels (n, 128, frames) float32 in [0, 1] of samples (n, time), by librosa alone."""
    return np.stack(_each(_log_mel, samples))


def file_logits(model: nn.Module, samples: np.ndarray, codec: str = WAV) -> np.ndarray:
    """Return logits (n, n_genres) of samples (n, 66150) after a codec."""
    return sample_logits(model, encode_decode(samples, codec))


def sample_logits(model: nn.Module, samples: np.ndarray) -> np.ndarray:
    """Return logits (n, n_genres) of samples (n, 66150), as they are or as log-mels by librosa."""
    inputs = samples[:, None] if takes_samples(model) else librosa_log_mel(samples)
    return predict_logits(model, inputs)


def _each(function: Callable, samples: np.ndarray, *options) -> list[np.ndarray]:
    jobs = (delayed(function)(segment, *options) for segment in samples)
    return Parallel(N_JOBS, prefer="threads")(jobs)


def _write_and_read(segment: np.ndarray, form: str) -> np.ndarray:
    """Return a segment after one file, of the same length."""
    file = io.BytesIO()
    write_audio(file, segment, form)
    file.seek(0)
    read = to_mono(*sf.read(file, dtype="float32", always_2d=True))
    return librosa.util.fix_length(read, size=len(segment))


def _log_mel(segment: np.ndarray) -> np.ndarray:
    power = librosa.feature.melspectrogram(
        y=segment, sr=SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP_LENGTH, n_mels=N_MELS
    )
    return to_unit(librosa.power_to_db(power, ref=np.max, top_db=None)).astype(np.float32)
