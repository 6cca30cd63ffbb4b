import numpy as np
import pytest

from src.models.calibration import calibration, distance, fit_temperature
from src.models.evaluation import softmax


def labelled(rng, n_tracks, n_segments):
    """Return logits of segments of tracks whose genre is drawn from their mean probability."""
    logits = rng.normal(size=(n_tracks, n_segments, 4)) + 2 * rng.normal(size=(n_tracks, 1, 4))
    p = softmax(logits.reshape(-1, 4)).reshape(logits.shape).mean(axis=1)
    y = np.array([rng.choice(4, p=each) for each in p])
    tracks = np.repeat(np.arange(n_tracks), n_segments)
    return logits.reshape(-1, 4), np.repeat(y, n_segments), tracks


@pytest.mark.parametrize("wrong", [0.5, 1, 3])
def test_the_temperature_undoes_a_factor_of_the_logits(wrong):
    logits, y, tracks = labelled(np.random.default_rng(0), 2000, 3)
    assert fit_temperature(wrong * logits, y, tracks) == pytest.approx(wrong, rel=0.1)


def test_confidence_is_that_of_tracks_whose_segments_are_averaged():
    logits, y, tracks = labelled(np.random.default_rng(1), 1000, 5)
    alone = np.arange(len(y))
    assert fit_temperature(logits, y, tracks) < fit_temperature(logits, y, alone)


def test_other_sound_is_further_away_than_the_validation_segments():
    rng = np.random.default_rng(0)
    X = 0.5 + 0.1 * rng.normal(size=(200, 128, 1)) + 0.1 * rng.normal(size=(200, 1, 130))
    y, tracks = np.arange(200) % 3, np.arange(200)
    sound = calibration(rng.normal(size=(200, 3)), X, y, tracks)["sound"]
    assert (distance(X, sound) > sound["limit"]).mean() == pytest.approx(0.01, abs=0.005)
    still, faint = np.repeat(X[:, :, :1], 130, axis=2), X * 0.5
    for other in (still, faint):
        assert (distance(other, sound) > sound["limit"]).mean() > 0.95
