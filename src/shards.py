"""Work on segments in fixed shards, through joblib: here, or on a cluster (`src.workers`)."""

from collections.abc import Callable

import numpy as np
from joblib import Parallel, delayed

from src.progress import progress

SHARD = 64  # segments; results depend on it where something is random
LONG = 5  # shards that deserve a progress bar


def in_shards(
    name: str, work: Callable[..., np.ndarray], arrays: tuple[np.ndarray, ...], *options: object
) -> np.ndarray:
    """Return `work(number, *rows of the arrays, *options)` of all shards of 64 rows, joined.

    The shards are the same wherever and by however many workers they are computed, and what is
    random in them is seeded by their number. Without a cluster they are computed one after the
    other in this process, each with all of torch's threads. `work` and `options` must be such
    that can be sent to another process; `name` is shown with the progress of long work.
    """
    shards = [slice(start, start + SHARD) for start in range(0, len(arrays[0]), SHARD)]
    jobs = (
        delayed(work)(number, *(np.asarray(array[rows]) for array in arrays), *options)
        for number, rows in enumerate(shards)
    )
    made = Parallel(return_as="generator")(jobs)  # one job, or as many as the cluster has workers
    n, short, parts = len(arrays[0]), len(shards) < LONG, []
    with progress(None, name, n, "segment", leave=False, disable=short) as bar:
        for part in made:
            parts.append(part)
            bar.update(len(part))
    return np.concatenate(parts)
