"""Whether a worker to be measured fits into memory beside what runs: looked at before the first one starts."""

from collections.abc import Callable, Iterable

import msgspec

from sekisho.control.trial_settings import kv_bytes, shape
from sekisho.engines.config import ModelConfig
from sekisho.engines.kv_size import KvShape
from sekisho.ops import swap_room
from sekisho.ops.engine_swap import Limits
from sekisho.ops.gpu_sample import GpuReading, read_gpus


class Room(msgspec.Struct, frozen=True):
    """`need_bytes`: weights and KV cache of the largest of the workers, and what is to stay free; None: not known.
    `free_bytes`: of the memory, or of the cards together where the worker may use them and they have more."""

    need_bytes: int | None
    free_bytes: int

    @property
    def enough(self) -> bool:
        """What cannot be told is no reason to refuse: the worker itself will."""
        return self.need_bytes is None or self.need_bytes <= self.free_bytes


def look(configs: Iterable[ModelConfig], gpus: Callable[[], GpuReading] = read_gpus) -> Room:
    """For workers that run one after the other. Reads files' heads and the memory; blocks for milliseconds, with cards
    up to seconds."""
    every = tuple(configs)
    needs = _needed(every)
    free = swap_room.free_bytes()
    if any(swap_room.may_use_cards(config) for config in every):
        free = max(free, sum((card.total_bytes or 0) - (card.used_bytes or 0) for card in gpus().gpus))
    return Room(max(needs) + Limits().reserve_bytes if needs else None, free)


def _needed(configs: Iterable[ModelConfig]) -> list[int]:
    """Of those of which it can be told. A head of a file is read once."""
    weights: dict[str | None, int | None] = {}
    shapes: dict[str | None, KvShape | str] = {}
    needs = []
    for config in configs:
        if config.path not in weights:
            weights[config.path] = swap_room.weights_bytes(config)
            shapes[config.path] = shape(config, at_most=True) if config.engine == "llama_cpp" else ""
        size, known = weights[config.path], shapes[config.path]
        if size is not None:
            needs.append(
                size * swap_room.copies(config) + (kv_bytes(config, known) if isinstance(known, KvShape) else 0)
            )
    return needs
