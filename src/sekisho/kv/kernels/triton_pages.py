"""Decode attention over the quantised pages of one format: a program takes a head's share of them, for its whole group
of queries, and leaves a partial softmax (maximum, sum, weighted values)."""

# mypy: disable-error-code="no-untyped-def"
# Triton gives kernels their arguments; it has no types for pointers.

import triton
import triton.language as tl

from sekisho.kv.kernels.triton_codes import PAGE, in_one, in_two, levels, plane_words, shift_of, third_bits, word_of


@triton.jit
def _query_byte(pointer: tl.tensor, BYTE: tl.constexpr, GROUP: tl.constexpr, SHAPE: tl.constexpr) -> tl.tensor:
    group = tl.arange(0, SHAPE[1])[:, None]
    channel_group = tl.arange(0, SHAPE[2])[None, :]
    held = (group < GROUP) & (channel_group < SHAPE[0] // 4)
    return tl.load(pointer + group * SHAPE[0] + channel_group * 4 + BYTE, mask=held, other=0.0)


@triton.jit
def _queries(pointer: tl.tensor, GROUP: tl.constexpr, SHAPE: tl.constexpr) -> tl.tuple:
    """Four (2N, channel groups) float16: each query's numbers by byte, over its largest; and that, (N,). `SHAPE` is
    (D, N, channel groups), the last two powers of two."""
    first = _query_byte(pointer, 0, GROUP, SHAPE)
    second = _query_byte(pointer, 1, GROUP, SHAPE)
    third = _query_byte(pointer, 2, GROUP, SHAPE)
    fourth = _query_byte(pointer, 3, GROUP, SHAPE)
    largest = tl.maximum(tl.maximum(tl.abs(first), tl.abs(second)), tl.maximum(tl.abs(third), tl.abs(fourth)))
    largest = tl.max(largest, 1)
    largest = tl.where(largest == 0, 1.0, largest)
    over = largest[:, None]
    return (in_two(first / over), in_two(second / over), in_two(third / over), in_two(fourth / over)), largest


@triton.jit
def _product(rows: tl.tuple, words: tl.tensor, PLANE: tl.constexpr, BITS: tl.constexpr) -> tl.tensor:
    """(N, K) products of four (2N, groups) float16, by byte, with the levels in words (groups, K)."""
    sums = tl.dot(rows[0], levels(words, 0, PLANE, BITS))
    sums = tl.dot(rows[1], levels(words, 1, PLANE, BITS), sums)
    sums = tl.dot(rows[2], levels(words, 2, PLANE, BITS), sums)
    sums = tl.dot(rows[3], levels(words, 3, PLANE, BITS), sums)
    return in_one(sums)


@triton.jit
def _key_plane(
    words: tl.tuple, packed: tl.tensor, queries: tl.tuple, PLANE: tl.constexpr, BITS: tl.constexpr, D: tl.constexpr
) -> tl.tensor:
    """(N, tokens) products of the queries with the keys of one plane. `words` points at the keys and at `nibbles`."""
    third = packed
    if BITS == 3:
        channel_group = tl.arange(0, packed.shape[0])[:, None]
        octets = channel_group * PAGE + 16 * PLANE + 8 * tl.arange(0, packed.shape[1] // 8)[None, :]
        third = third_bits(words[0], words[1], octets, channel_group < D // 4)
    return _product(queries, plane_words(packed, third, PLANE, BITS), PLANE, BITS)


@triton.jit
def _key_products(
    words: tl.tensor, packed: tl.tensor, queries: tl.tuple, BITS: tl.constexpr, PLANES: tl.constexpr, D: tl.constexpr
) -> tl.tensor:
    """(N, PAGE) products of queries and keys, tokens in order."""
    rows: tl.constexpr = queries[0].shape[0] // 2
    first = _key_plane(words, packed, queries, 0, BITS, D)
    if PLANES == 1:
        products = first
    elif PLANES == 2:
        second = _key_plane(words, packed, queries, 1, BITS, D)
        pairs = tl.reshape(tl.join(first, second), (rows, 2, 16, 2))
        products = tl.reshape(tl.permute(pairs, (0, 1, 3, 2)), (rows, PAGE))
    else:
        second = _key_plane(words, packed, queries, 1, BITS, D)
        third = _key_plane(words, packed, queries, 2, BITS, D)
        fourth = _key_plane(words, packed, queries, 3, BITS, D)
        quads = tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), (rows, 16, 4))
        products = tl.reshape(tl.permute(quads, (0, 2, 1)), (rows, PAGE))
    return products


@triton.jit
def _value_quads(
    PLANE: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr, D: tl.constexpr, PLANES: tl.constexpr
) -> tl.tuple:
    """(token groups, WIDTH / STEP) numbers of one plane's quads, each STEP-th; (1, WIDTH / STEP) their channels."""
    across = tl.arange(0, WIDTH // STEP)[None, :] * STEP
    channel = across // 16 * (16 * PLANES) + 16 * PLANE + across % 16
    return tl.arange(0, 16)[:, None] * D + channel, channel


@triton.jit
def _value_plane(
    words: tl.tuple, packed: tl.tensor, weights: tl.tuple, PLANE: tl.constexpr, BITS: tl.constexpr, SHAPE: tl.constexpr
) -> tl.tensor:
    """(N, WIDTH) weighted sums of one plane's values. `SHAPE` is (D, planes), planes 1 where quads of one token group
    do not fill blocks: then each word is read once for each of its quads."""
    D: tl.constexpr = SHAPE[0]
    planes: tl.constexpr = SHAPE[1]
    width: tl.constexpr = packed.shape[1]
    quad, _ = _value_quads(PLANE, width, 1, D, planes)
    third = packed
    if BITS == 3:
        octets, octet_channel = _value_quads(PLANE, width, 8, D, planes)
        third = third_bits(words[0], words[1], octets, octet_channel < D)
    if BITS != 8 and planes == 1:
        packed = packed >> shift_of(quad, BITS)
    return _product(weights, plane_words(packed, third, PLANE, BITS), PLANE, BITS)


@triton.jit
def _by_byte(weights: tl.tensor) -> tl.tuple:
    """(N, PAGE) weights between 0 and 1 to four (2N, token groups) float16: those of each group's first token, …"""
    pairs = tl.reshape(weights, (weights.shape[0], 16, 2, 2))
    even, odd = tl.split(pairs)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return in_two(first), in_two(second), in_two(third), in_two(fourth)


@triton.jit
def _store_plane(
    outputs: tl.tensor,
    sums: tl.tensor,
    PLANE: tl.constexpr,
    GROUP: tl.constexpr,
    SHAPE: tl.constexpr,
    row_stride: tl.tensor,
) -> None:
    _, channel = _value_quads(PLANE, sums.shape[1], 1, SHAPE[0], SHAPE[1])
    group = tl.arange(0, sums.shape[0])[:, None]
    tl.store(outputs + group * row_stride + channel, sums, mask=(group < GROUP) & (channel < SHAPE[0]))


@triton.jit
def quantised_pages(
    rotated, bias, words, scales, nibbles, lists, counts, slots, sink_length, first_visible,  # what is read
    maxima, sums, outputs, page_lse,  # what is written, see `triton_decode`
    pages, first_split, all_splits,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr,
    KEY_BITS: tl.constexpr, VALUE_BITS: tl.constexpr, KEY_PLANES: tl.constexpr, VALUE_PLANES: tl.constexpr,
    KEY_GROUPS: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    VALUES_AT: tl.constexpr, SCALES_AT: tl.constexpr, PAGE_WORDS: tl.constexpr,
):  # fmt: skip
    """Grid (B * H, splits). `words` and `scales` are one pool as int32 and as float16; `lists` (B * H, P) names the
    format's pages, `counts` (B * H,) how many. `ROWS` queries, `KEY_GROUPS` channel groups and `VALUE_WIDTH` channels
    of a plane are powers of two, at least what there is. `VALUES_AT`, `SCALES_AT`, `PAGE_WORDS` are in int32 words."""
    head = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + head)
    begin = count * tl.program_id(1) // tl.num_programs(1)
    end = count * (tl.program_id(1) + 1) // tl.num_programs(1)
    group = tl.arange(0, ROWS)
    token = tl.arange(0, PAGE)
    first_token = tl.load(sink_length + head // KV_HEADS)
    unseen = tl.load(first_visible + head // KV_HEADS)
    queries, largest = _queries(rotated + head * GROUP * D, GROUP, (D, ROWS, KEY_GROUPS))
    offset = tl.load(bias + head * GROUP + group, mask=group < GROUP, other=0.0)

    channel_group = tl.arange(0, KEY_GROUPS)[:, None]
    key_word = word_of(channel_group * PAGE, KEY_BITS) + tl.arange(0, PAGE // KEY_PLANES)[None, :]
    value_quad, channel = _value_quads(0, VALUE_WIDTH, 1, D, VALUE_PLANES)
    value_word = word_of(value_quad, VALUE_BITS)
    maximum = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc0 = tl.zeros((ROWS, VALUE_WIDTH), tl.float32)
    acc1, acc2, acc3 = acc0, acc0, acc0
    for index in range(begin, end):
        page = tl.load(lists + head * pages + index)
        place = tl.load(slots + head * pages + page).to(tl.int64) * PAGE_WORDS
        page_words = words + place
        packed_keys = tl.load(page_words + key_word, mask=channel_group < D // 4, other=0)
        packed_values = tl.load(page_words + VALUES_AT + value_word, mask=channel < D, other=0)
        page_scales = scales + (place + SCALES_AT) * 2
        key_scale = tl.load(page_scales + token).to(tl.float32)
        value_scale = tl.load(page_scales + PAGE + token).to(tl.float32)

        logits = _key_products((page_words, nibbles), packed_keys, queries, KEY_BITS, KEY_PLANES, D)
        logits = logits * (largest[:, None] * key_scale[None, :]) + offset[:, None]
        seen = first_token + page * PAGE + token >= unseen
        logits = tl.where(seen[None, :], logits, float("-inf"))
        higher = tl.maximum(maximum, tl.max(logits, 1))  # finite: a list has no page without a visible token
        weights = tl.exp(logits - higher[:, None])
        fading = tl.exp(maximum - higher)
        page_sum = tl.sum(weights, 1)
        lse = higher + tl.log(page_sum)
        tl.store(page_lse + (head * GROUP + group) * pages + page, lse, mask=group < GROUP)
        maximum = higher
        total = total * fading + page_sum

        greatest = tl.max(value_scale)
        greatest = tl.where(greatest == 0, 1.0, greatest)
        by_byte = _by_byte(weights * (value_scale / greatest)[None, :])
        page_values = (page_words + VALUES_AT, nibbles)
        fades = fading[:, None]
        shape: tl.constexpr = (D, VALUE_PLANES)
        acc0 = acc0 * fades + greatest * _value_plane(page_values, packed_values, by_byte, 0, VALUE_BITS, shape)
        if VALUE_PLANES > 1:
            acc1 = acc1 * fades + greatest * _value_plane(page_values, packed_values, by_byte, 1, VALUE_BITS, shape)
        if VALUE_PLANES > 2:
            acc2 = acc2 * fades + greatest * _value_plane(page_values, packed_values, by_byte, 2, VALUE_BITS, shape)
            acc3 = acc3 * fades + greatest * _value_plane(page_values, packed_values, by_byte, 3, VALUE_BITS, shape)

    split = first_split + tl.program_id(1)
    place = (head * GROUP + group) * all_splits + split
    tl.store(maxima + place, maximum, mask=group < GROUP)
    tl.store(sums + place, total, mask=group < GROUP)
    if begin < end:
        mine = outputs + (head * GROUP * all_splits + split) * D
        _store_plane(mine, acc0, 0, GROUP, (D, VALUE_PLANES), all_splits * D)
        if VALUE_PLANES > 1:
            _store_plane(mine, acc1, 1, GROUP, (D, VALUE_PLANES), all_splits * D)
        if VALUE_PLANES > 2:
            _store_plane(mine, acc2, 2, GROUP, (D, VALUE_PLANES), all_splits * D)
            _store_plane(mine, acc3, 3, GROUP, (D, VALUE_PLANES), all_splits * D)
