"""Identification, without a server."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.core.clock import ManualClock
from sekisho.core.errors import StoreUnavailable, Unauthenticated
from sekisho.gateway.identity import KeyRing, client_address, inside, networks, presented_secret, told_user
from sekisho.store import KeyRecord, hash_secret


class ScriptedStore:
    """The two questions that a ring asks; fails when told to."""

    def __init__(self, keys: Mapping[str, KeyRecord]) -> None:
        self.keys = dict(keys)
        self.revision = 1
        self.down = False
        self.asked = 0

    async def keys_revision(self) -> int:
        self.asked += 1
        if self.down:
            raise StoreUnavailable("down")
        return self.revision

    async def load_keys(self) -> Mapping[str, KeyRecord]:
        return dict(self.keys)


def record(**more: object) -> KeyRecord:
    return KeyRecord(name="taro", id="key_1", last4="abcd", created_at=0.0, revision=1, **more)  # type: ignore[arg-type]


def bearer(secret: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + secret.encode()}


async def test_a_known_key_works_while_the_store_is_down_and_an_unknown_one_is_our_trouble() -> None:
    """Trouble of the store is 503 for keys that cannot be checked, and nothing at all for those that are known."""
    store = ScriptedStore({hash_secret("good"): record()})
    ring = KeyRing(lambda: store, ManualClock())  # type: ignore[arg-type,return-value]
    assert (await ring.identify(bearer("good"))).caller.name == "taro"
    store.down = True
    assert (await ring.identify(bearer("good"))).caller.name == "taro"
    with pytest.raises(StoreUnavailable):
        await ring.identify(bearer("other"))
    store.down = False
    with pytest.raises(Unauthenticated):
        await ring.identify(bearer("other"))


async def test_the_meter_outlives_a_change_of_the_key() -> None:
    """A rotated key keeps its windows: rotating is not a way round a limit."""
    store = ScriptedStore({hash_secret("old"): record(rpm=5)})
    ring = KeyRing(lambda: store, ManualClock())  # type: ignore[arg-type,return-value]
    meter = (await ring.identify(bearer("old"))).meter
    store.keys, store.revision = {hash_secret("new"): record(rpm=7)}, 2
    holder = await ring.identify(bearer("new"))
    assert holder.meter is meter
    assert meter.limits.requests_per_minute == 7
    with pytest.raises(Unauthenticated):
        await ring.identify(bearer("old"))


async def test_an_expired_key_stops_by_the_clock_alone() -> None:
    """No refresh is needed for a key to end at its time."""
    clock, store = ManualClock(), ScriptedStore({})
    store.keys = {hash_secret("good"): record(expires_at=clock.now() + 10)}
    ring = KeyRing(lambda: store, clock)  # type: ignore[arg-type,return-value]
    await ring.identify(bearer("good"))
    clock.advance(10)
    with pytest.raises(Unauthenticated):
        await ring.identify(bearer("good"))


@pytest.mark.parametrize(
    ("headers", "secret"),
    [
        ({b"x-api-key": b"a"}, "a"),
        ({b"authorization": b"Bearer a"}, "a"),
        ({b"authorization": b"bearer  a "}, "a"),
        ({b"x-api-key": b"", b"authorization": b"Bearer a"}, "a"),
        ({b"x-api-key": b"a", b"authorization": b"Bearer "}, "a"),
        ({b"authorization": b"Basic a"}, None),
        ({b"authorization": b"Bearer"}, None),
        ({}, None),
    ],
)
def test_where_a_secret_may_stand(headers: dict[bytes, bytes], secret: str | None) -> None:
    """`x-api-key` first, then Bearer; an empty one counts as absent."""
    assert presented_secret(headers) == secret


@pytest.mark.parametrize(
    ("headers", "user"),
    [
        ({b"x-openwebui-user-email": b"taro@example.com", b"x-openwebui-user-id": b"7"}, "taro@example.com"),
        ({b"x-openwebui-user-email": b" ", b"x-openwebui-user-id": b"7"}, "7"),
        ({b"x-openwebui-user-email": b"taro\x00"}, None),
        ({}, None),
    ],
)
def test_for_whom_a_shared_page_asks(headers: dict[bytes, bytes], user: str | None) -> None:
    """The mail address, else the id; nothing that could not be shown."""
    assert told_user(headers) == user


def test_the_caller_behind_proxies_is_the_last_hop_that_we_do_not_trust() -> None:
    """What a client writes into the header itself stands further left and is never reached."""
    trusted = networks(["10.0.0.0/8", "::1/128"])
    assert client_address("10.0.0.1", b"1.1.1.1, 203.0.113.9, 10.0.0.7", trusted) == "203.0.113.9"
    assert client_address("203.0.113.1", b"10.0.0.9", trusted) == "203.0.113.1"
    assert client_address("::1", b"10.0.0.2", trusted) == "10.0.0.2"
    assert client_address("10.0.0.1", b"garbage", trusted) == "garbage"
    assert not inside("garbage", networks(["0.0.0.0/0"]))
    assert inside("::ffff:10.1.2.3", trusted)


@given(st.binary(max_size=60))
def test_any_bytes_in_a_header_are_harmless(value: bytes) -> None:
    """Identification never raises anything but its own errors, whatever stands in the headers."""
    presented_secret({b"authorization": value, b"x-api-key": value[:3]})
    client_address("127.0.0.1", value, networks(["127.0.0.0/8"]))
