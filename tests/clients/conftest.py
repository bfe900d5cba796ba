"""Fixtures: one real gateway for all tests of a module, and others with settings of their own."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "gateway"))  # the harness lives beside the gateway's tests
sys.path.insert(0, str(Path(__file__).parent))

from gateway_harness import ALL, FAKE, UNGUARDED, LiveGateway

from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import GatewayConfig
from sekisho.guard.config import GuardConfig
from sekisho.ops.home import Home
from sekisho.serve import Plan
from sekisho.settings import Settings

Launch = Callable[..., LiveGateway]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """`launch(*models, **gateway options)` starts a gateway that lives as long as the module's tests."""
    started: list[LiveGateway] = []

    def start(
        *models: ModelConfig, workers: dict[str, Any] | None = None, guard: GuardConfig = UNGUARDED, **options: Any
    ) -> LiveGateway:
        home = Home(tmp_path_factory.mktemp("home")).create()
        settings = Settings(gateway=GatewayConfig(port=0, **options), models=models or (FAKE,), guard=guard)
        live = LiveGateway(home, Plan(settings, workers or {}), scopes=ALL | {"reasoning"}).start()
        started.append(live)
        return live

    yield start
    for live in started:
        live.stop()


@pytest.fixture(scope="module")
def live(launch: Launch) -> LiveGateway:
    """A gateway with the model `fake`, shared by the module's tests."""
    return launch()
