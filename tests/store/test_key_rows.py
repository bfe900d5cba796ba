import asyncio
import string
from pathlib import Path

import pytest

from sekisho.core.clock import ManualClock
from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.store import KeySpec, Store, hash_secret


async def test_a_created_key_is_found_by_its_secret_and_by_nothing_else(store: Store) -> None:
    """The record comes back whole, by the hash of the secret only."""
    spec = KeySpec(
        name="太郎",
        scopes=frozenset({"admin"}),
        models=frozenset({"mini", "大"}),
        rpm=5,
        tpm=2**53 - 1,
        parallel=2,
        budget_tokens=0,
        budget_cost_micros=9,
        networks=("10.0.0.0/8",),
        expires_at=2_000_000_000.5,
    )
    record, secret = await store.create_key(spec)
    assert await store.find_key(hash_secret(secret)) == record
    assert await store.find_key(hash_secret(secret + "x")) is None
    assert await store.load_keys() == {hash_secret(secret): record}
    assert await store.list_keys() == [record]
    assert record.last4 == secret[-4:]
    assert {name: getattr(record, name) for name in spec.__struct_fields__} == {
        name: getattr(spec, name) for name in spec.__struct_fields__
    }


def files_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_the_secret_is_not_in_the_database(tmp_path: Path) -> None:
    """Whoever steals the file has hashes: the secret's random part stands nowhere in it."""
    store = await Store.open(tmp_path / "s.db")
    _, secret = await store.create_key(KeySpec(name="a"))
    await store.close()
    stored = files_in(tmp_path)
    assert hash_secret(secret).encode() in stored
    assert secret[11:].encode() not in stored
    assert secret[:-4].encode() not in stored


async def test_live_names_are_unique_and_a_revoked_one_is_free(store: Store) -> None:
    """Two live keys never share a name; after a revocation the name can be given again."""
    await store.create_key(KeySpec(name="taro"))
    with pytest.raises(InvalidRequest) as caught:
        await store.create_key(KeySpec(name="taro"))
    assert caught.value.param == "name"
    await store.revoke_key("taro")
    await store.create_key(KeySpec(name="taro"))
    assert len(await store.list_keys()) == 1
    assert len(await store.list_keys(include_revoked=True)) == 2


async def test_of_many_that_want_a_name_at_once_one_gets_it(store: Store) -> None:
    """The name is decided by the database, however many ask in the same moment."""
    wishes = [store.create_key(KeySpec(name="taro")) for _ in range(8)]
    outcomes = await asyncio.gather(*wishes, return_exceptions=True)
    refusals = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(refusals) == 7
    assert all(isinstance(refusal, InvalidRequest) for refusal in refusals)


async def test_a_revoked_key_opens_nothing_and_cannot_change_again(store: Store) -> None:
    """Revocation is final."""
    record, secret = await store.create_key(KeySpec(name="taro"))
    revoked = await store.revoke_key(record.id)
    assert revoked.revoked_at is not None
    assert await store.find_key(hash_secret(secret)) is None
    assert await store.load_keys() == {}
    for change in (store.revoke_key("taro"), store.rotate_key(record.id), store.revoke_key("nobody\0")):
        with pytest.raises(NotFound):
            await change


async def test_without_grace_a_rotation_stops_the_old_secret_at_once(store: Store) -> None:
    """The new secret opens the same key, the old one nothing."""
    record, old = await store.create_key(KeySpec(name="taro", rpm=3))
    rotated, new = await store.rotate_key("taro")
    assert (rotated.id, rotated.rpm, rotated.last4) == (record.id, 3, new[-4:])
    assert rotated.rotated_at is not None
    assert await store.find_key(hash_secret(old)) is None
    assert await store.find_key(hash_secret(new)) == rotated


async def test_in_its_grace_the_old_secret_opens_the_key_until_the_grace_ends(store: Store, clock: ManualClock) -> None:
    """Both secrets work for the grace; the old one's record says when it ends; a second rotation ends it early."""
    _, old = await store.create_key(KeySpec(name="taro"))
    _, middle = await store.rotate_key("taro", grace_s=60)
    found = await store.find_key(hash_secret(old))
    assert found is not None
    assert found.expires_at == clock.now() + 60
    assert set(await store.load_keys()) == {hash_secret(old), hash_secret(middle)}
    assert len(await store.list_keys()) == 1
    _, new = await store.rotate_key("taro", grace_s=60)
    assert set(await store.load_keys()) == {hash_secret(middle), hash_secret(new)}
    clock.advance(60)
    assert set(await store.load_keys()) == {hash_secret(new)}
    assert await store.find_key(hash_secret(middle)) is None


@pytest.mark.parametrize("grace_s", [-1, float("nan"), float("inf")])
async def test_a_grace_must_be_a_span_of_time(tmp_path: Path, grace_s: float) -> None:
    """A grace that is negative or endless is refused, and the key keeps its secret."""
    store = await Store.open(tmp_path / "s.db")
    _, secret = await store.create_key(KeySpec(name="taro"))
    revision = await store.keys_revision()
    with pytest.raises(InvalidRequest):
        await store.rotate_key("taro", grace_s=grace_s)
    assert await store.find_key(hash_secret(secret)) is not None
    assert await store.keys_revision() == revision
    await store.close()


async def test_an_expired_key_opens_nothing_but_is_listed(store: Store, clock: ManualClock) -> None:
    """Expiry is in force at the very second; the list still shows the key."""
    _, secret = await store.create_key(KeySpec(name="taro", expires_at=clock.now() + 10))
    clock.advance(9)
    assert await store.find_key(hash_secret(secret)) is not None
    clock.advance(1)
    assert await store.find_key(hash_secret(secret)) is None
    assert await store.load_keys() == {}
    assert len(await store.list_keys()) == 1


async def test_every_change_raises_the_revision_and_a_refused_one_does_not(store: Store) -> None:
    """A gateway that polls the revision sees every change of keys."""
    seen = [await store.keys_revision()]
    for number, letter in enumerate(string.ascii_lowercase[:3]):
        record, _ = await store.create_key(KeySpec(name=letter))
        seen.append(await store.keys_revision())
        assert record.revision == seen[-1]
        if number == 1:
            assert (await store.rotate_key(letter))[0].revision == await store.keys_revision()
            seen.append(await store.keys_revision())
    assert (await store.revoke_key("a")).revision == await store.keys_revision()
    seen.append(await store.keys_revision())
    assert seen == sorted(set(seen))
    with pytest.raises(InvalidRequest):
        await store.create_key(KeySpec(name="b"))
    assert await store.keys_revision() == seen[-1]
