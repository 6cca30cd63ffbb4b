"""Transfer and track-level accuracy: whole tracks under attack, evaluated on every model."""

import numpy as np
import pandas as pd

from src.attacks.adversarial import Search, attack, noise_linf
from src.attacks.records import CLEAN, accuracy_table
from src.data.features import DYNAMIC_RANGE_DB
from src.data.segments import Segments
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import calibration_error, predict_logits, softmax, vote
from src.progress import progress


def attack_tracks(
    models: dict[str, GenreClassifierCNN], data: Segments, eps: float, search: Search
) -> dict[str, np.ndarray]:
    """Return segments (n, 128, 130) clean, with noise, and attacked on each model.

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


def transfer_records(
    models: dict[str, GenreClassifierCNN], data: Segments, eps: float, search: Search
) -> pd.DataFrame:
    """Return one row per segment and one per track, for each version and each evaluated model.

    Versions are those of `attack_tracks`. Columns: track, true, predicted, confidence, unit
    (segment or track), checkpoint (the evaluated model), made_on (the version), eps, eps_db; a
    track's prediction is the genre with the highest mean probability.
    """
    versions, tables = attack_tracks(models, data, eps, search), []
    for name, model in models.items():
        for made_on, X in versions.items():
            probabilities = softmax(predict_logits(model, X))
            segments = pd.DataFrame({"track": data.tracks, "true": data.y})
            segments["predicted"] = probabilities.argmax(axis=1)
            segments["confidence"] = probabilities.max(axis=1)
            units = {"segment": segments, "track": vote(probabilities, data.tracks, data.y)}
            size = 0 if made_on == CLEAN else eps
            facts = {"checkpoint": name, "made_on": made_on, "eps": size}
            facts["eps_db"] = size * DYNAMIC_RANGE_DB
            tables += [table.assign(unit=unit, **facts) for unit, table in units.items()]
    return pd.concat(tables, ignore_index=True)


def transfer_table(records: pd.DataFrame, corpus: str, split: str) -> pd.DataFrame:
    """Return accuracy by version, evaluated model and unit, with intervals over tracks.

    Columns: corpus, split, made_on, checkpoint, unit, eps, eps_db, accuracy, low, high,
    n_segments (segments or tracks), n_tracks, mean_confidence, calibration_error.
    """
    by = ["made_on", "checkpoint", "unit", "eps", "eps_db"]
    records = records.assign(correct=records["true"] == records["predicted"])
    table, groups = accuracy_table(records["correct"], records, by), records.groupby(by, sort=False)
    table["mean_confidence"] = groups["confidence"].mean().to_numpy()
    table["calibration_error"] = [
        calibration_error(group["confidence"], group["correct"]) for _, group in groups
    ]
    table.insert(0, "split", split)
    table.insert(0, "corpus", corpus)
    return table
