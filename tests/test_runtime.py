import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from src import runtime
from src.attacks.adversarial import Search, attack
from src.models.evaluation import predict_logits
from src.paths import ROOT
from src.statistics import difference_over_tracks

FAULTS = """
import resource
import numpy as np
from src.runtime import prepare_process
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    prepare_process()
"""
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
EPS, ITERATIONS = 0.02, 5


def described(**environment) -> dict:
    """Return what a new process with these environment variables says of itself."""
    code = "import json; from src import runtime; print(json.dumps(runtime.describe()))"
    clean = {name: value for name, value in os.environ.items() if name != "PRECISION"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=clean | environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.fixture
def machine(monkeypatch):
    """Return a function that pretends a CPU or a GPU."""

    def pretend(instructions=(), onednn=True, speedup=2.0, gpu=None, width="AVX2") -> None:
        monkeypatch.delenv("PRECISION", raising=False)
        capabilities = dict.fromkeys(instructions, True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: width)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
        monkeypatch.setattr(runtime, "bfloat16_speedup", lambda: speedup)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
        runtime.fast_dtype.cache_clear()
        runtime.memory_format.cache_clear()

    yield pretend
    monkeypatch.undo()
    runtime.fast_dtype.cache_clear()
    runtime.memory_format.cache_clear()


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"instructions": ["avx512_bf16"]}, torch.bfloat16),
        ({"instructions": ["bf16"]}, torch.bfloat16),
        ({"instructions": ["avx512_bf16"], "speedup": 0.6}, torch.float32),
        ({"instructions": ["avx512_bf16"], "onednn": False}, torch.float32),
        ({"instructions": []}, torch.float32),
        ({"gpu": True}, torch.bfloat16),
        ({"gpu": False, "instructions": ["avx512_bf16"]}, torch.float32),
    ],
)
def test_bfloat16_is_used_only_where_it_is_native_and_faster(machine, facts, expected):
    machine(**facts)
    assert runtime.fast_dtype() == expected


def test_timing_a_convolution_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert runtime.bfloat16_speedup(repeats=1) > 0
    assert torch.equal(torch.rand(1), expected)


def test_the_layout_follows_the_width_of_vectors_and_the_precision(machine):
    machine(width="DEFAULT")
    assert runtime.memory_format() == torch.contiguous_format
    for fast in (
        {"width": "AVX2"},
        {"width": "AVX512"},
        {"instructions": ["bf16"]},
        {"gpu": False},
    ):
        machine(**{"width": "DEFAULT"} | fast)
        assert runtime.memory_format() == torch.channels_last


@pytest.mark.skipif("x86" not in platform.machine().lower(), reason="limits of x86 CPUs")
def test_detection_follows_what_the_libraries_may_use():
    found = described(**AVX2)
    assert (found["cpu"], found["native_bfloat16"]) == ("AVX2", False)
    assert found["gradients"] == "float32"
    assert found["memory_format"] == "channels_last"


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_precision_can_be_chosen_by_hand_and_is_recorded(name):
    assert described(PRECISION=name, **AVX2)["gradients"] == name


def test_an_unknown_precision_is_refused(in_precision):
    in_precision("float16")
    with pytest.raises(ValueError, match="PRECISION=float16 is unknown: give one of float32"):
        runtime.fast_dtype()


def test_autocast_is_used_in_bfloat16_alone(in_precision):
    for name in ("float32", "bfloat16"):
        in_precision(name)
        with runtime.fast_precision():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert str(product.dtype) == f"torch.{name}"


def test_attacks_succeed_alike_in_both_precisions(slim_model, clips, in_precision):
    success = {}
    for name in ("float32", "bfloat16"):
        in_precision(name)
        attacked = attack("pgd", slim_model, clips.X, clips.y, EPS, Search(ITERATIONS))
        success[name] = predict_logits(slim_model, attacked).argmax(axis=1) != clips.y
    assert 0.2 < success["float32"].mean() < 1
    tracks = clips.table["track"].to_numpy()
    gap = difference_over_tracks(success["float32"], success["bfloat16"], tracks)
    assert gap["low"] <= 0 <= gap["high"]
    assert abs(gap["value"]) < 0.1
    assert np.isfinite(gap["value"])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_a_prepared_process_keeps_large_blocks():
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=ROOT, check=True, capture_output=True, text=True
    )
    first, *_, last = map(int, done.stdout.split())
    assert last < first / 10
