import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fuzz_audio

ROOT = Path(__file__).parents[1]
N_FILES = int(os.environ.get("FUZZ_FILES", 210))  # thousands in a campaign
SEED = int(os.environ.get("FUZZ_SEED", 0))


@pytest.fixture(name="fuzzed", scope="module")
def _fuzzed(tmp_path_factory):
    """Return the counts of a run over mutated files and the memory it took."""
    folder = tmp_path_factory.mktemp("fuzz")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_audio", str(folder), str(N_FILES), str(SEED)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600 + N_FILES * fuzz_audio.SECONDS_PER_FILE,
    )
    current = (folder / "current").read_text()
    assert done.returncode == 0, f"{current}: {done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def test_mutated_files_are_used_or_told_and_never_crash_the_reader(fuzzed):
    assert sum(fuzzed["outcomes"].values()) == N_FILES
    assert {"used", "unreadable", "truncated"} <= set(fuzzed["outcomes"])


def test_mutated_files_take_bounded_time_and_memory(fuzzed):
    assert fuzzed["slowest_s"] < fuzz_audio.SECONDS_PER_FILE
    assert fuzzed["memory_bytes"] < fuzz_audio.MEMORY_BYTES
