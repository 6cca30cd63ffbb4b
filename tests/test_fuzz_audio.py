import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fuzz_audio

ROOT = Path(__file__).parents[1]
N_FILES = [210, pytest.param(5000, marks=pytest.mark.long)]
SEED = int(os.environ.get("FUZZ_SEED", 0))


@pytest.fixture(name="fuzzed", scope="module", params=N_FILES)
def _fuzzed(request, tmp_path_factory):
    """Return the counts of a run over mutated files and the memory it took."""
    folder, n_files = tmp_path_factory.mktemp("fuzz"), request.param
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_audio", str(folder), str(n_files), str(SEED)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600 + n_files * fuzz_audio.SECONDS_PER_FILE,
    )
    current = (folder / "current").read_text()
    assert done.returncode == 0, f"{current}: {done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1]) | {"n_files": n_files}


def test_mutated_files_are_used_or_told_and_never_crash_the_reader(fuzzed):
    assert sum(fuzzed["outcomes"].values()) == fuzzed["n_files"]
    assert {"used", "unreadable", "truncated"} <= set(fuzzed["outcomes"])


def test_mutated_files_take_bounded_time_and_memory(fuzzed):
    assert fuzzed["slowest_s"] < fuzz_audio.SECONDS_PER_FILE
    assert fuzzed["memory_bytes"] < fuzz_audio.MEMORY_BYTES
