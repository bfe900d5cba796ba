"""Rows that move from one cache into another: how a sequence whose prompt was read alone joins those that are running.

This is the one place besides `rows` and `pages` that knows how both keep their state.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from sekisho.kv.pages import PageTable
from sekisho.kv.pool import PagePool
from sekisho.kv.rows import TieredRows

if TYPE_CHECKING:  # needs transformers, which rows alone do not
    from sekisho.kv.cache import TieredCache


def join(cache: "TieredCache", other: "TieredCache") -> None:
    """Appends the sequences of `other` to those of `cache`, layer by layer; `other` has none afterwards. From then on
    the policy of `cache` holds for them. Raises ValueError where the two are not of one model, or differ in sinks."""
    pairs = [(mine.rows, theirs.rows) for mine, theirs in zip(cache.layers, other.layers, strict=True)]
    # What is stored is no inference tensor, which nobody could write to later.
    with torch.inference_mode(False), torch.no_grad():
        for mine, theirs in pairs:
            if mine is None or theirs is None:
                raise ValueError("a cache that has seen no token cannot be joined")
            adopt(mine, theirs)
    for layer, joined in zip(cache.layers, other.layers, strict=True):
        layer.seen = max(layer.seen, joined.seen)
    other.reset()


def adopt(rows: TieredRows, others: TieredRows) -> None:
    """One layer of `join`: pages move as they are, bit for bit; `others` has no rows afterwards."""
    if others.shape != rows.shape or others.window != rows.window:
        raise ValueError(f"rows of {others.shape}, window {others.window}, cannot join {rows.shape}, {rows.window}")
    if others.sink_room != rows.sink_room:
        raise ValueError("rows join only rows with as many sinks")
    if others.policy != rows.policy:
        others.apply(rows.policy)
    _adopt_pages(rows.table, others.table)
    rows._sinks, rows._recent, rows._means = (
        (_stacked(mine[0], theirs[0]), _stacked(mine[1], theirs[1]))
        for mine, theirs in (
            (rows._sinks, others._sinks),
            (rows._recent, others._recent),
            (rows._means, others._means),
        )
    )
    rows._sink_length += others._sink_length
    rows._recent_length += others._recent_length
    others.select([])


def _stacked(mine: Tensor, theirs: Tensor) -> Tensor:
    """(B, H, T, D) and (C, H, U, D) as (B + C, H, max(T, U), D), zero where one is shorter."""
    room = max(mine.shape[2], theirs.shape[2])
    return torch.cat([pad(each, (0, 0, 0, room - each.shape[2])) for each in (mine, theirs)])


def _adopt_pages(table: PageTable, others: PageTable) -> None:
    first, pages = len(table.counts), others.formats.shape[2]
    slots, copies = others.slots.clone(), others.copies.clone()
    for form_id, pool in others.pools.items():
        if form_id not in table._pools:
            table._pools[form_id] = table._new_pool(form_id, table.device)
        moved = _adopt_slots(table._pools[form_id], pool)
        here = others.exists() & (others.formats == form_id)
        slots[here] = moved[others.slots[here].long()].to(slots.dtype)
    copied = others.exists() & (others.copies >= 0)
    if bool(copied.any()):
        moved = _adopt_slots(table.host, others.host).to(copies.device)
        copies[copied] = moved[others.copies[copied].long()].to(copies.dtype)
    table._grow(first + len(others.counts), max(table.formats.shape[2], pages))
    for name, theirs in (
        ("formats", others.formats),
        ("slots", slots),
        ("copies", copies),
        ("mass", others.mass),
        ("settled", others.settled),
    ):
        getattr(table, name)[first:, :, :pages] = theirs
    table.counts += others.counts
    table.forgotten += others.forgotten
    table.moves += others.moves
    table.hits += others.hits


def _adopt_slots(pool: PagePool, other: PagePool) -> Tensor:
    """Copies what is held in `other`, with its holders; where each of its slots lies now, (capacity,) int64."""
    held = (other.holders > 0).nonzero().squeeze(1)
    moved = torch.full((other.capacity,), -1, dtype=torch.int64, device=other.data.device)
    moved[held] = pool.put(other.data[held])
    pool.holders[moved[held]] = other.holders[held]
    return moved
