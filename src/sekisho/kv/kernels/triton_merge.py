"""Before and after the attention kernels: which pages are of which format, and one softmax of all the partial ones."""

# mypy: disable-error-code="no-untyped-def"
# Triton gives kernels their arguments; it has no types for pointers.

from typing import Final

import triton
import triton.language as tl

from sekisho.kv.kernels.triton_codes import PAGE

_FORMATS: Final = tl.constexpr(17)
_AT_ONCE: Final = tl.constexpr(256)  # pages
_SPLITS_AT_ONCE: Final = tl.constexpr(16)


@triton.jit
def list_pages(
    formats, page_count, sink_length, first_visible, lists, counts, page_lse, present, pages,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Grid (B * H, formats that have a pool): the visible pages of a format, in order, into `lists` (formats, B * H, P)
    and how many into `counts` (formats, B * H). Bit f of `present`: format f has a pool. Clears `page_lse`."""
    head = tl.program_id(0).to(tl.int64)
    row = head // KV_HEADS
    rank = tl.program_id(1)
    form, before = 0, 0
    for each in range(_FORMATS):
        here = (present >> each) & 1
        form = tl.where((here == 1) & (before == rank), each, form)
        before += here
    held = tl.load(page_count + row)
    # The first page with a token at or after `first_visible`.
    hidden = tl.maximum(tl.load(first_visible + row) - tl.load(sink_length + row), 0) // PAGE
    mine = rank.to(tl.int64) * tl.num_programs(0) + head
    found = 0
    for first in range(0, held, _AT_ONCE):
        page = first + tl.arange(0, _AT_ONCE)
        theirs = tl.load(formats + head * pages + page, mask=page < held, other=-1).to(tl.int32)
        chosen = (theirs == form) & (page >= hidden) & (page < held)
        place = found + tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(lists + mine * pages + place, page, mask=chosen)
        found += tl.sum(chosen.to(tl.int32), 0)
    tl.store(counts + mine, found)
    if rank == 0:
        for first in range(0, GROUP * pages, _AT_ONCE):
            place = first + tl.arange(0, _AT_ONCE)
            nothing = tl.full((_AT_ONCE,), float("-inf"), tl.float32)
            tl.store(page_lse + head * GROUP * pages + place, nothing, mask=place < GROUP * pages)


@triton.jit
def merge_splits(
    maxima, sums, outputs, output, rotated_output, rotated_mass, all_lse, splits, dense_splits,
    SPLITS: tl.constexpr, D: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Grid (B * H * G,): one query's partial softmaxes, (splits,) and (splits, D), into one. The first `dense_splits`
    are of dense tokens and pages. `SPLITS` and `CHANNELS` are powers of two."""
    query = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    maximum = tl.load(maxima + query * splits + split, mask=split < splits, other=float("-inf"))
    total = tl.load(sums + query * splits + split, mask=split < splits, other=0.0)
    top = tl.max(maximum, 0)
    finite = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp(maximum - finite)
    whole = tl.sum(weights * total, 0)
    over = tl.where(whole == 0, 1.0, whole)
    tl.store(all_lse + query, tl.where(whole == 0, float("-inf"), finite + tl.log(over)))
    tl.store(rotated_mass + query, tl.sum(tl.where(split >= dense_splits, weights * total, 0.0), 0) / over)
    channel = tl.arange(0, CHANNELS)
    plain = tl.zeros((CHANNELS,), tl.float32)
    turned = tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, splits, _SPLITS_AT_ONCE):
        some = first + tl.arange(0, _SPLITS_AT_ONCE)
        tops = tl.load(maxima + query * splits + some, mask=some < splits, other=float("-inf"))
        weight = tl.exp(tops - finite) / over
        place = (query * splits + some)[:, None] * D + channel[None, :]
        there = (tops > float("-inf"))[:, None] & (channel < D)[None, :]  # what saw nothing has written nothing
        parts = tl.load(outputs + place, mask=there, other=0.0) * weight[:, None]
        dense = (some < dense_splits)[:, None]
        plain += tl.sum(tl.where(dense, parts, 0.0), 0)
        turned += tl.sum(tl.where(dense, 0.0, parts), 0)
    tl.store(output + query * D + channel, plain, mask=channel < D)
    tl.store(rotated_output + query * D + channel, turned, mask=channel < D)


@triton.jit
def page_shares(page_lse, all_lse, page_mass, pages, GROUP: tl.constexpr, PAGES: tl.constexpr):  # fmt: skip
    """Grid (B * H, blocks of `PAGES` pages): each page's share of the weight, mean over the group."""
    head = tl.program_id(0).to(tl.int64)
    page = tl.program_id(1) * PAGES + tl.arange(0, PAGES)
    share = tl.zeros((PAGES,), tl.float32)
    for query in range(head * GROUP, head * GROUP + GROUP):
        lse = tl.load(page_lse + query * pages + page, mask=page < pages, other=float("-inf"))
        whole = tl.load(all_lse + query)
        share += tl.exp(lse - tl.where(whole == float("-inf"), 0.0, whole))
    tl.store(page_mass + head * pages + page, share / GROUP, mask=page < pages)
