"""A rater's sheet as a value."""

import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.rubric.sheets import Rated, Round, Score, Sheet, rater_name

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside these tests

from rubric_harness import BROKEN, GOOD, POOR

scores = st.builds(Score, st.integers(0, 2), st.integers(0, 2), st.integers(0, 1), st.booleans(), st.text(max_size=5))


@given(scores)
def test_adoptable_is_four_points_and_no_severe_defect(score: Score) -> None:
    """Of five points four are enough, and a severe defect undoes any of them."""
    assert 0 <= score.total <= 5
    assert score.adoptable == (score.total in (4, 5) and not score.severe)


@pytest.mark.parametrize("field", ["correctness", "instructions", "readability"])
@pytest.mark.parametrize("value", [-1, 3, 1.5, "2", None, True])
def test_no_other_points_can_be_read(field: str, value: object) -> None:
    """A file or request with points outside the scale, or that are no whole numbers, is refused."""
    told = {"correctness": 1, "instructions": 1, "readability": 1, "severe": False, field: value}
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(told), type=Score)


def test_the_latest_round_that_was_handed_in_counts() -> None:
    """A later round replaces only its own tasks, and only once it is handed in; the calibration never counts."""

    def rated(task: str, score: Score) -> Rated:
        return Rated(task, "0", score, 1.0)

    sheet = Sheet(
        "hanako",
        "0",
        (
            Round(0, ("c",), (rated("c", GOOD),), 1.0),
            Round(1, ("a", "b"), (rated("a", POOR), rated("b", GOOD)), 1.0),
            Round(2, ("a",), (rated("a", GOOD),), None),
        ),
    )
    assert sheet.latest() == {"a": POOR, "b": GOOD}
    closed = sheet.with_round(msgspec.structs.replace(sheet.rounds[2], closed_at=2.0))
    assert closed.latest() == {"a": GOOD, "b": GOOD}
    assert closed.latest(1) == {"a": POOR, "b": GOOD}
    assert msgspec.json.decode(msgspec.json.encode(closed), type=Sheet) == closed


def test_a_task_has_one_score_in_a_round() -> None:
    """Rated again in the same round, the last score stands."""
    one = Round(1, ("a", "b")).with_(Rated("a", "0", GOOD, 1.0)).with_(Rated("a", "0", BROKEN, 2.0))
    assert one.score("a") == BROKEN
    assert one.missing == ("b",)


@pytest.mark.parametrize(
    ("told", "name"),
    [("hanako", "hanako"), (" Hanako ", "hanako"), ("ＴＡＲＯ", "taro"), ("花子", "花子"), ("a-b_1", "a-b_1")],
)
def test_a_name_is_one_file_on_every_system(told: str, name: str) -> None:
    """Small and full-width letters are told apart by no file system of ours: they are the same rater."""
    assert rater_name(told) == name


@pytest.mark.parametrize("told", ["", "-a", "_a", "a b", "../a", "a/b", "a.b", "a\0", "x" * 33, "a:b", "\u202ea"])
def test_no_name_leads_elsewhere(told: str) -> None:
    """Whatever could be a path, a hidden file or no file at all is refused."""
    with pytest.raises(InvalidRequest, match="rater's name"):
        rater_name(told)


@given(st.text(max_size=40))
def test_any_name_is_stable_or_refused(told: str) -> None:
    """The name of a name is itself, and none has a dot or a slash."""
    try:
        name = rater_name(told)
    except InvalidRequest:
        return
    assert rater_name(name) == name
    assert not set(name) & set("./\\:")
