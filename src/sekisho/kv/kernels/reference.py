"""The exact semantics, in plain torch: decode every page, one softmax over all. Slow, and true."""

import torch
from torch import Tensor

from sekisho.kv.formats import EVICTED, FORMATS, PAGE, decode_pages
from sekisho.kv.kernels.base import DenseTokens, PageView, Partial


def decode_attention(view: PageView, dtype: torch.dtype = torch.float32) -> Partial:
    """See `base`. Computes in `dtype`; float64 makes it the measure of the other kernels."""
    _, kv_heads, pages = view.formats.shape
    query = view.query.to(dtype).unflatten(1, (kv_heads, -1))
    rotated = view.rotated_query.to(dtype).unflatten(1, (kv_heads, -1))
    bias = view.key_bias.to(dtype).unflatten(1, (kv_heads, -1)).unsqueeze(-1)
    keys, values, dense = _decoded(view, dtype)
    there = (view.formats != EVICTED) & (torch.arange(pages, device=keys.device) < view.page_count[:, None, None])
    start = view.sinks.length[:, None]
    page_at = start + torch.arange(pages * PAGE, device=keys.device)
    seen = there.repeat_interleave(PAGE, -1) & (page_at >= view.first_visible[:, None])[:, None]
    plain = torch.einsum("bhgd,bhtd->bhgt", query, keys)
    turned = torch.einsum("bhgd,bhtd->bhgt", rotated, keys) + bias
    whole = dense.repeat_interleave(PAGE, -1)
    paged = torch.where(whole[:, :, None], plain, turned).masked_fill(~seen[:, :, None], -torch.inf)
    recent_start = start + view.page_count[:, None] * PAGE
    blocks = [
        _dense_logits(query, view.sinks, start * 0, view),
        paged,
        _dense_logits(query, view.recent, recent_start, view),
    ]
    logits = torch.cat(blocks, -1)
    lse = torch.logsumexp(logits, -1)
    finite = torch.where(lse == -torch.inf, torch.zeros_like(lse), lse)
    sink, page, recent = (logits - finite.unsqueeze(-1)).exp().split([each.shape[-1] for each in blocks], -1)
    rotated_page = page.masked_fill(whole[:, :, None], 0)
    output = torch.einsum("bhgt,bhtd->bhgd", page - rotated_page, values)
    output = output + _weighted(sink, view.sinks) + _weighted(recent, view.recent)
    return Partial(
        output=output.flatten(1, 2).float(),
        rotated_output=torch.einsum("bhgt,bhtd->bhgd", rotated_page, values).flatten(1, 2).float(),
        rotated_mass=rotated_page.sum(-1).flatten(1, 2).float(),
        lse=lse.flatten(1, 2).float(),
        page_mass=page.unflatten(-1, (pages, PAGE)).sum(-1).mean(2).float(),
    )


def _decoded(view: PageView, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values (B, H, P * PAGE, D) as they are stored, zero where no page is; and which pages are dense."""
    batch, kv_heads, pages = view.formats.shape
    head_dim = view.query.shape[-1]
    keys, values = (
        torch.zeros(batch, kv_heads, pages, PAGE, head_dim, dtype=dtype, device=view.query.device) for _ in range(2)
    )
    live = torch.arange(pages, device=keys.device) < view.page_count[:, None, None]
    for form_id, pool in view.pools.items():
        where = (view.formats == form_id) & live
        if where.any():
            stored = pool[view.slots[where].long()]
            keys[where], values[where] = decode_pages(stored, FORMATS[form_id], head_dim, dtype, view.recent.keys.dtype)
    return keys.flatten(2, 3), values.flatten(2, 3), view.formats == 0


def _present(tokens: DenseTokens) -> Tensor:
    at = torch.arange(tokens.keys.shape[2], device=tokens.keys.device)
    return at < tokens.length[:, None]


def _dense_logits(query: Tensor, tokens: DenseTokens, start: Tensor, view: PageView) -> Tensor:
    at = torch.arange(tokens.keys.shape[2], device=query.device)
    seen = _present(tokens) & (start + at >= view.first_visible[:, None])
    keys = tokens.keys.to(query.dtype).masked_fill(~_present(tokens)[:, None, :, None], 0)
    return torch.einsum("bhgd,bhtd->bhgt", query, keys).masked_fill(~seen[:, None, None], -torch.inf)


def _weighted(weights: Tensor, tokens: DenseTokens) -> Tensor:
    values = tokens.values.to(weights.dtype).masked_fill(~_present(tokens)[:, None, :, None], 0)
    return torch.einsum("bhgt,bhtd->bhgd", weights, values)
