"""uvicorn, with our connections, our drain, and structured logs."""

import asyncio
import socket
from typing import TYPE_CHECKING

import uvicorn

from sekisho.gateway.connection import Connection
from sekisho.gateway.log_lines import log_to_stderr

if TYPE_CHECKING:
    from sekisho.gateway.app import Gateway


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, gateway: "Gateway") -> None:
        super().__init__(config)
        self._gateway = gateway

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.begin_drain()
        await super().shutdown(sockets)


def server(gateway: "Gateway") -> uvicorn.Server:
    """A server that is not running yet. Also used by tests, on a port of their own."""
    config = gateway.config
    return _Server(
        uvicorn.Config(
            gateway,
            host=config.host.strip("[]"),
            port=config.port,
            http=Connection,
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
