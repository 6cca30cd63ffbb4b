"""The tables of docs/scaling.md: measured rates, growth, and what larger collections need by them.

Read `bench.json` and `growth.json` of `results/metrics/`. Seconds a track of notebooks 1 and 2 are
those that growth adds from the smallest to the largest corpus, without the start of a notebook.
"""

import pandas as pd

from src.attacks.adversarial import EPSILONS, ITERATIONS
from src.data.frontend import N_FRAMES, N_MELS, SEGMENTS_PER_TRACK
from src.data.preprocessor import WHOLE_FRAMES
from src.data.splits import TEST_SHARE, VAL_SHARE
from src.docs.numbers import markdown
from src.paths import METRICS
from src.results import read_json

CORPORA = {"GTZAN": 1000, "MTG-Jamendo": 55_701, "FMA-large": 106_574}  # tracks
STAGES = {
    "features": "log-mels of tracks, from disk",
    "training": "training, one epoch",
    "attacks": "FGSM and PGD, the documented sweep",
    "gradcam": "Grad-CAM maps",
    "waveform": "PGD on the waveform",
}
DIFFERENCES = {
    "features": "at most {:.1g} dB",
    "training": "mean loss after five steps, with other dropout, by {:.2f} nats",
    "attacks": "plain ART at no eps more successful by more than {:.0%}",
    "gradcam": "at most {:.0e} of [0, 1]",
    "waveform": "the plain one more successful by {:.1%}",
}
EPOCHS = 30
TRAIN_SHARE = 1 - VAL_SHARE - TEST_SHARE
STEPS = len(EPSILONS) * (ITERATIONS + 1)  # of FGSM and PGD on a segment that stands, at most


def ratios() -> str:
    """Return how many times as fast as a plain implementation each stage is."""
    bench = read_json(METRICS / "bench.json", set(STAGES))
    lines = [
        {
            "stage": title,
            "times as fast": f"{bench[stage]['ratio']:.1f}",
            "rate": f"{bench[stage]['rate']:.0f} {bench[stage]['unit']}",
            "of what the machine can": f"{bench[stage]['share_of_limit']:.0%}",
            "results differ": DIFFERENCES[stage].format(bench[stage]["difference"]),
        }
        for stage, title in STAGES.items()
    ]
    return markdown(pd.DataFrame(lines))


def largest() -> str:
    """Return the three items of each stage that take most of its time."""
    bench = read_json(METRICS / "bench.json", set(STAGES))
    lines = [
        {"stage": title}
        | {
            f"{place}.": f"`{item}` {share:.0%}"
            for place, (item, share) in enumerate(bench[stage]["largest"].items(), 1)
        }
        for stage, title in STAGES.items()
    ]
    return markdown(pd.DataFrame(lines))


def growth() -> str:
    """Return seconds and largest memory of notebooks 1 to 3 by the number of tracks."""
    lines = []
    for row in read_json(METRICS / "growth.json", {"growth"})["growth"]:
        line = {"tracks": f"{row['tracks']:,}"}
        for stage, taken in row["seconds"].items():
            line |= {f"{stage} (s)": f"{taken:.0f}"}
            line |= {f"{stage} (GiB)": f"{row['peak_rss_gib'][stage]:.2f}"}
        lines.append(line)
    return markdown(pd.DataFrame(lines).fillna(""))


def collections() -> str:
    """Return what larger collections need of disk and hours."""
    bench, grown = (read_json(METRICS / f"{name}.json") for name in ("bench", "growth"))
    rates = {stage: bench[stage]["rate"] for stage in ("training", "attacks", "gradcam")}
    seconds = {
        stage: seconds_a_track(grown["growth"], stage) for stage in ("explore", "preprocess")
    }
    table = pd.DataFrame({name: needs(n, rates, seconds) for name, n in CORPORA.items()})
    return markdown(table.map(shown).rename_axis("").reset_index())


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
