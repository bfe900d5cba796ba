"""What all rivals share: a cache layer that answers dense keys and values, and an attention that lets it look.

Every rival stores 16-bit numbers (or fewer bits) even where the model computes in more, so that bytes can be compared,
and every rival reads its prompt in full precision, as its paper does.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import flash_attention_mask

ATTENTION: Final = "sekisho_bench"
_MARK: Final = "_sekisho_bench_layer"
_QUERIES: Final = 256  # at a time, where attention weights or a mask are wanted: bounds the memory


@dataclass(frozen=True)
class Call:
    """What a model says of one attention besides its tensors. `window`: how many tokens back a query sees. `softcap`:
    logits become softcap * tanh(logit / softcap). `sinks` (heads,): logits that take part and carry no value."""

    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True)
class Seen:
    """One attention as it was computed: query (B, heads, n, D); keys and values (B, H, tokens, D), the new n last."""

    query: Tensor
    keys: Tensor
    values: Tensor
    call: Call


class RivalLayer(CacheLayerMixin):
    """`store` takes new tokens, `read` answers all that are kept. `looks`: wants to see each attention, in `look`."""

    is_croppable = False
    is_sliding = False
    looks = False

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.stored_dtype = dtype
        self.seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def store(self, keys: Tensor, values: Tensor) -> None:
        """(B, H, n, D) more tokens, in `stored_dtype`."""
        raise NotImplementedError

    def read(self) -> tuple[Tensor, Tensor]:
        """(B, H, kept, D) keys and values."""
        raise NotImplementedError

    def look(self, seen: Seen) -> None:
        """What was attended to, after the tokens were stored."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        first = self.seen == 0
        self.seen += key_states.shape[2]
        self.store(key_states.to(self.stored_dtype), value_states.to(self.stored_dtype))
        if first:
            keys, values = key_states.view_as(key_states), value_states
        else:
            keys, values = (each.to(key_states.dtype) for each in self.read())
        if self.looks:
            setattr(keys, _MARK, self)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1


class DenseLayer(RivalLayer):
    """Everything, in `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.dense: tuple[Tensor, Tensor] | None = None

    def store(self, keys: Tensor, values: Tensor) -> None:
        self.dense = _joined(self.dense, (keys, values))

    def read(self) -> tuple[Tensor, Tensor]:
        assert self.dense is not None
        return self.dense


class RecordingLayer(DenseLayer):
    """The model's own precision, and every attention as it was, with the tokens that were new in it: what a rival can
    be given to read in the model's stead."""

    looks = True

    def __init__(self) -> None:
        super().__init__(torch.float32)
        self.passes: list[Seen] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.stored_dtype = key_states.dtype
        return super().update(key_states, value_states)

    def look(self, seen: Seen) -> None:
        count = seen.query.shape[2]
        if count < seen.keys.shape[2]:
            keys, values = (each[:, :, -count:].clone() for each in (seen.keys, seen.values))
            seen = Seen(seen.query, keys, values, seen.call)
        self.passes.append(seen)


def recording_cache(layers: int) -> Cache:
    """The measure of all rivals."""
    return Cache(layers=[RecordingLayer() for _ in range(layers)])


def _joined(old: tuple[Tensor, Tensor] | None, new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if old is None:
        return new[0].contiguous().clone(), new[1].contiguous().clone()
    return torch.cat((old[0], new[0]), 2), torch.cat((old[1], new[1]), 2)


def register() -> str:
    """Makes the rivals' attention known to transformers; its name."""
    AttentionInterface.register(ATTENTION, rival_attention)
    AttentionMaskInterface.register(ATTENTION, flash_attention_mask)
    return ATTENTION


def rival_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention in which the last tokens ask. No padding: raises ValueError for a mask."""
    if attention_mask is not None:
        raise ValueError("the measurement takes sequences of one length, without padding")
    call = Call(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap, s_aux)
    output = attend(query, key, value, call)
    layer: RivalLayer | None = getattr(key, _MARK, None)
    if layer is not None:
        layer.look(Seen(query, key, value, call))
    return output.transpose(1, 2).contiguous(), None


def attend(query: Tensor, keys: Tensor, values: Tensor, call: Call) -> Tensor:
    """(B, heads, n, D): causal attention of the last n tokens."""
    count, total = query.shape[2], keys.shape[2]
    parts = []
    if call.softcap is None and call.sinks is None:
        # Repeated, not `enable_gqa`: torch has its fast kernels on CPUs only for as many keys as queries.
        group = query.shape[1] // keys.shape[1]
        wide, answers = (each.repeat_interleave(group, 1) for each in (keys, values))
        if count == total and (call.window is None or call.window >= total):
            return scaled_dot_product_attention(query, wide, answers, is_causal=True, scale=call.scaling)
        for first in range(0, count, _QUERIES):
            part = query[:, :, first : first + _QUERIES]
            seen = ~_hidden(part.shape[2], total, total - count + first, call, keys.device)
            parts.append(scaled_dot_product_attention(part, wide, answers, attn_mask=seen, scale=call.scaling))
        return torch.cat(parts, 2)
    for first in range(0, count, _QUERIES):
        weights = _weights(query[:, :, first : first + _QUERIES], keys, total - count + first, call)
        parts.append(torch.einsum("bhgqt,bhtd->bhgqd", weights.to(values.dtype), values).flatten(1, 2))
    return torch.cat(parts, 2)


def _hidden(count: int, total: int, first: int, call: Call, device: torch.device) -> Tensor:
    """(count, total) bool: the tokens that queries must not see, of which the first stands at token `first`."""
    at = torch.arange(total, device=device)
    asking = torch.arange(count, device=device)[:, None] + first
    hidden = at > asking
    return hidden if call.window is None else hidden | (at <= asking - call.window)


def summed_weights(query: Tensor, keys: Tensor, call: Call) -> Tensor:
    """(B, H, tokens) float32: attention weights of the last n tokens' queries (B, heads, n, D) over all tokens, causal,
    summed over the queries, mean over each head's group."""
    count, total = query.shape[2], keys.shape[2]
    result = torch.zeros(keys.shape[:3], device=keys.device)
    for first in range(0, count, _QUERIES):
        weights = _weights(query[:, :, first : first + _QUERIES], keys, total - count + first, call)
        result += weights.mean(2).sum(2)
    return result


def _weights(query: Tensor, keys: Tensor, first: int, call: Call) -> Tensor:
    """(B, H, G, n, tokens) float32, for queries of which the first stands at token `first`."""
    groups = query.float().unflatten(1, (keys.shape[1], -1))
    logits = torch.einsum("bhgqd,bhtd->bhgqt", groups, keys.float()) * call.scaling
    if call.softcap is not None:
        logits = torch.tanh(logits / call.softcap) * call.softcap
    hidden = _hidden(query.shape[2], keys.shape[2], first, call, keys.device)
    logits = logits.masked_fill(hidden, -torch.inf)
    if call.sinks is None:
        return torch.softmax(logits, -1)
    sinks = call.sinks.float().view(1, keys.shape[1], -1, 1, 1).expand(*logits.shape[:4], 1)
    return torch.softmax(torch.cat((logits, sinks), -1), -1)[..., :-1]
