import subprocess

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from IPython.display import HTML
from matplotlib.container import ErrorbarContainer

from src import labels, plots, plots_audio
from src.attacks import audio, listening
from src.attacks.audio import (
    COLUMNS,
    clean_records,
    flat,
    judge_clean,
    load_clips,
    summarize,
    sweep,
    sweep_resynthesis,
)
from src.attacks.channels import (
    CHANNELS,
    judge,
    librosa_log_mel,
    to_16_bit,
    transmit,
    write_audio,
)
from src.attacks.listening import (
    attack_songs,
    captions,
    choose_examples,
    players,
    write_example,
)
from src.attacks.resynthesis import resynthesize, surviving_share
from src.attacks.waveform import attack_waveform
from src.data import preprocessor
from src.data.audio import read_audio
from src.data.corpus import AudioFolder, claim_run, corpus_of
from src.data.features import N_FRAMES, SEGMENT_SAMPLES, LogMel
from src.models import cnn
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits
from src.paths import ROOT, RunPaths
from src.results import write_csv

BUDGETS = [20.0, 40.0]
STEPS = 2


def music(seed, seconds=3.0):
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * 22_050)) / 22_050
    beat = np.exp(-4 * (time % 0.5))
    tones = [np.sin(2 * np.pi * hertz * time) for hertz in rng.uniform(80, 8000, 8)]
    return 0.3 * (beat * np.sum(tones, axis=0) / 4 + 0.02 * rng.normal(size=time.shape))


@pytest.fixture(scope="module")
def model():
    """Return a slim network, untrained and sensitive."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cnn, "WIDTHS", (4, 8, 8, 8))
        patch.setattr(cnn, "DENSE", (16, 16))
        torch.manual_seed(3)
        return GenreClassifierCNN(3).eval()


@pytest.fixture(scope="module")
def clips(model):
    """Return six clips of three tracks; their genres are what the network hears, but for one.

    The network's bias is set so that the clips lie close to its border.
    """
    samples = to_16_bit(np.stack([music(seed) for seed in range(6)]))
    logits = judge(model, samples)
    model.output.weight.data *= 1e4
    centre = (logits - model.output.bias.detach().numpy()) * 1e4
    model.output.bias.data = -torch.from_numpy(centre.mean(axis=0))
    y = judge(model, samples).argmax(axis=1)
    y[4] = (y[4] + 1) % 3
    segments = pd.DataFrame({"segment": np.arange(6) * 3, "track": np.repeat([*"abc"], 2)})
    return judge_clean(model, samples, segments, y)


@pytest.fixture(scope="module")
def tables(model, clips):
    """Return the records of three attacks, resynthesis and no attack, and the shares."""
    found = [clean_records(clips)]
    for name in ("noise", "pgd_waveform", "pgd_masked"):
        budgets = [0.0] if name == "pgd_masked" else BUDGETS
        found.append(sweep(name, model, clips, budgets, STEPS, 42, channels_at=budgets[-1]))
    heard, shares = sweep_resynthesis(model, clips, 0.02, STEPS, 42)
    records = pd.concat([*found, heard], ignore_index=True).assign(checkpoint="documented")
    return records, shares


@pytest.fixture
def run(tmp_path, monkeypatch, write_track):
    """Return the paths of a run with two tracks of three segments, its table and their genres."""
    for module in ("data.audio", "data.corpus", "attacks.audio", "attacks.listening"):
        monkeypatch.setattr(f"src.{module}.progress", lambda rows, *_, **__: rows)
    for genre in ("disco", "jazz"):
        corpus = write_track(f"{genre}/{genre}.00000.wav", music(len(genre), 9.5), subtype="PCM_16")
    paths = RunPaths("run")
    monkeypatch.setattr("src.paths.ROOT", tmp_path)
    corpus = AudioFolder(corpus, "c")
    tracks = corpus.audit(1)
    write_csv(paths.processed / "tracks.csv", tracks)
    claim_run(paths, corpus)
    segments = preprocessor.segment_table(corpus, tracks.assign(split="test"))
    segments = segments.reset_index(drop=True)
    return paths, segments, np.repeat([0, 1], 3)


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_channel_gives_clips_of_the_same_length_that_sound_the_same(channel, clips):
    heard = transmit(clips.samples, channel)
    assert (heard.shape, heard.dtype) == (clips.samples.shape, np.float32)
    delay, gain = (220 if channel == "shift" else 0), (0.708 if channel == "gain" else 1)
    expected = gain * np.pad(clips.samples, ((0, 0), (delay, 0)))[:, :SEGMENT_SAMPLES]
    error = np.linalg.norm(heard - expected) / np.linalg.norm(expected)
    lossy = channel in ("mp3_64k", "ogg")
    assert (0.001 < error < 0.3) if lossy else error < 0.001


def test_a_wav_file_holds_16_bit_samples_exactly(tmp_path, clips):
    path = tmp_path / "clip.wav"
    write_audio(path, clips.samples[0])
    facts = sf.info(path)
    assert (facts.samplerate, facts.channels, facts.subtype) == (22_050, 1, "PCM_16")
    assert np.array_equal(sf.read(path, dtype="float32")[0], clips.samples[0])
    assert np.array_equal(transmit(clips.samples, "wav16"), clips.samples)


def test_an_mp3_has_64_kbit_a_second(tmp_path):
    path = tmp_path / "clip.mp3"
    write_audio(path, to_16_bit(music(0)), "mp3_64k")
    assert path.stat().st_size * 8 / 3 == pytest.approx(64_000, rel=0.05)


def test_16_bit_samples_end_at_full_scale():
    assert to_16_bit(np.array([-2, -1, 0, 0.4 / 32768, 0.6 / 32768, 1, 2])).tolist() == [
        *(-1, -1, 0, 0, 1 / 32768, 32767 / 32768, 32767 / 32768)
    ]


def test_a_clean_clip_survives_its_round_trip(model, clips):
    with torch.inference_mode():
        x = LogMel()(torch.from_numpy(clips.samples)).numpy()
    found = librosa_log_mel(transmit(clips.samples, "wav16"))
    np.testing.assert_allclose(80 * found, 80 * x, atol=1e-3)
    assert np.array_equal(predict_logits(model, x).argmax(axis=1), clips.clean["wav16"])


def test_silence_is_analysed_and_resynthesized():
    silence = np.zeros((1, SEGMENT_SAMPLES), dtype=np.float32)
    assert (librosa_log_mel(transmit(silence, "ogg")) <= 1).all()
    assert not resynthesize(silence, np.full((1, 128, N_FRAMES), 0.1)).any()


def test_resynthesis_without_change_returns_the_clip(clips):
    same = resynthesize(clips.samples, np.zeros((6, 128, N_FRAMES)))
    np.testing.assert_allclose(same, clips.samples, atol=1e-6)


def test_resynthesis_gives_the_gain_that_was_asked_for(clips):
    rows, frames = np.meshgrid(np.arange(128), np.arange(N_FRAMES), indexing="ij")
    wanted = 0.02 * np.sin(rows / 20) * np.sin(frames / 20)
    sound = resynthesize(clips.samples[:1], wanted[None])
    obtained = librosa_log_mel(sound) - librosa_log_mel(clips.samples[:1])
    assert surviving_share(wanted[None], obtained)[0] == pytest.approx(1, abs=0.1)
    everywhere = resynthesize(clips.samples, np.full((6, 128, N_FRAMES), 0.1))
    inner = slice(1024, -2048)
    np.testing.assert_allclose(everywhere[:, inner], clips.samples[:, inner] * 10**0.4, atol=0.02)


def test_the_share_of_a_change_that_survives_is_its_projection():
    wanted = np.array([[[1.0, 2]], [[1, 0]], [[0, 0]]])
    obtained = np.array([[[0.5, 1]], [[0, 3]], [[1, 1]]])
    np.testing.assert_array_equal(surviving_share(wanted, obtained), [0.5, 0, np.nan])


def test_clips_are_those_that_the_arrays_were_made_of(run):
    paths, segments, _ = run
    found = load_clips(paths, segments.iloc[[4, 0, 2]])
    folder = corpus_of(paths).path
    for row, clip in zip((4, 0, 2), found, strict=True):
        track = segments["track"][row]
        samples = read_audio(folder / track.split(".")[0] / f"{track}.wav")
        start = SEGMENT_SAMPLES * (row % 3)
        assert np.array_equal(clip, samples[start : start + SEGMENT_SAMPLES])


def test_there_is_one_record_a_segment_attack_budget_and_channel(tables):
    records, _ = tables
    keys = ["attack", "budget_db", "channel"]
    assert not records.duplicated([*keys, "segment"]).any()
    assert (records.groupby(keys, dropna=False).size() == 6).all()
    found = records.groupby(["attack", "budget_db"], dropna=False)["channel"].nunique()
    for (name, budget), n in found.items():
        alone = (budget == 20 and name in ("noise", "pgd_waveform")) or name == "pgd_spectrogram"
        assert n == (1 if alone else len(CHANNELS)), (name, budget)


def test_success_is_right_before_and_wrong_after_the_same_channel(tables, clips):
    records, _ = tables
    before = records["clean_prediction"] == records["true"]
    after = records["adversarial_prediction"] != records["true"]
    assert (records["success"] == (before & after)).all()
    heard = records[records["channel"].isin(CHANNELS)]
    for channel, rows in heard.groupby("channel"):
        for _, part in rows.groupby(["attack", "budget_db"], dropna=False):
            assert part["clean_prediction"].tolist() == clips.clean[channel].tolist()
    files = records[(records["channel"] == "wav16") & (records["attack"] == "pgd_waveform")]
    assert files["success"].any()


def test_a_clip_that_was_wrong_before_stays_as_it_is(tables):
    records, _ = tables
    wrong = records[records["segment"] == 12]
    assert wrong["snr_db"].isna().all()
    assert not wrong.loc[wrong["channel"] == "wav16", "success"].any()


def test_records_keep_to_their_ratio(tables):
    records, _ = tables
    within = records[records["attack"].isin(["noise", "pgd_waveform"])].dropna(subset="snr_db")
    assert len(within)
    assert (within["snr_db"] >= within["budget_db"] - 1e-3).all()


def test_a_clip_that_was_broken_stays_broken_within_a_larger_budget(tables):
    records, _ = tables
    files = records[(records["attack"] == "pgd_waveform") & (records["channel"] == "wav16")]
    broken = files.pivot_table(index="segment", columns="budget_db", values="success")
    assert (broken[20] >= broken[40]).all()
    assert broken[40].any()


def test_an_attack_that_fails_in_a_larger_budget_does_not_undo_a_smaller_one(
    model, clips, monkeypatch
):
    def fails_at_20(name, classifier, samples, y, budget, *options):
        if budget == 20:
            return samples
        return attack_waveform(name, classifier, samples, y, budget, *options)

    monkeypatch.setattr(audio, "attack_waveform", fails_at_20)
    records = sweep("pgd_waveform", model, clips, BUDGETS, STEPS, 42, channels_at=20.0)
    files = records[records["channel"] == "wav16"].pivot(
        index="segment", columns="budget_db", values=["success", "snr_db"]
    )
    assert files["success", 40].any()
    assert files["success", 20].equals(files["success", 40].rename(("success", 20)))
    broken = files["success", 20].astype(bool)
    assert (files.loc[broken, ("snr_db", 20)] >= 39.99).all()


def test_predictions_on_record_are_those_of_the_files(model, clips, monkeypatch):
    attacks = {}

    def spy(name, classifier, samples, y, budget, *options):
        found = to_16_bit(samples * np.float32(0.5))
        attacks[budget] = found
        return found

    monkeypatch.setattr(audio, "attack_waveform", spy)
    records = sweep("noise", model, clips, [40.0], 1, 0, channels_at=40.0)
    todo = clips.clean["wav16"] == clips.y
    for channel in CHANNELS:
        rows = records[records["channel"] == channel]
        heard = judge(model, attacks[40.0], channel).argmax(axis=1)
        assert rows["adversarial_prediction"][todo].tolist() == heard.tolist()


def test_the_resynthesized_sound_holds_part_of_the_change(tables, clips):
    records, shares = tables
    right = clips.clean["wav16"] == clips.y
    assert np.isnan(shares[~right]).all()
    assert ((shares[right] > 0.1) & (shares[right] < 1.2)).all()
    drawn = records[records["attack"] == "pgd_spectrogram"]
    assert set(drawn["channel"]) == {"spectrogram"}
    assert drawn["budget_db"].tolist() == [1.6] * 6


def test_the_table_has_the_columns_that_were_asked_for(tables):
    table = flat(summarize(tables[0]), "embedded")
    assert list(table) == COLUMNS
    assert (
        ",".join(COLUMNS)
        == "corpus,checkpoint,attack,snr_db,channel,accuracy,low,high,n_segments,n_tracks"
    )
    assert not table.duplicated(["checkpoint", "attack", "snr_db", "channel"]).any()
    assert table.loc[table["attack"] == "clean", "snr_db"].isna().all()
    assert table.loc[table["attack"] != "clean", "snr_db"].notna().all()
    assert table["accuracy"].between(0, 1).all()
    assert set(table["n_segments"]) == {6}
    assert set(table["n_tracks"]) == {3}


def test_the_summary_is_counted_from_the_records():
    columns = ["segment", "track", "channel", "true", "clean_prediction", "adversarial_prediction"]
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
    found = summarize(records).set_index("channel")
    assert found["accuracy"].map(lambda m: m["value"]).to_dict() == {"wav16": 0.25, "ogg": 0.5}
    rates = found["attack_success_rate"].map(lambda m: m["value"]).to_dict()
    assert rates == {"wav16": pytest.approx(2 / 3), "ogg": 0.5}
    assert found.loc["ogg", "survival"]["value"] == 0.5
    assert pd.isna(found.loc["wav16", "survival"])  # what the file flips, it flips
    assert found["snr_db"].tolist() == [20, 20]


def test_a_resynthesized_clip_survives_if_its_spectrogram_was_flipped():
    columns = ["segment", "attack", "channel", "true", "clean_prediction", "adversarial_prediction"]
    drawn, sound = "pgd_spectrogram", "pgd_spectrogram_resynthesized"
    rows = [(k, drawn, "spectrogram", 0, 0, after) for k, after in enumerate([1, 1, 1, 0])]
    rows += [(k, sound, "wav16", 0, 0, after) for k, after in enumerate([1, 0, 0, 1])]
    records = pd.DataFrame(rows, columns=columns).assign(budget_db=0.8, checkpoint="c", snr_db=20)
    records["track"] = records["segment"].map("t{}".format)
    records["success"] = records["adversarial_prediction"] != records["true"]
    found = summarize(records).set_index("attack")["survival"]
    assert found[sound]["value"] == pytest.approx(1 / 3)
    assert pd.isna(found[drawn])


def test_nothing_right_before_leaves_no_success_rate(tables):
    records = tables[0].assign(clean_prediction=9, success=False)
    found = summarize(records)
    assert found["attack_success_rate"].isna().all()
    assert found["survival"].isna().all()


def test_examples_are_the_easiest_the_middle_and_the_hardest():
    flips = {0: 60, 1: None, 2: 40, 3: 60, 4: 20, 5: 50}
    rows = [
        (segment, budget, flip is not None and budget <= flip)
        for segment, flip in flips.items()
        for budget in (20, 40, 50, 60)
    ]
    records = pd.DataFrame(rows, columns=["segment", "budget_db", "success"])
    records = records.assign(channel="wav16", true=0, clean_prediction=0)
    assert choose_examples(records) == {"good": 0, "middle": 2, "bad": 1}
    other = records.assign(channel="ogg", segment=7)
    assert choose_examples(pd.concat([other, records])) == choose_examples(records)
    assert choose_examples(records.assign(clean_prediction=1)) == {}
    assert choose_examples(records[records["segment"] == 4]) == {"good": 4}
    assert choose_examples(records[records["segment"].isin([0, 4])]) == {"good": 0, "bad": 4}


def test_an_example_can_be_played(tmp_path, clips):
    clean = clips.samples[0]
    attacked = to_16_bit(clean + 0.001 * clips.samples[1])
    sounds = write_example(tmp_path, "good", clean, {"pgd": attacked, "noise": clean})
    assert [path.name for path in sounds.values()] == [
        "good_clean.wav",
        "good_pgd.wav",
        "good_pgd_difference.wav",
        "good_noise.wav",
        "good_noise_difference.wav",
    ]
    first, heard, change, same, nothing = (sf.read(path)[0] for path in sounds.values())
    assert np.array_equal(first, clean)
    assert np.array_equal(same, clean)
    assert np.array_equal(heard, attacked)
    assert not nothing.any()
    louder = 20 * np.log10(np.linalg.norm(change) / np.linalg.norm(attacked - clean))
    assert 40 < louder < 80
    assert f"difference, {louder:.0f} dB louder (pgd)" in sounds
    html = players(sounds)
    assert isinstance(html, HTML)
    assert html.data.count("<audio") == 5
    assert "difference" in html.data


def test_a_difference_is_amplified_to_the_level_of_the_clip_or_to_full_scale(tmp_path, clips):
    clean = clips.samples[0]
    hum = to_16_bit(clean + 0.001 * np.sin(np.arange(SEGMENT_SAMPLES) / 10))
    click = clean.copy()
    click[9000] -= 0.01
    sounds = write_example(tmp_path, "bad", clean, {"hum": hum, "click": click})
    changes = [sf.read(path)[0] for title, path in sounds.items() if "difference" in title]
    assert np.linalg.norm(changes[0]) == pytest.approx(np.linalg.norm(clean), rel=0.01)
    assert np.abs(changes[1]).max() == pytest.approx(1, rel=0.01)


def test_captions_tell_what_is_heard(model, clips):
    clean = clips.samples[0]
    attacked = to_16_bit(clean * 0.9)
    genres = ["a", "b", "c"]
    notes = captions(model, clean, {"pgd": attacked, "noise": clean}, genres)
    heard = genres[judge(model, clean[None]).argmax()]
    assert notes["clean"].startswith(f"clean\nheard as {heard} (")
    assert notes["pgd"].startswith("pgd, 20 dB\nheard as ")
    assert notes["noise"].startswith(f"noise, unchanged\nheard as {heard}")


def test_songs_are_judged_as_files_by_the_vote_over_their_segments(
    run, model, tmp_path, monkeypatch
):
    paths, segments, _ = run
    monkeypatch.setattr(listening, "attack_waveform", lambda n, c, clips, *_: to_16_bit(clips / 2))
    heard = []

    def network(model, X):
        heard.append(X)
        loud = np.array([[0.9, 0.1], [0.45, 0.55], [0.45, 0.55]])
        return np.log(loud if len(heard) % 2 else loud[:, ::-1])

    monkeypatch.setattr(listening, "predict_logits", network)
    y = np.array([0, 0, 0, 1, 1, 1])
    songs = attack_songs(model, paths, segments, y, tmp_path / "songs", 40, 1, 0)
    assert songs["track"].tolist() == ["disco.00000", "jazz.00000"]
    assert songs["clean_prediction"].tolist() == [0, 0]  # the majority says 1, the mean says 0
    assert songs["adversarial_prediction"].tolist() == [1, 1]
    assert songs["success"].tolist() == [True, False]
    np.testing.assert_allclose(songs["snr_db"], 6.02, atol=0.01)
    (first, _) = sorted((tmp_path / "songs").glob("*.wav"))
    file = read_audio(first)
    assert len(file) == 3 * SEGMENT_SAMPLES
    np.testing.assert_allclose(
        heard[1], librosa_log_mel(file.reshape(3, SEGMENT_SAMPLES)), atol=1e-6
    )


def test_survival_of_too_few_tracks_has_no_interval(tables):
    unknown = {"value": 0.5, "low": None, "high": None}
    summary = summarize(tables[0])
    (ax,) = plots.grid(1, 1)[1].flat
    plots_audio.survival(ax, summary.assign(survival=[unknown] * len(summary)))
    errors = [held for held in ax.containers if isinstance(held, ErrorbarContainer)]
    assert errors
    for bars in errors:
        assert not np.isfinite(bars.lines[2][0].get_segments()).any()


def test_figures_show_every_attack_and_channel(tables, tmp_path, clips):
    summary = summarize(tables[0])
    figure, axes = plots.grid(1, 2)
    plots_audio.success_over_ratio(axes[0, 0], summary, "documented")
    plots_audio.survival(axes[0, 1], summary)
    assert axes[0, 0].get_xlabel() == "signal-to-noise ratio (dB)"
    drawn = axes[0, 0].get_legend_handles_labels()[1]
    assert {labels.AUDIO_ATTACKS[name].label for name in ("noise", "pgd_masked")} <= set(drawn)
    shown = axes[0, 1].get_legend_handles_labels()[1]
    assert any(label.startswith("PGD on the waveform, 40 dB") for label in shown)
    bars = [bar for group in axes[0, 1].containers for bar in getattr(group, "patches", [])]
    survivals = summary.loc[summary["channel"].isin(labels.CODECS), "survival"].dropna()
    heights = sorted(bar.get_height() for bar in bars)
    np.testing.assert_allclose(heights, sorted(100 * m["value"] for m in survivals))
    assert plots.save_figure(figure, tmp_path / "a.png", "embedded").stat().st_size
    sounds = {"PGD": clips.samples[1]}
    assert not axes[0, 1].texts
    plots_audio.survival(axes[0, 0], summary.assign(survival=None))
    assert [text.get_text() for text in axes[0, 0].texts] == ["no clip was flipped"]
    shown = plots_audio.example(clips.samples[0], sounds, {"clean": "c", "PGD": "p"})
    assert [ax.get_title() for ax in shown.axes[:4]] == ["c", "p", "", "change"]


def test_the_folder_of_attacked_audio_is_ignored():
    path = RunPaths("gtzan").audio / "documented" / "songs" / "a.wav"
    done = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT)
    if done.returncode == 128:
        pytest.skip("not a git repository")
    assert done.returncode == 0
