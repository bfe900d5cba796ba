"""An engine's chat answer, streaming or whole, to events.

`Finished` waits for the end of the stream, because engines tell the usage after the finish reason and our order is
deltas, `Usage`, `Finished`. A stream that ends before every choice is finished is a failure, `[DONE]` or not.
"""

from typing import Any

import msgspec

from sekisho.core.errors import EngineFailed, SekishoError
from sekisho.core.events import (
    Batch,
    Finished,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    Usage,
)
from sekisho.core.turn import Turn
from sekisho.wire import chat_errors
from sekisho.wire.sse import DEFAULT_LIMIT_BYTES, FrameTooLong, SseDecoder, SseEvent
from sekisho.wire.tools import CallReader, ToolTable, argument_text

BROKE_OFF = "The engine broke off before the answer was complete."
UNREADABLE = "The engine's answer cannot be read."


class CalledFunction(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class CallPart(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: CalledFunction | None = None


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob] | None = None


class Said(msgspec.Struct):
    """A delta of a stream or the message of a whole answer. Engines name the thinking differently."""

    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    refusal: str | None = None
    tool_calls: list[CallPart] | None = None
    function_call: CalledFunction | None = None


class ChoicePart(msgspec.Struct):
    index: int | None = 0
    delta: Said | None = None
    message: Said | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    logprobs: Logprobs | None = None


class CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class ReasoningTokens(msgspec.Struct):
    reasoning_tokens: int | None = None


class UsagePart(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: CachedTokens | None = None
    completion_tokens_details: ReasoningTokens | None = None


class Timings(msgspec.Struct):
    """llama.cpp's own counts. `prompt_n` leaves out what came from the cache."""

    prompt_n: int | None = None
    predicted_n: int | None = None
    cache_n: int | None = None


class Chunk(msgspec.Struct):
    choices: list[ChoicePart] | None = None
    usage: UsagePart | None = None
    timings: Timings | None = None
    model: str | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(Chunk).decode

_REASONS: dict[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
_BROKEN_REASONS = {"abort", "error", "cancelled"}


class StreamReader:
    """What the decoders of chat and of raw completions share: frames, usage, finish, failure.

    `error` is set with the first failure, so that an engine can raise it where nothing was said before.
    """

    def __init__(self, choices: int, copies: int, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        """`choices` in all, `copies` of each prompt."""
        self.error: SekishoError | None = None
        self._frames = SseDecoder(limit_bytes)
        self._finished: list[Finished | None] = [None] * choices
        self._usage: UsagePart | None = None
        self._timings: Timings | None = None
        self._per_choice: list[Usage] = []  # llama.cpp counts each choice by itself
        self._copies = copies
        self._started = False
        self._ended = False

    def feed(self, data: bytes) -> Batch:
        """Events of this portion. Never raises: what cannot be read is one `Failed`, after which nothing comes."""
        out: Batch = []
        if self._ended:
            return out
        try:
            events = self._frames.feed(data)
        except FrameTooLong:
            return self._fail(out, EngineFailed(UNREADABLE), "a frame beyond the limit")
        return self._read(events, out)

    def finish(self) -> Batch:
        """The end of the connection: the last events, where `[DONE]` had not brought them already."""
        if self._ended:
            return []
        out = self._read(self._frames.finish(), [])
        return out if self._ended else self._end(out)

    def _read(self, events: list[SseEvent], out: Batch) -> Batch:
        for event in events:
            data = event.data
            if data.startswith(b"[DONE]"):
                return self._end(out)
            if data == b"null":
                continue  # llama.cpp opens a stream of several prompts so
            try:
                self._take(data, out)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                return self._fail(out, EngineFailed(UNREADABLE), f"{error}")
            if self._ended:
                break
        return out

    def _take(self, data: bytes, out: Batch) -> None:
        raise NotImplementedError

    def _take_odd(self, data: bytes, error: Any, out: Batch) -> None:
        """A frame that holds an error, or neither choices nor usage: older vLLM sends its errors bare."""
        if not error:
            error = msgspec.json.decode(data)
            if not isinstance(error, dict) or error.get("object") != "error":
                return
        self._fail(out, chat_errors.from_frame(error))

    def _start(self, model: str | None, out: Batch) -> None:
        self._started = True
        out.append(Started(model))

    def _count(self, usage: UsagePart | None, timings: Timings | None) -> None:
        if usage is not None:
            self._usage = usage
        if timings is not None:
            self._timings = timings
            if usage is not None and (counted := read_usage(usage, timings)):
                self._per_choice.append(counted)

    def _counted(self) -> Usage | None:
        """The counts of the whole turn. llama.cpp tells them for each choice while it streams, and otherwise only for
        the first one: then the turn's counts are not known, and none are told."""
        choices = len(self._finished)
        if choices == 1 or self._timings is None:
            return read_usage(self._usage, self._timings)
        if len(self._per_choice) != choices:
            return None
        each = self._per_choice
        return Usage(
            sum(one.input_tokens for one in each) // self._copies,  # a prompt counts once, however many answers it has
            sum(one.output_tokens for one in each),
            sum(one.cached_tokens for one in each) // self._copies,
            sum(one.reasoning_tokens for one in each),
        )

    def _finish_choice(self, index: int, reason: str, stop_reason: Any, called: bool, out: Batch) -> None:
        if reason in _BROKEN_REASONS:
            self._fail(out, EngineFailed(BROKE_OFF), f"finish reason {reason}")
            return
        told = _REASONS.get(reason, "stop")
        if told in ("stop", "tool_calls"):
            told = "tool_calls" if called else "stop"
        self._finished[index] = Finished(told, index, stop_reason if isinstance(stop_reason, str) else None)

    def _last_deltas(self, out: Batch) -> None:
        """What was held back of the answer itself. Raises ValueError where the answer makes no sense."""

    def _end(self, out: Batch) -> Batch:
        finished = [one for one in self._finished if one is not None]
        if len(finished) < len(self._finished):
            return self._fail(out, EngineFailed(BROKE_OFF), f"{len(finished)} of {len(self._finished)} choices ended")
        try:
            self._last_deltas(out)
        except ValueError as error:
            return self._fail(out, EngineFailed(UNREADABLE), str(error))
        if usage := self._counted():
            out.append(usage)
        out.extend(finished)
        self._ended = True
        return out

    def _fail(self, out: Batch, error: SekishoError, note: str | None = None) -> Batch:
        if note:
            error.add_note(note)
        self.error = error
        self._ended = True
        out.append(chat_errors.failed(error))
        return out


class ChatStreamDecoder(StreamReader):
    """`feed` each read, `finish` at the end of the connection. Ends with the `Finished` events or one `Failed`."""

    def __init__(self, turn: Turn, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        super().__init__(turn.sampling.n, turn.sampling.n, limit_bytes)
        table = ToolTable(turn.tools)
        self._calls = [CallReader(table, choice, f"call_{turn.id}_{choice}_") for choice in range(turn.sampling.n)]

    def _take(self, data: bytes, out: Batch) -> None:
        chunk = _decode_chunk(data)
        if chunk.error or (chunk.choices is None and chunk.usage is None):
            self._take_odd(data, chunk.error, out)
            return
        if not self._started:
            self._start(chunk.model, out)
        self._count(chunk.usage, chunk.timings)
        for choice in chunk.choices or ():
            index = choice.index or 0
            if not 0 <= index < len(self._finished):
                self._fail(out, EngineFailed(UNREADABLE), f"choice {index} of {len(self._finished)}")
                return
            said = choice.delta or choice.message
            if said is not None:
                self._say(index, said, choice.logprobs, out)
            if choice.finish_reason:
                self._finish_choice(index, choice.finish_reason, choice.stop_reason, self._calls[index].started, out)

    def _say(self, index: int, said: Said, logprobs: Logprobs | None, out: Batch) -> None:
        if thinking := said.reasoning_content or said.reasoning or said.thinking:
            out.append(ReasoningDelta(thinking, index))
        content = said.content
        if content and said.refusal:
            content = _joined(content).removesuffix(said.refusal)  # another Sekisho says a refusal in both places
        if content:
            text = _joined(content)
            if logprobs is None or not logprobs.content:
                out.append(TextDelta(text, index))
            else:
                out.append(TextDelta(text, index, tuple(logprobs.content)))
        elif logprobs is not None and logprobs.content:
            out.append(TextDelta("", index, tuple(logprobs.content)))  # a token whose characters are not complete yet
        if said.refusal:
            out.append(RefusalDelta(said.refusal, index))
        if said.tool_calls or said.function_call:
            self._call(index, said, out)

    def _call(self, index: int, said: Said, out: Batch) -> None:
        calls = self._calls[index]
        for part in said.tool_calls or ():
            function = part.function or CalledFunction()
            delta = calls.read(part.index, part.id, function.name, argument_text(function.arguments))
            if delta is not None:
                out.append(delta)
        if old := said.function_call:
            delta = calls.read(0, None, old.name, argument_text(old.arguments))
            if delta is not None:
                out.append(delta)

    def _last_deltas(self, out: Batch) -> None:
        for calls in self._calls:
            out.extend(calls.finish())


class _WholeDecoder(ChatStreamDecoder):
    """A whole answer is a stream of one chunk whose choices hold messages instead of deltas."""

    def read(self, body: bytes) -> Batch:
        return self._read([SseEvent(body), SseEvent(b"[DONE]")], [])


def decode_whole(body: bytes, turn: Turn) -> Batch:
    """Events of an answer that did not stream. Raises SekishoError where it cannot be read or is not complete."""
    decoder = _WholeDecoder(turn)
    batch = decoder.read(body)
    if decoder.error is not None:
        raise decoder.error
    return batch


def read_usage(usage: UsagePart | None, timings: Timings | None) -> Usage | None:
    """The engine's counts; None where it told none. Details never exceed what they are part of."""
    read = cached = reasoned = 0
    if usage is not None and usage.prompt_tokens is not None:
        read, written = usage.prompt_tokens, usage.completion_tokens or 0
        if usage.prompt_tokens_details is not None:
            cached = usage.prompt_tokens_details.cached_tokens or 0
        elif timings is not None:
            cached = timings.cache_n or 0
        if usage.completion_tokens_details is not None:
            reasoned = usage.completion_tokens_details.reasoning_tokens or 0
    elif timings is not None and timings.prompt_n is not None:
        cached = timings.cache_n or 0
        read, written = timings.prompt_n + cached, timings.predicted_n or 0
    else:
        return None
    read, written = max(read, 0), max(written, 0)
    return Usage(read, written, min(max(cached, 0), read), min(max(reasoned, 0), written))


def _joined(content: str | list[Any]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
