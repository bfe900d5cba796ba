"""State of `/v1/responses` over real HTTP."""

import time
from typing import Any

import httpx
import pytest
from gateway_harness import LiveGateway

from sekisho.store import KeySpec


def create(live: LiveGateway, text: str, key: str | None = None, **more: Any) -> httpx.Response:
    return live.client(key).post("/v1/responses", json={"model": "fake", "input": text, **more})


def test_a_chain_carries_the_whole_conversation(live: LiveGateway) -> None:
    """Three turns by id: the engine counts the words of all that was said before; instructions are not inherited."""
    first = create(live, "one two", instructions="be brief").json()
    second = create(live, "three", previous_response_id=first["id"]).json()
    third = create(live, "four five", previous_response_id=second["id"]).json()
    assert [response["usage"]["input_tokens"] for response in (first, second, third)] == [4, 5, 8]


@pytest.mark.parametrize("stream", [True, False])
def test_an_unknown_previous_response_is_a_404(live: LiveGateway, stream: bool) -> None:
    """It is never ignored, also when streaming, and names the parameter."""
    answer = create(live, "hi", previous_response_id="resp_unknown", stream=stream)
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "previous_response_id"


def test_another_keys_response_does_not_exist(live: LiveGateway) -> None:
    """For get, delete, cancel, items and as previous id: the same 404 as for an id that never was."""
    mine = create(live, "secret").json()["id"]
    _, other = live.create_key(KeySpec(name="other"))
    client = live.client(other)
    asked = [
        client.get(f"/v1/responses/{mine}"),
        client.delete(f"/v1/responses/{mine}"),
        client.post(f"/v1/responses/{mine}/cancel"),
        client.get(f"/v1/responses/{mine}/input_items"),
        create(live, "hi", other, previous_response_id=mine),
    ]
    assert [answer.status_code for answer in asked] == [404] * 5
    assert live.client().get(f"/v1/responses/{mine}").status_code == 200


def test_stored_responses_are_read_paged_and_forgotten(live: LiveGateway) -> None:
    """GET gives what POST gave; input items come in pages; after DELETE it is gone; store=false never was."""
    made = create(live, "hello").json()
    client = live.client()
    assert client.get(f"/v1/responses/{made['id']}").json() == made
    items = client.get(f"/v1/responses/{made['id']}/input_items", params={"limit": 1, "order": "asc"}).json()
    assert [item["role"] for item in items["data"]] == ["user"]
    assert client.delete(f"/v1/responses/{made['id']}").json()["deleted"] is True
    assert client.get(f"/v1/responses/{made['id']}").status_code == 404
    hidden = create(live, "hello", store=False).json()["id"]
    assert client.get(f"/v1/responses/{hidden}").status_code == 404


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "", "0099999", "1" + "0" * 5000, "0001" + "0" * 5000])
def test_an_impossible_page_size_is_refused(live: LiveGateway, limit: str) -> None:
    """Also one of more digits than a number may have: a 400 that names it, never an error of ours."""
    made = create(live, "hello").json()["id"]
    answer = live.client().get(f"/v1/responses/{made}/input_items", params={"limit": limit})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


def test_a_background_response_is_polled_to_its_end(live: LiveGateway) -> None:
    """POST answers at once; GET shows it on its way and then completed; the usage is recorded."""
    made = create(live, "delay:0.2 a b", background=True).json()
    assert made["status"] in ("queued", "in_progress")
    assert _ended(live, made["id"])["status"] == "completed"
    assert live.usage(1)[0].status == "completed"


def test_a_background_response_can_be_cancelled(live: LiveGateway) -> None:
    """Cancel ends it, frees the slot, and stays: the stored response says cancelled; a second cancel is harmless,
    and one that has ended by itself cannot be cancelled."""
    made = create(live, "stall:1 a b", background=True).json()
    cancelled = live.client().post(f"/v1/responses/{made['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert live.client().get(f"/v1/responses/{made['id']}").json()["status"] == "cancelled"
    assert live.client().post(f"/v1/responses/{made['id']}/cancel").status_code == 200
    assert live.gateway.roster.entries["fake"].queue.running == 0
    done = create(live, "x").json()
    assert live.client().post(f"/v1/responses/{done['id']}/cancel").status_code == 400


def test_a_running_response_that_is_deleted_stays_deleted(live: LiveGateway) -> None:
    """DELETE of a response that is still being made ends it, frees the slot, and it is not stored again at its end."""
    made = create(live, "delay:0.5 a b", background=True).json()
    assert live.client().delete(f"/v1/responses/{made['id']}").json()["deleted"] is True
    assert live.gateway.roster.entries["fake"].queue.running == 0
    assert live.usage(1)[0].status == "failed"
    time.sleep(0.7)
    assert live.client().get(f"/v1/responses/{made['id']}").status_code == 404


def test_a_background_response_of_a_dead_process_is_told_as_failed(live: LiveGateway) -> None:
    """What was running when the process died is failed after the next start, not in progress for ever."""
    made = create(live, "stall:1 a b", background=True).json()
    live.in_store(lambda store: store.fail_stale_responses(time.time()))
    assert live.client().get(f"/v1/responses/{made['id']}").json()["status"] == "failed"


def _ended(live: LiveGateway, response_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while True:
        response: dict[str, Any] = live.client().get(f"/v1/responses/{response_id}").json()
        if response["status"] not in ("queued", "in_progress"):
            return response
        assert time.monotonic() < deadline
        time.sleep(0.02)
