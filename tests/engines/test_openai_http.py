"""The HTTP engine against servers that behave badly."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.errors import (
    ContextTooLong,
    EngineFailed,
    EngineTimeout,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
)
from sekisho.core.events import Event, Failed, Finished, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from sekisho.core.turn import Image, Message, Text, Tool, Turn
from sekisho.engines import fake_server, openai_http, registry
from sekisho.engines.config import ModelConfig
from sekisho.engines.openai_http import OpenAiHttpEngine, upstream_key

TOOL = Tool("add", parameters={"type": "object"})
Answerer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
Against = Callable[..., Awaitable[OpenAiHttpEngine]]
PATIENCE_S = 60.0  # of what takes milliseconds, on a machine that may stand still for seconds
HI = b'{"choices":[{"index":0,"finish_reason":"stop","message":{"content":"hi"}}]}'
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(HI), HI)
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def say(text: str, **fields: Any) -> Turn:
    return Turn("turn_1", "chat", "m", messages=(Message("user", (Text(text),)),), **fields)


def config(**fields: Any) -> ModelConfig:
    return ModelConfig("m", engine="openai_http", **{"connect_timeout_s": PATIENCE_S, **fields})


def frame(text: str) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode({"choices": [{"index": 0, "delta": {"content": text}}]})


async def collect(engine: OpenAiHttpEngine, turn: Turn) -> list[Event]:
    return [event async for batch in engine.generate(turn) for event in batch]


@pytest.fixture
async def engine(fake_url: str) -> AsyncIterator[OpenAiHttpEngine]:
    engine = OpenAiHttpEngine(config(), fake_url)
    yield engine
    await engine.close()


@pytest.fixture
async def against(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Against]:
    """Makes an engine in front of a server whose connections are handled by a function."""
    servers, engines = [], []
    monkeypatch.setattr(openai_http, "_KEEPALIVE_S", PATIENCE_S)

    async def make(answer: Answerer, **fields: Any) -> OpenAiHttpEngine:
        servers.append(await asyncio.start_server(answer, "127.0.0.1", 0))
        port = servers[-1].sockets[0].getsockname()[1]
        engines.append(OpenAiHttpEngine(config(**fields), f"http://127.0.0.1:{port}/v1"))
        return engines[-1]

    yield make
    for engine in engines:
        await engine.close()
    for server in servers:
        server.close()
        await server.wait_closed()


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
    return head + await reader.readexactly(int(fields.get(b"content-length", b"0")))


def told(events: list[Event]) -> tuple[object, ...]:
    """What was said, whatever the portions."""
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    thought = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    calls: dict[int, list[str]] = {}
    for event in events:
        if isinstance(event, ToolCallDelta):
            calls.setdefault(event.index, []).extend(filter(None, (event.name, event.arguments)))
    ends = [event for event in events if isinstance(event, Usage | Finished)]
    return text, thought, {index: "".join(parts) for index, parts in calls.items()}, ends


WORDS = st.text(st.sampled_from('ab 猫é😀\n"\\:'), max_size=20).filter(lambda text: not text.isspace())


@given(
    text=WORDS,
    split=st.integers(1, 300),
    crlf=st.booleans(),
    comments=st.booleans(),
    done=st.booleans(),
    call=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_bytes_may_be_cut_anywhere(
    fake_url: str, text: str, split: int, crlf: bool, comments: bool, done: bool, call: bool
) -> None:
    """Any split, either line end, comments between, [DONE] or not: the same events as in one piece."""
    asked = f'call:add {{"a": "{split}"}}' if call else f"{text} reason:why"
    turn = say(asked, stream=True, tools=(TOOL,))
    directives = f" split:{split} crlf:{crlf:d} comments:{comments:d} nodone:{not done:d}"
    shaped = say(asked + directives, stream=True, tools=(TOOL,))

    async def both() -> tuple[list[Event], list[Event]]:
        engine = OpenAiHttpEngine(config(), fake_url)
        try:
            return await collect(engine, turn), await collect(engine, shaped)
        finally:
            await engine.close()

    plain, cut = asyncio.run(both())
    shorter = [msgspec.structs.replace(e, input_tokens=e.input_tokens - 4) if isinstance(e, Usage) else e for e in cut]
    assert told(shorter) == told(plain)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("crash:0", EngineUnavailable),
        ("error:0", EngineFailed),
        ("status:503", EngineUnavailable),
        ("status:429", Overloaded),
        ("status:401", EngineUnavailable),
        ("status:404", EngineUnavailable),
        ("status:400", InvalidRequest),
        ("x " * 5000, ContextTooLong),
        ("delay:999", EngineTimeout),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_trouble_before_the_first_event_is_raised(
    fake_url: str, text: str, kind: type[Exception], stream: bool
) -> None:
    """Each kind of refusal is its own error, before anything was said."""
    engine = OpenAiHttpEngine(config(first_byte_timeout_s=0.3 if kind is EngineTimeout else PATIENCE_S), fake_url)
    try:
        with pytest.raises(kind):
            await collect(engine, say(f"a b {text}", stream=stream))
    finally:
        await engine.close()


@pytest.mark.parametrize("trouble", ["crash:2", "error:2", "silence"])
async def test_trouble_in_the_middle_is_one_failed_with_an_id(
    engine: OpenAiHttpEngine, against: Against, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    """What was said stays said; then comes one `Failed`, whose id is in the log."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(SSE + frame("a") + frame(" b"))  # in one read: only what follows is waited for
        await reader.read()
        writer.close()

    code = "engine_failed"
    if trouble == "silence":
        engine, code = await against(silent, idle_timeout_s=0.1), "engine_timeout"
    with caplog.at_level(logging.WARNING):
        events = await collect(engine, say(f"a b c {trouble} pace:0.01", stream=True))
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "a b"
    (failed,) = (event for event in events if isinstance(event, Failed | Finished))
    assert isinstance(failed, Failed)
    assert failed is events[-1]
    assert failed.code == code
    assert failed.id in caplog.text


async def test_a_broken_whole_answer_is_raised(engine: OpenAiHttpEngine) -> None:
    """Not streaming, everything that breaks is raised."""
    for text, kind in (("crash:2", EngineUnavailable), ("error:2", EngineFailed)):
        with pytest.raises(kind):
            await collect(engine, say(f"a b c {text}"))


async def test_a_slow_reader_is_not_taken_for_a_silent_engine(
    against: Against, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time in which nobody asks for the next batch does not count against the engine."""
    taken, looked, look = asyncio.Event(), asyncio.Event(), openai_http.IdleWatch._look

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(SSE + frame("a"))
        await taken.wait()
        writer.write(frame(" b") + END)
        writer.close()

    def seen(watch: Any) -> None:
        look(watch)
        looked.set()

    monkeypatch.setattr(openai_http.IdleWatch, "_look", seen)
    engine = await against(answer, idle_timeout_s=0.05)
    events: list[Event] = []
    async for batch in engine.generate(say("a", stream=True)):
        if not events:
            (connection,) = engine._http._all
            taken.set()
            while not connection.is_complete:  # noqa: ASYNC110 - the rest is to be here before anybody waits for it
                await asyncio.sleep(0.001)
            looked.clear()
            await looked.wait()
        events += batch
    assert told(events)[0] == "a b"
    assert isinstance(events[-1], Finished)


async def test_connections_are_kept_alive(
    engine: OpenAiHttpEngine, fake_stats: Callable[[], Awaitable[dict[str, int]]]
) -> None:
    """Turns one after the other share a connection, streamed to the end or whole."""
    before = (await fake_stats())["connections"]
    for number in range(10):
        await collect(engine, say("a b", stream=number % 2 == 0))
    assert (await fake_stats())["connections"] <= before + 1


async def test_a_connection_that_went_stale_is_tried_once_more(against: Against) -> None:
    """A kept-alive connection that the engine closes under our request costs nothing; a fresh one is not retried."""
    seen: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(0)
        while len(seen) < 4:
            await request_of(reader)
            seen[-1] += 1
            if seen[-1] == 2 or len(seen) == 3:  # the second request of a connection, and all of the third connection
                break
            writer.write(WHOLE)
        writer.close()

    engine = await against(answer)
    assert told(await collect(engine, say("a")))[0] == "hi"
    assert told(await collect(engine, say("a")))[0] == "hi"
    assert seen == [2, 1]
    with pytest.raises(EngineUnavailable):
        await collect(engine, say("a"))
    assert seen == [2, 2, 1]


async def test_a_server_that_says_nothing_is_a_timeout(against: Against) -> None:
    """A connection that is taken and never answered ends within the first-byte timeout, and is closed."""
    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        await reader.read()
        gone.set()
        writer.close()

    engine = await against(answer, first_byte_timeout_s=0.3)
    for stream in (True, False):
        gone.clear()
        with pytest.raises(EngineTimeout):
            await collect(engine, say("a", stream=stream))
        await asyncio.wait_for(gone.wait(), PATIENCE_S)


@pytest.mark.parametrize(
    "body",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {not json}\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
        b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
    ids=["bad json", "empty", "no choices", "html", "redirect", "not http"],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_nonsense_is_an_error_of_the_engine(against: Against, body: bytes, stream: bool) -> None:
    """Whatever else listens there, the caller gets an error of ours and never an empty success."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(body)
        writer.close()

    engine = await against(answer)
    with pytest.raises((EngineFailed, EngineUnavailable)):
        await collect(engine, say("a", stream=stream))


async def test_a_server_that_does_not_stream_is_understood(against: Against) -> None:
    """A JSON answer to a streaming request is read as what it is."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(WHOLE)
        writer.close()

    events = await collect(await against(answer), say("a", stream=True))
    assert told(events)[0] == "hi"


async def test_the_key_goes_to_the_engine_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    """The right key is let in; a wrong one is our trouble (503), and no key is ever logged."""
    server, port, _ = await fake_server.start(fake_server.Settings(key="sk-right"))
    async with server:
        for key in ("sk-right", "sk-wrong"):
            engine = OpenAiHttpEngine(config(), f"http://127.0.0.1:{port}/v1", api_key=key)
            with caplog.at_level(logging.DEBUG):
                if key == "sk-right":
                    assert isinstance((await collect(engine, say("a")))[-1], Finished)
                else:
                    with pytest.raises(EngineUnavailable):
                        await collect(engine, say("a"))
                    assert (await engine.health()).state == "down"
            await engine.close()
    assert not any(key in caplog.text for key in ("sk-right", "sk-wrong"))


async def test_asking_for_health_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """An engine that is down is asked again and again; a turn that meets it is logged, the questions are not."""
    engine = OpenAiHttpEngine(config(), "http://127.0.0.1:1/v1")
    with caplog.at_level(logging.INFO):
        assert (await engine.health()).state == "down"
        assert not caplog.records
        with pytest.raises(EngineUnavailable) as caught:
            await collect(engine, say("a"))
        assert caught.value.id in caplog.text
    await engine.close()


async def test_a_bare_address_means_v1(fake_url: str) -> None:
    """`http://host:port`, as people type it, is as good as with `/v1`."""
    engine = OpenAiHttpEngine(config(), fake_url.removesuffix("/v1") + "/")
    assert isinstance((await collect(engine, say("a")))[-1], Finished)
    await engine.close()


async def test_a_large_request_passes(engine: OpenAiHttpEngine) -> None:
    """A body of some megabytes (an image) is sent whole and without a warning."""
    picture = Image("data:image/png;base64," + "A" * 3_000_000)
    turn = Turn("turn_1", "chat", "m", messages=(Message("user", (Text("what is this"), picture)),))
    assert told(await collect(engine, turn))[0] == "what is this"


def test_the_upstream_key_comes_from_the_environment_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One of the two places, and a missing key is told by the place's name."""
    monkeypatch.setenv("UPSTREAM", "sk-a")
    (tmp_path / "key").write_text("sk-b\n")
    assert upstream_key(config(api_key_env="UPSTREAM")) == "sk-a"
    assert upstream_key(config(api_key_file=str(tmp_path / "key"))) == "sk-b"
    assert upstream_key(config()) is None
    with pytest.raises(EngineUnavailable, match="NOT_THERE"):
        upstream_key(config(api_key_env="NOT_THERE"))
    with pytest.raises(EngineUnavailable, match="api_key_file"):
        upstream_key(config(api_key_file=str(tmp_path / "none")))


def test_the_registry_names_what_it_has() -> None:
    """Each engine is made from its settings; what is missing, and an unknown name, are told."""
    assert registry.create(ModelConfig("m", engine="fake")).name == "m"
    assert registry.create(config(url="http://127.0.0.1:1/v1")).name == "m"
    assert registry.create(ModelConfig("m"), "http://127.0.0.1:1/v1", "k").name == "m"
    with pytest.raises(ValueError, match="needs the address of a worker"):
        registry.create(ModelConfig("m"))
    with pytest.raises(ValueError, match="needs `url`"):
        registry.create(config())
    with pytest.raises(ValueError, match="fake, llama_cpp, openai_http"):
        registry.create(ModelConfig("m", engine="vllm"))  # type: ignore[arg-type]


async def test_batches_follow_the_reads(against: Against) -> None:
    """Tokens that come one at a time are passed on one at a time."""
    taken = asyncio.Semaphore(0)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(SSE)
        for number in range(5):
            writer.write(frame(f"{number}"))
            await taken.acquire()
        writer.write(END)
        writer.close()

    said: list[str] = []
    async for batch in (await against(answer)).generate(say("a", stream=True)):
        if words := [event.text for event in batch if isinstance(event, TextDelta)]:
            said.append("".join(words))
            taken.release()
    assert said == ["0", "1", "2", "3", "4"]
