"""The suite: all attacks on one or more models, and the minimal perturbation of each segment.

Slow attacks run on the segments that all attacks before them left correct.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from src.attacks.adversarial import (
    EPSILONS,
    Search,
    attack,
    check_contract,
    hop_skip_jump,
    noise_l2,
    noise_linf,
)
from src.attacks.records import (
    WORST_CASE,
    Target,
    check_attackable,
    make_records,
    percent_table,
    worst_case,
)
from src.data.features import DYNAMIC_RANGE_DB
from src.data.segments import draw_segments
from src.effort import Effort
from src.progress import progress

BLACK_BOX = ("square", "square_alone", "hop_skip_jump")
NO_BEST_POINT = ("apgd_ce", "apgd_dlr")  # where they fail, they return their starting point
SIZES = ["linf", "l2", "snr_db", "lowest", "highest"]
HALVINGS = 3  # of the interval that contains a segment's minimal eps
PAIR = ("fgsm", "pgd")  # compared on one segment


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


def evaluate(
    targets: dict[str, Target], budgets: Budgets, effort: Effort, seed: int
) -> pd.DataFrame:
    """Return records of all attacks, both noises and the worst case, one row per segment each.

    FGSM and PGD (one start) run at every eps, the attacks of `stages` at `budgets.suite`, each on
    the segments that all before it left correct: their rows combine this attack and all before it.
    HopSkipJump and Square run on a few segments by themselves. The worst case is over all of them,
    without noise. PGD stops early on each segment that it flips.

    Returns
    -------
    The columns of `make_records`, distance (of HopSkipJump) and checkpoint (the key in `targets`).

    Raises
    ------
    ValueError for eps outside [0, 1] or of the suite that are not among those of the sweep, and
    for a model that predicts no segment correctly.
    """
    _check(budgets)
    for name, target in targets.items():
        check_attackable(name, target.correct)
    search, tables = Search(effort.iterations, seed, early_stopping=True), []
    for name, target in targets.items():
        pgd = sweep("pgd", target, budgets.sweep, search)
        records = pd.concat([sweep("fgsm", target, budgets.sweep, search), pgd], ignore_index=True)
        runs = [
            (stage, eps)
            for eps in sorted(budgets.suite)
            for stage in stages(budgets, effort, eps, target.n_genres)
        ]
        for stage, eps in progress(runs, "suite", unit="attack"):
            records = pd.concat([records, _run(target, records, stage, eps, seed)])
        found = alone(target, budgets, effort, seed)
        records = pd.concat([found, records], ignore_index=True)
        worst = [worst_case(records, eps) for eps in sorted(budgets.sweep)]
        records = pd.concat([records, *worst, noise_records(target, pgd, seed)])
        tables.append(records.assign(checkpoint=name))
    records = pd.concat(tables, ignore_index=True)
    return records if "distance" in records else records.assign(distance=np.nan)


def sweep(name: str, target: Target, epsilons: tuple, search: Search) -> pd.DataFrame:
    """Attack segments at each eps; return one row per segment and eps, as `make_records` does.

    Only segments that the model predicts correctly are attacked; the others stay unchanged. With
    PGD a segment flipped at a small eps counts as flipped at each larger one, whose ball holds the
    smaller ball: it keeps its perturbation. Raises ValueError without epsilons.
    """
    if len(epsilons) == 0:
        raise ValueError("There are 0 epsilons to attack at: give EPSILONS of at least one.")
    X, y = target.data.X, target.data.y
    attacked, predicted = np.array(X, dtype=np.float32), target.predicted.copy()
    records = []
    for eps in progress(sorted(epsilons), name, unit="eps"):
        rows = np.flatnonzero((predicted if name == "pgd" else target.predicted) == y)
        attacked[rows] = attack(name, target.model, X[rows], y[rows], eps, search)
        predicted[rows] = target.predict(attacked[rows])
        records.append(make_records(target, name, eps, attacked, predicted))
    return pd.concat(records, ignore_index=True)


def first_success(
    name: str, target: Target, epsilons: tuple, search: Search
) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest eps (n,) that flips each segment, and its adversarial example.

    NaN and the unchanged segment where the clean prediction is wrong or no eps flips it.
    """
    X, y = target.data.X, target.data.y
    smallest, flipped = np.full(len(y), np.nan), X.copy()
    rows = np.flatnonzero(target.correct)
    for eps in progress(sorted(epsilons), name, unit="eps"):
        attacked = attack(name, target.model, X[rows], y[rows], eps, search)
        success = target.predict(attacked) != y[rows]
        smallest[rows[success]], flipped[rows[success]] = eps, attacked[success]
        rows = rows[~success]
    return smallest, flipped


def noise_records(target: Target, pgd: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return records of both noises for every eps of `pgd`, the records of a sweep with PGD.

    `noise_linf` has the eps of the attack, `noise_l2` the L2 norm of PGD's perturbation of each
    segment; where that was made at a smaller eps, in proportion, and where there is none (the
    segment was wrong before), the median of the others.
    """
    X, rows = target.data.X, []
    for eps, made in pgd.groupby("eps"):
        share = made.set_index("segment").eval("l2 / linf")[target.data.numbers].to_numpy()
        share = np.where(np.isnan(share), np.nanmedian(share) if made["linf"].any() else 1, share)
        noisy = {"noise_linf": noise_linf(X, eps, seed), "noise_l2": noise_l2(X, eps * share, seed)}
        for name, changed in noisy.items():
            rows.append(make_records(target, name, eps, changed, target.predict(changed)))
    return pd.concat(rows, ignore_index=True)


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


def ladder(robustness: pd.DataFrame, records: pd.DataFrame, eps: float) -> pd.DataFrame:
    """Return a table to read: accuracy of every attack at `eps`, and the size HopSkipJump reached.

    `robustness` comes from `robustness_table`. The last row is the median size in dB of the change
    that HopSkipJump needs, within eps or not.
    """
    table = percent_table(robustness[robustness["eps"] == eps], ["attack", "n_segments"])
    found = records[records["attack"] == "hop_skip_jump"]
    found = found.drop_duplicates(["checkpoint", "segment"]).groupby("checkpoint")
    for name, own in found["distance"]:
        row = ("HopSkipJump, median L-infinity norm reached", own.count())
        table.loc[row, name] = f"{own.median() * DYNAMIC_RANGE_DB:.2g} dB"
    return table.fillna("")


def runner_up(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the wrong genre (n,) with the highest of the logits (n, n_genres)."""
    others = np.array(logits)
    others[np.arange(len(y)), y] = -np.inf
    return others.argmax(axis=1)


def robust_mask(target: Target, records: pd.DataFrame, eps: float) -> np.ndarray:
    """Return which segments (n,) are correct and not flipped at `eps` or below in the records."""
    flipped = records.loc[records["success"] & (records["eps"] <= eps), "segment"]
    return target.correct & ~np.isin(target.data.numbers, flipped)


def eps_bounds(records: pd.DataFrame) -> pd.DataFrame:
    """Return the two eps of the sweep between which each segment flips, by segment number.

    Columns `robust` (0 for segments that the smallest eps flips) and `flipped` (missing if none
    does) from the worst case in the records of one checkpoint; only segments correct before.
    """
    worst = records[records["attack"] == WORST_CASE]
    worst = worst[worst["clean_prediction"] == worst["true"]]
    robust = worst["eps"].where(~worst["success"], 0).groupby(worst["segment"]).max()
    flipped = worst["eps"].where(worst["success"]).groupby(worst["segment"]).min()
    return pd.DataFrame({"robust": robust, "flipped": flipped})


def minimal_eps(
    targets: dict[str, Target], records: pd.DataFrame, n: int, search: Search
) -> pd.DataFrame:
    """Return the minimal eps of `n` correct segments per checkpoint.

    PGD halves each segment's bounds three times (all segments at once, each with its own eps): the
    result is at most an eighth of the bounds' distance above the least that PGD needs. `records`
    are those of `evaluate` for these targets.

    Returns
    -------
    Columns segment, track, true, predicted (after the attack, -1 for none), minimal_eps,
    minimal_eps_db (missing if nothing flips the segment), by_pgd (False where only another attack
    of the records, or none, flips it), checkpoint.
    """
    tables = []
    for name, target in targets.items():
        bounds = eps_bounds(records[records["checkpoint"] == name])
        rows = pd.Index(target.data.numbers).get_indexer(bounds.index)
        drawn = draw_segments(target.data.tracks[rows], n, search.seed)
        part = target.take(rows[drawn])
        high, predicted = _bisect(part, bounds.iloc[drawn], search)
        table = part.data.table[["segment", "track"]].assign(true=part.data.y, predicted=predicted)
        table = table.assign(minimal_eps=high, minimal_eps_db=high * DYNAMIC_RANGE_DB)
        tables.append(table.assign(by_pgd=predicted >= 0, checkpoint=name))
    return pd.concat(tables, ignore_index=True)


def example(
    target: Target, records: pd.DataFrame, eps: float, search: Search
) -> tuple[Target, dict[str, np.ndarray]]:
    """Return one segment and its adversarial examples (1, 128, 130) by FGSM and PGD at one eps.

    It is the first segment that both attacks flip in the records of the checkpoint, else the first
    that one of them flips, else the first.
    """
    made = records[records["attack"].isin(PAIR) & (records["eps"] == eps)]
    flips = made.groupby("segment")["success"].sum().reindex(target.data.numbers, fill_value=0)
    part = target.take(np.array([flips.argmax()]))
    X, y = part.data.X, part.data.y
    return part, {name: attack(name, part.model, X, y, eps, search) for name in PAIR}


def _bisect(target: Target, bounds: pd.DataFrame, search: Search):
    """Return upper ends of the halved bounds (n,) and predictions there (-1 for none).

    The first step tries the upper ends themselves.
    """
    X, y = target.data.X, target.data.y
    low, high = (bounds[side].to_numpy(dtype=float).copy() for side in ("robust", "flipped"))
    predicted = np.full(len(X), -1)
    rows = np.flatnonzero(~np.isnan(high))
    steps = range((HALVINGS + 1) * (len(rows) > 0))
    for step in progress(steps, name="minimal eps", unit="step"):
        eps = high.copy() if step == 0 else (low + high) / 2
        attacked = attack("pgd", target.model, X[rows], y[rows], eps[rows], search)
        now = target.predict(attacked)
        success = now != y[rows]
        hit, missed = rows[success], rows[~success]
        predicted[hit], high[hit] = now[success], eps[hit]
        low[missed] = eps[missed] if step else low[missed]
    return high, predicted


def _run(
    target: Target, records: pd.DataFrame, stage: Stage, eps: float, seed: int
) -> pd.DataFrame:
    """Return one row per segment: the result of one slow attack and all before it."""
    made, robust = [records], robust_mask(target, records, eps)
    for start in range(1, stage.starts + 1):
        rows = np.flatnonzero(robust)
        part = target.take(rows)
        X, y = part.data.X, part.data.y
        goal = runner_up(part.logits, y) if stage.method == "pgd_targeted" else y
        search = Search(stage.iterations, seed + start, early_stopping=True)
        attacked = attack(stage.method, part.model, X, goal, eps, search)
        predicted = part.predict(attacked)
        new = make_records(part, stage.method, eps, attacked, predicted)
        if stage.method in NO_BEST_POINT:
            new[SIZES] = new[SIZES].where(new["success"])
        made.append(new.assign(made_by=stage.name, start=start))
        robust[rows] = predicted == y
    return worst_case(pd.concat(made), eps, stage.name)


def alone(target: Target, budgets: Budgets, effort: Effort, seed: int) -> pd.DataFrame:
    """Return records of the attacks without gradients by themselves, on a few correct segments.

    HopSkipJump starts from the nearest of the target's segments that is predicted as another genre.
    HopSkipJump counts at each eps that its change fits; `distance` is the size of this change.
    Square runs at `budgets.doubled`.
    """
    correct = np.flatnonzero(target.correct)
    if min(effort.n_hard_label, effort.hard_label_steps, len(correct)) < 1:
        return pd.DataFrame()
    drawn = draw_segments(target.data.tracks[correct], effort.n_hard_label, seed)
    few = target.take(correct[drawn])
    X, y, tables = few.data.X, few.data.y, []
    found = hop_skip_jump(target, few, effort.hard_label_steps, seed)
    distance = np.abs(found - X).max(axis=(1, 2))
    for eps in sorted(budgets.sweep):
        attacked = np.where((distance <= eps)[:, None, None], found, X)
        check_contract(X, attacked, eps)
        records = make_records(few, "hop_skip_jump", eps, attacked, few.predict(attacked))
        reached = np.where(distance > 0, distance, np.nan)  # 0: no start was found
        tables.append(records.assign(distance=reached))
    if effort.square_queries and budgets.doubled in budgets.sweep:
        search = Search(effort.square_queries, seed)
        attacked = attack("square", few.model, X, y, budgets.doubled, search)
        predicted = few.predict(attacked)
        tables.append(make_records(few, "square_alone", budgets.doubled, attacked, predicted))
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
