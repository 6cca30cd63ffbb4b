"""The smallest eps that flips each segment, found by bisection."""

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from src.attacks.adversarial import attack, make_classifier
from src.attacks.records import WORST_CASE
from src.attacks.suite import Target
from src.data.frontend import DYNAMIC_RANGE_DB
from src.models.evaluation import predict_logits


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
    target: Target, brackets: pd.DataFrame, steps: int, iterations: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the smallest eps that flips each segment of `brackets`, and the segments so flipped.

    PGD halves each bracket `steps` times (all segments at once, each with its own eps). The result
    is an upper bound within (breaks - stands) / 2^steps of what this PGD can do. Columns:
    segment, track, true, prediction (what it turns into), smallest_eps, smallest_eps_db; missing
    for segments that nothing breaks. The array (n, 128, 130) holds the segment unchanged where
    PGD alone breaks it nowhere in the bracket.
    """
    number = pd.Index(target.segments["segment"]).get_indexer(brackets.index)
    X, y = np.array(target.X[number], dtype=np.float32), target.y[number]
    low, high = (brackets[side].to_numpy(dtype=float).copy() for side in ("stands", "breaks"))
    flipped, prediction = X.copy(), y.copy()
    classifier = make_classifier(target.model)
    for step in tqdm(range(steps + 1), desc="smallest eps", unit="step"):
        eps = high if step == 0 else (low + high) / 2
        rows = np.flatnonzero(~np.isnan(high))
        if not len(rows):
            break
        attacked = attack("pgd", classifier, X[rows], y[rows], eps[rows], iterations)
        heard = predict_logits(target.model, attacked).argmax(axis=1)
        turned = heard != y[rows]
        hit, missed = rows[turned], rows[~turned]
        flipped[hit], prediction[hit] = attacked[turned], heard[turned]
        high[hit] = eps[hit]
        if step:
            low[missed] = eps[missed]
    table = target.segments.iloc[number][["segment", "track"]].reset_index(drop=True)
    table = table.assign(true=y, prediction=np.where(np.isnan(high), -1, prediction))
    return table.assign(smallest_eps=high, smallest_eps_db=high * DYNAMIC_RANGE_DB), flipped


def examples(table: pd.DataFrame, flipped_by_pgd: np.ndarray) -> dict[str, int]:
    """Return the rows of the most fragile, the middle and the most robust segment that flip.

    By smallest eps; `flipped_by_pgd` (n,) tells which segments there is an attacked version of.
    Empty if there is none.
    """
    known = table["smallest_eps"][flipped_by_pgd].sort_values(kind="stable").index
    if not len(known):
        return {}
    places = {"bad": 0, "middle": len(known) // 2, "good": len(known) - 1}
    return {name: int(known[place]) for name, place in places.items()}
