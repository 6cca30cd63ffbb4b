"""Features: the log-mel front-end (a torch module equal to librosa), STFT, mel bands of bins."""

from functools import cache

import librosa
import numpy as np
import torch
from torch import nn

SAMPLE_RATE = 22_050
SEGMENT_SECONDS = 3.0
SEGMENT_SAMPLES = 66_150
SEGMENTS_PER_TRACK = 10
N_FFT = 2048
HOP_LENGTH = 512
N_MELS = 128
N_FRAMES = 130
FRAMES_BETWEEN_SEGMENTS = SEGMENT_SAMPLES / HOP_LENGTH
WHOLE_FRAMES = 1 + SEGMENTS_PER_TRACK * SEGMENT_SAMPLES // HOP_LENGTH  # of 30 s
REST = SEGMENT_SAMPLES - (N_FRAMES - 1) * HOP_LENGTH  # samples after a segment's last centre
WHOLE_WINDOW = slice(0, N_FFT)
EDGES = (  # parts of the window that lie in a segment: of its first and its last two frames
    slice(N_FFT // 2, N_FFT),
    slice(N_FFT // 2 - HOP_LENGTH, N_FFT),
    slice(0, N_FFT // 2 + HOP_LENGTH + REST),
    slice(0, N_FFT // 2 + REST),
)
DYNAMIC_RANGE_DB = 80.0
AMIN = 1e-10
FRONT_END = {  # of segments, as metadata record them
    "sample_rate_hz": SAMPLE_RATE,
    "segment_s": SEGMENT_SECONDS,
    "n_fft": N_FFT,
    "hop_length": HOP_LENGTH,
    "n_mels": N_MELS,
    "frames": N_FRAMES,
    "scale": "dB = 80 * (x - 1), relative to the segment's maximum",
}


class LogMel(nn.Module):
    """Map waveforms to log-mel spectrograms in [0, 1], where dB = 80 * (x - 1).

    0 dB is the loudest bin of each waveform, the floor is -80 dB. The values are those of
    `librosa.power_to_db(librosa.feature.melspectrogram(...), ref=np.max, top_db=80)`.
    """

    def __init__(self):
        super().__init__()
        mel = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=N_MELS)
        self.register_buffer("mel", torch.from_numpy(mel), persistent=False)

    def power(self, samples: torch.Tensor, part: slice = WHOLE_WINDOW) -> torch.Tensor:
        """Return the mel power spectrogram (n, n_mels, frames) of samples (n, time)."""
        spectrum = stft(samples, part)
        return self.mel @ (spectrum.real.square() + spectrum.imag.square())

    def decibel(self, samples: torch.Tensor) -> torch.Tensor:
        """Return dB (n, n_mels, frames) relative to each waveform's loudest bin, without floor."""
        decibel = 10 * torch.log10(self.power(samples).clamp(min=AMIN))
        return decibel - decibel.amax(dim=(1, 2), keepdim=True)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Return (n, n_mels, frames) float32 in [0, 1] of samples (n, time) at 22,050 Hz."""
        return to_unit(self.decibel(samples))


@cache
def front_end() -> LogMel:
    """Return the front-end of this process."""
    return LogMel()


def segment_audio(samples: np.ndarray, n_segments: int) -> np.ndarray:
    """Return the first segments (n_segments, 128, 130) in [0, 1] of samples at 22,050 Hz."""
    segments = samples[: n_segments * SEGMENT_SAMPLES].reshape(n_segments, SEGMENT_SAMPLES)
    with torch.inference_mode():
        return front_end()(torch.from_numpy(segments)).numpy()


def edged_log_mel(samples: np.ndarray) -> np.ndarray:
    """Return a track's log-mel, and its frames as edges of segments: (5, 128, frames) in dB.

    Zeros surround a segment, which cut the windows of its first and last two frames: layers 1 to 4
    have each frame with the window cut by `EDGES`. The reference is arbitrary, the same for all.
    """
    with torch.inference_mode():
        track = torch.from_numpy(samples)[None]
        power = [front_end().power(track, part) for part in (WHOLE_WINDOW, *EDGES)]
        return 10 * torch.cat(power).clamp(min=AMIN).log10().numpy()


def segment_log_mel(decibel: np.ndarray, n_segments: int) -> np.ndarray:
    """Return segments (n_segments, 128, 130) in [0, 1] of a track's dB (128, frames).

    0 dB is the loudest bin of each segment.
    """
    starts = log_mel_starts(n_segments)
    segments = np.stack([decibel[:, start : start + N_FRAMES] for start in starts])
    return to_unit(segments - segments.max(axis=(1, 2), keepdims=True))


def log_mel_starts(n_segments: int) -> np.ndarray:
    """Return the first frame (n_segments,) of each segment of a log-mel: round(k * 129.2)."""
    return np.round(np.arange(n_segments) * FRAMES_BETWEEN_SEGMENTS).astype(int)


def to_unit(decibel):
    """Return dB relative to the loudest bin (at most 0) as values in [0, 1], cut at -80 dB."""
    return (1 + decibel / DYNAMIC_RANGE_DB).clip(0, 1)


def to_decibel(x):
    """Return log-mel values in [0, 1] as dB relative to the segment's maximum."""
    return DYNAMIC_RANGE_DB * (x - 1)


def stft(samples: torch.Tensor, part: slice = WHOLE_WINDOW) -> torch.Tensor:
    """Return the front-end's complex STFT (..., 1025, frames) of samples (..., time).

    The window is zero outside of `part`.
    """
    window = _window(samples.dtype, samples.device)
    if part != WHOLE_WINDOW:
        whole, window = window, torch.zeros_like(window)
        window[part] = whole[part]
    return torch.stft(
        samples,
        N_FFT,
        HOP_LENGTH,
        window=window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )


def istft(spectrum: torch.Tensor, length: int) -> torch.Tensor:
    """Return samples (..., length) whose STFT is closest to a spectrum (..., 1025, frames)."""
    window = _window(spectrum.real.dtype, spectrum.device)
    return torch.istft(spectrum, N_FFT, HOP_LENGTH, window=window, center=True, length=length)


def bands_of_bins() -> np.ndarray:
    """Return weights (1025, 128) of mel bands in each FFT bin.

    The triangular filters of the front-end, normalised per bin: a row sums to 1, and to 0 at 0 Hz
    and 11,025 Hz, which belong to no band.
    """
    bands = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=N_FFT, n_mels=N_MELS, norm=None).T
    return bands / np.maximum(bands.sum(axis=1, keepdims=True), 1e-9)


def bands_to_bins(values: np.ndarray) -> np.ndarray:
    """Return values of mel bands (128, frames) interpolated to FFT bins: (1025, frames) float32.

    As `bands_of_bins` does, but below the first and above the last band's centre the value of that
    band holds, at 0 Hz and 11,025 Hz too.
    """
    hertz = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    position = np.interp(hertz, mel_frequencies(), np.arange(len(values)))
    below = np.floor(position).astype(int)
    above = np.minimum(below + 1, len(values) - 1)
    share = (position - below)[:, None]
    return ((1 - share) * values[below] + share * values[above]).astype(np.float32)


def mel_frequencies() -> np.ndarray:
    """Return the centre frequency (128,) of each mel band in Hz."""
    return librosa.mel_frequencies(N_MELS + 2, fmin=0, fmax=SAMPLE_RATE / 2)[1:-1]


def frame_times(frames: int = N_FRAMES) -> np.ndarray:
    """Return the time (frames,) of each frame's centre in seconds."""
    return librosa.frames_to_time(range(frames), sr=SAMPLE_RATE, hop_length=HOP_LENGTH)


@cache
def _window(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(mode=False):  # gradients may flow past it later
        return torch.hann_window(N_FFT, dtype=dtype, device=device)
