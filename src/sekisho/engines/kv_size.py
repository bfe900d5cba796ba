"""What a token takes in llama.cpp's KV cache: by type, and for a model from its file's head."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec

from sekisho.engines import gguf_header
from sekisho.engines.config import KvType

KV_BITS: Final[Mapping[KvType, float]] = MappingProxyType(
    {
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
)
"""Bits per value as ggml lays them out: a block of 32 values with its scales."""
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
    """`heads`: KV heads of all layers together; sizes in values per head."""

    heads: int
    key_size: int
    value_size: int

    @property
    def keys(self) -> int:
        """Values that the keys of a token have in all layers together."""
        return self.heads * self.key_size

    @property
    def values(self) -> int:
        return self.heads * self.value_size

    def token_bytes(self, key_type: KvType, value_type: KvType) -> float:
        return (self.keys * KV_BITS[key_type] + self.values * KV_BITS[value_type]) / 8


def shape(path: Path, *, at_most: bool = False) -> KvShape | str:
    """From the head of a GGUF file; or why it cannot be told. `at_most`: an upper bound will do, which layers that keep
    less than every token do not prevent. Reads a file."""
    try:
        told = gguf_header.values(path, (*_SIZES, *_UNEVEN))
    except (OSError, ValueError) as error:
        return f"the KV cache's size cannot be computed: {path.name}: {error}"
    for name, why in _UNEVEN.items():
        if told.get(name) and not at_most:
            return f"the KV cache's size cannot be computed from {path.name}: {why}"
    if isinstance(told.get("attention.head_count"), list) and not at_most:
        return f"the KV cache's size cannot be computed from {path.name}: its layers have different numbers of heads"
    return _computed(told) or f"the KV cache's size cannot be computed: {path.name} lacks sizes of its layers"


def _computed(told: dict[str, Any]) -> KvShape | None:
    layers, width, heads = (told.get(name) for name in _SIZES[:3])
    heads = heads[0] if isinstance(heads, list) and heads else heads
    kv_heads = told.get("attention.head_count_kv", told.get("attention.head_count"))
    if not isinstance(layers, int) or not kv_heads:
        return None
    key, value = told.get("attention.key_length"), told.get("attention.value_length")
    if key is None or value is None:
        if not isinstance(width, int) or not isinstance(heads, int) or not heads:
            return None
        key, value = key or width // heads, value or width // heads
    return KvShape(sum(kv_heads) if isinstance(kv_heads, list) else layers * kv_heads, key, value)
