"""Whole tracks under attack: what songs are heard as, and what attacks do to other networks."""

import numpy as np
import pandas as pd

from src.attacks.adversarial import ITERATIONS, attack
from src.attacks.controls import noise_linf
from src.attacks.records import CLEAN
from src.data.frontend import DYNAMIC_RANGE_DB
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits, softmax, vote
from src.progress import progress
from src.statistics import mean_over_tracks


def draw_tracks(segments: pd.DataFrame, n: int, seed: int) -> np.ndarray:
    """Return the rows of all segments of `n` tracks, drawn evenly over genres.

    All rows if there are fewer tracks. Raises ValueError if `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"{n} tracks were asked for: give N_TRACKS or N_SONGS of at least 1.")
    tracks = segments.drop_duplicates("track").sample(frac=1, random_state=seed)
    turn = tracks.groupby("genre").cumcount()
    drawn = tracks.loc[turn.sort_values(kind="stable").index[:n], "track"]
    return np.flatnonzero(segments["track"].isin(drawn))


def attack_tracks(
    models: dict[str, GenreClassifierCNN],
    X: np.ndarray,
    y: np.ndarray,
    eps: float,
    iterations: int = ITERATIONS,
    seed: int = 42,
) -> dict[str, np.ndarray]:
    """Return segments (n, 128, 130) as they are, with noise, and attacked on each network.

    Keys `clean`, `noise_linf` and the networks' names. PGD attacks every segment at this very
    eps, those wrong before too: they vote as well, and other networks may hear them rightly.
    """
    versions = {CLEAN: np.array(X, dtype=np.float32), "noise_linf": noise_linf(X, eps, seed)}
    for name, model in progress(models.items(), "whole tracks", unit="checkpoint"):
        versions[name] = attack("pgd", model, X, y, eps, iterations, seed)
    return versions


def judge_tracks(
    models: dict[str, GenreClassifierCNN],
    versions: dict[str, np.ndarray],
    y: np.ndarray,
    tracks: np.ndarray,
    eps: float,
) -> pd.DataFrame:
    """Return one row a clip and one a song, for each version and each network that judges it.

    Columns: made_on (the version), checkpoint (the judge), unit (clip or song), eps, eps_db,
    track, true, predicted; a song is judged by the mean probability of its segments.
    """
    tables = []
    for name, model in models.items():
        for made_on, X in versions.items():
            probabilities = softmax(predict_logits(model, X))
            predicted = probabilities.argmax(axis=1)
            clips = pd.DataFrame({"track": tracks, "true": y, "predicted": predicted})
            heard = {"clip": clips, "song": vote(probabilities, tracks, y)}
            size = 0 if made_on == CLEAN else eps
            facts = {"checkpoint": name, "made_on": made_on, "eps": size}
            facts["eps_db"] = size * DYNAMIC_RANGE_DB
            tables += [table.assign(unit=unit, **facts) for unit, table in heard.items()]
    return pd.concat(tables, ignore_index=True)


def transfer_table(judged: pd.DataFrame, corpus: str, split: str) -> pd.DataFrame:
    """Return accuracy of clips and songs by version and judge, with intervals over tracks.

    Columns: corpus, split, made_on, checkpoint, unit, eps, eps_db, accuracy, low, high,
    n_segments (judged items), n_tracks.
    """
    rows = []
    keys = ["made_on", "checkpoint", "unit", "eps", "eps_db"]
    for values, group in judged.groupby(keys, sort=False):
        measured = mean_over_tracks(group["true"] == group["predicted"], group["track"])
        facts = {"corpus": corpus, "split": split} | dict(zip(keys, values, strict=True))
        rows.append(facts | {"accuracy": measured.pop("value")} | measured)
    return pd.DataFrame(rows)
