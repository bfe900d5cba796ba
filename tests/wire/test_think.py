"""`/v1/think`: what the model is told, and what a caller is told where it does not obey."""

import json
from typing import Any

import pytest

from sekisho.core.errors import UnsupportedParameter
from sekisho.core.turn import Text, Turn
from sekisho.wire import chat, chat_client, think


def decode(*messages: tuple[str, str], **fields: Any) -> Turn:
    body = {"model": "m", "messages": [{"role": role, "content": content} for role, content in messages], **fields}
    return chat.decode(json.dumps(body).encode(), "req_1")


@pytest.mark.parametrize("language", ["ja", "en"])
def test_the_instruction_names_every_part(language: think.Language) -> None:
    """Four thinking parts and the final one, each opened and closed once, in order."""
    told = think.instructions(language)
    places = [told.index(f"<{part}>") for part in (*think.PARTS, "final")]
    assert len(think.PARTS) == 4
    assert places == sorted(places)
    assert all(f"</{part}>" in told for part in (*think.PARTS, "final"))


def test_the_instruction_joins_the_leading_ones() -> None:
    """It stands behind the caller's own instructions and before what was said; engines see one system message."""
    turn = think.asking(decode(("system", "Be brief."), ("developer", "No code."), ("user", "Hi"), ("system", "Late")))
    assert [message.role for message in turn.messages] == ["system", "developer", "system", "user", "system"]
    sent = json.loads(chat_client.encode_request(turn, model="m", stream=False))
    assert [message["role"] for message in sent["messages"]] == ["system", "user", "system"]
    assert sent["messages"][0]["content"].startswith("Be brief.")
    assert think.MARK in turn.extra
    assert think.MARK not in sent


@pytest.mark.parametrize(
    ("said", "language"), [("富士山の高さは？", "ja"), ("How high is Mt. Fuji?", "en"), ("", "en"), ("高さ", "ja")]
)
def test_the_language_is_the_users(said: str, language: str) -> None:
    """Of the user's last message, whatever else is said."""
    turn = think.asking(decode(("user", "Hello there"), ("assistant", "こんにちは"), ("user", said)))
    (told,) = [message for message in turn.messages if message.role == "system"]
    assert told.parts == (Text(think.instructions("ja" if language == "ja" else "en")),)


def test_a_format_of_the_whole_answer_is_refused() -> None:
    """JSON as a whole leaves no place for parts."""
    with pytest.raises(UnsupportedParameter) as raised:
        think.asking(decode(("user", "Hi"), response_format={"type": "json_object"}))
    assert raised.value.param == "response_format"


def test_a_failure_that_clients_do_not_try_again() -> None:
    """422, with a reason that says what to do."""
    failed = think.without_answer(cut=True)
    assert (failed.status, failed.code, failed.type) == (422, "thinking_without_answer", "invalid_request_error")
    assert "token" in failed.message
    assert think.without_answer(cut=False).message != failed.message
