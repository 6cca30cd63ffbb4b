"""The segments that are explained: cases under attack, and examples that are shown, by rule."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from src.attacks.adversarial import Search, attack
from src.attacks.records import make_target
from src.attacks.suite import first_success
from src.data.segments import Segments, draw_segments
from src.explainability.attributions import Subject
from src.explainability.gradcam import explain, is_empty
from src.explainability.localization import BOX_EPS, draw_boxes
from src.explainability.similarity import spearman
from src.labels import EXAMPLES
from src.models.evaluation import predict_logits


class Attacked(NamedTuple):
    """Segments after an attack of one eps, and their predictions."""

    X: np.ndarray
    predicted: np.ndarray


class Case(NamedTuple):
    """A model, segments that it predicts correctly, and the same under attack, by eps."""

    subject: Subject
    data: Segments
    attacked: dict[float, Attacked]

    def take(self, n: int) -> "Case":
        """Return the case with the first `n` of its segments."""
        attacked = {
            eps: Attacked(*(part[:n] for part in found)) for eps, found in self.attacked.items()
        }
        return Case(self.subject, self.data.take(np.arange(len(self.data))[:n]), attacked)


class Confined(NamedTuple):
    """Segments that an attack confined to boxes flips, before and after, and its predictions."""

    subject: Subject
    data: Segments
    X: np.ndarray
    predicted: np.ndarray
    boxes: np.ndarray


class Example(NamedTuple):
    """A map that is shown: a panel of a figure and a row of `gradcam.csv`.

    `segment` is a row of the segments' table, `x` and `heat` (128, 130) its spectrogram and map.
    `true`, `predicted` and `explained`, the target class of the map, are names of genres. `eps` is
    NaN if no eps of the sweep succeeds.
    """

    category: str
    segment: tuple
    x: np.ndarray
    heat: np.ndarray
    true: str
    predicted: str
    explained: str
    attack: str = ""
    eps: float = 0.0


class View(NamedTuple):
    """A model whose maps are shown, the layer that they read, and the names of its genres."""

    model: nn.Module
    layer: str
    genres: list[str]


def make_case(subject: Subject, data: Segments, epsilons: list[float], iterations: int) -> Case:
    """Attack the segments that a model predicts correctly by PGD, at each eps anew."""
    predicted = predict_logits(subject.model, data.X).argmax(axis=1)
    chosen, attacked = data.take(np.flatnonzero(predicted == data.y)), {}
    search = Search(iterations, subject.seed)
    for eps in epsilons if len(chosen) else []:
        X = attack("pgd", subject.model, chosen.X, chosen.y, eps, search)
        attacked[eps] = Attacked(X, predict_logits(subject.model, X).argmax(axis=1))
    return Case(subject, chosen, attacked)


def null_segments(X: np.ndarray, attacked: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Return segments (n, 128, 130) with perturbations that keep a part of the attack's.

    Returns
    -------
    `noise` : its bins shuffled: the same norms
    `minus` : the opposite perturbation, which strengthens the prediction
    `same_spectrum` : the same spectrum over bands and frames, random phases
    `other_segment` : the perturbation of the segment before it, of the last one for the first

    All are clipped to [0, 1].
    """
    change, rng = attacked - X, np.random.default_rng(seed)
    noise = rng.permuted(change.reshape(len(X), -1), axis=1).reshape(X.shape)
    phases = np.exp(1j * np.angle(np.fft.rfft2(rng.standard_normal(X.shape))))
    same = np.fft.irfft2(np.abs(np.fft.rfft2(change)) * phases, s=X.shape[1:])
    nulls = {"noise": noise, "minus": -change, "same_spectrum": same}
    nulls["other_segment"] = np.roll(change, 1, axis=0)
    return {name: np.clip(X + null, 0, 1).astype(np.float32) for name, null in nulls.items()}


def confine(case: Case, iterations: int) -> Confined:
    """Attack each segment within `BOX_EPS` inside one random box; return those that it flips."""
    subject, data = case.subject, case.data
    boxes, search = draw_boxes(len(data), subject.seed), Search(iterations, subject.seed)
    limits = BOX_EPS * boxes.astype(np.float32)
    X = attack("pgd", subject.model, data.X, data.y, limits, search)
    predicted = predict_logits(subject.model, X).argmax(axis=1)
    flipped = np.flatnonzero(predicted != data.y)
    return Confined(subject, data.take(flipped), X[flipped], predicted[flipped], boxes[flipped])


def natural_failures(
    model: nn.Module, data: Segments, n: int, seed: int
) -> tuple[Segments, np.ndarray]:
    """Return `n` misclassified segments, spread evenly over the tracks, and their predictions."""
    predicted = predict_logits(model, data.X).argmax(axis=1)
    wrong = np.flatnonzero(predicted != data.y)
    if len(wrong):
        wrong = wrong[draw_segments(data.tracks[wrong], n, seed)]
    return data.take(wrong), predicted[wrong]


def correct_examples(
    y: np.ndarray, probabilities: np.ndarray, tracks: np.ndarray, per_genre: int
) -> np.ndarray:
    """Return rows of the most confident correct segments, `per_genre` of each genre.

    Of different tracks (n,) as far as there are any: the best segment of each track comes first.
    """
    correct = _most_confident(probabilities.argmax(axis=1) == y, probabilities, tracks)
    return np.concatenate([correct[y[correct] == k][:per_genre] for k in np.unique(y)])


def confident_failures(y: np.ndarray, probabilities: np.ndarray, n: int) -> np.ndarray:
    """Return rows of the `n` most confident natural failures, one of each confusion first."""
    predicted = probabilities.argmax(axis=1)
    return _most_confident(predicted != y, probabilities, np.stack([y, predicted], axis=1))[:n]


def _most_confident(chosen: np.ndarray, probabilities: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Return the chosen rows by falling confidence, the first of each kind before all others."""
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    rows = order[chosen[order]]
    repeated = pd.DataFrame(kind[rows]).duplicated().to_numpy()
    return rows[np.argsort(repeated, kind="stable")]


def partners(data: Segments) -> np.ndarray:
    """Return for each segment the row of the next one of its genre and another track, else -1."""
    found = np.full(len(data), -1)
    for i in range(len(found)):
        others = np.flatnonzero((data.y == data.y[i]) & (data.tracks != data.tracks[i]))
        if len(others):
            found[i] = others[np.searchsorted(others, i) % len(others)]
    return found


def spread(rows: np.ndarray, n: int) -> np.ndarray:
    """Return `n` of the rows, at even distances, or all if there are fewer."""
    return rows[:: max(1, len(rows) // max(1, n))][:n]


def make_examples(
    view: View, category: str, data: Segments, predicted: np.ndarray, explained: np.ndarray
) -> list[Example]:
    """Return one example per segment; `predicted` and `explained` (n,) are genre numbers."""
    maps = explain(view.model, data.X, explained, view.layer)
    numbers = np.stack([data.y, predicted, explained], axis=1)
    columns = zip(data.table.itertuples(), data.X, maps, numbers, strict=True)
    return [
        Example(category, segment, x, heat, *(view.genres[k] for k in genres))
        for segment, x, heat, genres in columns
    ]


def failure_examples(
    view: View, data: Segments, predicted: np.ndarray
) -> list[tuple[Example, Example]]:
    """Return for each natural failure its maps of the predicted and of the true genre."""
    first = make_examples(view, "natural_failures", data, predicted, predicted)
    second = make_examples(view, "natural_failures", data, predicted, data.y)
    return list(zip(first, second, strict=True))


def attack_examples(
    view: View, data: Segments, name: str, epsilons: list[float], search: Search
) -> list[tuple[Example, Example]]:
    """Return for each segment its maps under the smallest successful and the largest eps.

    The maps explain the genre that is predicted after the attack. `name` is fgsm or pgd.
    """
    strong = max(epsilons)
    smallest, flipped = first_success(name, make_target(view.model, data), tuple(epsilons), search)
    attacked = attack(name, view.model, data.X, data.y, strong, search)
    found = []
    for eps, X in ((smallest, flipped), (np.full(len(data), strong), attacked)):
        predicted = predict_logits(view.model, X).argmax(axis=1)
        category, changed = f"adversarial_{name}", replace(data, X=X)
        examples = make_examples(view, category, changed, predicted, predicted)
        pairs = zip(examples, eps.tolist(), strict=True)
        found.append([example._replace(attack=name, eps=value) for example, value in pairs])
    return list(zip(*found, strict=True))


def manipulated_example(
    view: View, data: Segments, X: np.ndarray, eps: float
) -> tuple[Example, Example]:
    """Return one segment before and after an attack on its map, both explained for `data.y`.

    Of all segments `X` (n, 128, 130) it has the median rank correlation of the two maps.
    """
    predicted = predict_logits(view.model, X).argmax(axis=1)
    before = make_examples(view, "manipulated", data, data.y, data.y)
    after = make_examples(view, "manipulated", replace(data, X=X), predicted, data.y)
    maps = (np.stack([example.heat for example in each]) for each in (before, after))
    k = np.argsort(spearman(*maps), kind="stable")[(len(X) - 1) // 2]
    return before[k], after[k]._replace(attack="map attack", eps=eps)


def example_records(examples: list[Example]) -> pd.DataFrame:
    """Return one row per map: segment, genres, which of them it explains, eps, empty or not."""
    table = pd.DataFrame(examples, columns=Example._fields)
    for name in ("segment", "track", "start_s"):
        table[name] = [getattr(example.segment, name) for example in examples]
    same = table["true"] == table["predicted"]
    explains = np.where(table["explained"] == table["true"], "true", "predicted")
    empty = is_empty(np.stack([example.heat for example in examples]))
    table = table.assign(explains=np.where(same, "both", explains), wrong=~same, empty=empty)
    return table.drop(columns=["x", "heat", "attack"])


def count_maps(maps: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of maps and of empty ones, of `example_records`, in words."""
    by = ["category", "explains"]
    shown = maps.assign(**maps[by].replace(EXAMPLES))
    return shown.groupby(by, sort=False)["empty"].agg(maps="count", empty="sum")
