"""The checkpoint stage with a real book: nothing leaves before it is recorded, nothing passes unjudged, and what is
written holds neither thoughts nor personal data. Rules are a few known words; the engine is scripted."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sekisho.audit.book import Book
from sekisho.audit.config import AuditConfig
from sekisho.audit.keys import ReaderKeys
from sekisho.audit.reader import Reader
from sekisho.audit.records import EscalationRecord, OutcomeRecord, Receipt, Record, VerdictRecord
from sekisho.core.errors import BookUnavailable, EngineUnavailable
from sekisho.core.events import (
    Batch,
    EventStream,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from sekisho.core.turn import Caller, Message, Text, Turn
from sekisho.core.verdict import Category, DecidedBy, Decision, Finding
from sekisho.gateway.checkpoint import Checkpoint, Held, Ruling
from sekisho.guard.config import GuardConfig, Mode
from sekisho.guard.judge import Judge, Leaning
from sekisho.guard.text import View
from sekisho.wire import think

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


class BrokenRules:
    version = "r0"
    rules = ()

    def match(self, views: tuple[View, ...], language: str) -> tuple[Finding, ...]:
        raise RuntimeError("a rule broke")


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


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[Book]:
    opened = Book.open(tmp_path / "audit", tmp_path / "secrets", AuditConfig())
    yield opened
    await asyncio.to_thread(opened.close)


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


def text_of(events: Batch) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def records(book: Book) -> list[Record]:
    keys = ReaderKeys.load(book.folder.parent / "secrets")
    return [entry.record for entry in Reader(book.folder, keys).entries()]


async def test_an_allowed_turn_passes_unchanged_and_is_recorded_twice(book: Book) -> None:
    """The verdict before the first byte, the outcome with its tokens before the last."""
    engine = Engine()
    events = await pass_through(checkpoint(book), turn("How are you?"), engine)
    assert text_of(events) == "Hello there."
    assert events[-2:] == [Usage(3, 2), Finished("stop")]
    verdict, outcome = records(book)
    assert isinstance(verdict, VerdictRecord)
    assert isinstance(outcome, OutcomeRecord)
    assert (verdict.decision, verdict.request_id, verdict.key_id) == ("ALLOW", "chatcmpl-1", "key_1")
    assert verdict.input == "How are you?"
    assert (outcome.status, outcome.output, outcome.prompt_tokens, outcome.completion_tokens) == (
        "completed",
        "Hello there.",
        3,
        2,
    )
    assert outcome.output_hash
    assert outcome.total_ms is not None


async def test_a_refused_turn_never_reaches_the_engine(book: Book) -> None:
    """The caller reads a refusal that costs nothing and names the record."""
    engine = Engine()
    events = await pass_through(checkpoint(book), turn("build a bomb"), engine)
    assert engine.asked == 0
    said = "".join(event.text for event in events if isinstance(event, RefusalDelta))
    assert "chatcmpl-1" in said
    assert events[-2:] == [Usage(0, 0), Finished("content_filter")]
    verdict, outcome = records(book)
    assert isinstance(verdict, VerdictRecord)
    assert verdict.decision == "REFUSE"
    assert isinstance(outcome, OutcomeRecord)
    assert outcome.status == "refused"


async def test_nothing_leaves_before_the_record_is_durable(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine runs meanwhile, but its words wait for the disk."""
    gate = asyncio.Event()
    append = book.append

    async def slow(record: Record) -> Receipt:
        await gate.wait()
        return await append(record)

    monkeypatch.setattr(book, "append", slow)
    engine = Engine()
    left: list[Batch] = []

    async def consume() -> None:
        async for batch in checkpoint(book).stage(turn("hello"), engine.generate):
            left.append(batch)

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.1)
    assert engine.asked == 1
    assert left == []
    gate.set()
    await task
    assert left


@pytest.mark.parametrize("text", ["hello", "build a bomb", "my diagnosis"])
async def test_without_the_book_nothing_is_answered(book: Book, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A book that cannot be written is an error to the caller, never a gap."""

    async def broken(record: Record) -> Receipt:
        raise BookUnavailable("the disk is full")

    monkeypatch.setattr(book, "append", broken)
    engine = Engine()
    with pytest.raises(BookUnavailable):
        await pass_through(checkpoint(book, desk=Desk(Ruling("approved", "esc_1"))), turn(text), engine)
    assert engine.closed == engine.asked

    def missing() -> Book:
        raise BookUnavailable("not open yet")

    closed = Checkpoint(GuardConfig(), Judge(WordRules, None), missing)
    with pytest.raises(BookUnavailable):
        await pass_through(closed, turn(text), engine)


async def test_an_outcome_that_cannot_be_written_ends_no_answer(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last bytes wait for the outcome; without it the answer is not complete."""

    async def broken(record: Record) -> Receipt:
        raise BookUnavailable("the disk is full")

    monkeypatch.setattr(book, "hand_over", broken)
    seen: Batch = []

    async def collect() -> None:
        async for batch in checkpoint(book).stage(turn("hello"), Engine().generate):
            seen.extend(batch)

    with pytest.raises(BookUnavailable):
        await collect()
    assert not any(isinstance(event, Finished) for event in seen)


async def test_a_broken_guard_refuses(book: Book) -> None:
    """A rule that crashed is no permission."""
    engine = Engine()
    events = await pass_through(checkpoint(book, BrokenRules), turn("hello"), engine)
    assert engine.asked == 0
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "content_filter"
    verdict = records(book)[0]
    assert isinstance(verdict, VerdictRecord)
    assert (verdict.decision, verdict.decided_by) == ("REFUSE", "failure")


@pytest.mark.parametrize(
    ("ruling", "asked", "said", "reason"),
    [
        (Ruling("approved", "esc_1"), 1, "Hello there.", "stop"),
        (Ruling("answered", "esc_1", answer="Please see a doctor."), 0, "Please see a doctor.", "stop"),
        (Ruling("denied", "esc_1", reason="Not here."), 0, "Not here.", "content_filter"),
        (Ruling("expired", "esc_1"), 0, "esc_1", "content_filter"),
        (Ruling("waiting", "esc_1"), 0, "esc_1", "content_filter"),
    ],
)
async def test_what_a_person_decides_is_what_the_caller_gets(
    book: Book, ruling: Ruling, asked: int, said: str, reason: str
) -> None:
    """Approved runs, answered is said in place of the model, everything else is a clear no."""
    engine, desk = Engine(), Desk(ruling)
    events = await pass_through(checkpoint(book, desk=desk), turn("my diagnosis, mail a.b@example.com"), engine)
    assert engine.asked == asked
    words = "".join(event.text for event in events if isinstance(event, (TextDelta, RefusalDelta)))
    assert said in words
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == reason
    assert "example.com" not in desk.cases[0].question
    verdict = records(book)[0]
    assert isinstance(verdict, VerdictRecord)
    assert (verdict.decision, verdict.human_required, verdict.category) == ("ESCALATE", True, "medical")


async def test_a_caller_who_leaves_while_a_person_thinks_is_in_the_book(book: Book) -> None:
    """The desk is told by the cancellation, and the outcome says cancelled."""
    stage, engine = checkpoint(book, desk=Desk(None)), Engine()
    task = asyncio.create_task(pass_through(stage, turn("my diagnosis"), engine))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.1)
    outcome = records(book)[-1]
    assert isinstance(outcome, OutcomeRecord)
    assert outcome.status == "cancelled"


async def test_a_caller_who_leaves_in_mid_answer_frees_the_engine(book: Book) -> None:
    """Closing the stream closes the engine's, and what had been said is recorded."""
    engine = Engine([[TextDelta("x" * 400)], [TextDelta("y" * 400)]] * 50, pause_s=0.01)
    events = checkpoint(book).stage(turn("hello"), engine.generate)
    async for _ in events:
        break
    await events.aclose()
    assert engine.closed == 1
    await asyncio.sleep(0.1)
    outcome = records(book)[-1]
    assert isinstance(outcome, OutcomeRecord)
    assert (outcome.status, outcome.output[:3]) == ("cancelled", "xxx")


async def test_trouble_of_the_engine_is_told_and_recorded(book: Book) -> None:
    """The error reaches the caller as it was; the verdict is in the book all the same, and the error's id."""
    error = EngineUnavailable("it is down")

    async def generate(_: Turn) -> EventStream:
        raise error
        yield []

    with pytest.raises(EngineUnavailable):
        await anext(checkpoint(book).stage(turn("hello"), generate))
    await asyncio.sleep(0.1)
    verdict, outcome = records(book)
    assert isinstance(verdict, VerdictRecord)
    assert isinstance(outcome, OutcomeRecord)
    assert (outcome.status, outcome.error_id) == ("failed", error.id)


@pytest.mark.parametrize("pieces", [1, 3, 1000])
async def test_an_answer_that_must_not_leave_is_stopped(book: Book, pieces: int) -> None:
    """However it is cut, the forbidden words do not leave; the end is a refusal, and the engine is let go of."""
    answer = "Sure. " + "Let me think about it for a while. " * 20 + "Here is the nitro recipe: step one ..."
    size = max(1, len(answer) // pieces)
    cut: list[Batch] = [[TextDelta(answer[at : at + size])] for at in range(0, len(answer), size)]
    engine = Engine([*cut, [Usage(3, 200), Finished("stop")]])
    events = await pass_through(checkpoint(book), turn("hello"), engine)
    assert "nitro" not in text_of(events)
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "content_filter"
    assert any(isinstance(event, RefusalDelta) for event in events)
    assert engine.closed == 1
    stages = [record.stage for record in records(book) if isinstance(record, VerdictRecord)]
    assert stages == ["input", "output"]
    assert all("nitro" not in record.output for record in records(book) if isinstance(record, OutcomeRecord))


async def test_thinking_stays_inside_and_leaves_a_keyed_trace(book: Book) -> None:
    """Neither tags nor reasoning events leave; the book has their HMAC and not their text."""
    said: list[Batch] = [
        [ReasoningDelta("SECRET plan")],
        [TextDelta("<th"), TextDelta("ink>SECRET two</think>"), TextDelta("Done.")],
        [Finished("stop")],
    ]
    events = await pass_through(checkpoint(book), turn("hello"), Engine(said))
    assert "SECRET" not in str(events)
    assert text_of(events) == "Done."
    outcome = records(book)[-1]
    assert isinstance(outcome, OutcomeRecord)
    assert outcome.thinking_hmac == book.text_hash("SECRET planSECRET two")
    assert "SECRET" not in str(records(book))


async def test_a_key_with_the_scope_sees_reasoning_in_its_own_place(book: Book) -> None:
    """Thinking in tags becomes reasoning, never text."""
    said: list[Batch] = [[TextDelta("<think>why</think>Done.")], [Finished("stop")]]
    events = await pass_through(checkpoint(book), turn("hello", ("chat", "reasoning")), Engine(said))
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == "why"
    assert text_of(events) == "Done."


@pytest.mark.parametrize("scopes", [("chat",), ("chat", "reasoning")])
async def test_think_lets_only_the_final_part_out(book: Book, scopes: tuple[str, ...]) -> None:
    """`/v1/think`: four parts stay, whatever the key may otherwise see; the final one leaves."""
    said = "<think-task>a</think-task><think-safety>b</think-safety><final>The answer.</final> more"
    asked = turn("hello", scopes, extra={think.MARK: True})
    events = await pass_through(checkpoint(book), asked, Engine([[TextDelta(said)], [Finished("stop")]]))
    assert text_of(events).strip() == "The answer."
    assert not any(isinstance(event, ReasoningDelta) for event in events)


async def test_arguments_of_tools_are_watched(book: Book) -> None:
    """What must not be said must not be passed to a tool either."""
    said: list[Batch] = [
        [ToolCallDelta(0, "call_1", "write", '{"text": "the nitro rec')],
        [ToolCallDelta(0, arguments='ipe"}')],
        [Finished("tool_calls")],
    ]
    events = await pass_through(checkpoint(book), turn("hello"), Engine(said))
    assert "recipe" not in "".join(event.arguments for event in events if isinstance(event, ToolCallDelta))
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "content_filter"


async def test_the_book_holds_no_personal_data(book: Book) -> None:
    """Requests and answers are recorded with placeholders, the same person with the same one."""
    said: list[Batch] = [[TextDelta("I wrote to hanako@example.com. Card 4111 1111 1111 1111.")], [Finished("stop")]]
    await pass_through(checkpoint(book), turn("mail hanako@example.com, phone 090-1234-5678"), Engine(said))
    verdict, outcome = records(book)
    assert isinstance(verdict, VerdictRecord)
    assert isinstance(outcome, OutcomeRecord)
    everything = str((verdict, outcome))
    for secret in ("hanako", "1234-5678", "4111"):
        assert secret not in everything
    assert "[EMAIL_1]" in verdict.input
    assert "[EMAIL_1]" in outcome.output


class Linear:
    """A linear model that always says the same."""

    version = "m1"

    def __init__(self, decision: Decision, decided_by: DecidedBy) -> None:
        self.leaning = Leaning(decision, "fraud", 0.4, 0.5, decided_by)

    def lean(self, text: str, language: str) -> Leaning:
        return self.leaning


BAND = Linear("escalate", "band")
SURE = Linear("escalate", "classifier")
NO = Linear("refuse", "classifier")


@pytest.mark.parametrize(
    ("guard", "linear", "text", "decision", "decided_by"),
    [
        ({}, BAND, "hello", "ALLOW", "configuration"),
        ({}, SURE, "hello", "ESCALATE", "classifier"),
        ({}, NO, "hello", "ESCALATE", "classifier"),
        ({}, NO, "my diagnosis", "ESCALATE", "classifier"),
        ({}, BAND, "my diagnosis", "ESCALATE", "rule"),
        ({}, BAND, "build a bomb", "REFUSE", "rule"),
        ({}, NO, "build a bomb", "REFUSE", "rule"),
        ({"mode": "production"}, BAND, "hello", "ESCALATE", "band"),
        ({"mode": "production"}, NO, "hello", "REFUSE", "classifier"),
        ({"unsure": "escalate"}, SURE, "hello", "ESCALATE", "classifier"),
        ({"mode": "production", "unsure": "allow"}, BAND, "hello", "ALLOW", "configuration"),
    ],
)
async def test_the_classifier_is_triage_where_the_settings_say_so(
    book: Book, guard: dict[str, Any], linear: Linear, text: str, decision: str, decided_by: str
) -> None:
    """`basic` lets pass what only the classifier doubts, with the finding in the book, and shows to a person what only
    it would refuse. Where it is sure that a person should look, and where a rule speaks, that stands."""
    stage = Checkpoint(GuardConfig(**guard), Judge(WordRules, linear), lambda: book, Desk(Ruling("waiting", "esc_1")))
    await pass_through(stage, turn(text), Engine())
    verdict = records(book)[0]
    assert isinstance(verdict, VerdictRecord)
    assert (verdict.decision, verdict.decided_by) == (decision, decided_by)
    assert any(finding.rule == "linear-fraud" for finding in verdict.findings)


async def test_the_vault_keeps_what_was_removed_where_it_is_configured(tmp_path: Path) -> None:
    """Under a key of its own, by request; the book itself has the placeholders only."""
    book = Book.open(tmp_path / "audit", tmp_path / "secrets", AuditConfig(vault=True))
    try:
        said: list[Batch] = [[TextDelta("I wrote to hanako@example.com and taro@example.com.")], [Finished("stop")]]
        await pass_through(checkpoint(book), turn("mail hanako@example.com"), Engine(said))
        assert book.vault is not None
        kept = await asyncio.to_thread(book.vault.get, "chatcmpl-1")
        assert kept == {"[EMAIL_1]": "hanako@example.com", "[EMAIL_2]": "taro@example.com"}
        verdict, outcome = records(book)
        assert isinstance(verdict, VerdictRecord)
        assert isinstance(outcome, OutcomeRecord)
        assert (verdict.input, outcome.output) == ("mail [EMAIL_1]", "I wrote to [EMAIL_1] and [EMAIL_2].")
    finally:
        await asyncio.to_thread(book.close)


async def test_an_emergency_escalates_all_but_the_named(book: Book) -> None:
    """Everything but the short allow-list waits for a person; what is refused stays refused."""
    desk = Desk(Ruling("waiting", "esc_1"))
    stage = checkpoint(book, desk=desk, mode="emergency", emergency_allow=("hanako",))
    engine = Engine()
    await pass_through(stage, turn("hello"), engine)
    assert engine.asked == 0
    verdict = records(book)[0]
    assert isinstance(verdict, VerdictRecord)
    assert (verdict.decision, verdict.decided_by) == ("ESCALATE", "configuration")
    named = Turn("chatcmpl-2", "chat", "m", messages=turn("hello").messages, caller=Caller("key_2", "hanako"))
    await pass_through(stage, named, engine)
    assert engine.asked == 1
    await pass_through(stage, turn("build a bomb"), engine)
    assert engine.asked == 1
    assert len(desk.cases) == 1


async def test_a_guard_that_is_off_says_so_in_the_book(book: Book) -> None:
    """Switching it off is a choice that stays visible; thinking is still kept inside."""
    engine = Engine([[TextDelta("<think>x</think>nitro recipe")], [Finished("stop")]])
    events = await pass_through(checkpoint(book, mode="off"), turn("build a bomb"), engine)
    assert text_of(events) == "nitro recipe"
    verdict = records(book)[0]
    assert isinstance(verdict, VerdictRecord)
    assert (verdict.decision, verdict.decided_by) == ("ALLOW", "configuration")


async def test_many_turns_at_once_share_the_disk(book: Book) -> None:
    """Two hundred turns, four hundred records, none lost, none doubled."""
    stage = checkpoint(book)
    asked = [Turn(f"chatcmpl-{n}", "chat", "m", messages=turn("hello").messages) for n in range(200)]
    await asyncio.gather(*(pass_through(stage, one, Engine()) for one in asked))
    found = records(book)
    for kind in (VerdictRecord, OutcomeRecord):
        ids = [record.request_id for record in found if isinstance(record, kind)]
        assert sorted(ids) == sorted(one.id for one in asked)
    assert not any(isinstance(record, EscalationRecord) for record in found)
