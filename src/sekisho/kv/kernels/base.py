"""What a decode kernel is given and what it gives back.

One query token per row (sequence) attends to everything that the row has: its first tokens (sinks) and its recent ones,
dense; its pages, each in its own format. Token positions: sinks, then pages, then recent.

    sinks [0, S) | page 0 [S, S + PAGE) | page 1 | … | recent

Quantised pages hold centred, transformed numbers: with m and n the head's means and T and U its transforms,
`key = m + T(stored key)` and `value = n + U(stored value)`. Kernels never see m, n, T and U. A logit of such a token is
`rotated_query . stored key + key_bias`, and the values come out summed as they are stored, in `rotated_output`. Whoever
calls turns that back and adds `rotated_mass * n`. Dense pages hold the numbers themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class DenseTokens:
    """Tokens in full precision. The first `length[b]` of row b are there; the rest is garbage."""

    keys: Tensor  # (B, H, T, D), any float type
    values: Tensor  # (B, H, T, D)
    length: Tensor  # (B,) int32


@dataclass(frozen=True)
class PageView:
    """All that one layer's attention needs for one query token per row. G = query heads per key/value head.

    Pages that are not there have format -1; a row's pages from `page_count[b]` on are garbage. A pool is a contiguous
    uint8 tensor (capacity, page_bytes) of one format; `slot` is the index into it. `first_visible[b]` is the position
    of the first token that the row may see (sliding windows); sinks and pages before it are invisible.
    """

    query: Tensor  # (B, H * G, D) float32, scaled
    rotated_query: Tensor  # (B, H * G, D) float32, scaled
    key_bias: Tensor  # (B, H * G) float32
    formats: Tensor  # (B, H, P) int8: ids of `formats.FORMATS`
    slots: Tensor  # (B, H, P) int32
    page_count: Tensor  # (B,) int32
    pools: Mapping[int, Tensor]  # by format id
    sinks: DenseTokens
    recent: DenseTokens
    first_visible: Tensor  # (B,) int32


@dataclass(frozen=True)
class Partial:
    """Attention over everything in the view, divided by the whole sum of weights. `lse` is the natural logarithm of
    that sum, so that further tokens can be merged; a row that sees nothing has lse -inf and zeros."""

    output: Tensor  # (B, H * G, D) float32: from dense tokens and dense pages
    rotated_output: Tensor  # (B, H * G, D) float32: from quantised pages
    rotated_mass: Tensor  # (B, H * G) float32: share of the weight that lies on quantised pages
    lse: Tensor  # (B, H * G) float32
    page_mass: Tensor  # (B, H, P) float32: share of the weight on each page, mean over the G queries; 0 where none


class DecodeKernel(Protocol):
    """Does not change what it is given. May be called from several threads at once."""

    def __call__(self, view: PageView) -> Partial: ...
