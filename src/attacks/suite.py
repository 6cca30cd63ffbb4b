"""The suite: all attacks on one checkpoint, the slow ones on what the fast ones left standing."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from src.attacks.adversarial import (
    EPSILONS,
    ITERATIONS,
    attack,
    check_contract,
    draw_segments,
    sweep,
)
from src.attacks.blackbox import hop_skip_jump, make_oracle
from src.attacks.controls import noise_records
from src.attacks.records import left_standing, make_records, worst_case
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits
from src.progress import progress

BLACK_BOX = ("square", "hop_skip_jump")
NO_BEST_POINT = ("apgd_ce", "apgd_dlr")  # where they fail, they return where they started from
SIZES = ["linf", "l2", "snr_db", "lowest", "highest"]


class Budget(NamedTuple):
    """How hard to try. `suite_epsilons` and `doubled_eps` must be among `epsilons`."""

    epsilons: tuple = EPSILONS
    suite_epsilons: tuple = (0.01, 0.02)
    iterations: int = ITERATIONS
    n_restarts: int = 5
    doubled_eps: float = 0.01
    square_queries: int = 200
    n_hard_label: int = 6
    hard_label_steps: int = 5


class Target(NamedTuple):
    """What is attacked: a network, segments (n, 128, 130), their table, their true genres."""

    model: GenreClassifierCNN
    X: np.ndarray
    segments: pd.DataFrame
    y: np.ndarray


def evaluate(target: Target, budget: Budget, seed: int) -> pd.DataFrame:
    """Return records of all attacks, both noises and the worst case, one row a segment each.

    FGSM and PGD (one start) run at every eps; at `suite_epsilons` then, each on the segments that
    all before it left standing: PGD from `n_restarts` - 1 more starts, PGD with twice the
    iterations (at `doubled_eps`), targeted PGD, APGD on two losses, Square. Their rows tell how
    segments fare against this attack and all before it. HopSkipJump tries a few segments on its
    own. The worst case is over all of them; noise is not among them.
    Raises ValueError for eps outside [0, 1] or of the suite that are not among those of the sweep.
    """
    _check(budget)
    arguments = (*target, budget.epsilons, budget.iterations, seed)
    pgd = sweep("pgd", *arguments)
    records = pd.concat([sweep("fgsm", *arguments), pgd], ignore_index=True)
    records = _press(target, budget, records, seed)
    records = pd.concat([_hard_label(target, budget, seed), records], ignore_index=True)
    worst = [worst_case(records, eps) for eps in sorted(budget.epsilons)]
    noise = noise_records(target.model, target.X, target.segments, target.y, pgd, seed)
    return pd.concat([records, *worst, noise], ignore_index=True)


def stages(budget: Budget, eps: float, n_genres: int) -> list[tuple[str, str, int, int]]:
    """Return name, attack, iterations and number of starts of each slow attack at one eps.

    An attack with a budget of zero is left out, the one on logit ratios with two genres too.
    """
    n = budget.iterations
    double = 2 * n if eps == budget.doubled_eps else 0
    ladder = [
        ("pgd_restarts", "pgd", n, budget.n_restarts - 1),
        ("pgd_doubled", "pgd", double, 1),
        ("pgd_targeted", "pgd_targeted", n, 1),
        ("apgd_ce", "apgd_ce", n, 1),
        ("apgd_dlr", "apgd_dlr", n * (n_genres > 2), 1),
        ("square", "square", budget.square_queries, 1),
    ]
    return [stage for stage in ladder if stage[2] > 0 and stage[3] > 0]


def runner_up(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the genre (n,) that comes closest to the true one in logits (n, n_genres)."""
    others = np.array(logits)
    others[np.arange(len(y)), y] = -np.inf
    return others.argmax(axis=1)


def _press(target: Target, budget: Budget, records: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return records with those of the slow attacks appended, the smallest eps first."""
    logits = predict_logits(target.model, target.X)
    for eps in progress(sorted(budget.suite_epsilons), "suite", unit="eps"):
        for name, kind, iterations, starts in stages(budget, eps, logits.shape[1]):
            new = [records]
            for start in range(1, starts + 1):
                standing = left_standing(pd.concat(new), eps)
                options = (eps, iterations, seed + start)
                made = _attack_standing(target, kind, standing, logits, *options)
                new.append(made.assign(made_by=name, start=start))
            after = worst_case(pd.concat(new), eps, name)
            records = pd.concat([records, after], ignore_index=True)
    return records


def _attack_standing(
    target: Target, kind: str, standing: set, logits, eps, iterations, seed
) -> pd.DataFrame:
    """Return one row for each segment that is left standing at eps, attacked once."""
    rows = np.flatnonzero(target.segments["segment"].isin(standing))
    X, y = target.X[rows], target.y[rows]
    aim = runner_up(logits[rows], y) if kind == "pgd_targeted" else y
    attacked = attack(kind, target.model, X, aim, eps, iterations, seed)
    heard = predict_logits(target.model, attacked).argmax(axis=1) if len(rows) else y
    made = make_records(kind, eps, X, attacked, target.segments.iloc[rows], y, y, heard)
    if kind in NO_BEST_POINT:
        made[SIZES] = made[SIZES].where(made["success"])
    return made


def _hard_label(target: Target, budget: Budget, seed: int) -> pd.DataFrame:
    """Return records of HopSkipJump on a few right segments, at each eps that its change fits."""
    clean = predict_logits(target.model, target.X).argmax(axis=1)
    right = np.flatnonzero(clean == target.y)
    if min(budget.n_hard_label, budget.hard_label_steps, len(right)) < 1:
        return pd.DataFrame()
    tracks = target.segments["track"].to_numpy()[right]
    rows = right[draw_segments(tracks, budget.n_hard_label, seed)]
    oracle = make_oracle(target.model)
    found = hop_skip_jump(oracle, target.X, rows, budget.hard_label_steps, seed)
    X, y, segments = target.X[rows], target.y[rows], target.segments.iloc[rows]
    tables = []
    for eps in sorted(budget.epsilons):
        fits = np.abs(found - X).max(axis=(1, 2)) <= eps
        attacked = np.where(fits[:, None, None], found, X)
        check_contract(X, attacked, eps)
        heard = predict_logits(target.model, attacked).argmax(axis=1)
        tables.append(make_records("hop_skip_jump", eps, X, attacked, segments, y, y, heard))
    return pd.concat(tables, ignore_index=True)


def _check(budget: Budget) -> None:
    """Raise ValueError for eps outside [0, 1] or of the suite that the sweep has not."""
    for eps in budget.epsilons:
        if not 0 <= eps <= 1:
            raise ValueError(
                f"EPSILONS has {eps}: eps lies in [0, 1], where 0.01 is 0.8 dB; dB may have been "
                "given, divide them by 80."
            )
    unknown = {*budget.suite_epsilons, budget.doubled_eps} - set(budget.epsilons)
    if budget.suite_epsilons and unknown:
        raise ValueError(
            f"eps {sorted(unknown)} of the suite are not among those of the sweep "
            f"{sorted(budget.epsilons)}: add them to EPSILONS or leave them out."
        )
