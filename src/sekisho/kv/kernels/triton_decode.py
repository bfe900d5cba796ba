"""Decode attention on a GPU, straight from the packed tiers, in Triton.

    list_pages        which pages are of which format
    dense_tokens      first and recent tokens               \\
    dense_pages       pages of format 0                      | partial softmaxes, one per program
    quantised_pages   once for each other format             /
    merge_splits      one softmax of them
    page_shares       how much of it lies on each page

A program has one format only and so no branches; heads are split over programs (flash-decoding, Dao et al. 2023) until
the device is full. Nothing waits for the device: a call can be recorded in a CUDA graph.
"""

import contextlib
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
import triton
from torch import Tensor

from sekisho.kv.formats import DENSE, FORMATS, PAGE, Format, layout
from sekisho.kv.kernels.base import DenseTokens, PageView, Partial
from sekisho.kv.kernels.triton_dense import dense_pages, dense_tokens
from sekisho.kv.kernels.triton_merge import list_pages, merge_splits, page_shares
from sekisho.kv.kernels.triton_pages import quantised_pages

_PLANES: Final = {8: 1, 4: 2, 3: 4, 2: 4}  # quads in an int32 word, see `triton_codes`
# Programs of `quantised_pages` that a processor holds at a time: two warps of 165 registers or so. A launch of no more
# than that has no last round that leaves most of the device idle.
_PROGRAMS_PER_PROCESSOR: Final = 6
_LAUNCH: Final = {"num_warps": 4, "enable_fp_fusion": True}
_STAGE_BYTES: Final = 48 * 1024  # of shared memory, for keys or values of dense pages on their way
_LEAST_PAGES: Final = 2  # per program: below, leaving and merging partial softmaxes costs more than it gains
_INTERPRETER_PROCESSORS: Final = 2


@dataclass(frozen=True)
class _Shape:
    batch: int
    kv_heads: int
    group: int
    head_dim: int
    pages: int

    @property
    def heads(self) -> int:
        return self.batch * self.kv_heads

    @property
    def constants(self) -> dict[str, int]:
        """A matrix unit takes sixteen rows: eight queries, each in two parts."""
        rows = max(8, triton.next_power_of_2(self.group))
        return {"KV_HEADS": self.kv_heads, "GROUP": self.group, "ROWS": rows, "D": self.head_dim}

    @property
    def channels(self) -> int:
        return max(16, triton.next_power_of_2(self.head_dim))


@dataclass(frozen=True)
class _Workspace:
    """Partial softmaxes by query and split, those of dense tokens and pages first; a split that saw nothing has a
    maximum of -inf and unknown outputs. `page_lse` (B * H * G, P): -inf where no page is seen."""

    maxima: Tensor  # (B * H * G, splits)
    sums: Tensor  # (B * H * G, splits)
    outputs: Tensor  # (B * H * G, splits, D)
    page_lse: Tensor


def decode_attention(view: PageView) -> Partial:
    """See `base`. Products are of at least 21 bits, sums of float32; the head's numbers must be a multiple of four."""
    batch, kv_heads, pages = view.formats.shape
    shape = _Shape(batch, kv_heads, view.query.shape[1] // kv_heads, view.query.shape[2], pages)
    device = view.query.device
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        return _decode(view, shape)


def _decode(view: PageView, shape: _Shape) -> Partial:
    forms = [FORMATS[each] for each, pool in sorted(view.pools.items()) if pool.shape[0]] if shape.pages else []
    per_form = _splits(shape, view.query.device)
    tiles = [triton.cdiv(each.keys.shape[2], PAGE) for each in (view.sinks, view.recent)]
    first = sum(tiles)
    dense = first + (per_form if DENSE in forms else 0)
    splits = first + per_form * len(forms)
    floats: dict[str, Any] = {"dtype": torch.float32, "device": view.query.device}
    queries = shape.heads * shape.group
    space = _Workspace(
        torch.empty(queries, splits, **floats),
        torch.empty(queries, splits, **floats),
        torch.empty(queries, splits, shape.head_dim, **floats),
        torch.empty(queries, shape.pages, **floats),
    )
    if first and shape.heads:
        _attend_tokens(view, shape, space, tiles)
    if not forms:
        space.page_lse.fill_(-torch.inf)
    else:
        lists, counts = _listed(view, shape, space, forms)
        for rank, form in enumerate(forms):
            launch = _attend_dense_pages if form.dense else _attend_pages
            launch(view, shape, space, form, (lists[rank], counts[rank]), (first + rank * per_form, per_form))
    return _merged(shape, space, dense)


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETER_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _splits(shape: _Shape, device: torch.device) -> int:
    """Programs over which one head's pages of one format are spread."""
    wanted = _processors(device) * _PROGRAMS_PER_PROCESSOR // max(1, shape.heads)
    return max(1, min(wanted, triton.cdiv(shape.pages, _LEAST_PAGES)))


def _listed(view: PageView, shape: _Shape, space: _Workspace, forms: list[Format]) -> tuple[Tensor, Tensor]:
    """(formats, B * H, P) page numbers and (formats, B * H) how many; clears `page_lse`."""
    lists = torch.empty(len(forms), shape.heads, shape.pages, dtype=torch.int32, device=view.query.device)
    counts = torch.empty(len(forms), shape.heads, dtype=torch.int32, device=view.query.device)
    present = sum(1 << form.id for form in forms)
    list_pages[(shape.heads, len(forms))](
        view.formats.contiguous(), view.page_count, view.sinks.length, view.first_visible, lists, counts,
        space.page_lse, present, shape.pages, KV_HEADS=shape.kv_heads, GROUP=shape.group, **_LAUNCH,
    )  # fmt: skip
    return lists, counts


def _precision(dtype: torch.dtype) -> str:
    """Of a product with the rounded and the remaining half of a number: sixteen bit numbers fit TF32."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def _attend_tokens(view: PageView, shape: _Shape, space: _Workspace, tiles: list[int]) -> None:
    sinks, recent = (_contiguous(each) for each in (view.sinks, view.recent))
    dense_tokens[(shape.heads, sum(tiles))](
        view.query.contiguous(), *sinks, *recent, view.page_count, view.first_visible,
        space.maxima, space.sums, space.outputs,
        view.sinks.keys.shape[2], view.recent.keys.shape[2], tiles[0], space.maxima.shape[1],
        **shape.constants, CHANNELS=shape.channels, PRECISION=_precision(view.recent.keys.dtype), **_LAUNCH,
    )  # fmt: skip


def _contiguous(tokens: DenseTokens) -> tuple[Tensor, Tensor, Tensor]:
    return tokens.keys.contiguous(), tokens.values.contiguous(), tokens.length


_Listed = tuple[Tensor, Tensor]
_Span = tuple[int, int]  # first split, splits


def _attend_dense_pages(
    view: PageView, shape: _Shape, space: _Workspace, form: Format, listed: _Listed, span: _Span
) -> None:
    dtype = view.recent.keys.dtype
    dense_pages[(shape.heads, span[1])](
        view.query.contiguous(), view.pools[form.id].view(dtype), *listed, view.slots.contiguous(),
        view.sinks.length, view.first_visible, space.maxima, space.sums, space.outputs, space.page_lse,
        shape.pages, span[0], space.maxima.shape[1],
        **shape.constants, CHANNELS=shape.channels, PRECISION=_precision(dtype), **_LAUNCH,
        num_stages=max(1, min(3, _STAGE_BYTES // (PAGE * shape.head_dim * dtype.itemsize))),
    )  # fmt: skip


def _attend_pages(view: PageView, shape: _Shape, space: _Workspace, form: Format, listed: _Listed, span: _Span) -> None:
    pool = view.pools[form.id]
    quantised_pages[(shape.heads, span[1])](
        view.rotated_query.contiguous(), view.key_bias.contiguous(), pool.view(torch.int32), pool.view(torch.float16),
        _nibbles(view.query.device), *listed, view.slots.contiguous(), view.sinks.length, view.first_visible,
        space.maxima, space.sums, space.outputs, space.page_lse, shape.pages, span[0], space.maxima.shape[1],
        **shape.constants, **page_constants(form, shape.head_dim, shape.constants["ROWS"]),
    )  # fmt: skip


@cache
def _nibbles(device: torch.device) -> Tensor:
    return torch.arange(0, 32, 4, dtype=torch.int32, device=device)


@cache
def page_constants(form: Format, head_dim: int, rows: int) -> dict[str, Any]:
    """How `quantised_pages` is compiled for a format, and with how many warps and stages. Two warps at a time have the
    fewest instructions for a code, as each decodes its own and all repeat the softmax; more where registers run out.
    Raises ValueError where third bits of one token group would not begin with a byte."""
    if 3 in (form.key_bits, form.value_bits) and head_dim % 8:
        raise ValueError(f"the Triton kernels read three bits only of heads of a multiple of 8 numbers, not {head_dim}")
    place = layout(form, head_dim)
    planes = _PLANES[form.value_bits]
    aligned = head_dim % (16 * planes) == 0
    value_planes = planes if aligned else 1
    return {
        "KEY_BITS": form.key_bits,
        "VALUE_BITS": form.value_bits,
        "KEY_PLANES": _PLANES[form.key_bits],
        "VALUE_PLANES": value_planes,
        "KEY_GROUPS": max(16, triton.next_power_of_2(head_dim // 4)),
        "VALUE_WIDTH": max(16, triton.next_power_of_2(head_dim // value_planes)),
        "VALUES_AT": place.values // 4,
        "SCALES_AT": place.key_scales // 4,
        "PAGE_WORDS": place.page_bytes // 4,
        "num_warps": 4 if head_dim > 128 or rows > 8 else 2,
        "num_stages": 3 if aligned else 1,  # words that are read several times come from the first-level cache
        "enable_fp_fusion": True,
    }


def _merged(shape: _Shape, space: _Workspace, dense_splits: int) -> Partial:
    queries, splits = space.maxima.shape
    by_query = (shape.batch, shape.kv_heads * shape.group)
    floats: dict[str, Any] = {"dtype": torch.float32, "device": space.maxima.device}
    output, rotated = (torch.empty(*by_query, shape.head_dim, **floats) for _ in range(2))
    mass, lse = (torch.empty(by_query, **floats) for _ in range(2))
    page_mass = torch.empty(shape.batch, shape.kv_heads, shape.pages, **floats)
    if queries:
        merge_splits[(queries,)](
            space.maxima, space.sums, space.outputs, output, rotated, mass, lse, splits, dense_splits,
            SPLITS=max(16, triton.next_power_of_2(splits)), D=shape.head_dim, CHANNELS=shape.channels, **_LAUNCH,
        )  # fmt: skip
    if page_mass.numel():
        block = 128
        page_shares[(shape.heads, triton.cdiv(shape.pages, block))](
            space.page_lse, lse, page_mass, shape.pages, GROUP=shape.group, PAGES=block, **_LAUNCH
        )  # fmt: skip
    return Partial(output, rotated, mass, lse, page_mass)
