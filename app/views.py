"""The spectrogram attack of one model at each eps of the sweep: all that the slider shows."""

from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image
from torch import nn

from src.attacks.adversarial import EPSILONS, Search, attack, noise_linf
from src.data.features import HOP_LENGTH, N_FRAMES, N_MELS, SAMPLE_RATE, SEGMENT_SECONDS
from src.explainability.gradcam import explain
from src.explainability.similarity import top_overlap
from src.models.evaluation import predict_logits, softmax
from src.plots import HERTZ_TICKS, SPECTRUM_MAP, mel_places
from src.progress import progress
from src.results import save_with

COLOURS = 64
DIGITS = 4
HEAT_MAP = "cividis"


class View(NamedTuple):
    """Segments (n, 128, 130) attacked at one eps, and the model's predictions and maps.

    `probabilities` and `noise` (n, n_genres) are those under the attack and under uniform noise of
    the same eps. `maps` (n, 128, 130) and `overlap` (n,), the common share of the highest tenth
    with the map without attack, are for the `predicted` and for the `true` genre.
    """

    eps: float
    adversarial: np.ndarray
    probabilities: np.ndarray
    noise: np.ndarray
    maps: dict[str, np.ndarray]
    overlap: dict[str, np.ndarray]


def views(model: nn.Module, X: np.ndarray, y: np.ndarray, iterations: int, seed: int) -> list[View]:
    """Return the views of segments (n, 128, 130) of genres `y` at eps 0 and each eps of the sweep.

    PGD starts anew at each eps from the clean segment, correctly classified or not.
    """
    found = []
    for eps in progress((0.0, *EPSILONS), name="pgd", unit="eps", leave=False):
        adversarial = attack("pgd", model, X, y, eps, Search(iterations, seed))
        probabilities = softmax(predict_logits(model, adversarial))
        noise = softmax(predict_logits(model, noise_linf(X, eps, seed)))
        genres = {"predicted": probabilities.argmax(axis=1), "true": y}
        maps = {kind: explain(model, adversarial, genre) for kind, genre in genres.items()}
        clean = found[0].maps if found else maps
        overlap = {kind: top_overlap(clean[kind], maps[kind]) for kind in maps}
        found.append(View(eps, adversarial, probabilities, noise, maps, overlap))
    return found


def write_view(folder: Path, name: str, view: View, i: int) -> dict:
    """Write the pictures of segment `i` at one eps into `folder`; return their data."""
    return {
        "eps": view.eps,
        "probabilities": short(view.probabilities[i]),
        "noise": short(view.noise[i]),
        "spectrogram": draw(folder, name, view.adversarial[i], SPECTRUM_MAP),
        "maps": {
            kind: draw(folder, f"{name}_{kind}", heat[i], HEAT_MAP) if heat[i].any() else None
            for kind, heat in view.maps.items()
        },
        "overlap": {
            kind: None if np.isnan(share[i]) else float(share[i])
            for kind, share in view.overlap.items()
        },
    }


def draw(folder: Path, name: str, values: np.ndarray, colour_map: str) -> str:
    """Write values (bands, frames) in [0, 1] as `pictures/<name>.png`; return that path.

    The lowest band is at the bottom; 64 colours.
    """
    levels = np.rint(np.asarray(values)[::-1] * (COLOURS - 1)).astype(np.uint8)
    colours = matplotlib.colormaps[colour_map](np.linspace(0, 1, COLOURS))[:, :3]
    image = Image.fromarray(levels, mode="P")
    image.putpalette((colours * 255).round().astype(np.uint8).tobytes())
    path = f"pictures/{name}.png"
    save_with(folder / path, lambda part: image.save(part, format="PNG", optimize=True, bits=6))
    return path


def draw_colour_bars(folder: Path) -> None:
    """Write `level.png` and `evidence.png`: the two colour maps from lowest (left) to highest."""
    ramp = np.linspace(0, 1, COLOURS)[None]
    draw(folder, "level", ramp, SPECTRUM_MAP)
    draw(folder, "evidence", ramp, HEAT_MAP)


def ticks() -> dict[str, list]:
    """Return labels and positions of the ticks, as shares of the width (s) and height (Hz)."""
    half, seconds = HOP_LENGTH / SAMPLE_RATE / 2, N_FRAMES * HOP_LENGTH / SAMPLE_RATE
    places = zip(HERTZ_TICKS, mel_places(), strict=True)
    return {
        "seconds": [[f"{t}", (t + half) / seconds] for t in range(int(SEGMENT_SECONDS) + 1)],
        "hertz": [[f"{hertz}", (band + 0.5) / N_MELS] for hertz, band in places],
    }


def short(values: np.ndarray) -> list[float]:
    """Return fractions rounded to four digits."""
    return np.round(values.astype(float), DIGITS).tolist()
