"""State of `/v1/responses` over real HTTP."""

import asyncio
import json
import threading
import time
from typing import Any

import httpx
import pytest
from gateway_harness import FAKE, PATIENCE_S, Launch, LiveGateway, eventually

from sekisho.core.errors import StoreUnavailable
from sekisho.gateway import answer
from sekisho.store import KeySpec, ResponseRecord


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
    made = create(live, "stall:1 a b", background=True).json()
    queue = live.gateway.roster.entries["fake"].queue
    assert eventually(lambda: queue.running == 1)
    assert live.client().delete(f"/v1/responses/{made['id']}").json()["deleted"] is True
    assert queue.running == 0
    assert live.usage(1)[0].status == "failed"
    assert eventually(lambda: not live.gateway.background)
    assert live.client().get(f"/v1/responses/{made['id']}").status_code == 404


def _hold_the_store(live: LiveGateway, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """(reached, go on): finished responses wait in front of the store, as they do before a locked database."""
    store, reached, go_on = live.gateway.store, threading.Event(), threading.Event()
    put = store.put_response

    async def slow(record: ResponseRecord) -> None:
        if record.status in ("completed", "failed"):
            reached.set()
            await asyncio.to_thread(go_on.wait, PATIENCE_S)
        await put(record)

    monkeypatch.setattr(store, "put_response", slow)
    return reached, go_on


def test_a_drain_does_not_cut_a_stream_that_is_being_stored(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads a last event that says why, and does not wait for the store."""
    live = launch(FAKE, drain_timeout_s=0.1)
    reached, go_on = _hold_the_store(live, monkeypatch)
    body = {"model": "fake", "input": "a b", "stream": True}
    with live.client().stream("POST", "/v1/responses", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        assert reached.wait(PATIENCE_S)
        live.in_loop(live.gateway.begin_drain)
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert events[-1]["type"] == "response.failed"
    assert "shutting down" in events[-1]["response"]["error"]["message"]
    go_on.set()


def test_a_cancel_that_comes_while_the_response_is_stored_is_too_late(
    live: LiveGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told so, and cuts nothing off: neither a stream nor a background response."""
    reached, go_on = _hold_the_store(live, monkeypatch)
    made = create(live, "a b", background=True).json()
    assert reached.wait(PATIENCE_S)
    late = live.client().post(f"/v1/responses/{made['id']}/cancel")
    assert (late.status_code, "completed" in late.text) == (400, True)
    reached.clear()
    with live.client().stream(
        "POST", "/v1/responses", json={"model": "fake", "input": "a b", "stream": True}
    ) as stream:
        lines = stream.iter_lines()
        opening = next(line for line in lines if line.startswith("data: "))
        assert reached.wait(PATIENCE_S)
        streamed = json.loads(opening[6:])["response"]["id"]
        assert live.client().post(f"/v1/responses/{streamed}/cancel").status_code == 400
        go_on.set()
        assert any("response.completed" in line for line in lines)
    assert [_ended(live, each)["status"] for each in (made["id"], streamed)] == ["completed"] * 2


def test_a_background_response_gets_a_last_chance_when_the_server_goes_down(
    live: LiveGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store in trouble is asked once more in place of the long wait, so that the row does not stay queued."""
    store, refused = live.gateway.store, threading.Event()
    put = store.put_response

    async def once_in_trouble(record: ResponseRecord) -> None:
        if record.status == "completed" and not refused.is_set():
            refused.set()
            raise StoreUnavailable("locked")
        await put(record)

    monkeypatch.setattr(store, "put_response", once_in_trouble)
    monkeypatch.setattr(answer, "KEEP_PAUSES_S", (60.0,))
    made = create(live, "a b", background=True).json()
    assert refused.wait(PATIENCE_S)
    key_id = live.gateway.ring.holders()[0].record.id
    live.stop()
    record = live.in_store(lambda store: store.get_response(made["id"], key_id, time.time()))
    assert record.status == "completed"


def test_a_background_response_of_a_dead_process_is_told_as_failed(live: LiveGateway) -> None:
    """What was running when the process died is failed after the next start, not in progress for ever."""
    made = create(live, "stall:1 a b", background=True).json()
    live.in_store(lambda store: store.fail_stale_responses(time.time()))
    assert live.client().get(f"/v1/responses/{made['id']}").json()["status"] == "failed"


def _ended(live: LiveGateway, response_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        response: dict[str, Any] = live.client().get(f"/v1/responses/{response_id}").json()
        if response["status"] not in ("queued", "in_progress"):
            return response
        assert time.monotonic() < deadline
        time.sleep(0.02)
