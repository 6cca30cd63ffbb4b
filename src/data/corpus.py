"""Corpora: where the tracks of a run come from, and the table of their faults.

A corpus is a folder of audio files or one archive with the log-mel spectrograms of whole tracks.
Both have the same interface: a table of tracks, and segments and spectrograms of each track. A
`track` is a row of that table.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from src.data import download, synthetic
from src.data.audio import AudioFolder, audio_files
from src.data.features import SAMPLE_RATE, SEGMENT_SAMPLES
from src.data.log_mel_archive import LogMelArchive
from src.data.splits import MIN_TRACKS_PER_GENRE
from src.paths import EMBEDDED_CORPUS, RAW, ROOT, RunPaths, require, run_name
from src.progress import progress
from src.results import read_json, write_json

COLUMNS = (
    "track genre path row named duration_s sample_rate_hz channels peak clipped silent sha256 "
    "n_segments used duplicate_of reason"
).split()
SOURCE_PARTS = {"corpus", "path"}
TEXTS = ("track", "genre", "path", "sha256", "duplicate_of", "reason")
Corpus = AudioFolder | LogMelArchive


def open_corpus(dataset: str, tracks_per_genre: int, seed: int) -> Corpus:
    """Return a corpus after composing or downloading it if need be.

    Parameters
    ----------
    dataset : `synthetic` (composed), `gtzan_mini` or `gtzan` (downloaded), or a path
    tracks_per_genre, seed : of the composed corpus

    Raises FileNotFoundError for a path that does not exist; ValueError for a file that is no
    archive, a folder with an archive and other tracks, and too few tracks per genre for a split.
    """
    name = run_name(dataset)
    if dataset == "synthetic":
        return AudioFolder(_compose(tracks_per_genre, seed), name, seed)
    if dataset == "gtzan_mini":
        return AudioFolder(download.fetch_gtzan_mini(RAW / dataset), name)
    if dataset == "gtzan":
        return AudioFolder(download.fetch_gtzan(), name)
    path = (ROOT / Path(dataset).expanduser()).resolve()
    if not path.exists():
        raise FileNotFoundError(
            f"DATASET={dataset} is neither synthetic, gtzan_mini, gtzan nor an existing path "
            f"({path} is not there): give a path from the repository's root or one of the names."
        )
    if path.is_file() and path.suffix != ".npz":
        raise ValueError(
            f"DATASET={dataset} is a single file and no .npz archive of log-mels: a track may have "
            "been given; give the folder whose sub-folders are genres."
        )
    if name == EMBEDDED_CORPUS:
        raise ValueError(
            f"DATASET={dataset} would be taken for the embedded corpus by its name: rename it."
        )
    return _corpus_at(path if path.is_file() else _archive_in(path) or path, name)


def claim_run(paths: RunPaths, corpus: Corpus) -> None:
    """Write the corpus of a run into its `source.json`.

    Raises ValueError if the run belongs to another corpus: its results are not overwritten.
    """
    source, path = paths.processed / "source.json", corpus.path
    shown = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
    if source.exists() and (other := read_json(source, SOURCE_PARTS)["path"]) != shown:
        raise ValueError(
            f"Run {paths.run} was made of {other}, not of {shown}: its results are kept; "
            "give RUN another name."
        )
    facts = {"corpus": corpus.name, "path": shown, "has_audio": corpus.has_audio}
    if corpus.seed is not None:
        facts["composed"] = {"seed": corpus.seed, "version": synthetic.VERSION}
    write_json(source, facts)


def corpus_of(paths: RunPaths) -> Corpus:
    """Return the corpus of a run. Raises FileNotFoundError before notebook 1 has run."""
    source = read_json(require(paths.processed / "source.json", "explore"), SOURCE_PARTS)
    path, composed = ROOT / source["path"], source.get("composed")
    if composed and composed["version"] == synthetic.VERSION:
        return AudioFolder(path, source["corpus"], composed["seed"])
    return _corpus_at(path, source["corpus"])


def audit_table(corpus: Corpus, n_jobs: int = 2) -> pd.DataFrame:
    """Return the table of tracks: properties, whether a track is used, and if not, the reason.

    One row per track in the order genre, number, then audio files whose name is no track's (`named`
    is False). `row` is the position in an archive, missing for audio. Fractions `clipped` and
    `silent` are of samples and of windows of 1024 samples below -60 dB full scale; `sha256` is of
    the decoded samples. Tracks with equal samples stay in use; `duplicate_of` names the first.
    """
    tracks = pd.DataFrame(corpus.rows(n_jobs)).reindex(columns=COLUMNS)
    tracks = tracks.astype(dict.fromkeys(("reason", "sha256", "duplicate_of"), object))
    known = tracks[tracks["used"].astype(bool)]
    first = known.groupby("sha256")["track"].transform("first")
    for i in first.index[first != known["track"]]:
        original = known.loc[known["track"] == first[i]].iloc[0]
        conflict = "" if original["genre"] == tracks.at[i, "genre"] else ", under another genre"
        tracks.at[i, "duplicate_of"] = original["track"]
        tracks.at[i, "reason"] = f"duplicate: the same samples as {original['track']}{conflict}"
    tracks = tracks.fillna({"reason": "", "duplicate_of": "", "sha256": ""})
    return tracks.astype({"row": "Int64"})


def check_usable(tracks: pd.DataFrame) -> None:
    """Raise ValueError if no track of the audit's table can be used."""
    if not tracks["used"].any():
        reasons = tracks["reason"].str.partition(":")[0].value_counts()
        found = ", ".join(f"{n} {reason}" for reason, n in reasons.items())
        raise ValueError(
            f"None of {len(tracks)} tracks can be used ({found}): the column `reason` of "
            "tracks.csv names the fault of each; repair them or give another folder as DATASET."
        )


def load_tracks(paths: RunPaths) -> pd.DataFrame:
    """Return the audit's table of tracks of a run; ValueError if the file is not that table."""
    file = require(paths.processed / "tracks.csv", "explore")
    tracks = pd.read_csv(
        file,
        dtype=dict.fromkeys(TEXTS, str) | {"row": "Int64"},
        keep_default_na=False,
        na_values={name: [""] for name in set(COLUMNS) - set(TEXTS)},
    )
    if tracks.columns.tolist() != COLUMNS or tracks["used"].dtype != bool:
        raise ValueError(
            f"{file} is not the audit's table: it may have been edited or cut; run `make explore`."
        )
    return tracks


def read_segments(paths: RunPaths, table: pd.DataFrame) -> np.ndarray:
    """Return the samples (n, 66150) of segments, rows of the segments' table, of an audio run."""
    corpus, tracks = corpus_of(paths), load_tracks(paths).set_index("track", drop=False)
    samples = np.empty((len(table), SEGMENT_SAMPLES), dtype=np.float32)
    starts = (table["start_s"].to_numpy() * SAMPLE_RATE).round().astype(int)
    by_track = table.groupby("track").indices
    for name, rows in progress(by_track.items(), "read", len(by_track), "track", leave=False):
        whole = corpus.read(tracks.loc[name])
        for row in rows:
            samples[row] = whole[starts[row] : starts[row] + SEGMENT_SAMPLES]
    return samples


def _corpus_at(path: Path, name: str) -> Corpus:
    return (LogMelArchive if path.suffix == ".npz" else AudioFolder)(path, name)


def _archive_in(folder: Path) -> Path | None:
    """Return the archive in a folder, if any; ValueError if there is other data with it."""
    archives = sorted(path for path in folder.glob("*.npz") if not path.name.startswith("."))
    if archives and (others := [*archives[1:], *audio_files(folder)]):
        raise ValueError(
            f"{folder} holds both {archives[0].name} and {others[0].relative_to(folder)}: one of "
            "them may have got there by mistake; give the path of the archive, or move it away."
        )
    return archives[0] if archives else None


def _compose(tracks_per_genre: int, seed: int) -> Path:
    """Write the embedded corpus and return its folder."""
    if tracks_per_genre < MIN_TRACKS_PER_GENRE:
        raise ValueError(
            f"TRACKS_PER_GENRE={tracks_per_genre} are too few to be split by track: give "
            f"{MIN_TRACKS_PER_GENRE} or more."
        )
    name = f"synthetic_{tracks_per_genre}_per_genre_seed_{seed}_v{synthetic.VERSION}"
    return synthetic.make_corpus(RAW / name, tracks_per_genre, seed)
