"""What two sheets say together."""

import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.evaluate.rubric.agreement import Assessment, assess, assessment, disagreed
from sekisho.evaluate.rubric.folder import RubricFolder
from sekisho.evaluate.rubric.sheets import Rated, Round, Score, Sheet
from sekisho.evaluate.rubric.sitting import Sitting
from sekisho.evaluate.rubric.verdict_figures import figures, rubric_figures

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside these tests

from rubric_harness import BROKEN, GOOD, POOR, calibrated, filled, rate_all, rated, some_tasks

TWENTY = some_tasks(2, 20)
any_score = st.sampled_from([GOOD, POOR, BROKEN])


def judged(first: list[Score], second: list[Score]) -> Assessment:
    """Two raters of the first so many of twenty tasks."""

    def sheet(rater: str, scores: list[Score]) -> Sheet:
        names = tuple(f"task-{n}" for n in range(len(scores)))
        done = tuple(Rated(name, "0", score, 1.0) for name, score in zip(names, scores, strict=True))
        return Sheet(rater, "0", (Round(1, names, done, 2.0),))

    missing = tuple(f"task-{n}" for n in range(len(first), 20))
    return assessment(TWENTY.tasks, missing, (sheet("hanako", first), sheet("taro", second)))


def table(both: int, only_first: int, only_second: int, neither: int) -> Assessment:
    """Twenty tasks by who would adopt what."""
    first = [GOOD] * (both + only_first) + [POOR] * (only_second + neither)
    second = [GOOD] * both + [POOR] * only_first + [GOOD] * only_second + [POOR] * neither
    return judged(first, second)


def test_known_figures() -> None:
    """14 adopted by both, 2 by each alone, 2 by neither: 80 % agreement, 68 % by chance, kappa 0.375 by hand."""
    found = table(14, 2, 2, 2)
    assert (found.both, found.either, found.each) == (14, 18, (16, 16))
    assert (found.agreement.agreed, found.agreement.n, found.agreement.share) == (16, 20, 0.8)
    assert found.agreement.by_chance == pytest.approx(0.8 * 0.8 + 0.2 * 0.2)
    assert found.agreement.kappa == pytest.approx((0.8 - 0.68) / (1 - 0.68))
    assert found.passed
    assert found.round_due is None


def test_the_wilson_interval_of_eighteen_in_twenty() -> None:
    """90 % of 20 is anything from 70 to 97 %: the page of figures says so."""
    interval = table(16, 1, 1, 2).agreement.interval
    assert interval is not None
    assert (round(interval.low, 2), round(interval.high, 2)) == (0.70, 0.97)
    assert interval.method == "wilson"


@pytest.mark.parametrize(
    ("both", "first", "second", "neither", "passed"),
    [(14, 4, 0, 2, True), (14, 3, 2, 1, False), (13, 0, 0, 7, False), (20, 0, 0, 0, True), (0, 0, 0, 20, False)],
)
def test_the_lines_are_seventy_and_eighty_percent(
    both: int, first: int, second: int, neither: int, passed: bool
) -> None:
    """14 of 20 and 16 of 20 are enough, 13 and 15 are not; both lines must be met."""
    assert table(both, first, second, neither).passed is passed


@given(st.integers(1, 200), st.data())
def test_the_lines_are_exact(count: int, data: st.DataObject) -> None:
    """No rounding of floating point moves a line: the same as with fractions."""
    from sekisho.evaluate.rubric.agreement import enough

    agreed = data.draw(st.integers(0, count))
    assert enough(agreed, count) == (Fraction(agreed, count) >= Fraction(4, 5))


def test_on_disagreement_an_answer_is_not_adoptable() -> None:
    """The stricter reading counts, and the other one is shown beside it."""
    found = table(10, 5, 5, 0)
    assert found.adoptable_share == 0.5
    assert found.either == 20
    assert len(found.disagreements) == 10
    assert found.round_due == 2


def test_within_one_point_is_easy_by_chance() -> None:
    """Skewed scores agree within one point by chance alone: the figure comes with that share, and is no line."""
    first = [GOOD] * 10 + [Score(2, 1, 1, False)] * 10
    second = [Score(2, 1, 1, False)] * 10 + [GOOD] * 10
    found = judged(first, second)
    assert (found.total.agreed, found.total_within_one.agreed) == (0, 20)
    assert found.total_within_one.by_chance == pytest.approx(1.0)
    assert found.agreement.share == 1.0


def test_each_axis_has_its_own_agreement() -> None:
    """Where the line is unclear shows on the axis on which they differ."""
    found = judged([GOOD] * 4, [Score(1, 2, 1, False)] * 3 + [GOOD])
    assert {axis: one.agreed for axis, one in found.axes.items()} == {
        "correctness": 1,
        "instructions": 4,
        "readability": 4,
    }


def test_tasks_without_an_answer_count_against_the_model_and_not_against_the_raters() -> None:
    """Of 20 tasks 15 came and are good: 75 % adoptable, 100 % agreement on 15."""
    found = judged([GOOD] * 15, [GOOD] * 15)
    assert (found.adoptable_share, found.agreement.n, found.agreement.share) == (0.75, 15, 1.0)
    assert len(found.unanswered) == 5


def test_severe_defects_of_either_rater_are_counted_once() -> None:
    """An answer in which both see one is one answer."""
    assert judged([BROKEN, BROKEN, GOOD], [BROKEN, GOOD, BROKEN]).severe == 3


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(st.sampled_from([GOOD, POOR, BROKEN]), st.sampled_from([GOOD, POOR, BROKEN])), min_size=1, max_size=20
    )
)
def test_it_does_not_matter_who_is_first(pairs: list[tuple[Score, Score]]) -> None:
    """Exchanging the raters exchanges their columns and changes no verdict; agreement and kappa are within bounds."""
    one = judged([a for a, _ in pairs], [b for _, b in pairs])
    two = judged([b for _, b in pairs], [a for a, _ in pairs])
    assert (one.both, one.either, one.passed, one.severe) == (two.both, two.either, two.passed, two.severe)
    assert one.each == two.each[::-1]
    assert one.agreement.kappa == pytest.approx(two.agreement.kappa)
    assert one.agreement.kappa is None or -1 <= one.agreement.kappa <= 1
    assert one.both <= min(one.each) <= max(one.each) <= one.either
    assert one.either - one.both == len(one.disagreements) == one.agreement.n - one.agreement.agreed


def test_disagreement_is_about_adopting_only() -> None:
    """Different points with the same consequence are agreement."""
    assert disagreed({"a": GOOD, "b": POOR}, {"a": Score(1, 2, 1, False), "b": BROKEN, "c": GOOD}) == ()


# --- from the files ---


def test_the_figures_of_a_run(tmp_path: Path) -> None:
    """The five figures with their units, numbers, intervals, who attests them and how to see them again."""
    folder = filled(tmp_path / "run-1", TWENTY)
    rated(folder, [("taro", {"task-3": BROKEN}), ("hanako", {"task-3": POOR, "task-4": POOR})])
    found = {figure.id: figure for figure in rubric_figures(tmp_path / "run-1")}
    assert list(found) == [
        "rubric.adoptable_rate",
        "rubric.agreement",
        "rubric.kappa",
        "rubric.severe",
        "rubric.tasks",
    ]
    assert found["rubric.adoptable_rate"].value == 0.9
    assert found["rubric.agreement"].value == 0.95
    assert found["rubric.severe"].value == 1
    assert found["rubric.tasks"].value == 20
    assert found["rubric.kappa"].value == pytest.approx((0.95 - (0.9 * 0.95 + 0.1 * 0.05)) / (1 - 0.86))
    assert found["rubric.adoptable_rate"].interval is not None
    assert found["rubric.agreement"].interval is not None
    assert {figure.attested_by for figure in found.values()} == {"hanako, taro"}
    assert {figure.command for figure in found.values()} == {"sekisho rubric verdict run-1"}
    assert "at least one: 19 of 20" in found["rubric.adoptable_rate"].note


def test_kappa_without_any_spread_says_why_it_is_not_there() -> None:
    """Both adopt everything: chance alone agrees fully, so kappa has no value and the reason stands there."""
    kappa = next(figure for figure in figures(table(20, 0, 0, 0)) if figure.id == "rubric.kappa")
    assert kappa.value is None
    assert "chance agrees fully" in kappa.why_null


def test_an_unfinished_rating_has_figures_without_values_and_with_the_reason(tmp_path: Path) -> None:
    """Nothing collected, nobody, one rater, one not finished: each time no number, and what is missing."""
    reasons = [rubric_figures(tmp_path / "run")[0].why_null]
    folder = filled(tmp_path / "run")
    reasons.append(rubric_figures(tmp_path / "run")[0].why_null)
    hanako = Sitting(folder, "hanako")
    rate_all(hanako)
    reasons.append(rubric_figures(tmp_path / "run")[0].why_null)
    rate_all(Sitting(folder, "taro"))
    reasons.append(rubric_figures(tmp_path / "run")[0].why_null)
    found = rubric_figures(tmp_path / "run")
    assert [figure.value for figure in found] == [None] * 5
    words = ("collect answers first", "nobody has begun", "only hanako has begun", "hanako has not handed in")
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))


def test_re_rating_counts_and_the_first_agreement_is_told_beside_it(tmp_path: Path) -> None:
    """What they disagreed on is rated again: the new scores count, the old agreement stays on the page."""
    folder = filled(tmp_path, some_tasks(1, 5))
    rated(folder, [("hanako", {"task-0": POOR, "task-1": POOR}), ("taro", {})])
    assert assess(folder).round_due == 2
    rate_all(Sitting(folder, "hanako", 2))
    assert assess(folder).agreement.agreed == 3  # one of them alone changes nothing
    rate_all(Sitting(folder, "taro", 2), {"task-0": POOR})
    found = assess(folder)
    assert (found.rounds, found.agreement.agreed, found.first_agreement.agreed) == (2, 4, 3)
    assert found.round_due is None
    note = next(figure for figure in figures(found) if figure.id == "rubric.agreement").note
    assert "3 of 5 before" in note


def test_three_sheets_are_one_too_many(tmp_path: Path) -> None:
    """A third file that was put there is named; none is silently left out."""
    folder = filled(tmp_path)
    rated(folder, [("hanako", {}), ("taro", {})])
    body = (folder.path / "ratings-taro.json").read_text().replace('"taro"', '"jiro"')
    (folder.path / "ratings-jiro.json").write_text(body)
    with pytest.raises(InvalidRequest, match="hanako, jiro, taro"):
        assess(folder)


def test_no_answer_at_all_is_a_clear_no(tmp_path: Path) -> None:
    """A model that answers nothing leaves nothing to rate, and is not adopted."""
    tasks = some_tasks(1, 3)
    folder = filled(tmp_path, tasks, {task.prompt: "" for task in tasks.all})
    for rater in ("hanako", "taro"):
        sitting = Sitting(folder, rater)
        sitting.hand_in(sitting.view().round)
    found = assess(folder)
    assert (found.passed, found.adoptable_share, found.agreement.n) == (False, 0.0, 0)
    assert found.round_due is None
    agreement = next(figure for figure in figures(found) if figure.id == "rubric.agreement")
    assert agreement.value is None
    assert agreement.why_null


def test_the_names_of_a_folder_are_seen_after_both_have_begun(tmp_path: Path) -> None:
    """A sheet is written with the first score, so a look around makes nobody a rater."""
    folder = filled(tmp_path)
    Sitting(folder, "hanako").view()
    assert RubricFolder(tmp_path).raters() == ()
    calibrated(folder, "hanako", "taro")
    assert RubricFolder(tmp_path).raters() == ("hanako", "taro")
    with pytest.raises(NotFound):
        assess(folder)
