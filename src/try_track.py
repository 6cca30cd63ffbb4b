"""The reader's own track under the networks of the repository: predictions, maps, attacks.

`try_track("song.mp3")` needs no corpus and no training; `app.try_track` writes its report.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from src.attacks.adversarial import Search, attack
from src.attacks.codecs import file_logits, to_16_bit
from src.attacks.waveform import attack_waveform, make_waveform_classifier, ratio_db
from src.data.features import DYNAMIC_RANGE_DB, SEGMENT_SECONDS, segment_audio
from src.data.own_track import OwnTrack, read_track
from src.explainability.gradcam import explain
from src.explainability.sonify import filter_by_map
from src.models.calibration import distance
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits, softmax
from src.models.zoo import known_tracks, load_pretrained, read_card
from src.progress import progress
from src.runtime import chunks

NETWORKS = ("improved", "robust", "documented")
EXCERPT_SEGMENTS = 10  # under attack, from the middle of the track
SNR_DB = 40
MINIMAL_DB = (0.02, 8.0)  # between which the smallest change is sought
HALVINGS = 5  # of their ratio: the result is at most 1.2 times the least that PGD needs
SEARCH = Search(iterations=5)
AUDIO_SEARCH = Search(iterations=10)
PEAK = 0.99


class Network(NamedTuple):
    """A network of the repository, its model card, and the names of the tracks it learnt from."""

    model: GenreClassifierCNN
    card: dict
    known: set[str]


class Reading(NamedTuple):
    """What one network predicts of a track.

    Attributes
    ----------
    genres : names
    probabilities : (n, n_genres) calibrated, of each segment
    unfamiliar : its sound is further from the training data than 99% of the validation segments
    known : a track of this name was used to train or to choose the network
    calibrated : its card states a temperature
    minimal_db : the smallest eps that changes the vote over the excerpt; None if none below
        8 dB does, or none was sought
    flipped_to : the genre that the vote changes to, empty without `minimal_db`
    """

    genres: list[str]
    probabilities: np.ndarray
    unfamiliar: bool
    known: bool
    calibrated: bool
    minimal_db: float | None = None
    flipped_to: str = ""

    @property
    def vote(self) -> np.ndarray:
        """The mean probability (n_genres,) over the segments: that of the track."""
        return self.probabilities.mean(axis=0)

    def ranking(self, n: int = 3) -> list[tuple[str, float]]:
        """Return the `n` most probable genres of the track with their probabilities."""
        return [(self.genres[k], float(self.vote[k])) for k in np.argsort(-self.vote)[:n]]


class Trial(NamedTuple):
    """All that is measured on a track; maps and sounds are those of the first network.

    Attributes
    ----------
    track : its segments
    X : (n, 128, 130) their log-mels
    readings : by network
    maps : (n, 128, 130) Grad-CAM for the genre of the track
    excerpt : (k,) segments under attack
    sounds : samples (k * 66150,): clean, noise, attack, difference, kept, left_out
    votes : (n_genres,) of the excerpt: clean, noise, attack
    snr_db : of the attack, reached
    """

    track: OwnTrack
    X: np.ndarray
    readings: dict[str, Reading]
    maps: np.ndarray
    excerpt: np.ndarray
    sounds: dict[str, np.ndarray]
    votes: dict[str, np.ndarray]
    snr_db: float


def try_track(path: Path | str, names: tuple[str, ...] = NETWORKS) -> Trial:
    """Return predictions, maps and attacks of an audio file; see `Trial`.

    Parameters
    ----------
    path : of any format that libsndfile or ffmpeg reads; ten minutes of it are used, and the
        middle 30 s are attacked
    names : networks of the repository; all are compared, the first one is explained and attacked
        as audio

    Raises
    ------
    FileNotFoundError, or ValueError for a file that cannot be used and for an unknown network, in
    one sentence.
    """
    networks = load_networks(names)
    track = read_track(Path(path))
    X, readings = predict(track, networks)
    excerpt = middle(len(X))
    for name, network in networks.items():
        minimal = minimal_change(name, network, X[excerpt])
        readings[name] = readings[name]._replace(minimal_db=minimal[0], flipped_to=minimal[1])
    first = networks[names[0]]
    maps = explain(first.model, X, np.full(len(X), readings[names[0]].vote.argmax()))
    clean = to_16_bit(track.samples[excerpt])
    sounds = {"clean": clean, **_attack_audio(first, clean)}
    votes = {kind: _vote(first, file_logits(first.model, each)) for kind, each in sounds.items()}
    sounds |= {"difference": _amplified(clean, sounds["attack"]), **_parts(clean, maps[excerpt])}
    (snr_db,) = ratio_db(clean.reshape(1, -1), sounds["attack"].reshape(1, -1))
    sounds = {kind: samples.ravel() for kind, samples in sounds.items()}
    return Trial(track, X, readings, maps, excerpt, sounds, votes, float(snr_db))


def load_networks(names: tuple[str, ...]) -> dict[str, Network]:
    """Return networks of the repository by name; ValueError for an unknown or damaged one."""
    return {
        name: Network(load_pretrained(name), read_card(name), set(known_tracks(name)["track"]))
        for name in names
    }


def predict(track: OwnTrack, networks: dict[str, Network]) -> tuple[np.ndarray, dict[str, Reading]]:
    """Return the log-mels (n, 128, 130) of a track and what each network predicts."""
    parts = [segment_audio(part.ravel(), len(part)) for part in chunks(track.samples, 32)]
    X, readings = np.concatenate(parts), {}
    for name, (model, card, known) in networks.items():
        logits = predict_logits(model, X)
        marks = _is_unfamiliar(X, card), Path(track.name).stem in known, "temperature" in card
        readings[name] = Reading(card["genres"], _calibrated(logits, card), *marks)
    return X, readings


def middle(n: int) -> np.ndarray:
    """Return the numbers of at most ten segments in the middle of `n`."""
    size = min(n, EXCERPT_SEGMENTS)
    return np.arange(size) + (n - size) // 2


def minimal_change(name: str, network: Network, X: np.ndarray) -> tuple[float | None, str]:
    """Return the smallest eps in dB that changes the vote over segments, and the new genre.

    PGD lowers the probability of the voted genre in all segments (k, 128, 130) at one eps, which
    is found by bisection on a logarithmic scale. None and "" if none changes the vote.
    """
    genre = _vote(network, predict_logits(network.model, X)).argmax()
    (low, high), found = MINIMAL_DB, (None, "")
    for step in progress(range(HALVINGS + 1), f"{name}: smallest change", unit="step"):
        tried = (low * high) ** 0.5 if step else high
        eps = tried / DYNAMIC_RANGE_DB
        attacked = attack("pgd", network.model, X, np.full(len(X), genre), eps, SEARCH)
        new = _vote(network, predict_logits(network.model, attacked)).argmax()
        if new == genre and not step:
            break  # the largest change does not suffice
        if new == genre:
            low = tried
        else:
            high, found = tried, (tried, network.card["genres"][new])
    return found


def segment_table(trial: Trial) -> pd.DataFrame:
    """Return one row per network and segment: start_s, predicted genre, probability of each."""
    tables = []
    for name, reading in trial.readings.items():
        table = pd.DataFrame(reading.probabilities, columns=reading.genres)
        table.insert(0, "predicted", np.array(reading.genres)[reading.probabilities.argmax(axis=1)])
        table.insert(0, "start_s", trial.track.starts_s)
        table.insert(0, "network", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def facts(trial: Trial) -> dict:
    """Return the results of a trial as JSON stores them."""
    track, genres = trial.track, next(iter(trial.readings.values())).genres
    start, end = track.starts_s[trial.excerpt[[0, -1]]]
    return {
        "track": track.name,
        "length_s": track.length_s,
        "used_s": track.used_s,
        "segments": len(trial.X),
        "excerpt_s": [start, end + SEGMENT_SECONDS],
        "networks": {
            name: {
                "probabilities": dict(zip(reading.genres, reading.vote, strict=True)),
                **{key: getattr(reading, key) for key in Reading._fields[2:]},
            }
            for name, reading in trial.readings.items()
        },
        "audio": {
            "network": next(iter(trial.readings)),
            "snr_db": None if np.isnan(trial.snr_db) else trial.snr_db,
            **{kind: dict(zip(genres, vote, strict=True)) for kind, vote in trial.votes.items()},
        },
    }


def _is_unfamiliar(X: np.ndarray, card: dict) -> bool:
    """Return whether half of the segments sound unlike the data that a network was trained on."""
    sound = card.get("sound")
    return sound is not None and bool(np.median(distance(X, sound)) > sound["limit"])


def _vote(network: Network, logits: np.ndarray) -> np.ndarray:
    """Return the mean (n_genres,) of the calibrated probabilities of segments."""
    return _calibrated(logits, network.card).mean(axis=0)


def _calibrated(logits: np.ndarray, card: dict) -> np.ndarray:
    return softmax(logits / card.get("temperature", 1.0))


def _attack_audio(network: Network, clean: np.ndarray) -> dict:
    """Return white noise and PGD (k, 66150) of one signal-to-noise ratio in each segment."""
    classifier = make_waveform_classifier(network.model)
    y = np.full(len(clean), _vote(network, file_logits(network.model, clean)).argmax())
    kinds = progress({"noise": "noise", "attack": "pgd_waveform"}.items(), "audio", unit="attack")
    return {
        kind: attack_waveform(method, classifier, clean, y, SNR_DB, AUDIO_SEARCH)
        for kind, method in kinds
    }


def _amplified(clean: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """Return the difference at the level of the music, or as near to it as full scale allows."""
    change = attacked - clean
    if not change.any():
        return change
    gain = np.linalg.norm(clean) / np.linalg.norm(change)
    return change * min(gain, PEAK / np.abs(change).max())


def _parts(clean: np.ndarray, maps: np.ndarray) -> dict[str, np.ndarray]:
    """Return what maps keep of segments (k, 66150) and what they leave out."""
    kept = np.stack([filter_by_map(*pair) for pair in zip(clean, maps, strict=True)])
    return {"kept": kept, "left_out": clean - kept}
