"""Thinking stays inside: what a model thinks is taken out of its answer, whatever format it thinks in.

Two rules. In a stream that is known or seen to be divided (`<think-...>` parts, harmony's channels, a template that
has opened the thought), only the final part leaves: an unknown tag there hides more, never less. In any other stream
text flows, held back only while its end could become a mark; what stands between marks stays inside. A thought that
never ends never leaves. Marks count in backticks and code blocks too (see `markers`).

    text deltas --> Separator: visible | thought | dropped --> tool calls and the rest fall in where they came
                                                           --> thoughts: hashed, and removed, sealed or revealed
"""

from collections import deque
from collections.abc import Callable

import msgspec

from sekisho.core.events import (
    Batch,
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from sekisho.guard.markers import FIRST
from sekisho.guard.separator import ANSWER, DISOWN, THOUGHT, VISIBLE, Separator, Start
from sekisho.wire import think

Seal = Callable[[str], str]
OnThought = Callable[[int, str], None]
_MarkedEvent = ReasoningDelta | RefusalDelta | ToolCallDelta


class ThinkingOptions(msgspec.Struct, frozen=True):
    """`start` is where the first character stands: in the `answer`, in a `thought` that the engine's template opened,
    or `unknown`: then nothing leaves before that is clear, which may be the end. `final_only`: only `<final>` leaves
    (`/v1/think`). `channels`: the model is known to speak harmony, so that nothing leaves before a final channel.
    `reveal`: thinking leaves as `ReasoningDelta` events. `keep_chars` bounds what is kept of the thinking of a choice
    and what can be sealed."""

    start: Start = "answer"
    final_only: bool = False
    channels: bool = False
    reveal: bool = False
    keep_chars: int = 1_000_000


class ThinkingFilter:
    """Filters the events of one turn; pure but for its hooks. `feed` every batch, `end` after the last one.

    The text that leaves does not depend on how it was cut into deltas. `Usage` and `Finished` leave together, after
    everything that was held back: with the last choice's `Finished`, or by `end`. A `Failed` leaves at once and drops
    what was held. Without `reveal`, `ReasoningDelta` events are removed; with `seal` each thought becomes one
    `ReasoningDelta` without text whose `sealed` is the sealed thought. `on_thought(choice, text)` is told every thought
    in order, in pieces, as it is taken out: the concatenation does not depend on the cuts either.
    A `final_only` answer without a final part ends in `think.WithoutAnswer`.
    """

    def __init__(
        self,
        options: ThinkingOptions | None = None,
        choices: int = 1,
        *,
        seal: Seal | None = None,
        on_thought: OnThought | None = None,
    ) -> None:
        options = options or ThinkingOptions()
        self._choices = [_Choice(options, index, seal, on_thought) for index in range(choices)]
        self._usage: Usage | None = None
        self._finished: list[Finished] = []
        self._over = False

    def thinking(self, choice: int = 0) -> str:
        """What has been taken out of a choice, without the marks; at most `keep_chars` of it."""
        return "".join(self._choices[choice].thoughts)

    def answered(self, choice: int = 0) -> bool:
        """Whether a visible character that is no space, a refusal or a tool call has left."""
        return self._choices[choice].answered

    def feed(self, batch: Batch) -> Batch:
        out: Batch = []
        for event in batch:
            if type(event) is TextDelta:
                choice = self._choices[event.choice]
                text = event.text
                if choice.flows and text and not FIRST.search(text):
                    choice.last = text
                    out.append(event)
                elif not self._over:
                    choice.say(event, out)
            elif self._over:
                break
            elif isinstance(event, (ReasoningDelta, RefusalDelta, ToolCallDelta)):
                self._choices[event.choice].pass_on(event, out)
            elif isinstance(event, Usage):
                self._usage = event
            elif isinstance(event, Finished):
                self._finished.append(event)
                if len(self._finished) == len(self._choices):
                    self._end(out)
            else:
                out.append(event)
                if isinstance(event, Failed):
                    self._close()
        return out

    def end(self) -> Batch:
        """What was held back, where the engine broke off without a `Finished` for every choice."""
        out: Batch = []
        if not self._over:
            self._end(out)
        return out

    def _end(self, out: Batch) -> None:
        for choice in self._choices:
            choice.end(out)
        if self._usage is not None:
            out.append(self._usage)
        reasons = {event.choice: event.reason for event in self._finished}
        silent = [choice for choice in self._choices if choice.index in reasons and choice.lacks_final()]
        if silent and not any(choice.answered for choice in self._choices):
            out.append(think.without_answer(cut=any(reason == "length" for reason in reasons.values())))
        else:
            without = {choice.index for choice in silent}
            out.extend(RefusalDelta(think.refusal(reasons[index] == "length"), index) for index in sorted(without))
            out.extend(
                msgspec.structs.replace(event, reason="content_filter")
                if event.choice in without and event.reason != "length"
                else event
                for event in self._finished
            )
        self._close()

    def _close(self) -> None:
        self._over = True
        for choice in self._choices:
            choice.flows = False


class _Choice:
    """One choice. Positions count the characters that came; what came in between waits for the characters before it."""

    __slots__ = (
        "_came",
        "_front",
        "_kept",
        "_late",
        "_on_thought",
        "_options",
        "_pending",
        "_seal",
        "_separator",
        "_tokens",
        "_unsealed",
        "answered",
        "flows",
        "index",
        "last",
        "thoughts",
    )

    def __init__(self, options: ThinkingOptions, index: int, seal: Seal | None, on_thought: OnThought | None) -> None:
        self.index = index
        self.last = ""  # the newest text that went by the short way
        self.flows = False  # text without a mark may go by the short way
        self.answered = False
        self.thoughts: list[str] = []
        self._kept = 0
        self._options = options
        self._seal = None if options.reveal else seal
        self._on_thought = on_thought
        self._separator = Separator(options.start, options.final_only, options.channels)
        self._pending: Batch | None = [] if options.start == "unknown" else None
        self._came = 0
        self._front = 0  # everything before is decided
        self._late: deque[tuple[int, _MarkedEvent]] = deque()
        self._tokens: deque[_Token] = deque()
        self._unsealed: list[str] = []

    def say(self, event: TextDelta, out: Batch) -> None:
        separator = self._separator
        if self.last:
            separator.before, self.last = self.last[-1], ""
        if event.logprobs:
            self._tokens.extend(_placed(event, self._came))
        self._came += len(event.text)
        for kind, text in separator.feed(event.text):
            self._advance(kind, text, out)
        self.flows = (
            separator.flows()
            and self.answered
            and self._pending is None
            and not self._tokens
            and not self._late
            and not self._unsealed
        )

    def pass_on(self, event: _MarkedEvent, out: Batch) -> None:
        """A thought, a refusal or a part of a tool call: in its place, behind the text that came before it."""
        if self._front < self._came:
            self._late.append((self._came, event))
        else:
            self._stage(event, out)
        if self._unsealed:
            self.flows = False

    def end(self, out: Batch) -> None:
        if self.last:
            self._separator.before, self.last = self.last[-1], ""
        for kind, text in self._separator.end():
            self._advance(kind, text, out)
        while self._late:
            self._stage(self._late.popleft()[1], out)
        pending, self._pending = self._pending, None
        for event in pending or ():
            self._leave(event, out)
        self._leave_sealed(out)

    def lacks_final(self) -> bool:
        """Whether this choice had to have a final part, and has none."""
        return self._separator.final_only and not self.answered

    def _advance(self, kind: int, text: str, out: Batch) -> None:
        if kind in (ANSWER, DISOWN):
            self._resolve(kind == DISOWN, out)
            return
        while self._late and self._late[0][0] <= self._front + len(text):
            place, event = self._late.popleft()
            cut = place - self._front
            self._say(kind, text[:cut], out)
            self._stage(event, out)
            text = text[cut:]
        self._say(kind, text, out)

    def _say(self, kind: int, text: str, out: Batch) -> None:
        if not text:
            return
        self._front += len(text)
        scores = self._scores(kind == VISIBLE, len(text)) if self._tokens else ()
        if kind == VISIBLE:
            self._stage(TextDelta(text, self.index, scores), out)
        elif kind == THOUGHT:
            self._stage(ReasoningDelta(text, self.index), out)

    def _scores(self, visible: bool, length: int) -> tuple[TokenLogprob, ...]:
        """The tokens that are whole now and of which every character is visible."""
        begin, whole = self._front - length, []
        for token in self._tokens:
            if token.begin >= self._front:
                break
            token.visible = token.visible and (visible or token.end <= begin)
        while self._tokens and self._tokens[0].end <= self._front:
            token = self._tokens.popleft()
            if token.visible:
                whole.append(token.score)
        return tuple(whole)

    def _resolve(self, disown: bool, out: Batch) -> None:
        """The unknown start is known. `disown`: what came so far was no answer but a thought."""
        pending, self._pending = self._pending, None
        for event in pending or ():
            if disown and isinstance(event, TextDelta):
                event = ReasoningDelta(event.text, self.index)
            self._leave(event, out)

    def _stage(self, event: Event, out: Batch) -> None:
        if self._pending is None:
            self._leave(event, out)
        else:
            self._pending.append(event)

    def _leave(self, event: Event, out: Batch) -> None:
        if isinstance(event, ReasoningDelta):
            self._keep(event.text)
            if self._options.reveal:
                out.append(event)
            return
        if self._unsealed:
            self._leave_sealed(out)
        out.append(event)
        self.answered = self.answered or not isinstance(event, TextDelta) or not event.text.isspace()

    def _leave_sealed(self, out: Batch) -> None:
        if self._unsealed and self._seal is not None:
            out.append(ReasoningDelta("", self.index, self._seal("".join(self._unsealed))))
        self._unsealed.clear()

    def _keep(self, text: str) -> None:
        if not text:
            return
        if self._on_thought is not None:
            self._on_thought(self.index, text)
        kept = text[: self._options.keep_chars - self._kept]
        if kept:
            self._kept += len(kept)
            self.thoughts.append(kept)
            if self._seal is not None:
                self._unsealed.append(kept)


class _Token:
    """The place of a token among the characters of its choice."""

    __slots__ = ("begin", "end", "score", "visible")

    def __init__(self, begin: int, end: int, score: TokenLogprob) -> None:
        self.begin = begin
        self.end = end
        self.score = score
        self.visible = True


def _placed(event: TextDelta, at: int) -> list[_Token]:
    """Where the tokens are not the text piece by piece (half a character each, or cut otherwise), each stands for the
    whole delta; one without a text for the character that follows."""
    size = max(len(event.text), 1)
    if "".join(score.token for score in event.logprobs) != event.text:
        return [_Token(at, at + size, score) for score in event.logprobs]
    placed = []
    for score in event.logprobs:
        end = at + len(score.token)
        placed.append(_Token(at, max(end, at + 1), score))
        at = end
    return placed


def final_text(text: str, options: ThinkingOptions | None = None) -> str:
    """What of a whole text may leave."""
    filter_ = ThinkingFilter(options)
    batch = [*filter_.feed([TextDelta(text)]), *filter_.end()]
    return "".join(event.text for event in batch if isinstance(event, TextDelta))


__all__ = ["OnThought", "Seal", "ThinkingFilter", "ThinkingOptions", "final_text"]
