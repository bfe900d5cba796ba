"""HTTP that nobody should speak, on raw sockets: smuggling, injection, floods, and clients that come to no end."""

import json
import time
from typing import TYPE_CHECKING

import pytest
from hostile_harness import Answer, RawConnection, eventually, request_bytes

if TYPE_CHECKING:
    from conftest import Target

CHAT = "/v1/chat/completions"
GOOD = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hello"}]}).encode()
MIB = 1024 * 1024


def streaming(text: str) -> bytes:
    return json.dumps({"model": "fake", "stream": True, "messages": [{"role": "user", "content": text}]}).encode()


def told(answer: Answer | None, *statuses: int) -> str:
    """Checks one of our own errors; its code."""
    assert answer is not None, "the server hung up without a word"
    assert answer.status in statuses, (answer.status, answer.body)
    error = answer.json()["error"]
    assert error["id"].startswith("err_")
    return str(error["code"])


def running(target: "Target") -> int:
    models = target.colleague.get("/readyz").json()["models"]
    return int(models["fake"]["running"])


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_fifty_megabytes_are_413_and_leave_no_trace(target: "Target", chunked: bool) -> None:
    """With and without a declared length the client reads its 413, and the process does not grow by the body."""
    assert target.client.post(CHAT, content=GOOD).status_code == 200  # everything that is made once is made
    before = target.process.peak_bytes()
    block = b"x" * MIB

    def blocks() -> object:
        for _ in range(50):
            yield block

    headers = {} if chunked else {"content-length": str(50 * MIB)}
    answer = target.client.post(CHAT, content=blocks(), headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    grown = target.process.peak_bytes() - before
    assert grown < (42 if chunked else 12) * MIB, grown  # chunked: what lies below the limit of 32 MiB is kept at first


def test_a_declared_length_beyond_all_limits_is_413_at_once(target: "Target") -> None:
    """A client that says 10 TB and sends nothing need not wait, whether or not it asks for leave first."""
    zeros = "0" * 5000  # more digits than int reads
    declared = "Content-Length: 10000000000000"
    for line in (f"Content-Length: {zeros}10000000000000", declared, f"{declared}\r\nExpect: 100-continue"):
        with RawConnection(target.port) as raw:
            raw.send(request_bytes("POST", CHAT, target.key, b"", line))
            assert told(raw.answer(), 413) == "request_too_large"


def test_a_body_that_stops_coming_is_408(hasty_target: "Target") -> None:
    """After `body_timeout_s`, whether nothing or a part of it came; the connection is closed."""
    for part in (b"", GOOD[:10]):
        with RawConnection(hasty_target.port) as raw:
            raw.send(request_bytes("POST", CHAT, hasty_target.key, b"", f"Content-Length: {len(GOOD)}") + part)
            assert told(raw.answer(), 408) == "body_timeout"
            assert raw.closed()


def test_a_dripping_body_is_408(hasty_target: "Target") -> None:
    """A byte now and then does not put the end of the time off."""
    with RawConnection(hasty_target.port) as raw:
        raw.send(request_bytes("POST", CHAT, hasty_target.key, b"", "Content-Length: 5000"))
        for _ in range(8):
            raw.send(b" ")
            time.sleep(0.2)
        assert told(raw.answer(), 408) == "body_timeout"


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "no-such"])
def test_compressed_bodies_are_refused(target: "Target", encoding: str) -> None:
    """Nothing is unpacked, so nothing can explode."""
    answer = target.client.post(CHAT, content=b"\x1f\x8b" * 500, headers={"content-encoding": encoding})
    assert answer.status_code in (400, 415)
    assert answer.json()["error"]["id"]


def test_expect_100_continue_is_answered(target: "Target") -> None:
    """The client that asks before it sends gets `100 Continue`, then the answer."""
    with RawConnection(target.port) as raw:
        raw.send(request_bytes("POST", CHAT, target.key, b"", f"Content-Length: {len(GOOD)}", "Expect: 100-continue"))
        interim = raw.answer()
        assert interim is not None
        assert interim.status == 100
        raw.send(GOOD)
        final = raw.answer()
        assert final is not None
        assert final.status == 200


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


# --- clients that leave, or do not -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("behind", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00junk\r\n\r\n"])
def test_a_client_that_leaves_frees_its_turn(target: "Target", stream: bool, behind: bytes) -> None:
    """Also one that had pipelined another request or junk behind the running one."""
    body = json.dumps(
        {"model": "fake", "stream": stream, "messages": [{"role": "user", "content": "stall:1 a b"}]}
    ).encode()
    with RawConnection(target.port) as raw:
        raw.send(request_bytes("POST", CHAT, target.key, body))
        assert eventually(lambda: running(target) == 1)
        raw.send(behind)
        time.sleep(0.05)
    assert eventually(lambda: running(target) == 0)


def test_a_half_closed_client_frees_its_turn(target: "Target") -> None:
    """A client that shuts its sending side counts as gone: a turn that nobody may hear does not run on."""
    with RawConnection(target.port) as raw:
        raw.send(request_bytes("POST", CHAT, target.key, streaming("stall:1 a b")))
        assert eventually(lambda: running(target) == 1)
        raw.socket.shutdown(1)
        assert eventually(lambda: running(target) == 0)


def test_a_client_that_never_reads_costs_no_memory(target: "Target") -> None:
    """The stream waits for its reader: 2 x 300,000 words are not made in advance; when it leaves, the turn ends."""
    before = target.process.memory_bytes()
    raws = [RawConnection(target.port) for _ in range(2)]
    for raw in raws:
        raw.socket.setsockopt(1, 8, 4096)  # SO_RCVBUF
        raw.send(request_bytes("POST", CHAT, target.key, streaming("tokens:300000 a")))
    assert eventually(lambda: running(target) == 2)
    time.sleep(1.5)
    assert running(target) == 2, "the stream ran into nowhere"
    assert target.process.memory_bytes() - before < 150 * MIB
    assert target.client.post(CHAT, content=GOOD).status_code == 200
    for raw in raws:
        raw.socket.close()
    assert eventually(lambda: running(target) == 0)


def test_junk_in_the_middle_of_a_stream_ends_it(target: "Target") -> None:
    """What is no HTTP behind a running request ends the connection; the stream never looks complete."""
    with RawConnection(target.port) as raw:
        raw.send(request_bytes("POST", CHAT, target.key, streaming("tokens:50 pace:0.1")))
        raw.read_until(b"word2")
        raw.send(b"\x00\x00 junk\r\n\r\n")
        rest = raw.read_until(b"[DONE]")
        assert b"[DONE]" not in rest
    assert eventually(lambda: running(target) == 0)


# --- lines and targets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", ["a b", "a\tb", "x" * 129, "a;b", "é", "a\u00ffb", "<script>", "", "%0d%0aX-Evil: 1", "$(id)", "\x7f"]
)
def test_a_strange_request_id_is_replaced(target: "Target", given: str) -> None:
    """Only a harmless id comes back; any other gives a fresh one of ours, or a 400."""
    with RawConnection(target.port) as raw:
        answer = raw.send(request_bytes("GET", "/healthz", target.key, b"", f"X-Request-Id: {given}")).answer()
        assert answer is not None
        if answer.status == 200:
            assert str(answer.header("x-request-id")).startswith("req_")


@pytest.mark.parametrize("ending", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("place", ["/v1/models/fake{}X-Evil:1", "/healthz?a={}X-Evil:1", "/v1/responses/r{}X-Evil:1"])
def test_no_line_of_the_caller_gets_into_our_head(target: "Target", place: str, ending: str) -> None:
    """CR and LF in path, query and ids, raw or percent-encoded, make no header of ours and no second answer."""
    encoded = ending.replace("\r", "%0d").replace("\n", "%0a")
    for target_path in (place.format(encoded), place.format(ending)):
        with RawConnection(target.port) as raw:
            answer = raw.send(request_bytes("GET", target_path, target.key)).answer()
            assert answer is not None
            assert answer.header("x-evil") is None
            assert answer.status in (200, 400, 404)


@pytest.mark.parametrize(
    "path",
    ["/static/../index.html", "/static/..%2f..%2fpyproject.toml", "/static/%2e%2e/%2e%2e/etc/passwd",
     "/static//etc/passwd",     "/static/....//index.html", "/static/..\\..\\x", "/static/%00",
     "/static/index.html%00.js", "/static/",
     "/static/%5c..%5cserve.py", "/static/../../../../../../etc/passwd", "/static/.", "/static/.."],
)  # fmt: skip
def test_no_path_leads_out_of_the_static_folder(target: "Target", path: str) -> None:
    """Traversal in every spelling is a 404, also with a key."""
    with RawConnection(target.port) as raw:
        answer = raw.send(request_bytes("GET", path, target.key)).answer()
        assert told(answer, 400, 404)


@pytest.mark.parametrize(
    "path", ["/%E3%81%82", "/%ff%fe", "/v1/models/%E9%96%A2%E6%89%80", "/v1/models/%ff", "/v1/models/%00",
             "/v1/models/%",             "/v1/models/%zz", "/v1/responses/%ED%A0%80", "/v1//models", "//v1/models",
             "/v1/models/a%2Fb", "/V1/MODELS"]
)  # fmt: skip
def test_strange_paths_are_not_found(target: "Target", path: str) -> None:
    """Percent-encoded text, bytes that are no text, doubled slashes: 404 in our shape, and our log survives it."""
    with RawConnection(target.port) as raw:
        told(raw.send(request_bytes("GET", path, target.key)).answer(), 400, 404)


def test_absolute_targets_reach_only_us(target: "Target") -> None:
    """`GET http://elsewhere/healthz` is answered by us: the gateway is no open proxy."""
    with RawConnection(target.port) as raw:
        answer = raw.send(request_bytes("GET", "http://192.0.2.1:9/healthz", target.key)).answer()
        assert answer is not None
        assert answer.json() == {"status": "ok"}
        told(raw.send(request_bytes("GET", "http://192.0.2.1:9/etc", target.key)).answer(), 404)


@pytest.mark.parametrize("kind", ["path", "query", "one header", "many headers", "endless header", "endless path"])
def test_heads_have_an_end(target: "Target", kind: str) -> None:
    """A head beyond 64 KiB is 431 (or 414, 400), not a growing process, also when it never ends."""
    before = target.process.memory_bytes()
    big = "x" * (4 * MIB)
    head = {
        "path": request_bytes("GET", f"/{big}", target.key),
        "query": request_bytes("GET", f"/healthz?{big}", target.key),
        "one header": request_bytes("GET", "/healthz", target.key, b"", f"X-Long: {big}"),
        "many headers": request_bytes("GET", "/healthz", target.key, b"", *["X-Many: 1"] * 200_000),
        "endless header": b"GET /healthz HTTP/1.1\r\nX: " + big.encode() * 12,
        "endless path": b"GET /" + big.encode() * 12,
    }[kind]
    with RawConnection(target.port) as raw:
        assert told(raw.send(head).answer(), 431, 414, 400) in ("head_too_large", "malformed_http")
    assert target.process.memory_bytes() - before < 40 * MIB


def test_a_head_that_stops_coming_is_hung_up_on(hasty_target: "Target") -> None:
    """A connection that says nothing, or half a head and then a byte now and then, does not stay for ever."""
    with RawConnection(hasty_target.port) as silent, RawConnection(hasty_target.port) as slow:
        slow.send(b"GET /healthz HTTP/1.1\r\n")
        for _ in range(7):
            slow.send(b"A: b\r\n")
            time.sleep(0.2)
        assert told(slow.answer(), 408) == "head_timeout"
        assert silent.closed()


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "GET", "OPTIONS"])
def test_wrong_methods_are_405(target: "Target", method: str) -> None:
    """With the right ones in Allow; TRACE sends nothing back."""
    with RawConnection(target.port) as raw:
        answer = raw.send(request_bytes(method, CHAT, target.key, b"", "X-Secret: zwiebel")).answer()
        assert told(answer, 405) == "method_not_allowed"
        assert answer is not None
        assert answer.header("allow") == "POST"
        assert b"zwiebel" not in answer.body


def test_keys_count_in_their_two_headers_only(target: "Target") -> None:
    """Not in the query, a cookie, the body, basic auth or a user name of the URL; and no error repeats a key."""
    import base64

    key = target.key
    basic = base64.b64encode(f"{key}:".encode()).decode()
    places: list[tuple[str, list[str]]] = [
        (f"/v1/models?api_key={key}&key={key}&access_token={key}", []),
        ("/v1/models", [f"Cookie: key={key}; authorization=Bearer {key}"]),
        ("/v1/models", [f"Authorization: Basic {basic}"]),
        ("/v1/models", [f"Authorization: {key}"]),
        ("/v1/models", [f"Authorization: Bearer  {key} x"]),
        ("/v1/models", [f"Authorization: Bearer {key[:-1]}"]),
        ("/v1/models", [f"Authorization: Bearer {key}\x01"]),
        ("/v1/models", ["Authorization: Bearer " + "x" * 20_000]),
        ("/v1/models", [f"X-Api-Key: {key.upper()}"]),
        (f"http://{key}:{key}@localhost/v1/models", []),
    ]
    for path, lines in places:
        head = "\r\n".join([f"GET {path} HTTP/1.1", "Host: test", *lines, "", ""])
        with RawConnection(target.port) as raw:
            answer = raw.send(head.encode("latin-1")).answer()
            told(answer, 400, 401)
            assert answer is not None
            assert key not in answer.body.decode()
    assert key not in target.process.log()


@pytest.mark.parametrize("value", ["\x7f", "\x01", "a\tb", "\xff\xfe", "null", "x" * 5_000, "*", "\r\n X-Evil: 1"])
def test_a_strange_origin_is_echoed_safely_or_refused(open_target: "Target", value: str) -> None:
    """Where any origin may call, what a browser is told back makes no broken head and no 500."""
    for method, lines in (
        ("GET", [f"Origin: {value}"]),
        ("OPTIONS", [f"Origin: {value}", "Access-Control-Request-Method: POST",
                     f"Access-Control-Request-Headers: {value}"]),
    ):  # fmt: skip
        with RawConnection(open_target.port) as raw:
            answer = raw.send(request_bytes(method, "/v1/models", open_target.key, b"", *lines)).answer()
            assert answer is not None
            assert answer.status in (200, 204, 400)
            assert answer.header("x-evil") is None
