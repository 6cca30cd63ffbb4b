"""Copies of a run's figures and executed notebooks, small enough to be committed."""

import io
from base64 import b64decode, b64encode
from pathlib import Path

import nbformat
from PIL import Image

from src.paths import STAGES, RunPaths
from src.results import whole_file

LARGEST_FIGURE, LARGEST_NOTEBOOK = 300_000, 1_500_000  # bytes
NOTEBOOK_FIGURE_WIDTHS = (900, 750, 600, 450)  # pixels: the first that keeps a copy small
SOUND = "<audio"

# Name in docs/figures: files below results/figures/<run>/, of which the first that exists is taken.
FIGURES = {
    "training_history": ["improved/training_history.png", "documented/training_history.png"],
    "confusion_matrix": ["improved/confusion_matrix.png", "documented/confusion_matrix.png"],
    "recipes": ["recipes.png"],
    "adversarial_robustness": ["adversarial_robustness.png"],
    "adversarial_perturbations": ["adversarial_perturbations.png"],
    "adversarial_fragility": ["adversarial_fragility.png"],
    "adversarial_flow": ["adversarial_flow.png"],
    "corruptions": ["adversarial_corruptions.png"],
    "audio_success": ["audio_success.png"],
    "audio_survival": ["audio_survival.png"],
    "attention_shift": ["explanations_shift.png"],
    "explanations_methods": ["explanations_methods.png"],
    "explanations_box": ["explanations_box.png"],
    "explanations_bands": ["explanations_bands.png"],
    "gradcam_correct": ["gradcam/baseline_correct.png"],
    "gradcam_natural_failure": ["gradcam/natural_failures/*.png"],
    "gradcam_adversarial": ["gradcam/adversarial_pgd/*.png"],
}


def copy_figures(paths: RunPaths, target: Path) -> list[Path]:
    """Copy the figures that a run has into `target`, reduced to 300 kB each; return their paths.

    What a run has not made (corpora without audio lack some) keeps the copy that there is.
    """
    copied = []
    for name, sources in FIGURES.items():
        found = [file for source in sources for file in sorted(paths.figures.glob(source))]
        for source in found[:1]:
            copied.append(_write(target / f"{name}.png", smaller(source.read_bytes())))
    return copied


def copy_notebooks(paths: RunPaths, target: Path) -> list[Path]:
    """Copy the executed notebooks of a run into `target`, without sound; return their paths.

    Raises ValueError for a copy above 1.5 MB.
    """
    copied = []
    for stem in STAGES.values():
        source = paths.notebooks / f"{stem}.ipynb"
        if not source.exists():
            continue
        for width in NOTEBOOK_FIGURE_WIDTHS:
            text = nbformat.writes(lighter(nbformat.read(source, as_version=4), width))
            if len(text) <= LARGEST_NOTEBOOK:
                break
        else:
            raise ValueError(f"{source} takes {len(text)} bytes as a copy: draw fewer figures.")
        copied.append(_write(target / f"{stem}.ipynb", text.encode()))
    return copied


def smaller(png: bytes, width: int | None = None) -> bytes:
    """Return a PNG of at most 300 kB: fewer colours, then fewer pixels.

    `width` in pixels is kept below from the beginning.
    """
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    size = min(width or picture.width, picture.width)
    while True:
        scaled = picture.resize((size, round(picture.height * size / picture.width)), Image.LANCZOS)
        found = io.BytesIO()
        scaled.quantize(256, dither=Image.Dither.NONE).save(found, "PNG", optimize=True)
        if found.tell() <= LARGEST_FIGURE:
            return found.getvalue()
        size = int(size * 0.9)


def lighter(notebook: nbformat.NotebookNode, width: int) -> nbformat.NotebookNode:
    """Take sounds and what papermill notes out of an executed notebook and reduce its pictures.

    `width` is that of pictures, at most, in pixels.
    """
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            cell.outputs = [_light(output, width) for output in cell.outputs if not _noise(output)]
    return notebook


def _noise(output: dict) -> bool:
    """Tell whether an output is a progress bar, a warning or a sound."""
    shown = output.get("data", {})
    return (
        output.get("name") == "stderr"
        or SOUND in shown.get("text/html", "")
        or "application/vnd.jupyter.widget-view+json" in shown
    )


def _light(output: dict, width: int) -> dict:
    """Return an output with its picture reduced."""
    if "image/png" in output.get("data", {}):
        picture = smaller(b64decode(output["data"]["image/png"]), width)
        output["data"]["image/png"] = b64encode(picture).decode()
    return output


def _write(path: Path, content: bytes) -> Path:
    with whole_file(path) as part:
        part.write_bytes(content)
    return path
