"""The worker process of the torch engine, over HTTP, with a tiny random model."""

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from torch_worker_harness import GREEDY, events, say, text

from sekisho.core.errors import InvalidRequest, RequestError, UnsupportedParameter
from sekisho.core.events import Finished, TextDelta, Usage
from sekisho.core.turn import Image, Message, OutputFormat, Sampling, Text, Tool, ToolCall, ToolChoice, ToolResult, Turn
from sekisho.engines.config import ModelConfig
from sekisho.engines.torch_engine import TorchEngine
from sekisho.kv import KVPolicy

pytestmark = [pytest.mark.kv, pytest.mark.timeout(300)]  # PyTorch may take its time to load


@pytest.fixture
async def session(torch_engine: TorchEngine, torch_worker_address: tuple[str, str, Path]) -> AsyncIterator[Any]:
    """A client with the key, for what the engine would not send."""
    url, key, _ = torch_worker_address
    root = url.removesuffix("/v1")
    async with aiohttp.ClientSession(root, headers={"Authorization": f"Bearer {key}"}) as client:
        yield client


async def test_the_worker_answers_nobody_without_the_key(
    torch_engine: TorchEngine, torch_worker_address: tuple[str, str, Path]
) -> None:
    """401 from every route, known or not; `/health` alone tells everybody that the model is there."""
    root = torch_worker_address[0].removesuffix("/v1")
    routes = [("GET", "/v1/models"), ("GET", "/kv"), ("PUT", "/kv/policy"), ("POST", "/tokenize"), ("GET", "/other")]
    routes += [("POST", f"/v1/{each}") for each in ("chat/completions", "completions", "embeddings")]
    routes += [("POST", "/v1/chat/completions/input_tokens")]
    async with aiohttp.ClientSession(root) as client:
        for method, path in routes:
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                async with client.request(method, path, headers=headers, json={}) as answer:
                    assert answer.status == 401, path
        async with client.get("/health") as answer:
            assert (answer.status, await answer.json()) == (200, {"status": "ok"})


async def test_eight_streams_through_the_worker_say_what_each_says_alone(
    torch_config: ModelConfig, torch_worker_address: tuple[str, str, Path], torch_engine: TorchEngine
) -> None:
    """Streamed or whole, long or short, all at once: greedy texts are those that came one by one."""
    turns = [say("one two " * (1 + 20 * each), stream=each % 2 == 0) for each in range(8)]
    alone = [text(await events(torch_engine, turn)) for turn in turns]
    together = await asyncio.gather(*(events(torch_engine, turn) for turn in turns))
    assert [text(each) for each in together] == alone
    assert len(set(alone)) > 4


async def test_a_stream_holds_no_half_characters(session: aiohttp.ClientSession) -> None:
    """Each frame is JSON, in the order role, text, reason, usage; the model's bytes that are no text come as
    replacement characters only where it really ended or went on with something else."""
    body = {"messages": [{"role": "user", "content": "漢字"}], "max_tokens": 60, "seed": 3, "stream": True}
    body |= {"stream_options": {"include_usage": True}, "ignore_eos": True}
    async with session.post("/v1/chat/completions", json=body) as answer:
        frames = [line.removeprefix("data: ") for line in (await answer.text()).split("\n\n") if line]
    assert frames[-1] == "[DONE]"
    first, *middle, last, usage = [json.loads(frame) for frame in frames[:-1]]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(frame["choices"][0]["finish_reason"] is None for frame in middle)
    assert last["choices"][0]["finish_reason"] == "length"
    assert usage["usage"]["completion_tokens"] == 60
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    whole = "".join(frame["choices"][0]["delta"].get("content", "") for frame in middle)
    async with session.post("/v1/chat/completions", json=body | {"stream": False}) as answer:
        assert (await answer.json())["choices"][0]["message"]["content"] == whole


@pytest.mark.parametrize("stream", [True, False])
async def test_logprobs_reach_the_caller(torch_engine: TorchEngine, stream: bool) -> None:
    """One entry a token, each with as many alternatives as were asked for, in chat and in raw completions."""
    sampling = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True, logprobs=True, top_logprobs=2)
    raw = Turn("turn_1", "completions", "m", prompts=("once",), sampling=sampling, stream=stream)
    for turn in (say("hello", sampling, stream=stream), raw):
        noted = [
            each
            for event in await events(torch_engine, turn)
            if isinstance(event, TextDelta)
            for each in event.logprobs
        ]
        assert len(noted) == 6
        # The old form is a table by text: two tokens that are parts of characters look the same there.
        assert all(1 <= len(each.top_logprobs) <= 2 and each.logprob <= 0 for each in noted)


async def test_stop_strings_and_their_names_reach_the_caller(torch_engine: TorchEngine) -> None:
    """The text ends before the stop string, and the end names it."""
    whole = text(await events(torch_engine, say("hello")))
    stop = whole[4:7]
    sampling = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True, stop=(stop,))
    for stream in (True, False):
        said = await events(torch_engine, say("hello", sampling, stream=stream))
        assert text(said) == whole[: whole.index(stop)]
        assert said[-1] == Finished("stop", stop_sequence=stop)


async def test_tokens_may_be_a_prompt(torch_engine: TorchEngine) -> None:
    """Ids of tokens are taken as they are, and counted."""
    turn = Turn("turn_1", "completions", "m", prompts=((7, 8, 9),), sampling=GREEDY)
    said = await events(torch_engine, turn)
    assert [each.input_tokens for each in said if isinstance(each, Usage)] == [3]
    assert await torch_engine.count_tokens(turn) == 3


async def test_a_tools_result_reaches_the_template(torch_engine: TorchEngine) -> None:
    """A conversation with a call and its result is answered; a call cannot be forced."""
    tool = Tool("weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
    call = Message("assistant", (ToolCall("c1", "weather", '{"city": "Kyoto"}'),))
    result = Message("tool", (ToolResult("c1", (Text("rain"),)),))
    turn = Turn("turn_1", "chat", "m", messages=(*say("?").messages, call, result), tools=(tool,), sampling=GREEDY)
    assert text(await events(torch_engine, turn))
    forced = Turn("turn_1", "chat", "m", messages=say("?").messages, tools=(tool,), tool_choice=ToolChoice("required"))
    with pytest.raises(RequestError, match="tool_choice"):
        await events(torch_engine, forced)


async def test_what_the_engine_cannot_do_is_the_callers_error(torch_engine: TorchEngine) -> None:
    """Schemas and pictures are refused with the reason, before any event."""
    schema = OutputFormat("json_schema", "answer", {"type": "object"})
    with pytest.raises(InvalidRequest, match="schema"):
        await events(torch_engine, say("hi", format=schema))
    picture = Message("user", (Text("what is this"), Image("data:image/png;base64,AAAA")))
    with pytest.raises(UnsupportedParameter, match="images"):
        await events(torch_engine, Turn("turn_1", "chat", "m", messages=(picture,)))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"logprobs": True, "top_logprobs": 50}, "top_logprobs"),
        ({"grammar": "root ::= x"}, "grammar"),
        ({"guided_json": {}}, "guided_json"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs"),
        ({"messages": []}, "messages"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"repetition_penalty": 1e-38}, "repetition_penalty"),
        ({"messages": [{"content": "no role"}]}, "messages"),
    ],
)
async def test_a_field_that_cannot_be_is_named(
    session: aiohttp.ClientSession, fields: dict[str, Any], param: str
) -> None:
    """400 with the name of the field."""
    body = {"messages": [{"role": "user", "content": "hi"}]} | fields
    async with session.post("/v1/chat/completions", json=body) as answer:
        told = (await answer.json())["error"]
    assert (answer.status, told["param"], told["type"]) == (400, param, "invalid_request_error")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": [None]}),
        ("/v1/embeddings", {"input": ["a", 3]}),
        ("/v1/embeddings", {"input": []}),
        ("/v1/completions", {"prompt": [True]}),
        ("/v1/completions", {"prompt": "word " * 400_000}),
    ],
)
async def test_an_input_that_cannot_be_is_the_callers_error(
    session: aiohttp.ClientSession, path: str, body: dict[str, Any]
) -> None:
    """400, never a failure of the engine."""
    headers = {"Content-Type": "application/json"}
    async with session.post(path, data=io.BytesIO(json.dumps(body).encode()), headers=headers) as answer:
        assert answer.status == 400, await answer.text()


async def test_a_malformed_request_leaves_no_secret_in_the_log(
    torch_engine: TorchEngine, torch_worker_address: tuple[str, str, Path]
) -> None:
    """Neither a key nor a prompt, nor a traceback, from requests that HTTP itself refuses."""
    url, _, log = torch_worker_address
    port = int(url.removesuffix("/v1").rpartition(":")[2])
    for request in (
        b"GET /kv HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer SECRETKEY\x01\r\n\r\n",
        b"POST /kv HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nSECRETPROMPT is here\r\n0\r\n\r\n",
        b"GET /kv HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \xff\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        await writer.drain()
        writer.write_eof()
        said = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert not said or b" 40" in said.split(b"\r\n")[0], said
    told = log.read_text()
    assert "SECRET" not in told
    assert "Traceback" not in told


async def test_an_address_that_is_none_is_told(session: aiohttp.ClientSession) -> None:
    """404 and 405 in OpenAI's form, too."""
    for method, path, status in (("GET", "/v1/nothing", 404), ("PUT", "/v1/models", 405)):
        async with session.request(method, path) as answer:
            assert answer.status == status
            assert (await answer.json())["error"]["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"messages": 5}', b'{"messages": [{"role": "user"}], "top_k": "x"}']
)
async def test_a_body_that_is_none_is_told(session: aiohttp.ClientSession, body: bytes) -> None:
    """No traceback for what cannot be read: 400 in OpenAI's form."""
    async with session.post("/v1/chat/completions", data=body) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["message"]


async def test_the_policy_changes_while_it_serves(torch_engine: TorchEngine) -> None:
    """Named fields change and are told, old and new; what is wrong is refused with its name and changes nothing; open
    streams go on."""
    endless, ending = (
        say("word " * 300, Sampling(max_tokens=most, temperature=0.0, ignore_eos=True), stream=True)
        for most in (6000, 200)
    )
    stream, other = torch_engine.generate(endless), torch_engine.generate(ending)
    await anext(stream)
    await anext(other)
    before = await torch_engine.kv_state()
    assert before["running"] >= 1  # the endless one; the other may have come to its end
    assert before["tokens"] > 1000
    told = await torch_engine.change_kv_policy({"budget": 0.15, "level_thresholds": {"L1_int8": 0.9}})
    assert told["changed"]["budget"] == [KVPolicy().budget, 0.15]
    assert told["policy"]["level_thresholds"] == {"L1_int8": 0.9, "L2_int4": 0.5, "L3_evict": 0.3}
    after = await torch_engine.kv_state()
    assert after["cache"]["bytes_used"] < before["cache"]["bytes_used"]
    for wrong, field in (({"budget": 7}, "budget"), ({"level_thresholds": {"L1_int8": 3}}, "level_thresholds.L1_int8")):
        with pytest.raises(RequestError) as caught:
            await torch_engine.change_kv_policy({"recent_window": 32, **wrong})
        assert caught.value.param == field
    with pytest.raises(RequestError, match="bugdet"):
        await torch_engine.change_kv_policy({"bugdet": 0.5})
    assert (await torch_engine.kv_state())["policy"] == told["policy"]
    rest = [event async for batch in other for event in batch]
    assert rest[-1] == Finished("length")
    said = 0
    while said < 20:
        said += sum(isinstance(event, TextDelta) for event in await anext(stream))
    await stream.aclose()
    async with asyncio.timeout(60):
        while (await torch_engine.kv_state())["running"]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    old = before["policy"]
    assert (await torch_engine.change_kv_policy(old))["policy"] == old


async def test_counts_follow_the_template(torch_engine: TorchEngine) -> None:
    """Token counts include what the template makes of system messages."""
    short = say("hi")
    long = Turn("turn_1", "chat", "m", messages=(Message("system", (Text("be kind"),)), *short.messages))
    assert await torch_engine.count_tokens(long) > await torch_engine.count_tokens(short)
