"""Where the time of a piece of work goes: its largest items, as shares of the whole."""

import cProfile
import pstats
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

LARGEST = 3


def largest_calls(work: Callable[[], object]) -> dict[str, float]:
    """Return the functions that take most of the time themselves, by Python's profiler.

    Only those of the thread that calls `work`.
    """
    with cProfile.Profile() as profiler:
        work()
    stats = pstats.Stats(profiler)
    times = {_name(*where): own for where, (_, _, own, *_) in stats.stats.items()}
    return _largest(times)


def largest_operations(work: Callable[[], object]) -> dict[str, float]:
    """Return the tensor operations that take most of the time themselves, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    return _largest({row.key: row.self_cpu_time_total for row in profiler.key_averages()})


def _name(file: str, line: int, function: str) -> str:
    """Return a function as its profile names it, its file without folders."""
    return function if file == "~" else f"{Path(file).name}:{line} {function}"


def _largest(times: dict[str, float]) -> dict[str, float]:
    """Return the largest entries as shares of the sum."""
    ordered = sorted(times, key=times.get, reverse=True)[:LARGEST]
    return {name: times[name] / sum(times.values()) for name in ordered}
