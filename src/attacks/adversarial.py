"""Attacks on log-mel spectrograms through the Adversarial Robustness Toolbox (ART).

Threat model: the attacker knows network and gradients (white box) and may change every bin of a
spectrogram in [0, 1] by at most `eps` (L-infinity), which is 80 * eps in dB. Gradients are
computed fast (batch norms folded, bfloat16); whether an attack succeeded is judged by the float32
network alone.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from torch import nn
from tqdm.auto import tqdm

from src.data.frontend import DYNAMIC_RANGE_DB, N_FRAMES, N_MELS
from src.models.cnn import GenreClassifierCNN, fold_batch_norm
from src.models.evaluation import predict_logits
from src.runtime import device, fast_precision, keep_freed_memory, set_seed
from src.statistics import mean_over_tracks

ATTACKS = ("fgsm", "pgd")
EPSILONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
ITERATIONS = 40
STEP_SHARE = 0.25
TOLERANCE = 1e-6
BATCH_SIZE = 64


class FastGradients(nn.Module):
    """A frozen evaluation copy of a network that computes in bfloat16 and returns float32."""

    def __init__(self, model: GenreClassifierCNN):
        super().__init__()
        self.model = fold_batch_norm(model).to(device(), memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n, n_genres) of spectrograms (n, 1, n_mels, frames)."""
        with fast_precision():
            return self.model(x).float()


def make_classifier(model: GenreClassifierCNN) -> PyTorchClassifier:
    """Return an ART classifier of the network, for the attacks' gradients."""
    keep_freed_memory()
    return PyTorchClassifier(
        FastGradients(model),
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, N_MELS, N_FRAMES),
        nb_classes=model.output.out_features,
        clip_values=(0.0, 1.0),
        device_type="gpu" if device().type == "cuda" else "cpu",
    )


def attack(
    name: str,
    classifier: PyTorchClassifier,
    X: np.ndarray,
    y: np.ndarray,
    eps: float,
    iterations: int = ITERATIONS,
    seed: int = 42,
) -> np.ndarray:
    """Return attacked segments, float32 (n, 128, 130) in [0, 1] with |attacked - X| <= eps.

    `name` is "fgsm" (Goodfellow et al. 2015) or "pgd" (Madry et al. 2018; `iterations` steps of
    eps / 4 from one random start). `y` holds the true genre numbers; eps = 0 returns X unchanged.
    Raises ValueError for an unknown name or an eps outside [0, 1], AssertionError if the attack
    broke its bounds.
    """
    if name not in ATTACKS:
        raise ValueError(f"{name} is not an attack known here: give {' or '.join(ATTACKS)}.")
    if not 0 <= eps <= 1:
        raise ValueError(f"eps is {eps}: it must lie in [0, 1], where 0.01 is 0.8 dB.")
    X = np.array(X, dtype=np.float32)
    if eps == 0 or len(X) == 0:
        return X
    set_seed(seed)
    method = _method(name, classifier, eps, iterations)
    attacked = method.generate(X[:, None], np.asarray(y))[:, 0]
    check_contract(X, attacked, eps)
    return attacked


def check_contract(X: np.ndarray, attacked: np.ndarray, eps: float) -> None:
    """Raise AssertionError if attacked segments leave the ball, the range or the finite numbers."""
    largest = float(np.abs(attacked - X).max())
    low, high = float(attacked.min()), float(attacked.max())
    if not (largest <= eps + TOLERANCE and low >= 0 and high <= 1):
        raise AssertionError(
            f"The attack at eps = {eps} changed a bin by {largest} and reached [{low}, {high}]: "
            "it left its bounds or is not finite; its result is not used."
        )


def draw_segments(tracks: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return the sorted rows of `n` segments spread evenly over the tracks, at random within each.

    `tracks` (rows,) names each row's track. All rows if there are fewer than `n`.
    Raises ValueError if `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"{n} segments were asked for: give N_SEGMENTS of at least 1.")
    shuffled = pd.Series(tracks).sample(frac=1, random_state=seed)
    turn = shuffled.groupby(shuffled).cumcount()
    return np.sort(turn.sort_values(kind="stable").index[:n].to_numpy())


def sweep(
    name: str,
    model: GenreClassifierCNN,
    X: np.ndarray,
    segments: pd.DataFrame,
    y: np.ndarray,
    epsilons: tuple = EPSILONS,
    iterations: int = ITERATIONS,
    seed: int = 42,
) -> pd.DataFrame:
    """Attack segments at each eps; return one row a segment and eps.

    Only segments that the network gets right are attacked; the others count as wrong throughout,
    unchanged. With PGD a segment broken at a small eps is broken at each larger one, whose ball
    holds the smaller ball: it keeps its perturbation and is not attacked again. FGSM, whose step
    is eps itself, is made anew at each eps.
    Columns: segment, track, true, attack, eps, eps_db, clean_prediction, adversarial_prediction,
    success (right before, wrong after), linf, l2, snr_db (None for an unchanged segment).
    """
    clean = predict_logits(model, X).argmax(axis=1)
    growing = attack_growing(name, model, X, y, epsilons, iterations, seed)
    rows = [
        _records(name, eps, X, attacked, segments, y, clean, prediction)
        for eps, attacked, prediction in growing
    ]
    return pd.concat(rows, ignore_index=True)


def attack_growing(
    name: str,
    model: GenreClassifierCNN,
    X: np.ndarray,
    y: np.ndarray,
    epsilons: tuple = EPSILONS,
    iterations: int = ITERATIONS,
    seed: int = 42,
) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """Yield eps, attacked segments and predicted genres, the smallest eps first.

    Which segments are attacked at which eps is told in `sweep`. The arrays are used again for the
    next eps: copy what is to be kept.
    """
    classifier = make_classifier(model)
    clean = predict_logits(model, X).argmax(axis=1)
    attacked, prediction = np.array(X, dtype=np.float32), clean.copy()
    for eps in tqdm(sorted(epsilons), desc=name, unit="eps"):
        todo = np.flatnonzero((prediction if name == "pgd" else clean) == y)
        attacked[todo] = attack(name, classifier, X[todo], y[todo], eps, iterations, seed)
        if len(todo):
            prediction[todo] = predict_logits(model, attacked[todo]).argmax(axis=1)
        yield eps, attacked, prediction


def first_flips(
    name: str, model: GenreClassifierCNN, X: np.ndarray, y: np.ndarray, **options
) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest eps that flips each segment (NaN if none) and the segment so attacked.

    Segments that are wrong from the start or never flip are returned unchanged. Options are
    those of `attack_growing`.
    """
    smallest, flipped = np.full(len(X), np.nan), np.array(X, dtype=np.float32)
    right = predict_logits(model, X).argmax(axis=1) == y
    for eps, attacked, prediction in attack_growing(name, model, X, y, **options):
        new = right & (prediction != y) & np.isnan(smallest)
        smallest[new], flipped[new] = eps, attacked[new]
    return smallest, flipped


def summarize(records: pd.DataFrame) -> list[dict]:
    """Return accuracy, drop and success rate by attack and eps, with intervals over tracks.

    The attack success rate is the share of flipped segments among those right before the attack;
    its interval is absent when there are none.
    """
    table = []
    for (name, eps), rows in records.groupby(["attack", "eps"]):
        right_before = rows["clean_prediction"] == rows["true"]
        right_after = rows["adversarial_prediction"] == rows["true"]
        hit = rows[right_before]
        table.append(
            {
                "attack": name,
                "eps": eps,
                "eps_db": eps * DYNAMIC_RANGE_DB,
                "clean_accuracy": right_before.mean(),
                "robust_accuracy": mean_over_tracks(right_after, rows["track"]),
                "accuracy_drop": right_before.mean() - right_after.mean(),
                "attack_success_rate": mean_over_tracks(hit["success"], hit["track"])
                if len(hit)
                else None,
            }
        )
    return table


def smallest_flip(records: pd.DataFrame) -> pd.DataFrame:
    """Return the smallest eps of the sweep that flips each segment, by attack; NaN if none does."""
    flipped = records["eps"].where(records["success"])
    return flipped.groupby([records["attack"], records["segment"]]).min().unstack("attack")


def middle_flip(smallest: pd.Series, numbers: np.ndarray) -> int:
    """Return the position in `numbers` of the segment in the middle of those that flip.

    `smallest` is a column of `smallest_flip`, indexed by segment number. Neither the easiest nor
    the hardest; the first segment if none flips.
    """
    order = smallest.dropna().sort_values(kind="stable").index
    chosen = order[len(order) // 2] if len(order) else numbers[0]
    return int(np.flatnonzero(numbers == chosen)[0])


def _method(name: str, classifier: PyTorchClassifier, eps: float, iterations: int):
    """Return the ART attack of that name."""
    if name == "fgsm":
        return FastGradientMethod(classifier, eps=eps, batch_size=BATCH_SIZE)
    return ProjectedGradientDescent(
        classifier,
        eps=eps,
        eps_step=eps * STEP_SHARE,
        max_iter=iterations,
        num_random_init=1,
        batch_size=BATCH_SIZE,
        verbose=False,
    )


def _records(name, eps, X, attacked, segments, y, clean, prediction) -> pd.DataFrame:
    """Return one row a segment for one attack at one eps."""
    change = (attacked - X).reshape(len(X), -1)
    signal = np.square(X.reshape(len(X), -1)).sum(axis=1)
    energy = np.square(change).sum(axis=1)
    with np.errstate(divide="ignore"):
        snr = 10 * np.log10(signal / energy)
    return pd.DataFrame(
        {
            "segment": segments["segment"].to_numpy(),
            "track": segments["track"].to_numpy(),
            "true": y,
            "attack": name,
            "eps": eps,
            "eps_db": eps * DYNAMIC_RANGE_DB,
            "clean_prediction": clean,
            "adversarial_prediction": prediction,
            "success": (clean == y) & (prediction != y),
            "linf": np.abs(change).max(axis=1),
            "l2": np.sqrt(energy),
            "snr_db": np.where(energy > 0, snr, np.nan),
        }
    )
