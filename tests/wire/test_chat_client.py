"""The chat protocol towards engines: requests, streams with every engine's habits, errors."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.errors import (
    ContextTooLong,
    EngineFailed,
    EngineTimeout,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    SekishoError,
    TooLarge,
    UnsupportedParameter,
)
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
from sekisho.core.turn import (
    Audio,
    Document,
    Image,
    Message,
    OutputFormat,
    Reasoning,
    ReasoningRequest,
    Sampling,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Turn,
)
from sekisho.wire import chat, chat_client
from sekisho.wire.chat_client import ChatStreamDecoder, decode_whole, encode_request, upstream_error


def turn(*messages: Message, **fields: Any) -> Turn:
    return Turn(**{"id": "chatcmpl-7", "protocol": "chat", "model": "m", "messages": messages, **fields})


def request(asked: Turn, *, stream: bool = False, **options: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(encode_request(asked, model="up", stream=stream, **options))
    return decoded


def frames(*values: Any, done: bool = True) -> bytes:
    body = b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)
    return body + b"data: [DONE]\n\n" if done else body


def delta(finish: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish}]}


def read(body: bytes, asked: Turn | None = None) -> Batch:
    decoder = ChatStreamDecoder(asked or turn())
    return decoder.feed(body) + decoder.finish()


def test_a_plain_request_holds_only_what_was_asked() -> None:
    """Fields that the turn leaves open are left to the engine; usage is asked for when streaming."""
    asked = turn(Message("user", (Text("hi"),)))
    plain = {"model": "up", "messages": [{"role": "user", "content": "hi"}]}
    assert request(asked) == {**plain, "stream": False}
    assert request(asked, stream=True) == {**plain, "stream": True, "stream_options": {"include_usage": True}}


def test_history_reads_as_the_engine_would_have_said_it() -> None:
    """Leading instructions become one system message; thinking, words and calls of an assistant message are one
    message; tool results are one message each; hosted calls are told in words."""
    asked = turn(
        Message("developer", (Text("one"),)),
        Message("system", (Text("two"),)),
        Message("user", (Text("a"), Text("b")), "ann"),
        Message(
            "assistant",
            (
                Reasoning("hm"),
                Text("well"),
                ToolCall("1", "b", "{}", namespace="n"),
                ToolCall("2", "p", 'x"y', "custom"),
                ToolCall("3", "web_search", '{"q":"tea"}', "web_search"),
            ),
        ),
        Message("tool", (ToolResult("1", (Text("r1"),)), ToolResult("2", (Text("r2"),), is_error=True))),
        Message("developer", (Text("late"),)),
        tools=(Tool("b", namespace="n"), Tool("p", "custom"), Tool("web_search", "web_search")),
        tool_choice=ToolChoice("one", "b", "n"),
        parallel_tool_calls=True,
    )
    told = request(asked)
    assert told["messages"] == [
        {"role": "system", "content": "one\n\ntwo"},
        {"role": "user", "content": "a\nb", "name": "ann"},
        {
            "role": "assistant",
            "content": 'well\n[web_search: {"q":"tea"}]',
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "n__b", "arguments": "{}"}},
                {"id": "2", "type": "function", "function": {"name": "p", "arguments": '{"input":"x\\"y"}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "r1"},
        {"role": "tool", "tool_call_id": "2", "content": "Error: r2"},
        {"role": "system", "content": "late"},
    ]
    assert [tool["function"]["name"] for tool in told["tools"]] == ["n__b"]
    assert told["tool_choice"] == "required"
    assert told["parallel_tool_calls"] is True
    assert request(asked, developer_role=True)["messages"][0] == {"role": "developer", "content": "one"}


def test_media_and_images_of_tool_results() -> None:
    """Images, audio and files go out as parts; an image in a tool's result follows in a user message; a document
    whose text stands beside it is not sent twice."""
    asked = turn(
        Message("user", (Text("see"), Image("https://x/y.png", "low"), Audio("AA==", "wav"), Document("d", "data:,x"))),
        Message("user", (Text("text of it"), Document("e"))),
        Message("tool", (ToolResult("1", (Text("r"), Image("data:image/png;base64,AA=="))),)),
    )
    first, second, result, shown = request(asked)["messages"]
    assert [part["type"] for part in first["content"]] == ["text", "image_url", "input_audio", "file"]
    assert second["content"] == "text of it"
    assert result == {"role": "tool", "tool_call_id": "1", "content": "r"}
    assert shown["role"] == "user"
    assert shown["content"][1]["image_url"]["url"] == "data:image/png;base64,AA=="


def test_sampling_format_reasoning_and_extra_are_told() -> None:
    """Each under the name engines read; what our own house keeps in `extra` stays inside."""
    asked = turn(
        Message("user", (Text("x"),)),
        sampling=Sampling(
            temperature=0.0, top_k=5, min_p=0.1, repeat_penalty=1.2, max_tokens=7, stop=("s",), n=2,
            logprobs=True, top_logprobs=2, logit_bias={"1": 2}, ignore_eos=True, seed=0,
        ),
        format=OutputFormat("json_schema", "n", {"type": "object"}, True),
        reasoning=ReasoningRequest("high", enabled=True),
        extra={"min_tokens": 3, chat.LEGACY_FUNCTIONS: True, "chat_template_kwargs": {"a": 1}},
    )  # fmt: skip
    told = request(asked)
    told.pop("messages")
    assert told == {
        "model": "up", "stream": False, "temperature": 0.0, "top_k": 5, "min_p": 0.1, "repeat_penalty": 1.2,
        "repetition_penalty": 1.2, "max_tokens": 7, "stop": ["s"], "n": 2, "logprobs": True, "top_logprobs": 2,
        "logit_bias": {"1": 2}, "ignore_eos": True, "seed": 0, "min_tokens": 3, "reasoning_effort": "high",
        "chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": "high", "a": 1},
        "response_format": {
            "type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}
        },
    }  # fmt: skip
    assert request(turn(format=OutputFormat("json_object")))["response_format"] == {"type": "json_object"}


def test_extra_cannot_replace_what_the_house_decides() -> None:
    """No field of `extra` changes the model, the messages or the streaming."""
    asked = turn(Message("user", (Text("x"),)), extra={"model": "other", "messages": [], "stream": True})
    assert request(asked) == request(turn(Message("user", (Text("x"),))))


def test_what_we_send_we_would_accept() -> None:
    """Our own server reads the request of our client: another Sekisho can be the engine."""
    asked = turn(
        Message("system", (Text("s"),)),
        Message("user", (Text("x"), Image("https://x/y.png"))),
        Message("assistant", (Reasoning("r"), Text("t"), ToolCall("1", "f", "{}"))),
        Message("tool", (ToolResult("1", (Text("r"),)),)),
        tools=(Tool("f", "function", "d", {"type": "object"}, True),),
        sampling=Sampling(temperature=1.0, repeat_penalty=1.0, top_k=1, max_tokens=5, stop=("a",), n=2),
        format=OutputFormat("json_schema", "n", {}, None),
        extra={"min_tokens": 1},
    )
    again = chat.decode(encode_request(asked, model="up", stream=True), "chatcmpl-7")
    assert again.messages == asked.messages
    assert (again.tools, again.sampling, again.format, again.extra) == (
        asked.tools,
        asked.sampling,
        asked.format,
        asked.extra,
    )


def test_numbers_beyond_64_bits_in_a_schema_are_sent() -> None:
    """A schema with a huge bound is passed on, not a crash."""
    asked = turn(Message("user", (Text("x"),)), tools=(Tool("f", parameters={"maximum": 10**30}),))
    assert request(asked)["tools"][0]["function"]["parameters"] == {"maximum": 10**30}


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


LLAMA = {
    "error": {
        "code": 400,
        "message": "the request exceeds the available context size, try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 9000,
        "n_ctx": 4096,
    }
}
VLLM = {
    "object": "error",
    "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
    "type": "BadRequestError",
    "param": None,
    "code": 400,
}
VLLM_NEW = {
    "error": {
        "message": "The decoder prompt (length 5000) is longer than the maximum model length of 4096",
        "type": "BadRequestError",
        "param": "messages",
        "code": 400,
    }
}
LM_STUDIO = {
    "error": "Trying to keep the first 5000 tokens when context the overflows. "
    "However, the model is loaded with context length of only 4096 tokens"
}
LLAMA_EMBEDDING = {
    "error": {
        "code": 500,
        "message": "input (5000 tokens) is too large to process. increase the physical batch size "
        "(current batch size: 4096)",
        "type": "server_error",
    }
}
OLLAMA = {"error": {"message": "input length exceeds the context length", "type": "invalid_request_error"}}


@pytest.mark.parametrize(
    ("status", "body", "kind", "shown"),
    [
        (400, LLAMA, ContextTooLong, "available context size"),
        (400, VLLM, ContextTooLong, "4096"),
        (400, VLLM_NEW, ContextTooLong, "4096"),
        (400, LM_STUDIO, ContextTooLong, "4096"),
        (500, OLLAMA, ContextTooLong, "context length"),
        (500, LLAMA_EMBEDDING, ContextTooLong, "5000 tokens"),
        (400, {"error": {"message": "no such tool"}}, InvalidRequest, "no such tool"),
        (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, InvalidRequest, "field required"),
        (500, {"error": {"message": "image input is not supported - hint: mmproj"}}, UnsupportedParameter, "no images"),
        (400, {"error": {"message": "audio input is not supported"}}, UnsupportedParameter, "no images"),
        (400, {"message": "secret is not a multimodal model"}, UnsupportedParameter, "no images"),
        (413, {"error": "too big"}, TooLarge, "too big"),
        (501, {"error": {"message": "no embeddings"}}, UnsupportedParameter, "no embeddings"),
        (401, {"error": {"message": "secret-key bad"}}, EngineUnavailable, "own key"),
        (403, {"error": "secret-key bad"}, EngineUnavailable, "own key"),
        (404, {"error": "model secret not found"}, EngineUnavailable, "does not know"),
        (408, {}, EngineTimeout, "too long"),
        (504, None, EngineTimeout, "too long"),
        (429, {"error": "secret"}, Overloaded, "busy"),
        (503, {"error": {"message": "Loading model", "code": 503}}, EngineUnavailable, "loading"),
        (503, {"error": "secret: queue is full"}, Overloaded, "busy"),
        (503, {"error": "secret"}, EngineUnavailable, "not available"),
        (502, None, EngineUnavailable, "not available"),
        (500, {"error": {"message": "Failed to parse tool call arguments as JSON: [1]"}}, InvalidRequest, "arguments"),
        (500, {"error": {"message": "secret: CUDA"}}, EngineFailed, "failed"),
        (500, {"error": {"message": "output that does not match the expected x format"}}, EngineFailed, "template"),
        (418, {"error": 7}, EngineFailed, "failed"),
    ],
)
def test_engine_errors_are_told_in_their_meaning(status: int, body: Any, kind: type[SekishoError], shown: str) -> None:
    """The caller's mistakes keep the engine's words; the engine's own trouble gets ours, never a 401, with the words
    kept for the log."""
    error = upstream_error(status, json.dumps(body).encode())
    assert type(error) is kind
    assert shown in error.message
    assert "secret" not in error.message
    assert error.status not in (401, 403)
    if status in (429, 502, 503):
        assert error.retry_after_s is not None


def test_retry_after_and_odd_bodies() -> None:
    """A number of seconds is kept within reason; a body that is no JSON is read as text, shortened, on one line."""
    assert upstream_error(429, b"", "7").retry_after_s == 7
    assert upstream_error(429, b"", "1e9").retry_after_s == 3600
    assert upstream_error(429, b"", "nan").retry_after_s == 2
    assert upstream_error(429, b"", "Wed, 21 Oct 2026 07:28:00 GMT").retry_after_s == 2
    text = upstream_error(400, b"a\r\nb\x00" + b"x" * 9000 + b"\xff").message
    assert len(text) <= 500
    assert text.isprintable()
    assert isinstance(upstream_error(400, b"[" * 100_000), InvalidRequest)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(400, 599), st.binary(max_size=60) | st.text().map(lambda words: json.dumps({"error": words}).encode())
)
def test_any_error_answer_is_one_of_our_errors(status: int, body: bytes) -> None:
    """No answer of an engine becomes another exception, or a 401."""
    error = upstream_error(status, body)
    assert error.message
    assert error.status not in (401, 403)
    assert chat_client.failed(error).id == error.id
