"""Which well-known models this machine can run: weights, KV cache and overhead against the memory that is free."""

from functools import cache
from importlib import resources
from typing import Literal

import msgspec
import yaml

from sekisho.engines.config import KvType
from sekisho.engines.kv_size import KV_BITS
from sekisho.ops.hardware import Hardware

GIB = 1 << 30
RUNTIME_BYTES = 400 << 20  # engine, buffers for the computation, per process
WEIGHTS_OVERHEAD = 0.03  # work buffers grow with the model's width
VRAM_SHARE = 0.92  # of what is free: drivers and desktops take some back
RAM_SHARE = 0.80
BATCH_TOKENS = 512  # layers with a sliding window keep their window and one batch
EASY_ACTIVE_B = 5.0  # billions of parameters a token that a processor still serves at reading speed

Use = Literal["chat", "embedding"]
Placement = Literal["gpu", "gpu+cpu", "cpu"]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model of `catalogue.yaml`, whose head explains the fields."""

    name: str
    repo: str
    file: str
    quantisation: str
    size_gib: float
    parameters_b: float
    context_max: int
    layers: int
    kv_heads: int
    head_dim: int
    licence: str
    languages: tuple[str, ...]
    use: Use
    note: str
    active_b: float | None = None
    full_layers: int | None = None
    window: int | None = None

    @property
    def active(self) -> float:
        """Billions of parameters used per token."""
        return self.active_b if self.active_b is not None else self.parameters_b


class Wish(msgspec.Struct, frozen=True):
    """What the team wants to run. `language` None: any."""

    context: int = 4096
    slots: int = 4
    kv_type: KvType = "f16"
    use: Use = "chat"
    language: str | None = None


class Need(msgspec.Struct, frozen=True):
    weights_bytes: int
    kv_bytes: int
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.overhead_bytes


class Recommendation(msgspec.Struct, frozen=True):
    """`context_possible`: the longest context per slot that still fits there, at most the model's own. `quick`: on
    graphics cards, or few enough parameters a token for a processor."""

    entry: Entry
    need: Need
    placement: Placement
    context_possible: int
    quick: bool
    reason: str


class Rejection(msgspec.Struct, frozen=True):
    entry: Entry
    need: Need
    reason: str


class Advice(msgspec.Struct, frozen=True):
    """`fitting`: the best first."""

    fitting: tuple[Recommendation, ...]
    rejected: tuple[Rejection, ...]


@cache
def catalogue() -> tuple[Entry, ...]:
    text = resources.files("sekisho.ops").joinpath("catalogue.yaml").read_text(encoding="utf-8")
    return msgspec.convert(yaml.safe_load(text), tuple[Entry, ...])


def find(name: str) -> Entry | None:
    return next((entry for entry in catalogue() if entry.name == name.lower()), None)


def kv_bytes(entry: Entry, context: int, slots: int, kv_type: KvType) -> int:
    """Size of the KV cache: keys and values, per layer, KV head and dimension, for every token of every slot."""
    full = entry.layers if entry.full_layers is None else entry.full_layers
    seen = context if entry.window is None else min(context, entry.window + BATCH_TOKENS)
    tokens_by_layers = full * context + (entry.layers - full) * seen
    return int(2 * tokens_by_layers * slots * entry.kv_heads * entry.head_dim * KV_BITS[kv_type] / 8)


def need(entry: Entry, wish: Wish) -> Need:
    """Memory that the model takes. An approximation, on the cautious side."""
    weights = int(entry.size_gib * GIB)
    overhead = RUNTIME_BYTES + int(weights * WEIGHTS_OVERHEAD)
    return Need(weights, kv_bytes(entry, wish.context, wish.slots, wish.kv_type), overhead)


def recommend(hardware: Hardware, wish: Wish, entries: tuple[Entry, ...] | None = None) -> Advice:
    """Sorts the catalogue into what fits, the best first, and what does not, with the reason."""
    fitting: list[Recommendation] = []
    rejected: list[Rejection] = []
    for entry in catalogue() if entries is None else entries:
        wanted = need(entry, wish)
        if entry.use != wish.use or (wish.language is not None and wish.language not in entry.languages):
            continue
        if wish.context > entry.context_max:
            rejected.append(Rejection(entry, wanted, f"knows only {entry.context_max:,} tokens of context"))
            continue
        choice = _place(hardware, entry, wanted, wish)
        if isinstance(choice, Recommendation):
            fitting.append(choice)
        else:
            rejected.append(Rejection(entry, wanted, choice))
    fitting.sort(key=lambda r: _order(r, wish))
    return Advice(tuple(fitting), tuple(rejected))


def _place(hardware: Hardware, entry: Entry, wanted: Need, wish: Wish) -> Recommendation | str:
    unified = any(gpu.unified for gpu in hardware.gpus)
    unified_bytes = sum(gpu.memory_free_bytes or 0 for gpu in hardware.gpus if gpu.unified)
    vram = int((unified_bytes if unified else hardware.vram_free_bytes) * VRAM_SHARE)
    ram = int(hardware.ram_available_bytes * RAM_SHARE)
    if vram and wanted.total_bytes <= vram:
        return _recommendation(entry, wanted, wish, "gpu", vram, "all of it fits into graphics memory")
    if entry.use == "chat" and vram and not unified and wanted.total_bytes <= vram + ram:
        reason = "part of it runs on the processor, which is slower"
        return _recommendation(entry, wanted, wish, "gpu+cpu", vram + ram, reason)
    if wanted.total_bytes <= ram:
        easy = entry.active <= EASY_ACTIVE_B
        reason = "fits into memory" if easy else "fits into memory, but a processor alone will be slow"
        return _recommendation(entry, wanted, wish, "cpu", ram, reason)
    best = max(vram, ram, vram + ram if not unified else 0)
    return f"needs {wanted.total_bytes / GIB:.1f} GiB, {best / GIB:.1f} GiB can be used here"


def _recommendation(
    entry: Entry, wanted: Need, wish: Wish, placement: Placement, room: int, reason: str
) -> Recommendation:
    quick = placement == "gpu" or entry.active <= EASY_ACTIVE_B
    return Recommendation(entry, wanted, placement, _longest_context(entry, wanted, wish, room), quick, reason)


def _longest_context(entry: Entry, wanted: Need, wish: Wish, room_bytes: int) -> int:
    """By halving: the cache grows with the context, though not everywhere in proportion."""
    low, high = wish.context, entry.context_max
    spare = room_bytes - wanted.weights_bytes - wanted.overhead_bytes
    while low < high:
        middle = (low + high + 1) // 2
        if kv_bytes(entry, middle, wish.slots, wish.kv_type) <= spare:
            low = middle
        else:
            high = middle - 1
    return low


def _order(choice: Recommendation, wish: Wish) -> tuple[int, int, float, float]:
    """Quick placements first, models made for the language next, then the largest; slow ones: the smallest first."""
    entry = choice.entry
    native = wish.language is not None and entry.languages[0] == wish.language
    size = -entry.parameters_b if choice.quick else entry.parameters_b
    return (0 if choice.quick else 1, 0 if native else 1, size, entry.size_gib)
