"""Rules of a few known words, a scripted engine, a desk that rules as told, and a stage before a real book."""

import asyncio
from collections.abc import Callable

from sekisho.audit.book import Book
from sekisho.audit.keys import ReaderKeys
from sekisho.audit.reader import Reader
from sekisho.audit.records import Record
from sekisho.core.events import Batch, EventStream, Finished, Started, TextDelta, Usage
from sekisho.core.turn import Caller, Message, Text, Turn
from sekisho.core.verdict import Category, Decision, Finding
from sekisho.gateway.checkpoint import Checkpoint, Held, Ruling
from sekisho.guard.config import GuardConfig, Mode
from sekisho.guard.judge import Judge
from sekisho.guard.text import View

WORDS: dict[str, tuple[Category, Decision]] = {
    "bomb": ("weapons", "refuse"),
    "diagnosis": ("medical", "escalate"),
    "nitro recipe": ("weapons", "refuse"),
}
ANSWER: list[Batch] = [[Started("m")], [TextDelta("Hello"), TextDelta(" there.")], [Usage(3, 2), Finished("stop")]]


class WordRules:
    version = "r1"
    rules = ()

    def match(self, views: tuple[View, ...], language: str) -> tuple[Finding, ...]:
        found = [(word, *WORDS[word]) for view in views for word in WORDS if word in view.text]
        return tuple(Finding("rule", word, category, decision) for word, category, decision in found)


class Engine:
    """Says its batches; `asked` counts, `closed` tells that it was let go of."""

    def __init__(self, batches: list[Batch] | None = None, pause_s: float = 0.0) -> None:
        self.batches = ANSWER if batches is None else batches
        self.pause_s = pause_s
        self.asked = 0
        self.closed = 0

    async def generate(self, turn: Turn) -> EventStream:
        self.asked += 1
        try:
            for batch in self.batches:
                await asyncio.sleep(self.pause_s)
                yield list(batch)
        finally:
            self.closed += 1


class Desk:
    """Rules as it is told, or waits for ever."""

    def __init__(self, ruling: Ruling | None) -> None:
        self.ruling = ruling
        self.cases: list[Held] = []

    async def rule(self, held: Held, mode: Mode) -> Ruling:
        self.cases.append(held)
        if self.ruling is None:
            await asyncio.Event().wait()
        assert self.ruling is not None
        return self.ruling


def turn(text: str, scopes: tuple[str, ...] = ("chat",), **fields: object) -> Turn:
    caller = Caller("key_1", "taro", frozenset(scopes))
    messages = (Message("user", (Text(text),)),)
    return Turn("chatcmpl-1", "chat", "m", messages=messages, caller=caller, stream=True, **fields)  # type: ignore[arg-type]


def checkpoint(
    book: Book, rules: Callable[[], object] = WordRules, desk: Desk | None = None, **guard: object
) -> Checkpoint:
    config = GuardConfig(**guard)  # type: ignore[arg-type]
    return Checkpoint(config, Judge(rules, None), lambda: book, desk)  # type: ignore[arg-type]


async def pass_through(stage: Checkpoint, asked: Turn, engine: Engine) -> Batch:
    return [event async for batch in stage.stage(asked, engine.generate) for event in batch]


async def until(fact: Callable[[], object]) -> None:
    """Lets the loop run until a fact is true."""
    async with asyncio.timeout(60):
        while not fact():  # noqa: ASYNC110  # what is waited for rings no bell
            await asyncio.sleep(0.01)


def text_of(events: Batch) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def records(book: Book) -> list[Record]:
    keys = ReaderKeys.load(book.folder.parent / "secrets")
    return [entry.record for entry in Reader(book.folder, keys).entries()]
