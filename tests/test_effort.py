import pytest

from src.effort import EFFORTS, Effort, choose_effort


def test_full_effort_is_nowhere_smaller_than_quick():
    pairs = zip(EFFORTS["quick"], EFFORTS["full"], strict=True)
    assert all(quick <= full for quick, full in pairs)
    assert EFFORTS["full"].n_hard_label >= 30


def test_numbers_of_an_effort_can_be_changed():
    effort = choose_effort("quick", {"n_segments": 5})
    assert effort == EFFORTS["quick"]._replace(n_segments=5)
    assert isinstance(effort, Effort)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("fast", {}, "EFFORT=fast is unknown: give one of quick, full"),
        ("quick", {"n_clips": 3}, "EFFORT_CHANGES has n_clips, which is unknown"),
        ("quick", {"n_segments": "3"}, "EFFORT_CHANGES has n_segments='3': give a whole number"),
        ("quick", {"n_segments": -1}, "EFFORT_CHANGES has n_segments=-1: give a whole number"),
        ("quick", {"n_segments": True}, "EFFORT_CHANGES has n_segments=True: give a whole number"),
    ],
)
def test_an_effort_without_meaning_is_refused(name, changes, said):
    with pytest.raises(ValueError, match=said):
        choose_effort(name, changes)
