"""What of a conversation is judged, and as whose words."""

from collections.abc import Iterator
from typing import Literal

import msgspec

from sekisho.core.turn import Document, Message, Reasoning, Refusal, Text, ToolCall, ToolResult, Turn

Voice = Literal["user", "assistant", "untrusted"]

_JOINED_MESSAGES = 3
_JOINED_CHARS = 1_200


class Passage(msgspec.Struct, frozen=True):
    """One text. `user`: what the caller asks for. `assistant`: what a model said, or what a client claims that it
    said. `untrusted`: instructions, tool results and documents, which may carry orders that nobody gave."""

    where: str
    voice: Voice
    text: str


def passages(turn: Turn) -> Iterator[Passage]:
    """Every text of the turn, in its order, and then the last requests once more in one piece: a request that is
    split over several messages is whole only there."""
    for number, prompt in enumerate(turn.prompts):
        if isinstance(prompt, str):
            yield Passage(f"prompts[{number}]", "user", prompt)
    if turn.suffix:
        yield Passage("suffix", "user", turn.suffix)
    requests: list[str] = []
    for number, message in enumerate(turn.messages):
        for passage in _of_message(message, f"messages[{number}]"):
            if passage.voice == "user":
                requests.append(passage.text)
            yield passage
    last = requests[-_JOINED_MESSAGES:]
    if len(last) > 1 and sum(map(len, last)) <= _JOINED_CHARS:
        yield Passage("messages", "user", "\n".join(last))


def _of_message(message: Message, where: str) -> Iterator[Passage]:
    voice: Voice = "untrusted"
    if message.role == "user":
        voice = "user"
    elif message.role == "assistant":
        voice = "assistant"
    words: list[str] = []
    for part in message.parts:
        match part:
            case Text(text) | Refusal(text):
                words.append(text)
            case ToolCall():
                if part.arguments:
                    yield Passage(where, "assistant", part.arguments)
            case ToolResult():
                text = "\n".join(inner.text for inner in part.content if isinstance(inner, Text))
                if text:
                    yield Passage(where, "untrusted", text)
            case Document():
                if part.name:
                    yield Passage(where, "untrusted", part.name)
            case Reasoning():
                if part.text:
                    yield Passage(where, "assistant", part.text)
            case _:
                pass  # images and sound: nothing here reads them
    if words:
        yield Passage(where, voice, "\n".join(words))


def last_request(turn: Turn) -> str:
    """What the caller said last, which is what a person who has to decide reads first."""
    text = ""
    for passage in passages(turn):
        if passage.voice == "user" and passage.where != "messages":
            text = passage.text
    return text
