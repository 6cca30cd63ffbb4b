import json
import re
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from app import sounds
from app.__main__ import main
from app.build import build, robustness_rows
from app.selection import add_own, checkpoint_names, choose_segments, easiest
from app.views import COLOURS
from src import labels
from src.attacks.codecs import librosa_log_mel
from src.attacks.waveform import ratio_db
from src.data import log_mel_archive, preprocessor
from src.data.corpus import AudioFolder, LogMelArchive, audit_table, claim_run
from src.data.segments import SegmentDataset, file_hash, load_split
from src.explainability.gradcam import explain
from src.models import cnn
from src.models.evaluation import predict_logits, softmax
from src.models.recipes import DOCUMENTED, Training
from src.models.runs import load_named, load_networks
from src.models.trainer import fit
from src.paths import ROOT, RunPaths
from src.results import read_json, write_csv, write_json

GENRES = ["blues", "jazz", "rock"]
MODELS = ["documented", "robust"]
EPSILONS = [0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
STEPS = (3, 2)
RECIPE = DOCUMENTED | {"epochs": 25, "patience": 25, "batch_size": 4, "lr": 0.005}
SCREENS = {"phone": (390, 844), "desktop": (1280, 800)}
PLAYING = "player => !player.paused && player.currentTime > 0.2"
CONTROLS = {"genre", "segment", "model", "eps", "show-map", "explains", "attack"}
WIDER = """() => [...document.querySelectorAll("body *")]
  .filter((e) => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1)
  .map((e) => e.outerHTML.slice(0, 80))"""

every_screen = pytest.mark.parametrize("screen", SCREENS)
every_scheme = pytest.mark.parametrize("scheme", ["light", "dark"])


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
    """Return rows of `robustness.csv`: two models, clean and two attacks."""
    rows = [
        {"checkpoint": name, "attack": attack, "eps": eps, "accuracy": level / (1 + 50 * eps)}
        for name, level in zip(MODELS, (0.9, 0.8), strict=True)
        for attack in ("clean", "pgd", "noise_linf")
        for eps in ([0] if attack == "clean" else EPSILONS[1:])
    ]
    table = pd.DataFrame(rows).assign(n_segments=20, n_tracks=5)
    low = (table["accuracy"] - 0.1).where(table["attack"] != "noise_linf")
    return table.assign(low=low, high=low + 0.2)


def make_run(run, corpus):
    """Process a corpus and write two slim networks and their robustness."""
    paths = RunPaths(run)
    tracks = audit_table(corpus, 1)
    claim_run(paths, corpus)
    write_csv(paths.processed / "tracks.csv", tracks)
    last = tracks["track"].str[-1]
    tracks["split"] = last.map({"5": "test", "6": "test", "4": "val"}).fillna("train")
    facts = {"corpus": corpus.name, "tracks_sha256": file_hash(paths.processed / "tracks.csv")}
    metadata = preprocessor.write_processed(corpus, tracks, paths.processed, facts, 1)
    splits = (load_split(paths, part) for part in ("train", "val"))
    train, val = (SegmentDataset(data.X, data.y) for data in splits)
    for seed, model in enumerate(MODELS):
        training = Training("documented", RECIPE, "", seed, GENRES, metadata["fingerprint"])
        fit(train, val, paths.models / model, training)
    attacked = {name: {"key": load_named(paths, name)[1]["key"]} for name in MODELS}
    write_json(paths.metrics / "attacks.json", {"checkpoints": attacked})
    write_csv(paths.metrics / "robustness.csv", robustness())
    return paths


def write_archive(path):
    """Write log-mels of seven tracks of each genre."""
    names = [f"{genre}.{n:05d}" for genre in GENRES for n in range(7)]
    n, frames = len(names), log_mel_archive.LOG_MEL_FRAMES
    X = np.random.default_rng(0).integers(0, 256, (n, 128, frames), dtype=np.uint8)
    lengths = {"floor_db": np.full(n, -80, dtype=np.float32), "n_frames": np.full(n, 300)}
    genres = {"names": np.array(names), "y": np.repeat(GENRES, 7), "genres": np.array(GENRES)}
    np.savez(path, X=X, exact=np.ones((n, frames), dtype=bool), **lengths, **genres)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the paths of a tiny run whose page is built."""
    root = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.paths.ROOT", root)
        patch.setattr(cnn, "WIDTHS", (8, 8, 16, 16))
        patch.setattr(cnn, "DENSE", (32, 32))
        paths = make_run("tiny", AudioFolder(write_corpus(root / "corpus"), "synthetic"))
        build(paths, per_genre=2, iterations=STEPS)
        yield paths


@pytest.fixture(scope="module")
def silent(tiny):
    """Return the paths of a page without audio and without measured attacks."""
    archive = write_archive(tiny.processed / "c.npz")
    paths = make_run("silent", LogMelArchive(archive, "spectra"))
    (paths.metrics / "attacks.json").unlink()
    build(paths, checkpoints=["robust"], iterations=STEPS)
    return paths


def data(paths):
    text = (paths.page / "data.js").read_text()
    return json.loads(re.fullmatch(r"const PAGE = (.*);\n", text).group(1))


def every_view(page):
    for segment in page["segments"]:
        for model, own in segment["models"].items():
            for view in own["views"]:
                yield segment, model, view


def named_files(value):
    """Return all strings in nested data that name files."""
    return set(re.findall(r'"((?:pictures|sounds)/[^"]+)"', json.dumps(value)))


def shown_in(path):
    """Return the levels (128, 130) of a picture of the page."""
    with Image.open(path) as image:
        assert image.size == (130, 128)
        return np.asarray(image)[::-1] / (COLOURS - 1)


def spectrogram(paths, segment):
    """Return the spectrogram (1, 128, 130) of a segment of the page."""
    test = load_split(paths, "test")
    same = (test.table[["track", "start_s"]] == [segment["track"], segment["start_s"]]).all(axis=1)
    return np.array(test.X[np.flatnonzero(same)])


def predict_file(model, path):
    """Return the probabilities of a sound file, through librosa."""
    samples, rate = sf.read(path, dtype="float32")
    assert rate == 22_050
    return softmax(predict_logits(model, librosa_log_mel(samples[None])))[0]


def test_src_and_benchmarks_never_import_the_page():
    files = [file for folder in ("src", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    imports = re.compile(r"^\s*(from|import) app\b", re.MULTILINE)
    assert files
    assert [file.name for file in files if imports.search(file.read_text())] == []


def test_every_genre_model_and_eps_is_shown(tiny):
    page = data(tiny)
    assert page["genres"] == GENRES
    assert [segment["genre"] for segment in page["segments"]] == np.repeat(GENRES, 2).tolist()
    assert len({segment["track"] for segment in page["segments"]}) == len(page["segments"])
    for segment in page["segments"]:
        assert list(segment["models"]) == MODELS
        for own in segment["models"].values():
            assert [view["eps"] for view in own["views"]] == EPSILONS
            assert len(own["resynthesized"]) == len(EPSILONS)
            assert [row["snr_db"] for row in own["attacks"]] == list(sounds.SNR_DB)


def test_the_files_of_the_page_are_those_it_names(tiny):
    bars = {"pictures/level.png", "pictures/evidence.png"}
    there = {p.relative_to(tiny.page).as_posix() for p in tiny.page.rglob("*") if p.is_file()}
    fixed = {"index.html", "page.css", "page.js", "data.js"}
    assert there == named_files(data(tiny)) | bars | fixed


def test_at_eps_0_the_page_has_the_prediction_of_the_clean_segment(tiny):
    for segment, name, view in every_view(data(tiny)):
        if view["eps"] == 0:
            model, x = load_named(tiny, name)[0], spectrogram(tiny, segment)
            expected = softmax(predict_logits(model, x))[0]
            np.testing.assert_allclose(view["probabilities"], expected, atol=1e-4)
            assert view["noise"] == view["probabilities"]
            assert set(view["overlap"].values()) <= {1, None}


def test_the_attack_lowers_the_probability_of_the_true_genre_more_than_noise(tiny):
    rows = [
        (model, view["eps"], view[kind][GENRES.index(segment["genre"])], kind)
        for segment, model, view in every_view(data(tiny))
        for kind in ("probabilities", "noise")
    ]
    table = pd.DataFrame(rows, columns=["model", "eps", "probability", "kind"])
    mean = table.groupby(["kind", "model", "eps"])["probability"].mean().unstack("eps")
    attacked, noisy = mean.loc["probabilities"], mean.loc["noise"]
    assert (attacked[0] > attacked[0.01]).all()
    assert (attacked[0.01] > attacked[0.1]).all()
    assert (attacked[0.1] < noisy[0.1] - 0.02).all()


def test_pictures_show_spectrograms_within_eps_of_the_segment(tiny):
    for segment, _, view in every_view(data(tiny)):
        error = np.abs(shown_in(tiny.page / view["spectrogram"]) - spectrogram(tiny, segment)[0])
        assert error.max() <= view["eps"] + 0.51 / (COLOURS - 1)


def test_maps_explain_the_genre_that_they_name(tiny):
    segment, name, view = next(every_view(data(tiny)))
    model, x = load_named(tiny, name)[0], spectrogram(tiny, segment)
    genres = {"true": GENRES.index(segment["genre"]), "predicted": np.argmax(view["probabilities"])}
    for kind, genre in genres.items():
        heat = explain(model, x, np.array([genre]))[0]
        assert (view["maps"][kind] is not None) == heat.any()
        if heat.any():
            np.testing.assert_allclose(shown_in(tiny.page / view["maps"][kind]), heat, atol=0.01)


def test_probabilities_of_a_sound_are_those_of_its_file(tiny):
    for segment in data(tiny)["segments"][:2]:
        clean, _ = sf.read(tiny.page / segment["sound"], dtype="float32")
        for name, own in segment["models"].items():
            model = load_named(tiny, name)[0]
            for row in own["attacks"]:
                path = tiny.page / row["adversarial"]
                found = predict_file(model, path)
                np.testing.assert_allclose(row["probabilities"], found, atol=1e-3)
                (reached,) = ratio_db(clean[None], sf.read(path, dtype="float32")[0][None])
                assert reached == pytest.approx(row["reached_db"], abs=0.01)
                assert row["snr_db"] <= reached < row["snr_db"] + 3
            sound = own["resynthesized"][-1]
            found = predict_file(model, tiny.page / sound["sound"])
            np.testing.assert_allclose(sound["probabilities"], found, atol=1e-3)


def test_a_difference_is_as_loud_as_its_segment(tiny):
    segment = data(tiny)["segments"][0]
    clean, _ = sf.read(tiny.page / segment["sound"])
    row = segment["models"]["robust"]["attacks"][0]
    difference, _ = sf.read(tiny.page / row["difference"])
    change = sf.read(tiny.page / row["adversarial"])[0] - clean
    louder = change * 10 ** (row["gain_db"] / 20)
    assert np.std(difference) == pytest.approx(np.std(louder), rel=0.1)
    assert np.abs(difference).max() <= 1
    assert sounds.amplified(clean, clean)[1] == 0


def test_the_parts_that_a_map_keeps_and_removes_add_up_to_the_segment():
    clip = np.random.default_rng(0).normal(0, 0.1, 66_150).astype(np.float32)
    heat = np.random.default_rng(1).random((128, 130), dtype=np.float32)
    found = sounds.parts(clip, heat)
    assert set(found) == {"kept", "removed"}
    np.testing.assert_allclose(found["kept"] + found["removed"], clip, atol=1e-6)
    assert found["kept"].std() < clip.std()
    assert sounds.parts(clip, 0 * heat) == {}


def test_the_page_never_names_another_corpus(tiny):
    page = data(tiny)
    assert (page["corpus"], page["embedded"]) == ("synthetic", True)
    texts = [(tiny.page / name).read_text() for name in ("index.html", "page.js", "data.js")]
    assert "gtzan" not in "".join(texts).lower()


def test_robustness_is_that_of_the_models_shown(tiny, silent):
    page = data(tiny)
    rows = pd.DataFrame(page["robustness"]).astype({"low": float, "high": float})
    expected = robustness()[rows.columns]
    pd.testing.assert_frame_equal(rows, expected, check_dtype=False)
    assert page["attacks"] == [[k, labels.ATTACKS[k].label] for k in ("pgd", "noise_linf")]
    assert (data(silent)["robustness"], data(silent)["attacks"]) == ([], [])


def test_a_model_trained_again_after_the_attack_has_no_robustness(tiny, capsys):
    attacked = read_json(tiny.metrics / "attacks.json")["checkpoints"]
    keys = {name: facts["key"] for name, facts in attacked.items()} | {"robust": "another"}
    assert {row["checkpoint"] for row in robustness_rows(tiny, keys)} == {"documented"}
    assert capsys.readouterr().out.startswith("no chart of robust, trained again after the attack")


def test_log_mels_have_a_page_without_sounds(silent):
    page = data(silent)
    assert (page["has_audio"], page["models"]) == (False, ["robust"])
    assert not page["embedded"]
    assert not (silent.page / "sounds").exists()
    assert len(list((silent.page / "pictures").glob("*.png"))) > len(GENRES) * len(EPSILONS)


def test_a_build_that_fails_leaves_the_page_as_it_was(tiny, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in tiny.page.rglob("*")}
    monkeypatch.setattr("app.build.views", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(tiny, iterations=STEPS)
    assert {path: path.stat().st_mtime_ns for path in tiny.page.rglob("*")} == before
    assert not list(tiny.page.parent.glob(".part-*"))


def test_a_run_without_checkpoints_ends_in_one_sentence(tiny):
    assert checkpoint_names(tiny) == MODELS
    with pytest.raises(
        SystemExit, match=r"/nosuch has no checkpoint: .* run `make train` first.*\.$"
    ):
        main(["--run", "nosuch"])


def test_a_new_page_replaces_the_old_one(silent, capsys, monkeypatch):
    monkeypatch.setattr("app.__main__.build", partial(build, iterations=STEPS))
    (silent.page / "pictures" / "old.png").touch()
    main(["--run", "silent", "--checkpoints", "documented"])
    assert not (silent.page / "pictures" / "old.png").exists()
    assert data(silent)["models"] == ["documented"]
    said = capsys.readouterr().out
    assert re.fullmatch(r"results/page/silent/index\.html: \d+\.\d MB in all\n", said)


def test_segments_are_those_with_the_most_probable_true_genre():
    y, tracks = np.array([0, 0, 0, 0, 2, 2]), np.array([*"aabbcc"])
    probabilities = np.full((6, 3), 0.4)
    probabilities[np.arange(6), y] = 0.9, 0.8, 0.3, 0.5, 0.1, 0.2
    assert easiest(y, probabilities, tracks, 1).tolist() == [0, 5]
    assert easiest(y, probabilities, tracks, 2).tolist() == [0, 3, 5, 4]
    with pytest.raises(ValueError, match="--per-genre 0"):
        easiest(y, probabilities, tracks, 0)


def test_own_tracks_are_shown_after_those_of_the_corpus(tiny, silent, tmp_path):
    sf.write(tmp_path / "my song.flac", np.tile(music(1, 9), 2), 22_050)
    loaded = load_networks(tiny, MODELS)
    shown = choose_segments(tiny, loaded, 1)
    more = add_own(tiny, shown, loaded, [tmp_path / "my song.flac"])
    assert more.table["own"].tolist() == [False] * 3 + [True]
    assert more.table.iloc[-1][["track", "start_s"]].tolist() == ["my song.flac", 6]
    assert np.allclose(librosa_log_mel(more.samples), more.X, atol=1e-4)
    p = np.mean([softmax(predict_logits(model, more.X)) for model, _ in loaded.values()], axis=0)
    assert more.y[-1] == p[-1].argmax()
    assert more.table["genre"].iloc[-1] == GENRES[more.y[-1]]
    with pytest.raises(ValueError, match=r"^The corpus of run silent has .* no audio"):
        add_own(silent, replace(shown, samples=None), loaded, [tmp_path / "my song.flac"])


@pytest.fixture
def visit(browser):
    """Return a function that opens a page from disk; no errors and no requests may come of it."""
    said, contexts = [], []

    def failed(request):
        if request.failure != "net::ERR_ABORTED":  # a sound given up for another
            said.append(f"{request.failure}: {request.url}")

    def visit(paths, screen="desktop", scheme="light"):
        size = dict(zip(("width", "height"), SCREENS[screen], strict=True))
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("requestfailed", failed)
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or said.append(r.url))
        page.goto((paths.page / "index.html").as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert said == []


def chosen(page, paths):
    """Return the segment, the view and the model's data that the controls select."""
    segment = data(paths)["segments"][int(page.input_value("#segment"))]
    own = segment["models"][page.input_value("#model")]
    return segment, own["views"][int(page.input_value("#eps"))], own


def percent(share):
    return f"{int(share * 100 + 0.5)}%"


def named(probabilities):
    return f"{GENRES[probabilities.index(max(probabilities))]} ({percent(max(probabilities))})"


def check_shown(page, paths):
    """Compare all that the page shows with the data behind the controls."""
    segment, view, own = chosen(page, paths)
    assert page.input_value("#genre") == segment["genre"]
    assert page.inner_text("#answer strong") == named(view["probabilities"])
    before = f"Without attack: {named(own['views'][0]['probabilities'])}."
    assert (before in page.inner_text("#answer")) == (view["eps"] > 0)
    shares = page.locator("#bars td.share").all_inner_texts()
    assert shares == [percent(p) for p in view["probabilities"]]
    widths = page.eval_on_selector_all("#bars .bar", "bars => bars.map(b => b.style.width)")
    shown = [float(width.rstrip("%")) / 100 for width in widths]
    assert shown == pytest.approx(view["probabilities"], abs=1e-4)
    assert page.get_attribute("#spectrogram", "src") == view["spectrogram"]
    heat = view["maps"][page.input_value("#explains")]
    if page.is_checked("#show-map") and heat:
        assert page.get_attribute("#map", "src") == heat
        assert page.is_visible("#map")
    else:
        assert page.is_hidden("#map")
    if segment["sound"]:
        ratio = int(page.input_value("input[name=ratio]:checked"))
        attack = next(row for row in own["attacks"] if row["snr_db"] == ratio)
        assert page.get_attribute("#sound-clean", "src") == segment["sound"]
        assert page.get_attribute("#sound-adversarial", "src") == attack["adversarial"]
        assert page.get_attribute("#sound-difference", "src") == attack["difference"]
        assert named(attack["probabilities"]) in page.inner_text("#attack-text")
        sound = own["resynthesized"][int(page.input_value("#eps"))]
        assert page.get_attribute("#sound-resynthesized", "src") == (sound and sound["sound"])


def test_genre_segment_and_model_can_be_chosen(visit, tiny):
    page = visit(tiny)
    for genre in GENRES:
        page.select_option("#genre", genre)
        assert page.locator("#segment option").count() == 2
        for option in page.locator("#segment option").all():
            page.select_option("#segment", option.get_attribute("value"))
            check_shown(page, tiny)
    for model in MODELS:
        page.select_option("#model", model)
        check_shown(page, tiny)


def test_eps_slides_by_keyboard_and_by_mouse(visit, tiny):
    page = visit(tiny)
    page.focus("#eps")
    texts = []
    for _ in range(8):
        check_shown(page, tiny)
        texts.append(page.inner_text("#eps-text"))
        assert page.get_attribute("#eps", "aria-valuetext") == texts[-1]
        page.keyboard.press("ArrowRight")
    decibel = ["0.08", "0.16", "0.4", "0.8", "1.6", "4", "8"]
    assert [text.split(" dB")[0] for text in texts[1:]] == [f"at most {db}" for db in decibel]
    assert texts[0] == "0 dB: no attack"
    box = page.locator("#eps").bounding_box()
    page.mouse.click(box["x"] + 3, box["y"] + box["height"] / 2)
    assert page.input_value("#eps") == "0"
    page.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    assert page.input_value("#eps") == "7"
    check_shown(page, tiny)


def test_the_map_is_shown_or_not_and_for_either_genre(visit, tiny):
    page = visit(tiny)
    page.fill("#eps", "7")
    page.click("#show-map")
    check_shown(page, tiny)
    assert "mapped" not in page.get_attribute("#pictures", "class")
    page.keyboard.press("Space")
    check_shown(page, tiny)
    page.focus("#explains")
    page.keyboard.press("ArrowDown")
    assert page.input_value("#explains") == "true"
    check_shown(page, tiny)
    assert chosen(page, tiny)[0]["genre"] in page.inner_text("#map-text")


def test_the_signal_to_noise_ratio_can_be_chosen(visit, tiny):
    page = visit(tiny)
    page.check("input[name=ratio][value='20']")
    check_shown(page, tiny)
    page.keyboard.press("ArrowUp")
    assert page.is_checked("input[name=ratio][value='30']")
    check_shown(page, tiny)


def test_every_sound_plays_alone(visit, tiny):
    page = visit(tiny)
    page.fill("#eps", "5")
    players = page.locator("audio").all()
    assert len(players) == 6
    for player in players:
        player.focus()
        page.keyboard.press("Space")
        page.wait_for_function(PLAYING, arg=player.element_handle())
        assert player.evaluate("player => player.duration") == pytest.approx(3, abs=0.1)
        others = page.eval_on_selector_all("audio", "all => all.filter(p => !p.paused).length")
        assert others == 1


def test_the_keyboard_reaches_every_control_and_shows_where_it_is(visit, tiny):
    page = visit(tiny)
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        here = page.evaluate(
            "() => { const e = document.activeElement, s = getComputedStyle(e);"
            " return [e.id || e.name || e.localName, s.outlineStyle, e.localName]; }"
        )
        if here[2] == "body":
            break
        reached.add(here[0])
        assert here[1] != "none", here
    players = {f"sound-{k}" for k in ("clean", "adversarial", "difference", "kept", "removed")}
    assert CONTROLS | players | {"ratio", "summary"} <= reached


def test_the_chart_shows_each_model_with_its_intervals(visit, tiny):
    page = visit(tiny)
    rows = [row for row in data(tiny)["robustness"] if row["attack"] in ("clean", "pgd")]
    assert page.locator("#chart polyline").count() == len(MODELS)
    points = page.get_attribute("#chart polyline >> nth=0", "points").split()
    assert len(points) == len(rows) / 2
    page.click("summary")
    lines = page.locator("#numbers tr").all_inner_texts()[1:]
    assert len(lines) == len(rows)
    first = rows[0]
    assert f"{percent(first['accuracy'])} [{percent(first['low'])}, " in lines[0]
    whiskers = page.locator("#chart svg line[stroke-width='2']").count() - len(MODELS)
    assert whiskers == sum(row["low"] is not None for row in rows)
    before = page.get_attribute("#chart .now", "x")
    page.fill("#eps", "4")
    assert float(page.get_attribute("#chart .now", "x")) > float(before)
    page.select_option("#attack", "noise_linf")
    assert page.locator("#numbers tr").count() == len(rows) + 1
    assert page.locator("#chart .chance").count() == 1


def test_the_page_names_no_true_genre_of_an_own_track(visit, tiny, tmp_path):
    shutil.copytree(tiny.page, tmp_path / "page")
    content = data(tiny)
    content["segments"].append(content["segments"][0] | {"own": True, "track": "my song"})
    (tmp_path / "page" / "data.js").write_text(f"const PAGE = {json.dumps(content)};\n")
    page = visit(SimpleNamespace(page=tmp_path / "page"))
    assert "the true genre" in page.inner_text("#explains")
    page.select_option("#genre", "your tracks")
    assert "my song" in page.inner_text("#segment")
    assert not re.search("correct|wrong", page.inner_text("#answer"))
    assert "True genre" not in page.inner_text("#attack-text")
    assert "true" not in page.inner_text("#bars")
    assert "the true genre" not in page.inner_text("#explains")


def test_a_corpus_without_audio_says_so(visit, silent):
    page = visit(silent)
    assert page.is_hidden("#players")
    assert "spectra has spectrograms and no audio" in page.inner_text("#silent")
    assert "make attack" in page.inner_text("#no-chart")
    assert page.is_hidden("#chart-part")
    page.fill("#eps", "6")
    check_shown(page, silent)


@every_screen
@every_scheme
def test_nothing_is_wider_than_the_screen(visit, tiny, screen, scheme, tmp_path):
    page = visit(tiny, screen, scheme)
    page.fill("#eps", "4")
    page.click("summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= SCREENS[screen][0]
    assert page.evaluate(WIDER) == []
    page.screenshot(path=tmp_path / f"{screen}_{scheme}.png", full_page=True)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    level = int(ground.removeprefix("rgb(").split(",")[0])
    assert level > 200 if scheme == "light" else level < 50


@every_scheme
def test_accessibility_rules_hold(visit, tiny, scheme):
    results = Axe().run(visit(tiny, "phone", scheme), options={"preload": False})
    assert results.violations_count == 0, results.generate_report()
