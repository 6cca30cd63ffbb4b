"""Mutated audio files: used or refused with a reason, in bounded time and memory.

They are read in a process of its own (`python -m tests.test_fuzz_audio FOLDER N SEED`), so that a
crash of libsndfile is a failure of a test. Before each file its number goes to FOLDER/current; at
the end one line of JSON has the counts.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf

from src.data.audio import AudioFolder, audio_row

ROOT = Path(__file__).parents[1]
N_FILES = [210, pytest.param(5000, marks=pytest.mark.long)]
SEED = int(os.environ.get("FUZZ_SEED", 0))
RATE = 22_050
FORMATS = {
    "wav": {},
    "float.wav": {"subtype": "FLOAT"},
    "adpcm.wav": {"subtype": "IMA_ADPCM"},
    "au": {},
    "flac": {},
    "ogg": {},
    "mp3": {},
}
SECONDS_PER_FILE = 10  # of processor time
MEMORY_BYTES = 3 * 2**30  # above what the process has at the start


def originals(folder: Path) -> dict[str, bytes]:
    """Return the bytes of one valid file a format, 3.2 s of noise in two channels."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (round(3.2 * RATE), 2))
    contents = {}
    for name, options in FORMATS.items():
        path = folder / f"original.{name}"
        sf.write(path, samples * np.linspace(0, 1, len(samples))[:, None], RATE, **options)
        contents[name] = path.read_bytes()
        path.unlink()
    return contents


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Return bytes with some changed in the header or anywhere, cut out, doubled or cut off."""
    data = bytearray(content)
    kind = rng.integers(6)
    within = min(len(data), 200) if kind < 3 else len(data)
    if kind in (0, 1, 3):
        for position in rng.integers(within, size=2 ** rng.integers(0, 6)):
            data[position] = rng.integers(256)
    elif kind == 2:  # a number of the header becomes an extreme one
        start = rng.integers(within - 4)
        data[start : start + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f" + b"\xff" * 3])
    elif kind == 4:
        start, end = sorted(rng.integers(len(data), size=2))
        data[start:end] = data[start:end] * int(rng.integers(3))
    else:
        del data[rng.integers(len(data)) :]
    return bytes(data)


def fuzz(folder: Path, n: int, seed: int) -> dict:
    """Audit `n` mutated files and prepare those that are used; return the counts."""
    contents = originals(folder)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    outcomes, slowest = Counter(), 0.0
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        name = list(FORMATS)[i % len(FORMATS)]
        (folder / "current").write_text(f"{seed} {i} {name}")
        path = folder / "rock" / f"rock.00000.{name.split('.')[-1]}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(mutate(contents[name], rng))
        signal.alarm(6 * SECONDS_PER_FILE)  # ends the process; by the clock of a busy machine
        begin = time.process_time()
        row = audio_row(path, folder)
        if row["used"]:
            x = AudioFolder(folder, "fuzz").segments(SimpleNamespace(**row))
            assert x.shape[1:] == (128, 130), x.shape
            assert np.isfinite(x).all(), row
            assert x.min() >= 0, row
            assert (x.max(axis=(1, 2)) == 1).all(), row
        else:
            assert row["reason"], row
            assert "\n" not in row["reason"], row
        signal.alarm(0)
        slowest = max(slowest, time.process_time() - begin)
        outcomes["used" if row["used"] else row["reason"].split(":")[0]] += 1
        path.unlink()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - used
    return {"outcomes": outcomes, "slowest_s": slowest, "memory_bytes": grown}


@pytest.mark.parametrize("n_files", N_FILES)
def test_mutated_files_are_used_or_refused_in_bounded_time_and_memory(n_files, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_fuzz_audio", str(tmp_path), str(n_files), str(SEED)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600 + n_files * SECONDS_PER_FILE,
    )
    current = (tmp_path / "current").read_text()
    assert done.returncode == 0, f"{current}: {done.stderr[-3000:]}"
    fuzzed = json.loads(done.stdout.splitlines()[-1])
    assert sum(fuzzed["outcomes"].values()) == n_files
    assert {"used", "unreadable", "truncated"} <= set(fuzzed["outcomes"])
    assert fuzzed["slowest_s"] < SECONDS_PER_FILE
    assert fuzzed["memory_bytes"] < MEMORY_BYTES


if __name__ == "__main__":
    print(json.dumps(fuzz(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
