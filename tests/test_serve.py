"""The wiring's own wits."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sekisho import serve
from sekisho.gateway.config import GatewayConfig


async def test_a_gateway_that_is_too_busy_to_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it starts, a first question that nobody answers in time must not take the whole server down."""
    monkeypatch.setattr(serve, "PROBE_TIMEOUT_S", 0.2)
    asked = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.readuntil(b"\r\n\r\n")
        if asked == 1:
            await reader.read()  # until it gives up
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listener:
        config = GatewayConfig(port=listener.sockets[0].getsockname()[1])
        nobody = cast(Any, SimpleNamespace(statuses=list))
        assert await serve._until_ready(nobody, config) == ()
    assert asked == 2
