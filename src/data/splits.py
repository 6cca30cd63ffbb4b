"""Splits: by track, stratified by genre, with duplicates in the same split."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from src.data import download
from src.paths import RAW, ROOT

SPLITS = ("train", "val", "test")
SHARE = 0.15  # of tracks for validation, and for the test
MIN_TRACKS_PER_GENRE = 7
PUBLISHED = ("filtered", "stratified")
MINI = "gtzan_mini"  # the tracks of this excerpt are the test tracks: known as audio
WHOLE = "all"  # every track is a test track, for networks that were trained elsewhere
LIST_FILES = {"train": "train", "val": "valid", "test": "test"}


def split(tracks: pd.DataFrame, name: str, folder: str, seed: int) -> pd.Series:
    """Return the split of each track.

    Parameters
    ----------
    tracks : the audit's table
    name : "random", the published lists "filtered" or "stratified", "gtzan_mini": its 100 tracks
        and their copies are the test tracks, or "all": all are test tracks, exact copies left out
    folder : of the published lists; empty: they are downloaded
    seed : of the random split

    Raises ValueError for an unknown name.
    """
    if name == "random":
        return split_tracks(tracks, seed)
    if name == MINI:
        return mini_split(tracks, seed)
    if name == WHOLE:
        return tracks["duplicate_of"].map({"": "test"}).fillna("")
    if name not in PUBLISHED:
        raise ValueError(
            f"SPLIT={name} is unknown: give random, {', '.join(PUBLISHED)}, {MINI} or {WHOLE}."
        )
    lists = ROOT / Path(folder).expanduser()
    if not folder:
        lists = download.fetch_splits(RAW / "gtzan_splits")
    download.check_splits(lists)
    return given_split(tracks, lists, name)


def split_tracks(tracks: pd.DataFrame, seed: int) -> pd.Series:
    """Return a random split (train, val, test) of 70/15/15, stratified by genre.

    The test tracks are drawn first, then the validation tracks, from all tracks with a track's
    name, unreadable ones too: on the 1000 tracks of GTZAN seed 42 gives the documented 699/150/150
    readable tracks. Then duplicates are moved to the split of their first copy, in exchange for a
    track of the same genre and length. Raises ValueError if a genre has too few tracks.
    """
    named = tracks[tracks["named"]]
    counts = named["genre"].value_counts()
    if counts.min() < MIN_TRACKS_PER_GENRE:
        raise ValueError(
            f"{counts.idxmin()} has {counts.min()} tracks: a stratified 70/15/15 split needs at "
            f"least {MIN_TRACKS_PER_GENRE} per genre; add tracks or remove the genre's folder."
        )
    rest, test = _draw(tracks, named.index, round(SHARE * len(named)), seed)
    return _split_rest(tracks, rest, test, seed)


def mini_split(tracks: pd.DataFrame, seed: int) -> pd.Series:
    """Return the split whose test tracks are those of gtzan_mini, and all copies of them.

    Of the others 15% of all tracks are for validation, stratified by genre. Models trained on
    log-mels can then be attacked on the audio of the same test tracks. Raises ValueError if a track
    of gtzan_mini is missing.
    """
    named, mini = tracks[tracks["named"]], download.mini_tracks()
    if missing := sorted(set(mini) - set(named["track"])):
        raise ValueError(
            f"SPLIT={MINI} tests on 100 tracks of GTZAN and the corpus lacks {missing[0]}: it may "
            "not be GTZAN; give another SPLIT."
        )
    recording = named["duplicate_of"].where(named["duplicate_of"] != "", named["track"])
    in_test = recording.isin(recording[named["track"].isin(mini)])
    if in_test.all():
        raise ValueError(
            f"SPLIT={MINI} leaves no track of this corpus for training, which may be gtzan_mini "
            "itself: give another SPLIT, such as random or all."
        )
    return _split_rest(tracks, named.index[~in_test], named.index[in_test], seed)


def given_split(tracks: pd.DataFrame, folder: Path, name: str) -> pd.Series:
    """Return the split of the published lists `{train,valid,test}_<name>.txt`.

    A track on no list gets an empty string. Raises ValueError if a list names an unknown track or
    two lists name the same one, FileNotFoundError if a list is missing.
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
                f"{tracks.loc[taken.idxmax(), 'track']} is in two of the {name} lists: "
                "a track may be in one split only; download the lists again."
            )
        split[rows[listed]] = part
    return split


def _draw(tracks: pd.DataFrame, index: pd.Index, n: int, seed: int) -> list[np.ndarray]:
    """Return an index in two parts, the second with `n` entries, stratified by genre."""
    return train_test_split(
        index, test_size=n, stratify=tracks.loc[index, "genre"], random_state=seed
    )


def _split_rest(tracks: pd.DataFrame, rest: pd.Index, test: pd.Index, seed: int) -> pd.Series:
    """Return the split of test tracks and the rest, of which 15% of all are for validation."""
    split = pd.Series("", index=tracks.index, name="split")
    train, val = _draw(tracks, rest, round(SHARE * (len(rest) + len(test))), seed)
    split[test], split[train], split[val] = "test", "train", "val"
    return _unite_duplicates(tracks, split, seed)


def _unite_duplicates(tracks: pd.DataFrame, split: pd.Series, seed: int) -> pd.Series:
    """Move each duplicate to the split of its original, in exchange for a similar track there."""
    split, rng = split.copy(), np.random.default_rng(seed)
    originals = pd.Series(tracks.index, index=tracks["track"])
    grouped = (tracks["duplicate_of"] != "") | tracks["track"].isin(tracks["duplicate_of"])
    for i in tracks.index[tracks["duplicate_of"] != ""]:
        source, target = split[i], split[originals[tracks.at[i, "duplicate_of"]]]
        if source == target:
            continue
        similar = (tracks["genre"] == tracks.at[i, "genre"]) & ~grouped & tracks["used"]
        similar &= (tracks["n_segments"] == tracks.at[i, "n_segments"]) & (split == target)
        if similar.any():
            split[rng.choice(tracks.index[similar])] = source
        split[i] = target
    return split
