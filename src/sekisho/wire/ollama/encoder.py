"""Events become Ollama's JSON lines, or one object. Chat and generate differ only in where the words stand.

Tool calls are told in one line when the turn has finished, because their arguments are objects here and an object
is only known when it is whole.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from sekisho.core.errors import EngineFailed
from sekisho.core.events import (
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from sekisho.core.turn import Turn
from sekisho.wire import jsonio
from sekisho.wire.base import ErrorView
from sekisho.wire.messages.blocks import arguments_object

_JSON = msgspec.json.Encoder()
_NS = 1_000_000_000


def is_load(turn: Turn) -> bool:
    """True for a request without words, which asks only that the model be loaded."""
    return not turn.messages and not turn.prompts


def error_body(error: ErrorView) -> bytes:
    """`{"error": "message (id)"}`: this protocol has no other place for the id."""
    return _JSON.encode({"error": f"{error.message} ({error.id})"})


def rfc3339(epoch_s: float) -> str:
    moment = datetime.fromtimestamp(epoch_s, UTC)
    return moment.isoformat(timespec="microseconds" if moment.microsecond else "seconds").replace("+00:00", "Z")


class OllamaEncoder:
    """See `wire.base.Encoder`. `failure` is set once the answer is an error, for the gateway's status.

    With a clock, `prompt_eval_duration` is the time until the first word and `eval_duration` the time from there
    to the end, as seen from here; `load_duration` is not known and left out. Without a clock all are left out.
    """

    def __init__(self, turn: Turn, created: int, clock: Callable[[], float] | None = None) -> None:
        self.content_type = "application/x-ndjson" if turn.stream else "application/json"
        self.failure: ErrorView | None = None
        self._chat = turn.protocol == "ollama_chat"
        self._load = is_load(turn)
        self._streaming = turn.stream
        self._thinking = turn.reasoning.enabled is not False
        self._head: dict[str, Any] = {"model": turn.model, "created_at": rfc3339(created)}
        words = b',"message":{"role":"assistant","content":' if self._chat else b',"response":'
        self._text_head = _JSON.encode(self._head)[:-1] + words
        self._text_end = b'},"done":false}\n' if self._chat else b',"done":false}\n'
        self._text: list[str] = []
        self._thought: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._calls: dict[int, _Call] = {}
        self._usage: Usage | None = None
        self._finished: Finished | None = None
        self._ended = False
        self._clock = clock
        self._began_s = clock() if clock else 0.0
        self._first_s: float | None = None
        self._last_s = 0.0

    def start(self) -> bytes:
        return b""

    def feed(self, batch: Sequence[Event]) -> bytes:
        if self._clock is not None and self._first_s is None and any(not isinstance(it, Started) for it in batch):
            self._first_s = self._clock()
        quick = self._streaming and not self._ended and self._finished is None
        out: list[bytes] = []
        for event in batch:
            if quick and type(event) is TextDelta and event.text and not event.logprobs and not event.choice:
                out.append(self._text_head + _JSON.encode(event.text) + self._text_end)
            else:
                out.append(self._take(event))
                quick = quick and self._finished is None and not self._ended
        return b"".join(out)

    def keepalive(self) -> bytes:
        """Nothing: a client reads every line as a part of the answer."""
        return b""

    def end(self) -> bytes:
        if not self._streaming or self._ended:
            return b""
        if self._finished is None and not self._load:
            return self._fail(_cut_off())
        self._ended = True
        return self._line(self._words(""), self._closing())

    def whole(self) -> bytes:
        if self._finished is None and not self._load and self.failure is None:
            self._fail(_cut_off())
        if self.failure is not None:
            return error_body(self.failure)
        words = self._words("".join(self._text), "".join(self._thought), self._tool_calls(), self._logprobs)
        return self._line(words, self._closing()).removesuffix(b"\n")

    def _take(self, event: Event) -> bytes:
        if self._ended:
            return b""
        if isinstance(event, Usage):
            self._usage = event
        elif isinstance(event, Failed):
            view = ErrorView(event.id, event.status, event.type, event.code, event.message, None, event.retry_after_s)
            return self._fail(view)
        elif self._finished is not None or isinstance(event, Started) or event.choice:
            return b""
        elif isinstance(event, TextDelta | RefusalDelta):
            return self._say(event)
        elif isinstance(event, ReasoningDelta):
            return self._think(event.text)
        elif isinstance(event, ToolCallDelta):
            call = self._calls.setdefault(event.index, _Call(event, []))
            call.arguments.append(event.arguments)
        elif isinstance(event, Finished):
            return self._finish(event)
        return b""

    def _say(self, event: TextDelta | RefusalDelta) -> bytes:
        logprobs = [_logprob(it) for it in event.logprobs] if isinstance(event, TextDelta) else []
        if self._streaming:
            return self._line(self._words(event.text, logprobs=logprobs)) if event.text or logprobs else b""
        self._text.append(event.text)
        self._logprobs += logprobs
        return b""

    def _think(self, text: str) -> bytes:
        if not text or not self._thinking:
            return b""
        if self._streaming:
            return self._line(self._words("", text))
        self._thought.append(text)
        return b""

    def _finish(self, event: Finished) -> bytes:
        self._finished = event
        if self._clock is not None:
            self._last_s = self._clock()
        if self._streaming and (calls := self._tool_calls()):
            return self._line(self._words("", calls=calls))
        return b""

    def _fail(self, view: ErrorView) -> bytes:
        self.failure = view
        self._ended = True
        return error_body(view) + b"\n" if self._streaming else b""

    def _tool_calls(self) -> list[dict[str, Any]]:
        """Only chat has a place for them. Arguments that are no object reach the caller as they are, under `input`:
        its own check then tells the model."""
        told: list[dict[str, Any]] = []
        for position, index in enumerate(sorted(self._calls) if self._chat else ()):
            first, text = self._calls[index].first, "".join(self._calls[index].arguments)
            arguments = None if first.kind == "custom" else arguments_object(text)
            joined = f"{first.namespace}__{first.name}" if first.namespace else first.name
            function = {
                "index": position,
                "name": joined,
                "arguments": {"input": text} if arguments is None else arguments,
            }
            told.append({"id": first.id, "function": function} if first.id else {"function": function})
        return told

    def _words(
        self,
        content: str,
        thinking: str = "",
        calls: Sequence[dict[str, Any]] = (),
        logprobs: Sequence[dict[str, Any]] = (),
    ) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant", "content": content} if self._chat else {"response": content}
        if thinking:
            said["thinking"] = thinking
        if calls:
            said["tool_calls"] = calls
        if self._chat:
            said = {"message": said}
        return {**said, "logprobs": logprobs} if logprobs else said

    def _closing(self) -> dict[str, Any]:
        if self._load:
            return {"done": True, "done_reason": "load"}
        cut = self._finished is not None and self._finished.reason == "length"
        closing: dict[str, Any] = {"done": True, "done_reason": "length" if cut else "stop"}
        usage = self._usage
        if usage is not None:
            closing |= {"prompt_eval_count": usage.input_tokens, "eval_count": usage.output_tokens}
        if self._first_s is not None:
            closing["total_duration"] = round((self._last_s - self._began_s) * _NS)
            closing["prompt_eval_duration"] = round((self._first_s - self._began_s) * _NS)
            closing["eval_duration"] = round((self._last_s - self._first_s) * _NS)
        return closing

    def _line(self, words: dict[str, Any], closing: dict[str, Any] | None = None) -> bytes:
        return jsonio.dump({**self._head, **words, **(closing or {"done": False})}) + b"\n"


class _Call(msgspec.Struct):
    first: ToolCallDelta
    arguments: list[str]


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    top = [{"token": it.token, "logprob": it.logprob, "bytes": it.bytes} for it in token.top_logprobs]
    return {"token": token.token, "logprob": token.logprob, "bytes": token.bytes, "top_logprobs": top}


def _cut_off() -> ErrorView:
    return ErrorView.of(EngineFailed("The answer broke off before its end."))
