"""A gateway in a process of its own, so that its memory, its log and its death can be looked at; and raw sockets."""

import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import psutil
from kept_port import kept_port

from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import GatewayConfig
from sekisho.guard.config import GuardConfig
from sekisho.ops.home import Home
from sekisho.serve import Plan
from sekisho.settings import Settings

if TYPE_CHECKING:
    from conftest import Target

FAKE = ModelConfig(name="fake", engine="fake", slots=64)
UNGUARDED = GuardConfig(mode="off", output=False)
_ERROR_ID = re.compile(r"err_[A-Za-z0-9]+")


def eventually(fact: Callable[[], Any], within_s: float = 60.0) -> Any:
    """The first true value of `fact`, or its last one; generous, because a loaded machine is slow and not wrong."""
    deadline = time.monotonic() + within_s
    while not (found := fact()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


class GatewayProcess:
    """`python -m sekisho.serve gateway`, as the supervisor starts it."""

    def __init__(
        self,
        folder: Path,
        *models: ModelConfig,
        environment: dict[str, str] | None = None,
        wait: bool = True,
        **options: Any,
    ) -> None:
        self.home = Home(folder).create()
        self.port = kept_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = self.home.logs / "gateway.log"
        settings = Settings(gateway=GatewayConfig(port=self.port, **options), models=models or (FAKE,), guard=UNGUARDED)
        (self.home.run / "plan.json").write_bytes(msgspec.json.encode(Plan(settings, {})))
        with self._log.open("ab") as log:
            self.child = subprocess.Popen(
                (sys.executable, "-m", "sekisho.serve", "gateway", "--home", str(self.home.path)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )
        self._anybody = httpx.Client(base_url=self.url, timeout=60.0)  # keyless; a client is slow to make
        answers = eventually(lambda: self._probe("/readyz" if wait else "/healthz"))
        assert answers, self.log()

    def _probe(self, path: str) -> bool:
        assert self.child.poll() is None, self.log()
        try:
            return self._anybody.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def client(self, key: str, **options: Any) -> httpx.Client:
        options.setdefault("timeout", 60.0)
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key}"}, **options)

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def fill_disk(self, full: bool) -> None:
        """While full, every write of the process beyond the first byte of a file fails as on a full disk (Linux)."""
        _, hard = resource.prlimit(self.child.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.child.pid, resource.RLIMIT_FSIZE, (1 if full else hard, hard))

    def memory_bytes(self) -> int:
        return int(psutil.Process(self.child.pid).memory_info().rss)

    def peak_bytes(self) -> int:
        """The most memory that the process ever had (Linux)."""
        for line in Path(f"/proc/{self.child.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")

    def healthy(self) -> bool:
        return self._probe("/healthz")

    def stop(self) -> None:
        self._anybody.close()
        self.child.terminate()
        try:
            self.child.wait(60)
        finally:
            self.child.kill()
            self.child.wait()


def error_id(protocol: str, answer: httpx.Response) -> str:
    """Checks the protocol's own error shape; the id in it."""
    body = answer.json()
    if protocol in ("messages", "count_tokens"):
        assert body["type"] == "error", body
        assert isinstance(body["error"]["message"], str), body
        assert isinstance(body["error"]["type"], str), body
        told = body["request_id"]
    elif protocol.startswith("ollama"):
        found = _ERROR_ID.search(body["error"])
        assert found, body
        told = found[0]
    else:
        assert set(body) == {"error"}, body
        assert {"message", "type", "param", "code", "id"} <= set(body["error"]), body
        told = body["error"]["id"]
    assert _ERROR_ID.fullmatch(told), body
    assert answer.headers["x-error-id"] == told
    return str(told)


def refused(protocol: str, answer: httpx.Response, *statuses: int) -> dict[str, Any]:
    """Checks that an answer is a clean 4xx; its body."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:500])
    if statuses:
        assert answer.status_code in statuses, (answer.status_code, answer.text[:500])
    assert "Traceback" not in answer.text
    assert len(answer.content) < 2_000, "an error does not send the request back"
    error_id(protocol, answer)
    body: dict[str, Any] = answer.json()
    return body


# --- raw sockets ----------------------------------------------------------------------------------------------------


class Answer(msgspec.Struct, frozen=True):
    """One HTTP answer as its bytes say."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for known, value in self.headers if known == name), None)

    def json(self) -> Any:
        return json.loads(self.body)


class RawConnection:
    """A socket that sends any bytes and reads HTTP answers strictly."""

    def __init__(self, port: int, timeout_s: float = 60.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._unread = b""

    def __enter__(self) -> "RawConnection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> "RawConnection":
        """Sends what the server takes: one that hung up early has said why."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # an answer, if any, is in our receive buffer
            self.socket.sendall(data)
        return self

    def _more(self) -> bool:
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            return False
        self._unread += data
        return bool(data)

    def answer(self) -> Answer | None:
        """The next answer; None when the server closed without one."""
        while b"\r\n\r\n" not in self._unread:
            if not self._more():
                assert not self._unread, self._unread
                return None
        head, self._unread = self._unread.split(b"\r\n\r\n", 1)
        first, *lines = head.split(b"\r\n")
        assert re.fullmatch(rb"HTTP/1\.1 \d{3} [ -~]*", first), first
        for line in lines:
            assert re.fullmatch(rb"[!-9;-~]+: [ -~\t\x80-\xff]*", line), line
        headers = [
            (name.decode().lower(), value.strip().decode("latin-1"))
            for name, _, value in (line.partition(b":") for line in lines)
        ]
        length = int(dict(headers).get("content-length", "0"))
        while len(self._unread) < length:
            assert self._more(), "the body is shorter than its content-length"
        body, self._unread = self._unread[:length], self._unread[length:]
        return Answer(int(first.split()[1]), headers, body)

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to `mark`, or to the end."""
        while mark not in self._unread and self._more():
            pass
        data, self._unread = self._unread, b""
        return data

    def closed(self) -> bool:
        """Whether the server has nothing more to say and hangs up."""
        while self._more():
            pass
        return not self._unread


def request_bytes(method: str, target: str, key: str, body: bytes = b"", *lines: str, version: str = "1.1") -> bytes:
    """A request, correct but for what the caller puts in."""
    head = [f"{method} {target} HTTP/{version}", "Host: test", f"Authorization: Bearer {key}", *lines]
    if body:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


CHAT = "/v1/chat/completions"
GOOD = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hello"}]}).encode()


def told(answer: Answer | None, *statuses: int) -> str:
    """Checks one of our own errors; its code."""
    assert answer is not None, "the server hung up without a word"
    assert answer.status in statuses, (answer.status, answer.body)
    error = answer.json()["error"]
    assert error["id"].startswith("err_")
    return str(error["code"])


TEXT = "hello there"
USER = [{"role": "user", "content": TEXT}]
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"model": "fake", "messages": USER}),
    "completions": ("/v1/completions", {"model": "fake", "prompt": TEXT}),
    "responses": ("/v1/responses", {"model": "fake", "input": TEXT}),
    "messages": ("/v1/messages", {"model": "fake", "max_tokens": 9, "messages": USER}),
    "count_tokens": ("/v1/messages/count_tokens", {"model": "fake", "messages": USER}),
    "embeddings": ("/v1/embeddings", {"model": "fake", "input": TEXT}),
    "ollama_chat": ("/api/chat", {"model": "fake", "messages": USER}),
    "ollama_generate": ("/api/generate", {"model": "fake", "prompt": TEXT}),
    "ollama_embed": ("/api/embed", {"model": "fake", "input": TEXT}),
    "ollama_embeddings": ("/api/embeddings", {"model": "fake", "prompt": TEXT}),
    "ollama_show": ("/api/show", {"model": "fake"}),
}


def post(target: "Target", protocol: str, body: bytes | dict[str, Any]) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return target.client.post(BODIES[protocol][0], content=raw, headers={"content-type": "application/json"})


def raw_with(protocol: str, **fields: str) -> bytes:
    """The protocol's good body with raw JSON put into fields of it, replacing what was there."""
    good = {name: json.dumps(value) for name, value in BODIES[protocol][1].items()}
    return ("{" + ",".join(f'"{name}":{value}' for name, value in (good | fields).items()) + "}").encode()
