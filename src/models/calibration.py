"""How far a prediction can be trusted: calibrated confidence, and sound unlike the training data.

The card of a published network has what `calibration` returns of its validation segments.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from src.models.evaluation import band_statistics, softmax

RANGES = 4  # of frequency, of 32 mel bands each
FAMILIAR_SHARE = 0.99
TEMPERATURES = (0.05, 20)


def calibration(logits: np.ndarray, X: np.ndarray, y: np.ndarray, tracks: np.ndarray) -> dict:
    """Return facts of validation segments for a model card: `temperature` and `sound`.

    `sound` has mean and deviation (8,) of `sound_statistics` and `limit`, the distance from them
    that 99% of the segments do not exceed.

    Parameters
    ----------
    logits : (n, n_genres)
    X : (n, 128, 130) their log-mels
    y : (n,) true genre numbers
    tracks : (n,) the track of each
    """
    statistics = sound_statistics(X)
    sound = {"mean": statistics.mean(axis=0), "deviation": statistics.std(axis=0)}
    limit = np.quantile(distance(X, sound), FAMILIAR_SHARE)
    sound = {name: np.round(values.astype(float), 4).tolist() for name, values in sound.items()}
    temperature = round(fit_temperature(logits, y, tracks), 4)
    return {"temperature": temperature, "sound": sound | {"limit": round(float(limit), 4)}}


def fit_temperature(logits: np.ndarray, y: np.ndarray, tracks: np.ndarray) -> float:
    """Return the temperature whose mean probability over each track has the lowest log loss.

    Logits (n, n_genres) of segments are divided by it; below 1 it raises confidence. Averaging
    lowers confidence: the temperature of single segments would be higher. Source: Guo et al. 2017.
    """
    _, first, number = np.unique(tracks, return_index=True, return_inverse=True)
    genres = list(range(logits.shape[1]))

    def loss(log_temperature: float) -> float:
        sums = np.zeros((len(first), logits.shape[1]))
        np.add.at(sums, number, softmax(logits / np.exp(log_temperature)))
        return log_loss(y[first], sums / sums.sum(axis=1, keepdims=True), labels=genres)

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def sound_statistics(X: np.ndarray) -> np.ndarray:
    """Return level and deviation over time in four ranges of frequency: (n, 8) of segments."""
    return band_statistics(X).reshape(len(X), 2 * RANGES, -1).mean(axis=2)


def distance(X: np.ndarray, sound: dict) -> np.ndarray:
    """Return how far segments (n, 128, 130) are from the sound of the training data: (n,).

    The mean square of the differences to its mean, in its deviations.
    """
    difference = sound_statistics(X) - np.asarray(sound["mean"])
    return np.square(difference / np.asarray(sound["deviation"])).mean(axis=1)
