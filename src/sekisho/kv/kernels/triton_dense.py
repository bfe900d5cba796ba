"""Decode attention over what is dense: first and recent tokens, and pages of format 0. Leaves partial softmaxes like
those of `triton_pages`."""

# mypy: disable-error-code="no-untyped-def"
# Triton gives kernels their arguments; it has no types for pointers.

import triton
import triton.language as tl

from sekisho.kv.kernels.triton_codes import PAGE


@triton.jit
def _in_two(x: tl.tensor) -> tl.tensor:
    """(N, K) float32 to (2N, K): the numbers with the eleven bits that a matrix unit (TF32) looks at, and below them
    the rest. Sixteen bit keys and values lose nothing there."""
    high = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return tl.reshape(tl.permute(tl.join(high, x - high), (2, 0, 1)), (2 * x.shape[0], x.shape[1]))


@triton.jit
def _in_one(x: tl.tensor) -> tl.tensor:
    high, low = tl.split(tl.permute(tl.reshape(x, (2, x.shape[0] // 2, x.shape[1])), (1, 2, 0)))
    return high + low


@triton.jit
def _query(
    pointer: tl.tensor, GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, CHANNELS: tl.constexpr
) -> tl.tensor:
    group = tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, CHANNELS)[None, :]
    return _in_two(tl.load(pointer + group * D + channel, mask=(group < GROUP) & (channel < D), other=0.0))


@triton.jit
def _attend(
    query: tl.tensor, keys: tl.tensor, values: tl.tensor, seen: tl.tensor, D: tl.constexpr, PRECISION: tl.constexpr
) -> tl.tuple:
    """PAGE tokens, row by row from `keys` and `values` on: maximum (N,), sum (N,) and weighted values (N, CHANNELS). A
    maximum of -inf where no token is seen, and then zeros."""
    channel = tl.arange(0, query.shape[1])
    token = tl.arange(0, PAGE)
    stored = tl.load(
        keys + token[None, :] * D + channel[:, None], mask=(channel < D)[:, None] & seen[None, :], other=0.0
    )
    logits = _in_one(tl.dot(query, stored.to(tl.float32), input_precision=PRECISION))
    logits = tl.where(seen[None, :], logits, float("-inf"))
    maximum = tl.max(logits, 1)
    weights = tl.exp(logits - tl.where(maximum == float("-inf"), 0.0, maximum)[:, None])
    stored = tl.load(
        values + token[:, None] * D + channel[None, :], mask=seen[:, None] & (channel < D)[None, :], other=0.0
    )
    sums = _in_one(tl.dot(_in_two(weights), stored.to(tl.float32), input_precision=PRECISION))
    return maximum, tl.sum(weights, 1), sums


@triton.jit
def _leave(
    maxima, sums, outputs, place, maximum, total, acc, GROUP: tl.constexpr, D: tl.constexpr, stride
):  # fmt: skip
    """One split's partial softmax. `place` is that of the group's first query, `stride` from one query to the next."""
    group = tl.arange(0, acc.shape[0])
    channel = tl.arange(0, acc.shape[1])[None, :]
    at = place + group * stride
    tl.store(maxima + at, maximum, mask=group < GROUP)
    tl.store(sums + at, total, mask=group < GROUP)
    tl.store(outputs + at[:, None] * D + channel, acc, mask=(group < GROUP)[:, None] & (channel < D))


@triton.jit
def dense_tokens(
    query, sink_keys, sink_values, sink_length, recent_keys, recent_values, recent_length,
    page_count, first_visible, maxima, sums, outputs,
    sink_room, recent_room, sink_tiles, all_splits,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (B * H, tiles): the first `sink_tiles` tiles of PAGE tokens are of the first tokens, the others of the
    recent ones. A tile is a split, from split 0 on."""
    head = tl.program_id(0).to(tl.int64)
    row = head // KV_HEADS
    tile = tl.program_id(1)
    sinks = tl.load(sink_length + row)
    if tile < sink_tiles:
        keys, values, room, length, position = sink_keys, sink_values, sink_room, sinks, 0
        at = tile * PAGE
    else:
        keys, values, room = recent_keys, recent_values, recent_room
        length = tl.load(recent_length + row)
        position = sinks + tl.load(page_count + row) * PAGE
        at = (tile - sink_tiles) * PAGE
    token = at + tl.arange(0, PAGE)
    seen = (token < length) & (position + token >= tl.load(first_visible + row))
    place = (head * room + at) * D
    queries = _query(query + head * GROUP * D, GROUP, ROWS, D, CHANNELS)
    maximum, total, acc = _attend(queries, keys + place, values + place, seen, D, PRECISION)
    _leave(
        maxima, sums, outputs, head * GROUP * all_splits + tile, maximum, total, acc, GROUP, D, all_splits
    )  # fmt: skip


@triton.jit
def dense_pages(
    query, pool, lists, counts, slots, sink_length, first_visible, maxima, sums, outputs, page_lse,
    pages, first_split, all_splits,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (B * H, splits). `pool` is of the model's type; the rest as in `triton_pages.quantised_pages`."""
    head = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + head)
    begin = count * tl.program_id(1) // tl.num_programs(1)
    end = count * (tl.program_id(1) + 1) // tl.num_programs(1)
    group = tl.arange(0, ROWS)
    first_token = tl.load(sink_length + head // KV_HEADS)
    unseen = tl.load(first_visible + head // KV_HEADS)
    queries = _query(query + head * GROUP * D, GROUP, ROWS, D, CHANNELS)
    maximum = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, CHANNELS), tl.float32)
    for index in range(begin, end):
        page = tl.load(lists + head * pages + index)
        keys = pool + tl.load(slots + head * pages + page).to(tl.int64) * (2 * PAGE * D)
        seen = first_token + page * PAGE + tl.arange(0, PAGE) >= unseen
        top, page_sum, values = _attend(queries, keys, keys + PAGE * D, seen, D, PRECISION)
        lse = top + tl.log(page_sum)
        tl.store(page_lse + (head * GROUP + group) * pages + page, lse, mask=group < GROUP)
        higher = tl.maximum(maximum, top)  # finite: a list has no page without a visible token
        fading, share = tl.exp(maximum - higher), tl.exp(top - higher)
        total = total * fading + page_sum * share
        acc = acc * fading[:, None] + values * share[:, None]
        maximum = higher
    place = head * GROUP * all_splits + first_split + tl.program_id(1)
    _leave(maxima, sums, outputs, place, maximum, total, acc, GROUP, D, all_splits)
