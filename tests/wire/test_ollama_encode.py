import json
from collections.abc import Callable
from typing import Any

import httpx
import ollama
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.clock import ManualClock
from sekisho.core.errors import NotFound
from sekisho.core.events import (
    Batch,
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from sekisho.core.turn import EmbedRequest, ReasoningRequest, Turn
from sekisho.wire.base import Encoder, ErrorView
from sekisho.wire.ollama import chat, embed, generate, models
from sekisho.wire.ollama.models import OllamaModel

FAILED = Failed("err_1", "engine_failed", "server_error", "The engine broke.", 502)
CREATED = 1_790_000_000
MODEL = OllamaModel(
    "mini:q8",
    modified_at=1_790_000_000.5,
    size_bytes=12_000_000,
    digest="sha256:ab",
    family="llama",
    parameter_size="2.8M",
    quantisation="Q8_0",
    context_length=256,
    capabilities=("completion", "tools"),
    template="{{ messages }}",
    license="Apache-2.0",
    format="gguf",
)


def turn(protocol: Any = "ollama_chat", stream: bool = True, think: bool | None = None) -> Turn:
    asked = b'{"model":"mini","messages":[{"role":"user","content":"hi"}],"prompt":"hi"}'
    fields = json.loads(asked)
    fields.pop("prompt" if protocol == "ollama_chat" else "messages")
    decode = chat.decode if protocol == "ollama_chat" else generate.decode
    return decode(json.dumps({**fields, "stream": stream, "think": think}).encode(), "req_1")


def lines(asked: Turn, batches: list[Batch], clock: Callable[[], float] | None = None) -> list[dict[str, Any]]:
    encoder: Encoder = chat.encoder(asked, CREATED, clock)
    sent = b"".join([encoder.start(), *(encoder.feed(batch) + encoder.keepalive() for batch in batches), encoder.end()])
    assert sent.endswith(b"\n")
    return [json.loads(line) for line in sent.splitlines()]


def whole(asked: Turn, batches: list[Batch]) -> dict[str, Any]:
    encoder: Encoder = generate.encoder(asked, CREATED)
    for batch in batches:
        assert encoder.feed(batch) == b""
    answer: dict[str, Any] = json.loads(encoder.whole())
    return answer


def fold(told: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds up the lines as a client does, and checks that only the last one is done."""
    assert [line["done"] for line in told] == [False] * (len(told) - 1) + [True]
    gathered: dict[str, Any] = {}
    for line in told:
        for holder, key in ((line.get("message", {}), "content"), (line, "response"), (line, "thinking")):
            if key in holder:
                gathered[key] = gathered.get(key, "") + holder[key]
        message = line.get("message", {})
        if "thinking" in message:
            gathered["thinking"] = gathered.get("thinking", "") + message["thinking"]
        gathered.setdefault("tool_calls", []).extend(message.get("tool_calls", []))
    return {
        **gathered,
        "last": {key: value for key, value in told[-1].items() if key not in ("message", "response", "thinking")},
    }


@st.composite
def answers(draw: st.DrawFn) -> list[Batch]:
    """A finished answer: words, thinking and the parts of several tool calls mixed in any order, in any batches."""
    scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=6)
    inputs = draw(st.lists(st.dictionaries(st.text(max_size=4), scalars, max_size=3), max_size=3))
    words = st.builds(TextDelta, st.text(max_size=6)) | st.builds(ReasoningDelta, st.text(max_size=6))
    tracks: list[list[Event]] = [list(draw(st.lists(words, max_size=8)))]
    for index, value in enumerate(inputs):
        text = json.dumps(value, ensure_ascii=draw(st.booleans()))
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        first = ToolCallDelta(index, f"call_{index}", f"tool_{index}", pieces[0])
        tracks.append([first, *(ToolCallDelta(index, arguments=piece) for piece in pieces[1:])])
    events: list[Event] = [Started()]
    while any(tracks):
        track = draw(st.sampled_from([track for track in tracks if track]))
        events.append(track.pop(0))
    events += [Usage(9, 5, 4, 2), Finished("tool_calls" if inputs else "stop")]
    cut = draw(st.integers(0, len(events)))
    return [events[:cut], events[cut:]]


def said(batches: list[Batch], kind: type) -> str:
    return "".join(event.text for batch in batches for event in batch if isinstance(event, kind))


def called(batches: list[Batch]) -> list[Any]:
    texts: dict[int, str] = {}
    for event in (event for batch in batches for event in batch):
        if isinstance(event, ToolCallDelta):
            texts[event.index] = texts.get(event.index, "") + event.arguments
    return [
        {"id": f"call_{index}", "function": {"index": index, "name": f"tool_{index}", "arguments": json.loads(text)}}
        for index, text in sorted(texts.items())
    ]


@settings(max_examples=100, deadline=None)
@given(answers(), st.sampled_from([None, True, False]))
def test_any_mixture_keeps_every_word(batches: list[Batch], think: bool | None) -> None:
    """Text, thinking and whole tool calls come through, one last line is done, streamed and whole say the same."""
    told = lines(turn(think=think), batches)
    for line in told:
        ollama.ChatResponse.model_validate(line)
    streamed = fold(told)
    assert streamed["content"] == said(batches, TextDelta)
    assert streamed.get("thinking", "") == ("" if think is False else said(batches, ReasoningDelta))
    assert streamed["tool_calls"] == called(batches)
    answer = whole(turn(stream=False, think=think), batches)
    ollama.ChatResponse.model_validate(answer)
    assert fold([answer]) == streamed


@settings(max_examples=40, deadline=None)
@given(answers())
def test_generate_says_the_same_under_its_own_names(batches: list[Batch]) -> None:
    """`/api/generate` puts the words in `response` and the thinking beside it."""
    told = lines(turn("ollama_generate"), batches)
    for line in told:
        ollama.GenerateResponse.model_validate(line)
    streamed = fold(told)
    assert streamed["response"] == said(batches, TextDelta)
    assert streamed.get("thinking", "") == said(batches, ReasoningDelta)
    answer = whole(turn("ollama_generate", stream=False), batches)
    ollama.GenerateResponse.model_validate(answer)
    assert fold([answer]) == streamed


@settings(max_examples=40, deadline=None)
@given(answers(), st.data())
def test_a_broken_answer_ends_in_one_error_line(batches: list[Batch], data: st.DataObject) -> None:
    """Failed, or silence where the end should be, is one error line with the id in it, and nothing comes after."""
    events = [event for batch in batches for event in batch if not isinstance(event, Finished)]
    cut = data.draw(st.integers(0, len(events)))
    fails = data.draw(st.booleans())
    broken = [events[:cut], [FAILED] if fails else [], events[cut:] if fails else []]
    told = lines(turn(), broken)
    assert [line for line in told if "error" in line] == told[-1:]
    assert "(err_" in told[-1]["error"]
    assert not fails or told[-1] == {"error": "The engine broke. (err_1)"}
    assert whole(turn(stream=False), broken).keys() == {"error"}


def test_the_last_line_counts_and_times() -> None:
    """Durations are the clock's, in nanoseconds; what nobody measured is left out."""
    clock = ManualClock()
    encoder = chat.encoder(turn(), CREATED, clock.monotonic)
    clock.advance(1)
    encoder.feed([Started()])
    clock.advance(1)
    first = json.loads(encoder.feed([TextDelta("a")]))
    clock.advance(3)
    encoder.feed([Usage(7, 5), Finished("length")])
    clock.advance(9)
    assert json.loads(encoder.end()) == {
        "model": "mini",
        "created_at": "2026-09-21T14:13:20Z",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "length",
        "total_duration": 5_000_000_000,
        "prompt_eval_count": 7,
        "prompt_eval_duration": 2_000_000_000,
        "eval_count": 5,
        "eval_duration": 3_000_000_000,
    }
    assert first["created_at"] == "2026-09-21T14:13:20Z"
    untimed = lines(turn(), [[TextDelta("a"), Finished("stop")]])[-1]
    assert untimed.keys() == {"model", "created_at", "message", "done", "done_reason"}


def test_logprobs_come_with_their_words() -> None:
    """Each token keeps its logprob and its rivals, streamed and whole."""
    token = TokenLogprob("a", -0.5, [97], [TopLogprob("b", -1.5, [98])])
    batches: list[Batch] = [[TextDelta("a", logprobs=(token,)), Finished("stop")]]
    told = [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [{"token": "b", "logprob": -1.5, "bytes": [98]}],
        }
    ]
    assert lines(turn(), batches)[0]["logprobs"] == told
    assert whole(turn(stream=False), batches)["logprobs"] == told


def test_arguments_that_are_no_object_are_kept() -> None:
    """Free text and broken JSON reach the caller under `input`; a refusal is told in words."""
    batches: list[Batch] = [
        [
            RefusalDelta("No."),
            ToolCallDelta(0, "a", "f", "free", kind="custom"),
            ToolCallDelta(1, None, "g", '{"x"', namespace="ns"),
            Finished("tool_calls"),
        ]
    ]
    message = whole(turn(stream=False), batches)["message"]
    assert message["content"] == "No."
    assert message["tool_calls"] == [
        {"id": "a", "function": {"index": 0, "name": "f", "arguments": {"input": "free"}}},
        {"function": {"index": 1, "name": "ns__g", "arguments": {"input": '{"x"'}}},
    ]


def test_a_line_is_one_line() -> None:
    """Line breaks inside the model's JSON do not break the stream's lines."""
    batches: list[Batch] = [[ToolCallDelta(0, "a", "f", '{\n "x": 1\n}'), Finished("tool_calls")]]
    told = lines(turn(), batches)
    assert told[0]["message"]["tool_calls"][0]["function"]["arguments"] == {"x": 1}


def serve(answer: Callable[[Turn], list[Batch]]) -> ollama.Client:
    """The real client, whose requests go through the decoders and whose answers come from the encoders."""

    def speak(asked: Turn, encoder: Encoder) -> httpx.Response:
        batches = [] if not (asked.messages or asked.prompts) else answer(asked)
        fed = b"".join([encoder.start(), *map(encoder.feed, batches)])
        body = fed + encoder.end() if asked.stream else encoder.whole()
        return httpx.Response(200, content=body, headers={"content-type": encoder.content_type})

    def handle(request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, request.content
        if path == "/api/chat":
            asked = chat.decode(body, "req_1")
            return speak(asked, chat.encoder(asked, CREATED))
        if path == "/api/generate":
            asked = generate.decode(body, "req_1")
            return speak(asked, generate.encoder(asked, CREATED))
        if path == "/api/show":
            if models.decode_show(body) != MODEL.name:
                error = ErrorView.of(NotFound("No such model."))
                return httpx.Response(404, content=models.error_body(error))
            return httpx.Response(200, content=models.show(MODEL))
        if path in ("/api/embed", "/api/embeddings"):
            wanted = embed.decode(body, "r") if path == "/api/embed" else embed.decode_legacy(body, "r")
            vectors = [[float(len(str(text))), 0.5] for text in wanted.inputs]
            return httpx.Response(200, content=embed.encode(wanted, vectors, Usage(3, 0), total_s=0.25))
        listed = models.tags([MODEL, OllamaModel("bare")]) if path == "/api/tags" else models.ps([MODEL])
        return httpx.Response(200, content=listed)

    return ollama.Client("http://server", transport=httpx.MockTransport(handle))


def weather(asked: Turn) -> list[Batch]:
    if asked.messages[-1].role == "tool":
        return [[TextDelta("It "), TextDelta("rains.")], [Usage(30, 3), Finished("stop")]]
    return [
        [ReasoningDelta("I should look.")],
        [TextDelta("One moment."), ToolCallDelta(0, "call_a", "weather", '{"city":')],
        [ToolCallDelta(0, arguments='"京都"}'), Usage(20, 9), Finished("tool_calls")],
    ]


def test_the_client_streams_a_tool_round_trip() -> None:
    """The official client reads the call, runs a Python function as the tool, and understands the answer."""

    def tell_weather(city: str) -> str:
        """Tells the weather.

        Args:
          city: The city.
        """
        return f"rain in {city}"

    client = serve(weather)
    asked = [ollama.Message(role="user", content="Weather in Kyoto?")]
    parts = list(client.chat("mini", asked, tools=[tell_weather], stream=True, think=True))
    assert "".join(part.message.thinking or "" for part in parts) == "I should look."
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    assert [(call.function.name, call.function.arguments) for call in calls] == [("weather", {"city": "京都"})]
    assert (parts[-1].done, parts[-1].prompt_eval_count, parts[-1].eval_count) == (True, 20, 9)
    history = [
        *asked,
        ollama.Message(role="assistant", content="One moment.", tool_calls=calls),
        ollama.Message(role="tool", content=tell_weather("京都"), tool_name="weather"),
    ]
    assert client.chat("mini", history, tools=[tell_weather]).message.content == "It rains."


def test_the_client_generates_and_loads() -> None:
    """A prompt is answered, streamed and whole; no prompt is answered with `load` without any engine."""
    client = serve(lambda _: [[TextDelta("a"), TextDelta("b"), Finished("stop")]])
    assert client.generate("mini", "hi").response == "ab"
    assert "".join(part.response or "" for part in client.generate("mini", "hi", stream=True)) == "ab"
    loaded = client.generate("mini")
    assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")
    told = {"done": True, "done_reason": "load"}
    asked = generate.decode(b'{"model":"mini"}', "req_1")
    assert lines(asked, [[Finished("stop")]], ManualClock().monotonic)[-1].items() >= told.items()
    (streamed,) = client.chat("mini", stream=True)
    assert (streamed.done, streamed.done_reason, streamed.message.content) == (True, "load", "")


def test_the_client_raises_when_the_answer_breaks() -> None:
    """A failure in mid-stream is an exception in the client, with our id in it."""
    client = serve(lambda _: [[TextDelta("half")], [FAILED]])
    with pytest.raises(ollama.ResponseError, match="err_1"):
        list(client.chat("mini", [{"role": "user", "content": "hi"}], stream=True))


def test_the_client_embeds() -> None:
    """Both endpoints answer in the client's own types, in the order of the inputs; no words give no vectors."""
    client = serve(weather)
    answer = client.embed("mini", ["a", "bbb"])
    assert [list(vector) for vector in answer.embeddings] == [[1.0, 0.5], [3.0, 0.5]]
    assert (answer.prompt_eval_count, answer.total_duration) == (3, 250_000_000)
    assert list(client.embeddings("mini", "bb").embedding) == [2.0, 0.5]
    assert list(client.embed("mini", "").embeddings) == []
    assert (
        embed.encode(EmbedRequest("r", "m", (), protocol="ollama_embeddings"), [], Usage(0, 0)) == b'{"embedding":[]}'
    )


def test_the_client_lists_and_shows_models() -> None:
    """Every fact that is known stands where the client looks for it; an unknown one is empty, not invented."""
    client = serve(weather)
    full, bare = client.list().models
    assert (full.model, full.size, full.digest) == ("mini:q8", 12_000_000, "sha256:ab")
    assert full.modified_at is not None
    assert full.modified_at.timestamp() == 1_790_000_000.5
    assert full.details is not None
    assert (full.details.family, full.details.quantization_level) == ("llama", "Q8_0")
    assert (bare.model, bare.size, bare.digest) == ("bare", 0, "")
    shown = client.show("mini:q8")
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 256
    assert (shown.template, shown.license) == ("{{ messages }}", "Apache-2.0")
    (running,) = client.ps().models
    assert (running.name, running.context_length) == ("mini:q8", 256)
    with pytest.raises(ollama.ResponseError, match="No such model"):
        client.show("other")
    assert json.loads(models.version()) == {"version": models.API_VERSION}


def test_a_turn_that_asks_for_no_thinking_hears_none() -> None:
    """`think: false` hides what the model thought all the same; words are untouched."""
    batches: list[Batch] = [[ReasoningDelta("x"), TextDelta("y"), Finished("stop")]]
    asked = turn(think=False)
    assert asked.reasoning == ReasoningRequest(enabled=False)
    assert "thinking" not in json.dumps(lines(asked, batches))
