"""Events to OpenAI's `chat.completion` and `chat.completion.chunk` objects."""

from collections.abc import Sequence
from typing import Any

import msgspec

from sekisho.core.events import (
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
from sekisho.core.turn import Turn
from sekisho.wire import sse
from sekisho.wire.openai_error import failed_body

LEGACY_FUNCTIONS = "sekisho.legacy_functions"  # a mark in `Turn.extra`; keys of this prefix never leave the house

_encode = msgspec.json.Encoder().encode
_PLAIN_CLOSE = b'},"logprobs":null,"finish_reason":null}]'


class _Choice:
    """What one choice has said so far, for the whole object."""

    __slots__ = ("calls", "finish", "logprobs", "reasoning", "refusal", "text")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.calls: dict[int, dict[str, Any]] = {}
        self.finish: str | None = None


class ChatEncoder:
    """See `wire.base.Encoder`. After a failure neither a finish reason nor `[DONE]` is sent, so that a broken stream
    never looks complete: OpenAI's SDKs raise at the error frame."""

    content_type = "text/event-stream"

    def __init__(self, turn: Turn, created: int) -> None:
        self._turn = turn
        self._legacy = LEGACY_FUNCTIONS in turn.extra
        self._choices = [_Choice() for _ in range(turn.sampling.n)]
        self._usage: Usage | None = None
        self.failed: Failed | None = None
        head = _encode({"id": completion_id("chatcmpl", turn.id), "object": "chat.completion.chunk"})[:-1]
        self._head = b'data: %b,"created":%d,"model":%b,' % (head, created, _encode(turn.model))
        self._created = created
        self._end = b',"usage":null}\n\n' if turn.include_usage else b"}\n\n"
        opens = [b'%b"choices":[{"index":%d,"delta":{' % (self._head, i) for i in range(turn.sampling.n)]
        self._opens = opens
        self._text_opens = [part + b'"content":' for part in opens]
        self._close = _PLAIN_CLOSE + self._end
        self._streaming = turn.stream

    def start(self) -> bytes:
        """The chunk that names the role, for every choice."""
        return b"".join(
            b'%b"role":"assistant","content":"","refusal":null%b' % (part, self._close) for part in self._opens
        )

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
            "id": completion_id("chatcmpl", self._turn.id),
            "object": "chat.completion",
            "created": self._created,
            "model": self._turn.model,
            "choices": [self._choice_object(index, choice) for index, choice in enumerate(self._choices)],
        }
        if self._usage is not None:
            answer["usage"] = usage_object(self._usage)
        return _encode(answer)

    def _is_finished(self) -> bool:
        return all(choice.finish for choice in self._choices)

    def _frame(self, event: Event) -> bytes:
        match event:
            case TextDelta():
                logprobs = self._logprobs(event.logprobs)
                close = b"}" + logprobs + b',"finish_reason":null}]' + self._end
                return self._text_opens[event.choice] + _encode(event.text) + close
            case ReasoningDelta():
                return self._delta(event.choice, {"reasoning_content": event.text}) if event.text else b""
            case RefusalDelta():
                return self._delta(event.choice, {"refusal": event.text})
            case ToolCallDelta():
                return self._call(event)
            case Finished():
                choice = self._choices[event.choice]
                choice.finish = self._reason(event)
                return b'%b},"logprobs":null,"finish_reason":"%b"}]%b' % (
                    self._opens[event.choice],
                    choice.finish.encode(),
                    self._end,
                )
            case Usage():
                self._usage = event
            case Failed():
                self.failed = event
                return sse.encode(failed_body(event))
        return b""

    def _delta(self, choice: int, delta: dict[str, Any]) -> bytes:
        return self._opens[choice] + _encode(delta)[1:-1] + self._close

    def _call(self, event: ToolCallDelta) -> bytes:
        if self._legacy:
            if event.index > 0:
                return b""  # the old form holds one call
            call = {"name": event.name} if event.name is not None else {}
            return self._delta(event.choice, {"function_call": {**call, "arguments": event.arguments}})
        delta: dict[str, Any] = {"index": event.index}
        custom = event.kind == "custom"
        inner: dict[str, Any] = {}
        if event.name is not None:
            delta["id"] = event.id
            delta["type"] = "custom" if custom else "function"
            inner["name"] = event.name
        inner["input" if custom else "arguments"] = event.arguments
        delta["custom" if custom else "function"] = inner
        return self._delta(event.choice, {"tool_calls": [delta]})

    def _reason(self, event: Finished) -> str:
        return "function_call" if self._legacy and event.reason == "tool_calls" else event.reason

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> bytes:
        if not self._turn.sampling.logprobs:
            return b',"logprobs":null'
        return b',"logprobs":' + _encode({"content": logprobs, "refusal": None})

    def _collect(self, event: Event) -> None:
        match event:
            case TextDelta():
                choice = self._choices[event.choice]
                choice.text.append(event.text)
                choice.logprobs.extend(event.logprobs)
            case ReasoningDelta():
                self._choices[event.choice].reasoning.append(event.text)
            case RefusalDelta():
                self._choices[event.choice].refusal.append(event.text)
            case ToolCallDelta():
                calls = self._choices[event.choice].calls
                if event.index not in calls:
                    calls[event.index] = {"id": event.id, "name": event.name, "kind": event.kind, "pieces": []}
                calls[event.index]["pieces"].append(event.arguments)
            case Finished():
                self._choices[event.choice].finish = self._reason(event)
            case Usage():
                self._usage = event
            case Failed():
                self.failed = self.failed or event

    def _choice_object(self, index: int, choice: _Choice) -> dict[str, Any]:
        text, reasoning, refusal = "".join(choice.text), "".join(choice.reasoning), "".join(choice.refusal)
        calls = [_call_object(choice.calls[number]) for number in sorted(choice.calls)]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if not text and (calls or refusal) else text,
            "refusal": refusal or None,
            "annotations": [],
        }
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls and self._legacy:
            message["function_call"] = calls[0]["function"]
        elif calls:
            message["tool_calls"] = calls
        logprobs = None
        if self._turn.sampling.logprobs and choice.logprobs:
            logprobs = {"content": choice.logprobs, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}


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


def _call_object(call: dict[str, Any]) -> dict[str, Any]:
    arguments = "".join(call["pieces"])
    if call["kind"] == "custom":
        return {"id": call["id"], "type": "custom", "custom": {"name": call["name"], "input": arguments}}
    return {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": arguments}}
