"""A rubric folder with answers in it, and scores by the handful."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from sekisho.evaluate.progress import silent
from sekisho.evaluate.rubric.answers import Answered, Answers, collect
from sekisho.evaluate.rubric.folder import RubricFolder
from sekisho.evaluate.rubric.rating_page import serve
from sekisho.evaluate.rubric.sheets import Score
from sekisho.evaluate.rubric.sitting import Sitting
from sekisho.evaluate.rubric.tasks import Task, TaskSet

MODEL = "secret-model-7b"
GOOD = Score(2, 2, 1, False)
POOR = Score(1, 1, 0, False, "half of it is missing")
BROKEN = Score(2, 2, 1, True, "it does not run")
T = TypeVar("T")


def some_tasks(calibration: int = 2, tasks: int = 6) -> TaskSet:
    def task(name: str, language: Any) -> Task:
        return Task(
            id=name,
            language=language,
            kind="code",
            title=f"Title of {name}",
            prompt=f"Prompt of {name}?",
            needs={"en": ("what it needs",), "ja": ("必要なこと",)},
            defects={"en": ("what is severe",), "ja": ("重大なこと",)},
        )

    languages = ("ja", "en")
    return TaskSet(
        tuple(task(f"cal-{number}", languages[number % 2]) for number in range(calibration)),
        tuple(task(f"task-{number}", languages[number % 2]) for number in range(tasks)),
    )


def asks(texts: dict[str, str] | None = None, *, model: str = MODEL) -> Callable[[str, int], Awaitable[Answered]]:
    """Answers each prompt with its own words, or with `texts` by prompt; an empty text is a request that failed."""

    async def ask(prompt: str, max_tokens: int) -> Answered:
        text = (texts or {}).get(prompt, f"Answer to: {prompt}")
        return Answered(
            text=text, ok=bool(text), faults=() if text else ("cut",), model=model, tokens=7, total_ms=4321.5
        )

    return ask


def filled(run: Path, tasks: TaskSet | None = None, texts: dict[str, str] | None = None) -> RubricFolder:
    """`run/rubric/` with tasks and answers, collected as the command does it."""
    folder = RubricFolder(run)
    chosen = tasks or some_tasks()
    folder.keep_tasks(chosen)

    async def work() -> Answers:
        return await collect(chosen, asks(texts), silent, keep=folder.keep_answers)

    elsewhere(work)
    return folder


def elsewhere(work: Callable[[], Awaitable[T]]) -> T:
    """Runs to its end, also below a running loop."""
    found: list[T] = []

    async def run() -> None:
        found.append(await work())

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    thread.join()
    return found[0]


def rate_all(sitting: Sitting, scores: dict[str, Score] | None = None, default: Score = GOOD) -> None:
    """Scores every task of the round that is open, and hands it in."""
    view = sitting.view()
    for item in view.items:
        sitting.rate(view.round, item.task, (scores or {}).get(item.task, default))
    sitting.hand_in(view.round)


def calibrated(folder: RubricFolder, *raters: str) -> list[Sitting]:
    """Sittings of raters who have handed in their calibration, agree, and have opened the tasks."""
    sittings = [Sitting(folder, rater) for rater in raters]
    for sitting in sittings:
        rate_all(sitting)
    for sitting in sittings:
        sitting.begin()
    return sittings


def rated(folder: RubricFolder, scores: Iterable[tuple[str, dict[str, Score]]]) -> None:
    """Two raters, finished with the first round; tasks that are not named are good."""
    named = dict(scores)
    for sitting in calibrated(folder, *named):
        rate_all(sitting, named[sitting.rater])


class Served:
    """The page of a rater, served in this loop as the command serves it."""

    def __init__(self, sitting: Sitting) -> None:
        self._sitting = sitting
        self._task: asyncio.Task[None] | None = None
        self.link = ""

    async def __aenter__(self) -> "Served":
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(serve(self._sitting, ready.set_result))
        await asyncio.wait({self._task, ready}, return_when=asyncio.FIRST_COMPLETED)
        self.link = ready.result() if ready.done() else ""
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})

    @property
    def url(self) -> str:
        return self.link.partition("#")[0]

    @property
    def token(self) -> str:
        return self.link.partition("#")[2]

    async def ended(self) -> None:
        """Waits until the command would end by itself."""
        assert self._task is not None
        await asyncio.wait_for(asyncio.shield(self._task), 60)
