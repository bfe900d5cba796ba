"""One turn on its way through the checkpoint: what was said of it, and its outcome, which is written once."""

import asyncio
import logging
import time

import msgspec

from sekisho.audit.book import Book
from sekisho.audit.records import OutcomeRecord, Receipt
from sekisho.audit.writer import timestamp
from sekisho.core.events import Batch, Failed, Finished, RefusalDelta, TextDelta, ToolCallDelta, Usage
from sekisho.core.turn import Part, Reasoning, ToolCall, ToolResult, Turn
from sekisho.guard.personal import Pseudonyms, redact
from sekisho.wire import jsonio

log = logging.getLogger("sekisho.gateway.checkpoint")

_KEPT_CHARS = 200_000  # of an input or an output, in the book
_THREAD_CHARS = 4_000  # longer texts are redacted beside the event loop: a table of numbers costs 20 µs a number

_Place = tuple[int, str, int]  # of a text in an answer: choice, kind, number of the tool call


class Passing:
    """One turn on its way through: what was said of it, and its outcome, which is written once."""

    def __init__(self, turn: Turn, book: Book, started_s: float) -> None:
        self.book = book
        self.question = ""
        self.recorded = asyncio.Event()  # the verdict stands in the book's line
        self.usage: Usage | None = None
        self.finished: set[int] = set()
        self.said = False
        self.over = False
        self._turn = turn
        self._started_s = started_s
        self._first_s: float | None = None
        self._text: dict[_Place, list[str]] = {}  # what was said, each text by itself: choices come interleaved
        self._chars = 0
        self._thoughts: list[str] = []
        self._failed: Failed | None = None
        self._pseudonyms = Pseudonyms()
        self._locked_away = 0
        self._written = False

    def thought(self, choice: int, text: str) -> None:
        self._thoughts.append(text)

    def observe(self, batch: Batch) -> None:
        for event in batch:
            if isinstance(event, (TextDelta, RefusalDelta)):
                self._keep((event.choice, type(event).__name__, 0), event.text)
            elif isinstance(event, ToolCallDelta):
                self._keep((event.choice, "ToolCallDelta", event.index), event.arguments)
            elif isinstance(event, Usage):
                self.usage = event
            elif isinstance(event, Finished):
                self.finished.add(event.choice)
                self.over = len(self.finished) == choices_of(self._turn)
            elif isinstance(event, Failed):
                self._failed = event
                self.over = True

    def _keep(self, place: _Place, text: str) -> None:
        if text:
            self.said = True
            self._first_s = self._first_s or time.perf_counter()
            if self._chars < _KEPT_CHARS:
                self._text.setdefault(place, []).append(text)
                self._chars += len(text)

    def _spoken(self) -> str:
        return "\n".join("".join(pieces) for pieces in self._text.values())

    async def clean(self, text: str) -> str:
        """Without secrets and personal data; the same placeholders through the whole turn."""
        text = text[:_KEPT_CHARS]
        if len(text) > _THREAD_CHARS:
            cleaned = (await asyncio.to_thread(redact, text, self._pseudonyms)).text
        else:
            cleaned = redact(text, self._pseudonyms).text
        await self._lock_away()
        return cleaned

    async def _lock_away(self) -> None:
        """What the new placeholders stand for goes into the vault, where there is one, before the record that has
        them. Raises BookUnavailable."""
        vault, originals = self.book.vault, self._pseudonyms.originals
        if vault is None or len(originals) == self._locked_away:
            return
        new = dict(list(originals.items())[self._locked_away :])
        self._locked_away = len(originals)
        await asyncio.to_thread(vault.put, self._turn.id, new, timestamp(time.time()))

    async def ended(self, batch: Batch, status: str | None = None) -> Batch:
        """`batch`, once the outcome is with the kernel: it ends the answer."""
        if status is not None:
            self.observe(batch)
        await self.close(status or ("failed" if self._failed else "completed"), self._failed.id if self._failed else "")
        return batch

    async def close(self, status: str, error_id: str = "") -> None:
        """Writes the outcome, once. Raises BookUnavailable: then the answer must not be completed."""
        if self._written:
            return
        await self.recorded.wait()
        text = await self.clean(self._spoken())
        if not self._written:  # a wait that was broken off has been told by `leave`
            self._written = True
            await self.book.hand_over(self._outcome(status, error_id, text))

    def leave(self, status: str, error_id: str = "") -> None:
        """The caller gets no answer: the outcome is written without anybody waiting for it."""
        if self._written:
            return
        self._written = True
        task = asyncio.ensure_future(self._outcome_of_the_left(status, error_id))
        _LEFT.add(task)
        task.add_done_callback(_tell)

    async def _outcome_of_the_left(self, status: str, error_id: str) -> Receipt:
        text = await self.clean(self._spoken())
        return await self.book.hand_over(self._outcome(status, error_id, text))

    def _outcome(self, status: str, error_id: str, text: str) -> OutcomeRecord:
        usage = self.usage
        caller = self._turn.caller
        thoughts = "".join(self._thoughts)
        return OutcomeRecord(
            request_id=self._turn.id,
            user_id=user_of(self._turn),
            key_id=caller.key_id if caller else "",
            status=status,
            output=text,
            output_hash=self.book.text_hash(self._spoken()),
            prompt_tokens=usage.input_tokens if usage else None,
            completion_tokens=usage.output_tokens if usage else None,
            reasoning_tokens=usage.reasoning_tokens if usage else None,
            first_byte_ms=None if self._first_s is None else (self._first_s - self._started_s) * 1e3,
            total_ms=(time.perf_counter() - self._started_s) * 1e3,
            thinking_hmac=self.book.text_hash(thoughts) if thoughts else "",
            error_id=error_id,
        )


_LEFT: set[asyncio.Task[Receipt]] = set()


async def settle() -> None:
    """Waits until the outcomes of those who left are written; before the book is closed."""
    here = asyncio.get_running_loop()
    await asyncio.gather(*(task for task in _LEFT if task.get_loop() is here), return_exceptions=True)


def _tell(task: asyncio.Task[Receipt]) -> None:
    _LEFT.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the outcome of a cancelled request is not in the book: %s", error)


def request_hash(turn: Turn, book: Book) -> str:
    """Names a request by all that the engine reads, under the book's key; ids of items do not count."""
    messages = [
        msgspec.structs.replace(message, item_id=None, parts=tuple(_without_ids(part) for part in message.parts))
        for message in turn.messages
    ]
    asked = (turn.model, messages, turn.prompts, turn.suffix, turn.tools, turn.tool_choice, turn.format, turn.extra)
    return book.text_hash(jsonio.dump(asked).decode())


def _without_ids(part: Part) -> Part:
    if isinstance(part, Reasoning):
        return Reasoning(part.text, part.summary)
    return msgspec.structs.replace(part, item_id=None) if isinstance(part, (ToolCall, ToolResult)) else part


def user_of(turn: Turn) -> str:
    """Whom the book names: the person behind the client where the request says so, else the key's name."""
    if turn.caller is None:
        return ""
    return turn.caller.user or turn.caller.name


def choices_of(turn: Turn) -> int:
    return max(1, len(turn.prompts)) * turn.sampling.n
