"""The official `anthropic` SDK against a real gateway."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from gateway_harness import LiveGateway
from strictness import check

from sekisho.store import KeySpec

WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def client(live: LiveGateway) -> Iterator[Anthropic]:
    with Anthropic(base_url=live.url, api_key=live.key, max_retries=0, timeout=30) as client:
        yield client


def user(text: Any) -> list[Any]:
    return [{"role": "user", "content": text}]


def create(client: Anthropic, messages: list[Any], **more: Any) -> anthropic.types.Message:
    message: anthropic.types.Message = client.messages.create(
        model="fake", messages=messages, **{"max_tokens": 100, **more}
    )
    check(message)
    return message


def test_create(client: Anthropic) -> None:
    """A whole message, with its stop reason and usage; the system prompt counts."""
    message = create(client, user("hello 世界"), system="be brief")
    (block,) = message.content
    assert block.type == "text"
    assert (block.text, message.stop_reason) == ("hello 世界", "end_turn")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (4, 2)
    assert (message.role, message.type, message.model) == ("assistant", "message", "fake")


def test_stops(client: Anthropic) -> None:
    """`max_tokens` and `stop_sequences` end an answer with the right reason."""
    assert create(client, user("a b c"), max_tokens=2).stop_reason == "max_tokens"
    stopped = create(client, user("a b STOP c"), stop_sequences=["STOP"])
    assert "STOP" not in str(stopped.content)


def test_stream_helper(client: Anthropic) -> None:
    """The SDK's accumulator gives the message that a request without streaming gives, and the text in pieces."""
    with client.messages.stream(model="fake", max_tokens=100, messages=user("hello there")) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    check(final)
    assert text == "hello there"
    assert (final.stop_reason, final.usage.output_tokens, final.usage.input_tokens) == ("end_turn", 2, 2)


def test_stream_events(client: Anthropic) -> None:
    """Start, block by block, delta with the stop reason, stop; every event validates."""
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    events = list(
        client.messages.create(
            model="fake", max_tokens=2000, messages=user("reason:hmm so it is"), thinking=thinking, stream=True
        )
    )
    for event in events:
        check(event)
    kinds = [event.type for event in events]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    blocks = [event.content_block.type for event in events if event.type == "content_block_start"]
    assert blocks == ["thinking", "text"]


async def test_async(live: LiveGateway) -> None:
    """The asynchronous client creates and streams."""
    async with AsyncAnthropic(base_url=live.url, api_key=live.key, max_retries=0) as client:
        message = await client.messages.create(model="fake", max_tokens=9, messages=user("hello there"))
        check(message)
        async with client.messages.stream(model="fake", max_tokens=9, messages=user("hello there")) as stream:
            final = await stream.get_final_message()
    assert [getattr(block, "text", "") for block in (*message.content, *final.content)] == ["hello there"] * 2


@pytest.mark.parametrize("stream", [True, False])
def test_tools_round_trip(client: Anthropic, stream: bool) -> None:
    """Two calls in one turn, both results go back in one message, the answer comes."""
    messages = user('call:weather {"city":"京都"} call:weather {"city":"Nara"}')
    if stream:
        with client.messages.stream(model="fake", max_tokens=99, messages=messages, tools=[WEATHER]) as events:
            asked = events.get_final_message()
        check(asked)
    else:
        asked = create(client, messages, tools=[WEATHER])
    assert asked.stop_reason == "tool_use"
    calls = [block for block in asked.content if block.type == "tool_use"]
    assert [call.input for call in calls] == [{"city": "京都"}, {"city": "Nara"}]
    results = [
        {"type": "tool_result", "tool_use_id": calls[0].id, "content": "sunny"},
        {
            "type": "tool_result",
            "tool_use_id": calls[1].id,
            "content": [{"type": "text", "text": "no"}],
            "is_error": True,
        },
    ]
    messages += [{"role": "assistant", "content": asked.content}, {"role": "user", "content": results}]
    answer = create(client, messages, tools=[WEATHER])
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "result: no"


def test_thinking_goes_back(client: Anthropic) -> None:
    """Thinking is a block of its own and is accepted back with its signature."""
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    message = create(client, user("reason:hmm so it is"), max_tokens=2000, thinking=thinking)
    first, second = message.content
    assert first.type == "thinking"
    assert (first.thinking, second.type) == ("hmm", "text")
    messages = [*user("a"), {"role": "assistant", "content": message.content}, *user("b")]
    assert create(client, messages, max_tokens=2000, thinking=thinking).stop_reason == "end_turn"


def test_structured_output(client: Anthropic) -> None:
    """A JSON schema in `output_config` reaches the engine; the answer is the text."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    config: Any = {"format": {"type": "json_schema", "schema": schema}}
    message = create(client, user('{"ok":true}'), output_config=config)
    assert message.content[0].type == "text"
    assert json.loads(message.content[0].text) == {"ok": True}


def test_count_tokens_and_models(client: Anthropic) -> None:
    """The count is the engine's own and is what the message then costs; the model list works too."""
    counted = client.messages.count_tokens(model="fake", messages=user("one two three"), system="four")
    check(counted)
    assert counted.input_tokens == create(client, user("one two three"), system="four").usage.input_tokens == 4


def test_images_reach_the_engine(client: Anthropic, live: LiveGateway) -> None:
    """An image goes to an engine that takes images as a data URL of the same bytes."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    create(client, user([image, {"type": "text", "text": "what is it"}]))
    engine: Any = live.gateway.roster.entries["fake"].engine
    assert f"data:image/png;base64,{PIXEL}" in [
        getattr(part, "url", "") for part in engine.turns[-1].messages[-1].parts
    ]


def test_errors_raise_the_right_class(client: Anthropic, live: LiveGateway) -> None:
    """Each kind of refusal is the SDK's own exception, in Anthropic's error shape."""
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        create(client.with_options(api_key="sk-nobody"), user("x"))
    assert isinstance(unknown.value.body, dict)
    assert unknown.value.body["type"] == "error"
    assert unknown.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="none", max_tokens=9, messages=user("x"))
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        create(client, user("x"), max_tokens=0)
    with pytest.raises(anthropic.BadRequestError):
        create(client, user("word " * 5000))
    with pytest.raises(anthropic.APIStatusError) as down:
        create(client, user("status:503 x"))
    assert down.value.status_code in (503, 529)
    _, narrow = live.create_key(KeySpec(name="anthropic-narrow", scopes=frozenset({"embeddings"})))
    with pytest.raises(anthropic.PermissionDeniedError):
        create(client.with_options(api_key=narrow), user("x"))
    _, poor = live.create_key(KeySpec(name="anthropic-poor", budget_tokens=2))
    create(client.with_options(api_key=poor), user("x"))
    with pytest.raises(anthropic.RateLimitError, match="budget"):
        create(client.with_options(api_key=poor), user("x"))


def test_a_break_in_mid_stream_raises(client: Anthropic) -> None:
    """What was said comes, then the SDK raises what the error event says."""
    heard = []
    with (
        pytest.raises(anthropic.APIStatusError, match="fake engine broke"),
        client.messages.stream(model="fake", max_tokens=9, messages=user("crash:2 a b c")) as stream,
    ):
        heard.extend(stream.text_stream)
    assert "".join(heard) == "a b"
