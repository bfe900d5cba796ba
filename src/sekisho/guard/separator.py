"""Characters of one answer, told apart: visible, thought, or of no meaning (marks, headers of channels)."""

from typing import Literal

from sekisho.guard.markers import CHANNEL_MARKS, FIRST, Mark, grammar, look

Start = Literal["answer", "thought", "unknown"]
Piece = tuple[int, str]

# Kinds of a piece. The last two have no text: they say what the unknown start has turned out to be.
THOUGHT, VISIBLE, DROPPED, ANSWER, DISOWN = range(5)
_HEADER_LIMIT = 200

_Place = Literal["outside", "header", "hidden", "final"]


class Separator:
    """`feed` gives pieces in order, each character once; what could be the beginning of a mark waits.

    An `unknown` start is told once, if at all. `DISOWN`: whatever was visible before this place was no answer (a
    thought was closed that nobody opened, or parts or channels begin). `ANSWER`: a thought begins before the first
    word, so that no template had opened one. Inside a thought only tags of thinking count, inside a hidden channel
    only the marks of channels: the outer decides which inner ones mean anything. Thoughts nest. White space between
    the last mark and the first word of the answer is dropped.
    """

    def __init__(self, start: Start, final_only: bool, channels: bool) -> None:
        in_thought = start == "thought"
        self.before = ""
        self.final_only = final_only
        self._unknown = start == "unknown"
        self._held = ""
        self._depth = 1 if in_thought else 0
        self._fresh = in_thought  # the model may open once more what its template has opened
        self._in_final = False
        self._channels = channels
        self._place: _Place = "outside"
        self._header = ""
        self._said = False  # something visible that is no space
        self._marked = in_thought or final_only or channels
        self._rules = grammar(final_only, channels)
        self._kind = self._kind_now()
        self._pieces: list[Piece] = []

    def flows(self) -> bool:
        """Whether the next text without the beginning of a mark is visible as it is."""
        return self._kind == VISIBLE and self._said and not self._held

    def feed(self, text: str) -> list[Piece]:
        return self._scan(self._held + text, False)

    def end(self) -> list[Piece]:
        return self._scan(self._held, True)

    def _scan(self, text: str, ended: bool) -> list[Piece]:
        self._pieces = []
        self._held = ""
        begin = place = 0  # text[begin:place] is plain, and not given yet
        while found := FIRST.search(text, place):
            at = found.start()
            before = text[at - 1] if at else self.before
            mark, end = look(text, at, before, self._rules, ended)
            if mark is Mark.MORE:
                self._give(text[begin:at])
                self._held = text[at:]
                self._remember(text[:at])
                return self._pieces
            if mark is Mark.NONE:
                place = at + 1
                continue
            self._give(text[begin:at])
            begin = at
            place = at + 1
            if self._apply(mark):
                self._pieces.append((DROPPED, text[at:end]))
                begin = place = end
        self._give(text[begin:])
        self._remember(text)
        return self._pieces

    def _remember(self, text: str) -> None:
        if text:
            self.before = text[-1]

    def _give(self, text: str) -> None:
        if not text:
            return
        kind = self._kind
        if kind == DROPPED:
            self._header = (self._header + text)[:_HEADER_LIMIT]
        elif kind == THOUGHT:
            self._fresh = self._fresh and text.isspace()
        elif not self._said:
            words = text.lstrip()
            if self._marked and len(words) < len(text):
                self._pieces.append((DROPPED, text[: len(text) - len(words)]))
                text = words
            self._said = bool(words)
        if text:
            self._pieces.append((kind, text))

    def _apply(self, mark: Mark) -> bool:
        """Takes a mark in. False: it means nothing here, and is text."""
        if self._depth:
            taken = self._in_thought(mark)
        elif self._channels and self._place != "final":
            taken = mark in CHANNEL_MARKS and self._in_channel(mark)
        else:
            taken = self._in_answer(mark)
        if taken:
            self._fresh = False
            self._marked = True
            self._kind = self._kind_now()
        return taken

    def _in_thought(self, mark: Mark) -> bool:
        if mark in (Mark.OPEN, Mark.OPEN_PART):
            self._depth += not self._fresh
            if mark is Mark.OPEN_PART and self._fresh:
                self._expect_final()
        elif mark is Mark.CLOSE:
            self._depth -= 1
        else:
            return mark is Mark.EMPTY
        return True

    def _in_answer(self, mark: Mark) -> bool:
        if mark in CHANNEL_MARKS:
            return self._in_channel(mark)
        if mark in (Mark.FINAL_OPEN, Mark.FINAL_CLOSE):
            self._in_final = mark is Mark.FINAL_OPEN
        elif mark is Mark.CLOSE:
            self._clear(DISOWN)
        elif mark is Mark.OPEN_PART and not self.final_only:
            self._clear(DISOWN)
            self._expect_final()
            self._depth = 1
        elif mark is not Mark.EMPTY:
            self._clear(ANSWER)
            self._depth = 1
        return True

    def _expect_final(self) -> None:
        self.final_only = True
        self._rules = grammar(True, self._channels)

    def _in_channel(self, mark: Mark) -> bool:
        if mark is Mark.MESSAGE:
            if self._place != "header":
                return False
            words = self._header.split()
            self._place = "final" if words and words[0].lower() == "final" else "hidden"
            return True
        if not self._channels:
            self._clear(DISOWN)
            self._channels = True
            self._rules = grammar(self.final_only, True)
        self._place = "outside" if mark is Mark.END else "header"
        self._header = ""
        return True

    def _clear(self, what: int) -> None:
        if self._unknown and (what == DISOWN or not self._said):
            self._unknown = self._said = False
            self._pieces.append((what, ""))

    def _kind_now(self) -> int:
        if self._depth:
            return THOUGHT
        if self._channels and self._place != "final":
            return DROPPED if self._place == "header" else THOUGHT
        return VISIBLE if self._in_final or not self.final_only else THOUGHT
