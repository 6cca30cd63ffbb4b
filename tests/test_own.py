import re
import sys

import pandas as pd
import pytest
import torch
from conftest import planted

from src.attacks import suite
from src.attacks.records import make_target
from src.data.segments import Segments
from src.effort import EFFORTS
from src.models.cnn import fold_batch_norm
from src.models.own import load_own
from src.models.runs import load_networks
from src.paths import RunPaths

MODULE = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 8, stride=8)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.norm(self.conv(x)).mean(dim=(2, 3)))


small = Small()


def make(n_genres=3):
    return Small()


def levels(x):
    return torch.stack([x[..., :40, :], x[..., 40:80, :], x[..., 80:120, :]]).mean(dim=(2, 3, 4)).T


def wide(x):
    return levels(x)[:, :2]


def fixed(x):
    return levels(x.detach())


def apart(x):
    return levels(x.detach()) + torch.zeros(3, requires_grad=True)


def broken(x):
    raise KeyError("layer")


def infinite(x):
    return levels(x) / 0
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_networks"
    sys.modules.pop("own_networks", None)


@pytest.mark.parametrize("attribute", ["Small", "small", "make", "levels"])
def test_a_network_is_a_function_a_module_or_what_a_function_returns(module, attribute):
    model = load_own(f"{module}:{attribute}", 3)
    assert model(torch.rand(5, 1, 128, 130)).shape == (5, 3)
    assert not model.training
    folded = fold_batch_norm(model)
    assert not any(parameter.requires_grad for parameter in folded.parameters())


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("gone", "cannot be imported (AttributeError: "),
        ("wide", "returns (2, 2) for two segments, not (2, 3): it must map log-mels"),
        ("fixed", "has no gradient with respect to its input"),
        ("apart", "has no gradient with respect to its input"),
        ("broken", "fails (KeyError: 'layer')"),
        ("infinite", "returns numbers that are not finite"),
    ],
)
def test_what_attacks_cannot_use_is_refused_in_one_sentence(module, attribute, said):
    name = f"{module}:{attribute}"
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name} {said}')}[^\n]*differentiably.$"):
        load_own(name, 3)


def test_a_module_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"^no_module:f cannot be imported \(ModuleNotFoundError"):
        load_own("no_module:f", 3)


def test_an_own_network_is_attacked_by_the_same_suite(module):
    X, y = planted(3, 12)
    table = pd.DataFrame({"segment": range(12), "track": [*"abcdef"] * 2})
    target = make_target(load_own(f"{module}:small", 3), Segments(X, y, table))
    effort = EFFORTS["quick"]._replace(iterations=2, square_queries=2)
    budgets = suite.Budgets((0.01,), (0.01,), 0.01)
    records = suite.evaluate({"own": target}, budgets, effort, 42)
    assert {"noise_linf", "pgd", "worst_case"} <= set(records["attack"])


def test_explanations_refuse_an_own_network(module):
    with pytest.raises(ValueError, match=f"^{module}:small has no layers that are known here"):
        load_networks(RunPaths("any"), [f"{module}:small"], own=False)
