"""Corpora: where the tracks of a run come from, and the table of what is wrong with them.

A corpus is a folder `<genre>/<genre>.NNNNN.<ending>` of audio, or one `.npz` archive with the
log-mel spectrograms of whole tracks. Both give the same table of tracks and the same segments.
"""

from pathlib import Path

import pandas as pd
import soundfile as sf

from src.data import download, synthetic
from src.data.audio_files import audio_rows, walk_audio
from src.data.log_mels import log_mel_rows
from src.data.splits import MIN_TRACKS_PER_GENRE
from src.paths import RAW, ROOT, RunPaths, require, run_name
from src.results import check_room, read_json, write_json

COLUMNS = (
    "track genre path duration_s sample_rate_hz channels peak clipped silent sha256 "
    "n_segments used duplicate_of reason"
).split()
SOURCE_PARTS = {"corpus", "path"}
TEXTS = ("track", "genre", "path", "sha256", "duplicate_of", "reason")


def open_corpus(dataset: str, tracks_per_genre: int, seed: int) -> Path:
    """Return the folder or `.npz` archive of a data set, after making or fetching it if need be.

    `dataset` is `synthetic` (composed here, `tracks_per_genre` tracks a genre), `gtzan_mini` or
    `gtzan` (downloaded), or a path. Raises FileNotFoundError for a path that does not exist,
    ValueError for a file that is no archive, a folder that leaves open which is meant, and fewer
    tracks to be composed than can be split.
    """
    if dataset == "synthetic":
        if tracks_per_genre < MIN_TRACKS_PER_GENRE:
            raise ValueError(
                f"TRACKS_PER_GENRE={tracks_per_genre} are too few to be split by track: give "
                f"{MIN_TRACKS_PER_GENRE} or more."
            )
        music = synthetic.code_hash()
        folder = RAW / f"synthetic_{tracks_per_genre}_per_genre_seed_{seed}_{music}"
        return _compose(folder, tracks_per_genre, seed)
    if dataset == "gtzan_mini":
        return download.fetch_gtzan_mini(RAW / dataset)
    if dataset == "gtzan":
        return download.fetch_gtzan(RAW / dataset)
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
    return path if path.is_file() else _archive_in(path) or path


def _archive_in(folder: Path) -> Path | None:
    """Return the archive that lies in a folder, if any; ValueError if it is not alone there."""
    archives = sorted(path for path in folder.glob("*.npz") if not path.name.startswith("."))
    if archives and (others := [*archives[1:], *walk_audio(folder)]):
        raise ValueError(
            f"{folder} holds both {archives[0].name} and {others[0].relative_to(folder)}: one of "
            "them may have got there by mistake; give the path of the archive, or move it away."
        )
    return archives[0] if archives else None


def claim_run(paths: RunPaths, corpus: Path, dataset: str) -> None:
    """Note in `source.json` which corpus a run is made of.

    Raises ValueError if the run already belongs to another one: its results are not overwritten.
    """
    source = paths.processed / "source.json"
    shown = str(corpus.relative_to(ROOT) if corpus.is_relative_to(ROOT) else corpus)
    if source.exists() and (other := read_json(source, SOURCE_PARTS)["path"]) != shown:
        raise ValueError(
            f"Run {paths.run} was made of {other}, not of {shown}: its results are kept; "
            "give RUN another name."
        )
    write_json(source, {"corpus": run_name(dataset), "path": shown})


def source_of(paths: RunPaths) -> tuple[Path, str]:
    """Return the path and the name of the corpus that a run is made of."""
    source = read_json(require(paths.processed / "source.json", "explore"), SOURCE_PARTS)
    return ROOT / source["path"], source["corpus"]


def is_log_mel(corpus: Path) -> bool:
    """Tell whether a corpus is an archive of log-mels rather than a folder of audio."""
    return corpus.suffix == ".npz"


def audit(corpus: Path, n_jobs: int = 2) -> pd.DataFrame:
    """Return the table of tracks: what each is, whether it is used, and if not, why.

    One row a track in the order genre, number, then audio files that are no tracks by their name.
    Fractions `clipped` and `silent` are of samples and of windows of 1024 samples below -60 dB
    full scale; `sha256` is of the decoded samples. Tracks with the same samples stay in use,
    `duplicate_of` names the first of them.
    """
    rows = log_mel_rows(corpus) if is_log_mel(corpus) else audio_rows(corpus, n_jobs)
    tracks = pd.DataFrame(rows).reindex(columns=COLUMNS)
    return _mark_duplicates(tracks)


def load_tracks(paths: RunPaths) -> pd.DataFrame:
    """Return the audit's table of tracks, as `audit` made it; ValueError if it is another."""
    file = require(paths.processed / "tracks.csv", "explore")
    empty_is_missing = {name: [""] for name in set(COLUMNS) - set(TEXTS)}
    tracks = pd.read_csv(
        file,
        dtype=dict.fromkeys(TEXTS, str),
        keep_default_na=False,
        na_values=empty_is_missing,
    )
    if tracks.columns.tolist() != COLUMNS or tracks["used"].dtype != bool:
        raise ValueError(
            f"{file} is not the audit's table: it may have been edited or cut; run `make explore`."
        )
    return tracks


def _compose(folder: Path, tracks_per_genre: int, seed: int) -> Path:
    """Write the embedded corpus and return its folder; OSError if there is no room for it."""
    try:
        return synthetic.make_corpus(folder, tracks_per_genre, seed)
    except (OSError, sf.SoundFileError):
        check_room(folder)
        raise


def _mark_duplicates(tracks: pd.DataFrame) -> pd.DataFrame:
    """Name in `duplicate_of` the first track with the same samples, and say so in `reason`."""
    tracks = tracks.astype({"reason": object, "sha256": object, "duplicate_of": object})
    known = tracks[tracks["used"].astype(bool)]
    first = known.groupby("sha256")["track"].transform("first")
    for i in first.index[first != known["track"]]:
        original = known.loc[known["track"] == first[i]].iloc[0]
        conflict = "" if original["genre"] == tracks.at[i, "genre"] else ", under another genre"
        tracks.at[i, "duplicate_of"] = original["track"]
        tracks.at[i, "reason"] = f"duplicate: the same samples as {original['track']}{conflict}"
    return tracks.fillna({"reason": "", "duplicate_of": "", "sha256": ""})
