"""The lean HTTP client, against bytes on a real socket."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_port import kept_port

from sekisho.engines import http_client
from sekisho.engines.http_client import Broken, HttpClient, NotConnected, Response, Silent

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
PATIENCE_S = 60.0  # of what takes milliseconds, on a machine that may stand still for seconds


async def request_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
    return head + await reader.readexactly(int(fields[b"content-length"]))


class Served:
    """A server whose connections are handled by a function, and a client for it."""

    def __init__(self, answer: Answer, **settings: float) -> None:
        self._answer = answer
        self._settings = {"connect_timeout_s": PATIENCE_S, "keepalive_s": PATIENCE_S} | settings
        self.connections = 0

    async def __aenter__(self) -> "Served":
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            try:
                await self._answer(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass  # the client went away, as some of these tests want
            finally:
                writer.close()

        self._server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.client = HttpClient(f"http://127.0.0.1:{port}/v1", {"X-Test": "yes"}, **self._settings)  # type: ignore[arg-type]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        self._server.close()
        await self._server.wait_closed()

    async def send(self, body: bytes = b"") -> Response:
        return await self.client.send("POST", "/v1/x", body, PATIENCE_S)

    async def until_idle(self, count: int) -> None:
        """As many connections wait for a next request."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.client._idle) != count:  # noqa: ASYNC110 - a client tells nobody
                await asyncio.sleep(0.001)


def framed(body: bytes, frame: str) -> bytes:
    """The body as an answer, by length, in chunks, or up to the end of the connection."""
    if frame == "length":
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    if frame == "chunks":
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\nContent-Type: x\r\n\r\n" + body


@given(
    body=st.binary(max_size=60),
    frame=st.sampled_from(["length", "chunks", "end"]),
    portions=st.lists(st.integers(1, 40), max_size=6),
    before=st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]),
)
@settings(max_examples=40, deadline=None)
def test_the_body_does_not_depend_on_the_portions(body: bytes, frame: str, portions: list[int], before: bytes) -> None:
    """Any framing in any portions, after an interim answer or not, gives the body."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        data = before + framed(body, frame)
        for size in portions:
            writer.write(data[:size])
            data = data[size:]
            await asyncio.sleep(0)
        writer.write(data)
        if frame != "end":
            await reader.read()

    async def read() -> bytes:
        async with Served(answer) as served:
            response = await served.send()
            assert response.status == 200
            data = await response.read()
            assert await response.read_any() == b""
            return data

    assert asyncio.run(read()) == body


@given(cut=st.integers(0, 200), frame=st.sampled_from(["length", "chunks"]))
@settings(max_examples=30, deadline=None)
def test_an_answer_that_is_cut_off_is_broken(cut: int, frame: str) -> None:
    """An answer that ends too early, at whatever byte, is never taken for a whole one."""
    data = framed(b"some words of an answer", frame)
    cut %= len(data)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(data[:cut])

    async def read() -> None:
        async with Served(answer) as served:
            with pytest.raises(Broken):
                await (await served.send()).read()

    asyncio.run(read())


async def test_the_request_is_sent_as_it_is_meant() -> None:
    """Method, path, host, our headers, and the body by its length."""
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await request_of(reader))
        writer.write(framed(b"", "length"))

    async with Served(answer) as served:
        (await served.send(b"hello")).let_go()
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nX-Test: yes\r\nContent-Length: 5" in head
    assert body == b"hello"


async def test_a_connection_serves_again_unless_it_may_not() -> None:
    """Kept alive after a whole answer; not after `Connection: close`, half an answer, or too long a rest."""
    answers = [framed(b"a", "chunks"), framed(b"b", "length"), framed(b"c", "length")]
    answers[1] = answers[1].replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_of(reader)
            writer.write(answers.pop(0) if answers else framed(b"x" * 100, "length")[:-1])

    async with Served(answer) as served:
        assert [await (await served.send()).read() for _ in range(2)] == [b"a", b"b"]
        assert served.connections == 1
        assert await (await served.send()).read() == b"c"
        assert served.connections == 2
        for connection in served.client._idle:
            connection.idle_since_s -= PATIENCE_S
        half = await served.send()
        assert served.connections == 3
        assert await half.read_any()
        half.let_go()
        half.let_go()
        (await served.send()).let_go()
        assert served.connections == 4


async def test_nobody_and_nothing_said() -> None:
    """Refused is `NotConnected`; connected without an answer is `Silent`, within the time given."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with Served(answer) as served:
        with pytest.raises(Silent):
            await served.client.send("POST", "/", b"", 0.05)
    nobody = HttpClient(f"http://127.0.0.1:{kept_port()}", {})
    with pytest.raises(NotConnected):
        await nobody.send("POST", "/", b"", PATIENCE_S)


async def test_a_fast_sender_does_not_fill_the_memory() -> None:
    """While nobody reads, the client stops taking bytes: a sender of 64 MB is held back after a few."""
    sent = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 26))
        while sent < 1 << 26:
            writer.write(b"x" * (1 << 16))
            await writer.drain()
            sent += 1 << 16

    async with Served(answer) as served:
        response = await served.send()
        before = -1
        while before != sent or not sent:  # until it is stuck
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 1 << 25
        assert len(await response.read()) == 1 << 26


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: %b\r\n" % (b"x" * 70_000) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["another protocol", "an endless head", "a negative length", "a bad chunk"],
)
async def test_what_is_not_http_is_broken(data: bytes) -> None:
    """Nonsense ends at once as `Broken`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(data)
        await reader.read()

    async with Served(answer) as served:
        with pytest.raises(Broken):
            await (await served.send()).read()


async def test_an_answer_nobody_asked_for_closes_the_connection() -> None:
    """Bytes on an idle connection are never taken for the next answer, nor those behind an answer for a part of it."""
    read = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        if served.connections == 1:
            writer.write(framed(b"mine", "length"))
            await read.wait()
            writer.write(framed(b"poison", "length"))
        else:
            writer.write(framed(b"mine", "length") + framed(b"poison", "length"))
        await reader.read()

    async with Served(answer) as served:
        assert await (await served.send()).read() == b"mine"
        await served.until_idle(1)
        read.set()
        await served.until_idle(0)
        for connections in (2, 3):
            assert await (await served.send()).read() == b"mine"
            assert served.connections == connections


@pytest.mark.parametrize("address", ["ftp://host/v1", "localhost:8000", "http://", "127.0.0.1"])
def test_an_address_that_is_none_is_told(address: str) -> None:
    """Settings that cannot work fail when they are read, not with the first request."""
    with pytest.raises(ValueError, match="not an http address"):
        HttpClient(address, {})


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "clé"])
def test_a_header_cannot_be_smuggled_in(value: str) -> None:
    """A key with a line end in it is refused."""
    with pytest.raises(ValueError, match="Authorization"):
        HttpClient("http://127.0.0.1:1/v1", {"Authorization": value})


async def test_cancelling_leaves_nothing_behind() -> None:
    """A cancelled request closes its connection at once and leaves no future with an unread error."""
    asked, gone = asyncio.Event(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        asked.set()
        try:
            await reader.read()
        finally:
            gone.set()

    async with Served(answer) as served:
        task = asyncio.create_task(served.send())
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), PATIENCE_S)
        gc.collect()


async def quick(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Two hundred pieces of two bytes, each written by itself."""
    await request_of(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for number in range(200):
        writer.write(b"2\r\n%02x\r\n" % number)
        await asyncio.sleep(0)
    writer.write(b"0\r\n\r\n")
    await writer.drain()


def again(answer: Answer) -> Answer:
    """The same answer to every request of a connection."""

    async def always(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await answer(reader, writer)

    return always


async def reads_of(response: Response) -> list[bytes]:
    return [data async for data in _each(response)]


async def _each(response: Response) -> AsyncIterator[bytes]:
    while data := await response.read_any():
        yield data


async def test_a_quick_answer_is_read_in_turns_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every answer counts as quick, nothing of it is lost, and the connection serves again."""
    monkeypatch.setattr(http_client, "_QUICK_PER_S", -1)
    monkeypatch.setattr(http_client, "_COUNT_S", 0.0)
    async with Served(again(quick)) as served:
        for _ in range(3):
            reads = await reads_of(await served.send())
            assert b"".join(reads) == b"".join(b"%02x" % number for number in range(200))
            assert len(reads) < 200
        assert served.connections == 1


async def test_a_slow_answer_is_read_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the rate that counts as quick nobody rests."""
    monkeypatch.setattr(http_client, "_QUICK_PER_S", 1e9)
    monkeypatch.setattr(http_client._Connection, "_rest", None)
    async with Served(again(quick)) as served:
        assert len(b"".join(await reads_of(await served.send()))) == 400


async def test_a_connection_lost_during_a_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that rests when the other side goes away gets what had come, then the trouble."""
    monkeypatch.setattr(http_client, "_QUICK_PER_S", -1)
    monkeypatch.setattr(http_client, "_COUNT_S", 0.0)

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await writer.drain()

    async with Served(cut) as served:
        response = await served.send()
        assert await response.read_any() == b"abc"
        with pytest.raises(Broken):
            await response.read_any()


async def test_calling_off_during_a_rest_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that is called off while its reader rests frees the engine at once."""
    monkeypatch.setattr(http_client, "_QUICK_PER_S", -1)
    monkeypatch.setattr(http_client, "_COUNT_S", 0.0)
    monkeypatch.setattr(http_client, "_REST_S", 60.0)
    gone = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            await reader.read()
        finally:
            gone.set()

    async with Served(endless) as served:
        response = await served.send()
        task = asyncio.create_task(response.read_any())
        (connection,) = served.client._all
        while not connection._paused:  # noqa: ASYNC110 - a rest tells nobody that it has begun
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        response.let_go()
        await asyncio.wait_for(gone.wait(), PATIENCE_S)
