"""Modules that stand beside the tests can be imported by them, and so can the gateway's harness."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "gateway"))

from gateway_harness import FAKE, UNGUARDED, LiveGateway

from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import GatewayConfig
from sekisho.guard.config import GuardConfig
from sekisho.ops.home import Home
from sekisho.serve import Plan
from sekisho.settings import Settings

Gateways = Callable[..., LiveGateway]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateways]:
    """`gateway(guard=…)` starts a real one, with the fake engine; it ends with the test."""
    started: list[LiveGateway] = []

    def start(*models: ModelConfig, guard: GuardConfig = UNGUARDED) -> LiveGateway:
        home = Home(tmp_path / f"home-{len(started)}").create()
        settings = Settings(gateway=GatewayConfig(port=0), models=models or (FAKE,), guard=guard)
        started.append(LiveGateway(home, Plan(settings, {})).start())
        return started[-1]

    yield start
    for live in started:
        live.stop()
