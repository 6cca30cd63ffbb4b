"""From an attacked spectrogram to a sound: how much of a change of bins can be heard at all."""

import numpy as np
import torch

from src.data.features import DYNAMIC_RANGE_DB, bands_of_bins, istft, stft


def resynthesize(samples: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Return clips (n, time) whose spectrum got the gain that a change of log-mels asks for.

    `samples` (n, time) at 22,050 Hz, `change` (n, 128, frames) of log-mels in [0, 1], so that 0.01
    asks for 0.8 dB. Each FFT bin gets the gain of the mel bands that it belongs to, weighted as it
    belongs to them; phases stay. Frames overlap and bands share bins: the result is the sound
    nearest to what was asked for, not one that has just this log-mel.
    """
    gain_db = np.einsum("bm,nmt->nbt", bands_of_bins(), change * DYNAMIC_RANGE_DB)
    gain = torch.from_numpy(10 ** (gain_db / 20)).float()
    cells = stft(torch.from_numpy(np.asarray(samples, dtype=np.float32)))
    return istft(cells * gain, samples.shape[1]).numpy()


def surviving_share(wanted: np.ndarray, obtained: np.ndarray) -> np.ndarray:
    """Return the share (n,) of each wanted change (n, 128, frames) that the obtained one holds.

    The projection of one on the other: 1 if all of it is there, whatever else came with it; NaN
    where nothing was wanted.
    """
    wanted, obtained = (change.reshape(len(change), -1) for change in (wanted, obtained))
    energy = np.square(wanted).sum(axis=1)
    return (wanted * obtained).sum(axis=1) / np.where(energy > 0, energy, np.nan)
