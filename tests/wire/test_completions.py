"""Legacy completions in both directions."""

import json
from typing import Any

import httpx2
import msgspec
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion, completion_create_params

from sekisho.core.errors import EngineFailed, InvalidRequest, RequestError, UnsupportedParameter
from sekisho.core.events import Batch, Event, Failed, Finished, Started, TextDelta, TokenLogprob, TopLogprob, Usage
from sekisho.core.turn import Sampling, Turn
from sekisho.wire import completions
from sekisho.wire.completions import CompletionRequest
from sekisho.wire.completions_client import CompletionStreamDecoder, decode_completion_whole, encode_completion

WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=10)


def decode(**fields: Any) -> Turn:
    return completions.decode(json.dumps({"model": "m", "prompt": "p", **fields}).encode(), "cmpl-1")


def stream(asked: Turn, *events: Event) -> bytes:
    encoder = completions.encoder(asked, 1_790_000_000)
    return encoder.start() + encoder.feed(list(events)) + encoder.end()


def chunks(body: bytes) -> list[Completion]:
    """The SDK reads chunks with the same type; only `finish_reason` is null until the end."""
    frames = body.split(b"\n\n")
    assert frames[-2:] == [b"data: [DONE]", b""]
    out = []
    for frame in frames[:-2]:
        value = json.loads(frame.removeprefix(b"data: "))
        for choice in value["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        out.append(Completion.model_validate_json(json.dumps(value), strict=True))
    return out


def whole(asked: Turn, *events: Event) -> Completion:
    encoder = completions.encoder(msgspec.structs.replace(asked, stream=False), 1_790_000_000)
    assert encoder.feed(list(events)) == b""
    answer = Completion.model_validate_json(encoder.whole(), strict=True)
    assert not answer.model_extra
    assert not any(choice.model_extra for choice in answer.choices)
    return answer


def test_prompts_of_every_form() -> None:
    """One text, texts, tokens, lists of tokens; 16 tokens are OpenAI's default length."""
    assert decode().prompts == ("p",)
    assert decode(prompt=["a", "b"]).prompts == ("a", "b")
    assert decode(prompt=[1, 2]).prompts == ((1, 2),)
    assert decode(prompt=[[1], [2, 3]]).prompts == ((1,), (2, 3))
    assert decode().sampling.max_tokens == 16
    assert decode(max_tokens=-1).sampling.max_tokens is None
    turn = decode(suffix="s", echo=True, best_of=2, n=2, logit_bias={"1": 1}, min_tokens=1, user="u")
    assert (turn.suffix, turn.echo, turn.sampling.n, turn.extra, turn.user) == ("s", True, 2, {"min_tokens": 1}, "u")


def test_every_request_field_that_the_sdk_knows_is_known() -> None:
    """No parameter of the official SDK is answered with `unknown_parameter`."""
    sdk = set(completion_create_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert sdk - set(CompletionRequest.__struct_fields__) == set()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, -2]}, "prompt[1]"),
        ({"prompt": [2**31]}, "prompt[0]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": None}, "prompt"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"echo": True, "prompt": [1]}, "echo"),
        ({"prompt": ["a"] * 100, "n": 100}, "n"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_bad_requests_are_named(fields: dict[str, Any], param: str) -> None:
    """What is wrong, or cannot be done here, is told by the parameter's path."""
    with pytest.raises((InvalidRequest, UnsupportedParameter)) as caught:
        decode(**fields)
    assert caught.value.param == param


def spoken(count: int, texts: list[tuple[int, str]]) -> Batch:
    events: Batch = [TextDelta(text, choice % count) for choice, text in texts]
    return [Started("e"), *events, Usage(3, 4, 1), *(Finished("length", choice) for choice in range(count))]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 2),
    st.lists(WORDS, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 5), WORDS), max_size=8),
    st.lists(st.integers(0, 3000), max_size=6),
)
def test_what_the_encoder_writes_our_client_reads(
    n: int, prompts: list[str], texts: list[tuple[int, str]], cuts: list[int]
) -> None:
    """Choices of several prompts arrive whole, streaming and not, wherever the bytes are cut; and both fit the SDK."""
    count = n * len(prompts)
    asked = decode(prompt=prompts, n=n, stream=True, stream_options={"include_usage": True})
    events = spoken(count, texts)
    body = stream(asked, *events)
    decoder = CompletionStreamDecoder(asked)
    marks = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    read = [event for a, b in zip(marks, marks[1:], strict=False) for event in decoder.feed(body[a:b])]  # noqa: RUF007
    read += decoder.finish()
    encoder = completions.encoder(msgspec.structs.replace(asked, stream=False), 1)
    encoder.feed(events)
    again = decode_completion_whole(encoder.whole(), asked)
    full = whole(asked, *events)
    told = chunks(body)
    assert told[-1].usage == full.usage
    for choice in range(count):
        text = "".join(text for number, text in texts if number % count == choice)
        for batch in (read, again):
            assert "".join(e.text for e in batch if isinstance(e, TextDelta) and e.choice == choice) == text
        assert full.choices[choice].text == text
        assert "".join(c.text for one in told for c in one.choices if c.index == choice) == text
    for batch in (read, again):
        assert [event for event in batch if isinstance(event, Usage | Finished)] == events[-count - 1 :]


def test_echo_repeats_each_prompt_before_its_answer() -> None:
    """The prompt opens every choice, streaming and not."""
    asked = decode(prompt=["a", "b"], echo=True, stream=True)
    events = [TextDelta("x", 1), Finished("stop", 0), Finished("stop", 1)]
    assert [choice.text for choice in whole(asked, *events).choices] == ["a", "bx"]
    told = [choice for chunk in chunks(stream(asked, *events)) for choice in chunk.choices]
    assert "".join(choice.text for choice in told if choice.index == 1) == "bx"


def test_logprobs_are_parallel_lists() -> None:
    """Tokens, probabilities, alternatives and running offsets; not more alternatives than were asked for."""
    tokens = tuple(TokenLogprob(word, -1.0, None, [TopLogprob(word, -1.0), TopLogprob("z", -2.0)]) for word in "ab")
    events = [TextDelta("a", 0, tokens[:1]), TextDelta("b", 0, tokens[1:]), Finished("stop")]
    logprobs = whole(decode(logprobs=1), *events).choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == (["a", "b"], [-1.0, -1.0], [0, 1])
    assert logprobs.top_logprobs == [{"a": -1.0}, {"b": -1.0}]
    streamed = chunks(stream(decode(logprobs=0, stream=True), *events))
    parts = [chunk.choices[0].logprobs for chunk in streamed[:2]]
    assert [part.text_offset for part in parts if part] == [[0], [1]]
    assert all(part is not None and part.top_logprobs is None for part in parts)


def test_a_failure_never_looks_complete() -> None:
    """A failed turn, or one that just stops, ends without a finish reason and without `[DONE]`."""
    failed = Failed("err_1", "engine_failed", "server_error", "broke")
    for events in ([TextDelta("a"), failed, Finished("stop")], [TextDelta("a")]):
        body = stream(decode(stream=True), *events)
        assert b"[DONE]" not in body
        assert b'"error"' in body
        encoder = completions.encoder(decode(), 1)
        encoder.feed(events)
        assert "error" in json.loads(encoder.whole())


def test_the_request_to_an_engine() -> None:
    """One prompt goes out alone, several as a list; `echo` stays with us; at least one probability is asked for."""
    one = json.loads(encode_completion(decode(prompt=[1, 2], logprobs=0, echo=False), model="up", stream=True))
    assert one == {
        "model": "up",
        "prompt": [1, 2],
        "max_tokens": 16,
        "logprobs": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    many = json.loads(encode_completion(decode(prompt=["a", "b"], echo=True, suffix="s"), model="up", stream=False))
    assert many == {"model": "up", "prompt": ["a", "b"], "suffix": "s", "max_tokens": 16, "stream": False}


def test_engines_logprobs_in_either_shape() -> None:
    """OpenAI's parallel lists, with a first token that has none, and llama.cpp's list as in chat."""
    old = {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -1.0],
        "top_logprobs": [None, {"b": -1.0, "c": -2.0}],
        "text_offset": [0, 1],
    }
    chat = {"content": [{"token": "b", "logprob": -1.0, "bytes": [98], "top_logprobs": []}]}
    asked = decode(logprobs=2)
    for logprobs, expected in (
        (old, TokenLogprob("b", -1.0, None, [TopLogprob("b", -1.0), TopLogprob("c", -2.0)])),
        (chat, TokenLogprob("b", -1.0, [98])),
    ):
        body = {"choices": [{"index": 0, "text": "ab", "logprobs": logprobs, "finish_reason": "stop"}]}
        assert decode_completion_whole(json.dumps(body).encode(), asked)[1] == TextDelta("ab", 0, (expected,))


def test_several_prompts_are_counted_together() -> None:
    """llama.cpp opens such a stream with a null, and counts each answer by itself, in its last chunk."""
    asked = decode(prompt=["a", "b"], n=2, stream=True)
    body = b"data: null\n\n"
    for choice in range(4):
        usage = {"prompt_tokens": 3 if choice < 2 else 5, "completion_tokens": choice}
        ended = {"choices": [{"index": choice, "text": "x", "finish_reason": "stop"}], "usage": usage, "timings": {}}
        body += b"data: " + json.dumps(ended).encode() + b"\n\n"
    decoder = CompletionStreamDecoder(asked)
    batch = decoder.feed(body + b"data: [DONE]\n\n")
    assert [event for event in batch if isinstance(event, Usage)] == [Usage(8, 6)]
    assert sum(isinstance(event, Finished) for event in batch) == 4


def test_missing_choices_are_a_failure() -> None:
    """An engine that answers one of two prompts did not do its work."""
    asked = decode(prompt=["a", "b"])
    with pytest.raises(EngineFailed):
        decode_completion_whole(b'{"choices":[{"index":0,"text":"x","finish_reason":"stop"}]}', asked)
    assert asked.sampling == Sampling(max_tokens=16)


def test_the_sdk_reads_a_stream_and_a_whole_answer() -> None:
    """The official client gets the words and the usage, and raises at a failure in mid-stream."""
    events: list[Event] = [TextDelta("a"), TextDelta("b"), Usage(1, 2), Finished("stop")]

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked = completions.decode(request.content, "cmpl-1")
        if asked.stream:
            return httpx2.Response(200, content=stream(asked, *events), headers={"content-type": "text/event-stream"})
        encoder = completions.encoder(asked, 1)
        encoder.feed(events)
        return httpx2.Response(200, content=encoder.whole(), headers={"content-type": "application/json"})

    transport = httpx2.Client(transport=httpx2.MockTransport(handle))
    with openai.OpenAI(api_key="k", base_url="http://test/v1", http_client=transport, max_retries=0) as client:
        full = client.completions.create(model="m", prompt="p")
        assert (full.choices[0].text, full.usage and full.usage.total_tokens) == ("ab", 3)
        told = list(client.completions.create(model="m", prompt="p", stream=True))
        assert "".join(chunk.choices[0].text for chunk in told) == "ab"
        events[1] = Failed("err_1", "engine_failed", "server_error", "broke")
        with pytest.raises(openai.APIError, match="broke"):
            list(client.completions.create(model="m", prompt="p", stream=True))


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(CompletionRequest.__struct_fields__), VALUES | st.lists(VALUES, max_size=3))
def test_any_value_is_a_turn_or_a_request_error(name: str, value: Any) -> None:
    """No value of a field leads to another exception."""
    try:
        turn = decode(**{name: value})
    except RequestError:
        return
    assert turn.prompts
