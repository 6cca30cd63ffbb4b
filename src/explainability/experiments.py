"""What notebook 5 measures: records of one network's maps, one function an experiment."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from src.attacks.adversarial import Search, attack
from src.explainability import faithfulness
from src.explainability.bands import band_measures
from src.explainability.boxes import BOX_EPS, attack_boxes, box_measures, draw_boxes
from src.explainability.failures import mean_known, own_genre_gap, resemblance
from src.explainability.gradcam import explain
from src.explainability.methods import METHODS, Clips, Subject, maps_of
from src.explainability.parts import part_measures
from src.explainability.sanity import randomized
from src.explainability.shift import measure_shift, spearman, ssim
from src.explainability.table import records
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits


class Attacked(NamedTuple):
    """Clips after an attack of one eps: spectrograms, predictions, and noise of the same norm."""

    eps: float
    X: np.ndarray
    predicted: np.ndarray
    noise: np.ndarray

    def take(self, rows: np.ndarray) -> "Attacked":
        """Return some of the clips; `rows` are positions."""
        return Attacked(self.eps, self.X[rows], self.predicted[rows], self.noise[rows])


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


def right_clips(subject: Subject, clips: Clips) -> Clips:
    """Return those of the clips that the network gets right."""
    return clips.take(np.flatnonzero(predict_logits(subject.model, clips.X).argmax(1) == clips.y))


def take_turns(y: np.ndarray, seed: int) -> np.ndarray:
    """Return an order of clips in which genres take turns, so that the first few are of many."""
    shuffled = pd.Series(y).sample(frac=1, random_state=seed)
    turn = shuffled.groupby(shuffled).cumcount()
    return turn.sort_values(kind="stable").index.to_numpy()


def attack_clips(
    subject: Subject, clips: Clips, epsilons: list[float], iterations: int
) -> list[Attacked]:
    """Attack clips by PGD at each eps anew; noise is the attack's own change, its bins shuffled."""
    found = []
    for eps in epsilons:
        search = Search(iterations, subject.seed)
        X = attack("pgd", subject.model, clips.X, clips.y, eps, search)
        predicted = predict_logits(subject.model, X).argmax(axis=1)
        found.append(Attacked(eps, X, predicted, shuffled_change(clips.X, X, subject.seed)))
    return found


def shuffled_change(X: np.ndarray, attacked: np.ndarray, seed: int) -> np.ndarray:
    """Return segments (n, 128, 130) changed by the attack's own numbers in random places.

    The change has the attack's norms, but for what is cut at 0 and 1.
    """
    change = (attacked - X).reshape(len(X), -1)
    noise = np.random.default_rng(seed).permuted(change, axis=1)
    return np.clip(X + noise.reshape(X.shape), 0, 1).astype(np.float32)


def shift_records(
    subject: Subject, method: str, clips: Clips, attacked: Attacked, clean: np.ndarray
) -> pd.DataFrame:
    """Return the shift of the maps of clips that are right before an attack, by condition.

    `clean` (n, 128, 130) are the maps of the true genre before the attack. All maps here are of
    the true genre. Conditions are `succeeded_true` and `failed`, by whether the attack flips the
    clip, and noise of the attack's norm: `noise` on all clips, `noise_succeeded` on those that the
    attack flips, so that both shifts can be compared clip by clip.
    """
    flipped = attacked.predicted != clips.y
    true = maps_of(method, subject, attacked.X, clips.y)
    noise = maps_of(method, subject, attacked.noise, clips.y)
    conditions = {
        "succeeded_true": (true, flipped),
        "failed": (true, ~flipped),
        "noise": (noise, flipped | ~flipped),
        "noise_succeeded": (noise, flipped),
    }
    tables = [
        _compare(subject, method, clips, clean, maps, rows, condition, attacked.eps)
        for condition, (maps, rows) in conditions.items()
    ]
    return pd.concat(tables, ignore_index=True)


def prediction_records(
    subject: Subject, method: str, clips: Clips, attacked: Attacked, clean: np.ndarray
) -> pd.DataFrame:
    """Return how far maps of the genre that flipped clips are taken for lie from `clean`.

    `succeeded_predicted`: the attacked clip's map of that genre; `asked_predicted`: the clean
    clip's map of the same genre: what asking for another genre does without any attack.
    """
    hit = np.flatnonzero(attacked.predicted != clips.y)
    now, few, before = attacked.predicted[hit], clips.take(hit), clean[hit]
    conditions = {"succeeded_predicted": attacked.X[hit], "asked_predicted": few.X}
    tables = [
        _compare(
            subject, method, few, before, maps_of(method, subject, shown, now),
            np.ones(len(hit), dtype=bool), condition, attacked.eps,
        )
        for condition, shown in conditions.items()
    ]  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def other_clip_records(
    subject: Subject, method: str, clips: Clips, clean: np.ndarray
) -> pd.DataFrame:
    """Return how far each of the maps `clean` lies from another track's of the same genre."""
    other = partners(clips)
    return _compare(subject, method, clips, clean, clean[other], other >= 0, "other_clip", 0.0)


def partners(clips: Clips) -> np.ndarray:
    """Return for each clip the position of the next one of its genre of another track, else -1."""
    tracks = clips.segments["track"].to_numpy()
    found = np.full(len(clips.y), -1)
    for i in range(len(found)):
        others = np.flatnonzero((clips.y == clips.y[i]) & (tracks != tracks[i]))
        if len(others):
            found[i] = others[np.searchsorted(others, i) % len(others)]
    return found


def faithfulness_records(
    subject: Subject,
    clips: Clips,
    maps: dict[str, np.ndarray],
    controls: tuple[str, ...],
    n_road: int,
) -> tuple[pd.DataFrame, dict[str, dict[str, np.ndarray]]]:
    """Return records of insertion, deletion and ROAD of named maps, and the curves by name.

    `maps` may hold fewer maps than there are clips: those of the first ones. `controls` are those
    of the names that each method is compared with; ROAD is measured on the first `n_road` clips.
    """
    score = faithfulness.confidence(subject.model)
    lines, values = {}, {}
    for name, heat in maps.items():
        X, y = clips.X[: len(heat)], clips.y[: len(heat)]
        lines[name] = faithfulness.curves(score, X, y, heat, subject.background, subject.seed)
        few = faithfulness.road(subject.model, X[:n_road], y[:n_road], heat[:n_road], subject.seed)
        road = np.pad(few.astype(float), (0, len(heat) - len(few)), constant_values=np.nan)
        values[name] = faithfulness.areas(lines[name]) | {"road": road}
    tables = []
    for name, found in values.items():
        n = len(maps[name])
        against = {c: {k: v[:n] for k, v in values[c].items()} for c in controls if c != name}
        both = found | faithfulness.above_controls(found, against)
        keys = {"checkpoint": subject.name, "method": name, "condition": "clean", "eps": 0.0}
        tables.append(records(clips.segments[:n], both, **keys))
    return pd.concat(tables, ignore_index=True), lines


def box_attack(
    subject: Subject, clips: Clips, iterations: int
) -> tuple[Clips, np.ndarray, np.ndarray, np.ndarray]:
    """Attack clips in one random box each; return those that flip, attacked, new genre, boxes."""
    boxes = draw_boxes(len(clips.y), subject.seed)
    search = Search(iterations, subject.seed)
    X = attack_boxes(subject.model, clips.X, clips.y, boxes, search)
    predicted = predict_logits(subject.model, X).argmax(axis=1)
    flipped = np.flatnonzero(predicted != clips.y)
    return clips.take(flipped), X[flipped], predicted[flipped], boxes[flipped]


def box_records(
    subject: Subject,
    method: str,
    clips: Clips,
    X: np.ndarray,
    predicted: np.ndarray,
    boxes: np.ndarray,
    condition: str = "box",
) -> pd.DataFrame:
    """Return what of the map of the new genre lies inside the box.

    With the clean `clips.X` in place of the attacked X this is the null: their map of the same
    genre knows of no box.
    """
    measures = box_measures(maps_of(method, subject, X, predicted), boxes)
    keys = {"checkpoint": subject.name, "method": method, "condition": condition, "eps": BOX_EPS}
    return records(clips.segments, measures, **keys)


def part_records(subject: Subject, method: str, clips: Clips, cells: np.ndarray) -> pd.DataFrame:
    """Return which part's cells the true genre's map falls on; the condition is the genre."""
    measures = part_measures(maps_of(method, subject, clips.X, clips.y), cells)
    return _by_genre(subject, method, clips, measures, "", 0.0)


def sanity_records(subject: Subject, method: str, clips: Clips) -> pd.DataFrame:
    """Return how alike maps stay while the network is made random from the last layer down."""
    learnt = explain(subject.model, clips.X, clips.y, subject.layer, method)
    tables = [
        _likeness(subject, method, clips, learnt, model, f"randomized_{name}")
        for name, model in randomized(subject.model, subject.seed)
    ]
    return pd.concat(tables, ignore_index=True)


def other_network_records(
    subject: Subject, method: str, clips: Clips, model: GenreClassifierCNN, condition: str
) -> pd.DataFrame:
    """Return how alike the true genre's maps of a network and of another one are."""
    learnt = explain(subject.model, clips.X, clips.y, subject.layer, method)
    return _likeness(subject, method, clips, learnt, model, condition)


def band_records(subject: Subject, method: str, clips: Clips, attacked: Attacked) -> pd.DataFrame:
    """Return attention by band of clean clips (true genre) and attacked ones (predicted genre).

    Conditions are `clean <genre>` and `attacked <genre>`, by the clips' true genre; besides, how
    much more a clean map resembles the mean map of the genre that it explains than those of the
    others: of the true genre (`clean`), and of every genre in turn, their mean (`asked_any`), which
    tells how much of it the question makes, whatever is played.
    """
    clean = maps_of(method, subject, clips.X, clips.y)
    after = maps_of(method, subject, attacked.X, attacked.predicted)
    own = {"own_genre_gap": own_genre_gap(clean, clips.y, subject.priors)}
    any_genre = {"own_genre_gap": any_genre_gap(subject, method, clips)}
    keys = {"checkpoint": subject.name, "method": method, "eps": 0.0}
    return pd.concat(
        [
            records(clips.segments, own, condition="clean", **keys),
            records(clips.segments, any_genre, condition="asked_any", **keys),
            _by_genre(subject, method, clips, band_measures(clean), "clean ", 0.0),
            _by_genre(subject, method, clips, band_measures(after), "attacked ", attacked.eps),
        ],
        ignore_index=True,
    )


def any_genre_gap(subject: Subject, method: str, clips: Clips) -> np.ndarray:
    """Return each clip's mean `own_genre_gap` over the questions for all genres, its own included.

    What the clip shows whatever it is asked for cancels: it raises the gap of one question and
    lowers those of the others. Empty maps do not count.
    """
    gaps = []
    for genre in range(len(subject.priors)):
        asked = np.full(len(clips.y), genre)
        maps = maps_of(method, subject, clips.X, asked)
        gaps.append(own_genre_gap(maps, asked, subject.priors))
    return mean_known(np.stack(gaps, axis=1))


def failure_records(
    subject: Subject,
    method: str,
    natural: Clips,
    taken_for: np.ndarray,
    clips: Clips,
    attacked: Attacked,
) -> pd.DataFrame:
    """Return how much failures look like the genre they were taken for, by kind.

    `natural` failures with the genres they are taken for; `adversarial`: clips that the attack
    flips; `asked`: the same clips before it, explained for the genre they will be taken for:
    whatever they show, no failure made it.
    """
    hit = np.flatnonzero(attacked.predicted != clips.y)
    now = attacked.predicted[hit]
    kinds = {
        "natural": (natural.X, taken_for, natural, 0.0),
        "adversarial": (attacked.X[hit], now, clips.take(hit), attacked.eps),
        "asked": (clips.X[hit], now, clips.take(hit), attacked.eps),
    }
    tables = []
    for condition, (X, genre, chosen, eps) in kinds.items():
        maps = maps_of(method, subject, X, genre)
        values = resemblance(maps, chosen.y, genre, subject.priors)
        keys = {"checkpoint": subject.name, "method": method, "condition": condition, "eps": eps}
        tables.append(records(chosen.segments, values, **keys))
    return pd.concat(tables, ignore_index=True)


def _likeness(subject, method, clips, learnt, model, condition) -> pd.DataFrame:
    """Return rank correlation and SSIM of learnt maps and those of another network."""
    maps = explain(model, clips.X, clips.y, subject.layer, method)
    values = {"spearman": spearman(learnt, maps), "ssim": ssim(learnt, maps)}
    keys = {"checkpoint": subject.name, "method": method, "condition": condition, "eps": 0.0}
    return records(clips.segments, values, **keys)


def _compare(subject, method, clips, before, after, rows, condition, eps) -> pd.DataFrame:
    """Return the shift between two stacks of maps in some rows."""
    rows = np.flatnonzero(rows)
    keys = {"checkpoint": subject.name, "method": method, "condition": condition, "eps": eps}
    if not len(rows):
        return pd.DataFrame()
    return records(clips.segments.iloc[rows], measure_shift(before[rows], after[rows]), **keys)


def _by_genre(subject, method, clips, measures, prefix, eps) -> pd.DataFrame:
    """Return records whose condition is the clips' genre."""
    keys = {"checkpoint": subject.name, "method": method, "eps": eps}
    table = records(clips.segments, measures, **keys)
    return table.assign(condition=prefix + table["genre"])
