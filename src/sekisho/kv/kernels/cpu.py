"""Decode attention on the CPU, straight from the packed bytes, without a compiler on the machine: numba.

A step is cut into items, each a stretch of pages of one row and key/value head. Threads take one after the other; what
they found is joined by the logarithms of the sums of weights. Queries and weights are rounded to 16 bits, so that dot
products are sums of bytes: an output is off by some 1e-5 of its scale.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_features
from torch import Tensor

from sekisho.kv.formats import FORMATS, PAGE, layout
from sekisho.kv.kernels import cpu_amx, reference
from sekisho.kv.kernels.base import DenseTokens, PageView, Partial
from sekisho.kv.kernels.cpu_join import join
from sekisho.kv.kernels.cpu_machine import Amx, Avx2, BFloat16, Float16, Float32, Portable, Vnni
from sekisho.kv.kernels.cpu_pages import Inputs, Outputs, run
from sekisho.kv.kernels.cpu_vectors import LANES

_KINDS: Final = {torch.float32: Float32(), torch.bfloat16: BFloat16(), torch.float16: Float16()}
_LEAST_PAGES = 16  # in an item, unless there are fewer
_ITEMS_PER_THREAD = 8
_WORTH_TILES = 3  # query heads in a group: for fewer, tiles are emptier than vectors


def decode_attention(view: PageView, machine: Any = None) -> Partial:
    """See `base`. `machine`: what to compute with, if not the best that the processor has (for tests)."""
    if view.recent.keys.dtype not in _KINDS:
        return reference.decode_attention(view)
    held: list[Tensor] = []  # tensors whose memory is read by address: they live until the threads are done
    inputs = _inputs(view, held)
    threads = torch.get_num_threads()
    items = work_items(view, threads)
    batch, kv_heads, group, head_dim = inputs.query.shape
    outputs = Outputs(
        running=np.zeros((len(items), group, 3), np.float32),
        plain=np.zeros((len(items), group, head_dim), np.float32),
        turned=np.zeros((len(items), group, head_dim), np.float32),
        pages=np.zeros((batch, kv_heads, view.formats.shape[2], group, 2), np.float32),
    )
    ticket = np.zeros(1, np.int64)
    work = (
        machine or machines(group, head_dim)[0],
        _KINDS[view.recent.keys.dtype],
        ticket.ctypes.data,
        items,
        inputs,
        outputs,
    )
    others = [_workers(threads, os.getpid()).submit(run, *work) for _ in range(min(threads, len(items)) - 1)]
    run(*work)
    for other in others:
        if not other.cancel():  # what has not begun has nothing left to do
            other.result()
    return _partial(items, outputs)


def machines(group: int, head_dim: int) -> list[Any]:
    """What this processor can compute groups of query heads with, the best first."""
    found: list[Any] = [Portable()]
    has = get_host_cpu_features()
    if has.get("avx2"):
        found.append(Avx2())
    if head_dim % LANES == 0 and all(has.get(each) for each in ("avx512f", "avx512bw", "avx512vnni")):
        found.append(Vnni())
        if group <= cpu_amx.HEADS and has.get("amx-int8") and _tiles_permitted():
            address = _tile_configuration(group, head_dim).ctypes.data
            tiles = Amx(address, cpu_amx.channels_at_once(head_dim))
            found.insert(len(found) if group >= _WORTH_TILES else -1, tiles)
    return found[::-1]


@cache
def _tiles_permitted() -> bool:
    return cpu_amx.permitted()


@cache
def _tile_configuration(group: int, head_dim: int) -> Any:
    return np.frombuffer(cpu_amx.configuration(group, head_dim), np.uint8)


@cache
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    """A process's own: threads do not survive a fork."""
    return ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="sekisho-kv")


def work_items(view: PageView, threads: int) -> np.ndarray[Any, Any]:
    """(I, 5) int64, as `run` wants them: long enough to be worth their while, enough of them for all threads."""
    kv_heads = view.formats.shape[1]
    counts = view.page_count.tolist()
    share = -(-sum(counts) * kv_heads // (threads * _ITEMS_PER_THREAD))
    span = max(_LEAST_PAGES, share)
    items = []
    for row, count in enumerate(counts):
        pieces = max(1, round(count / span))
        edges = [count * piece // pieces for piece in range(pieces + 1)]
        for head in range(kv_heads):
            for piece in range(pieces):
                ends = (piece == 0) + 2 * (piece == pieces - 1)
                items.append((row, head, edges[piece], edges[piece + 1], ends))
    return np.array(items, np.int64).reshape(-1, 5)


def _inputs(view: PageView, held: list[Tensor]) -> Inputs:
    batch, kv_heads, _ = view.formats.shape
    head_dim = view.query.shape[-1]
    dtype = view.recent.keys.dtype
    pools = np.zeros((len(FORMATS), 7), np.int64)
    for form_id, pool in view.pools.items():
        held.append(pool)
        form, place = FORMATS[form_id], layout(FORMATS[form_id], head_dim, dtype.itemsize)
        where = (place.values, place.key_scales, place.value_scales, place.page_bytes)
        pools[form_id] = (pool.data_ptr(), form.key_bits, form.value_bits, *where)
    page_start = view.sinks.length.numpy().astype(np.int64)
    tokens = np.zeros((batch, kv_heads, 2, 4), np.int64)
    _place_tokens(tokens[:, :, 0], view.sinks, page_start * 0, dtype, held)
    _place_tokens(tokens[:, :, 1], view.recent, page_start + PAGE * view.page_count.numpy(), dtype, held)
    return Inputs(
        query=_grouped(view.query, kv_heads),
        rotated=_grouped(view.rotated_query, kv_heads),
        bias=_grouped(view.key_bias, kv_heads),
        formats=view.formats.contiguous().numpy(),
        slots=view.slots.contiguous().numpy(),
        pools=pools,
        tokens=tokens,
        first_visible=view.first_visible.contiguous().numpy(),
        page_start=page_start,
    )


def _grouped(heads: Tensor, kv_heads: int) -> Any:
    return heads.detach().unflatten(1, (kv_heads, -1)).contiguous().numpy()


def _place_tokens(
    into: np.ndarray[Any, Any], tokens: DenseTokens, start: Any, dtype: torch.dtype, held: list[Tensor]
) -> None:
    """Addresses of keys and values, how many, position of the first, (B, H, 4)."""
    stored = [each.detach().to(dtype).contiguous() for each in (tokens.keys, tokens.values)]
    held += stored
    batch, kv_heads, capacity, head_dim = tokens.keys.shape
    row = capacity * head_dim * dtype.itemsize
    heads = np.arange(batch * kv_heads).reshape(batch, kv_heads) * row
    for side, each in enumerate(stored):
        into[:, :, side] = each.data_ptr() + heads
    into[:, :, 2] = tokens.length.numpy()[:, None]
    into[:, :, 3] = start[:, None]


def _partial(items: Any, outputs: Outputs) -> Partial:
    batch, kv_heads, pages, group, _ = outputs.pages.shape
    head_dim = outputs.plain.shape[2]
    output, rotated = (np.zeros((batch, kv_heads, group, head_dim), np.float32) for _ in range(2))
    mass, lse = np.zeros((batch, kv_heads, group), np.float32), np.empty((batch, kv_heads, group), np.float32)
    page_mass = np.zeros((batch, kv_heads, pages), np.float32)
    join(items, outputs, output, rotated, mass, lse, page_mass)
    return Partial(
        output=torch.from_numpy(output).flatten(1, 2),
        rotated_output=torch.from_numpy(rotated).flatten(1, 2),
        rotated_mass=torch.from_numpy(mass).flatten(1, 2),
        lse=torch.from_numpy(lse).flatten(1, 2),
        page_mass=torch.from_numpy(page_mass),
    )
