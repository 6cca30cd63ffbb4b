import pytest

from src.docs import speed
from src.results import write_json

RATES = {"training": 70, "attacks": 287, "gradcam": 50, "features": 120, "waveform": 99}
SIZES = {100: {"explore": 20, "preprocess": 21, "train": 9}, 1000: {"explore": 20 + 36}}
SIZES[1000]["preprocess"] = 21 + 72
GROWTH = [
    {"tracks": n, "seconds": seconds, "peak_rss_gib": dict.fromkeys(seconds, n / 800)}
    for n, seconds in SIZES.items()
]


@pytest.fixture(autouse=True)
def _measured(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "METRICS", tmp_path)
    both = {"ratio": 4.04, "share_of_limit": 0.5, "unit": "x/s", "difference": 0.001}
    both["largest"] = {"first": 0.5, "second": 0.25, "third": 0.125}
    write_json(tmp_path / "bench.json", {k: both | {"rate": rate} for k, rate in RATES.items()})
    write_json(tmp_path / "growth.json", {"growth": GROWTH})


def test_hours_and_bytes_are_counted_from_the_measured_rates():
    seconds = {stage: speed.seconds_a_track(GROWTH, stage) for stage in ("explore", "preprocess")}
    needed = speed.needs(36_000, RATES, seconds)
    assert list(needed.values()) == pytest.approx(
        [36 * (0.6656 + 0.7 * 0.330752), 0.4, 0.8, 1, 30, 15, 0.3]
    )
    header, _, *lines = speed.collections().splitlines()
    assert header == "|  | GTZAN | MTG-Jamendo | FMA-large |"
    assert lines[0] == "| arrays (GB) | 0.9 | 50 | 96 |"
    assert len(lines) == len(needed)


def test_ratios_stand_beside_rates_limits_and_differences():
    _, _, *lines = speed.ratios().splitlines()
    assert len(lines) == len(RATES)
    assert lines[0].endswith("| 4.0 | 120 x/s | 50% | at most 0.001 dB |")
    assert speed.largest().splitlines()[2].endswith("| `first` 50% | `second` 25% | `third` 12% |")


def test_what_was_not_measured_of_the_largest_corpora_is_empty():
    _, _, small, large = speed.growth().splitlines()
    assert small == "| 100 | 20 | 0.12 | 21 | 0.12 | 9 | 0.12 |"
    assert large == "| 1,000 | 56 | 1.25 | 93 | 1.25 |  |  |"
