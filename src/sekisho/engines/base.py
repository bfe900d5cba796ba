"""What an engine promises.

All methods are coroutines or asynchronous generators and never block the loop. An engine may be called from many
tasks at once; it does its own connection pooling and nothing else: queueing and fairness are the gateway's.
"""

from typing import Literal, Protocol

import msgspec

from sekisho.core.events import EventStream, Usage
from sekisho.core.turn import EmbedRequest, Turn


class EngineModel(msgspec.Struct, frozen=True):
    """A model as the engine lists it. What the engine does not tell is None."""

    id: str
    context_tokens: int | None = None
    parameters: int | None = None
    size_bytes: int | None = None
    quantisation: str | None = None
    family: str | None = None
    embeddings: bool | None = None
    vision: bool | None = None


class Health(msgspec.Struct, frozen=True):
    """`state` is `ready` only after the engine has listed its models. `reason` and `log_tail` explain the rest."""

    state: Literal["starting", "ready", "down"]
    reason: str | None = None
    log_tail: tuple[str, ...] = ()


class Embeddings(msgspec.Struct, frozen=True):
    """One vector per input, in the order of the inputs."""

    vectors: list[list[float]]
    usage: Usage


class Engine(Protocol):
    """One running engine, in this process or behind an address."""

    name: str

    @property
    def count_takes_slot(self) -> bool:
        """Whether `count_tokens` may run the prompt through the model, as a turn does."""
        ...

    def generate(self, turn: Turn) -> EventStream:
        """Runs a turn. Closing the stream (`aclose`) or cancelling the task frees the engine's slot at once.

        Trouble before the first event is raised as `EngineUnavailable`, `EngineTimeout`, `EngineFailed` or, where
        the request itself is at fault (context too long, image to a text model), a `RequestError`. Trouble after
        the first event ends the stream with one `Failed`. Never ends without `Finished` or `Failed`.
        """
        ...

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Raises as `generate` before the first event."""
        ...

    async def count_tokens(self, turn: Turn) -> int:
        """Tokens of the prompt as the engine's own template and tokenizer make it. Raises as `generate`."""
        ...

    async def models(self) -> list[EngineModel]:
        """Asks the engine now. Raises `EngineUnavailable`."""
        ...

    async def health(self) -> Health:
        """Never raises."""
        ...

    async def close(self) -> None:
        """Frees connections. May be called twice. Does not stop the engine's process: the supervisor does."""
        ...
