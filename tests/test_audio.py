import subprocess
from itertools import product

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from conftest import LONG
from IPython.display import HTML
from matplotlib.container import ErrorbarContainer

from src import labels, plots, plots_audio
from src.attacks import audio, listening
from src.attacks.adversarial import Search
from src.attacks.audio import (
    MASKING_MARGINS_DB,
    audio_table,
    compare_files,
    equalize_samples,
    evaluate,
    load_samples,
    make_audio_target,
    report_budgets,
    sweep,
)
from src.attacks.codecs import CODECS, encode_decode, file_logits, librosa_log_mel, to_16_bit
from src.attacks.codecs import write_audio as write
from src.attacks.equalizer import DRAWS, equalize
from src.attacks.flags import audio_flags
from src.attacks.listening import (
    attack_track_files,
    captions,
    choose_examples,
    players,
    write_example,
    write_examples,
)
from src.attacks.waveform import MASKED, approach, attack_waveform, resynthesize, surviving_share
from src.data import preprocessor
from src.data.audio import read_audio
from src.data.corpus import AudioFolder, audit_table, claim_run, corpus_of
from src.data.features import N_FRAMES, SEGMENT_SAMPLES, LogMel
from src.data.segments import Segments
from src.models import cnn
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits
from src.paths import ROOT, RunPaths
from src.results import write_csv

SNR_DB = [20.0, 40.0]
SEARCH = Search(2)
RATES = ["attack_success_rate", "survival"]


def music(seed, seconds=3.0):
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * 22_050)) / 22_050
    beat = np.exp(-4 * (time % 0.5))
    tones = [np.sin(2 * np.pi * hertz * time) for hertz in rng.uniform(80, 8000, 8)]
    return 0.3 * (beat * np.sum(tones, axis=0) / 4 + 0.02 * rng.normal(size=time.shape))


@pytest.fixture(scope="module")
def target():
    """Return a slim untrained model and six segments of three tracks, one predicted wrongly.

    The bias is set so that the segments lie close to the decision boundary.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cnn, "WIDTHS", (4, 8, 8, 8))
        patch.setattr(cnn, "DENSE", (16, 16))
        torch.manual_seed(3)
        model = GenreClassifierCNN(3).eval()
    samples = to_16_bit(np.stack([music(seed) for seed in range(6)]))
    logits = file_logits(model, samples)
    model.output.weight.data *= 1e4
    centre = (logits - model.output.bias.detach().numpy()) * 1e4
    model.output.bias.data = -torch.from_numpy(centre.mean(axis=0))
    y = file_logits(model, samples).argmax(axis=1)
    y[4] = (y[4] + 1) % 3
    table = pd.DataFrame({"segment": np.arange(6) * 3, "track": np.repeat([*"abc"], 2)})
    return make_audio_target(model, Segments(librosa_log_mel(samples), y, table, samples))


@pytest.fixture(scope="module")
def samples(target):
    return target.data.samples


@pytest.fixture(scope="module")
def evaluated(target):
    """Return the records of all attacks and of the clean segments, and the surviving shares."""
    records, shares = evaluate({"documented": target}, SNR_DB, 0.02, SEARCH)
    return records, shares["documented"]


@pytest.fixture(scope="module")
def records(evaluated):
    return evaluated[0]


@pytest.fixture
def run(tmp_path, monkeypatch, write_track):
    """Return the paths of a run with two tracks of three segments, and the segments."""
    for module in ("data.audio", "data.corpus", "attacks.audio", "attacks.listening"):
        monkeypatch.setattr(f"src.{module}.progress", lambda rows, *_, **__: rows)
    for genre in ("disco", "jazz"):
        corpus = write_track(f"{genre}/{genre}.00000.wav", music(len(genre), 9.5), subtype="PCM_16")
    monkeypatch.setattr("src.paths.ROOT", tmp_path)
    paths = RunPaths("run")
    corpus = AudioFolder(corpus, "c")
    tracks = audit_table(corpus, 1)
    write_csv(paths.processed / "tracks.csv", tracks)
    claim_run(paths, corpus)
    table = preprocessor.segment_table(corpus, tracks.assign(split="test")).reset_index(drop=True)
    return paths, Segments(np.zeros((6, 1, 1)), np.repeat([0, 1], 3), table)


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_gives_segments_of_the_same_length_and_sound(codec, samples):
    decoded = encode_decode(samples, codec)
    assert (decoded.shape, decoded.dtype) == (samples.shape, np.float32)
    delay, gain = (220 if codec == "shift" else 0), (0.708 if codec == "gain" else 1)
    expected = gain * np.pad(samples, ((0, 0), (delay, 0)))[:, :SEGMENT_SAMPLES]
    error = np.linalg.norm(decoded - expected) / np.linalg.norm(expected)
    assert (0.001 < error < 0.3) if codec in ("mp3_64k", "ogg") else error < 0.001


def test_a_wav_file_holds_16_bit_samples_exactly_and_an_mp3_64_kbit_per_second(tmp_path, samples):
    wav, mp3 = tmp_path / "segment.wav", tmp_path / "segment.mp3"
    write(wav, samples[0])
    facts = sf.info(wav)
    assert (facts.samplerate, facts.channels, facts.subtype) == (22_050, 1, "PCM_16")
    assert np.array_equal(sf.read(wav, dtype="float32")[0], samples[0])
    assert np.array_equal(encode_decode(samples, "wav16"), samples)
    write(mp3, samples[0], "mp3_64k")
    assert mp3.stat().st_size * 8 / 3 == pytest.approx(64_000, rel=0.05)


def test_16_bit_samples_end_at_full_scale():
    assert to_16_bit(np.array([-2, -1, 0, 0.4 / 32768, 0.6 / 32768, 1, 2])).tolist() == [
        *(-1, -1, 0, 0, 1 / 32768, 32767 / 32768, 32767 / 32768)
    ]


def test_a_clean_segment_survives_its_round_trip(target, samples):
    with torch.inference_mode():
        x = LogMel()(torch.from_numpy(samples)).numpy()
    found = librosa_log_mel(encode_decode(samples, "wav16"))
    np.testing.assert_allclose(80 * found, 80 * x, atol=1e-3)
    assert np.array_equal(predict_logits(target.model, x).argmax(axis=1), target.clean["wav16"])


def test_silence_is_analysed_and_resynthesized():
    silence = np.zeros((1, SEGMENT_SAMPLES), dtype=np.float32)
    assert (librosa_log_mel(encode_decode(silence, "ogg")) <= 1).all()
    assert not resynthesize(silence, np.full((1, 128, N_FRAMES), 0.1)).any()


def test_resynthesis_gives_the_wanted_gain(samples):
    same = resynthesize(samples, np.zeros((6, 128, N_FRAMES)))
    np.testing.assert_allclose(same, samples, atol=1e-6)
    rows, frames = np.meshgrid(np.arange(128), np.arange(N_FRAMES), indexing="ij")
    wanted = 0.02 * np.sin(rows / 20) * np.sin(frames / 20)
    obtained = librosa_log_mel(resynthesize(samples[:1], wanted[None]))
    obtained -= librosa_log_mel(samples[:1])
    assert surviving_share(wanted[None], obtained)[0] == pytest.approx(1, abs=0.1)
    everywhere = resynthesize(samples, np.full((6, 128, N_FRAMES), 0.1))
    inner = slice(1024, -2048)
    np.testing.assert_allclose(everywhere[:, inner], samples[:, inner] * 10**0.4, atol=0.02)


def test_the_share_of_a_change_that_survives_is_its_projection():
    wanted = np.array([[[1.0, 2]], [[1, 0]], [[0, 0]]])
    obtained = np.array([[[0.5, 1]], [[0, 3]], [[1, 1]]])
    np.testing.assert_array_equal(surviving_share(wanted, obtained), [0.5, 0, np.nan])


def test_samples_are_those_that_the_arrays_were_made_of(run):
    paths, data = run
    rows = np.array([4, 0, 2])
    found = load_samples(paths, data.take(rows)).samples
    folder = corpus_of(paths).path
    for row, segment in zip(rows, found, strict=True):
        track = data.tracks[row]
        whole = read_audio(folder / track.split(".")[0] / f"{track}.wav")
        start = SEGMENT_SAMPLES * (row % 3)
        assert np.array_equal(segment, whole[start : start + SEGMENT_SAMPLES])


def test_there_is_one_record_per_segment_attack_budget_and_codec(records):
    keys = ["attack", "budget_db", "codec", "start"]
    assert not records.duplicated([*keys, "segment"]).any()
    assert (records.groupby(keys, dropna=False).size() == 6).all()
    draws = records.groupby("attack")["start"].max()
    assert draws[draws > 1].to_dict() == {"equalizer_file_random": DRAWS}
    found = records.groupby(["attack", "budget_db"], dropna=False)["codec"].nunique().to_dict()
    every = {("pgd_waveform", 40), ("pgd_masked", 0), ("pgd_spectrogram_resynthesized", 1.6)}
    every |= {("pgd_spectrogram_optimized", 1.6), ("equalizer_file", 3)}
    drawn = {("pgd_waveform_doubled", 40), ("pgd_spectrogram", 1.6), ("equalizer_spectrogram", 3)}
    drawn |= {("equalizer_file_random", 3)}
    waveform = {*product(("noise", "fgsm_waveform", "pgd_waveform"), SNR_DB)}
    waveform |= {*product(MASKED, MASKING_MARGINS_DB)}
    known = {key: n for key, n in found.items() if key[0] != "clean"}
    assert set(known) == waveform | every | drawn
    assert {key for key, n in known.items() if n == len(CODECS)} == every
    assert {n for key, n in known.items() if key not in every} == {1}
    assert set(records.loc[records["attack"] == "clean", "codec"]) == set(CODECS)


def test_the_reported_budget_is_the_middle_one():
    assert report_budgets([60, 20, 40, 50, 30]) == {"pgd_waveform": 40, "pgd_masked": 0}


def test_success_is_correct_before_and_wrong_after_the_same_codec(records, target):
    before = records["clean_prediction"] == records["true"]
    after = records["adversarial_prediction"] != records["true"]
    assert (records["success"] == (before & after)).all()
    files = records[records["codec"].isin(CODECS)]
    for codec, rows in files.groupby("codec"):
        for _, part in rows.groupby(["attack", "budget_db", "start"], dropna=False):
            assert part["clean_prediction"].tolist() == target.clean[codec].tolist()
    pgd = records[(records["codec"] == "wav16") & (records["attack"] == "pgd_waveform")]
    assert pgd["success"].any()


def test_a_segment_wrong_before_stays_unchanged_and_others_keep_to_their_ratio(records):
    wrong = records[records["segment"] == 12]
    assert wrong["snr_db"].isna().all()
    assert not wrong.loc[wrong["codec"] == "wav16", "success"].any()
    within = records[records["attack"].isin(["noise", "pgd_waveform"])].dropna(subset="snr_db")
    assert len(within)
    assert (within["snr_db"] >= within["budget_db"] - 1e-3).all()


def test_an_attack_that_fails_in_a_larger_budget_does_not_undo_a_smaller_one(target, monkeypatch):
    def fails_at_20(name, classifier, samples, y, budget, search):
        if budget == 20:
            return samples
        return attack_waveform(name, classifier, samples, y, budget, search)

    monkeypatch.setattr(audio, "attack_waveform", fails_at_20)
    records = sweep("pgd_waveform", target, SNR_DB, SEARCH, report_db=20.0)
    files = records[records["codec"] == "wav16"].pivot(
        index="segment", columns="budget_db", values=["success", "snr_db"]
    )
    assert files["success", 40].any()
    assert files["success", 20].equals(files["success", 40].rename(("success", 20)))
    flipped = files["success", 20].astype(bool)
    assert (files.loc[flipped, ("snr_db", 20)] >= 39.99).all()


def test_predictions_on_record_are_those_of_the_files(target, monkeypatch):
    attacks = {}

    def spy(name, classifier, samples, y, budget, search):
        attacks[budget] = to_16_bit(samples * np.float32(0.5))
        return attacks[budget]

    monkeypatch.setattr(audio, "attack_waveform", spy)
    records = sweep("noise", target, [40.0], SEARCH, report_db=40.0)
    rows = target.clean["wav16"] == target.data.y
    for codec in CODECS:
        found = records.loc[records["codec"] == codec, "adversarial_prediction"][rows]
        expected = file_logits(target.model, attacks[40.0], codec).argmax(axis=1)
        assert found.tolist() == expected.tolist()


def test_the_resynthesized_sound_holds_part_of_the_change(evaluated, target):
    records, shares = evaluated
    correct = target.clean["wav16"] == target.data.y
    assert np.isnan(shares[~correct]).all()
    assert ((shares[correct] > 0.1) & (shares[correct] < 1.2)).all()
    drawn = records[records["attack"] == "pgd_spectrogram"]
    assert set(drawn["codec"]) == {"spectrogram"}
    assert drawn["budget_db"].tolist() == [1.6] * 6
    share = records[records["codec"] == "wav16"].groupby("attack")["share"].median()
    filtered, optimised = (f"pgd_spectrogram_{way}" for way in ("resynthesized", "optimized"))
    assert share[filtered] == pytest.approx(np.nanmedian(shares))
    assert share[optimised] > share[filtered]
    assert share.drop([filtered, optimised]).isna().all()


def test_optimised_samples_come_closer_to_a_log_mel_than_a_filter(samples):
    X, rng = librosa_log_mel(samples[:2]), np.random.default_rng(0)
    wanted = (X + rng.choice(np.float32([-0.01, 0.01]), X.shape)).clip(0, 1)
    filtered = resynthesize(samples[:2], wanted - X)
    shares = [
        surviving_share(wanted - X, librosa_log_mel(made) - X)
        for made in (filtered, approach(filtered, wanted))
    ]
    assert (shares[1] > shares[0] + 0.1).all()
    assert (shares[1] < 1.1).all()


def test_twice_the_steps_keep_what_is_flipped_and_raise_a_flag_where_more_is(target, monkeypatch):
    search, seen = Search(3, 5), []
    right = target.clean["wav16"] == target.data.y
    logits = np.eye(3)[target.data.y[right]]

    def attack(name, classifier, samples, y, budget, search):
        seen.append((search.iterations, search.seed))
        return samples / 2

    monkeypatch.setattr(audio, "attack_waveform", attack)
    monkeypatch.setattr(audio, "file_logits", lambda *_: logits)
    pgd = sweep("pgd_waveform", target, [40.0], search)
    none = audio.sweep_doubled(target, pgd, 40.0, search)
    assert seen == [(3, 5), (6, 6)]
    assert not none["success"].any()
    logits = np.roll(logits, 1, axis=1)
    every = audio.sweep_doubled(target, pgd, 40.0, search)
    assert every["success"].tolist() == right.tolist()
    for records, raised in ((none, False), (every, True)):
        (flag,) = audio_flags(pd.concat([pgd, records]).assign(checkpoint="one"))
        assert (flag["checkpoint"], flag["raised"], flag["power"]) == ("one", raised, True)
    flipped = pgd.assign(success=right, adversarial_prediction=every["adversarial_prediction"])
    logits = np.roll(logits, -1, axis=1)
    kept = audio.sweep_doubled(target, flipped, 40.0, search)
    assert kept["success"].tolist() == right.tolist()
    (flag,) = audio_flags(pd.concat([flipped, kept]).assign(checkpoint="one"))
    assert (flag["raised"], flag["power"]) == (False, False)


def test_an_equaliser_filters_the_samples_within_its_limit(target):
    rows = target.clean["wav16"] == target.data.y
    samples, y = target.data.samples[rows], target.data.y[rows]
    sounds, gains = equalize_samples(target.model, samples, y, SEARCH)
    assert np.array_equal(sounds, to_16_bit(sounds))
    assert 0 < np.abs(gains).max() <= 3
    expected, heard = equalize(librosa_log_mel(samples), gains), librosa_log_mel(sounds)
    assert 80 * np.abs(expected - heard)[:, :, 2:-2].mean() < 1


def test_the_table_has_one_row_per_attack_budget_and_codec(records):
    table = audio_table(records, "embedded")
    measured = ["low", "high", "n_segments", "n_tracks"]
    rates = [f"{name}{end}" for name in RATES for end in ("", *(f"_{key}" for key in measured))]
    keys = "corpus checkpoint attack budget_db snr_db segmental_snr_db noise_to_mask_db share codec"
    assert list(table) == [*keys.split(), "accuracy", *measured, *rates]
    nothing, _ = evaluate({}, SNR_DB, 0.02, SEARCH)
    assert list(audio_table(nothing, "embedded")) == list(table)
    assert not table.duplicated(["checkpoint", "attack", "budget_db", "codec"]).any()
    clean = table["attack"] == "clean"
    assert table.loc[clean, ["budget_db", "snr_db"]].isna().all(axis=None)
    assert table.loc[~clean, ["budget_db", "snr_db"]].notna().all(axis=None)
    assert table["accuracy"].between(0, 1).all()
    assert (set(table["n_segments"]), set(table["n_tracks"])) == ({6}, {3})
    assert table["attack_success_rate_n_segments"].max() <= 6


def test_random_equalisers_of_files_have_the_limit_and_differ(target, records):
    files = records[(records["attack"] == "equalizer_file_random") & records["snr_db"].notna()]
    right = target.clean["wav16"] == target.data.y
    sizes = files.pivot_table(index="segment", columns="start", values="snr_db")
    assert sizes.shape == (right.sum(), DRAWS)
    assert (sizes.nunique(axis=1) > DRAWS / 2).all()
    assert sizes.min(axis=None) > 7.6  # of +3 dB everywhere
    assert sizes.max(axis=None) < 15


def test_files_are_compared_clean_with_noise_and_under_the_strongest_attack(records):
    other = records.assign(checkpoint="two", adversarial_prediction=records["true"])
    table = compare_files(pd.concat([records, other]), 40)
    assert table["attack"].tolist() == ["clean", "noise", "pgd_waveform_doubled"]
    assert table["budget_db"].tolist()[1:] == [40, 40]
    assert (table["n_segments"] == 6).all()
    same = (records["codec"] == "wav16") & records["budget_db"].isin([40, np.nan])
    wrong = (records["adversarial_prediction"] != records["true"])[same].groupby(records["attack"])
    np.testing.assert_allclose(table["difference"], wrong.mean()[table["attack"]])


def test_the_table_is_counted_from_the_records():
    columns = ["segment", "track", "codec", "true", "clean_prediction", "adversarial_prediction"]
    rows = [
        (0, "a", "wav16", 0, 0, 1),
        (1, "a", "wav16", 0, 0, 1),
        (2, "b", "wav16", 0, 0, 0),
        (3, "b", "wav16", 0, 1, 1),
        (0, "a", "ogg", 0, 0, 1),
        (1, "a", "ogg", 0, 0, 0),
        (2, "b", "ogg", 0, 0, 1),
        (3, "b", "ogg", 0, 0, 0),
    ]
    records = pd.DataFrame(rows, columns=columns)
    before = records["clean_prediction"] == records["true"]
    records["success"] = before & (records["adversarial_prediction"] != records["true"])
    facts = {"attack": "pgd_masked", "budget_db": 0.0, "checkpoint": "c"}
    records = records.assign(**facts, snr_db=[10, 20, 90, np.nan] * 2)
    found = audio_table(records, "c").set_index("codec")
    assert found["accuracy"].to_dict() == {"wav16": 0.25, "ogg": 0.5}
    rates = found["attack_success_rate"].to_dict()
    assert rates == {"wav16": pytest.approx(2 / 3), "ogg": 0.5}
    assert found["attack_success_rate_n_segments"].tolist() == [3, 4]
    assert found.loc["ogg", "survival"] == 0.5
    assert found.loc["ogg", ["survival_n_segments", "survival_n_tracks"]].tolist() == [2, 1]
    assert pd.isna(found.loc["wav16", "survival"])  # the file defines what is flipped
    assert found["snr_db"].tolist() == [20, 20]
    none = audio_table(records.assign(clean_prediction=9, success=False), "c")
    assert none[["attack_success_rate", "survival"]].isna().all(axis=None)


def test_a_resynthesized_segment_survives_if_its_spectrogram_was_flipped():
    columns = ["segment", "attack", "codec", "true", "clean_prediction", "adversarial_prediction"]
    drawn, sound = "pgd_spectrogram", "pgd_spectrogram_resynthesized"
    rows = [(k, drawn, "spectrogram", 0, 0, after) for k, after in enumerate([1, 1, 1, 0])]
    rows += [(k, sound, "wav16", 0, 0, after) for k, after in enumerate([1, 0, 0, 1])]
    records = pd.DataFrame(rows, columns=columns).assign(
        budget_db=0.8, checkpoint="c", snr_db=20, share=1
    )
    records["track"] = records["segment"].map("t{}".format)
    records["success"] = records["adversarial_prediction"] != records["true"]
    found = audio_table(records, "c").set_index("attack")["survival"]
    assert found[sound] == pytest.approx(1 / 3)
    assert pd.isna(found[drawn])


def test_examples_are_the_easiest_the_middle_and_the_hardest():
    flips = {0: 60, 1: None, 2: 40, 3: 60, 4: 20, 5: 50}
    rows = [
        (segment, budget, flip is not None and budget <= flip)
        for segment, flip in flips.items()
        for budget in (20, 40, 50, 60)
    ]
    records = pd.DataFrame(rows, columns=["segment", "budget_db", "success"])
    records = records.assign(codec="wav16", true=0, clean_prediction=0)
    assert choose_examples(records) == {"good": 0, "middle": 2, "bad": 1}
    other = records.assign(codec="ogg", segment=7)
    assert choose_examples(pd.concat([other, records])) == choose_examples(records)
    assert choose_examples(records.assign(clean_prediction=1)) == {}
    assert choose_examples(records[records["segment"] == 4]) == {"good": 4}
    assert choose_examples(records[records["segment"].isin([0, 4])]) == {"good": 0, "bad": 4}


def test_an_example_can_be_played(tmp_path, samples):
    clean = samples[0]
    attacked = to_16_bit(clean + 0.001 * samples[1])
    click = clean.copy()
    click[9000] -= 0.01
    versions = {"pgd": attacked, "noise": clean, "click": click}
    sounds = write_example(tmp_path, "good", clean, versions)
    names = [f"good_{name}{end}.wav" for name in versions for end in ("", "_difference")]
    assert [path.name for path in sounds.values()] == ["good_clean.wav", *names]
    first, played, change, same, nothing, _, full = (sf.read(path)[0] for path in sounds.values())
    assert np.array_equal(first, clean)
    assert np.array_equal(same, clean)
    assert np.array_equal(played, attacked)
    assert not nothing.any()
    assert np.linalg.norm(change) == pytest.approx(np.linalg.norm(clean), rel=0.01)
    assert np.abs(full).max() == pytest.approx(1, rel=0.01)  # at most full scale
    louder = 20 * np.log10(np.linalg.norm(change) / np.linalg.norm(attacked - clean))
    assert f"difference, {louder:.0f} dB louder (pgd)" in sounds
    html = players(sounds)
    assert isinstance(html, HTML)
    assert html.data.count("<audio") == 7
    assert "difference" in html.data


def test_examples_are_attacked_captioned_and_written(target, records, tmp_path):
    pgd = records[records["attack"] == "pgd_waveform"]
    genres, budgets = [*"xyz"], report_budgets(SNR_DB)
    found = write_examples(target, pgd, genres, tmp_path, budgets, SEARCH)
    assert {one.case: one.segment["segment"] for one in found} == choose_examples(pgd)
    for one in found:
        assert list(one.attacked) == [*budgets, "equalizer_file"]
        assert list(one.captions) == ["clean", *one.attacked]
        assert all(path.exists() for path in one.files.values())


def test_captions_state_prediction_and_ratio(target, samples):
    clean, genres = samples[0], [*"abc"]
    versions = {"pgd_waveform": to_16_bit(clean * 0.9), "noise": clean}
    notes = captions(target.model, clean, versions, genres)
    predicted = genres[file_logits(target.model, clean[None]).argmax()]
    assert notes["clean"].startswith(f"clean\npredicted {predicted} (")
    assert notes["pgd_waveform"].startswith("PGD on the waveform, 20 dB\npredicted ")
    assert notes["noise"].endswith(f", unchanged\n{notes['clean'].split(chr(10))[1]}")


def test_tracks_are_classified_as_files_by_the_vote_over_their_segments(
    run, target, tmp_path, monkeypatch
):
    factor = {"pgd_waveform": 2, "noise": 4}
    quieter = lambda name, classifier, samples, *_: to_16_bit(samples / factor[name])  # noqa: E731
    monkeypatch.setattr(listening, "attack_waveform", quieter)
    inputs = []

    def network(model, X):
        inputs.append(X)
        loud = np.array([[0.9, 0.1], [0.45, 0.55], [0.45, 0.55]])
        attacked = len(inputs) % 5 in (2, 4)  # of clean, attacked, both shifted, noise
        return np.log(loud[:, ::-1] if attacked else loud)[: len(X)]

    monkeypatch.setattr("src.attacks.codecs.predict_logits", network)
    data = load_samples(*run)
    data.table["track"] = data.table["track"].replace("jazz.00000", LONG)
    tracks = attack_track_files({"one": target.model}, data, tmp_path / "out", 40, SEARCH)
    assert tracks["track"].tolist() == ["disco.00000", LONG]
    assert tracks["clean_prediction"].tolist() == [0, 0]  # the majority says 1, the mean says 0
    assert tracks["adversarial_prediction"].tolist() == [1, 1]
    assert tracks["success"].tolist() == [True, False]
    half = data.samples[:3].ravel()[SEGMENT_SAMPLES // 2 :]
    later = half[: 2 * SEGMENT_SAMPLES].reshape(2, SEGMENT_SAMPLES)
    np.testing.assert_allclose(inputs[2], librosa_log_mel(later), atol=1e-6)
    assert tracks["adversarial_prediction_shifted"].tolist() == [1, 1]
    assert tracks["noise_prediction"].tolist() == [0, 0]
    np.testing.assert_allclose(
        inputs[4], librosa_log_mel(to_16_bit(data.samples[:3] / 4)), atol=1e-6
    )
    np.testing.assert_allclose(tracks["snr_db"], 6.02, atol=0.01)
    (first, _) = sorted((tmp_path / "out" / "one" / "tracks_40_db").glob("*.wav"))
    file = read_audio(first)
    assert len(file) == 3 * SEGMENT_SAMPLES
    read = file.reshape(3, SEGMENT_SAMPLES)
    np.testing.assert_allclose(inputs[1], librosa_log_mel(read), atol=1e-6)


def test_figures_show_every_attack_and_codec(records, samples):
    table = audio_table(records, "embedded")
    _, axes = plots.grid(1, 3)
    success, survival, empty = axes[0]
    plots_audio.success_over_ratio(success, table, "documented")
    plots_audio.survival(survival, table)
    plots_audio.survival(empty, table.assign(survival=np.nan))
    assert success.get_xlabel() == "signal-to-noise ratio (dB)"
    drawn = success.get_legend_handles_labels()[1]
    assert {labels.AUDIO_ATTACKS[name].label for name in ("noise", "pgd_masked")} <= set(drawn)
    shown = survival.get_legend_handles_labels()[1]
    assert any(label.startswith("PGD on the waveform, SNR 40 dB") for label in shown)
    bars = [bar for group in survival.containers for bar in getattr(group, "patches", [])]
    expected = table.loc[table["codec"].isin(labels.CODECS), "survival"].dropna()
    heights = sorted(bar.get_height() for bar in bars)
    np.testing.assert_allclose(heights, sorted(100 * expected))
    errors = [held for held in survival.containers if isinstance(held, ErrorbarContainer)]
    assert errors
    for bar in errors:  # three tracks are too few for an interval
        assert not np.isfinite(bar.lines[2][0].get_segments()).any()
    assert not survival.texts
    assert [text.get_text() for text in empty.texts] == ["no segment was flipped"]
    figure = plots_audio.example(samples[0], {"PGD": samples[1]}, {"clean": "c", "PGD": "p"})
    assert [ax.get_title() for ax in figure.axes[:4]] == ["c", "p", "", "perturbation"]


def test_the_folder_of_attacked_audio_is_ignored():
    path = RunPaths("gtzan").audio / "documented" / "tracks" / "a.wav"
    done = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT)
    if done.returncode == 128:
        pytest.skip("not a git repository")
    assert done.returncode == 0
