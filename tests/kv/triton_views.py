"""Random views for the Triton kernels, and where those run: on a GPU where there is one, else in the interpreter.
Import it after asking for PyTorch."""

import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sekisho.kv.formats import EVICTED, FORMATS, PAGE, Format, layout
from sekisho.kv.formats import encode_pages as encode_reference
from sekisho.kv.kernels.base import DenseTokens, PageView

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
QUANTISED = [form for form in FORMATS.values() if not form.dense]


@dataclass(frozen=True)
class Case:
    """What a random view is made of. `visible`: of all tokens that a row has, the share that it may still see. `whole`:
    no page is missing."""

    forms: tuple[Format, ...]
    group: int = 1
    head_dim: int = 64
    dtype: torch.dtype = torch.float32
    batch: int = 2
    kv_heads: int = 1
    pages: int = 3
    sinks: int = 16
    recent: int = 70
    visible: float = 1.0
    whole: bool = False
    seed: int = 0


def _tokens(case: Case, room: int, generator: torch.Generator) -> DenseTokens:
    """Rows of different lengths, with numbers behind them that are none."""
    shape = (case.batch, case.kv_heads, room, case.head_dim)
    length = torch.randint(0, room + 1, (case.batch,), generator=generator)
    there = torch.arange(room) < length[:, None]
    keys, values = (
        torch.randn(shape, generator=generator).masked_fill(~there[:, None, :, None], torch.nan) for _ in range(2)
    )
    return DenseTokens(keys.to(case.dtype), values.to(case.dtype), length.int())


def random_view(case: Case) -> PageView:
    """A random view: pages of the case's formats and missing ones, in shuffled slots among garbage."""
    generator = torch.Generator().manual_seed(case.seed)
    place = (case.batch, case.kv_heads, case.pages)
    ids = torch.tensor([*([] if case.whole else [EVICTED]), *(form.id for form in case.forms)], dtype=torch.int8)
    formats = ids[torch.randint(0, len(ids), place, generator=generator)]
    slots = torch.full(place, -1, dtype=torch.int32)
    pools = {}
    for form in case.forms:
        mine = formats == form.id
        count = int(mine.sum())
        size = (count, PAGE, case.head_dim)
        keys, values = (torch.randn(size, generator=generator) * 3 for _ in range(2))
        if form.dense:
            keys, values = keys.to(case.dtype), values.to(case.dtype)
        capacity = count + 2
        length = layout(form, case.head_dim, case.dtype.itemsize).page_bytes
        pool = torch.randint(0, 256, (capacity, length), dtype=torch.uint8, generator=generator)
        where = torch.randperm(capacity, generator=generator)[:count]
        pool[where] = encode_reference(keys, values, form)
        slots[mine] = where.int()
        pools[form.id] = pool
    queries = (case.batch, case.kv_heads * case.group)
    sinks, recent = _tokens(case, case.sinks, generator), _tokens(case, case.recent, generator)
    least = case.pages if case.whole else 0
    counts = torch.randint(least, case.pages + 1, (case.batch,), generator=generator, dtype=torch.int32)
    lengths = sinks.length + counts * PAGE + recent.length
    query, rotated = (torch.randn(*queries, case.head_dim, generator=generator) / case.head_dim**0.5 for _ in range(2))
    view = PageView(
        query=query,
        rotated_query=rotated,
        key_bias=torch.randn(queries, generator=generator),
        formats=formats,
        slots=slots,
        page_count=counts,
        pools=pools,
        sinks=sinks,
        recent=recent,
        first_visible=(lengths * (1 - case.visible)).int(),
    )
    return _moved(view, DEVICE)


def _moved(view: PageView, device: torch.device) -> PageView:
    def there(tokens: DenseTokens) -> DenseTokens:
        return DenseTokens(*(each.to(device) for each in vars(tokens).values()))

    moved = {name: each.to(device) for name, each in vars(view).items() if isinstance(each, Tensor)}
    pools = {form_id: pool.to(device) for form_id, pool in view.pools.items()}
    return replace(view, **moved, pools=pools, sinks=there(view.sinks), recent=there(view.recent))
