"""Results of finished runs: collected to be committed, and rendered into the documents.

`python -m src.report collect RUN ...` writes tables, JSON and records of runs to
`results/metrics/real/`, those of the embedded corpus to `results/metrics/embedded/`.
`python -m src.report docs [RUN ...]` copies figures and executed notebooks of runs into docs/, the
first run wins, and renders all pages of `docs/templates/`.
"""

import argparse
import base64
import gzip
import io
import sys
from pathlib import Path

import nbformat
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from nbconvert.preprocessors import ClearMetadataPreprocessor
from PIL import Image

from src import tables
from src.data.segments import load_metadata
from src.paths import EMBEDDED_CORPUS, METRICS, ROOT, STAGES, RunPaths
from src.results import read_csv, read_json, save_with, whole_file, write_csv, write_json

DOCS = ROOT / "docs"
TABLES = (
    "training",
    "recipe_gains",
    "robustness",
    "comparison",
    "transfer",
    "transfer_tracks",
    "corruptions",
    "audio_attacks",
    "explanations",
)
RECORDS = ("attacks", "minimal_eps")
LARGEST_FIGURE, LARGEST_NOTEBOOK = 300_000, 1_500_000  # bytes
NOTEBOOK_WIDTHS = (900, 750, 600, 450)  # pixels: the first that keeps a copy small
SOUND, WIDGET = "<audio", "application/vnd.jupyter.widget-view+json"
FIGURES = {  # name in docs/figures: pattern below results/figures/<run>/
    "training_history": "improved/training_history.png",
    "confusion_matrix": "improved/confusion_matrix.png",
    "recipes": "recipes.png",
    "adversarial_robustness": "adversarial_robustness.png",
    "adversarial_perturbations": "adversarial_perturbations.png",
    "adversarial_fragility": "adversarial_fragility.png",
    "adversarial_flow": "adversarial_flow.png",
    "corruptions": "corruptions.png",
    "audio_success": "audio_success.png",
    "audio_survival": "audio_survival.png",
    "attention_shift": "explanations_shift.png",
    "explanations_methods": "explanations_methods.png",
    "explanations_box": "explanations_box.png",
    "explanations_bands": "explanations_bands.png",
    "gradcam_correct": "gradcam/baseline_correct.png",
    "gradcam_correct_metal": "gradcam_correct_metal.png",
    "gradcam_natural_failure": "gradcam_natural_failure.png",
    "gradcam_fgsm_comparison": "gradcam_fgsm_comparison.png",
    "gradcam_pgd_comparison": "gradcam_pgd_comparison.png",
}


def main(arguments: list[str]) -> int:
    """Run `collect` or `docs` with the runs on the command line; return 0."""
    parser = argparse.ArgumentParser(prog="src.report", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("collect").add_argument("runs", nargs="+", metavar="RUN")
    commands.add_parser("docs").add_argument("runs", nargs="*", metavar="RUN")
    options = parser.parse_args(arguments)
    try:
        (collect if options.command == "collect" else write_docs)(options.runs)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    return 0


def collect(runs: list[str], target: Path = METRICS) -> None:
    """Write tables, JSON and records of runs into `target`; print which tables are missing.

    Tables are made anew of the runs that are given. Raises FileNotFoundError for a run without a
    single result.
    """
    folders = {run: _folder(run) for run in runs}
    for folder in dict.fromkeys(folders.values()):
        same = [run for run in runs if folders[run] == folder]
        for run in same:
            _copy_results(RunPaths(run), target / folder / run)
        for name in TABLES:
            _gather(name, same, target / folder)


def write_docs(runs: list[str]) -> None:
    """Copy figures and notebooks of runs into docs/, render all pages, print what was written."""
    for paths in (RunPaths(run) for run in reversed(runs)):
        for file in (*copy_figures(paths, DOCS / "figures"), *copy_notebooks(paths, DOCS)):
            print(file.relative_to(ROOT))
    for page in pages():
        save_with(page, lambda part, page=page: part.write_text(render(page.name), "utf-8"))
        print(page.relative_to(ROOT))


def pages() -> list[Path]:
    """Return the pages that have a template; README.md lies in the repository's root."""
    names = sorted(path.name for path in (DOCS / "templates").glob("*.md"))
    return [(ROOT if name == "README.md" else DOCS) / name for name in names]


def render(page: str) -> str:
    """Return a page as Markdown with the numbers of the committed results."""
    loader = FileSystemLoader(DOCS / "templates")
    options = {"undefined": StrictUndefined, "keep_trailing_newline": True, "trim_blocks": True}
    environment = Environment(loader=loader, **options)
    functions = {
        name: each
        for name, each in vars(tables).items()
        if getattr(each, "__module__", "") == tables.__name__
    }
    return environment.get_template(page).render(functions)


def copy_figures(paths: RunPaths, target: Path) -> list[Path]:
    """Copy the figures that a run has into `target`, at most 300 kB each; return their paths."""
    copied = []
    for name, pattern in FIGURES.items():
        for source in sorted(paths.figures.glob(pattern))[:1]:
            png = smaller(source.read_bytes())
            copied.append(
                save_with(target / f"{name}.png", lambda part, p=png: part.write_bytes(p))
            )
    return copied


def copy_notebooks(paths: RunPaths, target: Path) -> list[Path]:
    """Copy the executed notebooks of a run into `target`/notebooks, at most 1.5 MB each.

    Raises ValueError for a notebook whose copy is larger.
    """
    sources = [paths.notebooks / f"{stem}.ipynb" for stem in STAGES.values()]
    return [_copy_notebook(path, target / "notebooks") for path in sources if path.exists()]


def smaller(png: bytes, width: int = 10_000) -> bytes:
    """Return a PNG of at most `width` pixels and 300 kB: fewer colours, then fewer pixels."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    size = min(width, picture.width)
    while True:
        scaled = picture.resize((size, round(picture.height * size / picture.width)), Image.LANCZOS)
        found = io.BytesIO()
        scaled.quantize(256, dither=Image.Dither.NONE).save(found, "PNG", optimize=True)
        if found.tell() <= LARGEST_FIGURE:
            return found.getvalue()
        size = int(size * 0.9)


def lighter(notebook: nbformat.NotebookNode, width: int) -> nbformat.NotebookNode:
    """Return an executed notebook without sounds, progress bars, warnings and run metadata.

    Pictures are reduced to `width` pixels.
    """
    kept = {"kernelspec", "language_info"}
    cleaner = ClearMetadataPreprocessor(enabled=True, preserve_nb_metadata_mask=kept)
    notebook, _ = cleaner.preprocess(notebook, {})
    for cell in notebook.cells:
        outputs = [output for output in cell.get("outputs", ()) if not _is_noise(output)]
        for data in (output.get("data", {}) for output in outputs):
            if "image/png" in data:
                png = smaller(base64.b64decode(data["image/png"]), width)
                data["image/png"] = base64.b64encode(png).decode()
        if cell.cell_type == "code":
            cell.outputs = outputs
    return notebook


def _is_noise(output: dict) -> bool:
    data = output.get("data", {})
    return output.get("name") == "stderr" or WIDGET in data or SOUND in data.get("text/html", "")


def _copy_notebook(source: Path, target: Path) -> Path:
    for width in NOTEBOOK_WIDTHS:
        text = nbformat.writes(lighter(nbformat.read(source, as_version=4), width))
        if len(text) <= LARGEST_NOTEBOOK:
            break
    else:
        raise ValueError(f"{source} takes {len(text)} bytes as a copy: draw fewer figures.")
    return save_with(target / source.name, lambda part: part.write_text(text, "utf-8"))


def _folder(run: str) -> str:
    """Return the folder of a run's results, by its corpus."""
    paths = RunPaths(run)
    if not any(paths.metrics.glob("*.json")):
        raise FileNotFoundError(
            f"results/metrics/{run} has no results: the name may be misspelt; `make run` with "
            f"RUN={run} makes them."
        )
    embedded = load_metadata(paths)["corpus"] == EMBEDDED_CORPUS
    return tables.EMBEDDED if embedded else tables.REAL


def _copy_results(paths: RunPaths, target: Path) -> None:
    """Write a run's JSON, the metadata of its arrays (`data.json`) and its records, compressed."""
    for file in sorted(paths.metrics.glob("*.json")):
        write_json(target / file.name, read_json(file))
    write_json(target / "data.json", load_metadata(paths))
    for file in (paths.metrics / f"{name}.csv" for name in RECORDS):
        if file.exists():
            with whole_file(target / f"{file.name}.gz") as part:
                part.write_bytes(gzip.compress(file.read_bytes(), mtime=0))  # the same bytes again


def _gather(name: str, runs: list[str], target: Path) -> None:
    """Write one table of several runs, and print which have none."""
    files = {run: RunPaths(run).metrics / f"{name}.csv" for run in runs}
    parts = [read_csv(file) for file in files.values() if file.exists()]
    if parts:
        write_csv(target / f"{name}.csv", pd.concat(parts, ignore_index=True))
    missing = "".join(f", none of {run}" for run, file in files.items() if not file.exists())
    print(f"{target.name}/{name}: {len(parts)} runs{missing}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
