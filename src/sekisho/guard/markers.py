"""The marks by which models set their thinking apart, as text: read one from its first character.

`<think>`, `<think-anything>`, `<thinking>`, `<reasoning>` and their kin, `[THINK]`, harmony's `<|channel|>` family,
in any case, with white space and invisible characters inside, with full-width and other brackets. A mark is a mark
wherever it stands, in backticks and code blocks too: an answer that is cut short can be asked for again, a thought
that got out cannot be taken back.
"""

import re
import unicodedata
from enum import Enum
from functools import cache

import msgspec

MARK_LIMIT = 320  # characters that can be held back for one mark, white space and attributes included
_NAME_LIMIT = 64
_GAP_LIMIT = 32  # white space and invisible characters inside a mark, attributes aside
_ATTRIBUTES_LIMIT = 200


class Mark(Enum):
    OPEN = "open"
    OPEN_PART = "open part"  # one of several named parts, `<think-...>`: the answer stands in `<final>`
    CLOSE = "close"
    EMPTY = "empty"  # `<think/>`
    FINAL_OPEN = "final open"
    FINAL_CLOSE = "final close"
    CHANNEL = "channel"
    MESSAGE = "message"
    START = "start"
    END = "end"
    NONE = "none"  # no mark begins here
    MORE = "more"  # the next characters decide


CHANNEL_MARKS = frozenset({Mark.CHANNEL, Mark.MESSAGE, Mark.START, Mark.END})

_ANGLES = "<＜﹤〈《⟨‹◁"
_SQUARES = "[［【〔"
_ANGLE_CLOSERS = ">＞﹥〉》⟩›▷"
_SQUARE_CLOSERS = "]］】〕"
FIRST = re.compile(f"[{re.escape(_ANGLES + _SQUARES)}]")

_FOLDED = {
    **{0xFEE0 + code: code for code in range(0x21, 0x7F)},  # full-width forms
    **{code: code + 32 for code in range(ord("A"), ord("Z") + 1)},
    **{0xFEE0 + code: code + 32 for code in range(ord("A"), ord("Z") + 1)},
    **{ord(other): ord(">") for other in _ANGLE_CLOSERS},
    **{ord(other): ord("]") for other in _SQUARE_CLOSERS},
    **{ord(other): ord("<") for other in _ANGLES},
    ord("│"): ord("|"),
    0x2581: ord("_"),  # DeepSeek's spelling of a space in special tokens
}

# Names beside the open-ended family of `think...`. The second group is also the name of ordinary types in code
# (`List<Thought>`): it counts only where no letter or digit stands before it.
_NAMES = ("reasoning", "seed:think", "antthinking", "ant-thinking", "ant_thinking", "inner_monologue", "思考", "推論")
_TYPE_NAMES = ("thought", "thoughts", "scratchpad", "reflection", "chain_of_thought")
_THINK = "think"
_NAME_CHARACTERS = re.compile(r"[0-9a-z_:.\-]")
_IDENTIFIER = re.compile(r"[0-9A-Za-z_]")

_PIPED = {
    "|channel|": Mark.CHANNEL,
    "|start|": Mark.START,
    "|channel": Mark.OPEN,  # `<|channel>thought ... <channel|>`
    "channel|": Mark.CLOSE,
    **dict.fromkeys(("|think|", "|thinking|", "|inner_prefix|", "|start_thinking|"), Mark.OPEN),
    **dict.fromkeys(("|/think|", "|/thinking|", "|inner_suffix|", "|end_thinking|"), Mark.CLOSE),
    **{f"|{begin}_of_{name}|": Mark.OPEN for begin in ("begin", "start") for name in ("thought", "thinking")},
    **{f"|end_of_{name}|": Mark.CLOSE for name in ("thought", "thinking")},
}
_IN_CHANNELS = {"|message|": Mark.MESSAGE, **dict.fromkeys(("|end|", "|return|", "|call|"), Mark.END)}
_SQUARED = {
    **dict.fromkeys(("think", "thinking"), Mark.OPEN),
    **dict.fromkeys(("/think", "/thinking"), Mark.CLOSE),
}


class Grammar(msgspec.Struct, frozen=True):
    """Which marks can stand here. `named` may have attributes, `exact` not; `begins` holds every beginning of both."""

    named: dict[str, Mark]
    exact: dict[str, Mark]
    begins: frozenset[str]


@cache
def grammar(final: bool, channels: bool) -> Grammar:
    """`final`: `<final>` is a mark here. `channels`: those marks count that mean something between channels only."""
    named = dict.fromkeys((*_NAMES, *_TYPE_NAMES), Mark.OPEN)
    if final:
        named["final"] = Mark.FINAL_OPEN
    exact = {**_PIPED, **(_IN_CHANNELS if channels else {})}
    words = [*named, *(f"/{name}" for name in named), *exact, _THINK, f"/{_THINK}"]
    return Grammar(named, exact, frozenset(word[:end] for word in words for end in range(1, len(word) + 1)))


_SQUARE_BEGINS = frozenset(word[:end] for word in _SQUARED for end in range(1, len(word) + 1))


def look(text: str, at: int, before: str, rules: Grammar, ended: bool) -> tuple[Mark, int]:
    """What begins at `text[at]`, one of `FIRST`, and where it ends. `before` is the character before it.

    `MORE` only while the text could still become a mark, never where it has `ended`. What follows a mark changes
    nothing.
    """
    square = text[at] in _SQUARES
    closer = "]" if square else ">"
    body, gaps = "", 0
    place = at + 1
    size = min(len(text), at + MARK_LIMIT)
    while place < size:
        character = text[place].translate(_FOLDED)
        if character == closer:
            return _whole(body, square, before, rules), place + 1
        if character.isspace():
            if not square and _is_name(body, before, rules):
                return _late(text, place, size, body, rules, ended)
            gaps += 1
        elif _is_invisible(character):
            gaps += 1
        else:
            longer = body + character
            if not _can_begin(longer, square, rules) or len(longer) > _NAME_LIMIT:
                if not square and _is_name(body, before, rules) and _ends_name(body, character):
                    return _late(text, place, size, body, rules, ended)
                return Mark.NONE, 0
            body = longer
        if gaps > _GAP_LIMIT:
            return Mark.NONE, 0
        place += 1
    if not ended and size < at + MARK_LIMIT:
        return Mark.MORE, 0
    if not square and _is_name(body, before, rules):
        return _named(body, rules), place
    return Mark.NONE, 0


def _whole(body: str, square: bool, before: str, rules: Grammar) -> Mark:
    if square:
        return _SQUARED.get(body, Mark.NONE)
    if body in rules.exact:
        return rules.exact[body]
    return _named(body, rules) if _is_name(body, before, rules) else Mark.NONE


def _late(text: str, place: int, size: int, body: str, rules: Grammar, ended: bool) -> tuple[Mark, int]:
    """A name has ended at `place` without its bracket: attributes may follow, behind a closing tag only space. A
    thought whose tag never closes is opened all the same, right behind the name."""
    closing = body.startswith("/")
    limit = min(size, place + _ATTRIBUTES_LIMIT)
    for index in range(place, limit):
        character = text[index].translate(_FOLDED)
        if character == ">":
            empty = not closing and text[index - 1].translate(_FOLDED) == "/"
            return (Mark.EMPTY if empty else _named(body, rules)), index + 1
        if character == "<" or (closing and not (character.isspace() or _is_invisible(character))):
            return (Mark.NONE, 0) if closing else (_named(body, rules), place)
    if not ended and limit == len(text) and limit < place + _ATTRIBUTES_LIMIT:
        return Mark.MORE, 0
    return (Mark.NONE, 0) if closing and not ended else (_named(body, rules), place)


def _can_begin(body: str, square: bool, rules: Grammar) -> bool:
    if square:
        return body in _SQUARE_BEGINS
    if body in rules.begins:
        return True
    name = body.removeprefix("/")
    return name.startswith(_THINK) and _NAME_CHARACTERS.match(name[-1]) is not None


def _is_name(body: str, before: str, rules: Grammar) -> bool:
    """Whether this is the whole name of a tag."""
    name = body.removeprefix("/")
    if name in _TYPE_NAMES and body == name and _IDENTIFIER.match(before):
        return False
    return name in rules.named or name.startswith(_THINK)


def _ends_name(body: str, character: str) -> bool:
    """`<think,` is a mark of the open-ended family all the same; `<reasoning_effort` is none."""
    return body.removeprefix("/").startswith(_THINK) or character == "/"


def _named(body: str, rules: Grammar) -> Mark:
    name = body.removeprefix("/")
    final = rules.named.get(name) is Mark.FINAL_OPEN
    if body != name:
        return Mark.FINAL_CLOSE if final else Mark.CLOSE
    if final:
        return Mark.FINAL_OPEN
    return Mark.OPEN_PART if name.startswith((f"{_THINK}-", f"{_THINK}_")) else Mark.OPEN


def _is_invisible(character: str) -> bool:
    return not character.isascii() and (
        unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f" or character == "\u034f"
    )
