"""What of a conversation is judged, and as whose words."""

import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from sekisho.core.turn import Document, Message, Reasoning, Refusal, Text, Tool, ToolCall, ToolResult, Turn
from sekisho.core.verdict import Verdict

Voice = Literal["user", "wrapped", "assistant", "untrusted"]

_JOINED_MESSAGES = 3
_JOINED_CHARS = 1_200
_SHOWN_CHARS = 4_000  # of a passage that is shown beside the request
_JOINED = "messages"
_WRAPPED = re.compile(r"\s*<([A-Za-z][\w-]{2,40})>.*</\1>\s*", re.DOTALL)


class Passage(msgspec.Struct, frozen=True):
    """One text. `user`: what the caller asks for. `wrapped`: the same with parts that stand whole in a tag, as coding
    agents put context beside a request (`<environment_context>…`), which reads like orders to a model. `assistant`:
    what a model said, or what a client claims that it said. `untrusted`: instructions, tools, their results and
    documents, which may carry orders that nobody gave."""

    where: str
    voice: Voice
    text: str


def passages(turn: Turn) -> Iterator[Passage]:
    """Every text of the turn that an engine may read, in its order, and then the last requests once more in one piece:
    a request that is split over several messages is whole only there."""
    for number, prompt in enumerate(turn.prompts):
        if isinstance(prompt, str):
            yield Passage(f"prompts[{number}]", "user", prompt)
    if turn.suffix:
        yield Passage("suffix", "user", turn.suffix)
    for number, tool in enumerate(turn.tools):
        yield Passage(f"tools[{number}]", "untrusted", _of_tool(tool))
    for where, value in (("format", (turn.format.description, turn.format.schema)), ("extra", turn.extra)):
        words = "\n".join(_strings(value))
        if words:
            yield Passage(where, "untrusted", words)
    requests: dict[str, Passage] = {}  # by place; of one with wrapped parts the whole
    for number, message in enumerate(turn.messages):
        for passage in _of_message(message, f"messages[{number}]"):
            if passage.voice in ("user", "wrapped"):
                requests.setdefault(passage.where, passage)
            yield passage
    last = list(requests.values())[-_JOINED_MESSAGES:]
    if len(last) > 1 and sum(len(passage.text) for passage in last) <= _JOINED_CHARS:
        wrapped = any(passage.voice == "wrapped" for passage in last)
        yield Passage(_JOINED, "wrapped" if wrapped else "user", "\n".join(passage.text for passage in last))


def unread(turn: Turn) -> Iterator[str]:
    """Where words stand that nobody here can read: prompts that are numbers of tokens."""
    return (f"prompts[{number}]" for number, prompt in enumerate(turn.prompts) if not isinstance(prompt, str))


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
                text = "\n".join(filter(None, (part.text, *part.summary)))
                if text:
                    yield Passage(where, "assistant", text)
            case _:
                pass  # images and sound: nothing here reads them
    own = [text for text in words if not _WRAPPED.fullmatch(text)] if voice == "user" else words
    if len(own) < len(words):
        yield Passage(where, "wrapped", "\n".join(words))
    if own:
        yield Passage(where, voice, "\n".join(own))


def _of_tool(tool: Tool) -> str:
    return "\n".join(filter(None, (tool.name, tool.description, *_strings(tool.parameters), *_strings(tool.grammar))))


def _strings(value: Any) -> Iterator[str]:
    """Every text in a piece of JSON but the names of its fields."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict):
            left.extend(reversed(one.values()))
        elif isinstance(one, list | tuple):
            left.extend(reversed(one))


def size_chars(turn: Turn) -> int:
    """How much there is to judge."""
    return sum(len(passage.text) for passage in passages(turn))


def last_request(turn: Turn) -> str:
    """What the caller said last; of raw prompts all, for each gets an answer."""
    asked = [passage for passage in passages(turn) if passage.voice == "user" and passage.where != _JOINED]
    if turn.prompts:
        return "\n".join(passage.text for passage in asked)
    return asked[-1].text if asked else ""


def shown(turn: Turn, verdict: Verdict) -> str:
    """What the book keeps of a turn, and what a person who has to decide reads: the request, and before it, named by
    its place, whatever else the verdict rests on."""
    request = last_request(turn)
    if verdict.decision == "allow":
        return request
    places = {finding.where for finding in verdict.findings if finding.decision == verdict.decision}
    told: list[str] = []
    for passage in passages(turn):
        if passage.where not in places or passage.text in request:
            continue
        text = passage.text if len(passage.text) <= _SHOWN_CHARS else f"{passage.text[:_SHOWN_CHARS]}…"
        told.append(f"[{passage.where}] {text}")
    return "\n\n".join([*told, request]) if told else request
