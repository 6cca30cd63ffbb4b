import re
import struct

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import soundfile as sf
import torch
import yaml
from conftest import audit, corpus_at

from src import report
from src.attacks.transfer import training_segments
from src.data.corpus import load_tracks
from src.data.preprocessor import FRONT_END, write_processed
from src.data.segments import file_hash, load_metadata, load_split
from src.data.splits import split
from src.models import cnn
from src.models.checkpoints import CHECKPOINT_FILE, load_checkpoint, save_checkpoint
from src.models.cnn import GenreClassifierCNN, count_parameters
from src.models.comparison import check_current
from src.models.evaluation import predict_logits
from src.models.publish import MEASURED, STABILITY, fill_cards, main, publish, write_card
from src.models.recipes import Training
from src.models.runs import load_named, load_networks, result_name
from src.models.unseen import unseen_and_reference, unseen_test
from src.models.zoo import known_tracks, load_pretrained, pretrained_names, read_card
from src.paths import ROOT, RunPaths, pretrained_file
from src.results import read_json, write_csv, write_json

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


def test_the_documented_lines_lead_from_an_audio_file_to_probabilities(write_track):
    folder = write_track("song.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 2 * 66_150))
    blocks = re.findall(r"```python\n(.*?)```", report.render("documentation.md"), re.DOTALL)
    (lines,) = [block for block in blocks if "segment_audio" in block]
    found = {}
    exec(lines.replace("my song.mp3", str(folder / "song.wav")), found)
    assert found["log_mels"].shape == (2, 128, 130)
    assert found["probabilities"].sum(dim=1).tolist() == pytest.approx([1, 1])
    assert found["probabilities"].shape == (2, 10)


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
    with pytest.raises(ValueError, match=r"size mismatch for conv4_1.weight: .* in current model"):
        load_pretrained("documented")


def test_what_is_no_safetensors_file_is_refused(published, edit_card):
    path = pretrained_file("documented")
    for content in (struct.pack("<Q", 10**9) + b"{}", safetensors.torch.save({})):
        path.write_bytes(content)
        edit_card(sha256=file_hash(path))
        with pytest.raises(ValueError, match="cannot be read"):
            load_pretrained("documented")


@pytest.mark.parametrize("name", ["typo", "../models/fake", ""])
def test_an_unknown_name_is_refused_with_those_there_are(published, name):
    with pytest.raises(ValueError, match=r"is not a network .* give one of documented\."):
        load_pretrained(name)


def test_the_error_for_missing_files_names_the_remedy(published):
    remedy = "is missing, .* cloned without it: restore it by `git checkout -- pretrained`"
    pretrained_file("documented", "csv").unlink()
    with pytest.raises(FileNotFoundError, match=rf"^pretrained/documented\.csv {remedy}"):
        known_tracks("documented")
    pretrained_file("documented").unlink()
    with pytest.raises(FileNotFoundError, match=rf"^pretrained/documented\.safetensors {remedy}"):
        load_pretrained("documented")
    pretrained_file("documented", "md").unlink()
    with pytest.raises(FileNotFoundError, match=f"^pretrained {remedy}"):
        load_pretrained("documented")


def test_weights_without_a_card_are_refused(published):
    pretrained_file("documented", "md").unlink()
    with pytest.raises(ValueError, match=r"documented\.md has no readable .*git checkout"):
        load_pretrained("documented")


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
    assert read_card(name)["front_end"] == FRONT_END
    assert set(known_tracks(name)["split"]) == {"train", "val"}
    with torch.inference_mode():
        assert np.isfinite(model(torch.rand(2, 1, 128, 130)).numpy()).all()


# ---------- test tracks that a network has seen


def give_cards(paths, corpus, split, hashes=None):
    """Publish the run's network, then let its card name another corpus and other tracks."""
    publish(paths, "documented")
    known = split[split != ""].rename_axis("track").reset_index(name="split")
    known["sha256"] = known["track"].map(hashes) if hashes else "0" * 64
    file = write_csv(pretrained_file("documented", "csv"), known)
    card = read_card("documented") | {"corpus": corpus, "list_sha256": file_hash(file)}
    write_card("documented", card)


@pytest.mark.parametrize(
    ("corpus", "by_content", "n_left_out"),
    [
        ("gtzan", False, 1),  # another corpus whose tracks have names of GTZAN
        ("synthetic", False, 0),  # the embedded one, whose names mean nothing elsewhere
        ("synthetic", True, 1),
    ],
)
def test_tracks_that_a_network_has_seen_are_left_out(
    published, corpus, by_content, n_left_out, capsys
):
    test = load_split(published, "test")
    tracks = load_tracks(published).set_index("track")["sha256"]
    seen = pd.Series("train", index=[test.tracks[-1]])
    give_cards(published, corpus, seen, tracks.to_dict() if by_content else None)
    loaded = load_networks(published, ["pretrained/documented", "documented"])
    capsys.readouterr()
    unseen = unseen_test(published, loaded)
    assert set(unseen.tracks) == set(test.tracks) - (set(seen.index) if n_left_out else set())
    said = "left out: 1 of 2 test tracks of run fake, which documented had for training or"
    assert (said in capsys.readouterr().out) == bool(n_left_out)


def test_nothing_is_left_out_of_the_run_that_a_network_was_trained_on(published, capsys):
    unseen = unseen_test(published, load_networks(published, ["pretrained/documented"]))
    assert len(unseen) == len(load_split(published, "test"))
    assert "left out" not in capsys.readouterr().out


def test_a_test_set_that_a_network_has_seen_is_refused(published):
    test = load_split(published, "test")
    give_cards(published, "gtzan", pd.Series("val", index=sorted(set(test.tracks))))
    loaded = load_networks(published, ["pretrained/documented"])
    with pytest.raises(ValueError, match="documented had all 2 of 2 test tracks of run fake"):
        unseen_test(published, loaded)


def test_exact_copies_of_known_tracks_are_known(published):
    tracks, train = load_tracks(published), load_split(published, "train").tracks[0]
    copy = tracks["track"] == load_split(published, "test").tracks[0]
    tracks.loc[copy, "sha256"] = tracks.loc[tracks["track"] == train, "sha256"].item()
    file = write_csv(published.processed / "tracks.csv", tracks)
    data = read_json(published.processed / "metadata.json") | {"tracks_sha256": file_hash(file)}
    write_json(published.processed / "metadata.json", data)
    loaded = load_networks(published, ["pretrained/documented"])
    assert not set(tracks.loc[copy, "track"]) & set(unseen_test(published, loaded).tracks)


def test_networks_are_mixed_and_named_for_files(published):
    loaded = load_networks(published, ["documented", "pretrained/documented"])
    assert list(loaded) == ["documented", "pretrained_documented"]
    X = load_split(published, "test").X
    logits = [predict_logits(model, X) for model, _ in loaded.values()]
    np.testing.assert_allclose(*logits, atol=1e-2)
    facts = loaded["pretrained_documented"][1]
    assert facts["key"] == file_hash(pretrained_file("documented"))
    assert facts["recipe"]["epochs"] == 50


def test_a_network_of_other_genres_is_refused(published):
    data = read_json(published.processed / "metadata.json") | {"genres": ["a", "c"]}
    write_json(published.processed / "metadata.json", data)
    with pytest.raises(ValueError, match=r"trained on the genres a, b, run fake has a, c: "):
        load_networks(published, ["pretrained/documented"])


def test_results_of_a_network_that_was_published_again_are_outdated(published):
    _, facts = load_named(published, "pretrained/documented")
    label = result_name("pretrained/documented")
    write_json(published.metrics / "attacks.json", {"checkpoints": {label: facts}})
    check_current(published, facts["fingerprint"])
    save_network(published, output=0.5)
    publish(published, "documented")
    with pytest.raises(ValueError, match=r"attacks.json has pretrained_documented as it was"):
        check_current(published, facts["fingerprint"])


# ---------- results in cards and in the table of networks


def write_tables(folder, corpora=("corpus",)):
    """Write committed tables with the rows of a published network, and of another one.

    The run `fake` has the corpus `corpus`; other runs are named as their corpus. Another run of the
    same corpus has accuracies of 0, before all others.
    """
    tables = {"robustness": [], "audio_attacks": [], "corruptions": [], "explanations": []}
    runs = {"another": "corpus"} | {"fake" if c == "corpus" else c: c for c in corpora}
    for run, corpus in runs.items():
        for checkpoint, value in (("pretrained_documented", 0.25), ("documented", 0.75)):
            row = {"run": run, "corpus": corpus, "checkpoint": checkpoint, "low": 0.2, "high": 0.3}
            row |= {"accuracy": value if run == "fake" else 0.0, "n_segments": 8}
            for attack, eps in (("clean", 0), ("noise_linf", 0.01), ("worst_case", 0.01)):
                attacked = row | {"split": "random", "attack": attack, "eps": eps, "n_tracks": 7}
                tables["robustness"].append(attacked)
            audio = row | {"attack": "pgd_waveform_doubled", "budget_db": 40.0, "codec": "wav16"}
            tables["audio_attacks"].append(audio | {"low": None, "high": None, "n_tracks": 2})
            for corruption, accuracy in (("none", 1.0), ("noise", 0.5), ("mp3", 0.0)):
                corrupted = {"corruption": corruption, "accuracy": accuracy, "n_tracks": 7}
                tables["corruptions"].append(row | {"split": "random"} | corrupted)
            for eps in (0.01, 0.02):
                tables["explanations"].append(
                    row | STABILITY | {"eps": eps, "value": 0.5 - eps, "genre": None}
                )
    for name, rows in tables.items():
        write_csv(folder / "real" / f"{name}.csv", pd.DataFrame(rows))


def test_cards_get_the_results_of_their_network(published, tmp_path):
    write_tables(tmp_path, ("other", "corpus"))
    assert fill_cards(tmp_path) == [pretrained_file("documented", "md")]
    assert fill_cards(tmp_path) == []
    assert fill_cards(tmp_path / "empty") == []  # what the tables lack stays
    results = {row.pop("measured"): row for row in read_card("documented")["results"]}
    counts = {"n_segments": 8, "n_tracks": 7}
    interval = {"low": 0.2, "high": 0.3}
    assert results["clean"] == results["worst case, 0.8 dB"]
    assert results["clean"] == (
        {"unit": "accuracy", "corpus": "corpus", "value": 0.25} | interval | counts
    )
    assert "worst case, 0.4 dB" not in results
    assert results["audio, 40 dB SNR"]["low"] is None
    corruptions = {"value": 0.25, "low": None, "high": None}
    assert results["corruptions"] == {"unit": "accuracy", "corpus": "corpus"} | corruptions | counts
    stability = {"unit": "correlation", "corpus": "corpus", "value": 0.49}
    assert results["explanation stability"] == stability | interval | {"n_segments": 8}
    text = pretrained_file("documented", "md").read_text(encoding="utf-8")
    assert "| explanation stability | 0.49 [0.20, 0.30] | corpus | 8 |\n" in text
    load_pretrained("documented")


def test_what_a_run_measured_on_an_unrounded_checkpoint_is_not_a_result_of_the_network(
    published, tmp_path
):
    write_tables(tmp_path)
    for exact, value in ((True, 0.75), (False, 0.25)):
        card = read_card("documented") | {"exact": exact, "results": []}
        write_card("documented", card)
        facts = {"documented": {"key": card["training"]["key"]}}
        write_json(tmp_path / "real" / card["run"] / "attacks.json", {"checkpoints": facts})
        fill_cards(tmp_path)
        results = {row["measured"]: row for row in read_card("documented")["results"]}
        assert results["clean"]["value"] == value


def test_the_table_of_networks_comes_from_the_cards(published, tmp_path):
    assert report.networks() == ""  # no results yet
    write_tables(tmp_path)
    fill_cards(tmp_path)
    header, _, row, measured_on, counts = report.networks().splitlines()
    titles = ["network", *MEASURED]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == titles
    cells = dict(zip(titles, (cell.strip() for cell in row.split("|")[1:-1]), strict=True))
    assert cells["network"] == "`documented`"
    assert cells["clean"] == "25.0% [20, 30]"
    assert cells["worst case, 0.4 dB"] == "not measured"
    assert cells["corruptions"] == "25.0%"
    assert cells["explanation stability"] == "0.49 [0.20, 0.30]"
    assert measured_on.count(" corpus ") == 6
    assert " 8 (7) " in counts
    assert 'load_pretrained("documented")' in report.render("README.md")
    assert row in report.render("documentation.md")


def test_without_networks_pages_have_no_table(written):
    assert report.networks() == ""
    assert "load_pretrained" not in report.render("README.md")


# ---------- a corpus as a whole


@pytest.fixture
def whole(published):
    """Return the paths of a run of three tracks, all of them test tracks, two of them equal."""
    rng = np.random.default_rng(0)
    samples = [rng.uniform(-0.5, 0.5, 22_050 * 7).astype(np.float32) for _ in range(3)]
    corpus = published.processed.parents[2] / "mine"
    for genre, name, number in (("a", "x", 0), ("a", "y", 1), ("b", "z", 2), ("b", "copy", 2)):
        (corpus / genre).mkdir(parents=True, exist_ok=True)
        sf.write(corpus / genre / f"{name}.wav", samples[number], 22_050)
    paths = RunPaths("mine")
    tracks = audit(corpus)
    file = write_csv(paths.processed / "tracks.csv", tracks)
    tracks["split"] = split(tracks, "all", "", 42)
    facts = {"corpus": "mine", "run": "mine", "split": "all", "tracks_sha256": file_hash(file)}
    write_processed(corpus_at(corpus), tracks, paths.processed, facts)
    return paths


def test_every_track_is_a_test_track_once(whole):
    assert sorted(set(load_split(whole, "test").tracks)) == ["a.x", "a.y", "b.copy"]
    assert load_metadata(whole)["n_tracks"] == {"train": 0, "val": 0, "test": 3}


def test_a_whole_corpus_is_not_for_training(whole):
    for part in ("train", "val"):
        with pytest.raises(ValueError, match=f"Run mine has no segments for {part}: with SPLIT"):
            load_split(whole, part)


def test_a_whole_corpus_gives_some_tracks_as_reference(whole):
    loaded = load_networks(whole, ["pretrained/documented"])
    test, reference = unseen_and_reference(whole, loaded)
    assert len(set(reference.tracks)) == 1
    assert set(test.tracks) | set(reference.tracks) == {"a.x", "a.y", "b.copy"}
    assert not set(test.tracks) & set(reference.tracks)


def test_universal_perturbations_are_learnt_on_other_tracks_or_left_out(whole, capsys):
    loaded = load_networks(whole, ["pretrained/documented"])
    test = unseen_test(whole, loaded)
    assert len(training_segments(whole, loaded, test, 5, 0)) > 0
    assert "universal" not in capsys.readouterr().out
    alone = test.take(np.flatnonzero(test.tracks == test.tracks[0]))
    assert len(training_segments(whole, loaded, alone, 5, 0)) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_the_training_set_is_the_reference_where_there_is_one(published):
    test, reference = unseen_and_reference(published, load_networks(published, ["documented"]))
    assert reference.table["split"].unique() == ["train"]
    assert test.table["split"].unique() == ["test"]


def test_files_of_networks_lie_together():
    names = {path.stem for path in (ROOT / "pretrained").glob("*") if path.suffix != ".md"}
    assert names == set(COMMITTED)
