"""Test tracks that no network was trained or validated on."""

import numpy as np
from torch import nn

from src.data.corpus import load_tracks
from src.data.segments import Segments, draw_tracks, load_metadata, load_split
from src.data.splits import WHOLE
from src.models.recipes import DEFAULT_SEED
from src.models.zoo import known_tracks, read_card
from src.paths import EMBEDDED_CORPUS, RunPaths


def unseen_test(paths: RunPaths, loaded: dict[str, tuple[nn.Module, dict]]) -> Segments:
    """Return the test segments of a run, without tracks that a pretrained network has seen."""
    names = [facts["pretrained"] for _, facts in loaded.values() if "pretrained" in facts]
    return _without_seen(paths, load_split(paths, "test"), names)


def has_reference(paths: RunPaths, test: Segments) -> bool:
    """Return whether a run has training tracks, or several of the `test` tracks without them."""
    return load_metadata(paths)["split"] != WHOLE or len(set(test.tracks)) > 1


def unseen_and_reference(
    paths: RunPaths, loaded: dict[str, tuple[nn.Module, dict]]
) -> tuple[Segments, Segments]:
    """Return test segments, and segments of other tracks that maps are compared with.

    The latter are those of the training set. Without one a third of the test tracks takes its
    place; they do not count as test tracks.
    """
    test = unseen_test(paths, loaded)
    if load_metadata(paths)["split"] != WHOLE:
        return test, load_split(paths, "train")
    if not has_reference(paths, test):
        raise ValueError(
            f"Run {paths.run} has 1 test track, and explanations need others as reference: add "
            "tracks and run `make explore preprocess`."
        )
    rows = draw_tracks(test.table, max(1, len(set(test.tracks)) // 3), DEFAULT_SEED)
    return test.take(np.setdiff1d(np.arange(len(test)), rows)), test.take(rows)


def _without_seen(paths: RunPaths, test: Segments, names: list[str]) -> Segments:
    """Return segments of a run without tracks that networks were trained or validated on.

    Tracks are compared by content, and by name unless either corpus is the embedded one, whose
    tracks are called like those of GTZAN. Prints how many are left out; ValueError if all are.
    """
    seen = set().union(*(_seen(paths, name) for name in names))
    rows = np.flatnonzero(~test.table["track"].isin(seen))
    here, left = set(test.tracks), set(test.tracks[rows])
    if len(left) == len(here):
        return test
    found = f"{len(here) - len(left)} of {len(here)} test tracks of run {paths.run}"
    if not left:
        raise ValueError(
            f"{', '.join(names)} had all {found} for training or validation: accuracy on them is "
            "not that on new music; give another corpus as DATASET."
        )
    print(f"left out: {found}, which {', '.join(names)} had for training or validation")
    return test.take(rows)


def _seen(paths: RunPaths, name: str) -> set[str]:
    """Return the tracks of a run that a network was trained or validated on."""
    known, tracks = known_tracks(name), load_tracks(paths)
    corpora = read_card(name)["corpus"], load_metadata(paths)["corpus"]
    same = tracks["sha256"].isin(known["sha256"])
    if EMBEDDED_CORPUS not in corpora or corpora[0] == corpora[1]:
        same |= tracks["track"].isin(known["track"])
    return set(tracks.loc[same, "track"])
