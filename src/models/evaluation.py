"""Evaluation: float32 predictions, accuracy of segments and tracks, a baseline."""

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from src.runtime import chunks, device, forget_read, memory_format
from src.statistics import mean_over_tracks

BATCH_SIZE = 32
BASELINE_SEGMENTS = 50_000  # at most, for training the baseline
BINS = 15  # of confidence, for the calibration error


def predict_logits(model: nn.Module, X: np.ndarray) -> np.ndarray:
    """Return float32 logits (n, n_genres) of segments (n, 128, 130)."""
    model = model.eval().to(device(), memory_format=memory_format())
    logits = []
    with torch.inference_mode():
        for some in chunks(X, BATCH_SIZE):
            batch = torch.from_numpy(np.array(some, dtype=np.float32))[:, None]
            batch = batch.to(device(), memory_format=memory_format())
            logits.append(model(batch).float().cpu().numpy())
    return np.concatenate(logits)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (n, n_genres) of logits."""
    return torch.from_numpy(logits).double().softmax(dim=1).numpy()


def vote(probabilities: np.ndarray, tracks: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    """Return one row per track: track, true and predicted genre number by mean probability.

    `confidence` is the mean probability of the predicted genre.
    """
    names, first, number = np.unique(tracks, return_index=True, return_inverse=True)
    mean = np.zeros((len(names), probabilities.shape[1]))
    np.add.at(mean, number, probabilities / np.bincount(number)[number, None])
    facts = {"track": names, "true": y[first], "predicted": mean.argmax(axis=1)}
    return pd.DataFrame(facts | {"confidence": mean.max(axis=1)})


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the expected calibration error of predictions (n,) (Guo et al. 2017), a fraction.

    It is the mean distance between confidence and accuracy over `BINS` bins of equal width,
    weighted by their numbers of predictions.
    """
    bins = np.ceil(np.asarray(confidence) * BINS).astype(int)
    gaps = np.bincount(bins, np.asarray(correct, dtype=float) - confidence)
    return float(np.abs(gaps).sum() / len(bins))


def evaluate(probabilities: np.ndarray, y: np.ndarray, tracks: np.ndarray, genres: list) -> dict:
    """Return accuracies (fractions, with intervals over tracks) of segments and of tracks.

    `probabilities` (n, n_genres), true numbers `y` (n,), the track of each segment. A track is
    predicted by the mean probability of its segments. `calibration` is of segments. `per_genre` and
    `macro_recall` leave out genres without a segment.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    voted = vote(probabilities, tracks, y)
    track_right = voted["predicted"] == voted["true"]
    labels = range(len(genres))
    return {
        "loss": float(log_loss(y, probabilities, labels=list(labels))),
        "chance": 1 / len(genres),
        "segment_accuracy": mean_over_tracks(predicted == y, tracks),
        "track_accuracy": mean_over_tracks(track_right, voted["track"]),
        "calibration": {
            "mean_confidence": float(confidence.mean()),
            "calibration_error": calibration_error(confidence, predicted == y),
        },
        "macro_recall": {
            "segment": float(np.mean([(predicted == y)[y == k].mean() for k in np.unique(y)])),
            "track": float(track_right.groupby(voted["true"]).mean().mean()),
        },
        "per_genre": {
            genres[k]: mean_over_tracks((predicted == y)[y == k], tracks[y == k])
            for k in np.unique(y)
        },
        "confusion_segments": confusion_matrix(y, predicted, labels=labels),
        "confusion_tracks": confusion_matrix(voted["true"], voted["predicted"], labels=labels),
    }


def band_statistics(X: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Return mean and deviation over time of each mel band: (n, 256) of segments (n, 128, 130).

    Of some `rows` only, if they are given.
    """
    parts = []
    for some in chunks(np.arange(len(X)) if rows is None else rows, BATCH_SIZE):
        part = X[some]
        parts.append(np.concatenate([part.mean(axis=2), part.std(axis=2)], axis=1))
        forget_read(X)
    return np.concatenate(parts)


def baseline_probabilities(
    X_train: np.ndarray, y_train: np.ndarray, X_test: np.ndarray, n_genres: int
) -> np.ndarray:
    """Return the probabilities (n, n_genres) of logistic regression on `band_statistics`.

    This baseline uses mean levels and deviations of mel bands only, no rhythm or melody. It is
    trained on at most 50,000 segments, drawn at random.
    """
    drawn = np.arange(len(X_train))
    if len(drawn) > BASELINE_SEGMENTS:
        drawn = np.sort(np.random.default_rng(0).permutation(drawn)[:BASELINE_SEGMENTS])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(band_statistics(X_train, drawn), y_train[drawn])
    probabilities = np.zeros((len(X_test), n_genres))
    probabilities[:, classifier.classes_] = classifier.predict_proba(band_statistics(X_test))
    return probabilities / probabilities.sum(axis=1, keepdims=True)
