"""Who asks: from the key in a header, and the network it came from, to a `Holder`.

The ring keeps every live key by its hash in memory (teams are small), so identification is a dictionary look-up that
also works while the database is down. The store's revision is polled, so a new, rotated or revoked key counts within
a second. A key that is unknown while the store cannot be asked is our trouble (503), never the caller's (401).
"""

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from sekisho.core.clock import Clock
from sekisho.core.errors import Forbidden, StoreUnavailable, Unauthenticated
from sekisho.core.turn import Caller
from sekisho.gateway.limits import Limits, Meter
from sekisho.store import KeyRecord, Store, hash_secret

log = logging.getLogger("sekisho.gateway.identity")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
POLL_S = 1.0
# The least time between two looks into the store, so that a flood of wrong keys asks it fifty times a second at most.
_LEAST_POLL_S = 0.02


class Holder:
    """A live key with its meter. The meter outlives changes of the key's record as long as the process lives."""

    __slots__ = ("caller", "meter", "networks", "record")

    def __init__(self, record: KeyRecord, meter: Meter) -> None:
        self.record = record
        self.meter = meter
        self.networks = networks(record.networks)
        self.caller = Caller(record.id, record.name, record.scopes, record.models)


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Parses CIDR networks. Raises ValueError."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


@lru_cache(maxsize=4096)
def inside(address: str | None, allowed: tuple[Network, ...]) -> bool:
    """Whether an address lies in one of the networks. A Unix socket (None) counts as inside."""
    if address is None:
        return True
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed.version == network.version and parsed in network for network in allowed)


def client_address(peer: str | None, forwarded_for: bytes | None, trusted: tuple[Network, ...]) -> str | None:
    """The caller's address: the last one in X-Forwarded-For that no trusted proxy has, if the peer is trusted."""
    if not trusted or forwarded_for is None or not inside(peer, trusted):
        return peer
    address = peer
    for hop in reversed(forwarded_for.decode("latin-1").split(",")):
        address = hop.strip()
        if not inside(address, trusted):
            break
    return address


def told_user(headers: Mapping[bytes, bytes]) -> str | None:
    """For whom a shared page says that it asks, as Open WebUI does with ENABLE_FORWARD_USER_INFO_HEADERS: for the
    accounts only. Like the body's `user` it is the client's word; the key answers for the request."""
    for name in (b"x-openwebui-user-email", b"x-openwebui-user-id"):
        told = headers.get(name, b"").decode("latin-1").strip()
        if told and told.isprintable():
            return told
    return None


def presented_secret(headers: Mapping[bytes, bytes]) -> str | None:
    """The secret of `x-api-key`, else of `Authorization: Bearer`; empty ones count as absent."""
    secret = headers.get(b"x-api-key", b"").strip()
    if not secret:
        scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            secret = value.strip()
    return secret.decode("latin-1") or None


class KeyRing:
    """All live keys. `start` may fail to reach the store: the ring keeps trying and says 503 meanwhile."""

    def __init__(self, store: Callable[[], Store | None], clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._holders: dict[str, Holder] = {}
        self._meters: dict[str, Meter] = {}
        self._revision: int | None = None
        self._looked_at_s = float("-inf")
        self._reachable = False
        self._refreshing: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    def known(self, headers: Mapping[bytes, bytes]) -> Holder | None:
        """The holder by memory alone, or None: the quick half of `identify`."""
        secret = presented_secret(headers)
        if secret is None:
            return None
        holder = self._holders.get(hash_secret(secret))
        return holder if holder is not None and not self._expired(holder) else None

    async def identify(self, headers: Mapping[bytes, bytes]) -> Holder:
        """Raises Unauthenticated or, where the store cannot be asked, StoreUnavailable."""
        holder = self.known(headers)
        if holder is not None:
            return holder
        if presented_secret(headers) is None:
            raise Unauthenticated(
                "No API key: send it as 'Authorization: Bearer sk-...' or 'x-api-key: sk-...'.", code="missing_api_key"
            )
        await self._refresh_from_now()
        holder = self.known(headers)
        if holder is not None:
            return holder
        if not self._reachable:
            raise StoreUnavailable("The key cannot be checked: the store does not answer.", retry_after_s=5.0)
        raise Unauthenticated("This API key is unknown, revoked or expired.")

    def holders(self) -> list[Holder]:
        return list(self._holders.values())

    async def watch(self) -> None:
        """Polls for changed keys until it is cancelled."""
        while True:
            await self._refresh_from_now()
            await asyncio.sleep(POLL_S)

    def _expired(self, holder: Holder) -> bool:
        expires = holder.record.expires_at
        return expires is not None and expires <= self._clock.now()

    async def _refresh_from_now(self) -> None:
        """A refresh that begins after this call, shared by all who wait for one."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._refresh_next(self._refreshing))
        await asyncio.shield(self._next)

    async def _refresh_next(self, running: asyncio.Task[None] | None) -> None:
        if running is not None:
            await asyncio.wait({running})  # its failure is told to those who waited for it
        await asyncio.sleep(max(0.0, self._looked_at_s + _LEAST_POLL_S - self._clock.monotonic()))
        self._looked_at_s = self._clock.monotonic()
        self._refreshing, self._next = self._next, None  # who comes from now on waits for another one
        await self._refresh()

    async def _refresh(self) -> None:
        store = self._store()
        try:
            if store is None:
                raise StoreUnavailable("The store is not open.")
            revision = await store.keys_revision()
            if revision != self._revision:
                self._replace(await store.load_keys())
                self._revision = revision
        except StoreUnavailable as error:
            if self._reachable:
                log.warning("keys cannot be refreshed: %s (%s)", error.message, error.id)
            self._reachable = False
        else:
            self._reachable = True

    def _replace(self, records: Mapping[str, KeyRecord]) -> None:
        holders = {}
        for secret_hash, record in records.items():
            meter = self._meters.setdefault(record.id, Meter(Limits()))
            meter.limits = Limits(
                record.rpm, record.tpm, record.parallel, record.budget_tokens, record.budget_cost_micros
            )
            holders[secret_hash] = Holder(record, meter)
        self._holders = holders


def check_network(holder: Holder, address: str | None) -> None:
    """Raises Forbidden when the key may not be used from this address."""
    if holder.networks and not inside(address, holder.networks):
        raise Forbidden(f"This key may not be used from {address}.", code="network_not_allowed")


def check_scope(holder: Holder, scope: str) -> None:
    """Raises Forbidden when the key lacks a scope. `admin` does not include the others."""
    if scope not in holder.record.scopes:
        raise Forbidden(f"This key lacks the scope '{scope}'.", code="scope_missing")
