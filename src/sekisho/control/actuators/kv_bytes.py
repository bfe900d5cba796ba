"""What the slots of llama.cpp hold, in bytes and by level, computed from tokens: it tells no bytes itself."""

import msgspec

from sekisho.control.base import KvState
from sekisho.engines.config import KvType
from sekisho.engines.kv_size import KV_BITS, KvShape


def kv_state(known: KvShape, key_type: KvType, value_type: KvType, held: int | None, room: int | None) -> KvState:
    """`held`: tokens that the slots hold now, `room`: tokens that they have memory for."""
    token = known.token_bytes(key_type, value_type)
    if held is None:
        return KvState(limit_bytes=None if room is None else round(room * token))
    levels = dict.fromkeys(("L0", "L1", "L2", "L3"), 0.0)
    levels[_level(key_type)] += held * known.keys * KV_BITS[key_type] / 8
    levels[_level(value_type)] += held * known.values * KV_BITS[value_type] / 8
    return KvState(
        used_bytes=round(held * token),
        limit_bytes=None if room is None else round(room * token),
        full_precision_bytes=round(held * known.token_bytes("f16", "f16")),
        levels={name: round(size) for name, size in levels.items()},
        hit_rate=1.0,  # it drops no token
    )


def with_reader(state: KvState, known: KvShape, held: int | None, room: int) -> KvState:
    """The same with a reader's cache beside it (`llama_demotion`), which keeps its tokens at 16 bits once more."""
    token = known.token_bytes("f16", "f16")
    limit = None if state.limit_bytes is None else state.limit_bytes + round(room * token)
    if held is None or state.used_bytes is None:
        return msgspec.structs.replace(state, limit_bytes=limit)
    size, levels = round(held * token), dict(state.levels or {})
    levels["L0"] = levels.get("L0", 0) + size
    return msgspec.structs.replace(state, used_bytes=state.used_bytes + size, limit_bytes=limit, levels=levels)


def _level(kind: KvType) -> str:
    return "L0" if KV_BITS[kind] >= 16 else "L1" if KV_BITS[kind] > 8 else "L2"
