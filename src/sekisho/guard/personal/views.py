"""Ways to read a text that keep the way back to its own offsets.

Folding (full-width forms, hyphens, spaces) replaces one character by one, so offsets stay. Taking out format characters
and undoing escapes (JSON, percent) changes lengths, so such a view carries an index.
"""

import re
from collections.abc import Iterator

import msgspec


def _table() -> dict[int, str]:
    table = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    table |= dict.fromkeys((0x3000, 0xA0, 0x202F, 0x205F, *range(0x2000, 0x200B)), " ")
    table |= dict.fromkeys((*range(0x2010, 0x2016), 0x2212, 0x2043, 0xFE58, 0xFE63, 0xFF0D), "-")
    table |= {0x2019: "'", 0x2018: "'", 0x201C: '"', 0x201D: '"', 0xFE55: ":", 0xFE52: ".", 0xFE6B: "@"}
    return table


_TABLE = _table()
_FOLDED = frozenset(map(chr, _TABLE))
_FORMAT_CHARACTERS = "\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff"
_FORMAT = re.compile(f"[{_FORMAT_CHARACTERS}]+")
_ODD = (
    frozenset(map(chr, range(0x200B, 0x2070)))
    | frozenset("\u00ad\u061c\u180e\ufeff")
    | frozenset(map(chr, range(0xFE00, 0xFE10)))
)
_ESCAPE = re.compile(r'\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})|%([2-7][0-9a-fA-F])|\\([nrtbf"\'/\\])')
_PLAIN = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
_LEVELS = 3  # JSON in JSON in JSON: a tool's arguments in a request in a log line


class View(msgspec.Struct, frozen=True):
    """`index[i]` is where `text[i]` begins in the original, with one more entry for its end; None: the same place."""

    text: str
    index: list[int] | None = None

    def place(self, start: int, end: int) -> tuple[int, int]:
        """The original's offsets of `text[start:end]`."""
        return (start, end) if self.index is None else (self.index[start], self.index[end])


def views(text: str) -> Iterator[View]:
    """The folded text first, then the same with escapes undone, as often as there are some."""
    if text.isascii():
        view = View(text)
    else:
        characters = set(text)
        folded = text
        for character in characters & _FOLDED:  # faster than `translate`, which looks at every character
            folded = folded.replace(character, _TABLE[ord(character)])
        view = View(folded)
        if characters & _ODD:
            view = _without_format(view)
    yield view
    for _ in range(_LEVELS):
        if "\\" not in view.text and "%" not in view.text:
            return
        undone = _undone(view)
        if undone is None:
            return
        view = undone
        yield view


def _without_format(view: View) -> View:
    index: list[int] = []
    pieces: list[str] = []
    done = 0
    for match in _FORMAT.finditer(view.text):
        pieces.append(view.text[done : match.start()])
        index.extend(range(done, match.start()))
        done = match.end()
    pieces.append(view.text[done:])
    index.extend(range(done, len(view.text) + 1))
    return View("".join(pieces), index)


def _undone(view: View) -> View | None:
    """One level of escapes less; None where there is none."""
    text = view.text
    origin = view.index if view.index is not None else range(len(text) + 1)
    index: list[int] = []
    pieces: list[str] = []
    done = 0
    for match in _ESCAPE.finditer(text):
        pieces.append(text[done : match.start()])
        index.extend(origin[done : match.start()])
        code = match[1] or match[2] or match[3]
        pieces.append(chr(int(code, 16)) if code else _PLAIN.get(match[4], match[4]))
        index.append(origin[match.start()])
        done = match.end()
    if not index and not pieces:
        return None
    pieces.append(text[done:])
    index.extend(origin[done:])
    plain = "".join(pieces)
    return View(plain if plain.isascii() else plain.translate(_TABLE), index)
