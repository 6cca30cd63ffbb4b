"""Building the page: pictures, sounds and numbers beside three files that are the same for all."""

import json
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn
from tqdm.auto import tqdm

from src.attacks import adversarial, waveform
from src.attacks.audio import load_clips
from src.data.corpus import corpus_of
from src.data.frontend import DYNAMIC_RANGE_DB
from src.data.loader import load_metadata, load_split
from src.explainability.shift import TOP_SHARE
from src.models.evaluation import predict_logits, softmax
from src.models.runs import load_named
from src.page import pictures, sounds
from src.page.choice import checkpoint_names, clearest_clips
from src.page.views import View, views
from src.paths import RunPaths

TEMPLATES = ("page.css", "page.js", "index.html")
TABLE_COLUMNS = "checkpoint attack eps accuracy low high n_segments n_tracks".split()
SEED = 42
DIGITS = 4


def build(
    paths: RunPaths,
    per_genre: int = 1,
    networks: list[str] | None = None,
    iterations: tuple[int, int] = (adversarial.ITERATIONS, waveform.ITERATIONS),
) -> Path:
    """Write `results/page/<run>/` anew, whole or not at all; return the path of its index.html.

    Shows `per_genre` test clips of each genre and the named networks, all of the run by default.
    `iterations` are the steps of PGD on spectrograms and on samples.
    """
    names = networks or checkpoint_names(paths)
    models = {name: load_named(paths, name)[0] for name in names}
    paths.page.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.page.parent, prefix=".part-") as part:
        folder = Path(part) / "page"
        _write_data(
            folder, _facts(paths, models) | _clips(paths, models, per_genre, iterations, folder)
        )
        for name in TEMPLATES:
            shutil.copy(files("src.page") / name, folder)
        shutil.rmtree(paths.page, ignore_errors=True)
        folder.rename(paths.page)
    return paths.page / "index.html"


def _facts(paths: RunPaths, models: dict[str, nn.Module]) -> dict:
    """Return what is said of the page as a whole."""
    return {
        "run": paths.run,
        "corpus": corpus_of(paths).name,
        "genres": load_metadata(paths)["genres"],
        "networks": list(models),
        "dynamic_range_db": DYNAMIC_RANGE_DB,
        "top_share": TOP_SHARE,
        "ticks": pictures.ticks(),
        "robustness": robustness_rows(paths, list(models)),
    }


def robustness_rows(paths: RunPaths, networks: list[str]) -> list[dict]:
    """Return the lines of `robustness.csv` about these networks; none before the attacks ran."""
    file = paths.metrics / "robustness.csv"
    if not file.exists():
        return []
    table = pd.read_csv(file, keep_default_na=True)
    rows = table.loc[table["checkpoint"].isin(networks), TABLE_COLUMNS]
    return rows.astype(object).where(rows.notna(), None).to_dict("records")


def _clips(
    paths: RunPaths, models: dict, per_genre: int, iterations: tuple[int, int], folder: Path
) -> dict:
    """Write pictures and sounds of all clips into `folder`; return their part of the data."""
    X, y, segments = load_split(paths, "test")
    mean = np.mean([softmax(predict_logits(model, X)) for model in models.values()], axis=0)
    rows = clearest_clips(y, mean, segments["track"].to_numpy(), per_genre)
    X, y, segments = np.array(X[rows]), y[rows], segments.iloc[rows]
    samples = load_clips(paths, segments) if corpus_of(paths).has_audio else None
    told = [_clip(segment) for segment in segments.itertuples()]
    pictures.draw_colour_bars(folder / "pictures")
    for number, (name, model) in enumerate(tqdm(models.items(), desc="page", unit="network")):
        shown = _network(folder, number, model, X, y, samples, iterations)
        for clip, own in zip(told, shown, strict=True):
            clip["networks"][name] = own
    if samples is not None:
        for i, clip in enumerate(told):
            stem = folder / "sounds" / f"clip{i}"
            clip["sound"] = _relative(sounds.write(stem, samples[i], sounds.LOSSLESS), folder)
    return {"clips": told, "has_audio": samples is not None}


def _clip(segment) -> dict:
    """Return what is said of a clip (a row of the segments' table) whatever the network."""
    return {
        "genre": segment.genre,
        "track": segment.track,
        "start_s": segment.start_s,
        "sound": None,
        "networks": {},
    }


def _network(
    folder: Path,
    number: int,
    model: nn.Module,
    X: np.ndarray,
    y: np.ndarray,
    samples: np.ndarray | None,
    iterations: tuple[int, int],
) -> list[dict]:
    """Write what one network makes of the clips; return its data, one dict a clip."""
    stems = [folder / "pictures" / f"clip{i}_network{number}" for i in range(len(X))]
    told = [{"views": []} for _ in stems]
    for k, view in enumerate(views(model, X, y, iterations[0], SEED)):
        for i, stem in enumerate(stems):
            told[i]["views"].append(_view(folder, stem.with_name(f"{stem.name}_eps{k}"), view, i))
        if k == 0:
            clean = view
        if samples is not None and k > 0:
            _nearest(folder, k, number, model, samples, view.attacked - X, told)
    if samples is not None:
        _heard(folder, number, model, samples, y, clean.maps["predicted"], iterations[1], told)
    return told


def _view(folder: Path, stem: Path, view: View, i: int) -> dict:
    """Write the pictures of a clip at one eps; return what is told of it."""
    spectrogram = pictures.draw_spectrogram(stem.with_suffix(".png"), view.attacked[i])
    return {
        "eps": view.eps,
        "probabilities": _short(view.probabilities[i]),
        "noise": _short(view.noise[i]),
        "spectrogram": _relative(spectrogram, folder),
        "maps": {kind: _map(folder, stem, kind, heat[i]) for kind, heat in view.maps.items()},
        "overlap": {
            kind: None if np.isnan(share[i]) else float(share[i])
            for kind, share in view.overlap.items()
        },
        "nearest": None,
    }


def _map(folder: Path, stem: Path, kind: str, heat: np.ndarray) -> str | None:
    """Write a map unless it is empty; return its path from the page."""
    if not heat.any():
        return None
    return _relative(pictures.draw_map(stem.with_name(f"{stem.name}_{kind}.png"), heat), folder)


def _nearest(folder, k, number, model, samples, changes, told: list[dict]) -> None:
    """Write the sounds nearest to the attacked spectrograms of one eps and tell of them."""
    heard, probabilities = sounds.nearest_sounds(model, samples, changes)
    for i, own in enumerate(told):
        stem = folder / "sounds" / f"clip{i}_network{number}_eps{k}"
        path = sounds.write(stem, heard[i])
        sound = {"sound": _relative(path, folder), "probabilities": _short(probabilities[i])}
        own["views"][k]["nearest"] = sound


def _heard(folder, number, model, samples, y, maps, iterations, told: list[dict]) -> None:
    """Write attacked clips, differences and what the maps keep of the clips; tell of them."""
    attacks = sounds.attack_clips(model, samples, y, iterations, SEED)
    for i, own in enumerate(told):
        stem = folder / "sounds" / f"clip{i}_network{number}"
        own["attacks"] = [_attack(folder, stem, samples[i], row) for row in attacks[i]]
        own["parts"] = {
            kind: _relative(sounds.write(stem.with_name(f"{stem.name}_{kind}"), sound), folder)
            for kind, sound in sounds.parts(samples[i], maps[i]).items()
        }


def _attack(folder: Path, stem: Path, clip: np.ndarray, row: dict) -> dict:
    """Write an attacked clip and its difference; return what is told of them."""
    stem = stem.with_name(f"{stem.name}_{row['snr_db']}dB")
    change, gain_db = sounds.amplified(clip, row["attacked"])
    attacked = sounds.write(stem, row["attacked"], sounds.LOSSLESS)
    difference = sounds.write(stem.with_name(f"{stem.name}_difference"), change)
    return {
        "snr_db": row["snr_db"],
        "reached_db": row["reached_db"],
        "attacked": _relative(attacked, folder),
        "difference": _relative(difference, folder),
        "gain_db": gain_db,
        "probabilities": _short(row["probabilities"]),
        "noise": _short(row["noise"]),
    }


def _write_data(folder: Path, data: dict) -> None:
    """Write the data as a script: a page opened from disk may not read JSON files."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    (folder / "data.js").write_text(f"const PAGE = {text};\n", encoding="utf-8")


def _relative(path: Path, folder: Path) -> str:
    """Return a path from the page, as in a URL."""
    return path.relative_to(folder).as_posix()


def _short(values: np.ndarray) -> list[float]:
    """Return fractions with four digits."""
    return np.round(values.astype(float), DIGITS).tolist()
