"""The tasks: what comes with the package, and how a team's own file is read."""

import re
import sys
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.behaviour.safety import judge_in_force
from sekisho.evaluate.rubric.tasks import BUILT_IN, Task, load_tasks
from sekisho.guard.config import GuardConfig

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside these tests

TASKS = load_tasks()
BY_ID = {task.id: task for task in TASKS.all}
GOOD = """version: 1
calibration:
  - {id: a, language: ja, kind: code, title: t, prompt: p, needs: {ja: [x]}, defects: {ja: [y]}}
tasks:
  - {id: b, language: en, kind: code, title: t, prompt: p, needs: {en: [x]}, defects: {en: [y]}, max_tokens: 9}
"""


def test_there_are_twenty_tasks_and_four_for_the_calibration_half_of_each_in_japanese() -> None:
    """10 + 10 and 2 + 2, as the evaluation asks; no id stands twice, and no prompt."""
    assert Counter(task.language for task in TASKS.tasks) == {"ja": 10, "en": 10}
    assert Counter(task.language for task in TASKS.calibration) == {"ja": 2, "en": 2}
    assert len({task.id for task in TASKS.all}) == len({task.prompt for task in TASKS.all}) == 24


def test_the_tasks_are_of_many_kinds() -> None:
    """No kind takes more than two of the twenty, so that no one strength decides."""
    counts = Counter(task.kind for task in TASKS.tasks)
    assert max(counts.values()) <= 2
    assert len(counts) >= 10


@pytest.mark.parametrize("task", TASKS.all, ids=lambda task: task.id)
def test_raters_find_what_a_good_answer_needs_in_both_languages(task: Task) -> None:
    """Each task has points and severe defects, as many in Japanese as in English."""
    for notes in (task.needs, task.defects):
        assert set(notes) == {"ja", "en"}
        assert len(notes["ja"]) == len(notes["en"]) >= 2


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    return judge_in_force(GuardConfig(), tmp_path_factory.mktemp("guard"))


@pytest.mark.parametrize("task", TASKS.all, ids=lambda task: task.id)
def test_our_own_guard_lets_every_prompt_pass(task: Task, judge) -> None:  # type: ignore[no-untyped-def]
    """A model behind the gateway can be rated: no prompt waits for a person or is refused."""
    verdict = judge(task.prompt)
    assert verdict.decision == "allow", (task.id, verdict.category, verdict.findings)


def test_the_notes_of_the_plan_puzzle_are_right() -> None:
    """Of all 120 orders one keeps the conditions, the one of the notes; none when D may not be on Friday."""
    days = [dict(zip("ABCDE", days, strict=True)) for days in permutations(range(5))]
    kept = [d for d in days if d["A"] not in (0, 4) and d["B"] + 1 == d["D"] and d["C"] + 2 <= d["E"] != 4]
    assert ["".join(sorted(d, key=d.__getitem__)) for d in kept] == ["CAEBD"]
    assert [d for d in kept if d["D"] != 4] == []
    assert "Mon C, Tue A, Wed E, Thu B, Fri D" in BY_ID["ja-reason-plan"].needs["en"][0]


def test_the_notes_of_the_runner_puzzle_are_right() -> None:
    """Simulated second by second: 2 runners, 28:20, 35:00 and 43:00."""

    def seconds(runners: list[tuple[int, int]]) -> int:
        left, now = 840.0, 0
        while left > 1e-9:
            left -= sum(12 / 60 for begin, end in runners if begin + 300 <= now < end)
            now += 1
        return now

    always = 10**9
    assert seconds([(0, always)]) > 40 * 60
    assert seconds([(0, always)] * 2) == 40 * 60
    assert seconds([(0, always)] * 3) == 28 * 60 + 20
    assert seconds([(0, always)] * 2 + [(0, 15 * 60)]) == 35 * 60
    assert seconds([(0, always), (6 * 60, always)]) == 43 * 60
    notes = " ".join(BY_ID["en-reason-runners"].needs["en"])
    assert all(result in notes for result in ("so two", "28 minutes 20 seconds", "so 35 minutes", "43 minutes"))


def test_the_notes_of_the_pattern_task_are_right() -> None:
    """A pattern as the notes describe it finds what they say in the task's own sentence."""
    pattern = re.compile(r"(?<![A-Za-z0-9-])[A-Z]{2}-[0-9]{6}(?![A-Za-z0-9-])")
    assert pattern.findall(BY_ID["cal-ja-regex"].prompt.splitlines()[-1]) == ["AB-012345", "CD-000001"]


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    """Notes may be in one language, and a task may have its own limit."""
    file = tmp_path / "ours.yaml"
    file.write_text(GOOD, encoding="utf-8")
    found = load_tasks(file)
    assert [task.id for task in found.all] == ["a", "b"]
    assert found.tasks[0].max_tokens == 9
    assert found.sha256 != TASKS.sha256


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("id: b", "id: a", 5, "twice (first in line 3)"),
        ("id: b", "id: 'B b'", 5, "small letters"),
        ("language: en", "language: fr", 5, "none of ja, en"),
        (
            "kind: code, title: t, prompt: p, needs: {en",
            "kind: '', title: t, prompt: p, needs: {en",
            5,
            "small letters",
        ),
        ("prompt: p, needs: {en", "prompt: ' ', needs: {en", 5, "characters"),
        ("needs: {en: [x]}", "needs: {en: []}", 5, "empty list"),
        ("needs: {en: [x]}", "needs: {}", 5, "under `ja` or `en`"),
        ("needs: {en: [x]}", "needs: {en: [{x: y}]}", 5, "quotes"),
        ("needs: {en: [x]}, ", "", 5, "`needs` is missing"),
        ("max_tokens: 9", "max_tokens: 0", 5, "whole number"),
        ("max_tokens: 9", "max_tokens: many", 5, "whole number"),
        ("max_tokens: 9", "temperature: 1", 5, "unknown key 'temperature'"),
        ("max_tokens: 9", "kind: sql", 5, "'kind' stands twice"),
        ("version: 1", "version: 2", 1, "version 1"),
        ("version: 1\n", "", 1, "`version: 1` is missing"),
        ("tasks:\n", "others:\n", 4, "unknown key 'others'"),
        ("tasks:\n  - {id: b", "tasks: 3\nx:\n  - {id: b", 4, "expected a list"),
        ("tasks:\n", "tasks:\n  - 7\n", 5, "a task"),
        ("prompt: p, needs: {en", "prompt: [, needs: {en", 5, "not YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    """Every mistake has file, line and words, and nothing of the file is used."""
    file = tmp_path / "ours.yaml"
    assert old in GOOD
    file.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InvalidRequest) as raised:
        load_tasks(file)
    told = next(text for text in raised.value.message.splitlines() if words in text)
    assert told.startswith(f"{file}:{line}: ")


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"- a\n- b\n", b"x: " + b"[" * 1500])
def test_a_file_that_is_no_task_set_is_refused(tmp_path: Path, body: bytes) -> None:
    """Empty, no text, another shape, nested without end: an error in words."""
    file = tmp_path / "ours.yaml"
    file.write_bytes(body)
    with pytest.raises(InvalidRequest, match=re.escape(str(file))):
        load_tasks(file)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        load_tasks(tmp_path / "none.yaml")


@given(cut=st.integers(0, len(BUILT_IN.read_text(encoding="utf-8"))), junk=st.text(max_size=8))
def test_no_file_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, cut: int, junk: str) -> None:
    """A torn file with anything in it is a task set or refused in words: no other error comes."""
    text = BUILT_IN.read_text(encoding="utf-8")
    file = tmp_path_factory.mktemp("torn") / "torn.yaml"
    file.write_text(text[cut:][:2000] + junk, encoding="utf-8", errors="replace")
    try:
        found = load_tasks(file).tasks
    except InvalidRequest:
        return
    assert found


def test_the_file_of_the_package_is_plain_yaml() -> None:
    """Any YAML reader sees the same prompts: nothing rests on our own one."""
    plain = yaml.safe_load(BUILT_IN.read_text(encoding="utf-8"))
    assert [task["prompt"] for task in plain["tasks"]] == [task.prompt for task in TASKS.tasks]
