"""One layer of a model that is only a shape: random queries, keys and values, without the model around it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig
from transformers.cache_utils import Cache

from sekisho.kv import cache as tiered
from sekisho.kv.bench.contenders import Contender
from sekisho.kv.bench.layers import ATTENTION, Call, Seen, rival_attention
from sekisho.kv.bench.models import Shape
from sekisho.kv.bench.prompt import Prompt


@dataclass(frozen=True)
class BareLayer:
    """`prompt` is the one layer's, `config` that of a model with one layer of this shape."""

    prompt: Prompt
    config: PreTrainedConfig
    dtype: torch.dtype
    device: torch.device

    def cache(self, contender: Contender) -> Cache:
        """Empty, for this layer. Raises Unavailable."""
        self.config._attn_implementation = contender.attention
        return contender.cache(self.config, self.dtype if self.dtype.itemsize == 2 else torch.float16)

    def token(self, generator: torch.Generator) -> Seen:
        """One more random token."""
        first = self.prompt.seen[0]
        query, keys, values = (
            _normal((each.shape[0], each.shape[1], 1, each.shape[3]), generator, each)
            for each in (first.query, first.keys, first.values)
        )
        return Seen(query, keys, values, first.call)


def bare_layer(shape: Shape, tokens: int, dtype: torch.dtype, device: str, batch: int = 1, seed: int = 0) -> BareLayer:
    """Standard normal numbers, the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    like = torch.empty(0, dtype=dtype, device=device)
    query = _normal((batch, shape.heads, tokens, shape.head_dim), generator, like)
    keys, values = (_normal((batch, shape.kv_heads, tokens, shape.head_dim), generator, like) for _ in range(2))
    config = LlamaConfig(
        hidden_size=shape.heads * shape.head_dim,
        intermediate_size=4,
        vocab_size=4,
        num_hidden_layers=1,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
    )
    seen = Seen(query, keys, values, Call(shape.head_dim**-0.5))
    return BareLayer(Prompt([seen], torch.empty(1, 0), tokens), config, dtype, torch.device(device))


def _normal(size: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(size, generator=generator).to(like.device, like.dtype)


def step(contender: Contender, cache: Cache, token: Seen) -> Tensor:
    """One decode step of the layer: the token is stored and attends to everything, (B, 1, heads, D)."""
    keys, values = cache.update(token.keys, token.values, 0)
    attention = rival_attention if contender.attention == ATTENTION else tiered.tiered_attention
    output, _ = attention(torch.nn.Identity(), token.query, keys, values, None, scaling=token.call.scaling)
    return output
