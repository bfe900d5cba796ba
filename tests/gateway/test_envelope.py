"""Stored conversations are sealed, and what the store writes beside them is read."""

import msgspec
import pytest
from gateway_harness import LiveGateway

from sekisho.core.errors import NotFound
from sekisho.gateway import envelope
from sekisho.gateway.seal import Sealer

SEALER = Sealer(b"k" * 32)


def test_an_envelope_gives_back_what_it_was_given() -> None:
    """Objects and lists; nothing of them can be read from outside."""
    for value in ({"output": ["secret"], "status": "queued"}, ["secret", 1], []):
        body = envelope.close(SEALER, "key_1.resp_1", value)
        assert b"secret" not in body
        assert envelope.read(SEALER, "key_1.resp_1", body) == value


def test_what_stands_beside_wins() -> None:
    """The store marks a response as failed without a key."""
    body = msgspec.json.decode(envelope.close(SEALER, "o", {"status": "queued", "id": "resp_1"}))
    body["status"] = "failed"
    assert envelope.read(SEALER, "o", msgspec.json.encode(body)) == {"status": "failed", "id": "resp_1"}


def test_another_owner_reads_nothing() -> None:
    """Nor does a server with another key."""
    body = envelope.close(SEALER, "key_1.resp_1", {"a": 1})
    for sealer, owner in ((SEALER, "key_1.resp_2"), (Sealer(b"x" * 32), "key_1.resp_1")):
        with pytest.raises(NotFound):
            envelope.read(sealer, owner, body)


def test_what_was_stored_in_the_open_is_still_read() -> None:
    """Rows of an earlier version."""
    assert envelope.read(SEALER, "o", b'{"a":1}') == {"a": 1}
    assert envelope.read(SEALER, "o", b"[1]") == [1]


def test_a_stored_response_stands_in_no_file_in_the_clear(live: LiveGateway) -> None:
    """Neither question nor answer, of a chain that is read back whole."""
    word = "PURPLEELEPHANT"
    first = live.client().post("/v1/responses", json={"model": "fake", "input": f"say {word}"}).json()
    more = {"model": "fake", "input": "and again", "previous_response_id": first["id"]}
    second = live.client().post("/v1/responses", json=more).json()
    assert second["usage"]["input_tokens"] == 6
    kept = live.client().get(f"/v1/responses/{first['id']}").json()
    assert kept["output"] == first["output"]
    items = live.client().get(f"/v1/responses/{first['id']}/input_items").json()["data"]
    assert word in str(items)
    live.stop()
    for path in live.home.path.rglob("*"):
        assert not path.is_file() or word.encode() not in path.read_bytes(), path
