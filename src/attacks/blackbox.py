"""Attacks without gradients: they see the float32 network's answers alone."""

import numpy as np
from art.attacks.evasion import HopSkipJump
from art.estimators.classification import BlackBoxClassifierNeuralNetwork

from src.data.features import N_FRAMES, N_MELS
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits
from src.progress import progress
from src.runtime import set_seed

FIRST_QUERIES = 50


def make_oracle(model: GenreClassifierCNN) -> BlackBoxClassifierNeuralNetwork:
    """Return an ART classifier that answers with float32 logits and gives no gradients.

    An answer given once is remembered: ART's Square asks for most of its answers three times.
    """
    known = {}

    def answer(batch: np.ndarray) -> np.ndarray:
        keys = [hash(x.tobytes()) for x in batch]
        new = {key: i for i, key in enumerate(keys) if key not in known}
        if new:
            logits = predict_logits(model, batch[list(new.values()), 0])
            known.update(zip(new, logits, strict=True))
        return np.stack([known[key] for key in keys])

    return BlackBoxClassifierNeuralNetwork(
        answer,
        input_shape=(1, N_MELS, N_FRAMES),
        nb_classes=model.output.out_features,
        channels_first=True,
        clip_values=(0.0, 1.0),
    )


def hop_skip_jump(
    oracle: BlackBoxClassifierNeuralNetwork, target, few, steps: int, seed: int
) -> np.ndarray:
    """Return the segments of `few` (n, 128, 130) moved as little as it takes to flip them.

    HopSkipJump (Chen et al. 2020) in L-infinity, from the nearest segment of `target` that is
    predicted as another genre; only predictions are used. It seeks a small change, not one within a
    given eps: the size of the change decides for which eps it counts. A segment without a start is
    returned as it is. `few` and `target` are `Target`s of the same model.
    """
    set_seed(seed)
    found = np.array(few.data.X)
    for position, x in enumerate(progress(few.data.X, "hop_skip_jump", unit="segment")):
        others = target.data.X[target.predicted != few.predicted[position]]
        if len(others) and steps:
            distance = np.abs(others - x).max(axis=(1, 2))
            found[position] = _nearer(oracle, x, others[distance.argmin()], steps)
    return found


def _nearer(oracle, x: np.ndarray, start: np.ndarray, steps: int) -> np.ndarray:
    """Return what HopSkipJump makes of `start` on its way to `x`, or `start` if that is no nearer.

    It counts its steps over calls, so that each segment gets an attack of its own.
    """
    method = HopSkipJump(
        oracle, norm=np.inf, max_iter=steps, init_eval=FIRST_QUERIES, verbose=False
    )
    moved = method.generate(x[None, None], x_adv_init=start[None, None])[0, 0]
    return min(moved, start, key=lambda other: np.abs(other - x).max())
