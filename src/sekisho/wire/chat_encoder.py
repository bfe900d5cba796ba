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
from sekisho.wire.openai_encoder import OpenAiEncoder
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


class ChatEncoder(OpenAiEncoder[_Choice]):
    """`chat.completion` and its chunks."""

    _prefix = "chatcmpl"
    _object = "chat.completion"
    _chunk_object = "chat.completion.chunk"

    def __init__(self, turn: Turn, created: int) -> None:
        super().__init__(turn, created, [_Choice() for _ in range(turn.sampling.n)])
        self._legacy = LEGACY_FUNCTIONS in turn.extra
        self._opens = [b'%b"choices":[{"index":%d,"delta":{' % (self._head, i) for i in range(turn.sampling.n)]
        self._text_opens = [part + b'"content":' for part in self._opens]
        self._close = _PLAIN_CLOSE + self._end

    def start(self) -> bytes:
        """The chunk that names the role, for every choice."""
        return b"".join(
            b'%b"role":"assistant","content":"","refusal":null%b' % (part, self._close) for part in self._opens
        )

    def _frame(self, event: Event) -> bytes:
        match event:
            case TextDelta():
                logprobs = self._logprobs(event.logprobs)
                close = b"}" + logprobs + b',"finish_reason":null}]' + self._end
                return self._text_opens[event.choice] + _encode(event.text) + close
            case ReasoningDelta():
                return self._delta(event.choice, {"reasoning_content": event.text}) if event.text else b""
            case RefusalDelta():
                # As the content, too: a client that knows no refusals would show an empty answer.
                return self._delta(event.choice, {"content": event.text, "refusal": event.text})
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
                self._choices[event.choice].text.append(event.text)
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
            "content": None if not text and calls else text,
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


def _call_object(call: dict[str, Any]) -> dict[str, Any]:
    arguments = "".join(call["pieces"])
    if call["kind"] == "custom":
        return {"id": call["id"], "type": "custom", "custom": {"name": call["name"], "input": arguments}}
    return {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": arguments}}
