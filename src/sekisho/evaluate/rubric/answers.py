"""The answers that are rated: asked once, kept with their SHA-256, so that a rating belongs to exactly one text."""

import hashlib
import time
from collections.abc import Awaitable, Callable
from functools import cached_property

import msgspec

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.progress import Progress
from sekisho.evaluate.rubric.tasks import TaskSet


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """What came back for one prompt. `faults`: in words; `ok` False where one of them means that the request failed."""

    text: str
    ok: bool = True
    faults: tuple[str, ...] = ()
    model: str = ""
    tokens: int | None = None
    total_ms: float | None = None


Ask = Callable[[str, int], Awaitable[Answered]]
"""`(prompt, max_tokens)`. Does not raise for what the other side does."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer as it is kept. `sha256` is of its text; `asked_at` in seconds since 1970."""

    task: str
    text: str
    sha256: str
    ok: bool
    faults: tuple[str, ...] = ()
    model: str = ""
    tokens: int | None = None
    total_ms: float | None = None
    asked_at: float = 0.0

    @property
    def to_rate(self) -> bool:
        """A request without any text is no answer: it counts as not adoptable, and nobody has to rate it."""
        return bool(self.text.strip())


class Answers(msgspec.Struct, frozen=True, dict=True):
    """`tasks_sha256` is of the task set that was asked. In the order of the tasks."""

    tasks_sha256: str
    answers: tuple[Answer, ...] = ()
    version: int = 1

    def get(self, task: str) -> Answer | None:
        return next((answer for answer in self.answers if answer.task == task), None)

    @cached_property
    def sha256(self) -> str:
        """Of all answers together: what a rater's sheet is bound to."""
        told = "".join(f"{answer.task}\0{answer.sha256}\n" for answer in self.answers)
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(sorted({answer.model for answer in self.answers if answer.model}))

    def check(self, tasks: TaskSet) -> None:
        """Raises InvalidRequest where a text is not the one that was kept, or the tasks are others."""
        if self.tasks_sha256 != tasks.sha256:
            raise InvalidRequest("The answers are to other tasks than these: collect them again into another folder.")
        for answer in self.answers:
            if digest(answer.text) != answer.sha256:
                raise InvalidRequest(f"The answer to {answer.task} was changed after it was collected.")
        missing = [task.id for task in tasks.all if self.get(task.id) is None]
        if missing:
            raise InvalidRequest(f"Answers are missing ({len(missing)}): finish it with sekisho rubric collect.")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


async def collect(
    tasks: TaskSet,
    ask: Ask,
    progress: Progress,
    *,
    kept: Answers | None = None,
    keep: Callable[[Answers], None] | None = None,
    max_tokens: int | None = None,
) -> Answers:
    """Asks every task, one after the other. `kept`: what an earlier run that was broken off has got: what came whole
    is not asked again. `keep` is given all answers after each. `max_tokens` goes before the tasks' own.

    Raises InvalidRequest where another model answers than before: ratings are about one.
    """
    if kept is not None and kept.tasks_sha256 != tasks.sha256:
        raise InvalidRequest("There are answers to other tasks in this folder: name another one with --out.")
    found = {answer.task: answer for answer in (kept.answers if kept else ()) if answer.ok}
    answers = _in_order(tasks, found)
    for task in tasks.all:
        if task.id in found:
            continue
        progress(task.id, len(found), len(tasks.all))
        got = await ask(task.prompt, max_tokens or task.max_tokens)
        found[task.id] = _kept(task.id, got)
        answers = _in_order(tasks, found)
        if len(answers.models) > 1:
            names = ", ".join(answers.models)
            raise InvalidRequest(f"More than one model answered ({names}): collect each into a folder of its own.")
        if keep is not None:
            keep(answers)
    progress("", len(found), len(tasks.all))
    return answers


def _kept(task: str, got: Answered) -> Answer:
    text = got.text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored or shown
    return Answer(
        task=task,
        text=text,
        sha256=digest(text),
        ok=got.ok,
        faults=got.faults,
        model=got.model,
        tokens=got.tokens,
        total_ms=got.total_ms,
        asked_at=time.time(),
    )


def _in_order(tasks: TaskSet, found: dict[str, Answer]) -> Answers:
    return Answers(tasks.sha256, tuple(found[task.id] for task in tasks.all if task.id in found))
