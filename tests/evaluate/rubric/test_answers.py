"""Collecting the answers, and what binds ratings to them."""

import sys
from pathlib import Path

import msgspec
import pytest

from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.evaluate.progress import silent
from sekisho.evaluate.rubric.answers import Answered, Answers, collect, digest
from sekisho.evaluate.rubric.folder import RubricFolder

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside these tests

from rubric_harness import MODEL, asks, filled, some_tasks

TASKS = some_tasks()


async def test_every_task_is_asked_once_and_its_answer_kept_with_its_sum() -> None:
    """One answer a task, in the order of the tasks, each with the SHA-256 of its text, the model and the figures."""
    seen: list[tuple[int, int]] = []
    found = await collect(TASKS, asks(), lambda _, done, total: seen.append((done, total)))
    assert [answer.task for answer in found.answers] == [task.id for task in TASKS.all]
    assert all(answer.sha256 == digest(answer.text) for answer in found.answers)
    assert {(a.model, a.tokens, a.total_ms) for a in found.answers} == {(MODEL, 7, 4321.5)}
    assert seen[0] == (0, 8)
    assert seen[-1] == (8, 8)


async def test_a_collection_that_broke_off_goes_on_and_asks_nothing_twice() -> None:
    """What came whole is kept as it is; what was not asked, and what failed, is asked."""
    kept: list[Answers] = []

    async def breaking(prompt: str, max_tokens: int) -> Answered:
        if "task-1" in prompt:
            raise ConnectionError("the power is gone")
        return Answered(text="" if "cal-1" in prompt else "first", ok="cal-1" not in prompt, model=MODEL)

    with pytest.raises(ConnectionError):
        await collect(TASKS, breaking, silent, keep=kept.append)
    again: list[str] = []

    async def going_on(prompt: str, max_tokens: int) -> Answered:
        again.append(prompt)
        return Answered(text="second", model=MODEL)

    found = await collect(TASKS, going_on, silent, kept=kept[-1])
    assert again == [f"Prompt of {name}?" for name in ("cal-1", "task-1", "task-2", "task-3", "task-4", "task-5")]
    assert [answer.text for answer in found.answers] == ["first", "second", "first"] + ["second"] * 5


async def test_the_limit_of_tokens_is_the_tasks_own_or_the_one_that_is_asked_for() -> None:
    """`max_tokens` of the call goes before the task's."""
    limits: list[int] = []

    async def ask(prompt: str, max_tokens: int) -> Answered:
        limits.append(max_tokens)
        return Answered(text="x")

    await collect(TASKS, ask, silent)
    await collect(TASKS, ask, silent, max_tokens=77)
    assert limits == [1024] * 8 + [77] * 8


async def test_answers_of_two_models_do_not_mix() -> None:
    """A collection that goes on with another model ends with words: ratings are about one."""
    kept: list[Answers] = []
    await collect(TASKS, asks({"Prompt of task-5?": ""}), silent, keep=kept.append)
    with pytest.raises(InvalidRequest, match="More than one model"):
        await collect(TASKS, asks(model="another"), silent, kept=kept[-1])


async def test_answers_to_other_tasks_are_not_gone_on_with() -> None:
    """A folder with answers to other tasks is refused."""
    found = await collect(TASKS, asks(), silent)
    with pytest.raises(InvalidRequest, match="other tasks"):
        await collect(some_tasks(2, 7), asks(), silent, kept=found)


async def test_half_a_letter_can_be_kept() -> None:
    """A lone surrogate, which no file can hold, becomes a replacement character; the sum is of what is kept."""

    async def ask(prompt: str, max_tokens: int) -> Answered:
        return Answered(text="a\ud800b")

    found = await collect(TASKS, ask, silent)
    assert found.answers[0].text == "a?b"
    found.check(TASKS)


def test_a_changed_answer_is_noticed(tmp_path: Path) -> None:
    """A text that was edited after it was collected is refused by name, whoever edited the file."""
    folder = filled(tmp_path)
    file = folder.path / "answers.json"
    file.write_text(file.read_text().replace("Answer to: Prompt of task-3?", "A better answer"))
    with pytest.raises(InvalidRequest, match="task-3 was changed"):
        folder.answers()


def test_changed_tasks_are_noticed(tmp_path: Path) -> None:
    """Answers belong to the tasks that were asked, word for word."""
    folder = filled(tmp_path)
    file = folder.path / "tasks.json"
    file.write_text(file.read_text().replace("Prompt of task-3?", "An easier prompt"))
    with pytest.raises(InvalidRequest, match="other tasks"):
        folder.answers()


def test_answers_that_are_not_all_there_are_not_rated(tmp_path: Path) -> None:
    """A collection that was broken off has to be finished first."""
    folder = filled(tmp_path)
    found = folder.answers()
    folder.keep_answers(msgspec.structs.replace(found, answers=found.answers[:-1]))
    with pytest.raises(InvalidRequest, match="finish it"):
        folder.answers()


def test_damaged_and_missing_files_are_told_in_words(tmp_path: Path) -> None:
    """Not there: what to do first. Damaged: which file."""
    with pytest.raises(NotFound, match="sekisho rubric collect"):
        RubricFolder(tmp_path).answers()
    folder = filled(tmp_path)
    for body in (b"{", b'{"tasks_sha256": "\xff"}'):
        (folder.path / "answers.json").write_bytes(body)
        with pytest.raises(InvalidRequest, match=r"answers\.json is damaged"):
            folder.answers()


def test_files_are_as_open_as_their_folder(tmp_path: Path) -> None:
    """A folder of one person has files of one person; a folder that a group reads has files that it reads."""
    folder = filled(tmp_path)
    file = folder.path / "tasks.json"
    assert file.stat().st_mode & 0o777 == 0o600
    folder.path.chmod(0o750)
    folder.keep_tasks(TASKS)
    assert file.stat().st_mode & 0o777 == 0o640
