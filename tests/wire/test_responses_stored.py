"""Answers about responses that are kept."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest
from sekisho.wire import responses


def items(count: int) -> list[dict[str, Any]]:
    return [{"type": "message", "id": f"msg_{number}", "role": "user", "content": []} for number in range(count)]


@given(st.integers(0, 30), st.integers(1, 12), st.sampled_from(["asc", "desc"]))
def test_pages_together_are_the_whole_list(count: int, limit: int, order: str) -> None:
    """Following `last_id` until `has_more` is false visits every item once, in the order asked for."""
    kept = items(count)
    seen: list[dict[str, Any]] = []
    after = None
    while True:
        page = responses.input_items_page(kept, after, limit, order)
        assert len(page["data"]) <= limit
        seen += page["data"]
        after = page["last_id"]
        if not page["has_more"]:
            break
        assert page["data"]
    assert seen == (kept if order == "asc" else kept[::-1])


@pytest.mark.parametrize(
    ("wrong", "param"),
    [({"limit": 0}, "limit"), ({"limit": 101}, "limit"), ({"order": "up"}, "order"), ({"after": "msg_9"}, "after")],
)
def test_a_bad_page_is_refused_by_name(wrong: dict[str, Any], param: str) -> None:
    """Each is the caller's fault and names the parameter."""
    with pytest.raises(InvalidRequest) as caught:
        responses.input_items_page(items(3), **wrong)
    assert caught.value.param == param


def test_cancelling_stops_what_runs_and_nothing_else() -> None:
    """A running response becomes cancelled, its open items incomplete; a finished one stays as it is."""
    running = {"id": "resp_1", "status": "in_progress", "output": [{"status": "completed"}, {"status": "in_progress"}]}
    stopped = responses.cancelled(running)
    assert stopped["status"] == "cancelled"
    assert [item["status"] for item in stopped["output"]] == ["completed", "incomplete"]
    assert running["status"] == "in_progress"
    assert responses.cancelled(stopped) is stopped


def test_a_deleted_response_says_so() -> None:
    """The protocol's own words."""
    assert responses.deleted("resp_1") == {"id": "resp_1", "object": "response", "deleted": True}
