import json
import struct

import numpy as np
import pytest
import torch
import yaml

from src.data.segments import file_hash, load_metadata
from src.models import cnn
from src.models.checkpoints import CHECKPOINT_FILE, load_checkpoint, save_checkpoint
from src.models.cnn import GenreClassifierCNN, count_parameters
from src.models.publish import main, publish, write_card
from src.models.recipes import Training
from src.models.zoo import known_tracks, load_pretrained, pretrained_names, read_card
from src.paths import ROOT, pretrained_file

COMMITTED = pretrained_names()
LARGEST = 3_200_000  # bytes of weights


def save_network(paths, name="documented", **weights):
    """Write the checkpoint of a run as training does, with some weights replaced."""
    data = load_metadata(paths)
    torch.manual_seed(0)
    model = GenreClassifierCNN(len(data["genres"])).eval()
    for layer, values in weights.items():
        model.get_submodule(layer).weight.data[:] = values
    training = Training(name, {}, "", 42, data["genres"], data["fingerprint"])
    facts = training.facts() | {"epoch": 3, "key": "k"}
    return save_checkpoint(paths.models / name / CHECKPOINT_FILE, model, **facts)


@pytest.fixture
def published(written, monkeypatch):
    """Return the paths of a run whose untrained network `documented` is published."""
    monkeypatch.setattr(cnn, "WIDTHS", (4, 4, 4, 4))
    monkeypatch.setattr(cnn, "DENSE", (8, 8))
    save_network(written)
    assert main(["fake", "documented"]) == 0
    return written


@pytest.fixture
def edit_card(published):
    """Return a function that changes facts of the card."""

    def edit(**facts):
        write_card("documented", read_card("documented") | facts)

    return edit


def test_a_published_network_is_that_of_the_checkpoint_in_float16(published):
    trained, _ = load_checkpoint(published.models / "documented" / CHECKPOINT_FILE)
    loaded = load_pretrained("documented")
    assert not loaded.training
    for (name, before), after in zip(
        trained.state_dict().items(), loaded.state_dict().values(), strict=True
    ):
        assert torch.equal(before.half().to(before.dtype), after), name


def test_a_card_has_the_facts_that_results_depend_on(published):
    data, card = load_metadata(published), read_card("documented")
    for fact in ("corpus", "run", "split", "fingerprint", "front_end", "n_tracks"):
        assert card[fact] == data[fact], fact
    assert card["genres"] == ["a", "b"]
    assert card["sha256"] == file_hash(pretrained_file("documented"))
    assert card["training"]["recipe"]["epochs"] == 50
    assert card["test"]["track_accuracy"]["n_tracks"] == data["n_tracks"]["test"]
    text = pretrained_file("documented", "md").read_text(encoding="utf-8")
    assert 'load_pretrained("documented")' in text


def test_a_card_lists_the_tracks_of_training_and_validation(published):
    known = known_tracks("documented")
    counts = load_metadata(published)["n_tracks"]
    assert known["split"].value_counts().to_dict() == {k: counts[k] for k in ("train", "val")}
    assert (known["sha256"].str.len() == 64).all()


def test_publishing_again_writes_the_same_bytes(published):
    files = [pretrained_file("documented", kind) for kind in ("safetensors", "csv", "md")]
    before = [file.read_bytes() for file in files]
    publish(published, "documented")
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("at", [0, 9, 200, -1])
def test_a_changed_byte_is_refused(published, at):
    path = pretrained_file("documented")
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"has the SHA-256 .*, its card states .*git checkout"):
        load_pretrained("documented")


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"genres": ["b", "a"]}, "other genres"),
        ({"genres": "a"}, "lacks genres"),
        ({"fingerprint": "f"}, "another fingerprint"),
        ({"sha256": "0" * 64}, "its card states 000000000000"),
    ],
)
def test_an_edited_card_is_refused(published, facts, found):
    path = pretrained_file("documented", "md")
    _, front, text = path.read_text(encoding="utf-8").split("---\n", 2)
    edited = yaml.safe_dump(yaml.safe_load(front) | facts)
    path.write_text(f"---\n{edited}---\n{text}", encoding="utf-8")
    with pytest.raises(ValueError, match=found):
        load_pretrained("documented")


@pytest.mark.parametrize("content", [b"", b"text", b"---\n[1\n---\n", b"---\n1\n---\n", b"\xff"])
def test_a_card_without_front_matter_is_refused(published, content):
    pretrained_file("documented", "md").write_bytes(content)
    with pytest.raises(ValueError, match=r"documented\.md (has no readable|lacks)"):
        read_card("documented")


def test_weights_of_another_architecture_are_refused(published, monkeypatch):
    monkeypatch.setattr(cnn, "WIDTHS", (4, 4, 4, 8))
    with pytest.raises(ValueError, match=r"has conv4_1.weight of shape .*4.*, the network"):
        load_pretrained("documented")


def test_what_is_no_safetensors_file_is_refused(published, edit_card):
    path = pretrained_file("documented")
    path.write_bytes(struct.pack("<Q", 10**9) + json.dumps({}).encode())
    edit_card(sha256=file_hash(path))
    with pytest.raises(ValueError, match="cannot be read"):
        load_pretrained("documented")


@pytest.mark.parametrize("name", ["typo", "../models/fake", ""])
def test_an_unknown_name_is_refused_with_those_there_are(published, name):
    with pytest.raises(ValueError, match=r"is not a network .* give one of documented\."):
        load_pretrained(name)


def test_an_edited_list_of_tracks_is_refused(published):
    path = pretrained_file("documented", "csv")
    path.write_text("track,split,sha256\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"documented\.csv has the SHA-256"):
        known_tracks("documented")


def test_a_checkpoint_of_other_arrays_is_not_published(written):
    path = save_network(written)
    content = torch.load(path, weights_only=True) | {"fingerprint": "f" * 64}
    torch.save(content, path)
    with pytest.raises(SystemExit, match="was trained on data ffffffffffff"):
        main(["fake", "documented"])
    assert pretrained_names() == []


@pytest.mark.parametrize("value", [1e5, -1e5])
def test_weights_beyond_float16_are_not_published(written, value):
    save_network(written, dense1=value)
    with pytest.raises(ValueError, match=r"dense1.weight exceed 65504"):
        publish(written, "documented")
    assert pretrained_names() == []


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_network_is_whole(name):
    model, path = load_pretrained(name), pretrained_file(name)
    assert count_parameters(model) == read_card(name)["n_parameters"] == 1_440_618
    assert path.stat().st_size < LARGEST
    assert set(known_tracks(name)["split"]) == {"train", "val"}
    with torch.inference_mode():
        assert np.isfinite(model(torch.rand(2, 1, 128, 130)).numpy()).all()


def test_files_of_networks_lie_together():
    names = {path.stem for path in (ROOT / "pretrained").glob("*") if path.suffix != ".md"}
    assert names == set(COMMITTED)
