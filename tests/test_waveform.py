import numpy as np
import pytest
import torch
from torch import nn

from src.attacks import psychoacoustics, waveform
from src.attacks.adversarial import Search
from src.attacks.codecs import file_logits, to_16_bit
from src.attacks.psychoacoustics import Masker, hide, masking_levels
from src.attacks.waveform import (
    ATTACKS,
    MASKED,
    WITHIN_RATIO,
    attack_waveform,
    behind_front_end,
    make_waveform_classifier,
    noise_to_mask_db,
    ratio_db,
    segmental_ratio_db,
)
from src.data.features import N_FRAMES, SEGMENT_SAMPLES, stft
from src.models import cnn
from src.models.cnn import GenreClassifierCNN, fold_batch_norm

TIME = np.arange(SEGMENT_SAMPLES) / 22_050
STEPS = Search(3)


def music(seed, level=0.3):
    """Return a clip of a few decaying tones over faint noise."""
    rng = np.random.default_rng(seed)
    beat = np.exp(-4 * (TIME % 0.5))
    tones = [np.sin(2 * np.pi * hertz * TIME) for hertz in rng.uniform(80, 4000, 5)]
    clip = level * (beat * np.sum(tones, axis=0) / 5 + 0.01 * rng.normal(size=TIME.shape))
    return to_16_bit(clip)


@pytest.fixture(scope="module")
def model():
    """Return a slim network, untrained and sensitive."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cnn, "WIDTHS", (4, 8, 8, 8))
        patch.setattr(cnn, "DENSE", (16, 16))
        torch.manual_seed(0)
        network = GenreClassifierCNN(3).eval()
    network.output.weight.data *= 100
    return network


@pytest.fixture(scope="module")
def classifier(model):
    return make_waveform_classifier(model)


@pytest.fixture(scope="module")
def clips():
    """Return loud, middling and very quiet music, noise near full scale, silence."""
    loud = np.random.default_rng(0).uniform(-1, 1, SEGMENT_SAMPLES)
    return np.stack([music(1), music(2, 0.05), music(3, 0.002), to_16_bit(loud), 0 * music(1)])


@pytest.fixture(scope="module")
def y(model, clips):
    return file_logits(model, clips).argmax(axis=1)


@pytest.fixture(scope="module")
def attacked(classifier, clips, y):
    """Return clips attacked within 40 dB, or 10 dB beneath the masking level."""
    return {
        name: attack_waveform(name, classifier, clips, y, 10 if name in MASKED else 40, STEPS)
        for name in ATTACKS
    }


def test_gradients_through_front_end_and_network_agree_with_finite_differences(model):
    network = behind_front_end(fold_batch_norm(model)).double()
    samples = torch.from_numpy(np.stack([music(1), music(2)])).double().requires_grad_()
    target = torch.tensor([0, 2])
    step = torch.randn(samples.shape, dtype=torch.double, generator=torch.manual_seed(0))
    loss = nn.CrossEntropyLoss()
    (gradient,) = torch.autograd.grad(loss(network(samples), target), samples)
    with torch.no_grad():
        ahead, behind = (loss(network(samples + h * step), target) for h in (1e-9, -1e-9))
    slope = (ahead - behind) / 2e-9
    assert abs(slope) > 1e-3
    torch.testing.assert_close((gradient * step).sum(), slope, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacked_clips_are_those_of_16_bit_files_and_silence_stays(name, attacked, clips):
    found = attacked[name]
    assert (found.shape, found.dtype) == (clips.shape, np.float32)
    assert np.array_equal(found, to_16_bit(found))
    assert not np.array_equal(found[0], clips[0])
    assert not found[4].any()


@pytest.mark.parametrize("name", WITHIN_RATIO)
@pytest.mark.parametrize("floor_db", [20, 60])
def test_the_ratio_holds_after_rounding(name, floor_db, classifier, clips, y):
    ratio = ratio_db(clips, attack_waveform(name, classifier, clips, y, floor_db, STEPS))
    assert (ratio[~np.isnan(ratio)] >= floor_db - 1e-3).all()
    if name in ("noise", "pgd_waveform"):
        used_up = [0, 1] if floor_db == 20 else [0]  # 60 dB of faint music are below a 16-bit step
        np.testing.assert_allclose(ratio[used_up], floor_db, atol=0.1)


def test_the_segmental_ratio_weighs_loud_and_quiet_windows_alike(clips):
    levels = np.repeat([1, 0.1, 0], [33_075, 22_050, 11_025])
    clip = (levels * np.sin(TIME * 5e3))[None]
    noisy = clip + 0.01 * np.sin(TIME * 7e3)
    (segmental,), (whole,) = segmental_ratio_db(clip, noisy), ratio_db(clip, noisy)
    assert segmental == pytest.approx((15 * 40 + 10 * 20) / 25, abs=0.1)
    assert whole > segmental + 4
    assert np.isnan(segmental_ratio_db(clips, clips)).all()


def test_the_noise_to_mask_ratio_is_that_of_the_cells(clips):
    levels = masking_levels(clips[:2])
    change = np.random.default_rng(0).normal(size=clips[:2].shape)
    energy = np.square(stft(torch.from_numpy(change.astype(np.float32))).abs().numpy() / levels)
    expected = 10 * np.log10(energy.mean(axis=(1, 2)))
    np.testing.assert_allclose(noise_to_mask_db(change, levels), expected, rtol=1e-4)
    np.testing.assert_allclose(noise_to_mask_db(change / 10, levels), expected - 20, rtol=1e-4)
    assert np.isnan(noise_to_mask_db(0 * change, levels)).all()


def test_a_masked_change_has_a_noise_to_mask_ratio_below_zero(attacked, clips):
    levels = masking_levels(clips[:2])
    ratio = {n: noise_to_mask_db((attacked[n] - clips)[:2], levels) for n in ("noise", *MASKED)}
    assert (ratio["pgd_masked"] < 0).all()
    assert (ratio["noise"] > 0).all()


def test_white_noise_has_no_genre_in_mind(attacked, clips, classifier, y):
    again = attack_waveform("noise", classifier, clips, 2 - y, 40, STEPS)
    assert np.array_equal(again, attacked["noise"])


def test_fgsm_changes_no_sample_by_more_than_its_bound_and_pgd_may(attacked, clips):
    bound = 0.01 * np.sqrt(np.square(clips[:2], dtype=float).mean(axis=1))
    fgsm, pgd = (np.abs(attacked[f"{n}_waveform"] - clips)[:2].max(axis=1) for n in ("fgsm", "pgd"))
    assert (fgsm <= bound + 0.5 / 32_768 + 1e-9).all()
    assert (fgsm > bound - 1 / 32_768).all()
    assert pgd[0] > 1.5 * fgsm[0]


def test_pgd_raises_the_loss_more_than_fgsm_and_noise(model, attacked, y):
    def loss(name):
        logits = torch.from_numpy(file_logits(model, attacked[name][:2]))
        return nn.functional.cross_entropy(logits, torch.from_numpy(y[:2])).item()

    assert loss("pgd_waveform") > loss("fgsm_waveform") > loss("noise")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ATTACKS)
def test_silence_alone_and_no_clips_at_all_are_no_error(name, classifier, clips, y):
    for rows in (slice(4, 5), slice(0, 0)):
        found = attack_waveform(name, classifier, clips[rows], y[rows], 40, Search(1))
        assert np.array_equal(found, clips[rows])


def test_a_clip_too_quiet_for_its_budget_stays_as_it_is(classifier, y):
    faint = (np.arange(SEGMENT_SAMPLES) % 100 == 0)[None] / np.float32(32_768)
    assert np.array_equal(attack_waveform("noise", classifier, faint, y[:1], 40, STEPS), faint)


def test_a_change_that_rounding_keeps_too_large_is_given_up(monkeypatch):
    clips = np.full((2, 100), 0.5, dtype=np.float32)
    change = np.full((2, 100), 0.6 / 32_768)
    radius = np.array([9.0, 11.0]) / 32_768  # rounded, the change is 10 steps long
    monkeypatch.setattr(waveform, "ROUNDS", 1)
    found = waveform._rounded(clips, change, radius)
    assert np.array_equal(found[0], clips[0])
    assert np.array_equal(found[1], clips[1] + np.float32(1 / 32_768))


def test_an_attack_depends_on_its_seed_alone(classifier, clips, y):
    one, two, other = (
        attack_waveform("pgd_waveform", classifier, clips[:1], y[:1], 40, Search(1, seed))
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_an_unknown_attack_or_budget_is_refused(classifier, clips, y):
    for name, budget, search, message in (
        ("noise", float("nan"), STEPS, "The budget of noise is nan dB: give a number"),
        ("pgd_waveform", 40, Search(0), "The number of iterations is 0"),
        ("pgd", 40, STEPS, "pgd is not an attack known here: give one of noise, "),
    ):
        with pytest.raises(ValueError, match=message):
            attack_waveform(name, classifier, clips, y, budget, search)


def test_an_attack_that_breaks_its_ratio_is_not_returned(classifier, clips, y, monkeypatch):
    monkeypatch.setattr(waveform, "_rounded", lambda samples, change, radius: samples + change)
    monkeypatch.setattr(waveform, "_norm", lambda samples: np.full(len(samples), 3.0))
    monkeypatch.setattr(waveform, "ratio_db", lambda *_: np.array([12.0]))
    with pytest.raises(AssertionError, match=r"ratio of 12\.00 dB, below the 40 dB"):
        attack_waveform("noise", classifier, clips[:1], y[:1], 40, STEPS)


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_change_lies_beneath_the_level_of_every_cell(name, attacked, clips):
    levels = masking_levels(clips[:2])
    change = (attacked[name] - clips)[:2]
    rounding = 6 * 2048**0.5 / 32_768 * (3 / 8 / 12) ** 0.5  # six deviations of a cell's rounding
    magnitude, levels = stft(torch.from_numpy(change)).abs().numpy(), levels * 10**-0.5
    assert (magnitude / (levels + rounding)).max() <= 1.0001
    assert (magnitude[0] / levels[0]).max() > 0.5


def test_hidden_changes_fit_and_fill_their_levels(clips):
    levels = torch.from_numpy(masking_levels(clips[:3]))
    loud = torch.randn(3, SEGMENT_SAMPLES, generator=torch.manual_seed(0))
    for change in (loud, 100 * loud):
        hidden = hide(change, levels)
        assert (stft(hidden).abs() <= levels * (1 + 1e-4)).all()
        assert (stft(hidden).abs() / levels).amax(dim=(1, 2)).min() > 0.9
    faint = 1e-9 * loud
    torch.testing.assert_close(hide(faint, levels), faint, rtol=1e-3, atol=1e-12)


def test_levels_follow_the_music_in_time_and_frequency():
    burst = 0.5 * np.sin(2 * np.pi * 1000 * TIME) * (TIME > 1.5) + 1e-4 * music(1)
    (levels,) = masking_levels(burst[None])
    assert levels.shape == (1025, N_FRAMES)
    bins = {hertz: round(hertz / 22_050 * 2048) for hertz in (300, 1000, 1500, 3000)}
    before, during = (
        {hertz: 20 * np.log10(levels[row, frame]) for hertz, row in bins.items()}
        for frame in (30, 100)
    )
    assert during[1000] > during[1500] > during[3000] > before[3000] - 1
    assert during[1500] > during[300]  # masking reaches further upwards
    assert during[1000] > before[1000] + 30
    tone = 20 * torch.log10(stft(torch.from_numpy(burst[None]))[0, bins[1000], 100].abs())
    # ISO 11172-3: 6.025 + 0.275 z below the masker, which spans three bins, shared by a Bark's bins
    z = 13 * np.arctan(0.76) + 3.5 * np.arctan(1 / 7.5**2)
    bins_per_bark = 1 / np.gradient(psychoacoustics._masker().bark)[bins[1000]]
    expected = tone.item() + 1.76 - 6.025 - 0.275 * z - 10 * np.log10(bins_per_bark)
    assert during[1000] == pytest.approx(expected, abs=1)


def test_maskers_stand_half_a_bark_apart_and_the_louder_stays():
    masker = Masker(2048, 512, 22_050)
    rows = np.array([50, 52, 54, 300, 400])
    levels, kept = masker.filter_maskers(np.array([60.0, 70, 65, 50, -20]), rows)
    assert kept.tolist() == [52, 300]
    assert levels.tolist() == [70, 50]
    assert [len(found) for found in masker.filter_maskers(levels - 200, kept)] == [0, 0]


def test_a_masker_masks_with_two_slopes_of_which_the_upper_depends_on_its_level():
    masker = Masker(2048, 512, 22_050)
    position = round(1000 / 22_050 * 2048)
    loud, soft = masker.calculate_individual_threshold(np.array([80.0, 40]), [position] * 2)
    away = masker.bark - masker.bark[position]
    below, above = (np.abs(away - distance).argmin() for distance in (-1, 1))
    assert loud[position] == pytest.approx(80 - 6.025 - 0.275 * masker.bark[position])
    assert loud[below] - loud[position] == pytest.approx(27 * away[below])
    assert loud[above] - loud[position] == pytest.approx((-27 + 0.37 * 40) * away[above])
    assert soft[above] - soft[position] == pytest.approx(-27 * away[above])


def test_nothing_is_heard_below_20_hz_and_best_near_3_to_4_khz():
    threshold = Masker(2048, 512, 22_050).absolute_threshold_hearing
    assert np.isfinite(threshold).all()
    assert threshold[0] == threshold[1] > threshold[2]
    assert 3000 < threshold.argmin() / 2048 * 22_050 < 4000
