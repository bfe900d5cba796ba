"""Late instructions: moved without a word lost, and known from what templates say."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest
from sekisho.core.turn import Message, Text, Turn
from sekisho.wire.chat_errors import MisplacedInstructions, upstream_error
from sekisho.wire.instructions import leading_only

INSTRUCTIONS = ("system", "developer")
roles = st.sampled_from(["system", "developer", "user", "assistant"])


def turn_of(order: list[str]) -> Turn:
    messages = tuple(Message(role, (Text(f"{role} {n}"),)) for n, role in enumerate(order))  # type: ignore[arg-type]
    return Turn("turn_1", "chat", "m", messages=messages)


@given(st.lists(roles, max_size=12))
def test_instructions_stand_at_the_beginning_and_nothing_is_lost(order: list[str]) -> None:
    """After it no instruction stands behind another role; every word is there, in order; twice changes nothing."""
    turn = turn_of(order)
    placed = leading_only(turn)
    kinds = [message.role in INSTRUCTIONS for message in placed.messages]
    assert kinds == sorted(kinds, reverse=True)
    said = [part for message in placed.messages for part in message.parts]
    assert said == [part for message in turn.messages for part in message.parts]
    assert leading_only(placed) is placed
    if order == sorted(order, key=lambda role: role not in INSTRUCTIONS):
        assert placed is turn


@given(st.lists(st.sampled_from(["user", "assistant"]), max_size=6), st.data())
def test_roles_that_alternate_still_do(order: list[str], data: st.DataObject) -> None:
    """A conversation that alternates does so after instructions were strewn into it behind a user's words."""
    order = ["user" if n % 2 == 0 else "assistant" for n, _ in enumerate(order)]
    strewn = list(order)
    for _ in range(data.draw(st.integers(0, 3))):
        places = [n + 1 for n, role in enumerate(strewn) if role != "assistant"]
        if places:
            strewn.insert(data.draw(st.sampled_from(places)), "system")
    assert [message.role for message in leading_only(turn_of(strewn)).messages] == order


@pytest.mark.parametrize(
    "words",
    [
        "System message must be at the beginning.",
        "Only user, assistant and tool roles are supported, with only an initial system message",
        "After the optional system message, conversation roles must alternate user/assistant/user/assistant/...",
        "System prompt only allowed at the beginning",
    ],
)
def test_templates_are_understood(words: str) -> None:
    """What the templates of well-known models raise, behind whatever their engine puts before it."""
    for status in (400, 500):
        body = msgspec.json.encode({"error": {"message": f"Jinja Exception: {words} at row 3", "code": status}})
        assert isinstance(upstream_error(status, body), MisplacedInstructions)
    other = upstream_error(400, b'{"error":{"message":"system message is too loud"}}')
    assert type(other) is InvalidRequest
