"""What one network makes of the clips, unattacked and at each eps: everything the slider shows."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import nn

from src.attacks.adversarial import EPSILONS, attack
from src.attacks.noise import noise_linf
from src.explainability.gradcam import explain
from src.explainability.shift import top_overlap
from src.models.evaluation import predict_logits, softmax
from src.progress import progress


class View(NamedTuple):
    """Clips (n, 128, 130) attacked at one eps and what a network makes of them.

    `probabilities` and `noise` (n, n_genres) are those under attack and under noise whose largest
    value is eps. `maps` (n, 128, 130) and `overlap` (n,), the share of the top tenth of each map
    that is in that of the unattacked clip, come for the `predicted` and for the `true` genre.
    """

    eps: float
    attacked: np.ndarray
    probabilities: np.ndarray
    noise: np.ndarray
    maps: dict[str, np.ndarray]
    overlap: dict[str, np.ndarray]


def views(
    model: nn.Module, X: np.ndarray, y: np.ndarray, iterations: int, seed: int
) -> Iterator[View]:
    """Yield the view of clips (n, 128, 130) with true genres `y` at 0 and each eps of the sweep.

    PGD is made anew at each eps, from the unattacked clip, whether or not it was right.
    """
    before = None
    for eps in progress((0.0, *EPSILONS), "pgd", unit="eps", leave=False):
        attacked = attack("pgd", model, X, y, eps, iterations, seed)
        probabilities = softmax(predict_logits(model, attacked))
        explained = {"predicted": probabilities.argmax(axis=1), "true": y}
        maps = {kind: explain(model, attacked, genre) for kind, genre in explained.items()}
        before = before or maps
        yield View(
            eps,
            attacked,
            probabilities,
            softmax(predict_logits(model, noise_linf(X, eps, seed))),
            maps,
            {kind: top_overlap(before[kind], maps[kind]) for kind in maps},
        )
