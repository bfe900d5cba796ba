"""What a sequence may come to in bytes. Pure; everything errs on the side of more."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sekisho.kv.formats import DENSE, PAGE, Format, layout
from sekisho.kv.policy import KVPolicy

_RING_SPARE: Final = 2 * PAGE  # tokens of room behind the recent window
_TABLE_BYTES: Final = 17  # per page and head: format, slot, copy, mass, importance
_IDLE_SHARE: Final = 1 / 15  # of a pool, that it may hold without need
_IDLE_SLOTS: Final = 16  # of a small one
_CACHES: Final = 2  # at a time: of those that run, and of the one whose prompt is read


@dataclass(frozen=True)
class LayerShape:
    """One layer's keys and values. `window`: how far back it sees; None: everything. `on_host`: lies in the memory
    where full-precision copies lie, too."""

    kv_heads: int
    head_dim: int
    itemsize: int
    window: int | None = None
    on_host: bool = True

    @property
    def token_bytes(self) -> int:
        return 2 * self.kv_heads * self.head_dim * self.itemsize

    def page_bytes(self, form: Format) -> int:
        """A page of every head."""
        return self.kv_heads * layout(form, self.head_dim, self.itemsize).page_bytes


def sequence_bytes(layers: Sequence[LayerShape], policy: KVPolicy, tokens: int) -> int:
    """The most that `tokens` tokens of one sequence take under a policy."""
    return sum(_layer_bytes(layer, policy, tokens) for layer in layers)


def idle_bytes(layers: Sequence[LayerShape], policy: KVPolicy) -> int:
    """What pools may hold without need, however little is in them, for all sequences together."""
    forms = (DENSE, *(Format(*step) for step in policy.ladder))
    slots = _CACHES * _IDLE_SLOTS
    return sum(slots * layout(form, each.head_dim, each.itemsize).page_bytes for each in layers for form in forms)


def most_tokens(layers: Sequence[LayerShape], policy: KVPolicy, limit_bytes: int, most: int) -> int:
    """The longest sequence, `most` tokens at most, that fits into `limit_bytes` alone; perhaps 0."""
    room = limit_bytes - idle_bytes(layers, policy)
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if sequence_bytes(layers, policy, middle) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _layer_bytes(layer: LayerShape, policy: KVPolicy, tokens: int) -> int:
    ring = policy.recent_window + _RING_SPARE
    dense = (policy.sinks + ring + 1) * layer.token_bytes  # and the means
    pages = max(0, tokens - policy.sinks - policy.recent_window) // PAGE
    tables = pages * layer.kv_heads * _TABLE_BYTES
    kept = pages if layer.window is None else min(pages, layer.window // PAGE + 2)
    stored = kept * layer.page_bytes(DENSE)
    if policy.budget is not None:
        least = kept * layer.page_bytes(Format(*policy.ladder[-1]))
        allowed = int(policy.budget * 2 * 2 * layer.kv_heads * layer.head_dim * tokens)
        stored = min(stored, max(least, allowed))
    copies = kept * layer.page_bytes(DENSE) if policy.host_copy and layer.on_host else 0
    return dense + tables + int((stored + copies) * (1 + _IDLE_SHARE)) + 1
