import re
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import audit, corpus_at, planted

from src import evaluate_own
from src.attacks import corruptions, suite
from src.attacks.adversarial import Search
from src.attacks.audio import load_samples, make_audio_target
from src.attacks.codecs import CODECS, file_logits
from src.attacks.corruptions import CORRUPTIONS
from src.attacks.flags import flag
from src.attacks.records import make_target
from src.attacks.waveform import attack_waveform, make_waveform_classifier
from src.data.corpus import claim_run
from src.data.features import SAMPLE_RATE, SEGMENT_SAMPLES
from src.data.preprocessor import write_processed
from src.data.segments import Segments, file_hash, load_split
from src.data.splits import split
from src.effort import EFFORTS
from src.models.cnn import fold_batch_norm
from src.models.own import load_own
from src.models.runs import load_networks
from src.paths import RunPaths
from src.results import read_json, write_csv, write_json

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


def unloaded():
    return torch.load("no/where.pt")


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


def softened(x):
    return levels(x).softmax(dim=1)


def tone(samples, scale=1e-3):
    part = samples.clamp(-1, 1) @ torch.sin(torch.arange(66150) * (2 * torch.pi * 300 / 66150))
    return scale * torch.stack([part, -part], dim=1)


def saturated(samples):
    return tone(samples, 1e3)


def swapped(samples):
    return -tone(samples)


for function in (tone, saturated, swapped):
    function.takes_samples = True
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
        ("wide", "returns (2, 2) for two segments, not (2, 3): it must map log-mels"),
        ("fixed", "has no gradient with respect to its input"),
        ("apart", "has no gradient with respect to its input"),
        ("broken", "fails (KeyError: 'layer')"),
        ("unloaded", "fails when called (FileNotFoundError: "),
        ("infinite", "returns numbers that are not finite"),
        ("softened", "returns probabilities, behind which gradients vanish"),
    ],
)
def test_what_attacks_cannot_use_is_refused_in_one_sentence(module, attribute, said):
    name = f"{module}:{attribute}"
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name} {said}')}[^\n]*differentiably.$"):
        load_own(name, 3)


@pytest.mark.parametrize(
    ("name", "error"), [("own_networks:gone", "AttributeError"), ("no_module:f", "ModuleNotFound")]
)
def test_a_name_that_is_not_there_is_refused(module, name, error):
    said = rf"^{name} cannot be imported \({error}[^\n]*below the repository's root[^\n]*in it\.$"
    with pytest.raises(ValueError, match=said):
        load_own(name, 3)


def test_what_is_no_network_is_refused(module):
    said = f"^{module}:torch is no function and no network but module: [^\n]*in it\\.$"
    with pytest.raises(ValueError, match=said):
        load_own(f"{module}:torch", 3)


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


# ---------- a network on samples, whose robustness is known

TIMES = np.arange(SEGMENT_SAMPLES) / SAMPLE_RATE
FLIPPED_AT_DB = [39.0, 41.0, 45.0]  # largest SNR that flips: the classes differ in a tone's sign
SIZES = "N_AUDIO=6 N_CORRUPTED=2 AUDIO_ITERATIONS=10 SNR_DB=30,40,50".split()


@pytest.fixture
def tones(module, write_track, monkeypatch, tmp_path):
    """Return the paths of a run of six tracks of one segment, all of them test tracks."""
    monkeypatch.setattr("src.paths.ROOT", tmp_path)
    few = {name: CORRUPTIONS[name] for name in ("none", "clipping")}
    monkeypatch.setattr(corruptions, "CORRUPTIONS", few)
    monkeypatch.setattr(evaluate_own.audio, "MASKING_MARGINS_DB", (0,))
    tone = np.sin(2 * np.pi * 100 * TIMES)
    for number, snr_db in enumerate(FLIPPED_AT_DB):
        carrier = 0.4 * np.sin(2 * np.pi * (440 + number) * TIMES)
        added = 0.4 * 10 ** (-snr_db / 20) * tone
        corpus = write_track(f"a/{number}.wav", carrier + added)
        write_track(f"b/{number}.wav", carrier - added)
    paths, tracks = RunPaths("tones"), audit(corpus)
    file = write_csv(paths.processed / "tracks.csv", tracks)
    claim_run(paths, corpus_at(corpus))
    facts = {"corpus": "corpus", "run": "tones", "split": "all", "tracks_sha256": file_hash(file)}
    tracks = tracks.assign(split=split(tracks, "all", "", 42))
    write_processed(corpus_at(corpus), tracks, paths.processed, facts)
    return paths


def test_a_network_on_samples_is_evaluated_on_audio(module, tones, capsys):
    assert evaluate_own.main(["RUN=tones", f"CHECKPOINTS={module}:tone", *SIZES]) == 0
    printed = capsys.readouterr().out
    assert "left out: the suite of attacks on log-mels" in printed
    assert "audio_steps_matter" in printed
    assert "zero_gradients" in printed
    table = pd.read_csv(tones.metrics / "audio" / "audio_attacks.csv")
    assert not table["attack"].str.contains("spectrogram|equalizer").any()
    wav = table[table["codec"] == "wav16"].set_index(["attack", "budget_db"])["accuracy"]
    assert wav.loc["clean"].tolist() == [1]
    assert wav.loc["noise"].tolist() == [1, 1, 1]
    assert wav.loc["pgd_waveform"].to_dict() == {50: 1, 40: pytest.approx(1 / 3), 30: 0}
    assert set(table.loc[table["attack"] == "pgd_waveform", "codec"]) == set(CODECS)
    corrupted = pd.read_csv(tones.metrics / "audio" / "corruptions.csv").set_index("corruption")
    assert corrupted.loc["none", "accuracy"] == 1
    assert len(corrupted) == 1 + len(CORRUPTIONS["clipping"].severities)
    flags = read_json(tones.metrics / "audio" / "audio_attacks.json")["flags"]
    assert {flag["flag"]: flag["raised"] for flag in flags} == {
        "zero_gradients": False,
        "audio_steps_matter": False,
    }


def test_a_network_on_samples_without_a_correct_segment_is_refused_before_the_attacks(
    module, tones, monkeypatch
):
    monkeypatch.setattr(evaluate_own.audio, "evaluate", None)
    with pytest.raises(SystemExit, match=r"^own_networks_swapped predicts 0 of 6 segments corr"):
        evaluate_own.main(["RUN=tones", f"CHECKPOINTS={module}:swapped", *SIZES])


def test_a_network_on_samples_that_masks_its_gradient_raises_a_flag(module, tones):
    data = load_samples(tones, load_split(tones, "test"))
    target = make_audio_target(load_own(f"{module}:saturated", 2), data)
    flag = evaluate_own.gradient_flag("own", target)
    assert (flag["raised"], flag["found"]) == (True, ["6 segments without gradient"])


def test_a_network_on_samples_is_attacked_at_its_own_level(module, tones):
    """The network clips at full scale: at unit level it would not have its gradient."""
    target = make_audio_target(
        load_own(f"{module}:tone", 2), load_samples(tones, load_split(tones, "test"))
    )
    classifier = make_waveform_classifier(target.model)
    samples, y = target.data.samples, target.data.y
    for snr_db, flips in ((40.5, 4), (41.5, 2)):
        attacked = attack_waveform("pgd_waveform", classifier, samples, y, snr_db, Search(30, 1))
        assert (file_logits(target.model, attacked).argmax(axis=1) != y).sum() == flips


def test_a_network_on_samples_is_not_attacked_as_log_mels(module, tones):
    with pytest.raises(ValueError, match=rf"^{module}:tone takes samples.*`make evaluate MODEL="):
        load_networks(tones, [f"{module}:tone"])


def test_a_network_on_samples_needs_audio(module, tones):
    source = read_json(tones.processed / "source.json")
    source["path"] = "log_mels.npz"
    write_json(tones.processed / "source.json", source)
    with pytest.raises(SystemExit, match=r"^Run tones has log-mels only, and a network on samples"):
        evaluate_own.main(["RUN=tones", f"CHECKPOINTS={module}:tone"])


def test_networks_on_log_mels_are_evaluated_by_notebook_4(module, tones, monkeypatch, capsys):
    passed, row = [], {"checkpoint": "wide", "n_segments": 9, "low": 0.2, "high": 0.4}
    rows = [row | {"attack": "pgd", "eps": e, "eps_db": 80 * e, "accuracy": e} for e in (0.01, 0.3)]
    write_csv(tones.metrics / "robustness.csv", pd.DataFrame(rows))
    for file, name in (("attacks", "iterations_matter"), ("audio_attacks", "audio_steps_matter")):
        raised = {"checkpoint": "wide"} | flag(name, [f"3 points more in {file}"], True)
        write_json(tones.metrics / f"{file}.json", {"flags": [raised]})
    monkeypatch.setattr(evaluate_own.pipeline, "main", lambda words: passed.append(words) or 0)
    words = ["RUN=tones", f"CHECKPOINTS={module}:wide"]
    assert evaluate_own.main(words) == 0
    assert passed == [["attack", *words]]
    printed = capsys.readouterr().out
    assert "1% [20, 40]" in printed
    assert "30%" not in printed
    for file, remedy in (("attacks", "increase iterations"), ("audio_attacks", "audio_iterations")):
        assert f"wide: 3 points more in {file}" in printed
        assert remedy in printed
