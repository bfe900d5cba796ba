"""One connection: uvicorn's, with our error shape for what is not HTTP, and with an end to everything."""

import asyncio
import http
import re
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from sekisho.core.errors import BodyTimeout, HeadTooLarge, InvalidRequest, MethodNotAllowed, RequestError
from sekisho.wire import openai_error
from sekisho.wire.base import ErrorView

if TYPE_CHECKING:
    from sekisho.gateway.app import Gateway

HEAD_LIMIT_BYTES = 64 * 1024
# What a client may send behind a request that is still being answered.
AHEAD_LIMIT_BYTES = 1024 * 1024
LINGER_S = 1.0
_UPGRADE = b"\r\nupgrade:"
_FIND_UPGRADE = re.compile(re.escape(_UPGRADE), re.IGNORECASE)


def without_upgrade(data: bytes) -> tuple[bytes, bytes]:
    """Takes the name from an `Upgrade` header in the first head of `data`, and gives what may be parsed now and what
    must wait for more: a piece of an unfinished head may end within that name.

    A server may pass an upgrade over (RFC 9110, 7.8), but the parser would end the request there, without its body.
    """
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    rest = b"" if end < 0 else data[end:]
    cut = len(head)
    if end < 0:
        last = head.rfind(b"\r", -len(_UPGRADE))
        if last >= 0 and _UPGRADE.startswith(head[last:].lower()):
            cut = last - 2 if head[:last].endswith(b"\r\n") else last  # this may also be the head's end
    return _FIND_UPGRADE.sub(b"\r\nx-upgrade:", head[:cut]) + rest, head[cut:]


class _OneWrite:
    """A transport that sends an answer's head together with what follows it: one system call and one segment less
    for every answer. uvicorn writes the head by itself, and every caller of ours sends the body right after it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 100"):
            self._head += data
            return
        if self._head:
            data, self._head = self._head + data, b""
        self._transport.write(data)

    def flush(self) -> None:
        """Sends a head that nothing follows (the answer to a HEAD)."""
        if self._head:
            data, self._head = self._head, b""
            self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """Bounds what uvicorn leaves open: a head's size and time, what is sent ahead, and who hears of a lost client."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        gateway: Gateway = self.config.app  # type: ignore[assignment]
        self._head_timeout_s = gateway.config.body_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_head = True  # an idle connection is one before its next head
        self._in_body = False
        self._held = b""
        self._head_bytes = 0
        self._ahead_bytes = 0
        self._answering: RequestResponseCycle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own is
        self._one_write = _OneWrite(transport)
        super().connection_made(cast(asyncio.Transport, self._one_write))
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn tells the request that came last; the one that is being answered may be an earlier one."""
        self._end_head()
        super().connection_lost(exc)
        cycle = self._answering
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._in_body and (self._held or b"\r\n\r\n" not in data or _FIND_UPGRADE.search(data)):
            data, self._held = without_upgrade(self._held + data)
        super().data_received(data)
        if self._in_head:  # seldom: a head comes in one piece
            if self._head_timer is None:
                self._await_head()
                self._head_bytes = 0  # a piece in which a head begins may hold another request's end
            else:
                self._head_bytes += len(data)
            if self._head_bytes > HEAD_LIMIT_BYTES:
                self._refuse(HeadTooLarge(f"The request's head is larger than {HEAD_LIMIT_BYTES} bytes."))
        if self.pipeline:
            # uvicorn would stop reading, and so not see that the client leaves.
            self._ahead_bytes += len(data)
            if self._ahead_bytes > AHEAD_LIMIT_BYTES:
                self.transport.abort()
            else:
                self.flow.resume_reading()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._end_head()
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        self._ahead_bytes = 0
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self._one_write.flush()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Also for a CONNECT, whose target is no path."""
        self._refuse_head(InvalidRequest(f"{msg} This is not a valid HTTP/1.1 request.", code="malformed_http"))

    def _unsupported_upgrade_warning(self) -> None:
        """For what `without_upgrade` does not see: a head that came in one piece with the end of the body before it."""
        text = "Upgrades are not offered here: send the request without the header 'Upgrade'."
        self._refuse_head(InvalidRequest(text, code="upgrade_not_offered"))

    def _refuse_head(self, error: RequestError) -> None:
        if self.scope is not None and self.scope.get("method") == "CONNECT":
            error = MethodNotAllowed("This server is no proxy: it does not take CONNECT.")
        self._refuse(error)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._head_timeout_s, self._head_is_late)

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.headers is None:  # not a word was said
            self.transport.close()
        else:
            text = f"The request's head did not arrive within {self._head_timeout_s:g} s."
            self._refuse(BodyTimeout(text, code="head_timeout"))

    def _refuse(self, error: RequestError) -> None:
        """Answers and hangs up; in the middle of another answer only hangs up. Reads on for a moment: closing before
        everything was read would reset the connection, and the client would not see the answer."""
        self._end_head()
        self._refused = True
        if self.transport.is_closing():
            return
        cycle = self._answering
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or self.pipeline:
                self.transport.abort()
                return
            cycle.disconnected = True  # this is its answer
            cycle.message_event.set()
        view = ErrorView.of(error)
        body = openai_error.error_body(view)
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\nx-error-id: %b\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b"
            % (view.status, http.HTTPStatus(view.status).phrase.encode(), view.id.encode(), len(body), body)
        )
        self._one_write.flush()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)
