"""Watchers that an unforeseen error does not end."""

import asyncio
from typing import Any

import pytest
from gateway_harness import LiveGateway, chat, eventually

from sekisho.gateway import trouble
from sekisho.store import KeySpec


class Breaks:
    """Stands before a function and raises at its first calls, as a programmer's error would."""

    def __init__(self, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch, times: int = 2) -> None:
        self.left = times
        self._true = getattr(owner, name)
        monkeypatch.setattr(owner, name, self)

    def __call__(self, *arguments: Any) -> Any:
        if self.left:
            self.left -= 1
            raise RuntimeError("unforeseen")
        return self._true(*arguments)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "FIRST_PAUSE_S", 0.05)


def _spent(broken: Breaks) -> bool:
    return eventually(lambda: not broken.left)


def test_the_health_of_an_engine_is_watched_on(
    live: LiveGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in it is logged with an id and is not the last look at the engine."""
    entry = live.gateway.roster.entries["fake"]
    monkeypatch.setattr("sekisho.gateway.roster._POLL_READY_S", 0.05)
    broken = Breaks(entry.engine, "health", monkeypatch)
    live.in_loop(entry.moved.set)  # it is looked at now, and not at the end of the longer pause
    assert _spent(broken)
    entry.card = None
    entry.health = type(entry.health)("down")
    assert eventually(lambda: live.fetch("/readyz").status_code == 200)
    assert any("RuntimeError (err_" in record.getMessage() for record in caplog.records)


def test_keys_are_watched_on(live: LiveGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is revoked after the error stops within seconds, and a new one opens."""
    client = live.client()
    broken = Breaks(live.gateway.store, "keys_revision", monkeypatch)
    assert _spent(broken)
    live.in_store(lambda store: store.revoke_key("test"))
    assert eventually(lambda: client.post("/v1/chat/completions", json=chat("hi")).status_code == 401)
    _, secret = live.create_key(KeySpec(name="new"))
    assert live.client(secret).post("/v1/chat/completions", json=chat("hi")).status_code == 200


def test_usage_goes_on_into_the_database(live: LiveGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the ledger loses nothing and ends nothing, the server's stop included."""
    broken = Breaks(live.gateway._spool, "drain", monkeypatch)
    assert _spent(broken)
    assert live.client().post("/v1/chat/completions", json=chat("hi")).status_code == 200
    assert len(live.usage(1)) == 1
    Breaks(live.gateway._spool, "drain", monkeypatch, times=10**9)
    live.stop()


async def test_the_pauses_grow_while_it_keeps_breaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watcher that always breaks does not fill the log; a cancellation ends it."""
    slept: list[float] = []
    monkeypatch.setattr(trouble, "FIRST_PAUSE_S", 1.0)

    async def work() -> None:
        raise RuntimeError("unforeseen")

    async def sleep(pause_s: float) -> None:
        slept.append(pause_s)
        if len(slept) == 9:
            raise asyncio.CancelledError

    monkeypatch.setattr(trouble.asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await trouble.persistently("test", work)
    assert slept == [1, 2, 4, 8, 16, 32, 60, 60, 60]
