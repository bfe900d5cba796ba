"""A turn's events as a response: a stream of numbered events, or one object.

    engine's events --> current item --> frames          the current item alone is written live
                   \\-> waiting items (in order)          what must not overtake it

The rule that everything here keeps: items are added, finished and listed in one and the same order, and none is
taken up again once it is finished. A message or a thought ends where something else begins. A tool call ends where
something else begins if its arguments are whole; if not (engines do interleave calls), the rest waits for it.
"""

from collections.abc import Sequence
from typing import Any

from sekisho.core import ids
from sekisho.core.events import (
    Event,
    Failed,
    Finished,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from sekisho.core.turn import Turn
from sekisho.wire import jsonio
from sekisho.wire.responses.decode import ResponsesRequest, stem
from sekisho.wire.responses.frames import FrameWriter
from sekisho.wire.responses.output import (
    CallOutput,
    Delta,
    MessageOutput,
    OutputItem,
    ReasoningOutput,
    Seal,
    SealedReasoningOutput,
    SearchOutput,
)
from sekisho.wire.responses.stored import sealed_items

_INCOMPLETE: dict[FinishReason, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}
_DELTAS = frozenset({TextDelta, ReasoningDelta, RefusalDelta, ToolCallDelta})
# Codes that clients know in a failed response. The first two end a Codex turn; it tries the others again.
_KEPT_CODES = frozenset({"context_length_exceeded", "insufficient_quota", "rate_limit_exceeded", "invalid_prompt"})


def encoder(
    request: ResponsesRequest, turn: Turn, response_id: str, created: int, seal: Seal | None = None
) -> "ResponsesEncoder":
    """`created` is in Unix seconds. `seal` closes thinking so that a client or the store can keep it for us; a client
    is given it only where the request includes `reasoning.encrypted_content`. Thinking that comes sealed already (a
    `ReasoningDelta` without text) is an item of its own, without a readable word."""
    return ResponsesEncoder(request, turn, response_id, created, seal)


class ResponsesEncoder:
    """Implements `wire.base.Encoder`. `failure` is set where the turn broke, also by an engine that just stopped:
    the gateway writes its id to the log."""

    content_type = "text/event-stream"

    def __init__(
        self, request: ResponsesRequest, turn: Turn, response_id: str, created: int, seal: Seal | None
    ) -> None:
        self.failure: Failed | None = None
        self._usage: Usage | None = None
        self._reason: FinishReason | None = None
        self._frames = FrameWriter()
        self._items: list[OutputItem] = []  # opened, in order; all but perhaps the last are finished
        self._current: OutputItem | None = None
        self._waiting: list[tuple[OutputItem, list[Delta]]] = []
        self._latest: OutputItem | None = None
        self._calls: dict[int, OutputItem] = {}  # by the engine's index, the newest of each
        self._call_ids: set[str] = set()
        self._made = 0
        self._started = False
        self._ended = False
        self._stem = stem(response_id)
        self._store_seal = seal
        self._shows_sealed = "reasoning.encrypted_content" in request.include
        self._seal = seal if self._shows_sealed else None
        self._logprobs = turn.sampling.logprobs
        self._fixed = {
            "id": response_id,
            "object": "response",
            "created_at": created,
            "model": turn.model,
            **request.echo,
        }

    def start(self) -> bytes:
        """`response.created` and `response.in_progress`. Again: nothing."""
        if self._started:
            return b""
        self._started = True
        written = jsonio.dump(self.response())
        self._frames.lifecycle("response.created", written)
        self._frames.lifecycle("response.in_progress", written)
        return self._frames.take()

    def feed(self, batch: Sequence[Event]) -> bytes:
        for event in batch:
            if type(event) in _DELTAS:  # the hot path: `isinstance` with a union costs as much as writing the frame
                if event.choice == 0:  # type: ignore[union-attr]
                    self._delta(event)  # type: ignore[arg-type]
            elif isinstance(event, Usage):
                self._usage = event
            elif isinstance(event, Finished):
                if event.choice == 0 and self._reason is None and self.failure is None:
                    self._reason = event.reason
                    self._close_all(cut=event.reason in _INCOMPLETE)
            elif isinstance(event, Failed):
                self._fail(event)
        return self._frames.take()

    def keepalive(self) -> bytes:
        """A typed event, since comments do not reset a client's idle timer. Before the start: the start."""
        if not self._started:
            return self.start()
        if self._ended:
            return b""
        self._frames.event("keepalive", {})
        return self._frames.take()

    def end(self) -> bytes:
        """The one terminal event, unless a failure has sent it already."""
        self._finish()
        return self._frames.take()

    def whole(self) -> bytes:
        """The finished response object."""
        self._finish()
        return jsonio.dump(self.response())

    def response(self) -> dict[str, Any]:
        """The response object as it stands now, for the client."""
        details = _INCOMPLETE.get(self._reason) if self._reason and not self.failure else None
        return {
            **self._fixed,
            "status": self._status(),
            "error": _error(self.failure) if self.failure else None,
            "incomplete_details": {"reason": details} if details else None,
            "output": self.output_items(),
            "usage": _usage(self._usage) if self._usage else None,
        }

    def stored(self) -> dict[str, Any]:
        """The response object as it stands now, for the store: thinking is in it sealed only, whether the client may
        read it or not, and also where the client gets no sealed form."""
        output = self.output_items()
        for item, told in zip(self._items, output, strict=True):
            if isinstance(item, SealedReasoningOutput):
                told["encrypted_content"] = item.sealed
        return {**self.response(), "output": sealed_items(output, self._store_seal)}

    def output_items(self) -> list[dict[str, Any]]:
        """The items so far, in order."""
        return [item.as_object() for item in self._items]

    def _status(self) -> str:
        if self.failure:
            return "failed"
        if self._reason is None:
            return "in_progress"
        return "incomplete" if self._reason in _INCOMPLETE else "completed"

    def _delta(self, event: Delta) -> None:
        if self._reason is not None or self.failure is not None:
            return  # an engine that talks on after its end is not listened to
        if not isinstance(event, ToolCallDelta) and not event.text and not _is_sealed(event):
            return
        target = self._target(event)
        if target is None:
            self._begin(event)
        elif target is self._current:
            self._latest = target
            target.extend(self._frames, event)
            if self._waiting:
                self._advance()
        elif target.status == "in_progress":
            self._latest = target
            next(kept for item, kept in self._waiting if item is target).append(event)
        elif isinstance(event, ToolCallDelta) and event.arguments.strip():
            # Its arguments were whole, so it was finished, and the client may have run it already.
            self._fail(_broken("The engine went on with a tool call that it had finished."))

    def _target(self, event: Delta) -> OutputItem | None:
        """The item that a delta continues; None where it begins another."""
        if isinstance(event, ToolCallDelta):
            call = self._calls.get(event.index)
            if call is None or not call.accepts(event) or (call.status != "in_progress" and event.name):
                return None
            return call
        if _is_sealed(event):
            return None
        newest = self._waiting[-1][0] if self._waiting else self._current
        return newest if newest is not None and newest.accepts(event) else None

    def _begin(self, event: Delta) -> None:
        item = self._latest = self._make(event)
        if isinstance(event, ToolCallDelta):
            self._calls[event.index] = item
        if self._waiting or (self._current is not None and not self._current.settled()):
            self._waiting.append((item, [event]))
            return
        self._close_current(cut=False)
        self._open(item, [event])

    def _open(self, item: OutputItem, deltas: list[Delta]) -> None:
        self._current = item
        item.open(self._frames, len(self._items))
        self._items.append(item)
        for delta in deltas:
            item.extend(self._frames, delta)

    def _advance(self) -> None:
        """Writes out what waited for the current item, as far as items are whole."""
        while self._waiting and self._current is not None and self._current.settled():
            self._close_current(cut=False)
            self._open(*self._waiting.pop(0))

    def _close_current(self, cut: bool) -> None:
        if self._current is not None:
            self._current.close(self._frames, cut)
            self._current = None

    def _close_all(self, cut: bool) -> None:
        """Finishes everything in order. Where the answer was cut off, that befell the item that grew last, and every
        call of which we cannot tell that it is whole (`CallOutput.close` looks)."""
        while True:
            is_call = isinstance(self._current, CallOutput | SearchOutput)
            self._close_current(cut and (is_call or self._current is self._latest))
            if not self._waiting:
                return
            self._open(*self._waiting.pop(0))

    def _make(self, event: Delta) -> OutputItem:
        if isinstance(event, ReasoningDelta):
            if event.sealed and not event.text:
                return SealedReasoningOutput(self._id("rs"), event.sealed, self._shows_sealed)
            return ReasoningOutput(self._id("rs"), self._seal)
        if isinstance(event, ToolCallDelta):
            if event.kind == "web_search":
                return SearchOutput(self._id("ws"), event)
            call_id = event.id or ""
            item_id = self._id("ctc" if event.kind == "custom" else "fc")
            if not call_id or call_id in self._call_ids:  # clients tell calls apart by it
                call_id = f"call_{item_id.partition('_')[2]}"
            self._call_ids.add(call_id)
            return CallOutput(item_id, call_id, event)
        return MessageOutput(self._id("msg"), self._logprobs)

    def _id(self, prefix: str) -> str:
        self._made += 1
        return f"{prefix}_{self._stem}o{self._made - 1:04x}"

    def _fail(self, failed: Failed) -> None:
        """What was in progress is listed as incomplete, but no event says that it is done: clients keep what is done
        (Codex tells it to the model when it tries again, and runs calls), and half an answer is nothing to keep."""
        if self.failure is not None or self._ended:
            return
        if self._current is not None:
            self._current.status = "incomplete"
            self._current = None
        self._waiting.clear()
        self.failure = failed
        self._terminate("response.failed")

    def _finish(self) -> None:
        if self._ended:
            return
        if self._reason is None:
            self._fail(_broken("The engine stopped without finishing the answer."))
        else:
            self._terminate("response.incomplete" if self._reason in _INCOMPLETE else "response.completed")

    def _terminate(self, kind: str) -> None:
        self._ended = True
        self._frames.lifecycle(kind, jsonio.dump(self.response()))


def _is_sealed(event: Delta) -> bool:
    return isinstance(event, ReasoningDelta) and not event.text and bool(event.sealed)


def _broken(message: str) -> Failed:
    return Failed(ids.new("err"), "engine_failed", "server_error", message)


def _error(failed: Failed) -> dict[str, Any]:
    """The official codes are few: what the caller can mend is `invalid_prompt`, trouble of ours `server_error`."""
    message = f"{failed.message} (error id: {failed.id})"
    if failed.code in _KEPT_CODES:
        code = failed.code
    elif failed.status == 429:
        code = "rate_limit_exceeded"
    else:
        code = "invalid_prompt" if 400 <= failed.status < 500 else "server_error"
    if code == "rate_limit_exceeded" and failed.retry_after_s is not None:
        message += f" Please try again in {failed.retry_after_s:g}s."
    return {"code": code, "message": message, "param": None, "type": failed.type, "id": failed.id}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
