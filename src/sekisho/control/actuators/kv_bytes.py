"""What a token takes in llama.cpp's KV cache, computed from the model file's head."""

from pathlib import Path
from typing import Any, Final

import msgspec

from sekisho.control.base import KvState
from sekisho.engines import gguf_header

# As ggml lays them out: a block of 32 values with its scales.
BITS: Final = {
    "f32": 32.0,
    "f16": 16.0,
    "bf16": 16.0,
    "q8_0": 8.5,
    "q5_1": 6.0,
    "q5_0": 5.5,
    "q4_1": 5.0,
    "q4_0": 4.5,
    "iq4_nl": 4.5,
}
_SIZES: Final = (
    "block_count",
    "embedding_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
)
# Where one of these is, a token does not take the same in every layer.
_UNEVEN: Final = {
    "attention.sliding_window": "some of its layers keep a sliding window only",
    "attention.kv_lora_rank": "it keeps a compressed form of keys and values",
    "ssm.state_size": "some of its layers keep a state instead of tokens",
}


class KvShape(msgspec.Struct, frozen=True):
    """Values that a token takes in all layers together."""

    keys: int
    values: int

    def token_bytes(self, key_type: str, value_type: str) -> float:
        return (self.keys * BITS[key_type] + self.values * BITS[value_type]) / 8


def shape(path: Path) -> KvShape | str:
    """From the head of a GGUF file; or why it cannot be told. Reads a file."""
    try:
        told = gguf_header.values(path, (*_SIZES, *_UNEVEN))
    except (OSError, ValueError) as error:
        return f"the KV cache's size cannot be computed: {path.name}: {error}"
    for name, why in _UNEVEN.items():
        if told.get(name):
            return f"the KV cache's size cannot be computed from {path.name}: {why}"
    return _computed(told) or f"the KV cache's size cannot be computed: {path.name} lacks sizes of its layers"


def _computed(told: dict[str, Any]) -> KvShape | None:
    layers, width, heads = (told.get(name) for name in _SIZES[:3])
    kv_heads = told.get("attention.head_count_kv", heads)
    if not isinstance(layers, int) or isinstance(heads, list) or kv_heads is None:
        return None
    key, value = told.get("attention.key_length"), told.get("attention.value_length")
    if key is None or value is None:
        if not isinstance(width, int) or not heads:
            return None
        key, value = key or width // heads, value or width // heads
    in_all = sum(kv_heads) if isinstance(kv_heads, list) else layers * kv_heads
    return KvShape(in_all * key, in_all * value)


def kv_state(known: KvShape, key_type: str, value_type: str, held: int | None, room: int | None) -> KvState:
    """`held`: tokens that the slots hold now, `room`: tokens that they have memory for."""
    token = known.token_bytes(key_type, value_type)
    if held is None:
        return KvState(limit_bytes=None if room is None else round(room * token))
    levels = dict.fromkeys(("L0", "L1", "L2", "L3"), 0.0)
    levels[_level(key_type)] += held * known.keys * BITS[key_type] / 8
    levels[_level(value_type)] += held * known.values * BITS[value_type] / 8
    return KvState(
        used_bytes=round(held * token),
        limit_bytes=None if room is None else round(room * token),
        full_precision_bytes=round(held * known.token_bytes("f16", "f16")),
        levels={name: round(size) for name, size in levels.items()},
        hit_rate=1.0,  # it drops no token
    )


def _level(kind: str) -> str:
    return "L0" if BITS[kind] >= 16 else "L1" if BITS[kind] > 8 else "L2"
