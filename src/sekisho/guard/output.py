"""The output is judged before it leaves: a window of the newest characters is held back until a verdict covers them.

    released | held, judged, but a match could begin here | not judged yet
             <------------- window_chars ---------------->

A phrase of at most `window_chars` characters is wholly in what the judge sees before its last character, and in fact
before any of it, can leave.
"""

import logging
import re
from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec

from sekisho.core.events import (
    Batch,
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from sekisho.core.verdict import Verdict

log = logging.getLogger("sekisho.guard.output")

Judge = Callable[[str], Verdict | None]
MINIMUM_WINDOW_CHARS = 16

# In arguments one character can be written as six (`\u3042`), so that a match can be six times as long.
_ESCAPED_LENGTH = 6
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_SHORT_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_SENTENCE_ENDS = ("。", "！", "？", "\n", ".", "!", "?")


class OutputOptions(msgspec.Struct, frozen=True):
    """`window_chars`: at least the longest match of the rules. The judge is asked once for every `step_chars` new
    characters, at the end of a sentence already for a quarter of them. `escalate`: what an ESCALATE in the middle of
    an answer does; with `allow` it is only noted."""

    window_chars: int = 256
    step_chars: int = 128
    escalate: Literal["refuse", "allow"] = "refuse"


class OutputWatch:
    """Watches the answer of one turn. `feed` every batch, `end` after the last one; never raises.

    Text, refusals, thinking that is shown and the arguments of each tool call are watched alike, each as a text of its
    own. Everything leaves in the order in which it came, `Usage` and `Finished` last; a delta leaves whole, so that a
    tool call is not begun before its first arguments may leave. Thinking does not wait for more of it once something
    else begins, or it would hold the answer up: a match over two stretches shows its beginning, never its end.
    The judge sees the new characters with at least twice the window before them; of arguments also what their escapes
    mean. It is asked before anything leaves, and what it has not seen does not leave. A judge that raises is a
    refusal. After a refusal of any choice nothing more leaves, and `verdict` says why: the caller calls the engine off
    and sends `refusal`. A `Failed` leaves at once and drops what was held.
    """

    def __init__(self, judge: Judge | None, options: OutputOptions | None = None, choices: int = 1) -> None:
        self.verdict: Verdict | None = None  # the one that ended the answer
        self.noted: list[Verdict] = []  # escalations that were let through
        self._options = options or OutputOptions()
        if self._options.window_chars < MINIMUM_WINDOW_CHARS or self._options.step_chars < 1:
            raise ValueError(f"A window has at least {MINIMUM_WINDOW_CHARS} characters and a step at least one.")
        self._judge = judge
        self._choices = [_Choice(self._options.window_chars) for _ in range(choices)]
        self._usage: Usage | None = None
        self._finished: list[Finished] = []
        self._over = False

    @property
    def refused(self) -> bool:
        return self.verdict is not None

    def feed(self, batch: Batch) -> Batch:
        """What may leave now."""
        out: Batch = []
        step, hurried = self._options.step_chars, self._options.step_chars // 4
        for event in batch:
            kind = type(event)
            if self._over:
                if kind is Usage:
                    self._usage = event  # type: ignore[assignment]
                continue
            if kind is TextDelta:
                choice = self._choices[event.choice]  # type: ignore[union-attr]
                watched = choice.text
                said: str = event.text  # type: ignore[union-attr]
                if choice.thinking is not None and not self._end_thinking(choice, out):
                    continue
            elif kind is ToolCallDelta or kind is ReasoningDelta or kind is RefusalDelta:
                choice = self._choices[event.choice]  # type: ignore[union-attr]
                if choice.thinking is not None and kind is not ReasoningDelta and not self._end_thinking(choice, out):
                    continue
                watched, said = choice.watched(event)
            else:
                self._other(event, out)
                continue
            watched.length = length = watched.length + len(said)
            watched.fresh.append(said)
            choice.queue.append((event, watched, length))
            new = length - watched.judged
            if new >= step or (new > hurried and said.endswith(_SENTENCE_ENDS)):
                self._ask(watched)
                if not self._over:
                    choice.release(out)
        return out

    def end(self) -> Batch:
        """The rest, judged, where the engine broke off without a `Finished` for every choice."""
        out: Batch = []
        if not self._over:
            self._end(out)
        return out

    def refusal(self, message: str) -> Batch:
        """The end of an answer that was refused: `message` as a refusal and `content_filter`, for every choice."""
        said: Batch = [RefusalDelta(message, index) for index in range(len(self._choices))]
        counted: Batch = [self._usage] if self._usage else []
        return [*said, *counted, *(Finished("content_filter", index) for index in range(len(self._choices)))]

    def _other(self, event: Event, out: Batch) -> None:
        if isinstance(event, Usage):
            self._usage = event
        elif isinstance(event, Finished):
            self._finished.append(event)
            if len(self._finished) == len(self._choices):
                self._end(out)
        else:
            out.append(event)
            self._over = isinstance(event, Failed)

    def _end(self, out: Batch) -> None:
        for choice in self._choices:
            for watched in choice.all():
                if watched.fresh and not self._over:
                    self._ask(watched)
        if self._over:
            return
        for choice in self._choices:
            out.extend(event for event, _, _ in choice.queue)
        if self._usage is not None:
            out.append(self._usage)
        out.extend(self._finished)
        self._over = True

    def _end_thinking(self, choice: "_Choice", out: Batch) -> bool:
        """A stretch of thinking is over: judged, it leaves. False: it was refused."""
        thinking, choice.thinking = choice.thinking, None
        if thinking is not None:
            self._ask(thinking)
            thinking.over = thinking.judged
            if not self._over:
                choice.release(out)
        return not self._over

    def _ask(self, watched: "_Watched") -> None:
        text = watched.take()
        if self._judge is None or not text:
            return
        try:
            verdict = self._judge(text)
            if watched.escaped and "\\" in text and not self._stops(verdict):
                verdict = self._judge(_unescaped(text)) or verdict
        except Exception as error:
            log.exception("the judge of the output broke, so the answer is refused")
            verdict = Verdict("refuse", "other", "high", rationale=type(error).__name__, decided_by="failure")
        if verdict is None or verdict.decision == "allow":
            return
        if self._stops(verdict):
            self.verdict = verdict
            self._over = True
        else:
            self.noted.append(verdict)

    def _stops(self, verdict: Verdict | None) -> bool:
        if verdict is None or verdict.decision == "allow":
            return False
        return verdict.decision == "refuse" or self._options.escalate == "refuse"


class _Watched:
    """One text as it grows. `judged` characters have been seen by the judge, `fresh` are the pieces behind them."""

    __slots__ = ("escaped", "fresh", "judged", "length", "over", "tail", "window")

    def __init__(self, window: int, escaped: bool = False) -> None:
        self.window = window
        self.escaped = escaped
        self.length = 0
        self.judged = 0
        self.over = -1  # what came before this place need not wait for what follows
        self.fresh: list[str] = []
        self.tail = ""

    def take(self) -> str:
        """What the judge is shown: twice the window of what it has seen, and all that is new."""
        text = self.tail + "".join(self.fresh)
        self.fresh.clear()
        self.judged = self.length
        self.tail = text[-2 * self.window :]
        return text


class _Choice:
    """One choice: its texts, and its deltas in order, each with where its text ends."""

    __slots__ = ("_others", "_window", "queue", "text", "thinking")

    def __init__(self, window: int) -> None:
        self._window = window
        self.text = _Watched(window)
        self.thinking: _Watched | None = None  # while a stretch of it goes on
        self._others: dict[int | str, _Watched] = {}
        self.queue: deque[tuple[Event, _Watched, int]] = deque()

    def all(self) -> list[_Watched]:
        return [self.text, *self._others.values()]

    def watched(self, event: Event) -> tuple[_Watched, str]:
        """The text that a delta other than of the text belongs to, and what it adds."""
        if isinstance(event, ToolCallDelta):
            call = self._others.get(event.index)
            if call is None:
                call = self._others[event.index] = _Watched(self._window * _ESCAPED_LENGTH, escaped=True)
            return call, event.arguments
        assert isinstance(event, (ReasoningDelta, RefusalDelta))
        kind = type(event).__name__
        other = self._others.get(kind)
        if other is None:
            other = self._others[kind] = _Watched(self._window)
        if isinstance(event, ReasoningDelta):
            self.thinking = other
        return other, event.text

    def release(self, out: Batch) -> None:
        queue = self.queue
        while queue:
            event, watched, place = queue[0]
            if place > watched.over and place > watched.judged - watched.window:
                return
            out.append(event)
            queue.popleft()


def _unescaped(text: str) -> str:
    meant = _ESCAPE.sub(_meant, text)
    return meant.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")  # pairs become one character


def _meant(escape: re.Match[str]) -> str:
    if escape[1]:
        return chr(int(escape[1], 16))
    return _SHORT_ESCAPES.get(escape[2], escape[2])
