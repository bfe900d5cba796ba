"""The fake engine: what it promises to the tests that lean on it."""

import asyncio
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.errors import EngineUnavailable
from sekisho.core.events import Event, Failed, Finished, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from sekisho.core.turn import Message, Sampling, Text, Tool, ToolChoice, ToolResult, Turn
from sekisho.engines import fake_server
from sekisho.engines.config import ModelConfig
from sekisho.engines.fake import FakeEngine, embedding, read_script, words
from sekisho.engines.openai_http import OpenAiHttpEngine

ADD = Tool("add", parameters={"type": "object"})
PATCH = Tool("patch", kind="custom")
DEEP = Tool("find", namespace="files", parameters={"type": "object"})


def engine(**options: Any) -> FakeEngine:
    return FakeEngine(ModelConfig("m", engine="fake", options=options))


def say(text: str, **fields: Any) -> Turn:
    return Turn("turn_1", "chat", "m", messages=(Message("user", (Text(text),)),), **fields)


async def collect(engine: Any, turn: Turn) -> list[Event]:
    return [event async for batch in engine.generate(turn) for event in batch]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


@given(st.text())
def test_the_pieces_of_a_text_are_the_text(text: str) -> None:
    """Nothing is lost between words."""
    assert "".join(words(text)) == text


@given(st.text(min_size=1))
def test_any_text_makes_a_script(text: str) -> None:
    """No text breaks the reading of directives, and without a colon there are none: it is echoed."""
    script = read_script(text, tool_names=["add"])
    if ":" not in text:
        assert "".join(script.pieces) == text


async def test_instructions_after_the_question_steer_nothing() -> None:
    """Coding agents put instructions behind what their user said: the user's words are what counts, in both fakes."""
    late = Message("system", (Text("Available: call:add"),))
    turn = say('call:add {"x":1}', tools=(ADD,))
    turn = msgspec.structs.replace(turn, messages=(*turn.messages, late))
    server, port, _ = await fake_server.start(fake_server.Settings())
    url = f"http://127.0.0.1:{port}/v1"
    async with server:
        there = OpenAiHttpEngine(ModelConfig("m", engine="openai_http", url=url), url)
        for one in (engine(), there):
            calls = [event for event in await collect(one, turn) if isinstance(event, ToolCallDelta)]
            assert "".join(call.arguments for call in calls) == '{"x":1}'
        await there.close()


@given(st.text(), st.integers(1, 300))
def test_an_embedding_is_a_unit_vector_of_the_text(text: str, dimensions: int) -> None:
    """The same text gives the same vector, of length one."""
    vector = embedding(text, dimensions)
    assert vector == embedding(text, dimensions)
    assert len(vector) == dimensions
    assert sum(value * value for value in vector) == pytest.approx(1.0)


async def test_tools_are_called_as_declared() -> None:
    """Functions, custom tools and namespaces, several at once; the parts of arguments make the whole."""
    turn = say('call:add {"a": 1} call:patch free text', tools=(ADD, PATCH, DEEP))
    deltas = [event for event in await collect(engine(), turn) if isinstance(event, ToolCallDelta)]
    starts = [(delta.name, delta.kind, delta.namespace) for delta in deltas if delta.name]
    assert starts == [("add", "function", None), ("patch", "custom", None)]
    assert "".join(delta.arguments for delta in deltas if delta.index == 0) == '{"a": 1}'
    assert "".join(delta.arguments for delta in deltas if delta.index == 1) == "free text"
    deep = await collect(engine(), say("call:files.find {}", tools=(DEEP,)))
    assert any(isinstance(e, ToolCallDelta) and (e.name, e.namespace) == ("find", "files") for e in deep)
    assert deep[-1] == Finished("tool_calls")


async def test_a_tool_choice_is_obeyed() -> None:
    """A forced tool is called without being told; `none` calls nothing."""
    forced = say("hi", tools=(PATCH, ADD), tool_choice=ToolChoice("one", "add"))
    calls = [event.name for event in await collect(engine(), forced) if isinstance(event, ToolCallDelta) and event.name]
    assert calls == ["add"]
    barred = say("call:add {}", tools=(ADD,), tool_choice=ToolChoice("none"))
    assert (await collect(engine(), barred))[-1] == Finished("stop")


async def test_a_tool_result_is_answered_in_words() -> None:
    """After a tool's result nothing is called again, whatever it says."""
    result = Message("tool", (ToolResult("call_1", (Text("42"),)),))
    turn = Turn("turn_1", "chat", "m", messages=(Message("user", (Text("call:add {}"),)), result), tools=(ADD,))
    assert text_of(await collect(engine(), turn)) == "result: 42"


async def test_crashes_and_errors() -> None:
    """At piece 0 they are raised; later they are one `Failed` and the end."""
    with pytest.raises(EngineUnavailable):
        await collect(engine(), say("a b crash:0"))
    events = await collect(engine(), say("a b c crash:2"))
    assert text_of(events) == "a b"
    assert isinstance(events[-1], Failed)


async def test_a_stalled_turn_can_be_left() -> None:
    """A turn that is cancelled is counted, and no longer active."""
    fake = engine()
    task = asyncio.create_task(collect(fake, say("a b stall:1")))
    while not fake.active:  # noqa: ASYNC110 - in the same loop
        await asyncio.sleep(0)
    assert (fake.active, fake.cancelled) == (1, 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (fake.active, fake.cancelled) == (0, 1)
    await collect(fake, say("a"))
    assert fake.cancelled == 1
    assert [turn.id for turn in fake.turns] == ["turn_1", "turn_1"]


SAID = st.lists(
    st.sampled_from(["one", "猫", "é", "reason:why", "tokens:3", "call:add {}", "a\nb"]), min_size=1, max_size=6
)


@given(said=SAID, limit=st.none() | st.integers(1, 4), stream=st.booleans(), n=st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_the_server_says_what_the_engine_says(
    fake_url: str, said: list[str], limit: int | None, stream: bool, n: int
) -> None:
    """In process and over HTTP (through our codec) the same turn gives the same text, calls, usage and ends."""
    turn = say(" ".join(said), tools=(ADD,), stream=stream, sampling=Sampling(max_tokens=limit, n=n))

    async def both() -> list[list[Event]]:
        http = OpenAiHttpEngine(ModelConfig("m", engine="openai_http"), fake_url)
        try:
            return [await collect(engine(), turn), await collect(http, turn)]
        finally:
            await http.close()

    def told(events: list[Event]) -> Any:
        parts: dict[tuple[str, int], str] = {}
        for event in events:
            if isinstance(event, TextDelta | ReasoningDelta):
                key = (type(event).__name__, event.choice)
                parts[key] = parts.get(key, "") + event.text
            elif isinstance(event, ToolCallDelta):
                key = (f"call {event.index}", event.choice)
                parts[key] = parts.get(key, "") + (event.name or "") + event.arguments
        return parts, [event for event in events if isinstance(event, Usage | Finished)]

    here, there = asyncio.run(both())
    assert told(here) == told(there)


async def test_the_server_refuses_what_it_cannot_read() -> None:
    """Bad requests are 400 and the connection goes on serving."""
    server, port, stats = await fake_server.start(fake_server.Settings())
    url = f"http://127.0.0.1:{port}/v1"
    async with server, aiohttp.ClientSession() as session:
        for body in (
            b"{",
            b"[]",
            b'{"messages": []}',
            b'{"messages": [1]}',
            b'{"messages": [{"content": [1]}]}',
            b"\xff",
        ):
            async with session.post(url + "/chat/completions", data=body) as answer:
                assert answer.status == 400, body
        async with session.get(url + "/nothing") as answer:
            assert answer.status == 404
        assert (stats.connections, stats.active) == (1, 0)
