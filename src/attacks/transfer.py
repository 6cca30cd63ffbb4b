"""Transfer and track-level accuracy: whole tracks under attack, evaluated on every model."""

import numpy as np
import pandas as pd

from src.attacks.adversarial import Search, attack
from src.attacks.noise import noise_linf
from src.attacks.records import CLEAN
from src.data.features import DYNAMIC_RANGE_DB
from src.data.segments import Segments
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits, softmax, vote
from src.progress import progress
from src.statistics import mean_over_tracks


def attack_tracks(
    models: dict[str, GenreClassifierCNN], data: Segments, eps: float, search: Search
) -> dict[str, np.ndarray]:
    """Return segments (n, 128, 130) as they are, with noise, and attacked on each model.

    Keys `clean`, `noise_linf` and the models' names. PGD attacks every segment at this very eps
    with all of its iterations, wrong ones too: they take part in the vote, and other models may
    predict them correctly.
    """
    versions = {
        CLEAN: np.array(data.X, dtype=np.float32),
        "noise_linf": noise_linf(data.X, eps, search.seed),
    }
    for name, model in progress(models.items(), name="whole tracks", unit="checkpoint"):
        versions[name] = attack("pgd", model, data.X, data.y, eps, search)
    return versions


def evaluate_transfer(
    models: dict[str, GenreClassifierCNN],
    versions: dict[str, np.ndarray],
    data: Segments,
    eps: float,
) -> pd.DataFrame:
    """Return one row per segment and one per track, for each version and each evaluated model.

    Columns: made_on (the version), checkpoint (the evaluated model), unit (clip or song), eps,
    eps_db, track, true, predicted; a track's prediction is its highest mean probability.
    """
    tables = []
    for name, model in models.items():
        for made_on, X in versions.items():
            probabilities = softmax(predict_logits(model, X))
            predicted = probabilities.argmax(axis=1)
            clips = pd.DataFrame({"track": data.tracks, "true": data.y, "predicted": predicted})
            units = {"clip": clips, "song": vote(probabilities, data.tracks, data.y)}
            size = 0 if made_on == CLEAN else eps
            facts = {"checkpoint": name, "made_on": made_on, "eps": size}
            facts["eps_db"] = size * DYNAMIC_RANGE_DB
            tables += [table.assign(unit=unit, **facts) for unit, table in units.items()]
    return pd.concat(tables, ignore_index=True)


def transfer_table(evaluated: pd.DataFrame, corpus: str, split: str) -> pd.DataFrame:
    """Return accuracy by version, evaluated model and unit, with intervals over tracks.

    Columns: corpus, split, made_on, checkpoint, unit, eps, eps_db, accuracy, low, high,
    n_segments (segments or tracks), n_tracks.
    """
    rows = []
    keys = ["made_on", "checkpoint", "unit", "eps", "eps_db"]
    for values, group in evaluated.groupby(keys, sort=False):
        measured = mean_over_tracks(group["true"] == group["predicted"], group["track"])
        facts = {"corpus": corpus, "split": split} | dict(zip(keys, values, strict=True))
        rows.append(facts | {"accuracy": measured.pop("value")} | measured)
    return pd.DataFrame(rows)
