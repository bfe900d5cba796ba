"""One HTTP request and the ways to answer it, straight on ASGI: the road of a token has no room for a framework."""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from sekisho.core import ids
from sekisho.core.errors import BodyTimeout, InvalidRequest, TooLarge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON = b"application/json"
_SAFE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# A body over the limit is read and thrown away up to this size, so that the client reads our 413 and not a reset.
_DISCARD_BYTES = 256 * 1024 * 1024


class ClientGone(Exception):
    """The client closed the connection. Nothing can be told to it any more."""


class Request:
    """One request. `headers` holds the last value of each name; `id` goes back as `x-request-id`."""

    __slots__ = ("_receive", "begun", "finished", "gone", "headers", "id", "method", "path", "scope", "send")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        path: str = scope["path"]
        self.path = path.rstrip("/") or "/" if path.endswith("/") else path
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id")
        self.id = given.decode() if given is not None and _SAFE_ID.fullmatch(given) else ids.new("req")
        self._receive = receive
        self.send = send
        self.gone = False
        self.begun = False
        self.finished = False

    @property
    def peer(self) -> str | None:
        """The address that connected, None on a Unix socket."""
        client = self.scope.get("client")
        return client[0] if client else None

    def query(self) -> dict[str, str]:
        """The query's last values. Raises InvalidRequest for bytes that are not text."""
        try:
            pairs = parse_qs(self.scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict")
        except ValueError:
            raise InvalidRequest("The query string is not valid UTF-8.") from None
        return {name: values[-1] for name, values in pairs.items()}

    async def body(self, limit_bytes: int, timeout_s: float) -> bytes:
        """The whole body. Raises TooLarge, BodyTimeout, ClientGone."""
        declared = self.headers.get(b"content-length", b"0")
        length = int(declared.lstrip(b"0")[:20] or b"0") if declared.isdigit() else 0  # int takes 4,300 digits at most
        too_large = length > limit_bytes
        if too_large and (length > _DISCARD_BYTES or b"expect" in self.headers):
            raise _too_large(limit_bytes)  # nobody waits for a body that is not to be read
        if b"content-encoding" in self.headers and self.headers[b"content-encoding"].lower() != b"identity":
            raise InvalidRequest("Compressed request bodies are not taken: send the JSON as it is.")
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._receive()
                if not too_large and message["type"] == "http.request" and not message.get("more_body"):
                    chunk: bytes = message["body"]
                    if len(chunk) <= limit_bytes:
                        return chunk
                return await self._long_body(message, limit_bytes, too_large)
        except TimeoutError:
            if too_large:
                raise _too_large(limit_bytes) from None
            raise BodyTimeout(f"The request body did not arrive within {timeout_s:g} s.") from None

    async def _long_body(self, message: Message, limit_bytes: int, too_large: bool) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while True:
            if message["type"] == "http.disconnect":
                self.gone = True
                raise ClientGone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit_bytes:
                too_large = True
                chunks.clear()
            if not too_large:
                chunks.append(chunk)
            if not message.get("more_body") or size > _DISCARD_BYTES:
                break
            message = await self._receive()
        if too_large:
            raise _too_large(limit_bytes)
        return b"".join(chunks)

    async def watch(self, task: asyncio.Task[None]) -> None:
        """Cancels `task` when the client goes away. Run beside a long answer, after the body has been read."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                if not self.finished:
                    self.gone = True
                    task.cancel()
                return

    async def respond(
        self, status: int, body: bytes, content_type: bytes = JSON, headers: Sequence[Header] = ()
    ) -> None:
        """Sends a whole answer."""
        self.begun = self.finished = True
        await self.send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", content_type),
                    (b"content-length", b"%d" % len(body)),
                    (b"x-request-id", self.id.encode()),
                    *headers,
                ],
            }
        )
        await self.send({"type": "http.response.body", "body": body})


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"The request body is larger than the limit of {limit_bytes} bytes.")
