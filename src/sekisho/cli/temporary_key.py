"""A key for one measurement on the server's own machine: made in its store, and revoked at the end, however it ends."""

import secrets
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sekisho.evaluate.client.target import Key
    from sekisho.ops.home import Home
    from sekisho.settings import Settings

NAME_PREFIX = "evaluate-"
LASTS_S = 900.0
TERMINATED = 143
_ENDS = (signal.SIGTERM, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()))


@contextmanager
def temporary_key(
    place: "Home",
    settings: "Settings",
    purpose: str,
    *,
    lasts_s: float = LASTS_S,
    scopes: frozenset[str] = frozenset({"chat"}),
) -> "Iterator[Key]":
    """A key named `evaluate-<purpose>-…` without limits. It is revoked when the body ends, by Ctrl-C and SIGTERM too,
    and ends by itself after `lasts_s` where even that was not possible.

    Not inside a running loop. Raises StoreUnavailable where the store cannot be opened.
    """
    from sekisho.cli.keys import with_store
    from sekisho.evaluate.client.target import Key
    from sekisho.store import KeySpec

    name = f"{NAME_PREFIX}{purpose}-{secrets.token_hex(4)}"
    spec = KeySpec(name=name, scopes=scopes, expires_at=time.time() + lasts_s)
    with _ended_by_sigterm():
        record, secret = with_store(place, settings, lambda store: store.create_key(spec))
        try:
            yield Key(secret)
        finally:
            with _undisturbed():
                with_store(place, settings, lambda store: store.revoke_key(record.id))


def revoke_left(place: "Home", settings: "Settings", purpose: str) -> None:
    """Revokes what a process that was killed has left of this purpose. Not while another one works on it."""
    from sekisho.cli.keys import with_store
    from sekisho.store import Store

    async def revoke(store: Store) -> None:
        for record in await store.list_keys():
            if record.name.startswith(f"{NAME_PREFIX}{purpose}-"):
                await store.revoke_key(record.id)

    with_store(place, settings, revoke)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM and a closed terminal end the body as Ctrl-C does, so that what stands in `finally` is done."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in _ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C, of somebody who is impatient, does not keep the key alive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *_ENDS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
