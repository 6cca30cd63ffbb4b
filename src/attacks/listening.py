"""Attacked segments and whole tracks as WAV files to listen to."""

from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import soundfile as sf
from IPython.display import HTML, Audio
from torch import nn

from src.attacks.adversarial import Search
from src.attacks.audio import EQUALIZED, AudioTarget, equalize_samples
from src.attacks.codecs import WAV, file_logits, sample_logits, write_audio
from src.attacks.records import CLEAN
from src.attacks.waveform import attack_waveform, make_waveform_classifier, ratio_db
from src.data.segments import Segments
from src.labels import NAMES
from src.models.evaluation import softmax, vote
from src.paths import short_name
from src.progress import progress
from src.results import save_with

CASES = ("good", "middle", "bad")


class Listening(NamedTuple):
    """An example to play: its case, the segment's row, samples (66150,), captions, WAV files."""

    case: str
    segment: pd.Series
    clean: np.ndarray
    attacked: dict[str, np.ndarray]
    captions: dict[str, str]
    files: dict[str, Path]


def attack_track_files(
    models: dict[str, nn.Module], data: Segments, folder: Path, snr_db: float, search: Search
) -> pd.DataFrame:
    """Write tracks with every segment attacked by PGD; return the predictions of the files.

    `data` are all segments of the tracks, with samples; those predicted wrongly are attacked, too.
    Each file `<folder>/<checkpoint>/tracks_<snr_db>_db/<track>.wav` is read again and classified by
    the soft vote over its segments, and over segments that begin 1.5 s later (`_shifted`). The
    control is white noise at the same signal-to-noise ratio (`noise_prediction`).
    """
    rows = []
    jobs = [*product(models.items(), pd.unique(data.tracks))]
    for (checkpoint, model), track in progress(jobs, "tracks", unit="track"):
        own = data.take(np.flatnonzero(data.tracks == track))
        classifier = make_waveform_classifier(model)
        budget = classifier, own.samples, own.y, snr_db, search
        attacked = attack_waveform("pgd_waveform", *budget)
        path = folder / checkpoint / f"tracks_{snr_db:g}_db" / f"{short_name(track)}.wav"
        _write(path, attacked.ravel())
        read, _ = sf.read(path, dtype="float32")  # whole: three copies of a track exceed 60 s
        read = read.reshape(own.samples.shape)
        (ratio,) = ratio_db(own.samples.reshape(1, -1), attacked.reshape(1, -1))
        facts = {"checkpoint": checkpoint, "track": track, "true": own.y[0]}
        facts |= {"clean_prediction": _vote(model, own.samples)}
        facts |= {"adversarial_prediction": _vote(model, read), "snr_db": float(ratio)}
        for version, samples in (("clean", own.samples), ("adversarial", read)):
            facts[f"{version}_prediction_shifted"] = _vote(model, _shifted(samples))
        facts["noise_prediction"] = _vote(model, attack_waveform("noise", *budget))
        rows.append(facts)
    tracks = pd.DataFrame(rows)
    correct = tracks["clean_prediction"] == tracks["true"]
    return tracks.assign(success=correct & (tracks["adversarial_prediction"] != tracks["true"]))


def choose_examples(records: pd.DataFrame) -> dict[str, int]:
    """Return the segment of a good, a middle and a bad case of an attack, by case.

    Segments predicted correctly before are ordered by the smallest perturbation that flips them as
    WAV files; those that nothing flips come last. Of two there is no middle, one is the good case.
    `records` are those of one attack and checkpoint.
    """
    files = records[records["codec"] == WAV]
    files = files[files["clean_prediction"] == files["true"]]
    flips = files["budget_db"].where(files["success"]).groupby(files["segment"]).max()
    order = flips.sort_values(ascending=False, na_position="last", kind="stable").index
    places = zip(CASES, (0, len(order) // 2, -1), (1, 3, 2), strict=True)
    return {case: int(order[place]) for case, place, fewest in places if len(order) >= fewest}


def write_examples(
    target: AudioTarget,
    records: pd.DataFrame,
    genres: list[str],
    folder: Path,
    budgets_db: dict[str, float],
    search: Search,
) -> list[Listening]:
    """Attack the examples of `choose_examples` again and write their WAV files to listen to.

    With each comes the segment played through its worst equaliser. `records` are those of PGD on
    this target; `budgets_db` has the budget of each attack to play.
    """
    classifier, found = make_waveform_classifier(target.model), []
    for case, number in choose_examples(records).items():
        data = target.data.take(np.flatnonzero(target.data.numbers == number))
        attacked = {
            name: attack_waveform(name, classifier, data.samples, data.y, budget, search)[0]
            for name, budget in budgets_db.items()
        }
        (clean,) = data.samples
        (attacked[EQUALIZED],), _ = equalize_samples(target.model, data.samples, data.y, search)
        notes = captions(target.model, clean, attacked, genres)
        files = write_example(folder, case, clean, attacked)
        found.append(Listening(case, data.table.iloc[0], clean, attacked, notes, files))
    return found


def write_example(
    folder: Path, case: str, clean: np.ndarray, attacked: dict[str, np.ndarray]
) -> dict[str, Path]:
    """Write a segment, attacked versions of it and the differences; return title and path of each.

    Samples (66150,). Differences are amplified to the level of the segment, or as near to it as
    full scale allows; their titles state the gain.
    """
    sounds = {CLEAN: _write(folder / f"{case}_clean.wav", clean)}
    for name, samples in attacked.items():
        change = samples - clean
        gain = min(_norm(clean) / _norm(change), 1 / np.abs(change).max()) if change.any() else 1.0
        title = f"difference, {20 * np.log10(gain):.0f} dB louder ({name})"
        sounds[name] = _write(folder / f"{case}_{name}.wav", samples)
        sounds[title] = _write(folder / f"{case}_{name}_difference.wav", change * gain)
    return sounds


def captions(
    model: nn.Module, clean: np.ndarray, attacked: dict[str, np.ndarray], genres: list[str]
) -> dict[str, str]:
    """Return prediction and signal-to-noise ratio of a segment, clean and attacked, as text."""
    versions = {CLEAN: clean, **attacked}
    samples = np.stack(list(versions.values()))
    ratios = ratio_db(clean[None].repeat(len(samples), axis=0), samples)
    probabilities, notes = softmax(file_logits(model, samples)), {}
    for name, scores, ratio in zip(versions, probabilities, ratios, strict=True):
        unchanged = ", unchanged" if name != CLEAN else ""
        size = unchanged if np.isnan(ratio) else f", {ratio:.0f} dB"
        prediction = f"{genres[scores.argmax()]} ({scores.max():.0%})"
        notes[name] = f"{NAMES.get(name, name)}{size}\npredicted {prediction}"
    return notes


def players(sounds: dict[str, Path]) -> HTML:
    """Return players side by side, the title of each sound above it."""
    cells = "".join(
        f"<td>{title}<br>{Audio(filename=str(path))._repr_html_()}</td>"
        for title, path in sounds.items()
    )
    return HTML(f"<table><tr>{cells}</tr></table>")


def _norm(samples: np.ndarray) -> float:
    return float(np.linalg.norm(samples.astype(float)))


def _write(path: Path, samples: np.ndarray) -> Path:
    return save_with(path, lambda part: write_audio(part, samples))


def _shifted(samples: np.ndarray) -> np.ndarray:
    """Return the segments (n - 1, 66150) of one track that begin half a segment later.

    A track of one segment stays as it is.
    """
    half, length = samples.shape[1] // 2, samples.shape[1]
    if len(samples) == 1:
        return samples
    return samples.ravel()[half : half - length].reshape(-1, length)


def _vote(model: nn.Module, samples: np.ndarray) -> int:
    """Return the genre number that the soft vote gives the segments of one track."""
    probabilities = softmax(sample_logits(model, samples))
    one = np.zeros(len(samples), dtype=int)
    return int(vote(probabilities, one, one)["predicted"].iloc[0])
