"""`python -m benchmarks.scaling`: the table of docs/scaling.md, from the measured rates.

Reads `bench.json` and `growth.json` of `results/metrics/`. Seconds a track of notebooks 1 and 2 are
those that growth adds from the smallest to the largest corpus, without the start of a notebook.
"""

import sys

import pandas as pd

from src.attacks.adversarial import EPSILONS, ITERATIONS
from src.data.frontend import N_FRAMES, N_MELS, SEGMENTS_PER_TRACK
from src.data.preprocessor import WHOLE_FRAMES
from src.data.splits import TEST_SHARE, VAL_SHARE
from src.paths import METRICS
from src.results import read_json

CORPORA = {"GTZAN": 1000, "MTG-Jamendo": 55_701, "FMA-large": 106_574}  # tracks
EPOCHS = 30
TRAIN_SHARE = 1 - VAL_SHARE - TEST_SHARE
STEPS = len(EPSILONS) * (ITERATIONS + 1)  # of FGSM and PGD on a segment that stands, at most


def main() -> int:
    """Print the table as Markdown."""
    bench, growth = (read_json(METRICS / f"{name}.json") for name in ("bench", "growth"))
    rates = {stage: bench[stage]["rate"] for stage in ("training", "attacks", "gradcam")}
    stages = "explore", "preprocess"
    seconds = {stage: seconds_a_track(growth["growth"], stage) for stage in stages}
    table = pd.DataFrame({name: needs(n, rates, seconds) for name, n in CORPORA.items()})
    print(f"| | {' | '.join(CORPORA)} |", "|---|" + "---:|" * len(CORPORA), sep="\n")
    for name, row in table.iterrows():
        print(f"| {name} | {' | '.join(map(shown, row))} |")
    return 0


def seconds_a_track(growth: list[dict], stage: str) -> float:
    """Return what each further track costs a stage, in seconds, by the ends of the growth table."""
    rows = [row for row in growth if stage in row["seconds"]]
    first, last = rows[0], rows[-1]
    more = last["seconds"][stage] - first["seconds"][stage]
    return more / (last["tracks"] - first["tracks"])


def needs(n: int, rates: dict[str, float], seconds: dict[str, float]) -> dict[str, float]:
    """Return gigabytes on disk and hours of each stage for `n` tracks of 30 s."""
    test = n * SEGMENTS_PER_TRACK * TEST_SHARE
    train = n * SEGMENTS_PER_TRACK * TRAIN_SHARE
    segments = SEGMENTS_PER_TRACK * N_MELS * N_FRAMES * 4  # bytes a track
    whole = TRAIN_SHARE * N_MELS * WHOLE_FRAMES * 2
    return {
        "arrays (GB)": n * (segments + whole) / 1e9,
        "1 explore (h)": n * seconds["explore"] / 3600,
        "2 preprocess (h)": n * seconds["preprocess"] / 3600,
        "3 train, one epoch (h)": train / rates["training"] / 3600,
        f"3 train, {EPOCHS} epochs (h)": EPOCHS * train / rates["training"] / 3600,
        "4 sweep of all test segments (h)": test * STEPS / rates["attacks"] / 3600,
        "5 maps of all test segments (h)": test / rates["gradcam"] / 3600,
    }


def shown(value: float) -> str:
    """Return a number with two digits that count."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    sys.exit(main())
