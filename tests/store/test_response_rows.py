import asyncio

import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.store import ResponseRecord, Store, response_rows

NOW = 1_790_000_000.0


def response(response_id: str, previous: str | None = None, **changes: object) -> ResponseRecord:
    record = ResponseRecord(
        id=response_id,
        key_id="key_1",
        created_at=NOW,
        expires_at=NOW + 100,
        status="completed",
        model="mini",
        response=b'{"id":"%b","status":"completed"}' % response_id.encode(),
        input_items=b"[]",
        previous_response_id=previous,
    )
    return msgspec.structs.replace(record, **changes)


async def put_line(store: Store, length: int) -> None:
    """r0 <- r1 <- … , one conversation."""
    for number in range(length):
        await store.put_response(response(f"r{number}", f"r{number - 1}" if number else None))


async def test_a_response_is_kept_byte_for_byte_and_replaced_by_its_successor(store: Store) -> None:
    """What is put is what is got, binary or not; a second put of the id replaces it."""
    first = response("r1", response=b'{"a":"\xe3\x81\x82\\u0000"}', input_items=bytes(range(256)), status="queued")
    await store.put_response(first)
    assert await store.get_response("r1", "key_1", NOW) == first
    second = msgspec.structs.replace(first, status="completed", response=b"{}", expires_at=NOW + 5)
    await store.put_response(second)
    assert await store.get_response("r1", "key_1", NOW) == second


async def test_nobody_else_sees_replaces_follows_or_deletes_it(store: Store) -> None:
    """For another key the response does not exist, and its id cannot be taken over."""
    mine = response("r1")
    await store.put_response(mine)
    assert await store.get_response("r1", "key_2", NOW) is None
    assert not await store.delete_response("r1", "key_2")
    with pytest.raises(NotFound):
        await store.put_response(response("r1", key_id="key_2", response=b"stolen"))
    with pytest.raises(NotFound):
        await store.response_chain("r1", "key_2", NOW)
    assert await store.get_response("r1", "key_1", NOW) == mine


async def test_deleted_and_expired_responses_are_gone(store: Store) -> None:
    """Deletion is at once, expiry to the second; the sweep removes exactly what has expired."""
    await put_line(store, 3)
    await store.put_response(response("short", expires_at=NOW + 1))
    assert await store.delete_response("r0", "key_1")
    assert not await store.delete_response("r0", "key_1")
    assert await store.get_response("r0", "key_1", NOW) is None
    assert await store.get_response("short", "key_1", NOW + 0.5) is not None
    assert await store.get_response("short", "key_1", NOW + 1) is None
    assert await store.expire_responses(NOW + 1) == 1
    assert await store.expire_responses(NOW + 1) == 0
    assert await store.get_response("r1", "key_1", NOW) is not None


async def test_a_deleted_id_stays_deleted_though_its_put_is_still_on_its_way(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes of one response happen in the order in which they were asked for, also where the database takes many at
    once; and nothing is kept of the ids."""
    await store.put_response(response("r1", status="queued"))
    put = response_rows.put

    async def slow(connection: AsyncConnection, record: ResponseRecord) -> None:
        await asyncio.sleep(0.2)
        await put(connection, record)

    monkeypatch.setattr(response_rows, "put", slow)
    storing = asyncio.create_task(store.put_response(response("r1")))
    await asyncio.sleep(0.05)
    assert await store.delete_response("r1", "key_1")
    await storing
    assert await store.get_response("r1", "key_1", NOW) is None
    assert not store._response_locks


async def test_a_chain_is_the_whole_conversation_oldest_first(store: Store) -> None:
    """Branches share their past; each chain has only its own turns."""
    await put_line(store, 5)
    await store.put_response(response("branch", "r1"))
    assert [r.id for r in await store.response_chain("r4", "key_1", NOW)] == ["r0", "r1", "r2", "r3", "r4"]
    assert [r.id for r in await store.response_chain("branch", "key_1", NOW)] == ["r0", "r1", "branch"]
    assert [r.id for r in await store.response_chain("r0", "key_1", NOW)] == ["r0"]


async def test_a_gap_in_the_chain_is_named_never_skipped(store: Store) -> None:
    """With a turn deleted, expired or foreign, the chain is a 404 that names it."""
    await put_line(store, 4)
    await store.delete_response("r1", "key_1")
    await store.put_response(response("old", expires_at=NOW + 1))
    await store.put_response(response("after_old", "old"))
    await store.put_response(response("foreign", key_id="key_2"))
    await store.put_response(response("after_foreign", "foreign"))
    for asked, lost in [
        ("r3", "r1"),
        ("after_old", "old"),
        ("after_foreign", "foreign"),
        ("never", "never"),
        ("r1", "r1"),
    ]:
        with pytest.raises(NotFound, match=f"'{lost}'") as caught:
            await store.response_chain(asked, "key_1", NOW + 1)
        assert caught.value.param == "previous_response_id"


async def test_a_chain_has_a_limit_and_a_circle_ends(store: Store) -> None:
    """Exactly `limit` turns pass, one more is refused, and rows that point at each other do not hang the server."""
    await put_line(store, 6)
    assert len(await store.response_chain("r5", "key_1", NOW, limit=6)) == 6
    with pytest.raises(InvalidRequest):
        await store.response_chain("r5", "key_1", NOW, limit=5)
    await store.put_response(response("r0", "r5"))
    with pytest.raises(InvalidRequest):
        await store.response_chain("r5", "key_1", NOW)


@pytest.mark.parametrize("hostile", ["\0", "a\0b", "\ud800", "x" * 100_000, "", "' OR 1=1 --"])
async def test_no_id_from_a_client_troubles_the_database(store: Store, hostile: str) -> None:
    """Any string is an id that does not exist: not found, never an error of ours."""
    assert await store.get_response(hostile, "key_1", NOW) is None
    assert not await store.delete_response(hostile, "key_1")
    with pytest.raises(NotFound):
        await store.response_chain(hostile, "key_1", NOW)


async def test_what_a_dead_process_left_unfinished_is_failed(store: Store) -> None:
    """Queued and running become failed in the row and in the object; finished ones and young ones stay."""
    for status in ("queued", "in_progress", "completed", "incomplete"):
        body = msgspec.json.encode({"id": status, "status": status, "output": []})
        await store.put_response(response(status, status=status, response=body))
    await store.put_response(response("young", status="in_progress", created_at=NOW + 50))
    assert await store.fail_stale_responses(NOW + 60, older_than_s=20) == 2
    assert await store.fail_stale_responses(NOW + 60, older_than_s=20) == 0
    failed = await store.get_response("queued", "key_1", NOW)
    assert failed is not None
    body = msgspec.json.decode(failed.response)
    assert (failed.status, body["status"], body["error"]["code"]) == ("failed", "failed", "server_error")
    untouched = await store.get_response("completed", "key_1", NOW)
    assert untouched is not None
    assert untouched.status == "completed"
    assert await store.fail_stale_responses(NOW + 60) == 1
