"""Minimal perturbations: the least eps at which PGD flips each segment, found by bisection."""

import numpy as np
import pandas as pd

from src.attacks.adversarial import Search, attack
from src.attacks.records import WORST_CASE, Target
from src.data.features import DYNAMIC_RANGE_DB
from src.data.segments import draw_segments
from src.progress import progress

STEPS = 3  # each halves what is left between standing and breaking
CASES = {"most fragile": 1, "middle": 3, "most robust": 2}  # segments that it takes to have one


def eps_bounds(records: pd.DataFrame) -> pd.DataFrame:
    """Return between which two eps of the sweep each segment breaks, by segment number.

    Columns `stands` (0 for segments that the smallest eps breaks) and `breaks` (missing if none
    does) from the worst case in the records of one checkpoint; only segments right before.
    """
    worst = records[records["attack"] == WORST_CASE]
    worst = worst[worst["clean_prediction"] == worst["true"]]
    stands = worst["eps"].where(~worst["success"], 0).groupby(worst["segment"]).max()
    breaks = worst["eps"].where(worst["success"]).groupby(worst["segment"]).min()
    return pd.DataFrame({"stands": stands, "breaks": breaks})


def minimal_eps(
    target: Target, records: pd.DataFrame, n: int, search: Search, steps: int = STEPS
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the minimal eps of `n` correct segments and their adversarial examples.

    PGD halves each segment's bounds `steps` times (all segments at once, each with its own eps):
    the result is at most (breaks - stands) / 2^steps above the least that PGD needs. Columns:
    segment, track, true, predicted (after the attack, -1 for none), minimal_eps, minimal_eps_db
    (missing if nothing breaks the segment), by_pgd (False where only another attack of the records
    breaks it). The array (n, 128, 130) holds a segment unchanged where `by_pgd` is False.
    """
    bounds = eps_bounds(records)
    rows = pd.Index(target.data.numbers).get_indexer(bounds.index)
    drawn = draw_segments(target.data.tracks[rows], n, search.seed)
    bounds, target = bounds.iloc[drawn], target.take(rows[drawn])
    high, flipped, predicted = _bisect(target, bounds, steps, search)
    table = target.data.table[["segment", "track"]].reset_index(drop=True)
    table = table.assign(true=target.data.y, predicted=predicted)
    table = table.assign(minimal_eps=high, minimal_eps_db=high * DYNAMIC_RANGE_DB)
    return table.assign(by_pgd=predicted >= 0), flipped


def _bisect(target: Target, bounds: pd.DataFrame, steps: int, search: Search):
    """Return upper ends of the halved bounds, flipped segments and predictions (-1 for none).

    The first step tries the upper ends themselves.
    """
    X, y = target.data.X, target.data.y
    low, high = (bounds[side].to_numpy(dtype=float).copy() for side in ("stands", "breaks"))
    flipped, predicted = X.copy(), np.full(len(X), -1)
    rows = np.flatnonzero(~np.isnan(high))
    for step in progress(range((steps + 1) * (len(rows) > 0)), name="minimal eps", unit="step"):
        eps = high.copy() if step == 0 else (low + high) / 2
        attacked = attack("pgd", target.model, X[rows], y[rows], eps[rows], search)
        now = target.predict(attacked)
        success = now != y[rows]
        hit, missed = rows[success], rows[~success]
        flipped[hit], predicted[hit], high[hit] = attacked[success], now[success], eps[hit]
        low[missed] = eps[missed] if step else low[missed]
    return high, flipped, predicted


def examples(table: pd.DataFrame) -> dict[str, int]:
    """Return the rows of the most fragile, the middle and the most robust segment of `table`.

    By minimal eps, among those that PGD flips. Of two segments none is the middle one, a single
    one is the most fragile; empty if there is none.
    """
    order = table.loc[table["by_pgd"], "minimal_eps"].sort_values(kind="stable").index
    places = {"most fragile": 0, "middle": len(order) // 2, "most robust": -1}
    return {case: int(order[places[case]]) for case, n in CASES.items() if len(order) >= n}
