"""The official `openai` SDK against a real gateway: every object is what the SDK's own types say."""

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from gateway_harness import LiveGateway
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionToolParam
from strictness import check

from sekisho.store import KeySpec

WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class City(pydantic.BaseModel):
    name: str
    population: int


KYOTO = '{"name":"Kyoto","population":1450000}'


@pytest.fixture(scope="module")
def client(live: LiveGateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key=live.key, max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
async def async_client(live: LiveGateway) -> Any:
    async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key=live.key, max_retries=0, timeout=30) as client:
        yield client


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def text_of(chunks: list[ChatCompletionChunk], choice: int = 0) -> str:
    return "".join(delta.delta.content or "" for chunk in chunks for delta in chunk.choices if delta.index == choice)


# --- models and embeddings ------------------------------------------------------------------------------------------


def test_models(client: OpenAI) -> None:
    """The list, and one by name; both are the SDK's `Model`."""
    (model,) = client.models.list()
    assert model.id == client.models.retrieve("fake").id == "fake"
    assert (model.object, type(model.created), type(model.owned_by)) == ("model", int, str)


def test_embeddings_are_the_same_as_floats_and_as_base64(client: OpenAI) -> None:
    """The SDK asks for base64 by itself and decodes it: the same numbers as in plain floats, in the input's order."""
    texts = ["first", "第二", "third"]
    packed = client.embeddings.create(model="fake", input=texts)
    plain = client.embeddings.create(model="fake", input=texts, encoding_format="float")
    raw = client.embeddings.create(model="fake", input=texts, encoding_format="base64")
    check(plain)
    assert [item.index for item in packed.data] == [0, 1, 2]
    for ours, floats, text in zip(packed.data, plain.data, raw.data, strict=True):
        assert ours.embedding == pytest.approx(floats.embedding, abs=1e-6)
        data = base64.b64decode(str(text.embedding))
        assert list(struct.unpack(f"<{len(data) // 4}f", data)) == pytest.approx(floats.embedding, abs=1e-6)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == 3
    assert len(client.embeddings.create(model="fake", input="x", dimensions=5).data[0].embedding) == 5
    assert client.embeddings.create(model="fake", input=[[1, 2], [3]]).usage.prompt_tokens == 3


# --- chat -----------------------------------------------------------------------------------------------------------


def test_chat(client: OpenAI) -> None:
    """A whole answer with its usage."""
    answer = client.chat.completions.create(model="fake", messages=user("hello 世界"))
    check(answer)
    assert answer.choices[0].message.content == "hello 世界"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 2, 4)


async def test_chat_async(async_client: AsyncOpenAI) -> None:
    """The asynchronous client gets the same, whole and streamed."""
    answer = await async_client.chat.completions.create(model="fake", messages=user("hello there"))
    check(answer)
    stream = await async_client.chat.completions.create(model="fake", messages=user("hello there"), stream=True)
    chunks = [chunk async for chunk in stream]
    assert text_of(chunks) == answer.choices[0].message.content == "hello there"
    assert [model.id async for model in async_client.models.list()] == ["fake"]
    assert len((await async_client.embeddings.create(model="fake", input="x")).data[0].embedding) == 16


@pytest.mark.parametrize("include_usage", [True, False])
def test_chat_stream(client: OpenAI, include_usage: bool) -> None:
    """Every chunk validates and has the one id; usage comes once, last and without choices, where asked for."""
    options: Any = {"stream_options": {"include_usage": True}} if include_usage else {}
    stream = client.chat.completions.create(model="fake", messages=user("tokens:20"), stream=True, **options)
    chunks = list(stream)
    for chunk in chunks:
        check(chunk)
    assert len({chunk.id for chunk in chunks}) == 1
    assert text_of(chunks).split()[-1] == "word20"
    assert chunks[0].choices[0].delta.role == "assistant"
    told = [chunk.usage for chunk in chunks if chunk.usage]
    assert [usage.completion_tokens for usage in told] == ([20] if include_usage else [])
    assert bool(chunks[-1].choices) != include_usage


def test_chat_stream_helper(client: OpenAI) -> None:
    """The SDK's own accumulator ends with the same completion as a request without streaming."""
    with client.chat.completions.stream(
        model="fake", messages=user("hello there"), stream_options={"include_usage": True}
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    check(final)
    assert final.choices[0].message.content == "hello there"
    assert final.usage is not None
    assert final.usage.completion_tokens == 2
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)


def test_chat_tools_round_trip(client: OpenAI) -> None:
    """Call, result, answer: the call's id leads the result back."""
    messages = user('call:weather {"city":"京都"}')
    asked = client.chat.completions.create(model="fake", messages=messages, tools=[WEATHER])
    check(asked)
    assert asked.choices[0].finish_reason == "tool_calls"
    (call,) = asked.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "京都"}
    messages += [asked.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    answer = client.chat.completions.create(model="fake", messages=messages, tools=[WEATHER])
    check(answer)
    assert answer.choices[0].message.content == "result: sunny"


def test_chat_parallel_tools_streamed(client: OpenAI) -> None:
    """Two calls in one turn, in pieces: the helper puts each together, and both results go back."""
    messages = user('call:weather {"city":"Kyoto"} call:weather {"city":"Nara"}')
    with client.chat.completions.stream(model="fake", messages=messages, tools=[WEATHER]) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        message = stream.get_final_completion().choices[0].message
    assert [event.parsed_arguments for event in done] == [{"city": "Kyoto"}, {"city": "Nara"}]
    calls = message.tool_calls or []
    assert len({call.id for call in calls}) == 2
    messages.append(message.model_dump(exclude={"parsed"}, exclude_none=True))
    messages += [{"role": "tool", "tool_call_id": call.id, "content": f"dry {n}"} for n, call in enumerate(calls)]
    chunks = list(client.chat.completions.create(model="fake", messages=messages, tools=[WEATHER], stream=True))
    assert text_of(chunks) == "result: dry 1"


def test_chat_custom_tool(client: OpenAI) -> None:
    """A custom tool's free text goes there and back."""
    tool: Any = {"type": "custom", "custom": {"name": "shell", "description": "Runs a line."}}
    messages = user("call:shell ls -l 'a b'")
    asked = client.chat.completions.create(model="fake", messages=messages, tools=[tool])
    check(asked)
    (call,) = asked.choices[0].message.tool_calls or []
    assert call.type == "custom"
    assert (call.custom.name, call.custom.input) == ("shell", "ls -l 'a b'")
    messages += [asked.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "two files"}]
    answer = client.chat.completions.create(model="fake", messages=messages, tools=[tool])
    assert answer.choices[0].message.content == "result: two files"


def test_chat_structured_output(client: OpenAI) -> None:
    """`parse` sends a strict schema and reads the answer into the caller's type; the engine was told the schema."""
    parsed = client.chat.completions.parse(model="fake", messages=user(KYOTO), response_format=City)
    assert parsed.choices[0].message.parsed == City(name="Kyoto", population=1_450_000)
    plain: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": City.model_json_schema()}}
    answer = client.chat.completions.create(model="fake", messages=user(KYOTO), response_format=plain)
    check(answer)
    assert City.model_validate_json(answer.choices[0].message.content or "").name == "Kyoto"


def test_chat_choices_stop_and_length(client: OpenAI) -> None:
    """`n`, `stop` and `max_completion_tokens` do what they say, with the right finish reasons."""
    two = client.chat.completions.create(model="fake", messages=user("a b"), n=2)
    check(two)
    assert [(choice.index, choice.message.content) for choice in two.choices] == [(0, "a b"), (1, "a b")]
    chunks = list(client.chat.completions.create(model="fake", messages=user("a b"), n=2, stream=True))
    assert [text_of(chunks, choice) for choice in (0, 1)] == ["a b", "a b"]
    stopped = client.chat.completions.create(model="fake", messages=user("a b STOP c"), stop=["STOP"])
    assert (stopped.choices[0].message.content or "").strip() == "a b"
    cut = client.chat.completions.create(model="fake", messages=user("a b c"), max_completion_tokens=2)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("a b", "length")


def test_chat_reasoning_goes_back(client: OpenAI, live: LiveGateway) -> None:
    """Thinking stands beside the answer, in the field that local servers use, and can be handed back."""
    answer = client.chat.completions.create(model="fake", messages=user("reason:hmm so it is"))
    check(answer)
    message = answer.choices[0].message
    assert (message.content, (message.model_extra or {})["reasoning_content"]) == ("so it is", "hmm")
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 1
    again = client.chat.completions.create(model="fake", messages=[*user("x"), message, *user("y")])
    assert again.choices[0].message.content == "y"


# --- legacy completions ---------------------------------------------------------------------------------------------


def test_legacy_completions(client: OpenAI) -> None:
    """Whole and streamed, several prompts, echo and length."""
    answer = client.completions.create(model="fake", prompt=["one two", "three"])
    check(answer)
    assert [choice.text for choice in answer.choices] == ["one two", "three"]
    chunks = list(
        client.completions.create(
            model="fake", prompt="one two", stream=True, echo=True, stream_options={"include_usage": True}
        )
    )
    for chunk in chunks:
        for choice in chunk.choices:  # null until the end, as OpenAI streams it; the SDK's type leaves null out
            choice.finish_reason = choice.finish_reason or "stop"
        check(chunk)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "one twoone two"
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [4]
    cut = client.completions.create(model="fake", prompt="a b c", max_tokens=1)
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == ("a", "length")


# --- errors ---------------------------------------------------------------------------------------------------------


def with_key(client: OpenAI, key: str) -> OpenAI:
    return client.with_options(api_key=key)


def test_errors_raise_the_right_class(client: OpenAI, live: LiveGateway) -> None:
    """Each kind of refusal is the SDK's own exception, with the code, the parameter and the id of the log."""
    create = client.chat.completions.create
    with pytest.raises(openai.AuthenticationError) as unknown:
        with_key(client, "sk-nobody").models.list()
    assert unknown.value.code == "invalid_api_key"
    assert unknown.value.response.headers["x-error-id"].startswith("err_")
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="none", messages=user("hi"))
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        create(model="fake", messages=user("hi"), temperature=99)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        create(model="fake", messages=user("word " * 5000))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.APIStatusError) as down:
        create(model="fake", messages=user("status:503 x"))
    assert (down.value.status_code, type(down.value)) == (503, openai.InternalServerError)


def test_limits_raise_the_right_class(client: OpenAI, live: LiveGateway) -> None:
    """A missing scope is PermissionDenied; a limit and a spent budget are RateLimitError, told apart by code."""
    _, narrow = live.create_key(KeySpec(name="sdk-narrow", scopes=frozenset({"chat"}), rpm=1))
    with pytest.raises(openai.PermissionDeniedError):
        with_key(client, narrow).embeddings.create(model="fake", input="x")
    with_key(client, narrow).chat.completions.create(model="fake", messages=user("x"))
    with pytest.raises(openai.RateLimitError) as fast:
        with_key(client, narrow).chat.completions.create(model="fake", messages=user("x"))
    assert fast.value.code == "rate_limit_exceeded"
    assert int(fast.value.response.headers["retry-after"]) >= 1
    _, poor = live.create_key(KeySpec(name="sdk-poor", budget_tokens=2))
    with_key(client, poor).chat.completions.create(model="fake", messages=user("x"))
    with pytest.raises(openai.RateLimitError) as spent:
        with_key(client, poor).chat.completions.create(model="fake", messages=user("x"))
    assert (spent.value.code, spent.value.type) == ("insufficient_quota", "insufficient_quota")


def test_a_break_in_mid_stream_raises(client: OpenAI) -> None:
    """Chat, completions and responses: what was said comes, then the SDK raises, with the id of the log."""
    chat = client.chat.completions.create(model="fake", messages=user("crash:2 a b c"), stream=True)
    heard: list[Any] = []
    with pytest.raises(openai.APIError, match="fake engine broke") as broken:
        heard.extend(chat)  # type: ignore[arg-type]
    assert (broken.value.code, isinstance(broken.value, openai.APIStatusError)) == ("engine_failed", False)
    assert isinstance(broken.value.body, dict)
    assert broken.value.body["id"].startswith("err_")
    with pytest.raises(openai.APIError, match="fake engine broke"):
        list(client.completions.create(model="fake", prompt="crash:2 a b c", stream=True))
    with client.responses.stream(model="fake", input="crash:2 a b c") as stream:
        events = list(stream)
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert events[-1].response.error.code == "server_error"
    assert "err_" in events[-1].response.error.message
