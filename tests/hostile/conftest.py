"""One gateway process for each file of attacks; after each attack it must be as healthy as before."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "gateway"))  # the gateway's harness lies beside its tests
sys.path.insert(0, str(Path(__file__).parent))  # so that the tests find the harness beside them

from hostile_harness import GatewayProcess

from sekisho.engines.config import ModelConfig
from sekisho.store import KeySpec, Store, UsageRecord

ALL = frozenset({"chat", "embeddings", "admin", "control", "audit"})


class Target:
    """The gateway under attack. `key` is the attacker's, `other` a colleague's."""

    def __init__(self, folder: Path, *models: ModelConfig, database: str | None = None, **options: Any) -> None:
        self.database = database or str(folder / "sekisho.db")
        self.key, self.other = asyncio.run(self._keys())
        self._folder, self._models, self._options = folder, models, options
        if database:
            self._options["environment"] = {"DATABASE_URL": database}
        self.start()

    def start(self, wait: bool = True) -> None:
        """Also starts it again on the same home after `close`."""
        self.process = GatewayProcess(self._folder, *self._models, wait=wait, **self._options)
        self.port = self.process.port
        self.client = self.process.client(self.key)
        self.colleague = self.process.client(self.other)

    async def _keys(self) -> tuple[str, str]:
        store = await Store.open(self.database)
        try:
            first = await store.create_key(KeySpec(name="attacker", scopes=ALL))
            second = await store.create_key(KeySpec(name="colleague", scopes=ALL))
            self.key_id = first[0].id
            return first[1], second[1]
        finally:
            await store.close()

    def completed(self) -> int:
        """Requests counted as completed so far, of all keys."""
        text = self.colleague.get("/metrics").text
        lines = [line for line in text.splitlines() if line.startswith("sekisho_requests_total{")]
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if 'status="completed"' in line)

    def running(self) -> int:
        """Turns that are under way; -1 while the server has not read the keys yet."""
        models = self.colleague.get("/readyz").json().get("models")
        return int(models["fake"]["running"]) if models else -1

    def usage(self) -> list[UsageRecord]:
        """Every usage row in the database."""

        async def rows() -> list[UsageRecord]:
            store = await Store.open(self.database)
            try:
                return [row async for row in store.usage_rows(0, 1e11)]
            finally:
                await store.close()

        return asyncio.run(rows())

    def close(self) -> None:
        self.client.close()
        self.colleague.close()
        self.process.stop()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A gateway for the attacks of one file."""
    target = Target(tmp_path_factory.mktemp("target"))
    yield target
    _end(target)


@pytest.fixture(scope="module")
def hasty_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One that waits a second for a head or a body."""
    target = Target(tmp_path_factory.mktemp("hasty"), body_timeout_s=1.0)
    yield target
    _end(target)


@pytest.fixture(scope="module")
def open_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One that browsers of any origin may call."""
    target = Target(tmp_path_factory.mktemp("open"), cors_origins=("*",))
    yield target
    _end(target)


def _end(target: Target) -> None:
    target.close()
    log = target.process.log()
    assert "traceback" not in log, log
    assert "Traceback" not in log, log
    assert "internal_error" not in log, log


@pytest.fixture
def own_target(tmp_path: Path) -> Iterator[Callable[..., Target]]:
    """`own_target(*models, database=…, **gateway options)` starts one for this test alone."""
    made: list[Target] = []

    def make(*models: ModelConfig, **options: Any) -> Target:
        made.append(Target(tmp_path / f"home{len(made)}", *models, **options))
        return made[-1]

    yield make
    for target in made:
        target.close()
        assert "traceback" not in target.process.log(), target.process.log()


@pytest.fixture(autouse=True)
def _healthy_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever was thrown at it, the gateway lives."""
    yield
    if "target" in request.fixturenames:
        assert request.getfixturevalue("target").process.healthy()
