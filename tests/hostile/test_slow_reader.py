"""Clients and stores that keep an answer waiting."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gateway_harness import FAKE, UNGUARDED, LiveGateway
from hostile_harness import RawConnection, eventually, request_bytes
from worker_double import WorkerDouble

from sekisho.core.clock import ManualClock
from sekisho.engines.config import ModelConfig
from sekisho.gateway import answer
from sekisho.gateway.answer import StreamWriter
from sekisho.gateway.config import GatewayConfig
from sekisho.gateway.http import Request
from sekisho.ops.home import Home
from sekisho.serve import Plan
from sekisho.settings import Settings

if TYPE_CHECKING:
    from conftest import Target


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveGateway]:
    """A gateway in this process, whose patience can be shortened."""
    settings = Settings(gateway=GatewayConfig(port=0, keepalive_s=0.1), models=(FAKE,), guard=UNGUARDED)
    live = LiveGateway(Home(tmp_path / "home").create(), Plan(settings, {})).start()
    yield live
    live.stop()


def test_a_client_that_never_reads_gives_its_slot_back(live: LiveGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `STALLED_READER_S` without a byte taken the turn ends and is booked as cancelled; the connection may
    stay."""
    body = b'{"model":"fake","stream":true,"messages":[{"role":"user","content":"tokens:400000 a"}]}'
    queue = live.gateway.roster.entries["fake"].queue
    with RawConnection(int(live.url.rsplit(":", 1)[1])) as raw:
        raw.send(request_bytes("POST", "/v1/chat/completions", live.key, body))
        assert eventually(lambda: queue.running == 1)
        monkeypatch.setattr(answer, "STALLED_READER_S", 0.5)
        assert eventually(lambda: queue.running == 0)
    (row,) = live.usage(1)
    assert row.status == "cancelled"


def test_a_slow_reader_gets_the_whole_stream(live: LiveGateway) -> None:
    """More than the buffers between hold, taken bit by bit."""
    body = b'{"model":"fake","stream":true,"messages":[{"role":"user","content":"tokens:20000 a"}]}'
    with RawConnection(int(live.url.rsplit(":", 1)[1])) as raw:
        raw.send(request_bytes("POST", "/v1/chat/completions", live.key, body))
        tail = b""
        while b"[DONE]" not in tail and (piece := raw.socket.recv(65536)):
            tail = tail[-10:] + piece
            time.sleep(0.02)  # this is how slow it is
        assert b"[DONE]" in tail
    (row,) = live.usage(1)
    assert (row.status, row.output_tokens) == ("completed", 20000)


async def test_a_slow_reader_is_no_stalled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who takes a little now and then is written to, however long the whole takes; who then takes nothing for
    `STALLED_READER_S` counts as gone."""
    clock, taken = ManualClock(), asyncio.Semaphore(0)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock.monotonic)

    async def send(message: Any) -> None:
        await taken.acquire()

    async def nothing() -> Any:
        await asyncio.Event().wait()

    async def passes(seconds: float) -> None:
        clock.advance(seconds)
        for _ in range(10):
            await asyncio.sleep(0)

    request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, nothing, send)
    request.begun = True

    async def write() -> None:
        writer = StreamWriter(request, None, (), 10.0)  # type: ignore[arg-type]  # nobody is greeted
        for _ in range(21):
            await writer.write(b"a little")

    writing = asyncio.create_task(write())
    for _ in range(20):
        await passes(answer.STALLED_READER_S - 1.0)
        taken.release()
        await passes(0.0)
        assert not request.gone
    await passes(answer.STALLED_READER_S - 1.0)
    assert not request.gone
    await passes(10.0)
    assert request.gone
    with pytest.raises(asyncio.CancelledError):
        await writing


def test_a_background_answer_outlasts_a_full_disk(own_target: "Callable[..., Target]") -> None:
    """What could not be booked is stored as failed as soon as there is room again, and is not left unfinished."""
    engine = WorkerDouble("fake")
    try:
        target = own_target(ModelConfig(name="fake", engine="openai_http", url=engine.url, upstream_model="fake"))
        body = {"model": "fake", "input": "hello", "background": True}
        started = target.client.post("/v1/responses", json=body).json()
        assert eventually(lambda: engine.asked == 1)
        target.process.fill_disk(True)
        try:
            engine.speak(engine.words)
            assert eventually(lambda: engine.whole == 1)
            assert eventually(lambda: target.running() == 0)  # the answer has ended; the log is on the same disk
        finally:
            target.process.fill_disk(False)

        def status() -> str:
            return str(target.client.get(f"/v1/responses/{started['id']}").json()["status"])

        assert eventually(lambda: status() == "failed"), status()
    finally:
        engine.close()
