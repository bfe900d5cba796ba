"""HTTP that nobody should speak, on raw sockets: injection, floods, and clients that come to no end."""

import json
import time
from typing import TYPE_CHECKING

import pytest
from hostile_harness import RawConnection, eventually, request_bytes

if TYPE_CHECKING:
    from conftest import Target
from hostile_harness import CHAT, GOOD, told

MIB = 1024 * 1024


def streaming(text: str) -> bytes:
    return json.dumps({"model": "fake", "stream": True, "messages": [{"role": "user", "content": text}]}).encode()


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
        assert eventually(lambda: target.running() == 1)
        raw.send(behind)
        time.sleep(0.05)
    assert eventually(lambda: target.running() == 0)


def test_a_half_closed_client_frees_its_turn(target: "Target") -> None:
    """A client that shuts its sending side counts as gone: a turn that nobody may hear does not run on."""
    with RawConnection(target.port) as raw:
        raw.send(request_bytes("POST", CHAT, target.key, streaming("stall:1 a b")))
        assert eventually(lambda: target.running() == 1)
        raw.socket.shutdown(1)
        assert eventually(lambda: target.running() == 0)


def test_a_client_that_never_reads_costs_no_memory(target: "Target") -> None:
    """The stream waits for its reader: 2 x 300,000 words are not made in advance; when it leaves, the turn ends."""
    before = target.process.memory_bytes()
    raws = [RawConnection(target.port) for _ in range(2)]
    for raw in raws:
        raw.socket.setsockopt(1, 8, 4096)  # SO_RCVBUF
        raw.send(request_bytes("POST", CHAT, target.key, streaming("tokens:300000 a")))
    assert eventually(lambda: target.running() == 2)
    time.sleep(1.5)
    assert target.running() == 2, "the stream ran into nowhere"
    assert target.process.memory_bytes() - before < 150 * MIB
    assert target.client.post(CHAT, content=GOOD).status_code == 200
    for raw in raws:
        raw.socket.close()
    assert eventually(lambda: target.running() == 0)


def test_junk_in_the_middle_of_a_stream_ends_it(target: "Target") -> None:
    """What is no HTTP behind a running request ends the connection; the stream never looks complete."""
    with RawConnection(target.port) as raw:
        raw.send(request_bytes("POST", CHAT, target.key, streaming("tokens:1000 pace:0.1")))
        raw.read_until(b"word2")
        raw.send(b"\x00\x00 junk\r\n\r\n")
        rest = raw.read_until(b"[DONE]")
        assert b"[DONE]" not in rest
    assert eventually(lambda: target.running() == 0)


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
