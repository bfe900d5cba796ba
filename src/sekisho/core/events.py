"""What an engine says while it works on a turn.

Events travel in batches: a batch is what arrived in one read from the engine, so that fifty streams cost one
wake-up a read and not one a token. A stream is batches of deltas, then `Usage` where the engine told it, then
exactly one `Finished` per choice, or one `Failed`, which ends everything.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Literal

import msgspec

from sekisho.core.turn import Turn

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = []


class Started(msgspec.Struct, frozen=True):
    """The engine took the turn. `model` is the engine's own name for it, for the log, not for the client."""

    model: str | None = None


class TextDelta(msgspec.Struct, frozen=True):
    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class RefusalDelta(msgspec.Struct, frozen=True):
    text: str
    choice: int = 0


class ReasoningDelta(msgspec.Struct, frozen=True):
    """Thinking. `sealed` carries an opaque signature or encrypted form where the engine gives one."""

    text: str
    choice: int = 0
    sealed: str | None = None


class ToolCallDelta(msgspec.Struct, frozen=True):
    """Part of tool call number `index` of its choice. `id` and `name` come with the first part only; `arguments`
    is appended. `kind` and `namespace` are those of the declared tool (the engine's codec looks them up)."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    kind: Literal["function", "custom", "web_search"] = "function"
    namespace: str | None = None
    choice: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the engine counted them. `cached_tokens` is part of `input_tokens`; `reasoning_tokens` of
    `output_tokens`."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Finished(msgspec.Struct, frozen=True):
    reason: FinishReason
    choice: int = 0
    stop_sequence: str | None = None


class Failed(msgspec.Struct, frozen=True):
    """The turn broke. Fields as in `core.errors.SekishoError`; `id` is in the log."""

    id: str
    code: str
    type: str
    message: str
    status: int = 502
    retry_after_s: float | None = None


Event = Started | TextDelta | RefusalDelta | ReasoningDelta | ToolCallDelta | Usage | Finished | Failed

Batch = list[Event]
# A generator and not any iterator: closing it (`aclose`) is how a turn is called off.
EventStream = AsyncGenerator[Batch, None]
Handler = Callable[[Turn], EventStream]
Stage = Callable[[Turn, Handler], EventStream]


def compose(stages: list[Stage], engine: Handler) -> Handler:
    """Puts stages around an engine like the skins of an onion; the first stage is the outermost."""
    handler = engine
    for stage in reversed(stages):
        handler = _wrap(stage, handler)
    return handler


def _wrap(stage: Stage, inner: Handler) -> Handler:
    def handler(turn: Turn) -> EventStream:
        return stage(turn, inner)

    return handler
