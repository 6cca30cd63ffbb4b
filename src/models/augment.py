"""Varying the training data: random crops, SpecAugment masks, filters, warps, cutmix, labels."""

import math

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from src.data.features import DYNAMIC_RANGE_DB, N_FRAMES, N_MELS
from src.runtime import forget_read

CROPS_PER_TRACK = 10
BANDS_PER_OCTAVE = 26  # of the 128 mel bands, above 1 kHz; fewer below
NARROWEST, WIDEST = 0.1, 0.5  # stripes of cutmix, of the frames
FILTER_POINTS = 6  # at which a random filter has a gain of its own, evenly along the mel bands


class CropDataset(Dataset):
    """Random crops (1, 128, frames) of whole log-mels, ten per track and epoch; 3 s by default.

    `tracks` (n, 128, frames) holds 1 + dB / 80 relative to each track's maximum, below 0 for what
    lies more than 80 dB under it; `lengths` (n,) are frames, `y` (n,) genre numbers. Tracks of
    audio (n, 5, 128, frames) also have each frame as the first, second, last but one and last of a
    segment: crops have the edges of segments. Each crop is brought to its own maximum, as the fixed
    segments are. Starts come from torch's global seed.
    """

    def __init__(
        self, tracks: np.ndarray, lengths: np.ndarray, y: np.ndarray, frames: int = N_FRAMES
    ):
        self.tracks, self.lengths, self.y, self.frames = tracks, lengths, y, frames

    def __len__(self) -> int:
        return len(self.y) * CROPS_PER_TRACK

    def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a batch (len(rows), 1, 128, frames) in [0, 1] and its labels."""
        numbers = [row // CROPS_PER_TRACK for row in rows]
        shares = torch.rand(len(rows)).numpy()
        starts = (shares * (self.lengths[numbers] - self.frames + 1)).astype(int)
        pairs = zip(numbers, starts, strict=True)
        crops = np.stack([self._crop(self.tracks[n], s) for n, s in pairs]).astype(np.float32)
        forget_read(self.tracks)
        crops += 1 - crops.max(axis=(1, 2), keepdims=True)
        X = torch.from_numpy(crops.clip(0, 1))[:, None]
        return X, torch.from_numpy(self.y[numbers])

    def _crop(self, track: np.ndarray, start: int) -> np.ndarray:
        """Return a crop (128, frames) of a track, with a segment's edges if they are known."""
        if track.ndim == 2:
            return track[:, start : start + self.frames]
        crop, at = track[0, :, start : start + self.frames].copy(), np.array([0, 1, -2, -1])
        crop[:, at] = track[np.arange(1, 5), :, start + at % self.frames].T
        return crop


def mask(X: torch.Tensor, bands: int, frames: int) -> torch.Tensor:
    """Blank one stripe of mel bands and one of frames in each segment (n, 1, 128, 130).

    Widths are drawn up to `bands` and `frames`; the blank is the segment's mean, which is zero
    after standardizing. Source: SpecAugment, Park et al. 2019.
    """
    if bands == frames == 0:
        return X
    blank = X.mean(dim=(2, 3), keepdim=True)
    for axis, widest in ((2, bands), (3, frames)):
        size = X.shape[axis]
        width = torch.randint(0, widest + 1, (len(X), 1))
        start = (torch.rand(len(X), 1) * (size - width + 1)).long()
        position = torch.arange(size)
        hidden = (position >= start) & (position < start + width)
        shape = (len(X), 1, size, 1) if axis == 2 else (len(X), 1, 1, size)
        X = torch.where(hidden.view(shape).to(X.device), blank, X)
    return X


def filtered(X: torch.Tensor, largest_db: float) -> torch.Tensor:
    """Play segments (n, 1, 128, 130) through random smooth filters, each brought to its maximum.

    Gains are drawn up to +-`largest_db` and run linearly between `FILTER_POINTS` mel bands: another
    room, another desk. Source: FilterAugment, Nam et al. 2022, arXiv 2110.03282 (linear type).
    """
    if not largest_db:
        return X
    return equalized(X, (2 * torch.rand(len(X), FILTER_POINTS) - 1) * largest_db)


def equalized(X: torch.Tensor, gains_db: torch.Tensor) -> torch.Tensor:
    """Play segments (n, 1, 128, 130) through filters, each brought to its maximum.

    `gains_db` (n, points), or (1, points) for one filter, lie evenly along the mel bands; between
    them the gain runs linearly.
    """
    X = X + gain_curve(gains_db)[:, None, :, None].to(X.device)
    return (X + 1 - X.amax(dim=(2, 3), keepdim=True)).clamp(0, 1)


def gain_curve(gains_db: torch.Tensor) -> torch.Tensor:
    """Return the change (n, 128) of log-mel values by filters with gains (n, points) in dB."""
    points = gains_db[:, None] / DYNAMIC_RANGE_DB
    return nn.functional.interpolate(points, N_MELS, mode="linear", align_corners=True)[:, 0]


def warped(X: torch.Tensor, largest: float) -> torch.Tensor:
    """Play segments (n, 1, 128, 130) at other tempi and, separately, in other keys.

    Ratios of tempo and pitch are drawn up to 1 + `largest`, or down to its inverse. Pitch moves
    all mel bands alike, as it does above 1 kHz; edges are mirrored. Source: random resized crops
    of log-mels, BYOL-A, Niizumi et al. 2021, arXiv 2103.06695.
    """
    if not largest:
        return X
    return retimed(X, (2 * torch.rand(2, len(X)) - 1) * math.log2(1 + largest))


def retimed(X: torch.Tensor, octaves: torch.Tensor) -> torch.Tensor:
    """Play segments (n, 1, 128, 130) faster and lower by octaves (2, n); see `warped`."""
    grid = torch.zeros(len(X), 2, 3)
    grid[:, 0, 0] = 2 ** octaves[0]
    grid[:, 1, 1] = 1
    grid[:, 1, 2] = octaves[1] * BANDS_PER_OCTAVE * 2 / X.shape[2]  # X spans -1 to 1
    grid = nn.functional.affine_grid(grid.to(X.device), X.shape, align_corners=False)
    X = nn.functional.grid_sample(X, grid, padding_mode="reflection", align_corners=False)
    return (X + 1 - X.amax(dim=(2, 3), keepdim=True)).clamp(0, 1)


def cut_mix(
    X: torch.Tensor, y: torch.Tensor, n_genres: int, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give a batch a stripe of frames from another of its segments, in a share of batches.

    Returns X (n, 1, 128, frames) and labels: (n,) numbers, or (n, n_genres) probabilities, mixed by
    the stripe's width. Frequencies stay together, as half of two spectra is no spectrum. Source:
    CutMix, Yun et al. 2019, along time only; for adversarial training with averaged weights Rebuffi
    et al. 2021, arXiv 2111.05328.
    """
    if not share or torch.rand(()) >= share:
        return X, y
    frames, order = X.shape[3], torch.randperm(len(X)).to(X.device)
    width = int(frames * (NARROWEST + (WIDEST - NARROWEST) * torch.rand(()).item()))
    stripe = slice(start := int(torch.randint(frames - width + 1, ())), start + width)
    X, labels = X.clone(), nn.functional.one_hot(y, n_genres).float()
    X[..., stripe] = X[order][..., stripe]
    return X, labels.lerp(labels[order], width / frames)


def shuffled_labels(y: np.ndarray, tracks: np.ndarray, seed: int) -> np.ndarray:
    """Return labels (n,) handed to other tracks at random; segments of a track still share one.

    What a network learns from them says nothing of genres: the data randomization test of Adebayo
    et al. 2018, arXiv 1810.03292.
    """
    names, first, place = np.unique(tracks, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return y[first][order][place]
