"""Modules that stand beside the tests can be imported by them, and so can the gateway's harness."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "gateway"))

from gateway_harness import FAKE, UNGUARDED, LiveGateway
from kept_port import KeptPort

from sekisho.engines import builtin, lifeline, llama_worker
from sekisho.engines.config import ModelConfig
from sekisho.evaluate.client.target import Key, Target
from sekisho.evaluate.speed import load
from sekisho.gateway.config import GatewayConfig
from sekisho.guard.config import GuardConfig
from sekisho.ops.home import Home
from sekisho.serve import Plan, Worker
from sekisho.settings import Settings

Gateways = Callable[..., LiveGateway]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateways]:
    """`gateway(guard=…)` starts a real one, with the fake engine unless told; it ends with the test."""
    started: list[LiveGateway] = []

    def start(
        *models: ModelConfig, guard: GuardConfig = UNGUARDED, workers: dict[str, Worker] | None = None
    ) -> LiveGateway:
        home = Home(tmp_path / f"home-{len(started)}").create()
        settings = Settings(gateway=GatewayConfig(port=0), models=models or (FAKE,), guard=guard)
        started.append(LiveGateway(home, Plan(settings, workers or {})).start())
        return started[-1]

    yield start
    for live in started:
        live.stop()


MINI = ModelConfig(name="sekisho-mini", path="builtin", slots=1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """llama.cpp's own server with the built-in model, in a process of its own."""
    if not builtin.path().exists():
        pytest.skip("the built-in model is not there: run `make mini`")
    key, log = llama_worker.new_key(), tmp_path_factory.mktemp("llama") / "log"
    environment = os.environ | llama_worker.environment(key) | lifeline.environment()
    with log.open("wb") as errors, KeptPort() as port:
        child = subprocess.Popen(llama_worker.argv(MINI, port), stdin=subprocess.PIPE, stderr=errors, env=environment)
        try:
            deadline = time.monotonic() + 100
            while not is_ready(port):
                assert child.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield Target("engine", f"http://127.0.0.1:{port}/v1", "sekisho-mini", Key(key))
        finally:
            child.kill()
            child.communicate()


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def mini(llama: Target, gateway: Gateways, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Target:
    """A real gateway, its guard on, before a real engine with the built-in model."""
    assert llama.key is not None
    for name, value in llama_worker.environment(llama.key.reveal()).items():
        monkeypatch.setenv(name, value)
    live = gateway(MINI, guard=GuardConfig(), workers={MINI.name: Worker(f"{llama.url}/v1", tmp_path / "worker.log")})
    return Target("gateway", live.url, MINI.name, Key(live.key))


@pytest.fixture
def uncollected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the collection before each cell, which takes long in a process that holds a whole test suite."""
    monkeypatch.setattr(load, "quiet", contextlib.nullcontext)
