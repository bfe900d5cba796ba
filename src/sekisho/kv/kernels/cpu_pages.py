"""A stretch of one row's tokens under one key/value head: the loop over pages, for all query heads of the group.

Arrays count their holders, which costs more than a page does; so within the loop memory is named by its address.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numba import float32, int32

from sekisho.kv.formats import BLOCK, EVICTED, PAGE
from sekisho.kv.kernels import cpu_dense
from sekisho.kv.kernels.cpu_machine import Shape, at_address, carray, compiled, take_ticket
from sekisho.kv.kernels.cpu_softmax import (
    DIGITS_LIMIT,
    NOTHING,
    gather,
    page_logits,
    query_digits,
    read_scales,
    weigh,
    weight_digits,
)
from sekisho.kv.kernels.cpu_steps import key_dots, start, stop, unpack, value_dots
from sekisho.kv.kernels.cpu_vectors import LANES, LINE

_LEAST_SHARE: Final = 1e-11  # of the best weight: below it a page's values are lost in a float32's rounding


class Inputs(NamedTuple):
    """A view as arrays. Pools and tokens are addresses, because numpy knows no bfloat16."""

    query: Any  # (B, H, G, D) float32
    rotated: Any  # (B, H, G, D) float32
    bias: Any  # (B, H, G) float32
    formats: Any  # (B, H, P) int8
    slots: Any  # (B, H, P) int32
    pools: Any  # (17, 7) int64 by format id: address, bits of keys and values, `Layout` from values on
    tokens: Any  # (B, H, 2, 4) int64, sinks and recent: keys' and values' addresses, tokens, position
    first_visible: Any  # (B,) int32
    page_start: Any  # (B,) int64: position of the first page


class Outputs(NamedTuple):
    """What each item found, for I items, and what each page weighs."""

    running: Any  # (I, G, 3) float32: largest logit, sum of weights, sum of those on quantised pages
    plain: Any  # (I, G, D) float32
    turned: Any  # (I, G, D) float32
    pages: Any  # (B, H, P, G, 2) float32: largest logit, sum of weights


class Place(NamedTuple):
    """Addresses: of what belongs to one row and key/value head and to one item, and of a thread's own memory."""

    query: int  # (G, D) float32
    rotated: int  # (G, D) float32
    bias: int  # (G,) float32
    running: int  # (G, 3) float32
    plain: int  # (G, D) float32
    turned: int  # (G, D) float32
    levels: int  # (PAGE * D,) uint8
    logits: int  # (G, PAGE) float32: then the weights
    dots: int  # (G, 2, max(PAGE, D)) int32: two digits, high * 256 + low
    scales: int  # (2, PAGE) float32: of keys, of values
    query_digits: int  # (G, 2, D) int8
    weight_digits: int  # (G, 2, PAGE) int8
    worth: int  # (2, G) float32: what a factor of 1 is worth, of the query's and of the weights'
    totals: int  # (2, G) int32: 128 times the sum of the factors, of the query's and of the weights'
    nowhere: int  # (G, 2) float32: for the weight of tokens in no page


@compiled
def run(machine: Any, kind: Any, ticket: int, items: Any, inputs: Inputs, outputs: Outputs) -> None:
    """Takes items until none is left. Items (I, 5) int64: row, head, first page, page after the last, and whether the
    sinks (1) and the recent tokens (2) belong to it. `ticket`: the address of the number of the next one."""
    heads, head_dim = inputs.query.shape[2:]
    shape = Shape(heads, head_dim, 4 * max(PAGE, head_dim))
    memory = np.empty(_own_bytes(shape), np.uint8)
    start(machine)
    while True:
        item = take_ticket(ticket)
        if item >= items.shape[0]:
            break
        place = _place(item, items[item, 0], items[item, 1], shape, inputs, outputs, memory)
        running = carray(at_address(place.running), (heads, 3), float32)
        for query in range(heads):
            running[query, 0] = NOTHING
        _ends(kind, items[item], shape, place, inputs)
        _pages(machine, kind, items[item], shape, place, inputs, outputs)
    stop(machine)


@compiled
def _own_bytes(shape: Shape) -> int:
    """Of a thread's own memory, see `_place`."""
    levels, logits, dots = PAGE * shape.head_dim, 4 * PAGE * shape.heads, 2 * shape.dots_stride * shape.heads
    digits = 2 * (PAGE + shape.head_dim) * shape.heads
    return levels + logits + dots + 8 * PAGE + digits + 24 * shape.heads + 10 * LINE


@compiled
def _place(item: int, row: int, head: int, shape: Shape, inputs: Inputs, outputs: Outputs, memory: Any) -> Place:
    heads, head_dim = shape.heads, shape.head_dim
    levels = _aligned(memory.ctypes.data)
    logits = _aligned(levels + PAGE * head_dim)
    dots = _aligned(logits + 4 * PAGE * heads)
    scales = _aligned(dots + 2 * shape.dots_stride * heads)
    queries = _aligned(scales + 8 * PAGE)
    weights = _aligned(queries + 2 * head_dim * heads)
    worth = _aligned(weights + 2 * PAGE * heads)
    return Place(
        query=inputs.query[row, head].ctypes.data,
        rotated=inputs.rotated[row, head].ctypes.data,
        bias=inputs.bias[row, head].ctypes.data,
        running=outputs.running[item].ctypes.data,
        plain=outputs.plain[item].ctypes.data,
        turned=outputs.turned[item].ctypes.data,
        levels=levels,
        logits=logits,
        dots=dots,
        scales=scales,
        query_digits=queries,
        weight_digits=weights,
        worth=worth,
        totals=worth + 8 * heads,
        nowhere=worth + 16 * heads,
    )


@compiled
def _aligned(address: int) -> int:
    return (address + LINE - 1) // LINE * LINE


@compiled
def _ends(kind: Any, item: Any, shape: Shape, place: Place, inputs: Inputs) -> None:
    """Sinks and recent tokens."""
    stride = shape.head_dim * kind.itemsize
    for side in range(2):
        if item[4] & (1 << side):
            keys, values, count, position = inputs.tokens[item[0], item[1], side]
            for first in range(max(0, inputs.first_visible[item[0]] - position), count, PAGE):
                many = min(PAGE, count - first)
                _dense(kind, keys + first * stride, values + first * stride, many, shape, place, place.nowhere)


@compiled
def _pages(machine: Any, kind: Any, item: Any, shape: Shape, place: Place, inputs: Inputs, outputs: Outputs) -> None:
    row, head = item[0], item[1]
    _prepare(shape, place)
    stride = shape.head_dim * kind.itemsize
    weighed = outputs.pages[row, head].ctypes.data
    hidden = inputs.first_visible[row] - inputs.page_start[row]
    for page in range(item[2], item[3]):
        form = inputs.formats[row, head, page]
        skip = max(0, hidden - page * PAGE)
        if form == EVICTED or skip >= PAGE:
            continue
        pool = inputs.pools[form]
        address = _address(page, row, head, inputs)
        weight = weighed + 8 * shape.heads * page
        if form == 0:
            keys = address + skip * stride
            _dense(kind, keys, keys + pool[3], PAGE - skip, shape, place, weight)
        else:
            ahead = _address(min(page + 1, item[3] - 1), row, head, inputs) - address
            _quantised(machine, address, ahead, pool, skip, shape, place, weight)


@compiled
def _address(page: int, row: int, head: int, inputs: Inputs) -> int:
    pool = inputs.pools[max(0, inputs.formats[row, head, page])]
    return pool[0] + inputs.slots[row, head, page] * pool[6]  # type: ignore[no-any-return]


@compiled
def _prepare(shape: Shape, place: Place) -> None:
    """The queries' digits."""
    heads, head_dim = shape.heads, shape.head_dim
    limit = min(DIGITS_LIMIT, (2**31 - 1) // (255 * head_dim))
    worth = carray(at_address(place.worth), (2, heads), float32)
    totals = carray(at_address(place.totals), (2, heads), int32)
    for query in range(heads):
        digits = place.query_digits + 2 * head_dim * query
        worth[0, query], totals[0, query] = query_digits(place.rotated + 4 * head_dim * query, head_dim, digits, limit)


# --- dense tokens ---------------------------------------------------------------------------------------------------


@compiled
def _dense(kind: Any, keys: int, values: int, count: int, shape: Shape, place: Place, weight: int) -> None:
    """At most PAGE tokens that follow each other in memory. What they weigh is written to the address `weight`."""
    head_dim = shape.head_dim
    plane = PAGE * head_dim * kind.itemsize  # in a page values follow keys, and the next page follows mostly
    for query in range(shape.heads):
        logits, ahead = place.logits + 4 * PAGE * query, 0 if query else plane
        cpu_dense.key_dots(kind, keys, count, place.query + 4 * head_dim * query, head_dim, logits, ahead)
    for query in range(shape.heads):
        logits = place.logits + 4 * PAGE * query
        best, total = weigh(logits, 0, count)
        share = _admit(query, best, total, False, shape, place, weight)
        weights = carray(at_address(logits), (PAGE,), float32)
        for token in range(PAGE):
            weights[token] *= share
    for query in range(shape.heads):
        weights_at, ahead = place.logits + 4 * PAGE * query, 0 if query else plane
        cpu_dense.add_values(kind, values, count, weights_at, head_dim, place.plain + 4 * head_dim * query, ahead)


@compiled
def _admit(query: int, best: float, total: float, turned: bool, shape: Shape, place: Place, weight: int) -> float:
    """Takes weights into the running sums; by what their values are to be multiplied."""
    weighed = carray(at_address(weight + 8 * query), (2,), float32)
    weighed[0], weighed[1] = best, total
    running = carray(at_address(place.running + 12 * query), (3,), float32)
    if best > running[0]:
        fade = np.exp(running[0] - best)
        for address in (place.plain, place.turned):
            sums = carray(at_address(address + 4 * shape.head_dim * query), (shape.head_dim,), float32)
            for channel in range(shape.head_dim):
                sums[channel] *= fade
        running[1] *= fade
        running[2] *= fade
        running[0] = best
        share: Any = float32(1)
    else:
        share = np.exp(best - running[0])
    running[1] += total * share
    if turned:
        running[2] += total * share
    return share


# --- quantised pages ------------------------------------------------------------------------------------------------


@compiled
def _quantised(
    machine: Any, address: int, ahead: int, pool: Any, skip: int, shape: Shape, place: Place, weight: int
) -> None:
    """A page at an address, without its first `skip` tokens. `pool`: a row of `Inputs.pools`. What the page weighs is
    written to the address `weight`. What will be read next lies `ahead` bytes ahead."""
    blocks = PAGE * shape.head_dim // BLOCK
    read_scales(address + pool[4], place.scales)
    unpack(machine, pool[1], address, blocks, place.levels, ahead)
    key_dots(machine, place.levels, place.query_digits, shape, place.dots)
    wanted = False
    for query in range(shape.heads):
        wanted |= _weigh_page(query, skip, shape, place, weight)
    if wanted:
        unpack(machine, pool[2], address + pool[3], blocks, place.levels, ahead)
        value_dots(machine, place.levels, place.weight_digits, shape, place.dots)
        for query in range(shape.heads):
            _gather(query, shape, place)


@compiled
def _weigh_page(query: int, skip: int, shape: Shape, place: Place, weight: int) -> bool:
    """From dot products to weights, as digits. Whether any of them matters."""
    worth = carray(at_address(place.worth), (2, shape.heads), float32)
    totals = carray(at_address(place.totals), (2, shape.heads), int32)
    bias = carray(at_address(place.bias), (shape.heads,), float32)[query]
    dots, logits = place.dots + 2 * shape.dots_stride * query, place.logits + 4 * PAGE * query
    page_logits(dots, shape.dots_stride, place.scales, worth[0, query], totals[0, query], bias, logits)
    best, total = weigh(logits, skip, PAGE)
    share = _admit(query, best, total, True, shape, place, weight)
    digits = place.weight_digits + 2 * PAGE * query
    value_worth, totals[1, query] = weight_digits(logits, place.scales + 4 * PAGE, digits)
    worth[1, query] = value_worth * share
    return share > _LEAST_SHARE


@compiled
def _gather(query: int, shape: Shape, place: Place) -> None:
    """Adds the values' dot products to the sums."""
    worth = carray(at_address(place.worth), (2, shape.heads), float32)[1, query]
    total = carray(at_address(place.totals), (2, shape.heads), int32)[1, query]
    dots, into = place.dots + 2 * shape.dots_stride * query, place.turned + 4 * shape.head_dim * query
    gather(dots, shape.dots_stride, worth, total, shape.head_dim, into)
    for channel in range(shape.head_dim - shape.head_dim % LANES, shape.head_dim):
        high = carray(at_address(dots + 4 * channel), (1,), int32)[0]
        low = carray(at_address(dots + shape.dots_stride + 4 * channel), (1,), int32)[0]
        sums = carray(at_address(into + 4 * channel), (1,), float32)
        sums[0] += worth * float32(int32(high * 256 + low - total))
