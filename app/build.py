"""Builds the page: pictures, sounds and data.js next to the same three files for every run."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from torch import nn

from app import render
from app.selection import add_own, checkpoint_names, choose_segments
from app.sounds import LOSSLESS, write, write_sounds
from app.views import draw_colour_bars, ticks, views, write_view
from src import labels
from src.attacks import adversarial, waveform
from src.data.features import DYNAMIC_RANGE_DB
from src.data.segments import Segments, load_metadata
from src.explainability.similarity import TOP_SHARE
from src.models.runs import load_networks
from src.paths import EMBEDDED_CORPUS, RunPaths
from src.progress import progress
from src.results import read_csv, read_json

STATIC = ("page.css", "page.js")
CHART_ATTACKS = ("worst_case", "pgd", "fgsm", "noise_linf")
COLUMNS = ["checkpoint", "attack", "eps", "accuracy", "low", "high", "n_segments", "n_tracks"]
SEED = 42


def build(
    paths: RunPaths,
    per_genre: int = 1,
    checkpoints: list[str] | None = None,
    tracks: Sequence[Path] = (),
    iterations: tuple[int, int] = (adversarial.ITERATIONS, waveform.ITERATIONS),
) -> Path:
    """Write `results/page/<run>/` anew, whole or not at all; return the path of its index.html.

    Parameters
    ----------
    paths : folders of the run
    per_genre : number of test segments per genre
    checkpoints : models to show, `pretrained/<name>` for those that come with the repository; by
        default all of the run
    tracks : audio files of the reader's own, shown next to those of the corpus
    iterations : of PGD on spectrograms and on samples
    """
    loaded = load_networks(paths, checkpoints or checkpoint_names(paths), own=False)
    models = {name: model for name, (model, _) in loaded.items()}
    keys = {name: facts["key"] for name, (_, facts) in loaded.items()}
    paths.page.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.page.parent, prefix=".part-") as part:
        folder = Path(part) / "page"
        shown = choose_segments(paths, loaded, per_genre)
        shown = add_own(paths, shown, loaded, tracks)
        by_model = {
            name: _write_model(folder, number, model, shown, iterations)
            for number, (name, model) in enumerate(progress(models.items(), "page", unit="model"))
        }
        draw_colour_bars(folder)
        page = _facts(paths, keys) | _segments(folder, shown, by_model)
        text = json.dumps(page, allow_nan=False, separators=(",", ":"))
        script = f"const PAGE = {text};\n"  # a page opened from disk may not read JSON files
        (folder / "data.js").write_text(script, encoding="utf-8")
        for name in STATIC:
            shutil.copy(files("app") / name, folder)
        (folder / "index.html").write_text(render("index.html"), encoding="utf-8")
        shutil.rmtree(paths.page, ignore_errors=True)
        folder.rename(paths.page)
    return paths.page / "index.html"


def robustness_rows(paths: RunPaths, keys: dict[str, str]) -> list[dict]:
    """Return the rows of `robustness.csv` for these checkpoints; none before `make attack`.

    `keys` are those of the trainings: a checkpoint that was trained again after the attack has no
    rows, and a line names it.
    """
    file = paths.metrics / "attacks.json"
    if not file.exists():
        return []
    attacked = read_json(file, {"checkpoints"})["checkpoints"]
    old = [name for name in keys if name in attacked and attacked[name]["key"] != keys[name]]
    if old:
        print(f"no chart of {', '.join(old)}, trained again after the attack: run `make attack`")
    table = read_csv(paths.metrics / "robustness.csv")
    rows = table.loc[table["checkpoint"].isin(set(keys) - set(old)), COLUMNS]
    return rows.astype(object).where(rows.notna(), None).to_dict("records")


def _facts(paths: RunPaths, keys: dict[str, str]) -> dict:
    """Return the data of the page as a whole; `keys` are those of the trainings by checkpoint."""
    metadata, robustness = load_metadata(paths), robustness_rows(paths, keys)
    measured = {row["attack"] for row in robustness}
    return {
        "run": paths.run,
        "corpus": metadata["corpus"],
        "embedded": metadata["corpus"] == EMBEDDED_CORPUS,
        "genres": metadata["genres"],
        "models": list(keys),
        "dynamic_range_db": DYNAMIC_RANGE_DB,
        "top_share": TOP_SHARE,
        "ticks": ticks(),
        "attacks": [[k, labels.ATTACKS[k].label] for k in CHART_ATTACKS if k in measured],
        "robustness": robustness,
    }


def _segments(folder: Path, shown: Segments, by_model: dict[str, list[dict]]) -> dict:
    """Write the clean sounds; return the data of all segments."""
    rows = shown.table[["genre", "track", "start_s", "own"]].to_dict("records")
    for i, row in enumerate(rows):
        row["models"] = {name: data[i] for name, data in by_model.items()}
        row["sound"] = None
        if shown.samples is not None:
            row["sound"] = write(folder, f"segment{i}", shown.samples[i], LOSSLESS)
    return {"segments": rows, "has_audio": shown.samples is not None}


def _write_model(
    folder: Path, number: int, model: nn.Module, shown: Segments, iterations: tuple[int, int]
) -> list[dict]:
    """Write pictures and sounds of one model; return its data, one dict per segment."""
    seen = views(model, shown.X, shown.y, iterations[0], SEED)
    sounds = [{}] * len(shown.y)
    if shown.samples is not None:
        sounds = write_sounds(folder, number, model, shown, seen, iterations[1])
    return [
        {
            "views": [
                write_view(folder, f"segment{i}_model{number}_eps{k}", view, i)
                for k, view in enumerate(seen)
            ]
        }
        | audible
        for i, audible in enumerate(sounds)
    ]
