"""The checkpoint stage with a real book: nothing leaves before it is recorded, nothing passes unjudged. Rules are a few
known words; the engine is scripted."""

import asyncio
from typing import Any

import pytest
from checkpoint_harness import Desk, Engine, WordRules, checkpoint, pass_through, records, text_of, turn, until

from sekisho.audit.book import Book
from sekisho.audit.records import EscalationRecord, OutcomeRecord, Receipt, Record, VerdictRecord
from sekisho.core.errors import BookUnavailable, EngineUnavailable
from sekisho.core.events import Batch, EventStream, Finished, RefusalDelta, TextDelta, Usage
from sekisho.core.turn import Caller, Turn
from sekisho.core.verdict import DecidedBy, Decision, Finding
from sekisho.gateway.checkpoint import Checkpoint, Ruling
from sekisho.gateway.passing import settle
from sekisho.guard.config import GuardConfig
from sekisho.guard.judge import Judge, Leaning
from sekisho.guard.text import View


class BrokenRules:
    version = "r0"
    rules = ()

    def match(self, views: tuple[View, ...], language: str) -> tuple[Finding, ...]:
        raise RuntimeError("a rule broke")


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
    await until(lambda: engine.asked == 1)
    await asyncio.sleep(0.1)  # words that did not wait would come now
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
    desk = Desk(None)
    stage, engine = checkpoint(book, desk=desk), Engine()
    task = asyncio.create_task(pass_through(stage, turn("my diagnosis"), engine))
    await until(lambda: desk.cases)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settle()
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
    await settle()
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
    await settle()
    verdict, outcome = records(book)
    assert isinstance(verdict, VerdictRecord)
    assert isinstance(outcome, OutcomeRecord)
    assert (outcome.status, outcome.error_id) == ("failed", error.id)


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
