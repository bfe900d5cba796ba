"""Attention over tiers, as a layer of a Hugging Face model calls it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import (
    causal_mask_function,
    flash_attention_mask,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from sekisho.kv.formats import EVICTED, PAGE
from sekisho.kv.kernels.base import DecodeKernel
from sekisho.kv.rows import TieredRows

ATTENTION: Final = "sekisho"  # its name in transformers
_QUERY_BLOCK = 512  # query tokens at a time where a mask is needed: bounds the mask's memory
_NOTE = "_sekisho_padding"  # the attribute in which a mask carries what was read of it
_FEW = 16  # query tokens that are attended with as one token is: the kernel's time grows with them
_WITNESSES = 32  # the last queries of a prompt, whose attention is what is known of its pages (SnapKV, Li et al. 2024)


@dataclass(frozen=True)
class Call:
    """What a model says of one attention besides query, key and value. `sink_logits` (query heads,): logits that take
    part in the softmax and carry no value (gpt-oss). `softcap`: logits become softcap * tanh(logit / softcap)."""

    scaling: float
    softcap: float | None = None
    sink_logits: Tensor | None = None

    @property
    def special(self) -> bool:
        """Whether it is more than torch's own attention does."""
        return self.softcap is not None or self.sink_logits is not None


@dataclass(frozen=True)
class Sight:
    """Which keys a query may look at: none after itself, none `window` tokens back or more, none that is hidden.
    `hidden` (B, 1 or H, tokens) bool: padding, and pages that were evicted. Whatever it is, a query sees itself."""

    window: int | None = None
    hidden: Tensor | None = None

    def mask(self, asking: range, keys: range, device: torch.device) -> Tensor:
        """(1 or B, 1 or H, queries, keys) bool for queries and keys at these positions."""
        query_at, key_at = (torch.arange(each.start, each.stop, device=device) for each in (asking, keys))
        distance = query_at[:, None] - key_at
        seen = distance >= 0
        if self.window is not None:
            seen = seen & (distance < self.window)
        if self.hidden is None:
            return seen[None, None]
        shown = ~self.hidden[:, :, None, keys.start : keys.stop]
        return (seen & shown) | (distance == 0)


@dataclass(frozen=True)
class Padding:
    """What the mask of one pass says, read once for all layers: `held[b]` of row b's first `seen` tokens are real, and
    the first `skips[b]` of its `count` new ones are padding."""

    seen: int
    count: int
    held: list[int]
    skips: list[int]

    @classmethod
    def of(cls, mask: Tensor, seen: int, count: int) -> "Padding":
        """`mask` (B, seen + count), nonzero for real tokens. Raises ValueError for padding that is not at the left."""
        noted: Padding | None = getattr(mask, _NOTE, None)
        if noted is None or (noted.seen, noted.count) != (seen, count):
            noted = cls._read(mask, seen, count)
            setattr(mask, _NOTE, noted)
        return noted

    @classmethod
    def _read(cls, mask: Tensor, seen: int, count: int) -> "Padding":
        if mask.shape[1] != seen + count:
            raise ValueError(f"a mask for {mask.shape[1]} tokens does not fit {seen} before and {count} new ones")
        real = mask.bool()
        skips = (~real[:, seen:]).sum(1)
        if not bool((real[:, seen:] == (torch.arange(count, device=mask.device) >= skips[:, None])).all()):
            raise ValueError("padding must be at the left: tokenizer.padding_side = 'left'")
        return cls(seen, count, real[:, :seen].sum(1).tolist(), skips.tolist())

    def check(self, lengths: list[int]) -> None:
        """Raises ValueError where the mask says otherwise than the rows that are stored."""
        if self.held != lengths:
            raise ValueError(f"the mask shows {self.held} tokens that were there before, the cache holds {lengths}")


@torch.compiler.disable
def padding_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    local_size: int | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """The mask function of `register`: the 2D mask of padding (B, kv_length), or None where nothing is padded. The rest
    is causal, or a sliding window. Raises ValueError for all other masks, and for static caches."""
    if int(q_offset) + q_length != int(kv_offset) + int(kv_length):
        raise ValueError(f"the attention {ATTENTION!r} needs a TieredCache, or one that grows: no static cache")
    plain = causal_mask_function if local_size is None else sliding_window_causal_mask_function(local_size)
    if not allow_is_causal_skip:  # something was laid over it, or may have been
        size = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length, "kv_offset": kv_offset}
        options: dict[str, Any] = {each: kwargs[each] for each in ("device", "use_vmap") if each in kwargs} | size
        options |= {"q_offset": q_offset, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        masks: list[Any] = [sdpa_mask(mask_function=each, **options) for each in (mask_function, plain)]
        same = bool((masks[0] == masks[1]).all())
    elif local_size is not None:  # a window or a chunk: only one of these pairs may lie on a chunk's border
        pairs = [torch.tensor([0, 0, local_size + step, 1 + step]) for step in (0, 1)]
        same = local_size == 1 or all(bool(mask_function(*pair)) for pair in pairs)
    else:
        same = True
    if not same:
        raise ValueError(f"the attention {ATTENTION!r} knows causal masks, sliding windows, padding; no others")
    mask: Tensor | None = flash_attention_mask(
        batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask
    )
    return mask


def decode(rows: TieredRows, query: Tensor, keys: Tensor, values: Tensor, call: Call, kernel: DecodeKernel) -> Tensor:
    """One more token per row: query (B, heads, 1, D), keys and values (B, H, 1, D). Stores the token, answers
    (B, heads, 1, D), and remembers where the attention lay."""
    rows.extend(keys, values)
    if call.softcap is not None:
        return _decode_dense(rows, query, call)
    with rows.table.clock.measure("attention"):
        partial = kernel(rows.view(query.squeeze(2), call.scaling))
    output = partial.output + rows.restored(partial.rotated_output, partial.rotated_mass)
    page_mass = partial.page_mass
    if call.sink_logits is not None:
        share = torch.sigmoid(partial.lse - call.sink_logits.float())
        output = output * share.unsqueeze(-1)
        page_mass = page_mass * share.unflatten(1, (rows.shape.kv_heads, -1)).mean(2, keepdim=True)
    rows.observe(page_mass)
    return output.unsqueeze(2).to(query.dtype)


def _decode_dense(rows: TieredRows, query: Tensor, call: Call) -> Tensor:
    """For logits that kernels do not know: over the dense keys and values of all that is stored."""
    keys, values = rows.materialise()
    total = keys.shape[2]
    starts = [total - length for length in rows.lengths]
    seen = Sight(rows.window, _hidden(rows, starts, total)).mask(range(total - 1, total), range(total), query.device)
    weights = _weights(query, keys, seen, call)
    _observe_past(rows, weights.squeeze(2).unflatten(1, (rows.shape.kv_heads, -1)).mean(2), starts, [1] * rows.batch)
    return weights.to(values.dtype) @ _wide(values, query)


def extends_few(rows: TieredRows, query: Tensor, skip: list[int], call: Call) -> bool:
    """Whether `decode_few` can do it."""
    return query.shape[2] <= _FEW and rows.window is None and call.softcap is None and not any(skip)


def decode_few(
    rows: TieredRows, query: Tensor, keys: Tensor, values: Tensor, call: Call, kernel: DecodeKernel
) -> Tensor:
    """Few more tokens per row, as drafts and short turns bring them: shapes and results as in `prefill`, and the pages
    are read once, as they lie, by all queries together. Tokens that are stored already are seen whole by each query;
    the new ones are merged in by their sums of weights."""
    count, heads = query.shape[2], (rows.shape.kv_heads, -1)
    together = query.unflatten(1, heads).flatten(2, 3).flatten(1, 2)  # (B, H * G * n, D)
    with rows.table.clock.measure("attention"):
        partial = kernel(rows.view(together, call.scaling))
    past = (partial.output + rows.restored(partial.rotated_output, partial.rotated_mass)).view(query.shape)
    past_lse = partial.lse.view(query.shape[:3])
    logits = (query.float() @ _wide(keys, query).float().transpose(2, 3)) * call.scaling
    logits = logits.masked_fill(~Sight().mask(range(count), range(count), query.device), -torch.inf)
    lse = torch.logaddexp(past_lse, torch.logsumexp(logits, -1))
    if call.sink_logits is not None:
        lse = torch.logaddexp(lse, call.sink_logits.float()[:, None])
    share, weights = (past_lse - lse).exp(), (logits - lse.unsqueeze(-1)).exp()
    output = past * share.unsqueeze(-1) + weights @ _wide(values, query).float()
    rows.observe(partial.page_mass * share.unflatten(1, heads).mean((2, 3)).unsqueeze(-1), [count] * rows.batch)
    rows.extend(keys, values, mass=weights.unflatten(1, heads).mean((2, 3)))
    return output.to(query.dtype)


def prefill(rows: TieredRows, query: Tensor, keys: Tensor, values: Tensor, skip: list[int], call: Call) -> Tensor:
    """Several more tokens per row, the first `skip[b]` of row b padding: attention in full precision over what the
    tiers hold and over the new tokens, which are stored afterwards. Shapes as in `decode`, n for 1."""
    past = max(rows.lengths, default=0)
    starts = [past - length + padding for length, padding in zip(rows.lengths, skip, strict=True)]
    whole = (keys, values)
    if past:
        held = rows.materialise()
        whole = (_joined(held[0], keys, rows, skip), _joined(held[1], values, rows, skip))
    sight = Sight(rows.window, _hidden(rows, starts, whole[0].shape[2]))
    output = _dense(query, *whole, sight, call)
    mass = _masses(query, whole[0], skip, sight, call)
    if past:
        _observe_past(rows, mass, starts, [query.shape[2] - padding for padding in skip])
    rows.extend(keys, values, skip, mass[:, :, past:])
    return output


def _joined(held: Tensor, new: Tensor, rows: TieredRows, skip: list[int]) -> Tensor:
    """(B, H, past + n, D): each row's tokens without a gap, at the right; padding stands before the row's first."""
    past = held.shape[2]
    joined = torch.cat((held, new), 2)
    for row, (length, padding) in enumerate(zip(rows.lengths, skip, strict=True)):
        if length and padding:
            joined[row, :, past - length + padding : past + padding] = held[row, :, past - length :]
    return joined


def evicted(rows: TieredRows) -> Tensor:
    """(B, H, P) bool: pages that are gone because importance said so. What a sliding window has left behind is not
    among them: the window hides it."""
    table = rows.table
    device = table.formats.device
    forgotten = torch.tensor(table.forgotten, device=device)[:, None, None]
    kept = table.exists() & (torch.arange(table.formats.shape[2], device=device) >= forgotten)
    return kept & (table.formats == EVICTED)


def _hidden(rows: TieredRows, starts: list[int], total: int) -> Tensor | None:
    """(B, 1 or H, total) bool: what stands before each row's start, and pages that were evicted; None: nothing is."""
    gone = evicted(rows)
    before = torch.arange(total, device=gone.device) < torch.tensor(starts, device=gone.device)[:, None, None]
    if not bool(gone.any()):
        return before if any(starts) else None
    hidden = before.repeat(1, gone.shape[1], 1)
    for row, (start, sinks, count) in enumerate(zip(starts, rows.sink_lengths, rows.table.counts, strict=True)):
        first = start + sinks
        hidden[row, :, first : first + count * PAGE] = gone[row, :, :count].repeat_interleave(PAGE, -1)
    return hidden


def causal(query: Tensor, keys: Tensor, values: Tensor, starts: list[int], window: int | None, call: Call) -> Tensor:
    """Attention without a cache. `starts[b]`: row b's first token that is not padding."""
    hidden = None
    if any(starts):
        at = torch.arange(keys.shape[2], device=keys.device)
        hidden = at < torch.tensor(starts, device=keys.device)[:, None, None]
    return _dense(query, keys, values, Sight(window, hidden), call)


def _dense(query: Tensor, keys: Tensor, values: Tensor, sight: Sight, call: Call) -> Tensor:
    """(B, heads, n, D): the last n of the keys' positions ask."""
    count, total = query.shape[2], keys.shape[2]
    window = sight.window if sight.window is not None else total
    if not call.special and sight.hidden is None and window >= total and count in (1, total):
        return _plain(query, keys, values, None, call)
    outputs = []
    for first in range(0, count, _QUERY_BLOCK):
        block = query[:, :, first : first + _QUERY_BLOCK]
        asking = range(total - count + first, total - count + first + block.shape[2])
        looked_at = range(max(0, asking.start - window + 1), asking.stop)
        near_keys, near_values = (each[:, :, looked_at.start : looked_at.stop] for each in (keys, values))
        seen = sight.mask(asking, looked_at, query.device)
        if call.special:
            outputs.append(_weights(block, near_keys, seen, call).to(values.dtype) @ _wide(near_values, block))
        else:
            outputs.append(_plain(block, near_keys, near_values, _for_query_heads(seen, block), call))
    return torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]


def _plain(query: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, call: Call) -> Tensor:
    if seen is not None and query.is_cuda:  # torch's fast kernels there take a mask or grouped heads, not both
        keys, values = _wide(keys, query), _wide(values, query)
    return scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=seen,
        is_causal=seen is None and query.shape[2] > 1,
        scale=call.scaling,
        enable_gqa=keys.shape[1] != query.shape[1],
    )


def _wide(tokens: Tensor, query: Tensor) -> Tensor:
    return tokens.repeat_interleave(query.shape[1] // tokens.shape[1], 1)


def _for_query_heads(seen: Tensor, query: Tensor) -> Tensor:
    return seen if seen.shape[1] == 1 else _wide(seen, query)


def _weights(query: Tensor, keys: Tensor, seen: Tensor, call: Call) -> Tensor:
    """(B, heads, n, keys) softmax weights in float32."""
    logits = (query @ _wide(keys, query).transpose(2, 3)).float() * call.scaling
    if call.softcap is not None:
        logits = torch.tanh(logits / call.softcap) * call.softcap
    logits = logits.masked_fill(~_for_query_heads(seen, query), -torch.inf)
    if call.sink_logits is None:
        return torch.softmax(logits, -1)
    sinks = call.sink_logits.float()[None, :, None, None].expand(*logits.shape[:3], 1)
    return torch.softmax(torch.cat((logits, sinks), -1), -1)[..., :-1]


def _masses(query: Tensor, keys: Tensor, skip: list[int], sight: Sight, call: Call) -> Tensor:
    """(B, H, tokens): the share of the last queries' attention on each token, mean over them and over the group; the
    first `skip[b]` queries of row b are padding and do not count."""
    count, total = query.shape[2], keys.shape[2]
    last = query[:, :, -_WITNESSES:]
    first = count - last.shape[2]
    seen = sight.mask(range(total - last.shape[2], total), range(total), query.device)
    by_query = _weights(last, keys, seen, call).unflatten(1, (keys.shape[1], -1)).mean(2)
    if not any(skip):
        return by_query.mean(2)
    padding = torch.tensor(skip, device=query.device)
    real = torch.arange(first, count, device=query.device) >= padding[:, None]
    share = real.float() / real.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bhqt,bq->bht", by_query, share)


def _observe_past(rows: TieredRows, mass: Tensor, starts: list[int], steps: list[int]) -> None:
    """What the new tokens' attention says of the pages that were there, as so many decode steps would have said it.
    `mass` (B, H, tokens); row b's first token is at `starts[b]`."""
    pages = torch.zeros_like(rows.table.mass)
    for row, (start, sinks, count) in enumerate(zip(starts, rows.sink_lengths, rows.table.counts, strict=True)):
        if count:
            paged = mass[row, :, start + sinks : start + sinks + count * PAGE]
            pages[row, :, :count] = paged.unflatten(1, (count, PAGE)).sum(2)
    rows.observe(pages, steps)
