"""The Responses API through the official `openai` SDK: items, state, tools, streams."""

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from gateway_harness import LiveGateway
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from strictness import check

from sekisho.engines.fake import FakeEngine
from sekisho.store import KeySpec

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
SHELL: Any = {"type": "custom", "name": "shell", "description": "Runs a line."}
EVENTS: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)


class City(pydantic.BaseModel):
    name: str
    population: int


@pytest.fixture(scope="module")
def client(live: LiveGateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key=live.key, max_retries=0, timeout=30) as client:
        yield client


def create(client: OpenAI, text: Any, **more: Any) -> Response:
    response: Response = client.responses.create(model="fake", input=text, **more)
    check(response)
    return response


def streamed(client: OpenAI, text: Any, **more: Any) -> list[Any]:
    """The raw events of a stream, each valid in the SDK's own types and numbered without a gap."""
    events = list(client.responses.create(model="fake", input=text, stream=True, **more))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        EVENTS.validate_python(event.model_dump(by_alias=True, exclude_unset=True))
        check(event)
    return events


def test_create(client: OpenAI) -> None:
    """A whole response, with usage and every field that the type asks for."""
    response = create(client, "hello 世界", instructions="be brief", metadata={"team": "a"})
    assert (response.status, response.output_text) == ("completed", "hello 世界")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (4, 2, 6)
    assert (response.instructions, response.metadata, response.error) == ("be brief", {"team": "a"}, None)


def test_stream_events(client: OpenAI) -> None:
    """Created, in progress, item, part, deltas, and the same backwards, then completed with all of it."""
    events = streamed(client, "tokens:3")
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[-1].response.output_text == "word1 word2 word3"
    assert events[-1].response.output[0].id == events[2].item.id == events[4].item_id


def test_stream_helper(client: OpenAI) -> None:
    """The SDK's accumulator agrees with the final response."""
    with client.responses.stream(model="fake", input="hello there") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    check(final)
    assert text == final.output_text == "hello there"


async def test_async(live: LiveGateway) -> None:
    """The asynchronous client creates, streams and retrieves."""
    async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key=live.key, max_retries=0) as client:
        response = await client.responses.create(model="fake", input="hello there")
        check(response)
        assert (await client.responses.retrieve(response.id)).output_text == "hello there"
        async with client.responses.stream(model="fake", input="hello there") as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
    assert (kinds[-1], final.output_text) == ("response.completed", "hello there")


@pytest.mark.parametrize("stream", [True, False])
def test_tools_round_trip(client: OpenAI, stream: bool) -> None:
    """Two function calls and one of a custom tool, answered by their call ids, with the items handed back as given."""
    ask = 'call:weather {"city":"京都"} call:weather {"city":"Nara"} call:shell ls -l'
    tools = [WEATHER, SHELL]
    if stream:
        events = streamed(client, ask, tools=tools)
        asked = events[-1].response
        done = [event.item.id for event in events if event.type == "response.output_item.done"]
        assert done == [item.id for item in asked.output], "items are done in the order of the output"
        words = [event.arguments for event in events if event.type == "response.function_call_arguments.done"]
        assert words == [item.arguments for item in asked.output[:2]]
        assert [e.input for e in events if e.type == "response.custom_tool_call_input.done"] == ["ls -l"]
    else:
        asked = create(client, ask, tools=tools)
    assert [item.type for item in asked.output] == ["function_call", "function_call", "custom_tool_call"]
    assert [json.loads(item.arguments)["city"] for item in asked.output[:2]] == ["京都", "Nara"]
    results = [
        {"type": f"{item.type}_output", "call_id": item.call_id, "output": f"dry {number}"}
        for number, item in enumerate(asked.output)
    ]
    history = [{"role": "user", "content": ask}, *(item.to_dict() for item in asked.output), *results]
    assert create(client, history, tools=tools, store=False).output_text == "result: dry 2"
    assert create(client, results, tools=tools, previous_response_id=asked.id).output_text == "result: dry 2"


def test_namespaced_tools_keep_name_and_namespace_apart(client: OpenAI) -> None:
    """A call of a nested tool says its name and its namespace, never the two joined."""
    space: Any = {"type": "namespace", "name": "home", "description": "Things at home.", "tools": [WEATHER]}
    (call,) = create(client, 'call:home.weather {"city":"x"}', tools=[space]).output
    assert call.type == "function_call"
    assert (call.name, call.namespace) == ("weather", "home")


def test_structured_output(client: OpenAI) -> None:
    """`parse` sends a strict schema and gives the caller's type."""
    text = '{"name":"Kyoto","population":1450000}'
    parsed = client.responses.parse(model="fake", input=text, text_format=City)
    assert parsed.output_parsed == City(name="Kyoto", population=1_450_000)
    with client.responses.stream(model="fake", input=text, text_format=City) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed


def test_state(client: OpenAI, live: LiveGateway) -> None:
    """A chain of responses is told to the engine whole; each link can be read back, listed and forgotten."""
    first = create(client, "my word is amber")
    second = create(client, "and birch", previous_response_id=first.id)
    third = create(client, "which words", previous_response_id=second.id)
    engine = live.gateway.roster.entries["fake"].engine
    assert isinstance(engine, FakeEngine)
    said = [part.text for message in engine.turns[-1].messages for part in message.parts if hasattr(part, "text")]
    assert said == ["my word is amber", "my word is amber", "and birch", "and birch", "which words"]
    again = client.responses.retrieve(third.id)
    check(again)
    assert again.to_dict() == third.to_dict()
    (item,) = client.responses.input_items.list(third.id)
    check(item)
    assert item.to_dict()["content"] == [{"type": "input_text", "text": "which words"}]
    client.responses.delete(second.id)
    for gone in (lambda: client.responses.retrieve(second.id), lambda: client.responses.delete(second.id)):
        with pytest.raises(openai.NotFoundError):
            gone()
    with pytest.raises(openai.NotFoundError):
        create(client, "x", previous_response_id=second.id)
    _, stranger = live.create_key(KeySpec(name="stranger"))
    for act in (client.with_options(api_key=stranger).responses.retrieve,) * 2:
        with pytest.raises(openai.NotFoundError):
            act(first.id)


def test_input_items_are_paged(client: OpenAI) -> None:
    """The SDK's paging walks through all items, in both orders."""
    items: Any = [{"role": "user", "content": f"line {number}"} for number in range(5)]
    response = create(client, items)
    for order in ("asc", "desc"):
        page = client.responses.input_items.list(response.id, limit=2, order=order)  # type: ignore[arg-type]
        texts = [item.to_dict()["content"][0]["text"] for item in page]  # type: ignore[index]
        assert (texts if order == "asc" else texts[::-1]) == [f"line {number}" for number in range(5)]


def test_store_false_keeps_nothing(client: OpenAI) -> None:
    """What was not to be stored cannot be read or continued."""
    response = create(client, "secret", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_background_and_cancel(client: OpenAI) -> None:
    """A background response is polled until it is done; a stalled one is cancelled and stays so."""
    response = create(client, "hello there", background=True)
    deadline = time.monotonic() + 60
    while response.status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
        response = client.responses.retrieve(response.id)
    check(response)
    assert (response.status, response.output_text) == ("completed", "hello there")
    stalled = create(client, "stall:1 a b", background=True)
    cancelled = client.responses.cancel(stalled.id)
    check(cancelled)
    assert cancelled.status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(response.id)
    time.sleep(0.2)  # what the cancelled turn still writes must not bring it back
    assert client.responses.retrieve(stalled.id).status == "cancelled"


def test_sealed_reasoning_goes_back(client: OpenAI, live: LiveGateway) -> None:
    """Without a store the client keeps the thinking sealed, hands it back, and the engine reads it again."""
    include: Any = ["reasoning.encrypted_content"]
    response = create(client, "reason:hmm so", include=include, store=False, reasoning={"summary": "auto"})
    thought, message = response.output
    assert thought.type == "reasoning"
    sealed = thought.encrypted_content
    assert sealed
    assert "hmm" not in sealed
    history: Any = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "id": thought.id, "summary": [], "encrypted_content": sealed},
        message.to_dict(),
        {"role": "user", "content": "b"},
    ]
    assert create(client, history, include=include, store=False).output_text == "b"
    engine = live.gateway.roster.entries["fake"].engine
    assert isinstance(engine, FakeEngine)
    assert [getattr(part, "text", None) for part in engine.turns[-1].messages[1].parts] == ["hmm", "so"]
    events = streamed(client, "reason:hmm so", include=include, store=False)
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]
    assert events[-1].response.output[0].encrypted_content


def test_incomplete(client: OpenAI) -> None:
    """An answer that was cut off says so, whole and streamed."""
    response = create(client, "a b c", max_output_tokens=2)
    assert (response.status, response.output_text) == ("incomplete", "a b")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    events = streamed(client, "a b c", max_output_tokens=2)
    assert (events[-1].type, events[-1].response.status) == ("response.incomplete", "incomplete")


def test_errors(client: OpenAI) -> None:
    """Wrong requests raise before a stream begins, with the parameter named."""
    with pytest.raises(openai.NotFoundError) as unknown:
        create(client, "x", previous_response_id="resp_nothing")
    assert unknown.value.param == "previous_response_id"
    with pytest.raises(openai.BadRequestError) as hosted:
        create(client, "x", tools=[{"type": "code_interpreter", "container": {"type": "auto"}}])
    assert (hosted.value.code, hosted.value.param) == ("unsupported_parameter", "tools[0].type")
    with pytest.raises(openai.BadRequestError) as orphan:
        create(client, [{"type": "function_call_output", "call_id": "call_none", "output": "x"}])
    assert orphan.value.param
    with pytest.raises(openai.BadRequestError) as unheard:  # its events would reach nobody
        client.responses.create(model="fake", input="x", background=True, stream=True)
    assert unheard.value.param == "stream"
    with pytest.raises(openai.APIStatusError) as down:
        client.responses.create(model="fake", input="status:503 x", stream=True)
    assert down.value.status_code == 503
