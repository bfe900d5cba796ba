"""Random models of two layers, policies that a few hundred tokens go through, and what models are read with. Import it
after asking for PyTorch and transformers."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from sekisho.kv import KVPolicy, LevelThresholds, register

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.12,  # attention that is far from even, so that it matters what is seen
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
DENSE = KVPolicy(recent_window=16, sinks=4, budget=None, level_thresholds=LevelThresholds(0, 0, 0))
TIGHT = KVPolicy(recent_window=16, sinks=4, budget=0.3)
EVICTING = KVPolicy(
    recent_window=16, sinks=4, budget=None, evict=True, level_thresholds=LevelThresholds(0.55, 0.55, 0.5)
)


def tiny_llama(**special: Any) -> Any:
    """A random model with the attention of the tiers; the same weights each time."""
    torch.manual_seed(7)
    return LlamaForCausalLM._from_config(LlamaConfig(**(SIZES | special)), attn_implementation=register()).eval()


def tiny_mistral() -> Any:
    """The same with sliding windows of 100 tokens."""
    torch.manual_seed(7)
    config = MistralConfig(**SIZES, sliding_window=100, head_dim=16)
    return MistralForCausalLM._from_config(config, attn_implementation=register()).eval()


def drawn(seed: int, count: int, rows: int = 1) -> Any:
    """(rows, count) token ids."""
    return torch.randint(2, 96, (rows, count), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def read(model: Any, cache: Any, *parts: Any) -> Any:
    """Logits of the tokens of all parts, (B, n, V), each part a pass."""
    return torch.cat([model(part, cache=cache).logits for part in parts], 1)


def singly(tokens: Any) -> tuple[Any, ...]:
    """The same tokens one by one."""
    return tokens.split(1, 1)
