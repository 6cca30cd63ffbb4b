"""The experiments of notebook 5, each a generator of records for one model, joined by `run_all`."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from src.data.segments import Segments
from src.effort import Effort
from src.explainability import faithfulness, similarity
from src.explainability.attributions import CONTROLS, METHODS, SLOW_METHODS, attribute, draws
from src.explainability.localization import (
    BOX_EPS,
    box_measures,
    loudest_parts,
    part_mass_above_area,
)
from src.explainability.manipulation import MANIPULATED, manipulate, same_prediction
from src.explainability.records import records
from src.explainability.selection import (
    Case,
    Confined,
    confine,
    natural_failures,
    null_segments,
    partners,
)
from src.explainability.similarity import compare_maps, mean_known, mean_over_draws, spearman, ssim
from src.progress import progress

Tables = Iterator[pd.DataFrame]


class Plan(NamedTuple):
    """The settings of all experiments.

    `method` is measured at every eps, all methods are compared at `eps`. `corpus_seed` is that of
    the embedded corpus, whose parts are known; `shuffled` a model trained on random labels. The
    experiments on parts and on random labels are left out if these are None.
    """

    method: str
    eps: float
    effort: Effort
    corpus_seed: int | None = None
    shuffled: nn.Module | None = None


class MapSet(NamedTuple):
    """A case with clean maps of its first segments and their faithfulness curves, by method.

    `manipulated` are these segments after an attack on their maps, by method of `MANIPULATED`.
    """

    case: Case
    maps: dict[str, np.ndarray]
    curves: dict[str, dict[str, np.ndarray]]
    manipulated: dict[str, np.ndarray]


class Found(NamedTuple):
    """The records of all experiments, and the maps and segments that figures show, by case."""

    records: pd.DataFrame
    mapped: list[MapSet]
    confined: list[Confined]


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


def run_all(cases: list[Case], test: Segments, plan: Plan) -> Found:
    """Return the records of all experiments on all cases; `test` has the natural failures."""
    method, eps, effort = plan.method, plan.eps, plan.effort
    mapped = [map_by_all_methods(case, effort) for case in _each(cases, "maps")]
    confined = [confine(case, effort.explain_iterations) for case in _each(cases, "boxes")]
    mapped = [attack_maps(each, eps, effort) for each in _each(mapped, "attacks on maps")]
    cells = known_parts(cases, plan.corpus_seed)
    composed = cases if cells else []
    unrelated = cases if plan.shuffled is not None else []
    experiments = (
        (shift_under_attack, cases, method),
        (faithfulness_of_methods, mapped, effort.n_slow),
        (shift_of_methods, mapped, method, eps),
        (localization, confined, method, effort),
        (manipulation, mapped, eps),
        (mass_on_parts, composed, method, cells),
        (similarity_of_models, cases, effort.n_methods),
        (similarity_of_models, unrelated, effort.n_methods, plan.shuffled),
        (mass_by_band, cases, method, eps),
        (specificity, cases, method),
        (failures, cases, method, test, 2 * effort.n_explained, eps),
    )
    tables = [
        table
        for experiment, subjects, *options in experiments
        for subject in _each(subjects, experiment.__name__.replace("_", " "))
        for table in experiment(subject, *options)
    ]
    return Found(pd.concat(tables, ignore_index=True), mapped, confined)


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
    for eps in case.attacked:
        yield from shift(case, method, eps, clean, in_full=True)


def shift(case: Case, method: str, eps: float, clean: np.ndarray, in_full: bool = False) -> Tables:
    """Yield the shift of maps from `clean`, those of the true genre before the attack.

    Conditions for the true genre's maps: `succeeded_true` and `failed`, by whether the attack flips
    the segment; `noise` of the attack's norms on all segments, `noise_succeeded` on those that the
    attack flips. In full also the other `null_segments` of flipped segments, and maps of their
    predicted genre: `succeeded_predicted` after the attack and `target_predicted` of the clean
    segment, the effect of another target class without any attack.
    """
    subject, data, attacked = case.subject, case.data, case.attacked[eps]
    flipped = np.flatnonzero(attacked.predicted != data.y)
    failed = np.flatnonzero(attacked.predicted == data.y)
    nulls = null_segments(data.X, attacked.X, subject.seed)
    true, noise = (attribute(subject, method, X, data.y) for X in (attacked.X, nulls.pop("noise")))
    shown = [
        ("succeeded_true", true[flipped], flipped),
        ("failed", true[failed], failed),
        ("noise", noise, np.arange(len(data))),
        ("noise_succeeded", noise[flipped], flipped),
    ]
    others = {"succeeded_predicted": attacked.X, "target_predicted": data.X} | nulls
    for condition, X in others.items() if in_full else ():
        targets = data.y if condition in nulls else attacked.predicted
        maps = attribute(subject, method, X[flipped], targets[flipped])
        shown.append((condition, maps, flipped))
    for condition, maps, rows in shown:
        values, labels = compare_maps(clean[rows], maps), {"condition": condition, "eps": eps}
        yield records(subject, method, data.table.iloc[rows], values, **labels)


def map_by_all_methods(case: Case, effort: Effort) -> MapSet:
    """Return clean maps of the first segments by all methods and controls, and their curves.

    Of a random control the first draw is returned, and the mean curve of all draws.
    """
    subject, maps, curves = case.subject, {}, {}
    score = faithfulness.confidence(subject.model)
    for name in (*METHODS, *CONTROLS):
        n = min(effort.n_methods, effort.n_slow) if name in SLOW_METHODS else effort.n_methods
        X, y = case.data.X[:n], case.data.y[:n]
        drawn, options = draws(subject, name, X, y), (subject.background, subject.seed)
        found = [faithfulness.curves(score, X, y, heat, *options) for heat in drawn]
        maps[name], curves[name] = drawn[0], mean_over_draws(found)
    return MapSet(case, maps, curves, {})


def faithfulness_of_methods(found: MapSet, n_road: int) -> Tables:
    """Yield insertion, deletion and ROAD of all maps, and their distance from each control.

    ROAD is measured on the first `n_road` segments.
    """
    case, values = found.case, {}
    for name, heat in found.maps.items():
        road, few = np.full(len(heat), np.nan), slice(min(n_road, len(heat)))
        options = case.data.X[few], case.data.y[few], heat[few], case.subject.seed
        road[few] = faithfulness.road(case.subject.model, *options)
        values[name] = faithfulness.areas(found.curves[name]) | {"road": road}
    for name, own in values.items():
        n = len(found.maps[name])
        yield records(case.subject, name, case.data.table[:n], own)
        for control in (c for c in CONTROLS if c in values and c != name):
            baseline = {key: column[:n] for key, column in values[control].items()}
            above = faithfulness.above_control(own, baseline)
            yield records(case.subject, name, case.data.table[:n], above, control=control)


def shift_of_methods(found: MapSet, method: str, eps: float) -> Tables:
    """Yield the shift at one eps of all maps but those of `method`: see `shift`."""
    for name, maps in found.maps.items():
        if name != method:
            yield from shift(found.case.take(len(maps)), name, eps, maps)


def localization(found: Confined, method: str, effort: Effort) -> Tables:
    """Yield how well the maps of the predicted genre localize the box, for all methods.

    Conditions: `confined`, also as the difference from `randomcam`, whose maps show the box by its
    energy alone; for `method` also `target_predicted`, the map of the clean segment for the same
    target class: the box is unknown to it.
    """
    n = dict.fromkeys(SLOW_METHODS, effort.n_slow)
    shown = [
        (name, "confined", found.X[: n.get(name, effort.n_explained)])
        for name in (*CONTROLS, *METHODS)
    ]
    for name, condition, X in (*shown, (method, "target_predicted", found.data.X)):
        drawn = draws(found.subject, name, X, found.predicted[: len(X)])
        values = mean_over_draws([box_measures(maps, found.boxes[: len(X)]) for maps in drawn])
        options = found.subject, name, found.data.table[: len(X)]
        labels = {"condition": condition, "eps": BOX_EPS}
        yield records(*options, values, **labels)
        if name == "randomcam":
            random = values["mass_above_area"]
        elif condition == "confined":
            above = {"mass_above_area": values["mass_above_area"] - random[: len(X)]}
            yield records(*options, above, **labels, control="randomcam")


def attack_maps(found: MapSet, eps: float, effort: Effort) -> MapSet:
    """Return a set of maps with its segments attacked by each method of `MANIPULATED`."""
    subject, data, changed = found.case.subject, found.case.data, {}
    for method in MANIPULATED:
        X, y = (part[: len(found.maps[method])] for part in (data.X, data.y))
        changed[method] = manipulate(subject, method, X, y, eps, effort.iterations)
    return found._replace(manipulated=changed)


def manipulation(found: MapSet, eps: float) -> Tables:
    """Yield the shift of maps where prediction and probability stay, and how well these do.

    Conditions: `manipulated` and, for the same perturbation with its bins shuffled,
    `manipulated_noise`.
    """
    subject = found.case.subject
    for method, X in found.manipulated.items():
        data = found.case.data.take(np.arange(len(X)))
        noise = null_segments(data.X, X, subject.seed)["noise"]
        for condition, changed in (("manipulated", X), ("manipulated_noise", noise)):
            maps = attribute(subject, method, changed, data.y)
            same, change = same_prediction(subject.model, data.X, changed)
            values = {"kept": same.astype(float), "probability_change": np.abs(change)}
            values |= compare_maps(found.maps[method], maps)
            yield records(subject, method, data.table, values, condition=condition, eps=eps)


def known_parts(cases: list[Case], corpus_seed: int | None) -> dict[int, np.ndarray]:
    """Return the loudest part of each cell (128, 130) by the segment's number; {} if unknown."""
    if corpus_seed is None or not cases:
        return {}
    table = pd.concat([case.data.table for case in cases]).drop_duplicates("segment")
    return dict(zip(table["segment"], loudest_parts(table, corpus_seed), strict=True))


def mass_on_parts(case: Case, method: str, cells: dict[int, np.ndarray]) -> Tables:
    """Yield the mass above area of the true genre's clean maps on each part of the music."""
    subject, data = case.subject, case.data
    own = np.stack([cells[number] for number in data.numbers])
    for name in (method, *CONTROLS):
        maps = attribute(subject, name, data.X, data.y)
        for part, values in part_mass_above_area(maps, own).items():
            yield records(subject, name, data.table, {"mass_above_area": values}, part=part)


def similarity_of_models(case: Case, n: int, other: nn.Module | None = None) -> Tables:
    """Yield rank correlation and SSIM of the first `n` maps with those of other models.

    Conditions: `randomized`, by the layer down to which the weights are random; `random_labels` for
    a model `other` trained on random labels.
    """
    subject, data, _ = case.take(n)
    condition = "randomized" if other is None else "random_labels"
    for method in faithfulness.RANDOMIZED_METHODS:
        trained, models = attribute(subject, method, data.X, data.y), [("", other)]
        if other is None:
            models = faithfulness.randomized(subject.model, subject.seed)
        for layer, model in models:
            maps = attribute(subject._replace(model=model), method, data.X, data.y)
            values = {"spearman": spearman(trained, maps), "ssim": ssim(trained, maps)}
            labels = {"condition": condition, "layer": layer}
            yield records(subject, method, data.table, values, **labels)


def mass_by_band(case: Case, method: str, eps: float) -> Tables:
    """Yield the share of each map's mass in each frequency band.

    Conditions: `clean` for the true genre, `attacked` for the predicted genre after the attack.
    """
    subject, data, attacked = case.subject, case.data, case.attacked[eps]
    for condition, X, targets, eps_shown in (
        ("clean", data.X, data.y, 0.0),
        ("attacked", attacked.X, attacked.predicted, eps),
    ):
        shares = similarity.band_shares(attribute(subject, method, X, targets))
        for band, values in zip(similarity.BANDS, shares.T, strict=True):
            labels = {"part": band, "condition": condition, "eps": eps_shown}
            yield records(subject, method, data.table, {"band_mass": values}, **labels)


def specificity(case: Case, method: str) -> Tables:
    """Yield the class specificity of clean maps.

    Conditions: `clean` for the true genre; as its control `target_any`, the mean over all genres as
    target class: structure of the segment that does not depend on the target class cancels out, as
    it raises the value for one target and lowers it for the others. Empty maps do not count.
    """
    subject, data = case.subject, case.data

    def of_targets(targets: np.ndarray) -> np.ndarray:
        maps = attribute(subject, method, data.X, targets)
        return similarity.class_specificity(maps, targets, subject.prototypes)

    n_genres = len(subject.prototypes)
    every = [of_targets(np.full(len(data), genre)) for genre in range(n_genres)]
    for condition, values in (
        ("clean", of_targets(data.y)),
        ("target_any", mean_known(np.stack(every, axis=1))),
    ):
        values = {"class_specificity": values}
        yield records(subject, method, data.table, values, condition=condition)


def failures(case: Case, method: str, test: Segments, n: int, eps: float) -> Tables:
    """Yield the similarity of failures to the prototypes of the predicted and the true genre.

    Conditions: `n` `natural` failures, spread evenly over the tracks; `adversarial`, the segments
    that the attack flips; `target_predicted`, the same segments before it for the same target
    class: no failure at all. Nothing for a model without natural failures in `test`.
    """
    subject, attacked = case.subject, case.attacked[eps]
    natural, predicted = natural_failures(subject.model, test, n, subject.seed)
    if not len(natural):
        return
    flipped = np.flatnonzero(attacked.predicted != case.data.y)
    few, targets = case.data.take(flipped), attacked.predicted[flipped]
    for condition, data, explained, eps_shown in (
        ("natural", natural, predicted, 0.0),
        ("adversarial", replace(few, X=attacked.X[flipped]), targets, eps),
        ("target_predicted", few, targets, eps),
    ):
        maps = attribute(subject, method, data.X, explained)
        values = similarity.prototype_similarity(maps, data.y, explained, subject.prototypes)
        labels = {"condition": condition, "eps": eps_shown}
        yield records(subject, method, data.table, values, **labels)


def _each(cases: list, name: str) -> list:
    return progress(cases, name, unit="model", disable=not cases)
