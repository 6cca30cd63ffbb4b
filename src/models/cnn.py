"""The network: four blocks of two convolutions over a log-mel spectrogram."""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

WIDTHS = (32, 64, 128, 256)
DENSE = (512, 256)


class Standardize(nn.Module):
    """Give each spectrogram zero mean and unit deviation; silence becomes all zeros.

    Without parameters, so that attacks perturb spectrograms in [0, 1] and still see all of the
    model: eps = 0.01 is 0.8 dB in every bin of every segment.
    """

    def __init__(self, floor: float = 1e-3):
        super().__init__()
        self.floor = floor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, 1, n_mels, frames) in [0, 1] to the same shape, standardized per segment."""
        centred = x - x.mean(dim=(1, 2, 3), keepdim=True)
        variance = centred.square().mean(dim=(1, 2, 3), keepdim=True)
        return centred / (variance + self.floor**2).sqrt()


class GenreClassifierCNN(nn.Module):
    """Map log-mel spectrograms (n, 1, 128, 130) in [0, 1] to logits (n, n_genres).

    1,440,618 parameters for ten genres. Layers carry the names of the documentation: `conv1_1`
    to `conv4_2`, each with its batch norm `bn1_1` to `bn4_2`, then `dense1`, `dense2` and
    `output`. The last convolution, `conv4_2`, is the usual Grad-CAM target.
    """

    def __init__(self, n_genres: int = 10):
        super().__init__()
        self.standardize = Standardize()
        channels = 1
        for block, width in enumerate(WIDTHS, start=1):
            for conv in (1, 2):
                self.add_module(f"conv{block}_{conv}", nn.Conv2d(channels, width, 3, padding=1))
                self.add_module(f"bn{block}_{conv}", nn.BatchNorm2d(width))
                channels = width
        for layer, width in enumerate(DENSE, start=1):
            self.add_module(f"dense{layer}", nn.Linear(channels, width))
            self.add_module(f"bn_dense{layer}", nn.BatchNorm1d(width))
            channels = width
        self.output = nn.Linear(channels, n_genres)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU(inplace=True)
        self.drop_channels = nn.Dropout2d(0.15, inplace=True)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, n_genres) of spectrograms (n, 1, n_mels, frames)."""
        x = self.standardize(x)
        for block in range(1, len(WIDTHS) + 1):
            for conv in (1, 2):
                x = self.get_submodule(f"conv{block}_{conv}")(x)
                x = self.get_submodule(f"bn{block}_{conv}")(x)
                x = self.relu(x if conv == 1 else self.drop_channels(self.pool(x)))
        x = x.mean(dim=(2, 3))
        for layer in range(1, len(DENSE) + 1):
            x = self.get_submodule(f"dense{layer}")(x)
            x = self.drop(self.relu(self.get_submodule(f"bn_dense{layer}")(x)))
        return self.output(x)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def norm_of(layer: str) -> str:
    """Return the name of a layer's batch norm; of `output`, which has none, its own name."""
    return layer.replace("conv", "bn").replace("dense", "bn_dense")


def fold_batch_norm(model: GenreClassifierCNN) -> GenreClassifierCNN:
    """Return a frozen evaluation copy whose batch norms are folded into the layers before them.

    The same function of its input (to float rounding) with fewer passes over memory, and no
    gradients for weights: for attacks, which need many gradients with respect to the input.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for name, layer in list(folded.named_children()):
        norm = norm_of(name)
        if isinstance(layer, nn.Conv2d):
            setattr(folded, name, fuse_conv_bn_eval(layer, folded.get_submodule(norm)))
        elif isinstance(layer, nn.Linear) and name != norm:
            setattr(folded, name, fuse_linear_bn_eval(layer, folded.get_submodule(norm)))
        else:
            continue
        setattr(folded, norm, nn.Identity())
    return folded
