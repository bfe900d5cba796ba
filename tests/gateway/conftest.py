"""Fixtures: a real gateway on a real port, and a real book."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # so that the tests find the harness beside them

from gateway_harness import FAKE, UNGUARDED, Launch, LiveGateway

from sekisho.audit.book import Book
from sekisho.audit.config import AuditConfig
from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import GatewayConfig
from sekisho.ops.home import Home
from sekisho.serve import Plan
from sekisho.settings import Settings


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """`launch(*models, **gateway options)` starts a gateway."""
    started: list[LiveGateway] = []

    def start(
        *models: ModelConfig, workers: dict[str, Any] | None = None, held: tuple[str, ...] = (), **options: Any
    ) -> LiveGateway:
        home = Home(tmp_path / f"home{len(started)}").create()
        settings = Settings(gateway=GatewayConfig(port=0, **options), models=models or (FAKE,), guard=UNGUARDED)
        live = LiveGateway(home, Plan(settings, workers or {}, held)).start()
        started.append(live)
        return live

    yield start
    for live in started:
        live.stop()


@pytest.fixture
def live(launch: Launch) -> LiveGateway:
    """A gateway with the model `fake`."""
    return launch()


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[Book]:
    opened = Book.open(tmp_path / "audit", tmp_path / "secrets", AuditConfig())
    yield opened
    await asyncio.to_thread(opened.close)
