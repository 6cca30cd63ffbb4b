import json
import re
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import sync_playwright

from src.attacks.channels import librosa_log_mel
from src.attacks.waveform import ratio_db
from src.data import log_mels, preprocessor
from src.data.corpus import AudioFolder, LogMelArchive, claim_run
from src.data.loader import SegmentDataset, file_hash, load_split
from src.explainability.gradcam import explain
from src.models import cnn
from src.models.evaluation import predict_logits, softmax
from src.models.recipes import DOCUMENTED
from src.models.runs import load_named
from src.models.trainer import fit
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
RECIPE = DOCUMENTED | {"epochs": 25, "patience": 25, "batch_size": 4, "lr": 0.005}
SCREENS = {"phone": (390, 844), "desktop": (1280, 800)}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PLAYING = "player => !player.paused && player.currentTime > 0.2"
CONTROLS = set("genre clip network eps show-map explains attack".split())
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


def make_run(run, corpus):
    """Process a corpus and write two slim networks and their robustness."""
    paths = RunPaths(run)
    tracks = corpus.audit(1)
    claim_run(paths, corpus)
    write_csv(paths.processed / "tracks.csv", tracks)
    last = tracks["track"].str[-1]
    tracks["split"] = last.map({"5": "test", "6": "test", "4": "val"}).fillna("train")
    facts = {"tracks_sha256": file_hash(paths.processed / "tracks.csv")}
    metadata = preprocessor.write_processed(corpus, tracks, paths.processed, facts, 1)
    train, val = (SegmentDataset(*load_split(paths, part)[:2]) for part in ("train", "val"))
    facts = {"genres": GENRES, "fingerprint": metadata["fingerprint"], "recipe": RECIPE}
    for seed, network in enumerate(NETWORKS):
        fit(train, val, paths.models / network, seed=seed, **facts)
    write_csv(paths.metrics / "robustness.csv", robustness())
    return paths


def write_archive(path):
    """Write log-mels of seven tracks of each genre."""
    names = np.array([f"{genre}.{n:05d}" for genre in GENRES for n in range(7)])
    n, rng = len(names), np.random.default_rng(0)
    np.savez(
        path,
        X=rng.integers(0, 256, (n, 128, log_mels.LOG_MEL_FRAMES), dtype=np.uint8),
        exact=np.ones((n, log_mels.LOG_MEL_FRAMES), dtype=bool),
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
        paths = make_run("tiny", AudioFolder(write_corpus(root / "corpus"), "synthetic"))
        build(paths, per_genre=2, iterations=STEPS)
        yield paths


@pytest.fixture(scope="module")
def silent(tiny):
    """Return the paths of a page without audio and without measured attacks."""
    archive = write_archive(tiny.processed / "c.npz")
    paths = make_run("silent", LogMelArchive(archive, "spectra"))
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
    rows = [
        (network, view["eps"], view[kind][GENRES.index(clip["genre"])], kind)
        for clip, network, view in every_view(data(tiny))
        for kind in ("probabilities", "noise")
    ]
    table = pd.DataFrame(rows, columns=["network", "eps", "probability", "kind"])
    mean = table.groupby(["kind", "network", "eps"])["probability"].mean().unstack("eps")
    attacked, noisy = mean.loc["probabilities"], mean.loc["noise"]
    assert (attacked[0] - attacked[0.1] > 0.05).all()
    assert (attacked[0.1] < noisy[0.1]).all()


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


def test_a_run_that_is_not_there_is_told_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("src.paths.ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"nosuch has no checkpoint: .* run `make train` first"):
        main(["--run", "nosuch"])


def test_a_new_page_replaces_the_old_one(silent, capsys, monkeypatch):
    monkeypatch.setattr("src.page.__main__.build", partial(build, iterations=STEPS))
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


@pytest.fixture(scope="module")
def browser():
    """Return Debian's Chromium, driven by Playwright."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium brings one")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Return a function that opens a page from disk; no errors and no requests may come of it."""
    said, contexts = [], []

    def visit(paths, screen="desktop", scheme="light"):
        width, height = SCREENS[screen]
        size = {"width": width, "height": height}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("requestfailed", lambda request: said.append(failure(request)))
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or said.append(r.url))
        page.goto((paths.page / "index.html").as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [text for text in said if text] == []


def failure(request):
    """Return what failed; a sound given up for another is no failure."""
    return "" if request.failure == "net::ERR_ABORTED" else f"{request.failure}: {request.url}"


def chosen(page, paths):
    """Return clip and view that the controls ask for."""
    told = data(paths)
    clip = told["clips"][int(page.input_value("#clip"))]
    own = clip["networks"][page.input_value("#network")]
    return clip, own["views"][int(page.input_value("#eps"))], own


def percent(share):
    return f"{int(share * 100 + 0.5)}%"


def named(probabilities):
    return f"{GENRES[probabilities.index(max(probabilities))]} ({percent(max(probabilities))})"


def check_shown(page, paths):
    """Compare all that the page shows with the data behind the controls."""
    clip, view, own = chosen(page, paths)
    assert page.input_value("#genre") == clip["genre"]
    assert page.inner_text("#answer strong") == named(view["probabilities"])
    before = f"Before the attack: {named(own['views'][0]['probabilities'])}."
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
    if clip["sound"]:
        ratio = int(page.input_value("input[name=ratio]:checked"))
        attack = next(row for row in own["attacks"] if row["snr_db"] == ratio)
        assert page.get_attribute("#sound-clip", "src") == clip["sound"]
        assert page.get_attribute("#sound-attacked", "src") == attack["attacked"]
        assert page.get_attribute("#sound-difference", "src") == attack["difference"]
        assert named(attack["probabilities"]) in page.inner_text("#attack-told")
        nearest = view["nearest"]
        assert page.get_attribute("#sound-nearest", "src") == (nearest and nearest["sound"])


def test_genre_clip_and_network_can_be_chosen(visit, tiny):
    page = visit(tiny)
    for genre in GENRES:
        page.select_option("#genre", genre)
        assert page.locator("#clip option").count() == 2
        for clip in page.locator("#clip option").all():
            page.select_option("#clip", clip.get_attribute("value"))
            check_shown(page, tiny)
    for network in NETWORKS:
        page.select_option("#network", network)
        check_shown(page, tiny)


def test_eps_slides_by_keyboard_and_by_mouse(visit, tiny):
    page = visit(tiny)
    page.focus("#eps")
    told = []
    for _ in range(8):
        check_shown(page, tiny)
        told.append(page.inner_text("#eps-told"))
        assert page.get_attribute("#eps", "aria-valuetext") == told[-1]
        page.keyboard.press("ArrowRight")
    decibel = ["0.08", "0.16", "0.4", "0.8", "1.6", "4", "8"]
    assert [text.split(" dB")[0] for text in told[1:]] == [f"at most {db}" for db in decibel]
    assert told[0] == "0 dB: no attack"
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
    assert chosen(page, tiny)[0]["genre"] in page.inner_text("#map-told")


def test_the_loudness_of_the_change_can_be_chosen(visit, tiny):
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
    players = {f"sound-{k}" for k in "clip attacked difference kept left-out".split()}
    assert CONTROLS | players | {"ratio", "summary"} <= reached


def test_the_chart_shows_each_network_with_its_intervals(visit, tiny):
    page = visit(tiny)
    rows = [row for row in data(tiny)["robustness"] if row["attack"] in ("clean", "pgd")]
    assert page.locator("#chart polyline").count() == len(NETWORKS)
    points = page.get_attribute("#chart polyline >> nth=0", "points").split()
    assert len(points) == len(rows) / 2
    page.click("summary")
    lines = page.locator("#numbers tr").all_inner_texts()[1:]
    assert len(lines) == len(rows)
    first = rows[0]
    assert f"{percent(first['accuracy'])} [{percent(first['low'])}, " in lines[0]
    whiskers = page.locator("#chart svg line[stroke-width='2']").count() - len(NETWORKS)
    assert whiskers == sum(row["low"] is not None for row in rows)
    before = page.get_attribute("#chart .now", "x")
    page.fill("#eps", "4")
    assert float(page.get_attribute("#chart .now", "x")) > float(before)
    page.select_option("#attack", "noise_linf")
    assert page.locator("#numbers tr").count() == len(rows) + 1
    assert page.locator("#chart .chance").count() == 1


def test_a_corpus_without_audio_says_so(visit, silent):
    page = visit(silent)
    assert page.is_hidden("#players")
    assert "spectra holds spectrograms only" in page.inner_text("#silent")
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
