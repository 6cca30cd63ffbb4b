"""Perturbations made on one model and evaluated on every model: of whole tracks, and universal.

A universal perturbation is one change for all segments, learnt on training tracks: a pattern of at
most eps per bin (Moosavi-Dezfooli et al. 2017; learnt over batches as by Shafahi et al. 2020) and
one equaliser.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from src.attacks.adversarial import FastGradients, Search, attack, noise_linf
from src.attacks.equalizer import DRAWS, SURE, equalize, margin, random_gains
from src.attacks.records import CLEAN, Target, accuracy_table, make_records
from src.data.features import DYNAMIC_RANGE_DB, N_FRAMES, N_MELS
from src.data.segments import Segments
from src.models.augment import equalized
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import calibration_error, predict_logits, softmax, vote
from src.models.unseen import has_reference, unseen_and_reference
from src.paths import RunPaths
from src.progress import progress
from src.runtime import device

BANDS, LIMIT_DB = 10, 3
BATCH_SIZE = 32
MOMENTUM = 0.9
TINY = 1e-30
BY = "made_on checkpoint attack eps eps_db".split()


class Universal(NamedTuple):
    """What was learnt on one model: a pattern (128, 130) and the gains (10,) in dB."""

    pattern: np.ndarray
    gains_db: np.ndarray


def attack_tracks(
    models: dict[str, GenreClassifierCNN], data: Segments, eps: float, search: Search
) -> dict[str, np.ndarray]:
    """Return segments (n, 128, 130) `clean`, with `noise_linf`, and attacked on each model by name.

    PGD attacks every segment at this eps with all of its iterations, wrong ones too: they take part
    in the vote, and other models may predict them correctly.
    """
    X = np.array(data.X, dtype=np.float32)
    versions = {CLEAN: X, "noise_linf": noise_linf(X, eps, search.seed)}
    for name, model in progress(models.items(), name="whole tracks", unit="checkpoint"):
        versions[name] = attack("pgd", model, data.X, data.y, eps, search)
    return versions


def transfer_records(
    models: dict[str, GenreClassifierCNN], data: Segments, eps: float, search: Search
) -> pd.DataFrame:
    """Return one row per segment and one per track, for each version and each evaluated model.

    Columns: track, true, predicted, confidence, unit (segment or track; a track is predicted by
    mean probability), checkpoint (the evaluated model), made_on (the version), eps, eps_db.
    """
    versions, tables = attack_tracks(models, data, eps, search), []
    for name, model in models.items():
        for made_on, X in versions.items():
            probabilities = softmax(predict_logits(model, X))
            segments = pd.DataFrame({"track": data.tracks, "true": data.y})
            segments["predicted"] = probabilities.argmax(axis=1)
            segments["confidence"] = probabilities.max(axis=1)
            units = {"segment": segments, "track": vote(probabilities, data.tracks, data.y)}
            size = 0 if made_on == CLEAN else eps
            facts = {"checkpoint": name, "made_on": made_on, "eps": size}
            facts["eps_db"] = size * DYNAMIC_RANGE_DB
            tables += [table.assign(unit=unit, **facts) for unit, table in units.items()]
    return pd.concat(tables, ignore_index=True)


def transfer_table(records: pd.DataFrame, corpus: str, split: str) -> pd.DataFrame:
    """Return accuracy by version, evaluated model and unit, with intervals over tracks.

    Columns are those of `accuracy_table` (`n_segments` counts segments or tracks), mean_confidence
    and calibration_error.
    """
    by = ["made_on", "checkpoint", "unit", "eps", "eps_db"]
    records = records.assign(correct=records["true"] == records["predicted"])
    table = accuracy_table(records["correct"], records, by, corpus=corpus, split=split)
    groups = records.groupby(by, sort=False)
    table["mean_confidence"] = groups["confidence"].mean().to_numpy()
    table["calibration_error"] = [
        calibration_error(group["confidence"], group["correct"]) for _, group in groups
    ]
    return table


def training_segments(paths: RunPaths, loaded: dict, test: Segments, n: int, seed: int) -> Segments:
    """Return `n` segments to learn from; none, with a printed sentence, if there is one track.

    `loaded` are the run's networks and `test` its test segments, as of `unseen_test`.
    """
    if has_reference(paths, test):
        return unseen_and_reference(paths, loaded)[1].sample(n, seed)
    print(f"no universal perturbations: run {paths.run} has 1 track, and they need others")
    return test.take(np.zeros(0, dtype=int))


def learn(model: GenreClassifierCNN, data: Segments, eps: float, search: Search) -> Universal:
    """Return the pattern, |bin| <= `eps`, and the gains, |gain| <= LIMIT_DB, for all of `data`.

    Each is learnt in `search.iterations` steps, of a batch each.
    """

    def add(X: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
        return (X + pattern).clamp(0, 1)

    def play(X: torch.Tensor, gains_db: torch.Tensor) -> torch.Tensor:
        return equalized(X, gains_db[None])

    pattern = _learn(model, data, add, eps, (N_MELS, N_FRAMES), search)
    return Universal(pattern, _learn(model, data, play, LIMIT_DB, (BANDS,), search))


def universal_records(
    targets: dict[str, Target], train: Segments, eps: float, search: Search
) -> tuple[pd.DataFrame, dict[str, Universal]]:
    """Return records of all segments of every target under every change, and what was learnt.

    Segments of tracks that are among those of `train` are left out. `made_on` names the model on
    which a change was learnt from the segments `train`. Attacks: `clean`; `universal` and, as
    controls, its bins shuffled (`universal_shuffled`) and random signs of the same eps
    (`universal_random`); `universal_equalizer` and random equalisers of the same limit
    (`universal_equalizer_random`). `start` counts the ten draws of each control. Other columns are
    those of `make_records` and checkpoint; eps of an equaliser is its limit divided by 80. Without
    `train` there are no records.
    """
    if len(train) == 0:
        return pd.DataFrame(columns=[*BY, "segment", "track", "true", "adversarial_prediction"]), {}
    learnt, tables = {}, []
    for name, target in targets.items():
        others = np.flatnonzero(~np.isin(target.data.tracks, train.tracks))
        targets = targets | {name: target.take(others)}
    for made_on, target in progress(targets.items(), "universal", unit="checkpoint"):
        learnt[made_on] = learn(target.model, train, eps, search)
        for name, other in targets.items():
            versions = _versions(learnt[made_on], other.data.X, eps, search.seed)
            for kind, start, size, attacked in versions:
                table = make_records(other, kind, size, attacked, other.predict(attacked))
                tables.append(table.assign(start=start, checkpoint=name, made_on=made_on))
    return pd.concat(tables, ignore_index=True), learnt


def universal_table(records: pd.DataFrame, corpus: str, split: str) -> pd.DataFrame:
    """Return accuracy by model of origin, evaluated model, attack and eps, with intervals.

    Rows of attack `clean` are of the same segments, unchanged.
    """
    correct = records["adversarial_prediction"] == records["true"]
    return accuracy_table(correct, records, BY, corpus=corpus, split=split)


def _versions(learnt: Universal, X: np.ndarray, eps: float, seed: int) -> Iterator[tuple]:
    """Yield name, number of the draw, eps and the segments under each learnt change and control."""
    yield CLEAN, 1, 0.0, X
    rng, pattern = np.random.default_rng(seed), learnt.pattern
    yield "universal", 1, eps, (X + pattern).clip(0, 1)
    for start in range(1, DRAWS + 1):
        shuffled = rng.permutation(pattern.ravel()).reshape(pattern.shape)
        yield "universal_shuffled", start, eps, (X + shuffled).clip(0, 1)
        signs = rng.choice(np.float32([-1, 1]), pattern.shape)
        yield "universal_random", start, eps, (X + eps * signs).clip(0, 1)
    size = LIMIT_DB / DYNAMIC_RANGE_DB
    yield "universal_equalizer", 1, size, equalize(X, learnt.gains_db[None])
    for start, gains in enumerate(random_gains(DRAWS, BANDS, LIMIT_DB, seed), start=1):
        yield "universal_equalizer_random", start, size, equalize(X, gains[None])


def _learn(model, data: Segments, apply: Callable, limit: float, shape, search) -> np.ndarray:
    """Return a change of a shape, at most `limit`, that raises the mean margin of all segments.

    Steps follow the sign of the gradient with momentum (Dong et al. 2018) and shrink linearly from
    half of the limit. A segment that is surely wrong has no gradient: the others count.
    """
    network, rng = FastGradients(model), np.random.default_rng(search.seed)
    change = torch.zeros(shape, device=device())
    velocity = torch.zeros_like(change)
    for step in np.linspace(limit / 2, 0, search.iterations, endpoint=False):
        rows = rng.choice(len(data), min(BATCH_SIZE, len(data)), replace=False)
        X, y = (torch.from_numpy(np.asarray(part[rows])).to(device()) for part in (data.X, data.y))
        tried = change.clone().requires_grad_()
        reached = margin(network(apply(X[:, None], tried)), y).clamp(max=SURE).mean()
        (gradient,) = torch.autograd.grad(reached, tried)
        velocity = MOMENTUM * velocity + gradient / gradient.abs().mean().clamp(min=TINY)
        change = (change + step * velocity.sign()).clamp(-limit, limit)
    return change.cpu().numpy()
