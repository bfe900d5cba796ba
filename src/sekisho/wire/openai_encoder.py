"""What OpenAI's two completion objects share on their way out: the order of frames, usage, `[DONE]`, failures."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import msgspec

from sekisho.core.events import Event, Failed, TextDelta, Usage
from sekisho.core.turn import Turn
from sekisho.wire import sse
from sekisho.wire.openai_error import failed_body

_encode = msgspec.json.Encoder().encode


class Choice(Protocol):
    """What one choice has said so far. `finish` is None until it has ended."""

    finish: str | None


AnyChoice = TypeVar("AnyChoice", bound=Choice)


class OpenAiEncoder(ABC, Generic[AnyChoice]):
    """See `wire.base.Encoder`. After a failure neither a finish reason nor `[DONE]` is sent, so that a broken stream
    never looks complete: OpenAI's SDKs raise at the error frame.

    A subclass fills `_text_opens`, per choice what stands before a text, and `_close`, what stands after it.
    """

    content_type = "text/event-stream"
    _prefix: ClassVar[str]
    _object: ClassVar[str]
    _chunk_object: ClassVar[str]
    _text_opens: list[bytes]
    _close: bytes

    def __init__(self, turn: Turn, created: int, choices: list[AnyChoice]) -> None:
        self._turn = turn
        self._created = created
        self._choices = choices
        self._usage: Usage | None = None
        self._streaming = turn.stream
        self.failed: Failed | None = None
        self._id = completion_id(self._prefix, turn.id)
        head = _encode({"id": self._id, "object": self._chunk_object})[:-1]
        self._head = b'data: %b,"created":%d,"model":%b,' % (head, created, _encode(turn.model))
        self._end = b',"usage":null}\n\n' if turn.include_usage else b"}\n\n"

    @abstractmethod
    def start(self) -> bytes: ...

    def feed(self, batch: Sequence[Event]) -> bytes:
        if not self._streaming:
            for event in batch:
                self._collect(event)
            return b""
        frames: list[bytes] = []
        for event in batch:
            if self.failed is not None:
                break
            if type(event) is TextDelta and not event.logprobs:
                frames += (self._text_opens[event.choice], _encode(event.text), self._close)
            else:
                frames.append(self._frame(event))
        return b"".join(frames)

    def keepalive(self) -> bytes:
        return sse.KEEPALIVE

    def end(self) -> bytes:
        """The usage where it was asked for and told, then `[DONE]`; or the failure of a turn that never ended."""
        if self.failed is not None:
            return b""
        if not self._is_finished():
            self.failed = cut_off(self._turn)
            return sse.encode(failed_body(self.failed))
        usage = b""
        if self._turn.include_usage and self._usage is not None:
            usage = b'%b"choices":[],"usage":%b}\n\n' % (self._head, _encode(usage_object(self._usage)))
        return usage + sse.DONE

    def whole(self) -> bytes:
        """The completion, or the error body where the turn failed or never ended (then `failed` is set)."""
        if self.failed is None and not self._is_finished():
            self.failed = cut_off(self._turn)
        if self.failed is not None:
            return failed_body(self.failed)
        answer: dict[str, Any] = {
            "id": self._id,
            "object": self._object,
            "created": self._created,
            "model": self._turn.model,
            "choices": [self._choice_object(index, choice) for index, choice in enumerate(self._choices)],
        }
        if self._usage is not None:
            answer["usage"] = usage_object(self._usage)
        return _encode(answer)

    @abstractmethod
    def _frame(self, event: Event) -> bytes:
        """The chunk for an event that is more than plain text, if it makes one."""

    @abstractmethod
    def _collect(self, event: Event) -> None:
        """Keeps an event for the whole object."""

    @abstractmethod
    def _choice_object(self, index: int, choice: AnyChoice) -> dict[str, Any]: ...

    def _is_finished(self) -> bool:
        return all(choice.finish for choice in self._choices)


def completion_id(prefix: str, turn_id: str) -> str:
    """The object's id shares its random part with the request's id, so one leads to the other in the log."""
    return f"{prefix}-{turn_id.rpartition('_')[2].removeprefix(prefix + '-')}"


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def cut_off(turn: Turn) -> Failed:
    """The failure of a turn whose events stopped without an end. Its id is the request's, which is in the log."""
    return Failed(turn.id, "engine_failed", "server_error", "The engine stopped before the answer was complete.")
