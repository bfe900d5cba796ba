"""What the checkpoint stage keeps inside: forbidden answers, thinking, arguments of tools, personal data."""

import asyncio
from pathlib import Path

import pytest
from checkpoint_harness import Engine, checkpoint, pass_through, records, text_of, turn

from sekisho.audit.book import Book
from sekisho.audit.config import AuditConfig
from sekisho.audit.records import OutcomeRecord, VerdictRecord
from sekisho.core.events import Batch, Finished, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta, Usage
from sekisho.wire import think


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
