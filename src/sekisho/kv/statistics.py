"""What a cache holds, what that costs and how often what it holds was asked for.

A chunk is a page of one layer, row and key/value head. Pages that a sliding window has left behind are nobody's: they
count nowhere, also not at 16 bits. Rows that share a page (forks) count it each as a chunk, its bytes once.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import torch

from sekisho.kv.clock import Purpose
from sekisho.kv.formats import EVICTED, FORMATS, PAGE, layout
from sekisho.kv.plan import LEVELS, level
from sekisho.kv.rows import TieredRows

_TOKENS = "tokens"  # attention on sinks and recent tokens, which are in no page


class CacheStatistics(msgspec.Struct, frozen=True):
    """`layers` that hold tokens; `tokens` of all rows, and those of them that are `dense_tokens` (sinks, recent), in
    the layer that has most; `chunks` by level (L0 dense, L1 eight bits, L2 fewer, L3 evicted) and those that are there
    by format.

    `level_bytes`: what sinks, recent tokens and pages take, by level, as they are stored; L3 is what the evicted ones
    would take at 16 bits. Tables and means are in no level.

    `bytes_used` is what tokens, pages, tables and means take, `bytes_allocated` all memory that is kept for them on the
    device, `bytes_at_16_bits` what the same tokens would take. `ratio` is used to 16 bits, None where nothing is held.
    `moves`: pages that changed their format, since the beginning. `hits`: shares of all attention by where it lay: on
    `tokens` outside pages (and on what carries no token), or on pages by level; None before the first. Seconds are the
    host's, None where nothing was measured.
    """

    layers: int
    tokens: int
    dense_tokens: int
    chunks: int
    levels: dict[str, int]
    level_bytes: dict[str, int]
    formats: dict[str, int]
    bytes_allocated: int
    bytes_used: int
    bytes_at_16_bits: int
    bytes_saved: int
    ratio: float | None
    host_bytes: int
    moves: int
    hits: dict[str, float] | None
    packing_s: float | None
    planning_s: float | None
    attention_s: float | None


def statistics(tiers: Sequence[TieredRows]) -> CacheStatistics:
    """Of all layers together. Reads the tables, not the pages."""
    counted, stored = Counter[int](), Counter[int]()
    for rows in tiers:
        table = rows.table
        stored.update({form: pool.used * pool.page_bytes for form, pool in table.pools.items()})
        forgotten = torch.tensor(table.forgotten, dtype=torch.int64, device=table.device)[:, None, None]
        at = torch.arange(table.formats.shape[2], device=table.device)
        kept = table.formats[(table.exists() & (at >= forgotten)).expand_as(table.formats)]
        here, many = kept.unique(return_counts=True)
        theirs = dict(zip(here.tolist(), many.tolist(), strict=True))
        counted.update(theirs)
        stored[EVICTED] += theirs.get(EVICTED, 0) * _page_bytes_at_16_bits(rows)
    dense = [rows.dense_tokens for rows in tiers]
    return _summed(tiers, counted, stored, sum(rows.used_bytes for rows in tiers), dense)


def recount(tiers: Sequence[TieredRows]) -> CacheStatistics:
    """The same from the tables alone, entry by entry: slow, and what `statistics` must equal."""
    counted, stored = Counter[int](), Counter[int]()
    used, dense = 0, []
    for rows in tiers:
        table, shape = rows.table, rows.shape
        slots: set[tuple[int, int]] = set()
        for row, count in enumerate(table.counts):
            for head in range(shape.kv_heads):
                forms, theirs = table.formats[row, head].tolist(), table.slots[row, head].tolist()
                for page in range(table.forgotten[row], count):
                    counted[forms[page]] += 1
                    if forms[page] == EVICTED:
                        stored[EVICTED] += _page_bytes_at_16_bits(rows)
                    else:
                        slots.add((forms[page], theirs[page]))
        item = shape.dtype.itemsize
        for form, _ in slots:
            page_bytes = layout(FORMATS[form], shape.head_dim, item).page_bytes
            stored[form] += page_bytes
            used += page_bytes
        tables = (table.formats, table.slots, table.copies, table.mass, table.settled)
        used += sum(each.numel() * each.element_size() for each in tables)
        dense.append(sum(rows.lengths) - PAGE * sum(table.counts))
        used += (dense[-1] + rows.batch) * 2 * shape.kv_heads * shape.head_dim * item  # one more for each row's means
    return _summed(tiers, counted, stored, used, dense)


def _summed(
    tiers: Sequence[TieredRows], counted: Counter[int], stored: Counter[int], used: int, dense: list[int]
) -> CacheStatistics:
    """`counted`: chunks, `stored`: bytes of their pages, by format; of evicted ones at 16 bits."""
    whole = sum(_bytes_at_16_bits(rows) for rows in tiers)
    by_level = dict.fromkeys(LEVELS, 0)
    for form_id, many in counted.items():
        by_level[LEVELS[level(form_id)]] += many
    level_bytes = dict.fromkeys(LEVELS, 0)
    for form_id, size_bytes in stored.items():
        level_bytes[LEVELS[level(form_id)]] += size_bytes
    level_bytes["L0"] += sum(many * rows.dense_token_bytes for many, rows in zip(dense, tiers, strict=True))
    return CacheStatistics(
        layers=len(tiers),
        tokens=max((sum(rows.lengths) for rows in tiers), default=0),
        dense_tokens=max(dense, default=0),
        chunks=counted.total(),
        levels=by_level,
        level_bytes=level_bytes,
        formats={str(FORMATS[each]): counted[each] for each in sorted(counted) if each != EVICTED},
        bytes_allocated=sum(rows.allocated_bytes for rows in tiers),
        bytes_used=used,
        bytes_at_16_bits=whole,
        bytes_saved=whole - used,
        ratio=used / whole if whole else None,
        host_bytes=sum(rows.table.host_bytes for rows in tiers),
        moves=sum(rows.table.moves for rows in tiers),
        hits=_hits(tiers),
        packing_s=_seconds(tiers, "packing"),
        planning_s=_seconds(tiers, "planning"),
        attention_s=_seconds(tiers, "attention"),
    )


def _page_bytes_at_16_bits(rows: TieredRows) -> int:
    return PAGE * 2 * rows.shape.head_dim * 2


def _bytes_at_16_bits(rows: TieredRows) -> int:
    tokens = sum(rows.lengths) - PAGE * sum(rows.table.forgotten)
    return tokens * 2 * rows.shape.kv_heads * rows.shape.head_dim * 2


def _hits(tiers: Iterable[TieredRows]) -> dict[str, float] | None:
    names = (*LEVELS[:-1], _TOKENS)
    masses = dict.fromkeys(names, 0.0)
    for rows in tiers:
        *pages, _, tokens = rows.table.hits.tolist()
        for name, mass in zip(names, (*pages, tokens), strict=True):
            masses[name] += mass
    whole = sum(masses.values())
    return {name: mass / whole for name, mass in masses.items()} if whole else None


def _seconds(tiers: Iterable[TieredRows], purpose: Purpose) -> float | None:
    measured = [rows.table.clock.seconds[purpose] for rows in tiers if purpose in rows.table.clock.seconds]
    return sum(measured) if measured else None
