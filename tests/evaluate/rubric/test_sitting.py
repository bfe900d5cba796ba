"""One rater at work: the stages, and that neither sees the other's scores."""

import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.rubric.folder import RubricFolder
from sekisho.evaluate.rubric.sheets import Score
from sekisho.evaluate.rubric.sitting import Sitting

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside these tests

from rubric_harness import BROKEN, GOOD, MODEL, POOR, calibrated, filled, rate_all, rated, some_tasks


@pytest.fixture
def folder(tmp_path: Path) -> RubricFolder:
    return filled(tmp_path)


def names(sitting: Sitting) -> list[str]:
    return [item.task for item in sitting.view().items]


def test_the_way_of_two_raters(folder: RubricFolder) -> None:
    """Calibration alone, waiting, discussion with both scores, the tasks, done: neither can be a step ahead."""
    hanako, taro = Sitting(folder, "hanako"), Sitting(folder, "taro")
    assert hanako.view().stage == taro.view().stage == "calibration"
    assert sorted(names(hanako)) == ["cal-0", "cal-1"]
    rate_all(hanako)
    assert hanako.view().stage == "waiting"
    assert hanako.view().items == hanako.view().sides == ()
    with pytest.raises(InvalidRequest):
        hanako.begin()
    rate_all(taro, {"cal-1": BROKEN})
    view = hanako.view()
    assert view.stage == "discussion"
    assert [side.rater for side in view.sides] == ["hanako", "taro"]
    assert [side.scores["cal-1"] for side in view.sides] == [GOOD, BROKEN]
    hanako.remember("What does not run is severe.")
    hanako.begin()
    assert hanako.view().stage == "rating"
    assert sorted(names(hanako)) == [f"task-{n}" for n in range(6)]
    assert taro.view().stage == "discussion"
    assert taro.view().sides[1].memo == "What does not run is severe."
    taro.begin()
    rate_all(hanako)
    assert (hanako.view().stage, hanako.view().other_done) == ("done", False)
    rate_all(taro)
    assert (hanako.view().stage, hanako.view().other_done) == ("done", True)


def test_raters_who_differ_write_down_what_follows(folder: RubricFolder) -> None:
    """Where one would adopt and the other would not, the tasks open only with a memo of either of them."""
    hanako, taro = Sitting(folder, "hanako"), Sitting(folder, "taro")
    rate_all(hanako)
    rate_all(taro, {"cal-0": POOR})
    assert hanako.view().memo_needed
    with pytest.raises(InvalidRequest, match="write down"):
        hanako.begin()
    taro.remember("Half an answer is no answer.")
    assert not hanako.view().memo_needed
    hanako.begin()
    assert {side.rater: side.memo for side in hanako.view().sides}["taro"] == "Half an answer is no answer."


def test_scores_that_differ_without_consequence_need_no_memo(folder: RubricFolder) -> None:
    """Four points against five are both adoptable: nothing has to be settled."""
    hanako, taro = Sitting(folder, "hanako"), Sitting(folder, "taro")
    rate_all(hanako)
    rate_all(taro, {"cal-0": Score(1, 2, 1, False)})
    assert not hanako.view().memo_needed
    hanako.begin()
    assert hanako.view().stage == "rating"


SECRETS = (MODEL, "4321", "total_ms", "ratings-", "answers.json", "sha256", "taro", "a note of the other", "tokens")


def test_a_rater_sees_nothing_of_the_other_and_nothing_of_the_model(folder: RubricFolder) -> None:
    """In every stage but the discussion a view holds no score, note or name of the other, no model, time or file."""
    other = Score(1, 1, 1, True, "a note of the other")
    taro = Sitting(folder, "taro")
    rate_all(taro, default=other)
    hanako = Sitting(folder, "hanako")
    seen = [hanako.view()]
    for item in seen[0].items:
        hanako.rate(0, item.task, other if item.task == "cal-0" else GOOD)
    told = msgspec.json.encode(hanako.view()).decode()
    assert told.count("a note of the other") == 1  # hanako's own words
    hanako.hand_in(0)
    hanako.remember("x")
    hanako.begin()
    taro.begin()
    rate_all(taro, default=other)
    seen.append(hanako.view())
    rate_all(hanako, default=POOR)
    seen.append(hanako.view())
    for view in seen:
        told = msgspec.json.encode(msgspec.structs.replace(view, sides=())).decode()
        assert [secret for secret in SECRETS if secret in told] == []
        assert all(side.scores == {} for side in view.sides)
    assert [side.scores for side in hanako.view().sides] == []


def test_the_other_calibration_is_seen_by_nobody_who_has_not_handed_in(folder: RubricFolder) -> None:
    """Handing in is what opens the other's calibration, and after it one's own cannot be changed."""
    taro = Sitting(folder, "taro")
    rate_all(taro)
    hanako = Sitting(folder, "hanako")
    for item in hanako.view().items:
        hanako.rate(0, item.task, GOOD)
    assert hanako.view().sides == ()
    hanako.hand_in(0)
    assert hanako.view().sides[1].scores
    with pytest.raises(InvalidRequest, match="handed in"):
        hanako.rate(0, "cal-0", POOR)


def test_each_rater_has_an_order_of_their_own_that_does_not_change(tmp_path: Path) -> None:
    """The same rater finds the same order again; another one has another, and it is not that of the file."""
    folder = filled(tmp_path, some_tasks(1, 20))
    hanako, taro = calibrated(folder, "hanako", "taro")
    assert names(hanako) == names(Sitting(folder, "hanako"))
    assert sorted(names(hanako)) == sorted(names(taro))
    assert names(hanako) != names(taro)
    assert names(hanako) != [f"task-{n}" for n in range(20)]


def test_what_was_rated_is_there_when_the_rater_comes_back(folder: RubricFolder) -> None:
    """Every score is on the disk at once, with the sum of the text that it is about."""
    hanako = Sitting(folder, "hanako")
    first = names(hanako)[0]
    hanako.rate(0, first, POOR)
    again = Sitting(folder, "hanako")
    assert {item.task: item.score for item in again.view().items} == {
        first: POOR,
        **{name: None for name in names(again) if name != first},
    }
    sheet = folder.sheet("hanako")
    assert sheet is not None
    answer = folder.answers().get(first)
    assert answer is not None
    assert sheet.rounds[0].rated[0].answer_sha256 == answer.sha256


def test_nothing_is_handed_in_half(folder: RubricFolder) -> None:
    """A missing score keeps the round open."""
    hanako = Sitting(folder, "hanako")
    hanako.rate(0, "cal-0", GOOD)
    with pytest.raises(InvalidRequest, match="1 of 2 are not rated"):
        hanako.hand_in(0)


def test_a_severe_defect_is_named(folder: RubricFolder) -> None:
    """Without words nobody could talk about it."""
    hanako = Sitting(folder, "hanako")
    with pytest.raises(InvalidRequest, match="needs a note"):
        hanako.rate(0, "cal-0", Score(2, 2, 1, True, "  "))


@pytest.mark.parametrize(("number", "task"), [(1, "task-0"), (0, "task-0"), (0, "../x"), (2, "cal-0"), (-1, "cal-0")])
def test_only_what_is_open_can_be_rated(folder: RubricFolder, number: int, task: str) -> None:
    """No task of a later round, of no round, or of another name."""
    with pytest.raises(InvalidRequest):
        Sitting(folder, "hanako").rate(number, task, GOOD)
    assert folder.raters() == ()


def test_there_are_two_raters(folder: RubricFolder) -> None:
    """A third one is turned away by the names of the two, and leaves nothing behind."""
    rated(folder, [("hanako", {}), ("taro", {})])
    with pytest.raises(InvalidRequest, match="hanako and taro"):
        Sitting(folder, "jiro")
    assert folder.raters() == ("hanako", "taro")


def test_a_rater_has_one_window(folder: RubricFolder) -> None:
    """The same name twice at the same time is refused; afterwards it is free again."""
    with folder.at_work("hanako"):
        with pytest.raises(InvalidRequest, match="rates already"), folder.at_work("hanako"):
            pass
        with folder.at_work("taro"):
            pass
    with folder.at_work("hanako"):
        pass


def test_ratings_of_other_answers_do_not_count(tmp_path: Path) -> None:
    """A sheet that was carried over from another run is refused, whether it is one's own or the other's."""
    one, two = filled(tmp_path / "1"), filled(tmp_path / "2", texts={"Prompt of task-0?": "something else"})
    rate_all(Sitting(one, "hanako"))
    (two.path / "ratings-hanako.json").write_bytes((one.path / "ratings-hanako.json").read_bytes())
    for rater in ("hanako", "taro"):
        with pytest.raises(InvalidRequest, match="hanako rated other answers"):
            Sitting(two, rater)


def test_a_sheet_that_was_renamed_is_noticed(folder: RubricFolder) -> None:
    """One rater's file under another name would be two raters in one."""
    rate_all(Sitting(folder, "hanako"))
    (folder.path / "ratings-hanako.json").rename(folder.path / "ratings-taro.json")
    with pytest.raises(InvalidRequest, match="sheet of hanako"):
        Sitting(folder, "taro")


def test_an_answer_that_never_came_is_not_rated(tmp_path: Path) -> None:
    """Raters see only tasks with an answer; without any calibration answer the tasks come at once."""
    texts = {"Prompt of task-2?": "", "Prompt of cal-0?": " \n", "Prompt of cal-1?": ""}
    hanako = Sitting(filled(tmp_path, texts=texts), "hanako")
    assert hanako.view().stage == "rating"
    assert sorted(names(hanako)) == ["task-0", "task-1", "task-3", "task-4", "task-5"]


def test_what_they_disagreed_on_is_rated_again_and_the_first_round_is_kept(folder: RubricFolder) -> None:
    """Round 2 shows the tasks of disagreement alone, without anybody's earlier score, and changes no earlier round."""
    rated(folder, [("hanako", {"task-1": POOR}), ("taro", {"task-4": BROKEN})])
    assert Sitting(folder, "hanako").view().stage == "done"
    before = folder.sheet("hanako")
    hanako = Sitting(folder, "hanako", 2)
    view = hanako.view()
    assert (view.stage, view.round) == ("rating", 2)
    assert sorted(names(hanako)) == ["task-1", "task-4"]
    assert [item.score for item in view.items] == [None, None]
    assert "half of it" not in msgspec.json.encode(view).decode()
    rate_all(hanako)
    after = folder.sheet("hanako")
    assert before is not None
    assert after is not None
    assert after.rounds[:2] == before.rounds
    assert (after.latest()["task-1"], after.latest(1)["task-1"]) == (GOOD, POOR)
    taro = Sitting(folder, "taro", 2)
    assert sorted(names(taro)) == ["task-1", "task-4"]  # as it was after round 1, whatever hanako says now


def test_a_round_that_was_begun_goes_on_without_being_named(folder: RubricFolder) -> None:
    """Once a score of round 2 is kept, the plain command goes on there."""
    rated(folder, [("hanako", {"task-1": POOR, "task-2": POOR}), ("taro", {})])
    hanako = Sitting(folder, "hanako", 2)
    hanako.rate(2, "task-1", GOOD)
    assert Sitting(folder, "hanako").view().round == 2


@pytest.mark.parametrize(
    ("scores", "number", "words"),
    [
        ({}, 2, "You agree on 6 of 6"),
        ({"task-1": POOR}, 2, "You agree on 5 of 6"),
        ({"task-1": POOR, "task-2": POOR}, 3, "Round 3 begins once"),
        ({"task-1": POOR, "task-2": POOR}, 1, None),
    ],
)
def test_a_later_round_is_for_raters_who_disagree(
    folder: RubricFolder, scores: dict[str, Score], number: int, words: str | None
) -> None:
    """From 80 % agreement on nothing is rated again, rounds are not skipped, and a round that is over stays over."""
    rated(folder, [("hanako", scores), ("taro", {})])
    if words is None:
        assert Sitting(folder, "hanako", number).view().stage == "done"
        return
    with pytest.raises(InvalidRequest, match=words):
        Sitting(folder, "hanako", number)


def test_a_later_round_waits_for_both(folder: RubricFolder) -> None:
    """As long as one has not handed in, nobody can begin again."""
    hanako, taro = calibrated(folder, "hanako", "taro")
    rate_all(hanako)
    taro.rate(1, "task-0", POOR)
    with pytest.raises(InvalidRequest, match="once both"):
        Sitting(folder, "hanako", 2)


moves = st.lists(
    st.tuples(
        st.sampled_from(["hanako", "taro"]),
        st.sampled_from(["rate", "rate", "rate", "hand in", "begin", "memo", "again"]),
        st.integers(0, 5),
        st.sampled_from([GOOD, POOR, BROKEN]),
    ),
    max_size=60,
)


@settings(max_examples=40)
@given(moves)
def test_no_order_of_moves_lets_one_see_the_other_or_change_what_is_handed_in(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[str, str, int, Score]]
) -> None:
    """Whatever two raters do, rounds that were handed in stay, and scores of the other are seen in the discussion
    only, which both have reached by handing in."""
    folder = filled(tmp_path_factory.mktemp("moves"))
    sittings = {rater: Sitting(folder, rater) for rater in ("hanako", "taro")}
    closed: dict[tuple[str, int], object] = {}
    for rater, move, which, score in made:
        sitting = sittings[rater]
        view = sitting.view()
        try:
            if move == "rate" and view.items:
                sitting.rate(view.round, view.items[which % len(view.items)].task, score)
            elif move == "hand in":
                sitting.hand_in(view.round)
            elif move == "begin":
                sitting.begin()
            elif move == "memo":
                sitting.remember("agreed")
            elif move == "again":
                sittings[rater] = Sitting(folder, rater, view.round + 1)
        except InvalidRequest:
            pass  # not allowed now: what follows must hold all the same
        for name, other in (("hanako", "taro"), ("taro", "hanako")):
            seen = sittings[name].view()
            if seen.stage != "discussion":
                assert all(side.scores == {} for side in seen.sides)
            else:
                sheet = folder.sheet(other)
                assert sheet is not None
                assert sheet.closed(0)
            own = folder.sheet(name)
            for one in own.rounds if own else ():
                if one.closed_at is not None:
                    assert closed.setdefault((name, one.number), one) == one
