"""uvicorn, with our error shape for broken HTTP, our drain, and structured logs."""

import asyncio
import logging
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any, cast

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sekisho.core.errors import InvalidRequest
from sekisho.wire import openai_error
from sekisho.wire.base import ErrorView

if TYPE_CHECKING:
    from sekisho.gateway.app import Gateway


class JsonLines(logging.Formatter):
    """One JSON object a line. Never holds a prompt or a key: nobody logs them."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = traceback.format_exception(record.exc_info[1])
        return msgspec.json.encode(line).decode()


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


class _Protocol(HttpToolsProtocol):
    """Writes answers in one piece, and answers what is not HTTP in our error shape."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own is
        self._one_write = _OneWrite(transport)
        super().connection_made(cast(asyncio.Transport, self._one_write))

    def on_response_complete(self) -> None:
        self._one_write.flush()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        view = ErrorView.of(InvalidRequest(f"{msg} This is not a valid HTTP/1.1 request.", code="malformed_http"))
        body = openai_error.error_body(view)
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, gateway: "Gateway") -> None:
        super().__init__(config)
        self._gateway = gateway

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.begin_drain()
        await super().shutdown(sockets)


def log_to_stderr() -> None:
    """The supervisor writes standard error to a rotating file."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def server(gateway: "Gateway") -> uvicorn.Server:
    """A server that is not running yet. Also used by tests, on a port of their own."""
    config = gateway.config
    return _Server(
        uvicorn.Config(
            gateway,
            host=config.host.strip("[]"),
            port=config.port,
            http=_Protocol,
            loop="auto",
            ws="none",
            interface="asgi3",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # whom to believe is `gateway.trusted_proxies`, read in `identity`
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            backlog=2048,
            # Our own abort comes first and tells the clients; this only ends what does not listen to it.
            timeout_graceful_shutdown=int(config.drain_timeout_s) + 5,
        ),
        gateway,
    )


def serve(gateway: "Gateway") -> None:
    """Blocks until SIGTERM or SIGINT, then drains."""
    log_to_stderr()
    running = server(gateway)
    with asyncio.Runner(loop_factory=running.config.get_loop_factory()) as runner:
        runner.run(running.serve())
