"""How much notebooks 4 and 5 compute: one level instead of a dozen numbers."""

from typing import NamedTuple

from src.parameters import LARGEST, check_value


class Effort(NamedTuple):
    """Sizes of the evaluation; `quick` and `full` are in EFFORTS."""

    n_segments: int  # test segments under attack, drawn evenly over the test tracks
    iterations: int  # of PGD (steps of eps / 4), APGD and attacks on maps
    n_restarts: int  # random starts of PGD in the suite
    square_queries: int  # of Square per segment
    n_hard_label: int  # segments of HopSkipJump
    hard_label_steps: int  # of HopSkipJump; step k takes 50 * sqrt(k) queries
    n_minimal: int  # segments whose minimal eps is found by bisection
    n_equalized: int  # test segments under equalisers and universal perturbations
    n_universal: int  # training segments from which universal perturbations are learnt
    n_tracks: int  # whole tracks under attack, for transfer and the track-level vote
    n_corrupted: int  # test segments whose audio is corrupted
    n_audio: int  # test segments attacked as audio
    n_audio_tracks: int  # test tracks attacked as 30 s files
    audio_iterations: int  # of PGD on samples
    n_explained: int  # test segments whose saliency maps are evaluated
    n_methods: int  # of these, segments for all attribution methods
    n_slow: int  # of these, segments for methods that take seconds per map (and for ROAD)
    explain_iterations: int  # of PGD where saliency maps under attack are evaluated
    n_per_genre: int = 2  # correct segments per genre whose maps are shown
    n_failures: int = 5  # natural failures whose maps are shown
    n_listened: int = 2  # segments that are filtered by their maps, as audio


EFFORTS = {
    "quick": Effort(
        n_segments=20,
        iterations=10,
        n_restarts=1,
        square_queries=100,
        n_hard_label=0,
        hard_label_steps=5,
        n_minimal=8,
        n_equalized=10,
        n_universal=64,
        n_tracks=2,
        n_corrupted=10,
        n_audio=12,
        n_audio_tracks=1,
        audio_iterations=10,
        n_explained=10,
        n_methods=4,
        n_slow=2,
        explain_iterations=10,
        n_per_genre=1,
        n_failures=3,
    ),
    "full": Effort(
        n_segments=100,
        iterations=40,
        n_restarts=5,
        square_queries=5000,
        n_hard_label=30,
        hard_label_steps=20,
        n_minimal=40,
        n_equalized=100,
        n_universal=512,
        n_tracks=20,
        n_corrupted=100,
        n_audio=100,
        n_audio_tracks=10,
        audio_iterations=20,
        n_explained=60,
        n_methods=30,
        n_slow=20,
        explain_iterations=10,
    ),
}
MAY_BE_ZERO = ("n_hard_label", "n_failures", "n_listened")  # of all others: at least one


def choose_effort(name: str, changes: dict) -> Effort:
    """Return an effort level with some of its numbers changed.

    Raises ValueError for an unknown level or number, and for a number below its least.
    """
    check_value("EFFORT", name, "", choices=tuple(EFFORTS))
    for field, value in changes.items():
        check_value("EFFORT_CHANGES", field, "", choices=Effort._fields)
        check_value(field.upper(), value, 0, (int(field not in MAY_BE_ZERO), LARGEST))
    return EFFORTS[name]._replace(**changes)
