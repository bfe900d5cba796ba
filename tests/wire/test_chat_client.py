"""The chat protocol towards engines: requests and errors."""

import json
from typing import Any

import pytest
from chat_client_harness import LLAMA, VLLM, VLLM_NEW, turn
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
from sekisho.wire.chat_client import encode_request, upstream_error


def request(asked: Turn, *, stream: bool = False, **options: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(encode_request(asked, model="up", stream=stream, **options))
    return decoded


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
