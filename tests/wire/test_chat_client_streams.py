"""The chat protocol towards engines: streams with every engine's habits, broken ones too."""

import json
from typing import Any

import pytest
from chat_client_harness import LLAMA, VLLM, VLLM_NEW, turn
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.errors import ContextTooLong, EngineFailed
from sekisho.core.events import (
    Batch,
    Failed,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from sekisho.core.turn import Sampling, Tool, Turn
from sekisho.wire.chat_client import ChatStreamDecoder, decode_whole


def frames(*values: Any, done: bool = True) -> bytes:
    body = b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)
    return body + b"data: [DONE]\n\n" if done else body


def delta(finish: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish}]}


def read(body: bytes, asked: Turn | None = None) -> Batch:
    decoder = ChatStreamDecoder(asked or turn())
    return decoder.feed(body) + decoder.finish()


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_thinking_under_any_name(field: str) -> None:
    """llama.cpp, vLLM and others name the thinking differently."""
    body = frames(delta(role="assistant", content=None), delta(**{field: "hm"}), delta("stop", content="yes"))
    assert read(body) == [Started(None), ReasoningDelta("hm"), TextDelta("yes"), Finished("stop")]


def test_usage_comes_before_the_finish_wherever_the_engine_puts_it() -> None:
    """In a last chunk without choices, in the finish chunk, in every chunk, or only as llama.cpp's timings."""
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    expected = [Started(None), TextDelta("a"), Usage(9, 2, 4), Finished("length")]
    part, end = delta(content="a"), delta("length")
    early = {**usage, "completion_tokens": 1}
    assert read(frames(part, end, {"choices": [], "usage": usage})) == expected
    assert read(frames(part, {**end, "usage": usage})) == expected
    assert read(frames({**part, "usage": early}, {**end, "usage": usage})) == expected
    assert read(frames(part, {**end, "timings": {"prompt_n": 5, "cache_n": 4, "predicted_n": 2}})) == expected
    bare = {"prompt_tokens": 9, "completion_tokens": 2}
    assert read(frames(part, {**end, "usage": bare, "timings": {"cache_n": 4, "prompt_n": 5}})) == expected
    assert read(frames(part, end, {"choices": [], "usage": None})) == [*expected[:2], expected[3]]


def test_usage_of_several_choices_is_summed_where_each_is_counted_alone() -> None:
    """llama.cpp streams one count for each choice: the prompt counts once, the answers together; without a count of
    each the turn's usage is not known, and none is told."""
    two = turn(sampling=Sampling(n=2))
    counts = [
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": n}, "timings": {"cache_n": 4}}
        for n in (2, 3)
    ]
    assert Usage(9, 5, 4) in read(frames(delta("stop"), counts[0], delta("stop", index=1), counts[1]), two)
    body = {"choices": [{"index": i, "message": {"content": "a"}, "finish_reason": "stop"} for i in (0, 1)]}
    assert not any(isinstance(e, Usage) for e in decode_whole(json.dumps({**body, **counts[0], **body}).encode(), two))
    told = decode_whole(json.dumps({**body, "usage": {"prompt_tokens": 9, "completion_tokens": 5}}).encode(), two)
    assert Usage(9, 5) in told


def test_usage_details_stay_within_their_whole() -> None:
    """Counts are never negative and a part never exceeds its whole, whatever an engine says."""
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": -1,
        "prompt_tokens_details": {"cached_tokens": 9},
        "completion_tokens_details": {"reasoning_tokens": 9},
    }
    assert Usage(3, 0, 3, 0) in read(frames(delta("stop"), {"usage": usage}))


def test_tool_calls_are_normalised() -> None:
    """Arguments as an object, the old single call, a finish reason that does not fit: all read as tool calls."""
    call = ToolCallDelta(0, "1", "f", '{"a":1}')
    whole_call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert read(frames(delta("stop", tool_calls=[whole_call]))) == [Started(None), call, Finished("tool_calls")]
    old = read(
        frames(
            delta(function_call={"name": "f", "arguments": "{"}),
            delta("function_call", function_call={"arguments": "}"}),
        )
    )
    assert [type(event) for event in old] == [Started, ToolCallDelta, ToolCallDelta, Finished]
    assert old[-1] == Finished("tool_calls")
    assert read(frames(delta("tool_calls", content="a")))[-1] == Finished("stop")
    made_up = read(frames(delta("tool_calls", tool_calls=[{"function": {"name": "f", "arguments": ""}}])))[1]
    assert isinstance(made_up, ToolCallDelta)
    assert made_up.id == "call_chatcmpl-7_0_0"


@pytest.mark.parametrize(
    ("reason", "told"),
    [("stop", "stop"), ("eos", "stop"), ("length", "length"), ("max_tokens", "length")],
)
def test_finish_reasons(reason: str, told: str) -> None:
    """Engines' own words for the end become the four reasons."""
    assert read(frames(delta(reason)))[-1] == Finished(told)  # type: ignore[arg-type]


def test_the_stop_sequence_is_kept() -> None:
    """vLLM tells which stop word ended the text."""
    chunk = delta("stop")
    chunk["choices"][0]["stop_reason"] = "END"
    assert read(frames(chunk))[-1] == Finished("stop", 0, "END")


def test_logprobs_come_with_their_text() -> None:
    """Tokens with their probabilities, and a token whose characters are not complete, are kept."""
    token = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    chunk = delta(content="a")
    chunk["choices"][0]["logprobs"] = {"content": [token]}
    bare = delta(content="")
    bare["choices"][0]["logprobs"] = {"content": [token]}
    kept = (TokenLogprob("a", -0.5, [97]),)
    assert read(frames(chunk, bare, delta("stop")))[1:3] == [TextDelta("a", 0, kept), TextDelta("", 0, kept)]


BROKEN = [
    frames(delta(content="a"), done=False),
    frames(delta(content="a")),
    frames(done=True),
    b"",
    frames(delta(content="a"), done=False) + b'data: {"choi',
    frames(delta(content="a"), done=False) + b"data: not json\n\n",
    frames(delta(content="a"), done=False) + b'data: {"choices": 5}\n\n',
    frames(delta(content="a"), done=False) + b'data: {"choices":' + b"[" * 100_000 + b"\n\n",
    frames(delta(content="a"), done=False) + b'data: {"x":"\xff"}\n\n',
    frames(delta("stop", index=1)),
    frames(delta("abort")),
    frames(delta(content="a"), {"error": {"message": "boom", "code": 500}}, delta("stop")),
    frames(delta(content="a"), {"error": "boom"}),
    frames(delta("tool_calls", tool_calls=[{"index": 0, "function": {"arguments": "{}"}}])),
]


@pytest.mark.parametrize("body", BROKEN)
def test_a_stream_that_does_not_end_well_fails_once(body: bytes) -> None:
    """A stream cut off, garbled, empty, or with an error frame is exactly one failure, and no finish; the engine's own
    words are not shown."""
    decoder = ChatStreamDecoder(turn())
    batch = decoder.feed(body) + decoder.finish() + decoder.feed(frames(delta("stop"))) + decoder.finish()
    assert isinstance(batch[-1], Failed)
    assert sum(isinstance(event, Failed | Finished) for event in batch) == 1
    assert "boom" not in batch[-1].message
    assert decoder.error is not None
    assert decoder.error.id == batch[-1].id


def test_a_stream_without_done_is_complete_when_every_choice_ended() -> None:
    """The finish reason counts, not the `[DONE]`; with two choices both must have ended."""
    assert read(frames(delta("stop", content="a"), done=False))[-1] == Finished("stop")
    two = turn(sampling=Sampling(n=2))
    assert isinstance(read(frames(delta("stop")), two)[-1], Failed)
    assert read(frames(delta("stop"), delta("stop", index=1)), two)[-2:] == [Finished("stop"), Finished("stop", 1)]


def test_an_error_frame_about_the_request_keeps_its_meaning() -> None:
    """A prompt that is too long is told as such even when the engine had answered 200."""
    for frame in (LLAMA, VLLM, VLLM_NEW):
        decoder = ChatStreamDecoder(turn())
        decoder.feed(frames(frame))
        assert isinstance(decoder.error, ContextTooLong)


def test_frames_that_say_nothing_are_passed_over() -> None:
    """Null errors and indexes, empty choices, frames of another kind, a ping with data: none disturbs the answer."""
    odd = [{}, {"choices": []}, {"choices": [], "error": None}, {"type": "ping"}, {"choices": None, "model": "m"}]
    end = delta("stop", content="a")
    end["choices"][0]["index"] = None
    assert read(frames(*odd, end))[-2:] == [TextDelta("a"), Finished("stop")]


def test_an_endless_frame_fails() -> None:
    """An engine that never ends a frame cannot fill our memory."""
    decoder = ChatStreamDecoder(turn(), limit_bytes=1000)
    decoder.feed(b"data: " + b"x" * 900)
    [failed] = decoder.feed(b"x" * 900)
    assert isinstance(failed, Failed)


def test_a_whole_answer_gives_the_events_of_a_stream() -> None:
    """Thinking, words, calls, usage, finish; several choices; an answer that breaks off is raised."""
    message = {
        "role": "assistant",
        "content": [{"type": "text", "text": "t"}],
        "reasoning_content": "r",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "p", "arguments": '{"input":"x"}'}}],
    }
    body = {
        "model": "up",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 1}},
    }
    asked = turn(tools=(Tool("p", "custom"),))
    assert decode_whole(json.dumps(body).encode(), asked) == [
        Started("up"),
        ReasoningDelta("r"),
        TextDelta("t"),
        ToolCallDelta(0, "1", "p", "x", "custom"),
        Usage(1, 2, 0, 1),
        Finished("tool_calls"),
    ]
    for bad in (b"", b"{}", b"<html>", b'{"choices":[]}', b'{"choices":[{"message":{}}]}', b'{"error":"x"}'):
        with pytest.raises(EngineFailed):
            decode_whole(bad, turn())


KEYS = "choices delta index content tool_calls function name arguments usage finish_reason logprobs error message code"
FRAMES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100)
@given(FRAMES, st.binary(max_size=30))
def test_no_frame_raises(value: Any, noise: bytes) -> None:
    """Whatever an engine sends, the decoder answers with events, and ends with one `Failed` or `Finished`."""
    for body in (frames(value, done=False), frames({"choices": [{"delta": value}]}), noise):
        batch = read(body)
        assert isinstance(batch[-1], Failed | Finished)
