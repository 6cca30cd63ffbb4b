"""Parts that results carry with them: what they depend on, names for numbers."""

import platform
from importlib.metadata import version

import pandas as pd

from src.runtime import describe

PACKAGES = (
    "music-genre-robustness",
    "torch",
    "numpy",
    "scipy",
    "librosa",
    "soundfile",
    "audiomentations",
    "scikit-learn",
    "adversarial-robustness-toolbox",
    "grad-cam",
)
GENRE_COLUMNS = {"true", "predicted", "explained", "track_predicted"}
GENRE_COLUMNS |= {"clean_prediction", "adversarial_prediction"}
GENRE_COLUMNS |= {"clean_prediction_shifted", "adversarial_prediction_shifted"}


def provenance(seed: int | None, parameters: dict, **data: object) -> dict:
    """Return what a result depends on: data, seed, parameters, versions, machine, precision."""
    return {
        **data,
        "seed": seed,
        "parameters": parameters,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "machine": {"processor": platform.machine()} | describe(),
    }


def with_names(table: pd.DataFrame, genres: list[str], corpus: str) -> pd.DataFrame:
    """Return a table of records with genre names for numbers and a column for the corpus."""
    shown = dict(enumerate(genres))
    names = {column: table[column].map(shown) for column in GENRE_COLUMNS & set(table)}
    return table.assign(**names, corpus=corpus)
