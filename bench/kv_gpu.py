"""The tiered KV cache on a GPU: decode attention beside PyTorch's, and whole models at equal memory.

    python bench/kv_gpu.py                      all of it, some ten minutes on an 80 GB card; bench/out/kv_gpu.json
    python bench/kv_gpu.py --no-models          attention alone
    python bench/kv_gpu.py --interpret          no GPU: correctness on tiny shapes in Triton's interpreter, no figures

Attention: one layer's decode step, in a CUDA graph that goes over several copies of the data, so that none is found in
the second-level cache; the answer is checked against the reference before anything is timed. A figure is the median of
the replays, with the 10th and the 90th percentile. Bytes are those of the pages and dense tokens that a step must read;
their share is of what the card copies per second, bytes read and written both counted, measured in the same run.

Models: random weights of a 7B and a 20B Llama shape. Each cache gets the same bytes for keys and values and as many
sequences as they hold; tokens/s is of all decode steps by the clock, with Python and with the making of pages.
"""

import argparse
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

if "--interpret" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from sekisho.kv.cache import TieredCache, register
from sekisho.kv.formats import DENSE, PAGE, Format, layout
from sekisho.kv.kernels import reference
from sekisho.kv.kernels.base import DenseTokens, PageView
from sekisho.kv.kernels.triton_decode import decode_attention
from sekisho.kv.policy import KVPolicy

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OUT = Path(__file__).resolve().parent / "out" / "kv_gpu.json"
SINKS, RECENT = 16, 64
REPLAYS, WARM_UP = 40, 5
WITHIN = 1e-4
COLD_CACHES = 4  # times the second-level cache, over which a measurement's data is spread
Figures = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """One layer's attention."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int


SHAPES = (
    Shape("7B, no groups", 32, 32, 128),
    Shape("8B", 32, 8, 128),
    Shape("14B", 40, 8, 128),
    Shape("20B, gpt-oss", 64, 8, 64),
)
BATCHES, CONTEXTS = (1, 4, 16), (4096, 16384)
Mix = dict[Format, float]  # shares of the pages
MIXES: dict[str, Mix] = {
    "k8v8": {Format(8, 8): 1.0},
    "k4v4": {Format(4, 4): 1.0},
    "k3v3": {Format(3, 3): 1.0},
    "k2v2": {Format(2, 2): 1.0},
    # A quarter of the bytes, as the default policy has it.
    "mixed": {DENSE: 0.03, Format(8, 8): 0.05, Format(4, 4): 0.35, Format(3, 3): 0.37, Format(2, 2): 0.20},
}


# --- data -------------------------------------------------------------------------------------------------------------


def view_of(shape: Shape, batch: int, context: int, mix: Mix) -> tuple[PageView, int]:
    """Random pages of a mix of formats, in random order; and how many bytes a step must read."""
    pages = (context - SINKS - RECENT) // PAGE
    recent = context - SINKS - pages * PAGE
    place = (batch, shape.kv_heads, pages)
    total = batch * shape.kv_heads * pages
    shares = torch.tensor(list(mix.values()))
    counts = (shares * total).floor().int()
    counts[-1] += total - int(counts.sum())
    ids = torch.tensor([form.id for form in mix], dtype=torch.int8)
    formats = ids.repeat_interleave(counts)[torch.randperm(total)].reshape(place).to(DEVICE)
    slots = torch.zeros(place, dtype=torch.int32, device=DEVICE)
    pools = {}
    for form in mix:
        mine = formats == form.id
        count = int(mine.sum())
        slots[mine] = torch.randperm(count, device=DEVICE).int()
        pools[form.id] = _random_pages(form, shape.head_dim, count)
    dense = [_random_tokens(shape, batch, tokens) for tokens in (SINKS, recent)]
    query = torch.randn(batch, shape.heads, shape.head_dim, device=DEVICE) * shape.head_dim**-0.5
    view = PageView(
        query=query,
        rotated_query=query.flip(-1).contiguous(),
        key_bias=torch.zeros(batch, shape.heads, device=DEVICE),
        formats=formats,
        slots=slots,
        page_count=torch.full((batch,), pages, dtype=torch.int32, device=DEVICE),
        pools=pools,
        sinks=dense[0],
        recent=dense[1],
        first_visible=torch.zeros(batch, dtype=torch.int32, device=DEVICE),
    )
    tokens = (SINKS + recent) * batch * shape.kv_heads * shape.head_dim * 2 * 2
    return view, tokens + sum(pool.numel() for pool in pools.values())


def _random_pages(form: Format, head_dim: int, count: int) -> Tensor:
    place = layout(form, head_dim)
    if form.dense:
        numbers = torch.randn(count, place.page_bytes // 2, device=DEVICE, dtype=torch.float16)
        return numbers.view(torch.uint8)
    pages = torch.randint(0, 256, (count, place.page_bytes), dtype=torch.uint8, device=DEVICE)
    pages.view(torch.float16)[:, place.key_scales // 2 :] = 0.016  # numbers of about one
    return pages


def _random_tokens(shape: Shape, batch: int, tokens: int) -> DenseTokens:
    size = (batch, shape.kv_heads, tokens, shape.head_dim)
    keys, values = (torch.randn(size, device=DEVICE, dtype=torch.float16) for _ in range(2))
    whole = torch.full((batch,), tokens, dtype=torch.int32, device=DEVICE)
    return DenseTokens(keys, values, torch.zeros_like(whole), whole)


# --- measuring --------------------------------------------------------------------------------------------------------


def graph_times(calls: list[Callable[[], object]]) -> list[float]:
    """Microseconds of one call, from replays of a CUDA graph of all of them, one after another."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for replay in range(WARM_UP + REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        if replay >= WARM_UP:
            times.append(begin.elapsed_time(end) * 1000 / len(calls))
    return times


def spread(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "median_us": round(median(ordered), 2),
        "p10_us": round(ordered[len(ordered) // 10], 2),
        "p90_us": round(ordered[len(ordered) * 9 // 10], 2),
    }


def copy_gb_per_s() -> float:
    """Bytes read and written, of 2 GiB that are copied within the card."""
    source = torch.empty(2**31, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    seconds = median(graph_times([lambda: target.copy_(source)])) / 1e6
    return 2 * source.numel() / seconds / 1e9


def _copies(size: int) -> int:
    """How many copies of `size` bytes the second-level cache cannot hold."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(1, min(32, -(-COLD_CACHES * cache // size)))


# --- attention --------------------------------------------------------------------------------------------------------


def check(shapes: tuple[Shape, ...], context: int) -> list[Figures]:
    """The greatest differences from the reference in float64, each relative to the greatest number of its kind."""
    results = []
    for shape, (name, mix) in product(shapes, MIXES.items()):
        view, _ = view_of(shape, 2, context, mix)
        found, exact = decode_attention(view), reference.decode_attention(view, torch.float64)
        errors = {
            each: float((mine - getattr(exact, each)).abs().max() / getattr(exact, each).abs().max().clamp(min=1e-30))
            for each, mine in vars(found).items()
        }
        right = all(each < WITHIN for each in errors.values())
        print(f"{shape.name:14} {name:6} errors to {max(errors.values()):.1e}: {'right' if right else 'WRONG'}")
        results.append({"shape": shape.name, "mix": name, "errors": errors, "right": right})
    return results


def rivals(shape: Shape, batch: int, context: int) -> Figures:
    """PyTorch's attention over the same tokens in float16: as it chooses, and FlashAttention."""
    size = batch * shape.kv_heads * context * shape.head_dim * 2 * 2
    data = []
    for _ in range(_copies(size)):
        keys = _random_tokens(shape, batch, context)
        query = torch.randn(batch, shape.heads, 1, shape.head_dim, device=DEVICE, dtype=torch.float16)
        data.append((query, keys.keys, keys.values))
    grouped = shape.heads != shape.kv_heads

    def attend(each: tuple[Tensor, Tensor, Tensor]) -> Callable[[], object]:
        return lambda: functional.scaled_dot_product_attention(*each, enable_gqa=grouped)

    calls = [attend(each) for each in data]
    figures: Figures = {"bytes": size, "sdpa": spread(graph_times(calls))}
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        try:
            figures["flash"] = spread(graph_times(calls))
        except RuntimeError as error:  # this card or build has no FlashAttention
            figures["flash"] = {"failed": str(error).splitlines()[0]}
    return figures


def ours(shape: Shape, batch: int, context: int, mix: Mix) -> Figures:
    first, size = view_of(shape, batch, context, mix)
    views = [first, *(view_of(shape, batch, context, mix)[0] for _ in range(_copies(size) - 1))]
    times = graph_times([lambda view=view: decode_attention(view) for view in views])  # type: ignore[misc]
    return {"bytes": size} | spread(times)


def attention(copied: float) -> Iterator[Figures]:
    """One row for each shape, batch and context: the rivals, and ours in each mix."""
    for shape, batch, context in product(SHAPES, BATCHES, CONTEXTS):
        row: Figures = {"shape": shape.name, "batch": batch, "context": context} | rivals(shape, batch, context)
        fastest = min(each["median_us"] for each in (row["sdpa"], row["flash"]) if "median_us" in each)
        print(f"{shape.name:14} {batch:2} x {context:5}: sdpa {fastest:.0f} us", end="")
        row["mixes"] = {}
        for name, mix in MIXES.items():
            figures = ours(shape, batch, context, mix)
            speed = figures["bytes"] / figures["median_us"] / 1e3
            share, faster = round(speed / copied, 3), round(fastest / figures["median_us"], 2)
            row["mixes"][name] = figures | {"gb_per_s": round(speed, 1), "share_of_copy": share, "times_faster": faster}
            print(f"  {name} {figures['median_us']:.0f} us ({faster}x, {share:.0%})", end="", flush=True)
            release()
        print()
        yield row


# --- models -----------------------------------------------------------------------------------------------------------


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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


# --- all of it --------------------------------------------------------------------------------------------------------


def machine() -> Figures:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "processors": properties.multi_processor_count,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "triton", "transformers")},
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", "bench/kv_gpu.py", *sys.argv[1:]]),
    }


def interpreted() -> int:
    """Everything but the clock, on a CPU: the kernels' answers, and that models of both kinds run."""
    results = check((Shape("tiny", 4, 2, 64), Shape("tiny, no groups", 2, 2, 32)), SINKS + RECENT + 5 * PAGE)
    register()
    tiny = ModelCase("tiny", llama(128, 2, 256, 4, 2, 32), cache_bytes=2**19, prompt=200, steps=2)
    ran = model_figures(tiny, torch.float32)["caches"]
    print(f"models ran with these caches: {', '.join(ran)}; nothing was measured")
    return 0 if all(each["right"] for each in results) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="the tiered KV cache on a GPU, measured")
    parser.add_argument("--interpret", action="store_true", help="no GPU: check the answers in Triton's interpreter")
    parser.add_argument("--no-models", action="store_true", help="attention alone")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.interpret:
        return interpreted()
    if not torch.cuda.is_available():
        print(
            "no GPU: PyTorch sees no CUDA device, so nothing was measured (--interpret checks the answers without one)"
        )
        return 1
    register()
    results: Figures = {"machine": machine(), "correctness": check(SHAPES, 1024)}
    if not all(each["right"] for each in results["correctness"]):
        print("the kernels are wrong here: nothing was timed")
        return 1
    results["copy_gb_per_s"] = round(copy_gb_per_s(), 1)
    release()
    print(f"{results['machine']['gpu']} copies {results['copy_gb_per_s']:.0f} GB/s")
    results["attention"] = list(attention(results["copy_gb_per_s"]))
    if not arguments.no_models:
        results["models"] = [model_figures(case, torch.float16) for case in model_cases()]
        for each in results["models"]:
            print(each)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
