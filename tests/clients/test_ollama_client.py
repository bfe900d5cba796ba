"""The `ollama` client library against a real gateway."""

import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
from gateway_harness import LiveGateway

from sekisho.store import KeySpec

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def connect(live: LiveGateway, key: str | None = None) -> ollama.Client:
    return ollama.Client(host=live.url, headers=live.headers(key), timeout=30)


@pytest.fixture(scope="module")
def client(live: LiveGateway) -> Iterator[ollama.Client]:
    client = connect(live)
    yield client
    client._client.close()


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_models(client: ollama.Client, live: LiveGateway) -> None:
    """The list, what is loaded, and one model's card, with what it can do; names work with `:latest` too."""
    (listed,) = client.list().models
    (loaded,) = client.ps().models
    assert listed.model is not None
    assert listed.model == loaded.model
    for name in ("fake", listed.model):
        shown = client.show(name)
        assert {"completion", "tools", "vision", "embedding"} <= set(shown.capabilities or ())
        assert client.chat(name, user("hi")).message.content == "hi"
    assert live.client().get("/api/version").json()["version"]


def test_chat(client: ollama.Client) -> None:
    """A whole answer and a streamed one are the same, with counts at the end."""
    whole = client.chat("fake", user("hello 世界"))
    chunks = list(client.chat("fake", user("hello 世界"), stream=True))
    assert "".join(chunk.message.content or "" for chunk in chunks) == whole.message.content == "hello 世界"
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    for last in (whole, chunks[-1]):
        assert (last.prompt_eval_count, last.eval_count, last.done_reason) == (2, 2, "stop")
        assert last.total_duration is not None
        assert last.total_duration > 0


async def test_async(live: LiveGateway) -> None:
    """The asynchronous client chats and streams."""
    client = ollama.AsyncClient(host=live.url, headers=live.headers(), timeout=30)
    assert (await client.chat("fake", user("hello there"))).message.content == "hello there"
    stream = await client.chat("fake", user("hello there"), stream=True)
    assert "".join([chunk.message.content or "" async for chunk in stream]) == "hello there"
    await client._client.aclose()


def test_generate(client: ollama.Client) -> None:
    """The older call, whole and streamed, with a system text and a limit."""
    assert client.generate("fake", "hello there", system="be brief").response == "hello there"
    streamed = client.generate("fake", "hello there", stream=True)
    assert "".join(chunk.response for chunk in streamed) == "hello there"
    cut = client.generate("fake", "a b c", options={"num_predict": 2})
    assert (cut.response, cut.done_reason) == ("a b", "length")


@pytest.mark.parametrize("stream", [True, False])
def test_tools_round_trip(client: ollama.Client, stream: bool) -> None:
    """Two calls, their results, the answer; arguments are objects, as this protocol has them."""
    messages: list[Any] = user('call:weather {"city":"京都"} call:weather {"city":"Nara"}')
    if stream:
        chunks = list(client.chat("fake", messages, tools=[WEATHER], stream=True))
        calls = [call for chunk in chunks for call in chunk.message.tool_calls or ()]
        message: Any = {"role": "assistant", "tool_calls": [call.model_dump() for call in calls]}
    else:
        message = client.chat("fake", messages, tools=[WEATHER]).message
        calls = list(message.tool_calls or ())
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("weather", {"city": "京都"}),
        ("weather", {"city": "Nara"}),
    ]
    messages += [message, *({"role": "tool", "tool_name": "weather", "content": f"dry {n}"} for n in range(2))]
    assert client.chat("fake", messages, tools=[WEATHER]).message.content == "result: dry 1"


def test_thinking_and_format(client: ollama.Client) -> None:
    """Thinking stands apart where it was asked for; a schema reaches the engine."""
    answer = client.chat("fake", user("reason:hmm so"), think=True)
    assert (answer.message.thinking, answer.message.content) == ("hmm", "so")
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    assert json.loads(client.chat("fake", user('{"ok":true}'), format=schema).message.content or "") == {"ok": True}


def test_images_reach_the_engine(client: ollama.Client, live: LiveGateway) -> None:
    """An image in base64 goes to an engine that takes images."""
    client.chat("fake", [{"role": "user", "content": "what", "images": [PIXEL]}])
    engine: Any = live.gateway.roster.entries["fake"].engine
    assert any(getattr(part, "url", "").endswith(PIXEL) for part in engine.turns[-1].messages[-1].parts)


def test_embed(client: ollama.Client) -> None:
    """The same vectors as over the OpenAI face; the older call gives them too."""
    found = client.embed("fake", ["first", "第二"])
    assert len(found.embeddings) == 2
    assert found.prompt_eval_count == 2
    assert list(client.embeddings("fake", "first").embedding) == pytest.approx(list(found.embeddings[0]), abs=1e-6)


def test_errors(client: ollama.Client, live: LiveGateway) -> None:
    """Refusals and breaks raise the library's error, with status and words."""
    cases = [(404, "none", "x", None), (503, "fake", "status:503 x", None), (401, "fake", "x", "sk-nobody")]
    _, poor = live.create_key(KeySpec(name="ollama-poor", budget_tokens=2))
    other = connect(live, poor)
    other.chat("fake", user("x"))
    other._client.close()
    for status, model, text, key in [*cases, (429, "fake", "x", poor)]:
        asking = connect(live, key)
        with pytest.raises(ollama.ResponseError) as refused:
            asking.chat(model, user(text))
        asking._client.close()
        assert refused.value.status_code == status
        assert refused.value.error
    with pytest.raises(ollama.ResponseError, match="fake engine broke"):
        list(client.chat("fake", user("crash:1 a b"), stream=True))
