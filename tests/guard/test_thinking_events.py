"""Thinking and what stands beside the text: calls, logprobs, failures; thinking that is kept, answers without one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thinking_harness import FINAL_ONLY, UNKNOWN, chunk, ended, pieces, run, text_of

from sekisho.core.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from sekisho.core.turn import Sampling, Turn
from sekisho.guard.thinking import ThinkingFilter, ThinkingOptions
from sekisho.wire.chat_client import ChatStreamDecoder

# --- events beside the text ---


def test_order_of_events() -> None:
    """A tool call between two halves of a tag waits for them; usage and end come last, whatever was held back."""
    call = ToolCallDelta(0, "call_1", "look", "{}")
    events: list[Event] = [Started(), TextDelta("a <thi"), call, TextDelta("s is b [th"), Usage(1, 2), Finished("stop")]
    batch, _ = run(events)
    assert batch == [
        *(Started(), TextDelta("a "), TextDelta("<thi"), call, TextDelta("s is b "), TextDelta("[th")),
        *(Usage(1, 2), Finished("stop")),
    ]
    events[3] = TextDelta("nk>s</think>b")
    assert run(events)[0] == [Started(), TextDelta("a "), call, TextDelta("b"), Usage(1, 2), Finished("stop")]
    assert run([TextDelta("a <thi"), call, TextDelta("nk>s"), Finished("stop")], UNKNOWN)[0] == [
        *(TextDelta("a "), call, Finished("stop")),
    ]


def test_choices_are_apart() -> None:
    """One choice thinks, the other answers; both end after the last word of both."""
    filter_ = ThinkingFilter(choices=2)
    batch = filter_.feed([TextDelta("<think>s"), TextDelta("ok <", 1), Finished("stop", 1), TextDelta("</think>b")])
    batch += filter_.feed([Finished("length")])
    assert (text_of(batch), text_of(batch, 1)) == ("b", "ok <")
    assert batch[-2:] == [Finished("stop", 1), Finished("length")]
    assert (filter_.thinking(), filter_.thinking(1)) == ("s", "")


def test_a_failure_leaves_at_once_and_ends_all() -> None:
    """What was held back is dropped with it, and nothing follows."""
    failed = Failed("err_1", "engine_failed", "server_error", "broke")
    filter_ = ThinkingFilter()
    assert filter_.feed([TextDelta("a <"), failed]) == [TextDelta("a "), failed]
    assert filter_.feed([TextDelta("b")]) + filter_.end() == []


@given(st.lists(st.integers(0, 60), max_size=8), st.booleans())
def test_no_logprob_of_a_thought_leaves(cuts: list[int], odd: bool) -> None:
    """Tokens leave only with characters that leave, alternatives included; of a plain text all of them leave."""
    text = "ab<think>sss</think>cd <秘"
    events: list[Event] = [TextDelta(piece, 0, scores(piece, odd)) for piece in pieces(text, cuts)]
    out, _ = run([*events, Finished("stop")])
    said = [score for event in out if isinstance(event, TextDelta) for score in event.logprobs]
    inside = [score for score in said for top in (score, *score.top_logprobs) if "s" in top.token]
    assert not inside
    plain: list[Event] = [TextDelta(piece, 0, scores(piece, odd)) for piece in pieces("ab < cd [e] f", cuts)]
    kept, _ = run([*plain, Finished("stop")])
    said = [score for event in kept if isinstance(event, TextDelta) for score in event.logprobs]
    assert said == [score for event in plain if isinstance(event, TextDelta) for score in event.logprobs]


def scores(piece: str, odd: bool) -> tuple[TokenLogprob, ...]:
    """A token a character; `odd`: one that names the piece in another spelling, as of half characters."""
    tokens = [f"\ufffd{piece}"] if odd else list(piece)
    return tuple(TokenLogprob(token, -0.1, None, [TopLogprob(token, -0.1)]) for token in tokens)


def test_a_token_without_a_character_waits_for_it() -> None:
    """Half a character stands for the character that follows: visible or not."""
    half = (TokenLogprob("\ufffd", -0.5, [0xE7]),)
    out, _ = run([TextDelta("", 0, half), TextDelta("a"), Finished("stop")])
    assert [event.logprobs for event in out if isinstance(event, TextDelta)] == [half]
    out, _ = run([TextDelta("<think>"), TextDelta("", 0, half), TextDelta("秘</think>a"), Finished("stop")])
    assert [event.logprobs for event in out if isinstance(event, TextDelta)] == [()]


# --- thinking that is kept, sealed or revealed ---


def test_thinking_of_every_kind_is_kept_together() -> None:
    """Tags and `reasoning_content` go to one hash, in order, bounded in what is kept and not in what is hashed."""
    told: list[tuple[int, str]] = []
    events: list[Event] = [ReasoningDelta("ss"), TextDelta("<think>s秘</think>a"), Finished("stop")]
    batch, filter_ = run(events, ThinkingOptions(keep_chars=3), on_thought=lambda *said: told.append(said))
    assert filter_.thinking() == "sss"
    assert "".join(text for _, text in told) == "sss秘"
    assert batch == [TextDelta("a"), Finished("stop")]


def test_sealed_thinking_has_no_text() -> None:
    """Each thought becomes one event that holds its seal alone, before what follows it."""
    call = ToolCallDelta(0, "call_1", "look", "{}")
    events: list[Event] = [
        ReasoningDelta("s"),
        ReasoningDelta("S"),
        call,
        TextDelta("a<think>秘</think>"),
        Finished("stop"),
    ]
    batch, _ = run(events, seal=lambda text: f"sealed {len(text)}")
    assert batch == [
        *(ReasoningDelta("", 0, "sealed 2"), call, TextDelta("a"), ReasoningDelta("", 0, "sealed 1"), Finished("stop")),
    ]


def test_revealed_thinking_is_never_in_the_text() -> None:
    """A key that may see thinking gets it as thinking, in its place."""
    events: list[Event] = [TextDelta("a<think>sS</think>b"), ReasoningDelta("秘"), Finished("stop")]
    batch, _ = run(events, ThinkingOptions(reveal=True))
    assert batch == [
        *(TextDelta("a"), ReasoningDelta("sS"), TextDelta("b"), ReasoningDelta("秘"), Finished("stop")),
    ]


# --- no final part ---


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_thinking_without_an_answer_is_a_clear_failure(reason: FinishReason) -> None:
    """In a divided answer without a final part: 422 `thinking_without_answer`, the usage before it, no word of it."""
    batch, _ = run(ended(["<think-task>s</think-task> sss"], reason), FINAL_ONLY)
    usage, failed = batch[1:]
    assert usage == Usage(3, 5)
    assert isinstance(failed, Failed)
    assert (failed.status, failed.code) == (422, "thinking_without_answer")
    assert ("token limit" in failed.message) == (reason == "length")


def test_one_choice_without_a_final_part() -> None:
    """Where another choice has one, it is refused alone."""
    filter_ = ThinkingFilter(FINAL_ONLY, choices=2)
    batch = filter_.feed([TextDelta("<final>ok</final>"), TextDelta("sss", 1), Finished("stop"), Finished("stop", 1)])
    assert [type(event) for event in batch] == [TextDelta, RefusalDelta, Finished, Finished]
    assert batch[-1] == Finished("content_filter", 1)


def test_a_tool_call_is_an_answer() -> None:
    """A model that calls a tool need not have written a final part."""
    call = ToolCallDelta(0, "call_1", "look", "{}")
    assert run([TextDelta("<think-task>s</think-task>"), call, Finished("tool_calls")], FINAL_ONLY)[0] == [
        *(call, Finished("tool_calls")),
    ]


def test_the_decoder_knows_other_fields() -> None:
    """`reasoning_content`, `reasoning` and `thinking` of an engine's delta never reach the text."""
    turn = Turn("req_1", "chat", "m", sampling=Sampling())
    for field in ("reasoning_content", "reasoning", "thinking"):
        decoder = ChatStreamDecoder(turn)
        stream = chunk({field: "sss", "content": "ok"}, True, "stop") + b"data: [DONE]\n\n"
        batch, filter_ = run(decoder.feed(stream))
        assert (text_of(batch), filter_.thinking()) == ("ok", "sss")
