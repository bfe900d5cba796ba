"""What is said of a response that is kept: its input page by page, that it is gone, that it was stopped. And what is
not kept of it: thinking that could be read."""

from collections.abc import Callable, Sequence
from typing import Any

from sekisho.core.errors import InvalidRequest


def input_items_page(
    items: Sequence[dict[str, Any]], after: str | None = None, limit: int = 20, order: str = "desc"
) -> dict[str, Any]:
    """One page of `GET /v1/responses/{id}/input_items`. Raises `InvalidRequest` naming `after`, `limit` or `order`."""
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' must be 'asc' or 'desc'.", param="order")
    if not 1 <= limit <= 100:
        raise InvalidRequest("'limit' must be from 1 to 100.", param="limit")
    listed = list(items) if order == "asc" else list(reversed(items))
    begin = 0
    if after is not None:
        places = [index for index, item in enumerate(listed) if item["id"] == after]
        if not places:
            raise InvalidRequest(f"'after' names no item of this response: {after!r:.80}.", param="after")
        begin = places[0] + 1
    page = listed[begin : begin + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": begin + limit < len(listed),
    }


def sealed_items(items: Sequence[dict[str, Any]], seal: Callable[[str], str] | None) -> list[dict[str, Any]]:
    """Items as they are stored, of an input or an output: thinking has no readable content and no summary, only its
    sealed form, from which `with_history` tells it to the engine again. Without a `seal` what was readable is lost."""
    return [_sealed(item, seal) if item.get("type") == "reasoning" else item for item in items]


def _sealed(item: dict[str, Any], seal: Callable[[str], str] | None) -> dict[str, Any]:
    kept = {key: value for key, value in item.items() if key != "content"}
    kept["summary"] = []
    text = "".join(part["text"] for part in item.get("content") or ())
    if not text and not item.get("encrypted_content"):
        text = "\n".join(part["text"] for part in item.get("summary") or ())
    if text:
        kept["encrypted_content"] = seal(text) if seal else None
    return kept


def deleted(response_id: str) -> dict[str, Any]:
    """The answer to `DELETE /v1/responses/{id}`."""
    return {"id": response_id, "object": "response", "deleted": True}


def cancelled(response: dict[str, Any]) -> dict[str, Any]:
    """The response, stopped: what was in progress is incomplete. One that is over already stays as it is."""
    if response.get("status") not in ("in_progress", "queued"):
        return response
    output = [
        {**item, "status": "incomplete"} if item.get("status") == "in_progress" else item
        for item in response.get("output", ())
    ]
    return {**response, "status": "cancelled", "output": output}
