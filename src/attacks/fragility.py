"""The smallest eps that flips each segment, found by bisection."""

import numpy as np
import pandas as pd

from src.attacks.adversarial import attack, draw_segments
from src.attacks.records import WORST_CASE
from src.attacks.suite import Target
from src.data.frontend import DYNAMIC_RANGE_DB
from src.models.evaluation import predict_logits
from src.progress import progress

STEPS = 3  # each halves what is left between standing and breaking
CASES = {"most fragile": 1, "middle": 3, "most robust": 2}  # segments that it takes to have one


def bracket(records: pd.DataFrame) -> pd.DataFrame:
    """Return between which two eps of the sweep each segment breaks, by segment number.

    Columns `stands` (0 for segments that the smallest eps breaks) and `breaks` (missing if none
    does) from the worst case in the records of one checkpoint; only segments right before.
    """
    worst = records[records["attack"] == WORST_CASE]
    worst = worst[worst["clean_prediction"] == worst["true"]]
    stands = worst["eps"].where(~worst["success"], 0).groupby(worst["segment"]).max()
    breaks = worst["eps"].where(worst["success"]).groupby(worst["segment"]).min()
    return pd.DataFrame({"stands": stands, "breaks": breaks})


def smallest_eps(
    target: Target, records: pd.DataFrame, n: int, iterations: int, seed: int, steps: int = STEPS
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the smallest eps that flips each of `n` right segments, and the segments so flipped.

    PGD halves each segment's bracket `steps` times (all segments at once, each with its own eps):
    what it finds is at most (breaks - stands) / 2^steps above the least it can do. Columns:
    segment, track, true, predicted (what it turns into, -1 for none), smallest_eps,
    smallest_eps_db (missing if nothing breaks it), by_pgd (False where only another attack of the
    records breaks it). The array (n, 128, 130) holds a segment unchanged where `by_pgd` is False.
    """
    brackets = bracket(records)
    number = pd.Index(target.segments["segment"]).get_indexer(brackets.index)
    drawn = draw_segments(target.segments["track"].to_numpy()[number], n, seed)
    brackets, number = brackets.iloc[drawn], number[drawn]
    table = target.segments.iloc[number][["segment", "track"]].reset_index(drop=True)
    X, y = np.array(target.X[number], dtype=np.float32), target.y[number]
    high, flipped, predicted = _bisect(target.model, X, y, brackets, steps, iterations)
    table = table.assign(true=y, predicted=predicted)
    table = table.assign(smallest_eps=high, smallest_eps_db=high * DYNAMIC_RANGE_DB)
    return table.assign(by_pgd=predicted >= 0), flipped


def _bisect(model, X: np.ndarray, y: np.ndarray, brackets: pd.DataFrame, steps: int, iterations):
    """Return upper ends of the halved brackets, flipped segments and their genres (-1 for none).

    The first step tries the upper ends themselves.
    """
    low, high = (brackets[side].to_numpy(dtype=float).copy() for side in ("stands", "breaks"))
    flipped, predicted = X.copy(), np.full(len(X), -1)
    rows = np.flatnonzero(~np.isnan(high))
    for step in progress(range((steps + 1) * (len(rows) > 0)), "smallest eps", unit="step"):
        eps = high.copy() if step == 0 else (low + high) / 2
        attacked = attack("pgd", model, X[rows], y[rows], eps[rows], iterations)
        heard = predict_logits(model, attacked).argmax(axis=1)
        turned = heard != y[rows]
        hit, missed = rows[turned], rows[~turned]
        flipped[hit], predicted[hit], high[hit] = attacked[turned], heard[turned], eps[hit]
        low[missed] = eps[missed] if step else low[missed]
    return high, flipped, predicted


def examples(table: pd.DataFrame) -> dict[str, int]:
    """Return the rows of the most fragile, the middle and the most robust segment of `table`.

    By smallest eps, among those that PGD flips. Of two segments none is the middle one, a single
    one is the most fragile; empty if there is none.
    """
    order = table.loc[table["by_pgd"], "smallest_eps"].sort_values(kind="stable").index
    places = {"most fragile": 0, "middle": len(order) // 2, "most robust": -1}
    return {case: int(order[places[case]]) for case, n in CASES.items() if len(order) >= n}
