"""Finding and replacing: the longest of overlapping finds gives the name, and all of their text goes."""

import re
from collections.abc import Iterable, Mapping

import msgspec

from sekisho.guard.personal.credentials import credentials
from sekisho.guard.personal.found import Found, Kind, Span
from sekisho.guard.personal.names import names
from sekisho.guard.personal.numbers import lettered, numbers
from sekisho.guard.personal.places import addresses, births, emails
from sekisho.guard.personal.views import View, views

PLACEHOLDER = re.compile(r"\[[A-Z]+(?:_[A-Z]+)*_[0-9]+\]")
_PLACEHOLDER_LOWER = re.compile(r"\[[a-z]+(?:_[a-z]+)*_[0-9]+\]")
_PASSES = 4
_REACH = 48  # characters; further away nothing depends on a placeholder


class Redacted(msgspec.Struct, frozen=True):
    """`found` refers to the text before; the n-th of them is the n-th placeholder of ours in `text`."""

    text: str
    found: tuple[Found, ...]


class Pseudonyms:
    """Numbers the values of one record: the same value gets the same placeholder in every text of it.

    Not shared between records: a number must not tell that two records speak of the same person.
    """

    def __init__(self) -> None:
        self._placeholders: dict[tuple[Kind, str], str] = {}
        self._originals: dict[str, str] = {}
        self._counts: dict[Kind, int] = {}

    @property
    def originals(self) -> Mapping[str, str]:
        """Placeholder -> the value as it was first written; for the sealed vault alone."""
        return self._originals

    def placeholder(self, kind: Kind, value: str, taken: frozenset[str] = frozenset()) -> str:
        """As in `[EMAIL_1]`. `taken`: placeholders that the text itself holds already."""
        key = (kind, _plain(value))
        known = self._placeholders.get(key)
        if known is not None:
            return known
        while True:
            self._counts[kind] = number = self._counts.get(kind, 0) + 1
            name = f"[{kind}_{number}]"
            if name not in taken:
                break
        self._placeholders[key] = name
        self._originals[name] = value
        return name


def find(text: str) -> tuple[Found, ...]:
    """Personal data and secrets, in order and without overlap. Linear in the text; raises nothing."""
    return tuple(Found(kind, start, end) for start, end, kind in _find(text))


def redact(text: str, pseudonyms: Pseudonyms | None = None) -> Redacted:
    """The text with a placeholder in place of each find. Redacting twice changes nothing more."""
    spans = _find(text)
    if not spans:
        return Redacted(text, ())
    pseudonyms = pseudonyms or Pseudonyms()
    taken = frozenset(PLACEHOLDER.findall(text)) if "_" in text else frozenset()
    pieces: list[str] = []
    done = 0
    for start, end, kind in spans:
        pieces += (text[done:start], pseudonyms.placeholder(kind, text[start:end], taken))
        done = end
    pieces.append(text[done:])
    return Redacted("".join(pieces), tuple(Found(kind, start, end) for start, end, kind in spans))


def _find(text: str) -> list[Span]:
    """Searches, puts placeholders, and searches again, because a gap may show what its neighbour hid."""
    spans = _merged(_search(text), text)
    if not spans:
        return spans
    for _ in range(_PASSES):
        shown, index = _with_placeholders(text, spans)
        more = _merged(_search_beside_placeholders(shown), shown)
        if not more:
            return spans
        spans = _merged([*spans, *((index[start], index[end], kind) for start, end, kind in more)], text)
    return spans


def _search(text: str) -> list[Span]:
    spans: list[Span] = []
    for view in views(text):
        spans += _in_view(view)
    return spans


def _search_beside_placeholders(text: str) -> list[Span]:
    """Searches what can have changed. A find that touches the edge of such a window was whole before, or is none."""
    spans: list[Span] = []
    for first, last in _windows(text):
        spans += (
            (first + start, first + end, kind)
            for start, end, kind in _search(text[first:last])
            if (start > 1 or not first) and (end < last - first - 1 or last == len(text))
        )
    return spans


def _windows(text: str) -> list[tuple[int, int]]:
    windows: list[tuple[int, int]] = []
    for start, end in _placeholders(text):
        first, last = max(0, start - _REACH), min(len(text), end + _REACH)
        if windows and first <= windows[-1][1]:
            windows[-1] = (windows[-1][0], last)
        else:
            windows.append((first, last))
    return windows


def _in_view(view: View) -> Iterable[Span]:
    text = view.text
    lower = (text if text.isascii() else text.replace("İ", "I")).lower()  # of the same length
    if "[" in lower:  # `[CARD_1]` must not call the number beside it a card
        lower = _PLACEHOLDER_LOWER.sub(lambda match: "·" * len(match[0]), lower)
    spans = credentials(text, lower)
    if "@" in text:
        spans += emails(text)
    spans += numbers(text, lower)
    spans += lettered(text, lower)
    spans += addresses(text, lower)
    spans += births(lower)
    spans += names(text)
    if view.index is None:
        return spans
    return [(*view.place(start, end), kind) for start, end, kind in spans]


def _merged(spans: list[Span], text: str) -> list[Span]:
    """Overlapping spans become one, of the longest one's kind. Placeholders that stand in the text stay."""
    kept = [(start, end) for start, end in _placeholders(text)] if spans else []
    spans = [span for span in spans if span[0] < span[1]]
    spans.sort(key=lambda span: (span[0], -span[1]))
    merged: list[Span] = []
    longest = 0
    for start, end, kind in spans:
        if merged and start < merged[-1][1]:
            before = merged[-1]
            if end - start > longest:
                longest = end - start
                merged[-1] = (before[0], max(end, before[1]), kind)
            else:
                merged[-1] = (before[0], max(end, before[1]), before[2])
        else:
            merged.append((start, end, kind))
            longest = end - start
    return _around(merged, kept) if kept else merged


def _around(spans: list[Span], kept: list[tuple[int, int]]) -> list[Span]:
    """The parts of the spans that no placeholder covers."""
    parts: list[Span] = []
    place = 0
    for start, end, kind in spans:
        while place and kept[place - 1][1] > start:
            place -= 1
        while place < len(kept) and kept[place][1] <= start:
            place += 1
        here = place
        while here < len(kept) and kept[here][0] < end:
            if kept[here][0] > start:
                parts.append((start, kept[here][0], kind))
            start = kept[here][1]
            here += 1
        if start < end:
            parts.append((start, end, kind))
    return parts


def _placeholders(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in PLACEHOLDER.finditer(text)] if "[" in text else []


def _with_placeholders(text: str, spans: list[Span]) -> tuple[str, list[int]]:
    """The text as it will look, with where each of its characters comes from."""
    pieces: list[str] = []
    index: list[int] = []
    done = 0
    for start, end, kind in spans:
        name = f"[{kind}_1]"
        pieces += (text[done:start], name)
        index.extend(range(done, start))
        index.extend([start] * len(name))
        done = end
    pieces.append(text[done:])
    index.extend(range(done, len(text) + 1))
    return "".join(pieces), index


_LOOSE = re.compile(r"[\s\-.()ー]+")


def _plain(value: str) -> str:
    """What makes two writings the same value: form, case and separators apart."""
    folded = next(iter(views(value))).text
    return _LOOSE.sub("", folded).lower()
