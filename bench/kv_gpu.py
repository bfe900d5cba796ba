"""The tiered KV cache on a GPU: decode attention beside PyTorch's, and whole models at equal memory.

    python bench/kv_gpu.py                      all of it, some ten minutes on an 80 GB card; bench/out/kv_gpu.json
    python bench/kv_gpu.py --no-models          attention alone
    python bench/kv_gpu.py --interpret          no GPU: correctness on tiny shapes in Triton's interpreter, no figures

Attention: one layer's decode step, in a CUDA graph that goes over several copies of the data, so that none is found in
the second-level cache; the answer is checked against the reference before anything is timed. A figure is the median of
the replays, with the 10th and the 90th percentile. Bytes are those of the pages and dense tokens that a step must read;
their share is of what the card copies per second, bytes read and written both counted, measured in the same run.

Models: see `kv_gpu_models`.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path

if "--interpret" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_clock import DEVICE, Figures, cold_copies, copy_gb_per_s, graph_times, release, spread
from kv_gpu_models import ModelCase, llama, model_cases, model_figures
from sekisho.kv.cache import register
from sekisho.kv.formats import DENSE, PAGE, Format, layout
from sekisho.kv.kernels import reference
from sekisho.kv.kernels.base import DenseTokens, PageView
from sekisho.kv.kernels.triton_decode import decode_attention

OUT = Path(__file__).resolve().parent / "out" / "kv_gpu.json"
SINKS, RECENT = 16, 64
WITHIN = 1e-4


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
    return DenseTokens(keys, values, whole)


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
    for _ in range(cold_copies(size)):
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
    views = [first, *(view_of(shape, batch, context, mix)[0] for _ in range(cold_copies(size) - 1))]
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
