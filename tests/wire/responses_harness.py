"""Events to a stream of the Responses protocol, and the rules that hold for every such stream."""

import json
from typing import Any

from sekisho.core.events import Event, Failed
from sekisho.wire import responses

TERMINAL = {"response.completed", "response.incomplete", "response.failed"}
BROKEN = Failed("err_1", "engine_failed", "server_error", "The engine broke.")


def make(stream: bool = True, **fields: Any) -> responses.ResponsesEncoder:
    body = {"model": "sekisho-mini", "input": "hello", "stream": stream, **fields}
    request = responses.decode(json.dumps(body).encode(), "req_00ff")
    return responses.encoder(request, responses.with_history(request, []), "resp_00ff", 1_790_000_000, _seal)


def _seal(text: str) -> str:
    return "sealed:" + text[::-1]


def run(encoder: responses.ResponsesEncoder, *batches: list[Event]) -> bytes:
    return encoder.start() + b"".join(encoder.feed(batch) for batch in batches) + encoder.end()


def parse(stream: bytes) -> list[dict[str, Any]]:
    events = []
    for frame in stream.decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def check_order(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The rules of every stream, whatever the engine did. Returns the final response."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event["type"] for event in events if event["type"] in TERMINAL] == [events[-1]["type"]]
    final: dict[str, Any] = events[-1]["response"]
    never_done = unfinished(final)
    assert not (never_done and events[-1]["type"] == "response.completed")
    opened: list[str] = []
    open_now: list[str] = []
    done: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "response.output_item.added":
            assert event["output_index"] == len(opened)
            assert set(open_now) <= never_done  # one item at a time
            opened.append(event["item"]["id"])
            open_now.append(event["item"]["id"])
        elif event["type"] == "response.output_item.done":
            assert event["item"]["id"] == open_now.pop() == opened[event["output_index"]] == opened[-1]
            done.append(event["item"])
        elif "item_id" in event:
            assert event["item_id"] == open_now[-1] == opened[event["output_index"]] == opened[-1]
    assert set(open_now) == never_done
    assert [item for item in final["output"] if item["id"] not in never_done] == done
    assert [item["id"] for item in final["output"]] == opened
    check_deltas(events, final)
    return final


def unfinished(final: dict[str, Any]) -> set[str]:
    """Items that no event finishes: half a custom call where the answer was cut off, the last item of a failure."""
    halves = [item for item in final["output"] if item["status"] == "incomplete"]
    if final["status"] == "failed":
        assert halves in ([], final["output"][-1:])
        return {item["id"] for item in halves}
    return {item["id"] for item in halves if item["type"] == "custom_tool_call"}


def check_deltas(events: list[dict[str, Any]], final: dict[str, Any]) -> None:
    """The deltas of each part, joined, are the part in the final response."""
    joined: dict[tuple[str, int], str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            key = (event["item_id"], event.get("content_index", 0))
            joined[key] = joined.get(key, "") + event["delta"]
    for item in final["output"]:
        if item["type"] in ("message", "reasoning"):
            for index, part in enumerate(item.get("content", ())):
                assert joined.pop((item["id"], index)) == part.get("text", part.get("refusal"))
        elif item["type"] != "web_search_call":
            assert joined.pop((item["id"], 0), "") == item.get("arguments", item.get("input"))
    assert not joined
