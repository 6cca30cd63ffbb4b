from pathlib import Path

import numpy as np
import pytest
import soundfile as sf


@pytest.fixture
def noise():
    """Return a function giving `seconds` of noise, the same for the same number."""

    def make(number: int, seconds: float = 3.5, rate: int = 22_050) -> np.ndarray:
        rng = np.random.default_rng(number)
        return rng.uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)

    return make


@pytest.fixture
def write_track(tmp_path):
    """Return a function writing samples to `<tmp_path>/corpus/<name>`, returning the corpus."""

    def write(name: str, samples: np.ndarray, rate: int = 22_050, **options) -> Path:
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, samples, rate, **options)
        return tmp_path / "corpus"

    return write
