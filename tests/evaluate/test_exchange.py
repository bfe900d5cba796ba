"""One exchange over a real socket: what is kept, what is reused, and what every kind of trouble is called."""

import asyncio
import datetime
import ipaddress
import json
import select
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from good_answers import MODEL, Talk, dumped
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_port import KeptPort
from lies import LIES, NEVER_S, PATIENT, limits_for
from lying_server import LyingServer

from sekisho.evaluate.client import exchange as exchange_module
from sekisho.evaluate.client.exchange import Connections, Exchange, Limits
from sekisho.evaluate.client.target import Key, Target

PATH = "/v1/chat/completions"


async def post(connections: Connections, body: bytes = b"{}", **options: Any) -> Exchange:
    return await connections.exchange("POST", PATH, body, **options)


@pytest.mark.parametrize(
    "way",
    [
        name
        for name, lie in LIES.items()
        if lie.fault in ("no_answer", "silent", "trickled", "cut", "not_http", "too_large")
    ],
)
async def test_every_trouble_of_the_wire_has_its_name(way: str) -> None:
    """What is not a whole HTTP answer is told as trouble, in words, and the connection is not used again."""
    async with LyingServer() as server, Connections(server.target(way), limits_for(way)) as connections:
        exchange = await post(connections, dumped({"stream": True}))
        assert exchange.trouble == LIES[way].fault
        assert exchange.detail
        assert exchange.ended_s >= exchange.started_s
        assert connections._idle == []


async def test_a_connection_is_used_again() -> None:
    """One after the other they share a connection; at the same time each has its own; `fresh` never shares."""
    async with LyingServer() as server, Connections(server.target("honest"), PATIENT) as connections:
        first, second = [await post(connections) for _ in range(2)]
        assert first.connected_s is not None
        assert second.connected_s is None
        many = await asyncio.gather(*(post(connections) for _ in range(5)))
        assert sum(exchange.connected_s is None for exchange in many) == 1
        assert (await post(connections, fresh=True)).connected_s is not None
        assert all(exchange.status == 200 and exchange.trouble is None for exchange in (first, second, *many))


async def test_a_connection_that_closed_meanwhile_is_replaced() -> None:
    """A server that closes after each answer costs a new connection, never an answer."""
    async with LyingServer() as server, Connections(server.target("closed_after_each"), PATIENT) as connections:
        for _ in range(50):
            exchange = await post(connections)
            assert (exchange.status, exchange.trouble) == (200, None)
    assert server.seen["closed_after_each"] == 50


async def test_an_end_that_is_here_already_is_seen_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept connection that ended while this program was held up is replaced, however late the loop hears of it."""
    monkeypatch.setattr(exchange_module, "STALE_S", -1.0)  # what ends over a request is excused by nothing
    ends: list[Any] = []
    async with LyingServer() as server:

        async def kept(talk: Talk) -> None:
            ends.append(talk.writer.get_extra_info("socket"))
            await talk.send()

        server.ways["kept"] = kept
        async with Connections(server.target("kept"), PATIENT) as connections:
            await post(connections)
            (idle,) = connections._idle
            assert idle._transport is not None
            ends[0].shutdown(socket.SHUT_RDWR)
            assert select.select([idle._transport.get_extra_info("socket")], [], [], 30)[0]
            exchange = await post(connections)
            assert (exchange.status, exchange.trouble, exchange.connected_s is None) == (200, None, False)
            assert idle not in connections._all


async def test_a_server_that_dies_over_a_request_is_not_asked_again() -> None:
    """A kept connection that ends after a while, without a byte, was not stale: the request was taken, and is cut."""
    async with LyingServer() as server:

        async def dying(talk: Talk) -> None:
            if talk.number % 2:
                await talk.send(b"{}")
            else:
                await asyncio.sleep(0.2)
                talk.reset()

        server.ways["dying"] = dying
        async with Connections(server.target("dying"), PATIENT) as connections:
            troubles = [(await post(connections)).trouble for _ in range(6)]
    assert troubles == [None, "cut"] * 3
    assert server.seen["dying"] == 6


async def test_a_new_connection_that_is_cut_is_not_tried_again() -> None:
    """Only a kept connection is replaced: a request that a fresh one lost was perhaps carried out."""
    async with LyingServer() as server, Connections(server.target("cut_at_once"), PATIENT) as connections:
        assert (await post(connections)).trouble == "cut"
    assert server.seen["cut_at_once"] == 1


async def test_a_provisional_answer_is_no_answer() -> None:
    """After 100 and 103 the real answer comes: status, head and first byte are the real one's."""
    async with LyingServer() as server, Connections(server.target("after_provisional"), PATIENT) as connections:
        exchange = await post(connections)
    assert exchange.status == 200
    assert exchange.headers["content-type"] == "application/json"
    assert "link" not in exchange.headers
    assert exchange.first_byte_s == exchange.arrivals[0][0]


async def test_a_second_answer_to_one_request_changes_nothing() -> None:
    """What comes after an answer's end is not part of it, and the connection is given up."""
    async with LyingServer() as server:

        async def twice(talk: Talk) -> None:
            one = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
            await talk.raw(one + b"HTTP/1.1 500 Oops\r\nX-Second: yes\r\nContent-Length: 6\r\n\r\nsecond")

        server.ways["twice"] = twice
        async with Connections(server.target("twice"), PATIENT) as connections:
            for _ in range(3):
                exchange = await post(connections)
                assert (exchange.status, exchange.body, exchange.trouble) == (200, b"{}", None)
                assert "x-second" not in exchange.headers
                assert connections._idle == []


async def test_bytes_that_nobody_asked_for_end_a_kept_connection() -> None:
    """They are not the next answer's beginning."""
    taken, told = asyncio.Event(), asyncio.Event()
    async with LyingServer() as server:

        async def chatty(talk: Talk) -> None:
            await talk.send(b"{}")
            await taken.wait()
            if talk.number == 1:
                await talk.raw(b"HTTP/1.1 500 Unasked\r\nContent-Length: 0\r\n\r\n")
            told.set()

        server.ways["chatty"] = chatty
        async with Connections(server.target("chatty"), PATIENT) as connections:
            await post(connections)
            (first,) = connections._idle
            taken.set()
            await told.wait()
            exchange = await post(connections)
            assert first not in connections._all
    assert (exchange.status, exchange.connected_s is None) == (200, False)


async def test_a_server_that_never_reads_is_no_answer() -> None:
    """A request that nobody takes, larger than what the system keeps for it, ends with its time."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        target = Target("gateway", f"http://127.0.0.1:{deaf.getsockname()[1]}", MODEL)
        async with Connections(target, Limits(silence_s=0.6)) as connections:
            exchange = await post(connections, b"x" * (16 << 20))
    assert (exchange.trouble, exchange.status, exchange.first_byte_s) == ("no_answer", None, None)


async def test_nobody_there_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port and a name that nobody has are no exceptions."""
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "nowhere.invalid":  # what a machine's own resolver says of it, and how soon, differs
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with KeptPort() as port:
        for url in (f"http://127.0.0.1:{port}", "http://nowhere.invalid:80"):
            async with Connections(Target("gateway", url, MODEL), PATIENT) as connections:
                exchange = await post(connections)
            assert (exchange.trouble, exchange.status) == ("not_connected", None)
            assert exchange.detail


async def test_who_goes_away_closes_the_connection() -> None:
    """A cancelled exchange is a client that left: the server sees the end at once."""
    gone = asyncio.Event()
    async with LyingServer() as server:

        async def waits(talk: Talk) -> None:
            await talk.raw(talk.chunked_head())
            assert await talk.reader.read() == b""
            gone.set()

        server.ways["waits"] = waits
        async with Connections(server.target("waits"), Limits()) as connections:
            task = asyncio.create_task(post(connections))
            await server.came.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(20):
                await gone.wait()
            assert not connections._all


async def test_what_is_sent() -> None:
    """The key as a bearer, the length, the host with its port, and the fields that a caller adds; no key, no field."""
    async with LyingServer() as server:

        async def mirror(talk: Talk) -> None:
            await talk.send(dumped({"path": talk.path, "headers": talk.headers, "body": talk.body}))

        server.ways["mirror"] = mirror
        async with Connections(server.target("mirror"), PATIENT) as connections:
            exchange = await post(connections, dumped({"a": "京"}), headers={"X-Run": "7"})
        told = json.loads(exchange.body)
        assert told["path"] == "/mirror" + PATH
        assert told["body"] == {"a": "京"}
        wanted = {"authorization": "Bearer sk-lying-0123456789", "x-run": "7", "host": f"127.0.0.1:{server.port}"}
        assert wanted.items() <= told["headers"].items()
        async with Connections(server.target("mirror", key=None), PATIENT) as connections:
            told = json.loads((await connections.exchange("GET", "/v1/models")).body)
        assert "authorization" not in told["headers"]


async def test_moments_are_in_order() -> None:
    """Start, first byte, arrivals and end follow each other on one clock."""
    async with LyingServer() as server, Connections(server.target("bytewise"), PATIENT) as connections:
        exchange = await post(connections, dumped({"stream": True}))
    moments = [moment for moment, _ in exchange.arrivals]
    assert moments == sorted(moments)
    assert exchange.first_byte_s is not None
    assert exchange.started_s <= exchange.first_byte_s <= moments[0] <= moments[-1] <= exchange.ended_s
    assert exchange.ttfb_ms is not None
    assert exchange.ttfb_ms <= exchange.total_ms


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_an_answer_that_has_no_body_ends(status: str) -> None:
    """Statuses without a body are whole after their head."""
    async with LyingServer() as server:

        async def bare(talk: Talk) -> None:
            await talk.raw(f"HTTP/1.1 {status}\r\nX-Bare: 1\r\n\r\n".encode())

        server.ways["bare"] = bare
        async with Connections(server.target("bare"), PATIENT) as connections:
            exchange = await post(connections)
            again = await post(connections)
    assert (exchange.status, exchange.body, exchange.trouble) == (int(status[:3]), b"", None)
    assert again.connected_s is None


def certificate(folder: Path) -> tuple[Path, Path]:
    """One for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, secret = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, secret


async def test_tls(tmp_path: Path) -> None:
    """A certificate that is trusted carries the exchange; one that is not is told, and nothing is sent."""
    chain, secret = certificate(tmp_path)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(chain, secret)
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=serving)
    target = Target("public", f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", MODEL)
    async with server:
        async with Connections(target, PATIENT) as connections:
            refused = await connections.exchange("GET", "/v1/models")
        assert refused.trouble == "not_connected"
        assert "certificate" in refused.detail.lower()
        assert asked == 0
        async with Connections(target, PATIENT, context=ssl.create_default_context(cafile=str(chain))) as connections:
            exchange = await connections.exchange("GET", "/v1/models")
        assert (exchange.status, exchange.body, exchange.trouble) == (200, b"{}", None)


GOOD_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@settings(max_examples=60)
@given(
    data=st.one_of(
        st.binary(max_size=80),
        st.tuples(st.integers(0, len(GOOD_HEAD)), st.binary(max_size=6)).map(
            lambda change: GOOD_HEAD[: change[0]] + change[1] + GOOD_HEAD[change[0] :]
        ),
    )
)
def test_no_bytes_break_the_client(data: bytes) -> None:
    """Whatever a server writes before it closes, the exchange ends with an answer or with trouble, never an error."""

    async def run() -> Exchange:
        async with LyingServer() as server:

            async def babble(talk: Talk) -> None:
                await talk.raw(data)
                talk.close()

            server.ways["babble"] = babble
            async with Connections(server.target("babble"), PATIENT) as connections:
                return await post(connections)

    exchange = asyncio.run(run())
    assert exchange.trouble is not None or exchange.status is not None
    assert exchange.ended_s >= exchange.started_s


async def test_closing_twice_is_fine() -> None:
    """Connections that are closed while an exchange runs end it as cut."""
    async with LyingServer() as server:
        connections = Connections(server.target("silent"), Limits(silence_s=NEVER_S, total_s=NEVER_S))
        task = asyncio.create_task(post(connections))
        await server.came.wait()
        connections.close()
        connections.close()
        assert (await task).trouble == "cut"


async def test_a_host_with_colons() -> None:
    """An IPv6 address stands in brackets in the Host field."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    heads = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(GOOD_HEAD)
        writer.close()

    server = await asyncio.start_server(answer, sock=listener)
    port = listener.getsockname()[1]
    async with server, Connections(Target("gateway", f"http://[::1]:{port}/x", MODEL, Key("k" * 20)), PATIENT) as there:
        exchange = await there.exchange("GET", "/v1/models")
    assert exchange.status == 200
    assert f"Host: [::1]:{port}\r\n".encode() in heads[0]
    assert heads[0].startswith(b"GET /x/v1/models HTTP/1.1\r\n")
