"""Events become a Messages stream or one message object."""

from collections.abc import Sequence
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
    ToolCallDelta,
    Usage,
)
from sekisho.core.turn import Turn
from sekisho.wire import jsonio
from sekisho.wire.base import ErrorView
from sekisho.wire.messages.blocks import Block, Blocks, arguments_object
from sekisho.wire.messages.errors import error_body, error_object

_JSON = msgspec.json.Encoder()
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_DELTA_END = b"}}\n\n"
_OPEN: dict[str, Any] = {"stop_reason": None, "stop_sequence": None, "stop_details": None}


def encoder(turn: Turn, created: int) -> "MessagesEncoder":
    """`created` is part of every codec's signature; this protocol has no place for it."""
    return MessagesEncoder(turn)


def encode_count(input_tokens: int) -> bytes:
    """The answer of `/v1/messages/count_tokens`."""
    return _JSON.encode({"input_tokens": input_tokens})


class MessagesEncoder:
    """See `wire.base.Encoder`. Thinking is told only where the request asked for it, since a client that did not
    may read the first block as the answer. `failure` is set once the answer is an error, for the gateway's status."""

    def __init__(self, turn: Turn) -> None:
        self.content_type = "text/event-stream" if turn.stream else "application/json"
        self.failure: ErrorView | None = None
        self._turn = turn
        self._id = turn.id if turn.id.startswith("msg_") else f"msg_{turn.id.rpartition('_')[2]}"
        self._streaming = turn.stream
        self._thinking = bool(turn.reasoning.enabled)
        self._thinking_hidden = turn.reasoning.summary == "omitted"
        self._blocks = Blocks(self, keep=not turn.stream)
        self._out: list[bytes] = []
        self._text_head: bytes | None = None
        self._delta_head = b""
        self._usage: Usage | None = None
        self._finished: Finished | None = None
        self._refused = False
        self._ended = False

    def start(self) -> bytes:
        if not self._streaming:
            return b""
        message = self._message([], _OPEN, Usage(0, 0))
        return _frame("message_start", {"type": "message_start", "message": message}) + _PING

    def feed(self, batch: Sequence[Event]) -> bytes:
        out = self._out = []
        for event in batch:
            if type(event) is TextDelta and self._text_head is not None and event.text and not event.choice:
                out.append(self._text_head + _JSON.encode(event.text) + _DELTA_END)
            else:
                self._take(event)
        return b"".join(out)

    def keepalive(self) -> bytes:
        return _PING if self._streaming else b""

    def end(self) -> bytes:
        if not self._streaming or self._ended:
            return b""
        if self._finished is None:
            self._out = []
            self._fail(_cut_off())
            return b"".join(self._out)
        self._ended = True
        usage = _usage_object(self._usage or Usage(0, 0))
        return _frame("message_delta", {"type": "message_delta", "delta": self._stop(), "usage": usage}) + _STOP

    def whole(self) -> bytes:
        if self._finished is None and self.failure is None:
            self._fail(_cut_off())
        if self.failure is not None:
            return error_body(self.failure)
        content = [self._content(block) for block in self._blocks.done]
        return jsonio.dump(self._message(content, self._stop(), self._usage or Usage(0, 0)))

    def _take(self, event: Event) -> None:
        if self._ended:
            return
        if isinstance(event, Usage):
            self._usage = event
        elif isinstance(event, Failed):
            self._fail(
                ErrorView(event.id, event.status, event.type, event.code, event.message, None, event.retry_after_s)
            )
        elif self._finished is not None or isinstance(event, Started) or event.choice:
            return
        elif isinstance(event, TextDelta | RefusalDelta):
            self._refused |= isinstance(event, RefusalDelta)
            if event.text:
                self._blocks.say("text", event.text)
        elif isinstance(event, ReasoningDelta):
            if self._thinking and (event.text or event.sealed is not None):
                self._blocks.say("thinking", "" if self._thinking_hidden else event.text, event.sealed)
        elif isinstance(event, ToolCallDelta):
            self._blocks.call(event)
        elif isinstance(event, Finished):
            self._blocks.finish()
            self._finished = event

    def _fail(self, view: ErrorView) -> None:
        self.failure = view
        self._ended = True
        self._text_head = None
        if self._streaming:
            self._out.append(_frame("error", error_object(view)))

    def _stop(self) -> dict[str, Any]:
        reason, sequence = self._stop_reason()
        details = {"type": "refusal", "category": None, "explanation": None} if reason == "refusal" else None
        return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": details}

    def _stop_reason(self) -> tuple[str, str | None]:
        finished = self._finished
        assert finished is not None
        if self._refused or finished.reason == "content_filter":
            return "refusal", None
        if finished.reason == "length":
            return "max_tokens", None
        if self._blocks.called:
            return "tool_use", None
        if finished.stop_sequence is not None:
            return "stop_sequence", finished.stop_sequence
        return "end_turn", None

    def _message(self, content: list[dict[str, Any]], stop: dict[str, Any], usage: Usage) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._turn.model,
            "content": content,
            **stop,
            "usage": _usage_object(usage),
        }

    # What the blocks tell (blocks.Sink)

    def opened(self, block: Block) -> None:
        if not self._streaming:
            return
        content = self._content(block, empty=True)
        self._out.append(
            _frame(
                "content_block_start", {"type": "content_block_start", "index": block.index, "content_block": content}
            )
        )
        field = {
            "text": b'"text_delta","text":',
            "thinking": b'"thinking_delta","thinking":',
            "tool": b'"input_json_delta","partial_json":',
        }[block.kind]
        self._delta_head = _delta_head(block.index) + field
        if block.kind == "text":
            self._text_head = self._delta_head
        if block.call is not None and block.call.kind == "custom":
            self._delta('{"input":"')
        if gathered := block.text():
            self.said(block, gathered)

    def said(self, block: Block, piece: str) -> None:
        if not self._streaming:
            return
        if block.call is not None and block.call.kind == "custom":
            piece = _JSON.encode(piece)[1:-1].decode()
        self._delta(piece)

    def closed(self, block: Block) -> None:
        if not self._streaming:
            return
        self._text_head = None
        if block.call is not None and block.call.kind == "custom":
            self._delta('"}')
        if block.kind == "thinking":
            signature = _JSON.encode(block.sealed or "")
            self._out.append(_delta_head(block.index) + b'"signature_delta","signature":' + signature + _DELTA_END)
        self._out.append(_frame("content_block_stop", {"type": "content_block_stop", "index": block.index}))

    def _delta(self, text: str) -> None:
        self._out.append(self._delta_head + _JSON.encode(text) + _DELTA_END)

    def _content(self, block: Block, empty: bool = False) -> dict[str, Any]:
        text = "" if empty else block.text()
        if block.kind == "text":
            return {"type": "text", "text": text}
        if block.kind == "thinking":
            return {"type": "thinking", "thinking": text, "signature": "" if empty else block.sealed or ""}
        call = block.call
        assert call is not None
        given: dict[str, object] | msgspec.Raw | None = {} if empty else {"input": text}
        if not empty and call.kind != "custom":
            given = arguments_object(text)
        # Arguments that are no object reach the caller as they are: its own check then tells the model.
        given = {"input": text} if given is None else given
        call_id = call.id or f"toolu_{self._id.removeprefix('msg_')}_{call.index}"
        return {"type": "tool_use", "id": call_id, "name": self._tool_name(call), "input": given}

    def _tool_name(self, call: ToolCallDelta) -> str:
        name = call.name or ""
        joined = f"{call.namespace}__{name}" if call.namespace else name
        return joined if any(tool.name == joined for tool in self._turn.tools) else name


def _delta_head(index: int) -> bytes:
    return (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":'
        + str(index).encode()
        + b',"delta":{"type":'
    )


def _frame(name: str, data: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + jsonio.dump(data) + b"\n\n"


def _usage_object(usage: Usage) -> dict[str, Any]:
    """This protocol counts cached tokens apart from `input_tokens`; ours counts them in."""
    counted: dict[str, Any] = {
        "input_tokens": max(0, usage.input_tokens - usage.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
    }
    if usage.reasoning_tokens:
        counted["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return counted


def _cut_off() -> ErrorView:
    return ErrorView.of(EngineFailed("The answer broke off before its end."))
