"""Audit mutated audio files: `python -m tests.fuzz_audio FOLDER N SEED` (see test_fuzz_audio).

Runs as a process of its own, so that a crash of libsndfile is seen and not suffered. Before each
file its number goes to FOLDER/current; at the end one line of JSON tells the counts.
"""

import json
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile as sf

from src.data.audio import audio_row, read_verified
from src.data.features import segment_audio

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


class Late(Exception):  # noqa: N818
    """A file took too long."""


def _ring(*_: object) -> None:
    raise Late


def main(folder: Path, n: int, seed: int) -> dict:
    """Audit `n` mutated files and prepare those that are used; return the counts."""
    signal.signal(signal.SIGALRM, _ring)
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
        signal.alarm(6 * SECONDS_PER_FILE)  # by the clock, the machine may be busy
        begin = time.process_time()
        row = audio_row(path, folder)
        if row["used"]:
            x = segment_audio(read_verified(path, row["sha256"]), row["n_segments"])
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


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
