"""Whole models at equal memory on a GPU, for `kv_gpu.py`.

Random weights of a 7B and a 20B Llama shape. Each cache gets the same bytes for keys and values and as many sequences
as they hold; tokens/s is of all decode steps by the clock, with Python and with the making of pages.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from gpu_clock import DEVICE, WARM_UP, Figures, release, spread
from sekisho.kv.cache import TieredCache
from sekisho.kv.formats import PAGE
from sekisho.kv.policy import KVPolicy


@dataclass(frozen=True)
class ModelCase:
    """A model's shape, the bytes for keys and values, the prompt's length and the steps that are timed: some pages'."""

    name: str
    config: LlamaConfig
    cache_bytes: int
    prompt: int = 4096
    steps: int = 3 * PAGE

    @property
    def longest(self) -> int:
        return self.prompt + self.steps + WARM_UP


def llama(hidden: int, layers: int, inner: int, heads: int, kv_heads: int, head_dim: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, vocab_size=32000, max_position_embeddings=32768,
    )  # fmt: skip


def model_cases() -> tuple[ModelCase, ...]:
    return (
        ModelCase("7B", llama(4096, 32, 11008, 32, 32, 128), 16 * 2**30),
        ModelCase("20B", llama(6144, 54, 16384, 64, 8, 64), 4 * 2**30),
    )


@contextmanager
def random_model(config: LlamaConfig, dtype: torch.dtype) -> Iterator[LlamaForCausalLM]:
    """Random weights, made where they are used."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with DEVICE:
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    try:
        yield model
    finally:
        del model
        release()


CACHES: dict[str, tuple[str, Callable[[ModelCase], Any]]] = {
    "dynamic": ("sdpa", lambda case: DynamicCache(config=case.config)),
    "static": ("sdpa", lambda case: StaticCache(config=case.config, max_cache_len=case.longest)),
    "tiered": ("sekisho", lambda case: TieredCache(KVPolicy(), config=case.config)),
}


@torch.inference_mode()
def decode_steps(
    model: LlamaForCausalLM, name: str, batch: int, case: ModelCase, steps: int
) -> tuple[Any, list[float]]:
    """The cache after the prompt and so many steps, and the microseconds of each."""
    implementation, make = CACHES[name]
    model.set_attn_implementation(implementation)
    cache, times = make(case), []
    prompt = torch.randint(0, case.config.vocab_size, (batch, case.prompt), device=model.device)
    logits = model(prompt, past_key_values=cache, logits_to_keep=1).logits
    for _ in range(steps):
        begin = time.perf_counter()
        logits = model(logits[:, -1:].argmax(-1), past_key_values=cache, logits_to_keep=1).logits
        logits.cpu()  # waits
        times.append((time.perf_counter() - begin) * 1e6)
    return cache, times


def decode_speed(model: LlamaForCausalLM, name: str, batch: int, case: ModelCase) -> Figures:
    """Tokens per second of `batch` sequences."""
    try:
        times = decode_steps(model, name, batch, case, case.steps + WARM_UP)[1][WARM_UP:]
    except torch.OutOfMemoryError as error:
        return {"batch": batch, "failed": str(error).splitlines()[0]}
    return {"batch": batch, "tokens_per_s": round(batch * len(times) / sum(times) * 1e6, 1)} | spread(times)


def model_figures(case: ModelCase, dtype: torch.dtype) -> Figures:
    with random_model(case.config, dtype) as model:
        config = case.config
        dense = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * case.longest
        tiered = sum(rows.allocated_bytes for rows in decode_steps(model, "tiered", 1, case, 0)[0].tiers)
        sizes = {"dense": dense, "tiered": tiered * case.longest // case.prompt}
        figures: Figures = {"model": case.name, "cache_bytes": case.cache_bytes, "sequence_bytes": sizes, "caches": {}}
        for name in CACHES:
            release()
            batch = max(1, case.cache_bytes // sizes.get(name, dense))
            figures["caches"][name] = decode_speed(model, name, batch, case)
    return figures
