"""A conversation as plain text for a guard model, cut to size: what was left out is counted, never silent."""

from collections.abc import Iterable

import msgspec

from sekisho.core.turn import (
    Audio,
    Document,
    Image,
    Message,
    Part,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
)
from sekisho.guard.model_formats.base import Said


class Plain(msgspec.Struct, frozen=True):
    """`unseen_chars`: how much was cut out, at least. `unseen_parts`: kinds of parts that hold no text, sorted."""

    said: tuple[Said, ...]
    answer: str | None
    unseen_chars: int = 0
    unseen_parts: tuple[str, ...] = ()


def plain(conversation: Iterable[Message], answer: str | None, max_chars: int) -> Plain:
    """Head and tail of what was said within `max_chars`. The answer, or else the last message, may take half of it;
    the first and the latest messages share the rest."""
    unseen: set[str] = set()
    said = [Said(message.role, _valid(_text(message.parts, unseen))) for message in conversation]
    answer = None if answer is None else _valid(answer)
    whole = sum(len(one.text) for one in said) + len(answer or "")
    if whole > max_chars:
        share = max_chars if len(said) + (answer is not None) == 1 else max_chars // 2
        said = [Said(one.role, cut(one.text, share)) for one in said]
        answer = None if answer is None else cut(answer, share)
        said = _head_and_tail(said, max_chars - len(answer or ""))
    seen = sum(len(one.text) for one in said) + len(answer or "")
    return Plain(tuple(said), answer, max(0, whole - seen), tuple(sorted(unseen)))


def cut(text: str, max_chars: int) -> str:
    """Head and tail of a text, equal parts, with a mark between them."""
    if len(text) <= max_chars:
        return text
    mark = "\n[…]\n"
    kept = max(0, max_chars - len(mark))
    tail = kept // 2
    return text[: kept - tail] + mark + (text[-tail:] if tail else "")


def _head_and_tail(said: list[Said], room: int) -> list[Said]:
    """The latest messages first, but for a quarter of the room that the first one gets."""
    if not said:
        return said
    first, rest = said[0], said[1:]
    reserve = min(len(first.text), room // 4) if rest else 0
    kept: list[Said] = []
    left = room - reserve
    for one in reversed(rest):
        text = cut(one.text, left)
        if left < len(text) or left <= 0:
            break
        kept.append(Said(one.role, text))
        left -= len(text)
        if len(text) < len(one.text):
            break
    head = cut(first.text, left + reserve)
    return [Said(first.role, head), *reversed(kept)]


def _valid(text: str) -> str:
    """Half a surrogate pair cannot be sent to anybody."""
    return text.encode("utf-8", "replace").decode()


def _text(parts: Iterable[Part], unseen: set[str]) -> str:
    return "\n".join(filter(None, (_words(part, unseen) for part in parts)))


def _words(part: Part, unseen: set[str]) -> str:
    """Thinking that a client hands back is words like any other: nobody vouches for it."""
    match part:
        case Text() | Refusal():
            return part.text
        case Reasoning():
            return "\n".join(filter(None, (part.text, *part.summary)))
        case ToolCall():
            return f"{part.name} {part.arguments}"
        case ToolResult():
            return _text(part.content, unseen)
        case Image():
            unseen.add("image")
            return "(image)"
        case Audio():
            unseen.add("audio")
            return "(audio)"
        case Document():
            if part.data is None:
                return part.name or ""
            unseen.add("document")
            return f"(document {part.name or ''})"
