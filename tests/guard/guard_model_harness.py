"""A guard model that answers what it is told to, and the questions that are put to it."""

from typing import Any

from sekisho.core.events import Batch, EventStream, Finished, ReasoningDelta, Started, TextDelta, Usage
from sekisho.core.turn import Message, Text, Turn
from sekisho.guard.guard_model import GuardModel, GuardModelConfig

FORMATS = ("qwen3guard", "gpt_oss_safeguard", "llama_guard", "generic")
SAFE = {
    "qwen3guard": "Safety: Safe\nCategories: None",
    "llama_guard": "safe",
    "gpt_oss_safeguard": '{"decision": "ALLOW", "category": "none", "severity": "none"}',
    "generic": '{"decision": "ALLOW", "category": "none", "severity": "none"}',
}


class Scripted:
    """A handler that says what it is told, and remembers what it was asked."""

    def __init__(self, *batches: Batch, error: Exception | None = None) -> None:
        self.batches = batches
        self.error = error
        self.turns: list[Turn] = []

    async def __call__(self, turn: Turn) -> EventStream:
        self.turns.append(turn)
        yield [Started("scripted")]
        for batch in self.batches:
            yield batch
        if self.error is not None:
            raise self.error


def saying(text: str, *, thinking: str = "") -> Scripted:
    head: Batch = [ReasoningDelta(thinking)] if thinking else []
    pieces: Batch = [TextDelta(text[at : at + 3]) for at in range(0, len(text), 3)]
    return Scripted(head, pieces, [Usage(1, 1), Finished("stop")])


def model(run: Any, format: Any = "qwen3guard", **changes: Any) -> GuardModel:
    return GuardModel(run, GuardModelConfig(model="guard", format=format, **changes))


def user(text: str) -> Message:
    return Message("user", (Text(text),))


def assistant(text: str) -> Message:
    return Message("assistant", (Text(text),))


HELLO = (user("How do I bake bread?"),)
