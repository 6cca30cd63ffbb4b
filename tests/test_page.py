import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from PIL import Image

from src.attacks.channels import librosa_log_mel
from src.attacks.waveform import ratio_db
from src.data import corpus as corpora
from src.data import preprocessor
from src.data.loader import file_hash, load_split
from src.explainability.gradcam import explain
from src.models import cnn
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits, softmax
from src.models.runs import load_named
from src.models.trainer import CHECKPOINT_FILE, save_checkpoint
from src.page import pictures, sounds
from src.page.__main__ import main
from src.page.build import build
from src.page.choice import checkpoint_names, clearest_clips
from src.paths import RunPaths
from src.results import write_csv

GENRES = ["blues", "jazz", "rock"]
NETWORKS = ["documented", "robust"]
EPSILONS = [0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
STEPS = (3, 2)
SCREENS = {"phone": (390, 844), "desktop": (1280, 800)}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def music(genre, number):
    """Return two segments of tones over soft noise, other tones in each genre."""
    rng = np.random.default_rng([genre, number])
    time = np.arange(2 * 66_150) / 22_050
    tones = [np.sin(2 * np.pi * hertz * time) for hertz in 220 * (genre + 1) * np.arange(1, 4)]
    beat = np.exp(-3 * (time % (0.3 + 0.1 * genre)))
    return 0.2 * beat * np.sum(tones, axis=0) + 0.01 * rng.normal(size=time.shape)


def write_corpus(folder):
    for k, genre in enumerate(GENRES):
        (folder / genre).mkdir(parents=True)
        for number in range(7):
            sf.write(folder / genre / f"{genre}.{number:05d}.wav", music(k, number), 22_050)
    return folder


def robustness():
    """Return rows as the attacks leave them: two networks, clean and two attacks."""
    rows = [
        {"checkpoint": name, "attack": attack, "eps": eps, "accuracy": level / (1 + 50 * eps)}
        for name, level in zip(NETWORKS, (0.9, 0.8), strict=True)
        for attack in ("clean", "pgd", "noise_linf")
        for eps in ([0] if attack == "clean" else EPSILONS[1:])
    ]
    table = pd.DataFrame(rows).assign(n_segments=20, n_tracks=5)
    low = (table["accuracy"] - 0.1).where(table["attack"] != "noise_linf")
    return table.assign(low=low, high=low + 0.2)


def make_run(run, corpus, name):
    """Process a corpus and write two untrained slim networks and their robustness."""
    paths = RunPaths(run)
    tracks = corpora.audit(corpus, 1)
    corpora.claim_run(paths, corpus, name)
    write_csv(paths.processed / "tracks.csv", tracks)
    last = tracks["track"].str[-1]
    tracks["split"] = last.map({"5": "test", "6": "test", "4": "val"}).fillna("train")
    facts = {"tracks_sha256": file_hash(paths.processed / "tracks.csv")}
    metadata = preprocessor.write_processed(corpus, tracks, paths.processed, facts, 1)
    for seed, network in enumerate(NETWORKS):
        torch.manual_seed(seed)
        facts = {"genres": GENRES, "fingerprint": metadata["fingerprint"]}
        file = paths.models / network / CHECKPOINT_FILE
        save_checkpoint(file, GenreClassifierCNN(len(GENRES)), **facts)
    write_csv(paths.metrics / "robustness.csv", robustness())
    return paths


def write_archive(path):
    """Write log-mels of seven tracks of each genre."""
    names = np.array([f"{genre}.{n:05d}" for genre in GENRES for n in range(7)])
    n, rng = len(names), np.random.default_rng(0)
    np.savez(
        path,
        X=rng.integers(0, 256, (n, 128, corpora.LOG_MEL_FRAMES), dtype=np.uint8),
        exact=np.ones((n, corpora.LOG_MEL_FRAMES), dtype=bool),
        floor_db=np.full(n, -80, dtype=np.float32),
        n_frames=np.full(n, 300),
        names=names,
        y=np.repeat(GENRES, 7),
        genres=np.array(GENRES),
    )
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the paths of a tiny run whose page is built, with everything slim."""
    root = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.paths.ROOT", root)
        patch.setattr(cnn, "WIDTHS", (8, 8, 16, 16))
        patch.setattr(cnn, "DENSE", (32, 32))
        paths = make_run("tiny", write_corpus(root / "corpus"), "synthetic")
        build(paths, per_genre=2, iterations=STEPS)
        yield paths


@pytest.fixture(scope="module")
def silent(tiny):
    """Return the paths of a page without audio and without measured attacks."""
    paths = make_run("silent", write_archive(tiny.processed / "c.npz"), "spectra")
    (paths.metrics / "robustness.csv").unlink()
    build(paths, networks=["robust"], iterations=STEPS)
    return paths


def data(paths):
    text = (paths.page / "data.js").read_text()
    return json.loads(re.fullmatch(r"const PAGE = (.*);\n", text).group(1))


def every_view(told):
    for clip in told["clips"]:
        for network, own in clip["networks"].items():
            for view in own["views"]:
                yield clip, network, view


def named_files(value):
    """Return all strings in nested data that name files."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return {name for item in value for name in named_files(item)}
    is_file = isinstance(value, str) and value.startswith(("pictures/", "sounds/"))
    return {value} if is_file else set()


def clip_row(paths, clip):
    """Return the segment (1, 128, 130) of a shown clip."""
    X, _, table = load_split(paths, "test")
    same = (table["track"] == clip["track"]) & (table["start_s"] == clip["start_s"])
    return np.array(X[np.flatnonzero(same)])


def heard(model, path):
    """Return the probabilities of a sound file, judged by librosa and the network."""
    samples, rate = sf.read(path, dtype="float32")
    assert rate == 22_050
    return softmax(predict_logits(model, librosa_log_mel(samples[None])))[0]


def test_every_genre_network_and_eps_is_shown(tiny):
    told = data(tiny)
    assert told["genres"] == GENRES
    assert [clip["genre"] for clip in told["clips"]] == np.repeat(GENRES, 2).tolist()
    assert len({clip["track"] for clip in told["clips"]}) == len(told["clips"])
    for clip in told["clips"]:
        assert list(clip["networks"]) == NETWORKS
        for own in clip["networks"].values():
            assert [view["eps"] for view in own["views"]] == EPSILONS
            assert [row["snr_db"] for row in own["attacks"]] == list(sounds.SNR_DB)


def test_the_files_of_the_page_are_those_it_names(tiny):
    bars = {"pictures/level.png", "pictures/evidence.png"}
    there = {p.relative_to(tiny.page).as_posix() for p in tiny.page.rglob("*") if p.is_file()}
    fixed = {"index.html", "page.css", "page.js", "data.js"}
    assert there == named_files(data(tiny)) | bars | fixed


def test_what_is_told_at_eps_0_is_what_the_network_says_of_the_clip(tiny):
    for clip, network, view in every_view(data(tiny)):
        if view["eps"] == 0:
            model, x = load_named(tiny, network)[0], clip_row(tiny, clip)
            expected = softmax(predict_logits(model, x))[0]
            np.testing.assert_allclose(view["probabilities"], expected, atol=1e-4)
            assert view["noise"] == view["probabilities"]
            assert set(view["overlap"].values()) <= {1, None}


def test_the_attack_lowers_the_probability_of_the_true_genre(tiny):
    told = data(tiny)
    of_true = {
        (clip["track"], network, view["eps"]): view["probabilities"][GENRES.index(clip["genre"])]
        for clip, network, view in every_view(told)
    }
    for (track, network, eps), probability in of_true.items():
        if eps == 0:
            assert of_true[track, network, 0.1] < probability


def test_pictures_show_spectrograms_within_eps_of_the_clip(tiny):
    for clip, _, view in every_view(data(tiny)):
        with Image.open(tiny.page / view["spectrogram"]) as image:
            assert image.size == (130, 128)
            shown = np.asarray(image)[::-1] / (pictures.COLOURS - 1)
        error = np.abs(shown - clip_row(tiny, clip)[0]).max()
        assert error <= view["eps"] + 0.51 / (pictures.COLOURS - 1)


def test_maps_explain_the_genre_that_they_are_told_to(tiny):
    clip, network, view = next(every_view(data(tiny)))
    model, x = load_named(tiny, network)[0], clip_row(tiny, clip)
    genres = {"true": GENRES.index(clip["genre"]), "predicted": np.argmax(view["probabilities"])}
    for kind, genre in genres.items():
        heat = explain(model, x, np.array([genre]))[0]
        assert (view["maps"][kind] is not None) == heat.any()
        if heat.any():
            with Image.open(tiny.page / view["maps"][kind]) as image:
                shown = np.asarray(image)[::-1] / (pictures.COLOURS - 1)
            np.testing.assert_allclose(shown, heat, atol=0.01)


def test_what_is_told_of_a_sound_is_told_of_its_file(tiny):
    for clip in data(tiny)["clips"][:2]:
        clean, _ = sf.read(tiny.page / clip["sound"], dtype="float32")
        for network, own in clip["networks"].items():
            model = load_named(tiny, network)[0]
            for row in own["attacks"]:
                path = tiny.page / row["attacked"]
                np.testing.assert_allclose(row["probabilities"], heard(model, path), atol=1e-3)
                (reached,) = ratio_db(clean[None], sf.read(path, dtype="float32")[0][None])
                assert reached == pytest.approx(row["reached_db"], abs=0.01)
                assert row["snr_db"] <= reached < row["snr_db"] + 3
            near = own["views"][-1]["nearest"]
            path = tiny.page / near["sound"]
            np.testing.assert_allclose(near["probabilities"], heard(model, path), atol=1e-3)


def test_a_difference_is_as_loud_as_its_clip(tiny):
    clip = data(tiny)["clips"][0]
    clean, _ = sf.read(tiny.page / clip["sound"])
    row = clip["networks"]["robust"]["attacks"][0]
    difference, _ = sf.read(tiny.page / row["difference"])
    change = sf.read(tiny.page / row["attacked"])[0] - clean
    assert np.std(difference) == pytest.approx(
        np.std(change) * 10 ** (row["gain_db"] / 20), rel=0.1
    )
    assert np.abs(difference).max() <= 1
    assert sounds.amplified(clean, clean)[1] == 0


def test_what_a_map_keeps_and_leaves_out_add_up_to_the_clip():
    clip = np.random.default_rng(0).normal(0, 0.1, 66_150).astype(np.float32)
    heat = np.random.default_rng(1).random((128, 130), dtype=np.float32)
    kept = sounds.parts(clip, heat)
    assert set(kept) == {"kept", "left_out"}
    np.testing.assert_allclose(kept["kept"] + kept["left_out"], clip, atol=1e-6)
    assert kept["kept"].std() < clip.std()


def test_the_page_never_names_another_corpus(tiny):
    told = data(tiny)
    assert told["corpus"] == "synthetic"
    for file in ("index.html", "page.js", "data.js"):
        assert "gtzan" not in (tiny.page / file).read_text().lower()


def test_robustness_is_that_of_the_networks_shown(tiny, silent):
    rows = pd.DataFrame(data(tiny)["robustness"]).astype({"low": float, "high": float})
    expected = robustness()[rows.columns]
    pd.testing.assert_frame_equal(rows, expected, check_dtype=False)
    assert data(silent)["robustness"] == []


def test_log_mels_have_a_page_without_sounds(silent):
    told = data(silent)
    assert (told["has_audio"], told["networks"]) == (False, ["robust"])
    assert not (silent.page / "sounds").exists()
    assert len(list((silent.page / "pictures").glob("*.png"))) > len(GENRES) * len(EPSILONS)


def test_a_build_that_fails_leaves_the_page_as_it_was(tiny, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in tiny.page.rglob("*")}
    monkeypatch.setattr("src.page.build.views", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(tiny, iterations=STEPS)
    assert {path: path.stat().st_mtime_ns for path in tiny.page.rglob("*")} == before
    assert not list(tiny.page.parent.glob(".part-*"))


def test_a_new_page_replaces_the_old_one(silent, capsys):
    (silent.page / "pictures" / "old.png").touch()
    main(["--run", "silent", "--networks", "documented"])
    assert not (silent.page / "pictures" / "old.png").exists()
    assert data(silent)["networks"] == ["documented"]
    assert re.fullmatch(
        r"results/page/silent/index\.html: \d+\.\d MB with all files beside it\n",
        capsys.readouterr().out,
    )


def test_clips_are_those_that_networks_are_surest_of():
    y = np.array([0, 0, 0, 0, 2, 2])
    tracks = np.array([*"aabbcc"])
    sure = np.array([0.9, 0.8, 0.3, 0.5, 0.1, 0.2])
    probabilities = np.full((6, 3), 0.4)
    probabilities[np.arange(6), y] = sure
    assert clearest_clips(y, probabilities, tracks, 1).tolist() == [0, 5]
    assert clearest_clips(y, probabilities, tracks, 2).tolist() == [0, 3, 5, 4]
    with pytest.raises(ValueError, match="0 clips of each genre"):
        clearest_clips(y, probabilities, tracks, 0)


def test_a_run_without_networks_is_refused(tiny):
    assert checkpoint_names(tiny) == NETWORKS
    with pytest.raises(FileNotFoundError, match=r"results/models/none has no checkpoint: .*\.$"):
        checkpoint_names(RunPaths("none"))
