"""The experiments of notebook 5, each a generator of records for one model: `run` joins them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from src.attacks.adversarial import Search, attack
from src.data.segments import Segments, draw_segments
from src.effort import Effort
from src.explainability import faithfulness
from src.explainability.attributions import CONTROLS, METHODS, SLOW_METHODS, Subject, attribute
from src.explainability.localization import (
    BOX_EPS,
    attack_boxes,
    box_measures,
    draw_boxes,
    part_mass_above_area,
)
from src.explainability.prototypes import class_specificity, mean_known, prototype_similarity
from src.explainability.randomization import RANDOMIZED_METHODS, randomized
from src.explainability.records import differences, records, summarize
from src.explainability.selection import correct_segments, partners
from src.explainability.similarity import BANDS, band_shares, compare_maps, spearman, ssim
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits
from src.progress import progress

Tables = Iterator[pd.DataFrame]


class Attacked(NamedTuple):
    """Segments after an attack of one eps, their predictions, and noise of the same norms."""

    eps: float
    X: np.ndarray
    predicted: np.ndarray
    noise: np.ndarray


class Case(NamedTuple):
    """A model, segments that it predicts correctly, and the same under attack, by eps."""

    subject: Subject
    data: Segments
    attacked: dict[float, Attacked]

    def take(self, n: int) -> "Case":
        """Return the case with the first `n` of its segments."""
        attacked = {
            eps: Attacked(eps, found.X[:n], found.predicted[:n], found.noise[:n])
            for eps, found in self.attacked.items()
        }
        return Case(self.subject, self.data.take(np.arange(len(self.data))[:n]), attacked)


class MapSet(NamedTuple):
    """A case with clean maps of its first segments and their faithfulness curves, by method."""

    case: Case
    maps: dict[str, np.ndarray]
    curves: dict[str, dict[str, np.ndarray]]


class Confined(NamedTuple):
    """Segments that an attack confined to boxes flips, before and after, and its predictions."""

    subject: Subject
    data: Segments
    X: np.ndarray
    predicted: np.ndarray
    boxes: np.ndarray


def check_request(method: str, epsilons: list[float]) -> None:
    """Raise ValueError for an unknown method or an eps outside (0, 1], before hours are spent."""
    if method not in METHODS:
        raise ValueError(f"METHOD={method} is unknown: give one of {', '.join(METHODS)}.")
    for eps in epsilons:
        if not 0 < eps <= 1:
            cause = ", probably in dB" if eps > 1 else ", which is no attack"
            raise ValueError(
                f"eps is {eps}{cause}: give it as a share of the range, above 0 and at most 1, "
                "where 0.01 is 0.8 dB."
            )


def run(experiment: Callable[..., Tables], cases: list, *options: object) -> pd.DataFrame:
    """Return the records of an experiment, a function of this module that yields them.

    Its first argument is each of the `cases`, `options` are the others.
    """
    name = experiment.__name__.replace("_", " ")
    tables = [
        table
        for case in progress(cases, name, unit="model")
        for table in experiment(case, *options)
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def make_case(subject: Subject, data: Segments, epsilons: list[float], iterations: int) -> Case:
    """Attack the segments that a model predicts correctly by PGD, at each eps anew."""
    chosen = correct_segments(subject.model, data)
    attacked = {}
    for eps in epsilons if len(chosen) else []:
        search = Search(iterations, subject.seed)
        X = attack("pgd", subject.model, chosen.X, chosen.y, eps, search)
        predicted = predict_logits(subject.model, X).argmax(axis=1)
        noise = shuffled_perturbation(chosen.X, X, subject.seed)
        attacked[eps] = Attacked(eps, X, predicted, noise)
    return Case(subject, chosen, attacked)


def shuffled_perturbation(X: np.ndarray, attacked: np.ndarray, seed: int) -> np.ndarray:
    """Return segments (n, 128, 130) with the attack's perturbation, its bins shuffled.

    A control with the attack's norms, except for values clipped at 0 and 1.
    """
    change = (attacked - X).reshape(len(X), -1)
    noise = np.random.default_rng(seed).permuted(change, axis=1)
    return np.clip(X + noise.reshape(X.shape), 0, 1).astype(np.float32)


def success_rates(cases: list[Case]) -> pd.DataFrame:
    """Return the attack success rate by eps (rows) and model (columns)."""
    rates = {
        case.subject.name: {
            eps: np.mean(found.predicted != case.data.y) for eps, found in case.attacked.items()
        }
        for case in cases
    }
    return pd.DataFrame(rates).rename_axis("eps")


def shift_under_attack(case: Case, method: str) -> Tables:
    """Yield the shift of maps at each eps, and their distance from another track's map.

    Condition `other_track`: the clean map of another track of the same genre.
    """
    subject, data = case.subject, case.data
    clean = attribute(subject, method, data.X, data.y)
    other = partners(data)
    found = np.flatnonzero(other >= 0)
    values = compare_maps(clean[found], clean[other[found]])
    yield records(subject, method, data.table.iloc[found], values, condition="other_track")
    for attacked in case.attacked.values():
        yield from true_class_shift(case, method, attacked, clean)
        yield from predicted_class_shift(case, method, attacked, clean)


def true_class_shift(case: Case, method: str, attacked: Attacked, clean: np.ndarray) -> Tables:
    """Yield the shift of the true genre's maps from `clean`, the maps before the attack.

    Conditions: `succeeded_true` and `failed`, by whether the attack flips the segment; `noise` of
    the attack's norms on all segments, `noise_succeeded` on those that the attack flips.
    """
    subject, y = case.subject, case.data.y
    flipped, every = attacked.predicted != y, np.ones(len(y), dtype=bool)
    true = attribute(subject, method, attacked.X, y)
    noise = attribute(subject, method, attacked.noise, y)
    for condition, maps, rows in (
        ("succeeded_true", true, flipped),
        ("failed", true, ~flipped),
        ("noise", noise, every),
        ("noise_succeeded", noise, flipped),
    ):
        table, values = case.data.table[rows], compare_maps(clean[rows], maps[rows])
        labels = {"condition": condition, "eps": attacked.eps}
        yield records(subject, method, table, values, **labels)


def predicted_class_shift(case: Case, method: str, attacked: Attacked, clean: np.ndarray) -> Tables:
    """Yield the distance of the predicted genre's maps from `clean`, the true genre's before.

    For segments that the attack flips. Conditions: `succeeded_predicted`, the map after the
    attack; `target_predicted`, that of the clean segment for the same target class, which shows
    the effect of another target class without any attack.
    """
    flipped = np.flatnonzero(attacked.predicted != case.data.y)
    targets, few = attacked.predicted[flipped], case.data.take(flipped)
    for condition, X in (
        ("succeeded_predicted", attacked.X[flipped]),
        ("target_predicted", few.X),
    ):
        values = compare_maps(clean[flipped], attribute(case.subject, method, X, targets))
        labels = {"condition": condition, "eps": attacked.eps}
        yield records(case.subject, method, few.table, values, **labels)


def map_by_all_methods(case: Case, effort: Effort) -> MapSet:
    """Return clean maps of the first segments by all methods and controls, and their curves."""
    subject, maps, curves = case.subject, {}, {}
    for name in (*METHODS, *CONTROLS):
        n = min(effort.n_methods, effort.n_slow) if name in SLOW_METHODS else effort.n_methods
        X, y = case.data.X[:n], case.data.y[:n]
        maps[name] = attribute(subject, name, X, y)
        score = faithfulness.confidence(subject.model)
        options = X, y, maps[name], subject.background, subject.seed
        curves[name] = faithfulness.curves(score, *options)
    return MapSet(case, maps, curves)


def faithfulness_of_methods(found: MapSet, n_road: int) -> Tables:
    """Yield insertion, deletion and ROAD of all maps, and their distance from each control.

    ROAD is measured on the first `n_road` segments.
    """
    case, maps, values = found.case, found.maps, {}
    for name, heat in maps.items():
        road, few = np.full(len(heat), np.nan), slice(min(n_road, len(heat)))
        options = case.data.X[few], case.data.y[few], heat[few], case.subject.seed
        road[few] = faithfulness.road(case.subject.model, *options)
        values[name] = faithfulness.areas(found.curves[name]) | {"road": road}
    for name, own in values.items():
        table = case.data.table[: len(maps[name])]
        yield records(case.subject, name, table, own)
        for control in (c for c in CONTROLS if c in values and c != name):
            baseline = {key: column[: len(table)] for key, column in values[control].items()}
            above = faithfulness.above_control(own, baseline)
            yield records(case.subject, name, table, above, control=control)


def shift_of_methods(found: MapSet, method: str, eps: float) -> Tables:
    """Yield the shift at one eps of all maps but those of `method`: see `shift_under_attack`."""
    for name, maps in found.maps.items():
        if name != method:
            few = found.case.take(len(maps))
            yield from true_class_shift(few, name, few.attacked[eps], maps)


def confine(case: Case, iterations: int) -> Confined:
    """Attack each segment inside one random box; return those that the attack flips."""
    subject, data = case.subject, case.data
    boxes = draw_boxes(len(data), subject.seed)
    search = Search(iterations, subject.seed)
    X = attack_boxes(subject.model, data.X, data.y, boxes, search)
    predicted = predict_logits(subject.model, X).argmax(axis=1)
    flipped = np.flatnonzero(predicted != data.y)
    return Confined(subject, data.take(flipped), X[flipped], predicted[flipped], boxes[flipped])


def localization(found: Confined, method: str, effort: Effort) -> Tables:
    """Yield how well the maps of the predicted genre localize the box, for all methods.

    Conditions: `confined`; for `method` also `target_predicted`, the map of the clean segment for
    the same target class: the box is unknown to it.
    """
    for name in (*METHODS, *CONTROLS):
        n = effort.n_slow if name in SLOW_METHODS else effort.n_explained
        maps = attribute(found.subject, name, found.X[:n], found.predicted[:n])
        yield _box_records(found, name, maps, "confined")
    maps = attribute(found.subject, method, found.data.X, found.predicted)
    yield _box_records(found, method, maps, "target_predicted")


def mass_on_parts(case: Case, method: str, cells: dict[int, np.ndarray]) -> Tables:
    """Yield the mass above area of the true genre's clean maps on each part of the music.

    `cells` has the loudest part of each cell (128, 130) by the segment's number.
    """
    subject, data = case.subject, case.data
    own = np.stack([cells[number] for number in data.numbers])
    for name in (method, *CONTROLS):
        maps = attribute(subject, name, data.X, data.y)
        for part, values in part_mass_above_area(maps, own).items():
            yield records(subject, name, data.table, {"mass_above_area": values}, part=part)


def cascading_randomization(case: Case, n: int) -> Tables:
    """Yield the similarity of the first `n` maps to those of randomized models, by layer."""
    case, subject = case.take(n), case.subject
    for method in RANDOMIZED_METHODS:
        trained = attribute(subject, method, case.data.X, case.data.y)
        for layer, model in randomized(subject.model, subject.seed):
            labels = {"condition": "randomized", "layer": layer}
            yield _model_similarity(case, method, trained, model, **labels)


def random_labels(case: Case, n: int, other: GenreClassifierCNN) -> Tables:
    """Yield the similarity of the first `n` maps to those of a model trained on random labels."""
    case, subject = case.take(n), case.subject
    for method in RANDOMIZED_METHODS:
        trained = attribute(subject, method, case.data.X, case.data.y)
        yield _model_similarity(case, method, trained, other, condition="random_labels")


def mass_by_band(case: Case, method: str, eps: float) -> Tables:
    """Yield the share of each map's mass in each frequency band.

    Conditions: `clean` for the true genre, `attacked` for the predicted genre after the attack.
    """
    subject, data, attacked = case.subject, case.data, case.attacked[eps]
    for condition, X, targets, eps_shown in (
        ("clean", data.X, data.y, 0.0),
        ("attacked", attacked.X, attacked.predicted, eps),
    ):
        shares = band_shares(attribute(subject, method, X, targets))
        for band, values in zip(BANDS, shares.T, strict=True):
            labels = {"part": band, "condition": condition, "eps": eps_shown}
            yield records(subject, method, data.table, {"band_mass": values}, **labels)


def specificity(case: Case, method: str) -> Tables:
    """Yield the class specificity of clean maps.

    Conditions: `clean` for the true genre; as its control `target_any`, the mean over all genres as
    target class: the part that is due to the target class, whatever the segment.
    """
    subject, data = case.subject, case.data
    clean = attribute(subject, method, data.X, data.y)
    for condition, values in (
        ("clean", class_specificity(clean, data.y, subject.prototypes)),
        ("target_any", mean_class_specificity(case, method)),
    ):
        values = {"class_specificity": values}
        yield records(subject, method, data.table, values, condition=condition)


def mean_class_specificity(case: Case, method: str) -> np.ndarray:
    """Return each segment's class specificity (n,), averaged over all genres as target class.

    Structure of the segment that does not depend on the target class cancels out: it raises the
    value for one target and lowers it for the others. Empty maps do not count.
    """
    subject, found = case.subject, []
    for genre in range(len(subject.prototypes)):
        targets = np.full(len(case.data), genre)
        maps = attribute(subject, method, case.data.X, targets)
        found.append(class_specificity(maps, targets, subject.prototypes))
    return mean_known(np.stack(found, axis=1))


def failures(case: Case, method: str, test: Segments, n: int, eps: float) -> Tables:
    """Yield the similarity of failures to the prototypes of the predicted and the true genre.

    Conditions: `n` `natural` failures, spread evenly over the tracks; `adversarial`, the segments
    that the attack flips; `target_predicted`, the same segments before it for the same target
    class: no failure at all. Nothing for a model without natural failures in `test`.
    """
    subject, attacked = case.subject, case.attacked[eps]
    predicted = predict_logits(subject.model, test.X).argmax(axis=1)
    wrong = np.flatnonzero(predicted != test.y)
    if not len(wrong):
        return
    wrong = wrong[draw_segments(test.tracks[wrong], n, subject.seed)]
    flipped = np.flatnonzero(attacked.predicted != case.data.y)
    few, targets = case.data.take(flipped), attacked.predicted[flipped]
    for condition, data, explained, eps_shown in (
        ("natural", test.take(wrong), predicted[wrong], 0.0),
        ("adversarial", replace(few, X=attacked.X[flipped]), targets, eps),
        ("target_predicted", few, targets, eps),
    ):
        maps = attribute(subject, method, data.X, explained)
        values = prototype_similarity(maps, data.y, explained, subject.prototypes)
        labels = {"condition": condition, "eps": eps_shown}
        yield records(subject, method, data.table, values, **labels)


def results_table(rows: pd.DataFrame, corpus: str, eps: float) -> pd.DataFrame:
    """Return the table of all measures with their intervals, and of the contrasts, by method."""
    tables = [summarize(rows, corpus), contrasts(rows, corpus, eps)]
    table = pd.concat(tables, ignore_index=True)
    table["method"] = pd.Categorical(table["method"], [*METHODS, *CONTROLS])
    return table.sort_values("method", kind="stable").astype({"method": str})


def contrasts(rows: pd.DataFrame, corpus: str, eps: float) -> pd.DataFrame:
    """Return the differences between conditions that answer the questions of the notebook."""
    pairs = [
        ("class_specificity", "clean", "target_any", 0),
        ("prototype_margin", "natural", "adversarial", eps),
        ("prototype_margin", "natural", "target_predicted", eps),
        ("prototype_margin", "adversarial", "target_predicted", eps),
        ("spearman", "succeeded_true", "noise_succeeded", eps),
        ("spearman", "succeeded_true", "failed", eps),
        ("spearman", "succeeded_predicted", "target_predicted", eps),
        ("spearman", "succeeded_predicted", "other_track", eps),
        ("relevance_mass", "confined", "target_predicted", BOX_EPS),
    ]
    return differences(rows, pairs, corpus)


def _box_records(found: Confined, method: str, maps: np.ndarray, condition: str) -> pd.DataFrame:
    """Return the localization of the boxes by maps of the first segments."""
    table, measures = found.data.table[: len(maps)], box_measures(maps, found.boxes[: len(maps)])
    return records(found.subject, method, table, measures, condition=condition, eps=BOX_EPS)


def _model_similarity(
    case: Case, method: str, trained: np.ndarray, other: GenreClassifierCNN, **labels: object
) -> pd.DataFrame:
    """Return rank correlation and SSIM of the true genre's maps with those of another model."""
    subject, data = case.subject._replace(model=other), case.data
    maps = attribute(subject, method, data.X, data.y)
    values = {"spearman": spearman(trained, maps), "ssim": ssim(trained, maps)}
    return records(subject, method, data.table, values, **labels)
