import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from src.data import features
from src.data.features import (
    N_FRAMES,
    N_MELS,
    SAMPLE_RATE,
    SEGMENT_SAMPLES,
    LogMel,
    bands_of_bins,
    bands_to_bins,
    frame_times,
    mel_frequencies,
    stft,
    to_decibel,
    to_unit,
)

FRONT_END = LogMel()
RNG = np.random.default_rng(0)
TIME = np.arange(SEGMENT_SAMPLES) / SAMPLE_RATE
CLIPS = {
    "noise": RNG.uniform(-1, 1, SEGMENT_SAMPLES),
    "quiet noise": 1e-4 * RNG.uniform(-1, 1, SEGMENT_SAMPLES),
    "noise at the floor": 1e-5 * RNG.uniform(-1, 1, SEGMENT_SAMPLES),
    "loud noise": np.clip(10 * RNG.normal(size=SEGMENT_SAMPLES), -1, 1),
    "tone": 0.5 * np.sin(2 * np.pi * 440 * TIME),
    "chirp": librosa.chirp(fmin=30, fmax=11_000, sr=SAMPLE_RATE, length=SEGMENT_SAMPLES),
    "click": (np.arange(SEGMENT_SAMPLES) == 30_000).astype(float),
    "silent half": RNG.uniform(-1, 1, SEGMENT_SAMPLES) * (TIME < 1.5),
    "silence": np.zeros(SEGMENT_SAMPLES),
}


def log_mel(samples):
    with torch.inference_mode():
        return FRONT_END(torch.as_tensor(samples, dtype=torch.float32)[None])[0].numpy()


def librosa_decibel(samples):
    power = librosa.feature.melspectrogram(
        y=np.float32(samples), sr=22_050, n_fft=2048, hop_length=512, n_mels=128
    )
    return librosa.power_to_db(power, ref=np.max, top_db=80)


@pytest.mark.parametrize("clip", CLIPS.values(), ids=CLIPS)
def test_front_end_equals_librosa(clip):
    np.testing.assert_allclose(to_decibel(log_mel(clip)), librosa_decibel(clip), atol=1e-3)


def test_each_waveform_of_a_batch_is_measured_against_its_own_maximum():
    clips = np.stack([CLIPS["noise"], CLIPS["quiet noise"], CLIPS["silence"]])
    batch = FRONT_END(torch.tensor(clips, dtype=torch.float32))
    assert batch.shape == (3, N_MELS, N_FRAMES) == (3, 128, 130)
    assert batch.amax(dim=(1, 2)).tolist() == [1, 1, 1]
    for clip, x in zip(clips, batch.numpy(), strict=True):
        np.testing.assert_allclose(x, log_mel(clip), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), decibel=st.floats(-20, 20))
def test_scaling_the_waveform_changes_nothing(seed, decibel):
    samples = np.random.default_rng(seed).normal(size=8192)
    np.testing.assert_allclose(log_mel(samples * 10 ** (decibel / 20)), log_mel(samples), atol=1e-5)


def test_gradient_agrees_with_finite_differences():
    front_end = LogMel().double()
    generator = torch.Generator().manual_seed(0)
    samples, step = torch.randn(2, 2, 8192, dtype=torch.double, generator=generator)
    samples.requires_grad_()
    weight = torch.randn(2, N_MELS, 17, dtype=torch.double, generator=generator)
    (gradient,) = torch.autograd.grad((weight * front_end(samples)).sum(), samples)
    with torch.no_grad():
        ahead, behind = front_end(samples + 1e-6 * step), front_end(samples - 1e-6 * step)
    slope = (weight * (ahead - behind)).sum() / 2e-6
    torch.testing.assert_close((gradient * step).sum(), slope, rtol=1e-4, atol=0)
    assert gradient.abs().sum(dim=1).min() > 0


def test_gradient_of_silence_is_finite():
    samples = torch.zeros(1, 8192, requires_grad=True)
    FRONT_END(samples).sum().backward()
    assert samples.grad.isfinite().all()


@given(npst.arrays(np.float64, 10, elements=st.floats(0, 1)))
def test_to_unit_undoes_to_decibel(x):
    np.testing.assert_allclose(to_unit(to_decibel(x)), x, atol=1e-12)


def test_decibels_outside_the_range_are_cut():
    assert to_unit(np.array([-200.0, -80.0, -40.0, 0.0, 3.0])).tolist() == [0, 0, 0.5, 1, 1]


def test_mel_frequencies_are_the_band_centres_of_librosa():
    bands = librosa.filters.mel(sr=22_050, n_fft=2048, n_mels=128, norm=None)
    loudest = librosa.fft_frequencies(sr=22_050, n_fft=2048)[bands.argmax(axis=1)]
    assert mel_frequencies().shape == (N_MELS,)
    assert np.abs(mel_frequencies() - loudest).max() <= 22_050 / 2048


def test_a_tone_is_loudest_in_the_band_and_frame_that_carry_its_frequency_and_time():
    burst = np.where(np.abs(TIME - 2) < 0.1, np.sin(2 * np.pi * 3000 * TIME), 0)
    band, frame = np.unravel_index(log_mel(burst).argmax(), (N_MELS, N_FRAMES))
    assert mel_frequencies()[band] == pytest.approx(3000, rel=0.03)
    assert frame_times()[frame] == pytest.approx(2, abs=0.1)


def test_weights_of_bins_are_those_of_the_bands_around_them():
    heat = np.repeat(np.linspace(0, 1, 128)[:, None], 130, axis=1)
    weights = bands_to_bins(heat)
    assert (weights.shape, weights.dtype) == ((1025, 130), np.float32)
    hertz = np.linspace(0, SAMPLE_RATE / 2, 1025)
    np.testing.assert_allclose(
        weights[:, 0], np.interp(hertz, mel_frequencies(), heat[:, 0]), atol=1e-6
    )


def test_both_ways_from_bands_to_bins_agree_but_at_the_ends():
    values = np.random.default_rng(0).random((128, 3))
    weighted = bands_of_bins() @ values
    np.testing.assert_allclose(bands_to_bins(values)[1:-1], weighted[1:-1], atol=1e-5)
    assert not weighted[[0, -1]].any()


def test_a_window_made_without_gradients_lets_them_flow_later():
    features._window.cache_clear()
    with torch.inference_mode():
        stft(torch.zeros(1, 4096))
    samples = torch.ones(1, 4096, requires_grad=True)
    stft(samples).abs().sum().backward()
    assert samples.grad.abs().sum() > 0
