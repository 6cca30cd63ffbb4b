"""Psychoacoustic masking: the masking threshold of each time-frequency cell bounds perturbations.

Psychoacoustic model 1 of ISO/IEC 11172-3 as Lin and Abdulla (2015) and Qin et al. (2019,
arXiv 1903.10346) use it: local maxima of the spectrum above the threshold of hearing are maskers,
all taken as tonal, at least half a Bark apart; each masks its neighbourhood with two slopes on the
Bark scale; thresholds add up. The loudest cell of a segment is set to 96 dB SPL. A threshold holds
for the sum over a critical band (one Bark); each cell of the band gets its share.
"""

from functools import lru_cache

import numpy as np
import torch
from art.attacks.evasion.imperceptible_asr.imperceptible_asr import PsychoacousticMasker
from torch import nn

from src.data.features import HOP_LENGTH, N_FFT, SAMPLE_RATE, istft, stft

LOUDEST_DB = 96.0
BARK_APART = 0.5
LOWEST_HZ = 20.0
ROUNDS = 2
FRAMES_PER_SAMPLE = N_FFT // HOP_LENGTH + 1  # that contain a sample
TINY = 1e-30


class Masker(PsychoacousticMasker):
    """ART's masker with three corrections (ART 1.20.1).

    Distances between maskers are those of their own bins (ART looks up the Bark of their ordinal
    numbers and keeps maskers much closer than half a Bark, whose thresholds then add up); below
    20 Hz the threshold of hearing stays that of 20 Hz instead of vanishing; the thresholds of a
    frame's maskers are computed at once.
    """

    @property
    def absolute_threshold_hearing(self) -> np.ndarray:
        """Return the threshold of hearing (bins,) in dB SPL."""
        kilohertz = np.maximum(self.fft_frequencies, LOWEST_HZ) / 1000
        dip = 6.5 * np.exp(-0.6 * np.square(kilohertz - 3.3))
        return 3.64 * kilohertz**-0.8 - dip + 0.001 * kilohertz**4 - 12

    def filter_maskers(
        self, maskers: np.ndarray, masker_idx: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return levels and bins of audible maskers, the louder of any two that are too close."""
        audible = maskers > self.absolute_threshold_hearing[masker_idx]
        kept = []
        for level, position in zip(maskers[audible], masker_idx[audible], strict=True):
            if not kept or self.bark[position] - self.bark[kept[-1][1]] >= BARK_APART:
                kept.append((level, position))
            elif level > kept[-1][0]:
                kept[-1] = (level, position)
        levels, positions = zip(*kept, strict=True) if kept else ((), ())
        return np.array(levels, dtype=float), np.array(positions, dtype=int)

    def calculate_individual_threshold(
        self, maskers: np.ndarray, masker_idx: np.ndarray
    ) -> np.ndarray:
        """Return the threshold (maskers, bins) in dB SPL that each masker causes."""
        centre = self.bark[masker_idx][:, None]
        distance = self.bark - centre
        upwards = -27 + 0.37 * np.maximum(maskers - 40, 0)[:, None]
        spread = np.where(distance > 0, upwards, 27) * distance
        return maskers[:, None] - 6.025 - 0.275 * centre + spread


def masking_levels(samples: np.ndarray) -> np.ndarray:
    """Return the masking threshold of each cell (n, 1025, frames), as an STFT magnitude.

    `samples` (n, time) at 22,050 Hz; cells are those of the front-end's STFT (2048, 512, centred).
    """
    return np.stack([_levels(segment) for segment in samples]).astype(np.float32)


def hide(change: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return changes (n, time) scaled down to the levels or below in every cell.

    Frames overlap, so cells depend on each other: energy removed from one cell returns from its
    neighbours. Each cell is attenuated together with its neighbours, twice; then each sample by the
    worst cell of the frames that contain it; then the change as a whole.
    """
    for _ in range(ROUNDS):
        worst = nn.functional.max_pool2d(_excess(change, levels), 3, stride=1, padding=1)
        change = istft(stft(change) / worst, change.shape[1])
    worst = _excess(change, levels).amax(dim=1, keepdim=True)
    worst = nn.functional.max_pool1d(
        worst, FRAMES_PER_SAMPLE, stride=1, padding=FRAMES_PER_SAMPLE // 2
    )
    gain = nn.functional.interpolate(1 / worst, change.shape[1], mode="linear", align_corners=True)
    change = change * gain[:, 0]
    return change / _excess(change, levels).amax(dim=(1, 2))[:, None]


def towards(gradient: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return the change (n, time) that fills every cell to its level, in the gradient's phase."""
    cells = stft(gradient)
    return istft(levels * cells / cells.abs().clamp(min=TINY), gradient.shape[1])


def _excess(change: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return the factor (n, 1025, frames) by which each cell exceeds its level, at least 1."""
    return (stft(change).abs() / levels).clamp(min=1)


@lru_cache(maxsize=1)
def _masker() -> Masker:
    return Masker(N_FFT, HOP_LENGTH, SAMPLE_RATE)


def _levels(segment: np.ndarray) -> np.ndarray:
    masker = _masker()
    threshold, loudest = masker.calculate_threshold_and_psd_maximum(np.pad(segment, N_FFT // 2))
    share = 10 * np.log10(np.gradient(masker.bark))[:, None]
    decibel = threshold + share - LOUDEST_DB + loudest
    return 10 ** (decibel / 20) * N_FFT / np.sqrt(8 / 3)
