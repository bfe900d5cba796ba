import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest, RequestError, UnsupportedParameter
from sekisho.core.turn import (
    EmbedRequest,
    Image,
    Message,
    OutputFormat,
    Reasoning,
    ReasoningRequest,
    Sampling,
    Text,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
)
from sekisho.wire.ollama import chat, embed, generate, models
from sekisho.wire.ollama.encoder import is_load

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(24)).decode()

CHAT: dict[str, Any] = {
    "model": "mini",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?", "images": [PNG]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "Hm.",
            "tool_calls": [
                {"function": {"name": "look", "arguments": {"at": "京都"}, "index": 0}},
                {"function": {"name": "hear", "arguments": {}}, "id": "call_x"},
            ],
        },
        {"role": "tool", "content": "noise", "tool_name": "hear"},
        {"role": "tool", "content": "a temple", "tool_name": "look"},
    ],
    "tools": [
        {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}},
        {"function": {"name": "hear"}},
    ],
    "stream": None,
    "format": "json",
    "think": "high",
    "keep_alive": "5m",
    "logprobs": True,
    "top_logprobs": 2,
    "options": {
        "num_predict": 64.0,
        "num_ctx": 8192,
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "seed": 7,
        "stop": ["END"],
        "repeat_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repeat_last_n": 64,
        "num_gpu": None,
    },
}

GENERATE: dict[str, Any] = {
    "model": "mini",
    "prompt": "Why?",
    "system": "Be brief.",
    "images": [PNG],
    "format": {"type": "object"},
    "stream": False,
    "think": False,
    "raw": False,
    "suffix": "",
    "template": "",
    "context": [],
    "keep_alive": -1,
    "options": {"stop": "END", "seed": -1, "num_predict": -1},
}


def decode(request: dict[str, Any]) -> Turn:
    return chat.decode(json.dumps(request).encode(), "req_1")


def decode_generate(request: dict[str, Any]) -> Turn:
    return generate.decode(json.dumps(request).encode(), "req_1")


def test_a_chat_keeps_its_words_and_matches_results_to_calls() -> None:
    """Calls without an id get one from their place, and each result finds its call by the tool's name."""
    assert decode(CHAT).messages == (
        Message("system", (Text("Be brief."),)),
        Message("user", (Text("What is it?"), Image(f"data:image/png;base64,{PNG}"))),
        Message(
            "assistant",
            (Reasoning("Hm."), ToolCall("call_2_0", "look", '{"at":"京都"}'), ToolCall("call_x", "hear", "{}")),
        ),
        Message("tool", (ToolResult("call_x", (Text("noise"),)),)),
        Message("tool", (ToolResult("call_2_0", (Text("a temple"),)),)),
    )


def test_results_without_a_name_answer_the_oldest_open_call() -> None:
    """Neither id nor name: results go to the calls in their order; one too many still gets an id of its own."""
    calls = [{"function": {"name": "f", "arguments": {}}}, {"function": {"name": "f", "arguments": {}}}]
    results = [{"role": "tool", "content": str(number)} for number in range(3)]
    turn = decode({"model": "m", "messages": [{"role": "assistant", "tool_calls": calls}, *results]})
    ids = [message.parts[0].call_id for message in turn.messages[1:] if isinstance(message.parts[0], ToolResult)]
    assert ids == ["call_0_0", "call_0_1", "call_3"]


def test_chat_settings_reach_the_turn() -> None:
    """Options, format, thinking and tools are read from where Ollama puts them; it streams by default."""
    turn = decode(CHAT)
    assert turn.sampling == Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        max_tokens=64,
        stop=("END",),
        seed=7,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repeat_penalty=1.1,
        logprobs=True,
        top_logprobs=2,
    )
    assert turn.format == OutputFormat("json_object")
    assert turn.reasoning == ReasoningRequest("high", enabled=True)
    assert turn.extra == {"repeat_last_n": 64}
    assert (turn.stream, turn.protocol) == (True, "ollama_chat")
    assert turn.tools == (
        Tool("look", description="Looks.", parameters={"type": "object"}),
        Tool("hear", parameters={"type": "object", "properties": {}}),
    )


def test_generate_speaks_through_the_chat_template() -> None:
    """A prompt that is not raw is a conversation; unlimited length and a random seed are the engine's defaults."""
    turn = decode_generate(GENERATE)
    image = Image(f"data:image/png;base64,{PNG}")
    assert turn.messages == (Message("system", (Text("Be brief."),)), Message("user", (Text("Why?"), image)))
    assert turn.prompts == ()
    assert turn.sampling == Sampling(stop=("END",))
    assert turn.format == OutputFormat("json_schema", schema={"type": "object"})
    assert (turn.stream, turn.reasoning.enabled, turn.protocol) == (False, False, "ollama_generate")


def test_raw_prompts_and_gaps_are_raw_completions() -> None:
    """`raw` and `suffix` leave the chat template aside, so a system message with them is refused by name."""
    turn = decode_generate({"model": "m", "prompt": "def f(", "suffix": "return x"})
    assert (turn.prompts, turn.suffix, turn.messages) == (("def f(",), "return x", ())
    assert decode_generate({"model": "m", "prompt": "x", "raw": True}).prompts == ("x",)
    with pytest.raises(UnsupportedParameter) as caught:
        decode_generate({"model": "m", "prompt": "x", "raw": True, "system": "s"})
    assert caught.value.param == "system"


def test_no_words_ask_for_the_model_only() -> None:
    """An empty prompt or an empty conversation is a load request, and nothing else is."""
    assert is_load(decode_generate({"model": "m"}))
    assert is_load(decode_generate({"model": "m", "prompt": "", "raw": True, "keep_alive": 0}))
    assert is_load(decode({"model": "m", "messages": []}))
    assert not is_load(decode_generate(GENERATE))
    assert not is_load(decode(CHAT))


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"model": ""}, "model", "invalid_value"),
        ({"messages": 5}, "messages", "invalid_type"),
        ({"messages": [{"role": "robot"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "images": ["!!!"]}]}, "messages[0].images[0]", "invalid_value"),
        ({"messages": [{"role": "user", "images": ["aGVsbG8gdGhlcmU="]}]}, "messages[0].images[0]", "invalid_value"),
        ({"messages": [{"role": "user", "tool_calls": [{"function": {"name": "f"}}]}]}, "messages[0].tool_calls", None),
        ({"options": {"top_k": 1.5}}, "options.top_k", "invalid_type"),
        ({"options": {"seed": 1e30}}, "options.seed", "invalid_value"),
        ({"options": {"top_k": 10**40}}, "options.top_k", "invalid_value"),
        ({"options": {"temperature": -1}}, "options.temperature", "invalid_value"),
        ({"options": {"colour": 1}}, "options.colour", "unknown_parameter"),
        ({"colour": 1}, "colour", "unknown_parameter"),
        ({"think": "deeply"}, "think", "invalid_value"),
        ({"format": "xml"}, "format", "invalid_value"),
        ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], param: str, code: str | None) -> None:
    """A bad request is a 400 that names the parameter."""
    with pytest.raises(InvalidRequest) as caught:
        decode({**CHAT, **change})
    assert (caught.value.param, caught.value.status) == (param, 400)
    assert code in (None, caught.value.error_code)


@pytest.mark.parametrize(
    ("name", "value"), [("template", "{{ .Prompt }}"), ("context", [1, 2]), ("width", 512), ("steps", 4)]
)
def test_what_cannot_be_honoured_is_named(name: str, value: Any) -> None:
    """What would change the answer and cannot be done here is refused by name, never dropped."""
    with pytest.raises(UnsupportedParameter) as caught:
        decode_generate({"model": "m", "prompt": "x", name: value})
    assert caught.value.param == name


def test_both_embedding_endpoints_decode() -> None:
    """One text or many, the older endpoint's prompt, and no words at all."""
    many = b'{"model":"m","input":["a","b"],"truncate":true,"dimensions":8,"keep_alive":"1m"}'
    assert embed.decode(many, "r") == EmbedRequest("r", "m", ("a", "b"), 8, protocol="ollama_embed", truncate=True)
    assert embed.decode(b'{"model":"m","input":"a"}', "r").inputs == ("a",)
    assert embed.decode(b'{"model":"m","input":""}', "r").inputs == ()
    legacy = embed.decode_legacy(b'{"model":"m","prompt":"a"}', "r")
    assert legacy == EmbedRequest("r", "m", ("a",), protocol="ollama_embeddings")


@pytest.mark.parametrize("size", [1_000_001, 2**63, 10**30])
def test_an_impossible_size_of_an_embedding_is_refused(size: int) -> None:
    """It is an error that names the parameter, not a vector that takes for ever to make."""
    with pytest.raises(InvalidRequest) as caught:
        embed.decode(b'{"model":"m","input":"a","dimensions":%d}' % size, "r")
    assert caught.value.param == "dimensions"


def test_show_takes_either_name() -> None:
    """Older clients say `name` where newer ones say `model`; neither is an error that names it."""
    assert models.decode_show(b'{"model":"m","verbose":true}') == "m"
    assert models.decode_show(b'{"name":"m"}') == "m"
    with pytest.raises(InvalidRequest, match="model"):
        models.decode_show(b"{}")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(PNG),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "role", "x"]), inner),
    max_leaves=6,
)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, item in inner for path in paths(item, (*at, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


READERS: list[tuple[dict[str, Any], Any]] = [
    (CHAT, chat.decode),
    (GENERATE, generate.decode),
    ({"model": "m", "input": ["a"], "options": {}, "dimensions": 3}, embed.decode),
    ({"model": "m", "prompt": "a", "options": {}}, embed.decode_legacy),
]
PLACES = [(request, path, read) for request, read in READERS for path in paths(request)]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PLACES), json_values)
def test_any_change_to_a_request_is_a_turn_or_a_named_refusal(place: tuple[Any, ...], new: Any) -> None:
    """No JSON value in any place raises anything but a RequestError."""
    request, path, read = place
    try:
        assert isinstance(read(json.dumps(replaced(request, path, new)).encode(), "req_1"), Turn | EmbedRequest)
    except RequestError as error:
        assert error.status == 400  # noqa: PT017  a refusal is one of two right outcomes here


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=40) | st.sampled_from([b"[" * 10_000, b'{"a":' * 10_000, b'{"model":NaN}', b"\xff\xfe"]))
def test_any_bytes_are_refused(body: bytes) -> None:
    """Bytes that are no request are a RequestError."""
    for _, read in READERS:
        with pytest.raises(RequestError):
            read(body, "req_1")
