"""The outcome of a turn is written whatever becomes of it, and what was said in it loses its personal data."""

import asyncio
import random
import threading

import pytest

from sekisho.audit.book import Book
from sekisho.audit.keys import ReaderKeys
from sekisho.audit.reader import Reader
from sekisho.audit.records import OutcomeRecord, VerdictRecord
from sekisho.core.events import Batch, EventStream, Finished, TextDelta, ToolCallDelta
from sekisho.core.turn import Message, Sampling, Text, Tool, ToolChoice, Turn
from sekisho.core.verdict import Finding
from sekisho.gateway import passing
from sekisho.gateway.checkpoint import Checkpoint
from sekisho.gateway.passing import Passing, request_hash, settle
from sekisho.guard.config import GuardConfig
from sekisho.guard.judge import Judge
from sekisho.guard.personal import Pseudonyms, Redacted, redact
from sekisho.guard.text import View

SECRET = "hanako.yamada@example.com, 4111 1111 1111 1111"


class NoRules:
    version = "r0"
    rules = ()

    def match(self, views: tuple[View, ...], language: str) -> tuple[Finding, ...]:
        return ()


def turn(**fields: object) -> Turn:
    return Turn("chatcmpl-1", "chat", "m", messages=(Message("user", (Text("hello"),)),), **fields)  # type: ignore[arg-type]


async def run(book: Book, asked: Turn, batches: list[Batch]) -> None:
    async def generate(_: Turn) -> EventStream:
        for batch in batches:
            yield batch

    stage = Checkpoint(GuardConfig(), Judge(NoRules, None), lambda: book)
    async for _ in stage.stage(asked, generate):
        pass
    await settle()


def outcomes(book: Book) -> list[OutcomeRecord]:
    keys = ReaderKeys.load(book.folder.parent / "secrets")
    found = [entry.record for entry in Reader(book.folder, keys).entries()]
    assert any(isinstance(record, VerdictRecord) for record in found)
    return [record for record in found if isinstance(record, OutcomeRecord)]


@pytest.mark.parametrize("seed", range(5))
async def test_interleaved_choices_hide_no_personal_data(book: Book, seed: int) -> None:
    """Three choices and a tool call that come a few characters at a time, mixed: each is cleaned as a text of its
    own."""
    dice = random.Random(seed)
    pieces: list[list[TextDelta | ToolCallDelta]] = [[], [], [], []]
    for choice in range(3):
        pieces[choice] = [TextDelta(SECRET[at : at + 2], choice) for at in range(0, len(SECRET), 2)]
    pieces[3] = [ToolCallDelta(0, "call_1", "send", "")]
    pieces[3] += [ToolCallDelta(0, arguments=SECRET[at : at + 3]) for at in range(0, len(SECRET), 3)]
    batches: list[Batch] = []
    while any(pieces):
        batches.append([dice.choice([one for one in pieces if one]).pop(0)])
    batches.append([Finished("stop", choice) for choice in range(3)])
    await run(book, turn(sampling=Sampling(n=3)), batches)
    (outcome,) = outcomes(book)
    assert outcome.output.count("[EMAIL_1]") == 4
    assert "hanako" not in outcome.output
    assert "1111" not in outcome.output


@pytest.mark.parametrize("batches", [[], [[TextDelta("half")]], [[TextDelta("x" * 600)], [TextDelta("y" * 600)]]])
async def test_an_engine_that_ends_without_an_end_has_an_outcome(book: Book, batches: list[Batch]) -> None:
    """The caller is told of an error after this stage; the book must not have a verdict without an outcome."""
    await run(book, turn(), batches)
    (outcome,) = outcomes(book)
    assert outcome.status == "failed"


async def test_a_wait_that_is_broken_off_at_the_very_end_loses_no_outcome(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client leaves while a long answer is being cleaned: the outcome is written all the same, once."""
    cleaning = asyncio.Event()

    async def for_ever(self: Passing, text: str) -> str:
        if self.question and not cleaning.is_set():
            cleaning.set()
            await asyncio.Event().wait()
        return text

    monkeypatch.setattr(Passing, "clean", for_ever)
    task = asyncio.create_task(run(book, turn(), [[TextDelta("long"), Finished("stop")]]))
    await cleaning.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settle()
    (outcome,) = outcomes(book)
    assert (outcome.status, outcome.output) == ("cancelled", "long")


def test_a_request_is_named_by_all_that_the_engine_reads(book: Book) -> None:
    """An approval counts for the request that a person saw: nothing that the engine reads may be exchanged under it.
    How long and how random the answer is does not make another request."""
    plain = request_hash(turn(), book)
    others = [
        turn(extra={"chat_template_kwargs": {"note": "do as I say"}}),
        turn(tools=(Tool("f", description="x"),)),
        turn(tools=(Tool("f", description="y"),)),
        turn(tools=(Tool("f", parameters={"maximum": 10**40}),)),
        turn(tool_choice=ToolChoice("one", "f")),
        Turn("x", "completions", "m", prompts=("hello",)),
        Turn("x", "completions", "m", prompts=("hello",), suffix="!"),
    ]
    names = [request_hash(one, book) for one in others]
    assert len({plain, *names}) == len(others) + 1
    assert request_hash(turn(sampling=Sampling(temperature=0.3, max_tokens=5), stream=True), book) == plain


async def test_the_outcome_of_who_left_is_waited_for(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stops closes its book behind the last outcome, however long that is being cleaned."""
    clean, cleaned = Passing.clean, asyncio.Event()

    async def slow(self: Passing, text: str) -> str:
        if self.question:
            await cleaned.wait()
        return await clean(self, text)

    monkeypatch.setattr(Passing, "clean", slow)

    async def generate(_: Turn) -> EventStream:
        for letter in "xyz":
            yield [TextDelta(letter * 600)]
        await asyncio.Event().wait()

    events = Checkpoint(GuardConfig(), Judge(NoRules, None), lambda: book).stage(turn(), generate)
    await anext(events)
    await events.aclose()
    settling = asyncio.create_task(settle())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not settling.done()
    assert outcomes(book) == []
    cleaned.set()
    await settling
    (outcome,) = outcomes(book)
    assert outcome.status == "cancelled"


async def test_a_long_table_does_not_stop_the_others(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of numbers takes a tenth of a second to judge and to clean: beside the event loop, not in it."""
    places: list[threading.Thread] = []

    def noted(text: str, pseudonyms: Pseudonyms | None = None) -> Redacted:
        places.append(threading.current_thread())
        return redact(text, pseudonyms)

    monkeypatch.setattr(passing, "redact", noted)
    table = Turn("chatcmpl-2", "chat", "m", messages=(Message("user", (Text("1-" * 3_000),)),))
    await run(book, table, [[TextDelta("1 " * 3_000)], [Finished("stop")]])
    assert len(places) == 2
    assert threading.current_thread() not in places
