"""How many bytes each cache holds for a model's shape: allocated and counted, for one layer; all layers are alike."""

from collections.abc import Callable, Sequence

import msgspec
import torch

from sekisho.kv.bench.bare import bare_layer
from sekisho.kv.bench.contenders import Contender
from sekisho.kv.bench.entries import Entry, label
from sekisho.kv.bench.figures import Figure, missing
from sekisho.kv.bench.held import held_bytes
from sekisho.kv.bench.models import shape
from sekisho.kv.bench.prompt import hand_over, settled_for, share_of
from sekisho.kv.bench.unavailable import Unavailable


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Names of `models.SHAPES`, and prompt lengths."""

    shapes: tuple[str, ...] = ("1b", "7b", "13b", "20b")
    tokens: tuple[int, ...] = (4096,)


class MemoryRow(msgspec.Struct, frozen=True, kw_only=True):
    """`bytes` are those of `layers_measured` of the shape's `layers`; `share` is of the same layers at 16 bits."""

    entry: Entry
    knobs: dict[str, object]
    shape: str
    tokens: int
    layers_measured: int
    layers: int
    bytes: Figure
    share: Figure


def measure(
    plan: MemoryPlan,
    entries: Sequence[tuple[Entry, Contender]],
    dtype: torch.dtype,
    device: str,
    progress: Callable[[str], None],
) -> list[MemoryRow]:
    """A row for each shape, length and entry; what a contender cannot do is a reason."""
    rows = []
    for name in plan.shapes:
        for tokens in plan.tokens:
            for entry, contender in entries:
                rows.append(_row(name, tokens, entry, contender, dtype, device))
                progress(f"memory of {name} at {tokens} tokens: {label(entry)}")
    return rows


def _row(name: str, tokens: int, entry: Entry, contender: Contender, dtype: torch.dtype, device: str) -> MemoryRow:
    of = shape(name)
    bare = bare_layer(of, tokens, dtype, device)
    knobs, held, share = dict(contender.knobs), missing(""), missing("")
    try:
        chosen = settled_for(contender, bare.cache, bare.prompt, entry.target)
        knobs, cache = dict(chosen.knobs), bare.cache(chosen)
        hand_over(bare.prompt, cache)
        held = Figure(value=float(held_bytes(cache)), n=1, blocks=1)
        share = Figure(value=share_of(cache, bare.prompt, tokens), n=1, blocks=1)
    except Unavailable as error:
        held = share = missing(str(error))
    return MemoryRow(
        entry=entry,
        knobs=knobs,
        shape=name,
        tokens=tokens,
        layers_measured=1,
        layers=of.layers,
        bytes=held,
        share=share,
    )
