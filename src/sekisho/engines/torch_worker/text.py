"""Tokens to text that can be sent at once: no half characters, nothing that a stop string would have cut."""

from collections.abc import Callable
from typing import Final

_BROKEN: Final = "\ufffd"
_MOST_PENDING: Final = 16  # tokens that may wait for the end of a character; a sound one has four bytes


class Detokeniser:
    """`decode` makes text of token ids. Each piece is what the newest tokens add to the text of those just before
    them, for a token's text may depend on its neighbours (spaces, characters of several tokens)."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._before: list[int] = []  # said already; they give the next ones their place
        self._pending: list[int] = []

    def feed(self, token: int) -> str:
        """The text that is complete with this token; empty while a character is not."""
        self._pending.append(token)
        whole = self._decode(self._before + self._pending)
        if whole.endswith(_BROKEN) and len(self._pending) < _MOST_PENDING:
            return ""
        return self._said(whole)

    def finish(self) -> str:
        """What was still waiting, broken as it may be."""
        return self._said(self._decode(self._before + self._pending)) if self._pending else ""

    def _said(self, whole: str) -> str:
        old = self._decode(self._before) if self._before else ""
        text = whole[len(old) :] if whole.startswith(old) else whole[_common(whole, old) :]
        self._before, self._pending = self._pending, []
        return text


def _common(one: str, other: str) -> int:
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(other))


class StopFinder:
    """Holds back what may be the beginning of a stop string; `found` names the one that was said."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """What can be shown now. After a stop string was found: the rest before it, and then nothing."""
        if self.found is not None:
            return ""
        text = self._held + text
        hits = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if hits:
            # The first to begin; of those that begin at one place, the one that was complete first.
            at, self.found = min(hits, key=lambda hit: (hit[0], len(hit[1])))
            self._held = ""
            return text[:at]
        kept = self._open_end(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back, for nothing comes after it."""
        held, self._held = self._held, ""
        return held

    def _open_end(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = min(max((len(stop) for stop in self._stops), default=1) - 1, len(text))
        for length in range(longest, 0, -1):
            end = text[len(text) - length :]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
