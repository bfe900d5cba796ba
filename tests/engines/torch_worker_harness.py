"""What the tests of the torch engine's worker share: something to say to it, and what it answered."""

from typing import Any

from sekisho.core.events import Event, TextDelta
from sekisho.core.turn import Message, Sampling, Text, Turn
from sekisho.engines.torch_engine import TorchEngine

GREEDY = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True)


def say(text: str, sampling: Sampling = GREEDY, **fields: Any) -> Turn:
    return Turn("turn_1", "chat", "m", messages=(Message("user", (Text(text),)),), sampling=sampling, **fields)


async def events(engine: TorchEngine, turn: Turn) -> list[Event]:
    return [event async for batch in engine.generate(turn) for event in batch]


def text(said: list[Event]) -> str:
    return "".join(event.text for event in said if isinstance(event, TextDelta))
