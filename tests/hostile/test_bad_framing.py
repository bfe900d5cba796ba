"""HTTP messages that end where nobody agrees, on raw sockets: smuggling, broken chunks, pipelines, upgrades."""

import json
import time
from typing import TYPE_CHECKING

import pytest
from hostile_harness import RawConnection, request_bytes

if TYPE_CHECKING:
    from conftest import Target
from hostile_harness import CHAT, GOOD, told

# --- framing ----------------------------------------------------------------------------------------------------------


SMUGGLES = {
    "both lengths": ["Content-Length: 5", "Transfer-Encoding: chunked"],
    "two lengths": ["Content-Length: 5", "Content-Length: 6"],
    "length with a sign": ["Content-Length: +5"],
    "negative length": ["Content-Length: -1"],
    "no number": ["Content-Length: five"],
    "hexadecimal": ["Content-Length: 0x5"],
    "two in one": ["Content-Length: 5, 5"],
    "overflow": ["Content-Length: 99999999999999999999999999"],
    "chunked not last": ["Transfer-Encoding: chunked, identity"],
    "chunked hidden": ["Transfer-Encoding: xchunked"],
    "space before the colon": ["Transfer-Encoding : chunked"],
}


@pytest.mark.parametrize("lines", SMUGGLES.values(), ids=SMUGGLES)
def test_ambiguous_framing_is_refused_and_nothing_runs_behind_it(target: "Target", lines: list[str]) -> None:
    """What two servers could read in two ways is an error, and what follows on the connection is not a request."""
    before = target.completed()
    hidden = request_bytes("POST", CHAT, target.key, GOOD)
    with RawConnection(target.port) as raw:
        raw.send(request_bytes("POST", CHAT, target.key, b"", *lines) + b"0\r\n\r\n" + hidden)
        told(raw.answer(), 400, 408, 413)
        assert raw.closed()
    assert target.completed() == before


@pytest.mark.parametrize(
    "junk",
    [b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9,
     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n\r\n",
     b"GET / HTTP/1.1\r\nA: x\x00y\r\n\r\n", "GET /ü HTTP/1.1\r\n\r\n".encode(), b"G\xc3\x84T / HTTP/1.1\r\n\r\n",
     b"GET http:// HTTP/1.1\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"GET x HTTP/1.1\r\n\r\n",
     b"GET / HTTP/1.1\r\nA: b\r\n c: folded\r\n\r\n"],
)  # fmt: skip
def test_what_is_not_http_is_400(target: "Target", junk: bytes) -> None:
    """TLS, HTTP/2, NULs, broken lines: a 400 in our shape, and the connection is closed."""
    with RawConnection(target.port) as raw:
        told(raw.send(junk).answer(), 400, 401, 404, 405)


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\nabc\r\n0\r\n\r\n",
        b"-1\r\n\r\n",
        b"ffffffffffffffffffff\r\n",
        b"5\r\nabc\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n",
    ],
)
def test_broken_chunks_are_refused(target: "Target", body: bytes) -> None:
    """Chunk sizes that are no sizes end in a 4xx and a closed connection."""
    with RawConnection(target.port) as raw:
        raw.send(request_bytes("POST", CHAT, target.key, b"", "Transfer-Encoding: chunked") + body)
        told(raw.answer(), 400, 408)
        assert raw.closed()


def test_http_1_0_is_answered_and_closed(target: "Target") -> None:
    """An old client gets its whole answer, and the end of the connection."""
    with RawConnection(target.port) as raw:
        raw.send(request_bytes("POST", CHAT, target.key, GOOD, version="1.0"))
        answer = raw.answer()
        assert answer is not None
        assert answer.status == 200
        assert answer.json()["choices"]
        assert raw.closed()


def test_pipelined_requests_are_answered_in_order(target: "Target") -> None:
    """Each once, the slow first one first, an error in between."""
    slow = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "delay:0.3 first"}]}).encode()
    with RawConnection(target.port) as raw:
        raw.send(
            request_bytes("POST", CHAT, target.key, slow)
            + request_bytes("GET", "/nope", target.key)
            + request_bytes("POST", CHAT, target.key, GOOD)
        )
        first, second, third = raw.answer(), raw.answer(), raw.answer()
        assert first is not None
        assert third is not None
        assert first.json()["choices"][0]["message"]["content"] == "first"
        assert told(second, 404) == "unknown_path"
        assert third.json()["choices"][0]["message"]["content"] == "hello"


UPGRADES = {
    "curl": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"],
    "websocket": ["Connection: keep-alive, upgrade", "UPGRADE: websocket", "Sec-WebSocket-Version: 13"],
    "first": ["upgrade: h2c", "connection: upgrade"],
}


@pytest.mark.parametrize("lines", UPGRADES.values(), ids=UPGRADES)
def test_an_upgrade_is_passed_over(target: "Target", lines: list[str]) -> None:
    """Clients offer HTTP/2 on their own: the request is answered in HTTP/1.1, and so is what follows it."""
    with RawConnection(target.port) as raw:
        raw.send(request_bytes("POST", CHAT, target.key, GOOD, *lines) + request_bytes("GET", "/nope", target.key))
        answer = raw.answer()
        assert answer is not None
        assert answer.status == 200, answer.body
        assert answer.json()["choices"][0]["message"]["content"] == "hello"
        assert told(raw.answer(), 404) == "unknown_path"


def test_an_upgrade_is_passed_over_wherever_its_head_is_cut(target: "Target") -> None:
    """Two pieces, cut at any byte; a body that looks like an upgrade stays as it is."""
    body = b'{"model":\r\nUpgrade: h2c\r\n\r\n'
    request = request_bytes("POST", CHAT, target.key, body, *UPGRADES["curl"])
    with RawConnection(target.port) as raw:
        for at in range(request.index(b"Connection"), len(request)):
            raw.send(request[:at])
            time.sleep(0.002)  # so that the server reads two pieces
            assert told(raw.send(request[at:]).answer(), 400) == "invalid_json", (at, request[:at])


def test_an_upgrade_that_cannot_be_passed_over_is_told(target: "Target") -> None:
    """One in the same piece as the end of the body before it: a 400 that says so, and the connection is closed."""
    first = request_bytes("POST", "/nope", target.key, GOOD)
    with RawConnection(target.port) as raw:
        assert told(raw.send(first[:-9]).answer(), 404) == "unknown_path"
        raw.send(first[-9:] + request_bytes("POST", CHAT, target.key, GOOD, *UPGRADES["curl"]))
        assert told(raw.answer(), 400) == "upgrade_not_offered"
        assert raw.closed()


@pytest.mark.parametrize("place", ["x:1", CHAT])
def test_connect_is_405_and_closed(target: "Target", place: str) -> None:
    """This is no proxy, and what follows a CONNECT is not HTTP."""
    with RawConnection(target.port) as raw:
        raw.send(request_bytes("CONNECT", place, target.key, GOOD))
        assert told(raw.answer(), 405) == "method_not_allowed"
        assert raw.closed()
