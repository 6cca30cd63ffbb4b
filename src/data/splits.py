"""Splits: by track, stratified by genre, with duplicates on one side."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from src.data import download
from src.paths import RAW, ROOT

SPLITS = ("train", "val", "test")
VAL_SHARE, TEST_SHARE = 0.15, 0.15
MIN_TRACKS_PER_GENRE = 7
PUBLISHED = ("filtered", "stratified")
LIST_FILES = {"train": "train", "val": "valid", "test": "test"}


def split(tracks: pd.DataFrame, name: str, folder: str, seed: int) -> pd.Series:
    """Return the split of each row of `tracks`: drawn ("random") or from published lists.

    `name` is "random", "filtered" or "stratified"; the lists lie in `folder`, or are downloaded
    if it is empty. Raises ValueError for another name.
    """
    if name == "random":
        return split_tracks(tracks, seed)
    if name not in PUBLISHED:
        raise ValueError(f"SPLIT={name} is unknown: give random, {' or '.join(PUBLISHED)}.")
    lists = ROOT / Path(folder).expanduser()
    if not folder:
        lists = download.fetch_splits(RAW / "gtzan_splits")
    download.check_splits(lists)
    return given_split(tracks, lists, name)


def split_tracks(tracks: pd.DataFrame, seed: int) -> pd.Series:
    """Return the split (train, val, test) of each row of `tracks`: 70/15/15, stratified.

    The test tracks are drawn first, then the validation tracks, from all tracks that are listed,
    unreadable ones too: on the 1000 tracks of GTZAN with seed 42 this gives the documented
    699/150/150 readable tracks. Then duplicates are brought to the side of their first copy, in
    exchange for a track of the same genre and length.
    Raises ValueError if a genre has too few tracks to be split.
    """
    listed = tracks[tracks["named"]]
    counts = listed["genre"].value_counts()
    if counts.min() < MIN_TRACKS_PER_GENRE:
        raise ValueError(
            f"{counts.idxmin()} has {counts.min()} tracks: a stratified 70/15/15 split needs at "
            f"least {MIN_TRACKS_PER_GENRE} a genre; add tracks or remove the genre's folder."
        )
    split = pd.Series("", index=tracks.index, name="split")
    rest, test = _draw(tracks, listed.index, round(TEST_SHARE * len(listed)), seed)
    train, val = _draw(tracks, rest, round(VAL_SHARE * len(listed)), seed)
    split[train] = "train"
    split[test], split[val] = "test", "val"
    return _unite_duplicates(tracks, split, seed)


def given_split(tracks: pd.DataFrame, folder: Path, name: str) -> pd.Series:
    """Return the split that the published lists `{train,valid,test}_<name>.txt` give each track.

    Tracks on no list get an empty string. Raises ValueError if a list names an unknown track or
    two lists share one, FileNotFoundError if a list is missing.
    """
    split = pd.Series("", index=tracks.index, name="split")
    rows = pd.Series(tracks.index, index=tracks["track"])
    for part, prefix in LIST_FILES.items():
        lines = (folder / f"{prefix}_{name}.txt").read_text(encoding="utf-8").split()
        listed = [Path(line).stem for line in lines]
        unknown = sorted(set(listed) - set(rows.index))
        if unknown:
            raise ValueError(
                f"{prefix}_{name}.txt names {len(unknown)} tracks that the corpus lacks "
                f"({unknown[0]} first): the lists belong to the full GTZAN; check DATASET."
            )
        taken = split[rows[listed]] != ""
        if taken.any():
            raise ValueError(
                f"{tracks.loc[taken.idxmax(), 'track']} stands in two of the {name} lists: "
                "a track may be in one split only; fetch the lists again."
            )
        split[rows[listed]] = part
    return split


def _draw(tracks: pd.DataFrame, index: pd.Index, n: int, seed: int) -> list[np.ndarray]:
    """Split an index in two, the second with `n` entries, stratified by genre."""
    return train_test_split(
        index, test_size=n, stratify=tracks.loc[index, "genre"], random_state=seed
    )


def _unite_duplicates(tracks: pd.DataFrame, split: pd.Series, seed: int) -> pd.Series:
    """Move each duplicate to the split of its original, swapping with a like track there."""
    split, rng = split.copy(), np.random.default_rng(seed)
    originals = pd.Series(tracks.index, index=tracks["track"])
    grouped = (tracks["duplicate_of"] != "") | tracks["track"].isin(tracks["duplicate_of"])
    for i in tracks.index[tracks["duplicate_of"] != ""]:
        source, target = split[i], split[originals[tracks.at[i, "duplicate_of"]]]
        if source == target:
            continue
        like = (tracks["genre"] == tracks.at[i, "genre"]) & ~grouped & tracks["used"]
        like &= (tracks["n_segments"] == tracks.at[i, "n_segments"]) & (split == target)
        if like.any():
            split[rng.choice(tracks.index[like])] = source
        split[i] = target
    return split
