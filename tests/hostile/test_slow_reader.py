"""Clients and stores that keep an answer waiting."""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hostile_harness import RawConnection, eventually, request_bytes

from sekisho.gateway import answer
from sekisho.gateway.config import GatewayConfig
from sekisho.guard.config import GuardConfig
from sekisho.ops.home import Home
from sekisho.serve import Plan
from sekisho.settings import Settings

if TYPE_CHECKING:
    from conftest import Target


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Any]:
    """A gateway in this process, whose patience can be shortened."""
    source = Path(__file__).parents[1] / "gateway" / "gateway_harness.py"
    spec = importlib.util.spec_from_file_location("gateway_harness", source)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    guard = GuardConfig(mode="off", output=False)
    settings = Settings(gateway=GatewayConfig(port=0, keepalive_s=0.1), models=(module.FAKE,), guard=guard)
    live = module.LiveGateway(Home(tmp_path / "home").create(), Plan(settings, {})).start()
    yield live
    live.stop()


def test_a_client_that_never_reads_gives_its_slot_back(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `STALLED_READER_S` without a byte taken the turn ends and is booked as cancelled; the connection may
    stay."""
    monkeypatch.setattr(answer, "STALLED_READER_S", 0.5)
    body = b'{"model":"fake","stream":true,"messages":[{"role":"user","content":"tokens:400000 a"}]}'
    queue = live.gateway.roster.entries["fake"].queue
    with RawConnection(int(live.url.rsplit(":", 1)[1])) as raw:
        raw.send(request_bytes("POST", "/v1/chat/completions", live.key, body))
        assert eventually(lambda: queue.running == 1)
        assert eventually(lambda: queue.running == 0, 20.0)
    (row,) = live.usage(1)
    assert row.status == "cancelled"


def test_a_slow_reader_is_no_stalled_one(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who takes a little now and then gets the whole stream."""
    monkeypatch.setattr(answer, "STALLED_READER_S", 1.5)  # the whole takes longer, no single wait does
    body = b'{"model":"fake","stream":true,"messages":[{"role":"user","content":"tokens:20000 a"}]}'
    with RawConnection(int(live.url.rsplit(":", 1)[1])) as raw:
        raw.send(request_bytes("POST", "/v1/chat/completions", live.key, body))
        tail = b""
        while b"[DONE]" not in tail and (piece := raw.socket.recv(65536)):
            tail = tail[-10:] + piece
            time.sleep(0.03)
        assert b"[DONE]" in tail


def test_a_background_answer_outlasts_a_full_disk(own_target: "Callable[..., Target]") -> None:
    """What could not be booked is stored as failed as soon as there is room again, and is not left unfinished."""
    target = own_target()
    body = {"model": "fake", "input": "delay:0.8 hello", "background": True}
    started = target.client.post("/v1/responses", json=body).json()
    target.process.fill_disk(True)
    try:
        time.sleep(2.0)  # the answer ends in this time; its log is on the same disk and tells nothing
    finally:
        target.process.fill_disk(False)

    def status() -> str:
        return str(target.client.get(f"/v1/responses/{started['id']}").json()["status"])

    assert eventually(lambda: status() == "failed", 20.0), status()
