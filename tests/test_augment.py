import math

import numpy as np
import torch

from src.data.features import N_FRAMES
from src.models.augment import (
    CROPS_PER_TRACK,
    CropDataset,
    cut_mix,
    filtered,
    mask,
    shuffled_labels,
    warped,
)
from src.models.recipes import DOCUMENTED, RECIPES


def ramps(lengths=(400, 300)):
    """Return tracks whose value tells the frame, silent beyond their length."""
    tracks = np.zeros((len(lengths), 128, max(lengths)), dtype=np.float16)
    for track, length in zip(tracks, lengths, strict=True):
        track[:, :length] = np.linspace(0.2, 1, length, dtype=np.float16)
    return CropDataset(tracks, np.array(lengths), np.array([3, 7]))


def test_crops_are_brought_to_their_own_maximum_and_stay_in_range():
    X, _ = ramps().__getitems__(list(range(20)))
    assert X.shape == (20, 1, 128, N_FRAMES)
    assert X.dtype == torch.float32
    assert (X.amax(dim=(1, 2, 3)) == 1).all()
    assert X.min() >= 0


def test_crops_start_anywhere_but_end_within_the_track():
    torch.manual_seed(0)
    data = ramps()
    X, _ = data.__getitems__([CROPS_PER_TRACK] * 300)  # the short track
    rise = (X[:, 0, 0, -1] - X[:, 0, 0, 0]).numpy()
    assert np.ptp(rise) < 0.01  # the padding behind the track would break the ramp
    starts = [data.__getitems__([0])[0][0, 0, 0, 0].item() for _ in range(50)]
    assert len(set(starts)) > 40 or np.allclose(starts, starts[0], atol=0.01)


def test_each_track_gives_ten_crops_of_its_genre():
    data = ramps()
    _, y = data.__getitems__(list(range(len(data))))
    assert y.tolist() == [3] * CROPS_PER_TRACK + [7] * CROPS_PER_TRACK


def test_crops_follow_the_seed():
    data, batches = ramps(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(data.__getitems__([0, 1, 2, 3])[0])
    assert batches[0].equal(batches[1])
    data.tracks = np.random.default_rng(0).random(data.tracks.shape).astype(np.float16)
    torch.manual_seed(1)
    one = data.__getitems__([0, 1])[0]
    torch.manual_seed(2)
    assert not one.equal(data.__getitems__([0, 1])[0])


def test_masks_blank_one_stripe_each_way_no_wider_than_asked():
    torch.manual_seed(0)
    X = torch.rand(64, 1, 128, 130)
    masked = mask(X, bands=16, frames=20)
    changed = masked != X
    bands = changed.all(dim=3)[:, 0].sum(dim=1)
    frames = changed.all(dim=2)[:, 0].sum(dim=1)
    assert 8 < bands.max() <= 16
    assert 12 < frames.max() <= 20
    mean = X.mean(dim=(2, 3), keepdim=True).expand_as(X)
    assert torch.allclose(masked[changed], mean[changed])
    assert (changed.float().mean(dim=(1, 2, 3)) < 16 / 128 + 20 / 130).all()


def test_filters_are_smooth_and_within_their_gain():
    torch.manual_seed(0)
    X = torch.full((50, 1, 128, 130), 0.5)
    X[:, :, :, 0] = 0.6
    played = filtered(X, 6)
    assert (played.amax(dim=(1, 2, 3)) - 1).abs().max() < 1e-6
    gains_db = 80 * (played - X)[:, 0, :, 1:]
    assert torch.allclose(gains_db, gains_db[..., :1].expand_as(gains_db), atol=1e-3)
    spread = gains_db.amax(dim=(1, 2)) - gains_db.amin(dim=(1, 2))
    assert 6 < spread.max() <= 12.001
    assert gains_db[..., 0].diff(dim=1).abs().max() <= 12 / 25.4 + 1e-3


def test_a_warp_moves_pitch_and_tempo_within_its_bounds():
    torch.manual_seed(0)
    X = torch.zeros(60, 1, 128, 130)
    X[:30, :, 60:68] = 1  # a tone
    X[30:] = (torch.arange(130) % 10 < 5).float()  # a beat
    played = warped(X, 0.2)
    bands = torch.arange(128.0)
    pitch = torch.stack([(x * bands).sum() / x.sum() for x in played[:30, 0, :, 65]]) - 63.5
    widest = 26 * math.log2(1.2)
    assert 0.8 * widest < pitch.abs().max() < widest + 0.1
    beats = (played[30:, 0, 64] > 0.5).int().diff(dim=1).eq(1).sum(dim=1)
    assert 12 / 1.2 - 1 <= beats.min() < 11
    assert 13 < beats.max() <= 12 * 1.2 + 1
    assert (played.amax(dim=(1, 2, 3)) == 1).all()
    assert played.min() >= 0


def test_augmentation_of_no_size_changes_nothing():
    X = torch.rand(4, 1, 128, 130)
    assert mask(X, 0, 0).equal(X)
    assert filtered(X, 0).equal(X)
    assert warped(X, 0).equal(X)
    assert torch.allclose(warped(X, 1e-9), X + 1 - X.amax(dim=(2, 3), keepdim=True), atol=1e-4)


def test_cut_mix_takes_one_stripe_of_frames_and_its_share_of_the_label():
    torch.manual_seed(0)
    X = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 128, 130)
    y = torch.arange(6)
    for _ in range(20):
        mixed, targets = cut_mix(X, y, 6, share=1)
        row = mixed[:, 0, 0]
        assert (mixed == row[:, None, None]).all()  # frequencies stay together
        assert (row != y[:, None]).diff(dim=1).sum(dim=1).max() <= 2  # one stripe
        taken = (row != y[:, None]).float().mean(dim=1)
        assert 0.09 < taken[taken > 0].min() <= taken.max() <= 0.5
        share = torch.stack([(row == genre).float().mean(dim=1) for genre in range(6)], dim=1)
        assert torch.allclose(targets, share, atol=0.01)


def test_cut_mix_changes_the_given_share_of_batches():
    torch.manual_seed(0)
    X, y = torch.rand(4, 1, 2, 130), torch.arange(4)
    changed = [cut_mix(X, y, 4, share=0.3)[1].ndim == 2 for _ in range(500)]
    assert 0.2 < np.mean(changed) < 0.4
    assert cut_mix(X, y, 4, share=0) == (X, y)


def test_every_recipe_sets_every_parameter():
    assert all(set(r) == set(DOCUMENTED) for r in RECIPES.values())


def test_shuffled_labels_are_shared_by_a_track_and_as_many_as_before():
    tracks = np.repeat([f"t{k:02}" for k in range(40)], 10)
    y = np.repeat(np.arange(40) % 4, 10)
    shuffled = shuffled_labels(y, tracks, seed=0)
    by_track = shuffled.reshape(40, 10)
    assert (by_track == by_track[:, :1]).all()
    assert np.bincount(shuffled).tolist() == np.bincount(y).tolist()
    assert 0.1 < (shuffled == y).mean() < 0.45
    assert (shuffled == shuffled_labels(y, tracks, seed=0)).all()
    assert (shuffled != shuffled_labels(y, tracks, seed=1)).any()
