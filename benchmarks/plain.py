"""Plain implementations of the stages in float32, as one would write them first."""

from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from src.data.features import (
    HOP_LENGTH,
    N_FFT,
    N_MELS,
    SEGMENT_SAMPLES,
    SEGMENTS_PER_TRACK,
    to_unit,
)

ATTACK_BATCH = 32


def features(paths: list[Path]) -> np.ndarray:
    """Return segments (n, 128, 130) in [0, 1] of audio files: librosa, segment by segment."""
    segments = []
    options = {"n_fft": N_FFT, "hop_length": HOP_LENGTH, "n_mels": N_MELS, "pad_mode": "constant"}
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32")
        for k in range(SEGMENTS_PER_TRACK):
            part = samples[k * SEGMENT_SAMPLES : (k + 1) * SEGMENT_SAMPLES]
            power = librosa.feature.melspectrogram(y=part, sr=rate, **options)
            segments.append(to_unit(librosa.power_to_db(power, ref=np.max, top_db=80)))
    return np.stack(segments)


def train(model: nn.Module, X: np.ndarray, y: np.ndarray, batch_size: int) -> nn.Module:
    """Train a network on one pass over X (n, 128, 130); return it."""
    X, y = torch.from_numpy(X)[:, None], torch.from_numpy(y)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=0.0005, weight_decay=0.0001)
    for start in range(0, len(X), batch_size):
        optimizer.zero_grad()
        logits = model(X[start : start + batch_size])
        nn.functional.cross_entropy(logits, y[start : start + batch_size]).backward()
        optimizer.step()
    return model


@torch.no_grad()
def loss(model: nn.Module, X: np.ndarray, y: np.ndarray) -> float:
    """Return the mean loss of a network in training mode, so that new batch norms do not matter."""
    logits = model.train()(torch.from_numpy(X)[:, None])
    return nn.functional.cross_entropy(logits, torch.from_numpy(y)).item()


def sweep(
    model: nn.Module, X: np.ndarray, y: np.ndarray, epsilons: tuple, iterations: int
) -> dict[tuple[str, float], np.ndarray]:
    """Return adversarial segments by attack and eps: ART, each eps from scratch."""
    classifier = PyTorchClassifier(
        model.eval(),
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, *X.shape[1:]),
        nb_classes=model.output.out_features,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    found, fixed = {}, {"num_random_init": 1, "batch_size": ATTACK_BATCH, "verbose": False}
    for eps in epsilons:
        steps = {"eps": eps, "eps_step": eps / 4, "max_iter": iterations}
        pgd = ProjectedGradientDescent(classifier, **steps, **fixed)
        fgsm = FastGradientMethod(classifier, eps=eps, batch_size=ATTACK_BATCH)
        for name, attack in (("fgsm", fgsm), ("pgd", pgd)):
            found[name, eps] = attack.generate(X[:, None], y)[:, 0]
    return found


def grad_cam(model: nn.Module, X: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return maps (n, 128, 130) in [0, 1], one after another."""
    model = model.eval().requires_grad_(True)
    with GradCAM(model, [model.conv4_2]) as cam:
        maps = [
            cam(torch.from_numpy(x)[None, None], [ClassifierOutputTarget(int(target))])[0]
            for x, target in zip(X, targets, strict=True)
        ]
    return np.stack(maps)
