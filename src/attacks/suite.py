"""The suite: all attacks on one model, the slow ones on the segments that are still robust."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from src.attacks.adversarial import EPSILONS, Search, attack, check_contract
from src.attacks.blackbox import hop_skip_jump, make_oracle
from src.attacks.noise import noise_records
from src.attacks.records import Target, make_records, worst_case
from src.effort import Effort
from src.progress import progress

BLACK_BOX = ("square", "hop_skip_jump")
NO_BEST_POINT = ("apgd_ce", "apgd_dlr")  # where they fail, they return where they started from
SIZES = ["linf", "l2", "snr_db", "lowest", "highest"]


class Budgets(NamedTuple):
    """Perturbation budgets. `suite` and `doubled` must be among `sweep`."""

    sweep: tuple = EPSILONS
    suite: tuple = (0.01,)
    doubled: float = 0.01


class Stage(NamedTuple):
    """One slow attack of the suite: its name in the records, its method and how it searches."""

    name: str
    method: str
    iterations: int
    starts: int = 1


def evaluate(target: Target, budgets: Budgets, effort: Effort, seed: int) -> pd.DataFrame:
    """Return records of all attacks, both noises and the worst case, one row per segment each.

    FGSM and PGD (one start) run at every eps; at `budgets.suite` then, each on the segments that
    all before it left correct: PGD from more random starts, PGD with twice the iterations (at
    `budgets.doubled`), targeted PGD, APGD on two losses, Square. Their rows combine this attack and
    all before it. HopSkipJump runs on a few segments by itself. The worst case is over all of them;
    noise is not among them. PGD stops early on each segment that it flips.
    Raises ValueError for eps outside [0, 1] or of the suite that are not among those of the sweep.
    """
    _check(budgets)
    search = Search(effort.iterations, seed, early_stopping=True)
    pgd = sweep("pgd", target, budgets.sweep, search)
    records = pd.concat([sweep("fgsm", target, budgets.sweep, search), pgd], ignore_index=True)
    for eps in progress(sorted(budgets.suite), "suite", unit="eps"):
        for stage in stages(budgets, effort, eps, target.n_genres):
            records = pd.concat([records, _run(target, records, stage, eps, seed)])
    records = pd.concat([_hard_label(target, budgets, effort, seed), records], ignore_index=True)
    worst = [worst_case(records, eps) for eps in sorted(budgets.sweep)]
    return pd.concat([records, *worst, noise_records(target, pgd, seed)], ignore_index=True)


def sweep(name: str, target: Target, epsilons: tuple, search: Search) -> pd.DataFrame:
    """Attack segments at each eps; return one row per segment and eps, as `make_records` does.

    Only segments that the model predicts correctly are attacked; the others count as wrong
    throughout, unchanged. With PGD a segment broken at a small eps is broken at each larger one,
    whose ball holds the smaller ball: it keeps its perturbation. FGSM, whose step is eps itself,
    runs anew at each eps. Raises ValueError without epsilons.
    """
    if len(epsilons) == 0:
        raise ValueError("There are 0 epsilons to attack at: give EPSILONS of at least one.")
    attacked, predicted = np.array(target.data.X, dtype=np.float32), target.predicted.copy()
    records = []
    for eps in progress(sorted(epsilons), name, unit="eps"):
        rows = np.flatnonzero((predicted if name == "pgd" else target.predicted) == target.data.y)
        new, predicted[rows] = _attack_rows(name, target, rows, eps, search)
        attacked[rows] = new
        records.append(make_records(target, name, eps, attacked, predicted))
    return pd.concat(records, ignore_index=True)


def first_success(
    name: str, target: Target, epsilons: tuple, search: Search
) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest eps (n,) that flips each segment, and its adversarial example.

    NaN and the unchanged segment where the clean prediction is wrong or no eps flips it.
    """
    smallest, flipped = np.full(len(target.data.y), np.nan), target.data.X.copy()
    rows = np.flatnonzero(target.correct)
    for eps in progress(sorted(epsilons), name, unit="eps"):
        attacked, predicted = _attack_rows(name, target, rows, eps, search)
        success = predicted != target.data.y[rows]
        smallest[rows[success]], flipped[rows[success]] = eps, attacked[success]
        rows = rows[~success]
    return smallest, flipped


def stages(budgets: Budgets, effort: Effort, eps: float, n_genres: int) -> list[Stage]:
    """Return the slow attacks at one eps.

    An attack without iterations or starts is left out, the one on logit ratios with two genres too.
    """
    n = effort.iterations
    ladder = [
        Stage("pgd_restarts", "pgd", n, effort.n_restarts - 1),
        Stage("pgd_doubled", "pgd", 2 * n if eps == budgets.doubled else 0),
        Stage("pgd_targeted", "pgd_targeted", n),
        Stage("apgd_ce", "apgd_ce", n),
        Stage("apgd_dlr", "apgd_dlr", n if n_genres > 2 else 0),
        Stage("square", "square", effort.square_queries),
    ]
    return [stage for stage in ladder if stage.iterations > 0 and stage.starts > 0]


def runner_up(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the genre (n,) that comes closest to the true one in logits (n, n_genres)."""
    others = np.array(logits)
    others[np.arange(len(y)), y] = -np.inf
    return others.argmax(axis=1)


def _run(
    target: Target, records: pd.DataFrame, stage: Stage, eps: float, seed: int
) -> pd.DataFrame:
    """Return one row per segment: how it fares against one slow attack and all before it."""
    made, robust = [records], robust_mask(target, records, eps)
    for start in range(1, stage.starts + 1):
        rows = np.flatnonzero(robust)
        search = Search(stage.iterations, seed + start, early_stopping=True)
        attacked, predicted = _attack_rows(stage.method, target, rows, eps, search)
        new = make_records(target.take(rows), stage.method, eps, attacked, predicted)
        if stage.method in NO_BEST_POINT:
            new[SIZES] = new[SIZES].where(new["success"])
        made.append(new.assign(made_by=stage.name, start=start))
        robust[rows] = predicted == target.data.y[rows]
    return worst_case(pd.concat(made), eps, stage.name)


def robust_mask(target: Target, records: pd.DataFrame, eps: float) -> np.ndarray:
    """Return which segments (n,) are correct and not broken at `eps` or below in the records."""
    broken = records.loc[records["success"] & (records["eps"] <= eps), "segment"]
    return target.correct & ~np.isin(target.data.numbers, broken)


def _attack_rows(
    method: str, target: Target, rows: np.ndarray, eps: float, search: Search
) -> tuple[np.ndarray, np.ndarray]:
    """Return adversarial examples of some rows and the model's predictions for them."""
    X, y = target.data.X[rows], target.data.y[rows]
    goal = runner_up(target.logits[rows], y) if method == "pgd_targeted" else y
    attacked = attack(method, target.model, X, goal, eps, search)
    return attacked, target.predict(attacked)


def _hard_label(target: Target, budgets: Budgets, effort: Effort, seed: int) -> pd.DataFrame:
    """Return records of HopSkipJump on a few correct segments, at each eps that its change fits."""
    correct = np.flatnonzero(target.correct)
    if min(effort.n_hard_label, effort.hard_label_steps, len(correct)) < 1:
        return pd.DataFrame()
    few = target.take(correct).sample(effort.n_hard_label, seed)
    found = hop_skip_jump(make_oracle(target.model), target, few, effort.hard_label_steps, seed)
    tables = []
    for eps in sorted(budgets.sweep):
        fits = np.abs(found - few.data.X).max(axis=(1, 2)) <= eps
        attacked = np.where(fits[:, None, None], found, few.data.X)
        check_contract(few.data.X, attacked, eps)
        tables.append(make_records(few, "hop_skip_jump", eps, attacked, target.predict(attacked)))
    return pd.concat(tables, ignore_index=True)


def _check(budgets: Budgets) -> None:
    """Raise ValueError for eps outside [0, 1] or of the suite that the sweep has not."""
    for eps in budgets.sweep:
        if not 0 <= eps <= 1:
            raise ValueError(
                f"EPSILONS has {eps}: eps lies in [0, 1], where 0.01 is 0.8 dB; dB may have been "
                "given, divide them by 80."
            )
    unknown = {*budgets.suite, budgets.doubled} - set(budgets.sweep)
    if budgets.suite and unknown:
        raise ValueError(
            f"eps {sorted(unknown)} of the suite are not among those of the sweep "
            f"{sorted(budgets.sweep)}: add them to EPSILONS or leave them out."
        )
