"""What a codec promises. Codecs are pure: nothing here blocks, reads a clock or opens a socket.

A server-side codec is a module with
    decode(body: bytes, request_id: str) -> Turn        raises RequestError naming the parameter
    encoder(turn: Turn, created: int) -> Encoder
    error_body(error: ErrorView) -> bytes                the protocol's own error shape
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from sekisho.core.errors import SekishoError
from sekisho.core.events import Event


class ErrorView(msgspec.Struct, frozen=True):
    """What a client is told of an error. `id` is in the log, in the body and in the `x-request-error-id` header."""

    id: str
    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: SekishoError) -> "ErrorView":
        return cls(
            error.id, error.status, error.type, error.error_code, error.message, error.param, error.retry_after_s
        )


class Encoder(Protocol):
    """Turns one turn's events into the bytes of one answer, streaming or whole.

    Streaming: write `start()`, then `feed(batch)` for every batch, then `end()`. Each returns bytes that may be
    empty and are ready to be sent. Not streaming: `feed` every batch (its bytes are dropped), then `whole()`.
    The final events (`Finished`, `Usage`, `Failed`) are all fed before `end()`; the encoder holds back what must
    wait for them. After a `Failed` in mid-stream, `feed` yields the protocol's own failure event and `end()` closes.
    If neither `Finished` nor `Failed` came before `end()`/`whole()`, the answer is a failure, never a silent stop.
    `keepalive()` is a frame that resets the client's idle timer and changes nothing.
    """

    content_type: str

    def start(self) -> bytes: ...

    def feed(self, batch: Sequence[Event]) -> bytes: ...

    def keepalive(self) -> bytes: ...

    def end(self) -> bytes: ...

    def whole(self) -> bytes: ...
