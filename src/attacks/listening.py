"""Attacked clips and whole songs as files that can be played."""

from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML, Audio

from src.attacks.audio import FILE_CHANNEL, load_clips
from src.attacks.channels import judge, librosa_log_mel, write_audio
from src.attacks.waveform import attack_waveform, make_waveform_classifier, ratio_db
from src.data.audio import read_audio
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits, softmax, vote
from src.paths import RunPaths
from src.progress import progress
from src.results import save_with

CASES = {"good": 1, "middle": 3, "bad": 2}  # segments that it takes to have one


def attack_songs(
    model: GenreClassifierCNN,
    paths: RunPaths,
    segments: pd.DataFrame,
    y: np.ndarray,
    folder: Path,
    snr_db: float,
    iterations: int,
    seed: int,
) -> pd.DataFrame:
    """Write songs with every segment attacked by PGD; return what the files are heard as.

    `segments` and `y` (true genre numbers) are all segments of the songs. Each file
    `<folder>/<track>.wav` is read again and judged by the soft vote over its segments, which are
    attacked whatever they were heard as. Columns: track, true, clean_prediction,
    adversarial_prediction, snr_db, success.
    """
    classifier = make_waveform_classifier(model)
    rows = []
    for name in progress(segments["track"].unique(), "songs", unit="song"):
        chosen = (segments["track"] == name).to_numpy()
        clips, true = load_clips(paths, segments[chosen]), y[chosen]
        options = (snr_db, iterations, seed)
        attacked = attack_waveform("pgd_waveform", classifier, clips, true, *options)
        heard = read_audio(_write(folder / f"{name}.wav", attacked.ravel()))
        rows.append(
            {
                "track": name,
                "true": true[0],
                "clean_prediction": _song_genre(model, clips),
                "adversarial_prediction": _song_genre(model, heard.reshape(clips.shape)),
                "snr_db": float(ratio_db(clips.reshape(1, -1), attacked.reshape(1, -1))[0]),
            }
        )
    songs = pd.DataFrame(rows)
    right = songs["clean_prediction"] == songs["true"]
    return songs.assign(success=right & (songs["adversarial_prediction"] != songs["true"]))


def choose_examples(records: pd.DataFrame) -> dict[str, int]:
    """Return the segment of a good, a middle and a bad case of an attack, by rule.

    Among the segments that were right before, ordered by the smallest change that flips them as a
    WAV file: the first, the one in the middle, the last; those that nothing flips come last.
    `records` are those of one attack and one checkpoint. Of two segments none is the middle one, a
    single one is the good case; empty if nothing was right before.
    """
    files = records[records["channel"] == FILE_CHANNEL]
    files = files[files["clean_prediction"] == files["true"]]
    flips = files["budget_db"].where(files["success"]).groupby(files["segment"]).max()
    order = flips.sort_values(ascending=False, na_position="last", kind="stable").index
    places = {"good": 0, "middle": len(order) // 2, "bad": -1}
    return {case: int(order[places[case]]) for case, n in CASES.items() if len(order) >= n}


def write_example(
    folder: Path, case: str, clean: np.ndarray, attacked: dict[str, np.ndarray]
) -> dict[str, Path]:
    """Write a clip, attacked versions of it and the differences; return title and path of each.

    Samples (66150,). Differences are brought to the level of the clip, or as near to it as full
    scale allows; their titles say by how much.
    """
    sounds = {"clean": _write(folder / f"{case}_clean.wav", clean)}
    for name, clip in attacked.items():
        change = clip - clean
        gain = min(_norm(clean) / _norm(change), 1 / np.abs(change).max()) if change.any() else 1.0
        title = f"difference, {20 * np.log10(gain):.0f} dB louder ({name})"
        sounds[name] = _write(folder / f"{case}_{name}.wav", clip)
        sounds[title] = _write(folder / f"{case}_{name}_difference.wav", change * gain)
    return sounds


def captions(
    model: GenreClassifierCNN, clean: np.ndarray, attacked: dict[str, np.ndarray], genres: list[str]
) -> dict[str, str]:
    """Return, for "clean" and each attacked version, what it is heard as and its ratio."""
    versions = {"clean": clean, **attacked}
    logits = judge(model, np.stack(list(versions.values())))
    ratios = ratio_db(clean[None].repeat(len(versions), axis=0), np.stack(list(versions.values())))
    notes = {}
    for name, scores, ratio in zip(versions, softmax(logits), ratios, strict=True):
        unchanged = ", unchanged" if name != "clean" else ""
        size = unchanged if np.isnan(ratio) else f", {ratio:.0f} dB"
        notes[name] = f"{name}{size}\nheard as {genres[scores.argmax()]} ({scores.max():.0%})"
    return notes


def players(sounds: dict[str, Path]) -> HTML:
    """Return players side by side, the title of each sound above it."""
    cells = "".join(
        f"<td>{title}<br>{Audio(filename=str(path))._repr_html_()}</td>"
        for title, path in sounds.items()
    )
    return HTML(f"<table><tr>{cells}</tr></table>")


def _norm(samples: np.ndarray) -> float:
    """Return the Euclidean norm of samples."""
    return float(np.linalg.norm(samples.astype(float)))


def _write(path: Path, samples: np.ndarray) -> Path:
    """Write a 16-bit WAV file, whole or not at all; return its path."""
    return save_with(path, lambda part: write_audio(part, samples))


def _song_genre(model: GenreClassifierCNN, clips: np.ndarray) -> int:
    """Return the genre number that the soft vote gives the clips of one song."""
    probabilities = softmax(predict_logits(model, librosa_log_mel(clips)))
    one = np.zeros(len(clips), dtype=int)
    return int(vote(probabilities, one, one)["predicted"].iloc[0])
