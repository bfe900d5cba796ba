"""Output items while they grow. Each knows its own events: `open`, `extend` for every delta, `close` once."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from sekisho.core.events import Event, ReasoningDelta, RefusalDelta, TextDelta, TokenLogprob, ToolCallDelta
from sekisho.wire.responses.frames import PLAIN_TAIL, TEXT_TAIL, FrameWriter, delta_head

Delta = TextDelta | RefusalDelta | ReasoningDelta | ToolCallDelta
Seal = Callable[[str], str]


class OutputItem(Protocol):
    """One item of the output. Deltas may be given before `open`: they are kept and written when it is opened."""

    id: str
    status: str

    def accepts(self, event: Event) -> bool:
        """Whether a delta belongs to this item."""
        ...

    def settled(self) -> bool:
        """Whether the item is over once something else begins. If not, what comes next must wait."""
        ...

    def open(self, frames: FrameWriter, index: int) -> None: ...

    def extend(self, frames: FrameWriter, event: Delta) -> None: ...

    def close(self, frames: FrameWriter, cut: bool) -> None:
        """`cut`: the answer ended in the middle of this item."""
        ...

    def as_object(self) -> dict[str, Any]: ...


class MessageOutput:
    """What the model says: parts of text and of refusal, one after the other."""

    def __init__(self, id: str, logprobs: bool) -> None:
        self.id = id
        self.status = "in_progress"
        self._logprobs = logprobs
        self._parts: list[_Part] = []
        self._index = 0

    def accepts(self, event: Event) -> bool:
        return isinstance(event, (TextDelta, RefusalDelta))  # a tuple: three times as fast as a union

    def settled(self) -> bool:
        return True

    def open(self, frames: FrameWriter, index: int) -> None:
        self._index = index
        frames.event("response.output_item.added", {"output_index": index, "item": self.as_object()})

    def extend(self, frames: FrameWriter, event: Delta) -> None:
        refusal = isinstance(event, RefusalDelta)
        part = self._parts[-1] if self._parts else None
        if part is None or part.refusal != refusal:
            if part is not None:
                part.close(frames)
            place = {"item_id": self.id, "output_index": self._index, "content_index": len(self._parts)}
            part = _Part(refusal, place)
            self._parts.append(part)
            part.open(frames)
        if isinstance(event, TextDelta) and event.logprobs and self._logprobs:
            part.extend_scored(frames, event)
        else:
            part.extend(frames, event.text)  # type: ignore[union-attr]  # `accepts` let no tool call in

    def close(self, frames: FrameWriter, cut: bool) -> None:
        self.status = "incomplete" if cut else "completed"
        if self._parts:
            self._parts[-1].close(frames)
        frames.event("response.output_item.done", {"output_index": self._index, "item": self.as_object()})

    def as_object(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "status": self.status,
            "role": "assistant",
            "content": [part.as_object() for part in self._parts],
        }


class _Part:
    """One part of a message."""

    __slots__ = ("_chunks", "_head", "_place", "_scores", "_tail", "refusal")

    def __init__(self, refusal: bool, place: dict[str, Any]) -> None:
        self.refusal = refusal
        self._place = place
        self._chunks: list[str] = []
        self._scores: list[TokenLogprob] = []
        self._head = delta_head("response.refusal.delta" if refusal else "response.output_text.delta", place)
        self._tail = PLAIN_TAIL if refusal else TEXT_TAIL

    def open(self, frames: FrameWriter) -> None:
        frames.event("response.content_part.added", {**self._place, "part": self.as_object()})

    def extend(self, frames: FrameWriter, text: str) -> None:
        self._chunks.append(text)
        frames.delta(self._head, text, self._tail)

    def extend_scored(self, frames: FrameWriter, event: TextDelta) -> None:
        self._chunks.append(event.text)
        self._scores.extend(event.logprobs)
        scores = _scores(event.logprobs)
        frames.event("response.output_text.delta", {**self._place, "delta": event.text, "logprobs": scores})

    def close(self, frames: FrameWriter) -> None:
        text = "".join(self._chunks)
        if self.refusal:
            frames.event("response.refusal.done", {**self._place, "refusal": text})
        else:
            fields = {**self._place, "text": text, "logprobs": _scores(self._scores)}
            frames.event("response.output_text.done", fields)
        frames.event("response.content_part.done", {**self._place, "part": self.as_object()})

    def as_object(self) -> dict[str, Any]:
        text = "".join(self._chunks)
        if self.refusal:
            return {"type": "refusal", "refusal": text}
        scores = [_with_bytes(score) for score in self._scores]
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": scores}


class ReasoningOutput:
    """Raw thinking. Local models give it in full, so it is the item's content; a summary is never made up."""

    def __init__(self, id: str, seal: Seal | None) -> None:
        self.id = id
        self.status = "in_progress"
        self._seal = seal
        self._chunks: list[str] = []
        self._place: dict[str, Any] = {}
        self._head = b""
        self._encrypted: str | None = None

    def accepts(self, event: Event) -> bool:
        return isinstance(event, ReasoningDelta)

    def settled(self) -> bool:
        return True

    def open(self, frames: FrameWriter, index: int) -> None:
        self._place = {"item_id": self.id, "output_index": index, "content_index": 0}
        self._head = delta_head("response.reasoning_text.delta", self._place)
        frames.event("response.output_item.added", {"output_index": index, "item": self.as_object()})
        part = {"type": "reasoning_text", "text": ""}
        frames.event("response.content_part.added", {**self._place, "part": part})

    def extend(self, frames: FrameWriter, event: Delta) -> None:
        text = event.text  # type: ignore[union-attr]  # `accepts` let only reasoning in
        self._chunks.append(text)
        frames.delta(self._head, text, PLAIN_TAIL)

    def close(self, frames: FrameWriter, cut: bool) -> None:
        self.status = "incomplete" if cut else "completed"
        text = "".join(self._chunks)
        if self._seal:
            self._encrypted = self._seal(text)
        frames.event("response.reasoning_text.done", {**self._place, "text": text})
        part = {"type": "reasoning_text", "text": text}
        frames.event("response.content_part.done", {**self._place, "part": part})
        index = self._place["output_index"]
        frames.event("response.output_item.done", {"output_index": index, "item": self.as_object()})

    def as_object(self) -> dict[str, Any]:
        text = "".join(self._chunks)
        item: dict[str, Any] = {"id": self.id, "type": "reasoning", "status": self.status, "summary": []}
        item["content"] = [{"type": "reasoning_text", "text": text}] if text else []
        if self._seal:
            item["encrypted_content"] = self._encrypted
        return item


class SealedReasoningOutput:
    """One thought that nobody but this server can read: it comes whole and sealed, and has neither content nor a
    summary. `shown`: whether the request includes the sealed form; the item itself is told in any case."""

    def __init__(self, id: str, sealed: str, shown: bool) -> None:
        self.id = id
        self.status = "in_progress"
        self.sealed = sealed
        self._shown = shown
        self._index = 0

    def accepts(self, event: Event) -> bool:
        return False

    def settled(self) -> bool:
        return True

    def open(self, frames: FrameWriter, index: int) -> None:
        self._index = index
        frames.event("response.output_item.added", {"output_index": index, "item": self.as_object()})

    def extend(self, frames: FrameWriter, event: Delta) -> None:
        """Nothing: the item was whole when it was made."""

    def close(self, frames: FrameWriter, cut: bool) -> None:
        self.status = "incomplete" if cut else "completed"
        frames.event("response.output_item.done", {"output_index": self._index, "item": self.as_object()})

    def as_object(self) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self.id, "type": "reasoning", "status": self.status, "summary": []}
        if self._shown:
            item["encrypted_content"] = self.sealed
        return item


class CallOutput:
    """A call of a function or of a custom tool."""

    def __init__(self, id: str, call_id: str, event: ToolCallDelta) -> None:
        self.id = id
        self.call_id = call_id
        self.status = "in_progress"
        self.index = event.index
        self._engine_id = event.id
        self._name = event.name or ""
        self._namespace = event.namespace
        self._custom = event.kind == "custom"
        self._chunks: list[str] = []
        self._place: dict[str, Any] = {}
        self._head = b""

    def accepts(self, event: Event) -> bool:
        return _same_call(event, self.index, self._engine_id)

    def settled(self) -> bool:
        """A function's arguments are over when they are a whole JSON object; free text never tells that it is."""
        return not self._custom and _is_object(self._chunks)

    def open(self, frames: FrameWriter, index: int) -> None:
        self._place = {"item_id": self.id, "output_index": index}
        kind = "custom_tool_call_input" if self._custom else "function_call_arguments"
        self._head = delta_head(f"response.{kind}.delta", self._place)
        frames.event("response.output_item.added", {"output_index": index, "item": self.as_object()})

    def extend(self, frames: FrameWriter, event: Delta) -> None:
        assert isinstance(event, ToolCallDelta)
        self._name = self._name or event.name or ""
        self._engine_id = self._engine_id or event.id
        if event.arguments:
            self._chunks.append(event.arguments)
            frames.delta(self._head, event.arguments, PLAIN_TAIL)

    def close(self, frames: FrameWriter, cut: bool) -> None:
        """A custom call that was cut off is not finished by an event: clients run a call as soon as it is done, and
        half of a free text (a script, a patch) may well run. Half a JSON object does not."""
        cut = cut and not self.settled()
        self.status = "incomplete" if cut else "completed"
        if cut and self._custom:
            return
        if not self._custom and not cut and not "".join(self._chunks).strip():
            self._chunks.append("{}")
            frames.delta(self._head, "{}", PLAIN_TAIL)
        text = "".join(self._chunks)
        if self._custom:
            frames.event("response.custom_tool_call_input.done", {**self._place, "input": text})
        else:
            frames.event("response.function_call_arguments.done", {**self._place, "arguments": text})
        index = self._place["output_index"]
        frames.event("response.output_item.done", {"output_index": index, "item": self.as_object()})

    def as_object(self) -> dict[str, Any]:
        kind, key = ("custom_tool_call", "input") if self._custom else ("function_call", "arguments")
        item = {"id": self.id, "type": kind, "status": self.status, "call_id": self.call_id, "name": self._name}
        if self._namespace is not None:
            item["namespace"] = self._namespace
        item[key] = "".join(self._chunks)
        return item


class SearchOutput:
    """A call of the web search. Its query is known only when the call is whole, so it has no deltas."""

    def __init__(self, id: str, event: ToolCallDelta) -> None:
        self.id = id
        self.status = "in_progress"
        self.index = event.index
        self._engine_id = event.id
        self._chunks: list[str] = []
        self._place: dict[str, Any] = {}

    def accepts(self, event: Event) -> bool:
        return _same_call(event, self.index, self._engine_id)

    def settled(self) -> bool:
        return _is_object(self._chunks)

    def open(self, frames: FrameWriter, index: int) -> None:
        self._place = {"output_index": index, "item_id": self.id}
        frames.event("response.output_item.added", {"output_index": index, "item": self.as_object()})
        frames.event("response.web_search_call.in_progress", self._place)

    def extend(self, frames: FrameWriter, event: Delta) -> None:
        assert isinstance(event, ToolCallDelta)
        self._chunks.append(event.arguments)

    def close(self, frames: FrameWriter, cut: bool) -> None:
        cut = cut and not self.settled()
        self.status = "incomplete" if cut else "completed"
        if not cut:
            frames.event("response.web_search_call.searching", self._place)
            frames.event("response.web_search_call.completed", self._place)
        index = self._place["output_index"]
        frames.event("response.output_item.done", {"output_index": index, "item": self.as_object()})

    def as_object(self) -> dict[str, Any]:
        action = {"type": "search", "query": _query("".join(self._chunks))}
        return {"id": self.id, "type": "web_search_call", "status": self.status, "action": action}


def _same_call(event: Event, index: int, engine_id: str | None) -> bool:
    """An engine that gives every call the index 0 still gives each an id of its own."""
    if not isinstance(event, ToolCallDelta) or event.index != index:
        return False
    return event.id is None or engine_id is None or event.id == engine_id


def _is_object(chunks: list[str]) -> bool:
    """Whether the chunks are a whole JSON object. The cheap test first: this is asked at every delta while others
    wait."""
    last = next((chunk for chunk in reversed(chunks) if not chunk.isspace()), "")
    if not last.rstrip().endswith("}"):
        return False
    try:
        return isinstance(msgspec.json.decode("".join(chunks)), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def _query(arguments: str) -> str:
    try:
        fields = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments
    query = fields.get("query") if isinstance(fields, dict) else None
    return query if isinstance(query, str) else arguments


def _scores(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    return [
        {
            "token": score.token,
            "logprob": score.logprob,
            "top_logprobs": [{"token": top.token, "logprob": top.logprob} for top in score.top_logprobs],
        }
        for score in logprobs
    ]


def _with_bytes(score: TokenLogprob) -> dict[str, Any]:
    return {
        "token": score.token,
        "logprob": score.logprob,
        "bytes": _bytes(score.token, score.bytes),
        "top_logprobs": [
            {"token": top.token, "logprob": top.logprob, "bytes": _bytes(top.token, top.bytes)}
            for top in score.top_logprobs
        ],
    }


def _bytes(token: str, told: list[int] | None) -> list[int]:
    return list(token.encode()) if told is None else told
