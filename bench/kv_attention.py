"""One decode step of attention on the CPU: torch's in full precision against ours over packed pages.

`python bench/kv_attention.py [--tokens 16384] [--threads 2] [--rounds 9]`

For each shape, each mix of formats: milliseconds of one layer's step. Candidates take turns, round by round, each over
its own copies of several layers (more bytes than caches hold, as in a model); a round's figure is the mean over the
layers. The read bandwidth is measured in between. With one thread, times are its own CPU time: other work on the
machine disturbs little. Writes bench/out/kv_attention.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from report import load_average, machine
from sekisho.kv.formats import DENSE, FORMATS, PAGE, Format, layout
from sekisho.kv.kernels import cpu, reference
from sekisho.kv.kernels.base import DenseTokens, PageView

OUT = Path(__file__).parent / "out" / "kv_attention.json"
HEAD_DIM = 128
SHAPES = {"7B, 32/32 heads": (32, 32), "8B, 32/8 heads": (32, 8), "7B GQA, 28/4 heads": (28, 4)}
MIXES = {
    "k8v8": {Format(8, 8): 1.0},
    "k4v4": {Format(4, 4): 1.0},
    "k3v3": {Format(3, 3): 1.0},
    "k2v2": {Format(2, 2): 1.0},
    "mixed": {DENSE: 0.02, Format(8, 8): 0.08, Format(4, 4): 0.4, Format(3, 3): 0.4, Format(2, 2): 0.1},
    "dense": {DENSE: 1.0},
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SINKS, RECENT = 16, 64
_BLOCK = 1_000_003  # random numbers that differ
COLD_BYTES = 400e6  # over all copies of a candidate's layers
MODEL = torch.bfloat16  # type of dense tokens and pages
Step = Callable[[], Any]


@dataclass
class Figures:
    """Milliseconds of a step, a figure a round; bytes that a step reads."""

    shape: str
    candidate: str
    read_bytes: int
    ms: list[float] = field(default_factory=list)

    @property
    def gb_per_s(self) -> float:
        return self.read_bytes / median(self.ms) / 1e6


@njit(nogil=True, fastmath=True)
def _sum(numbers: Any) -> int:
    total = 0
    for place in range(numbers.shape[0]):
        total += numbers[place]
    return total


class Bandwidth:
    """Reading a large array with several threads."""

    def __init__(self, threads: int) -> None:
        self.parts = np.array_split(np.ones(1 << 26, np.int64), threads)
        self.pool = ThreadPoolExecutor(threads)
        self.gb_per_s: list[float] = []
        _sum(self.parts[0][:8])

    def measure(self) -> None:
        clock, read = (time.perf_counter, self.pool.map) if len(self.parts) > 1 else (time.thread_time, map)
        start = clock()
        list(read(_sum, self.parts))
        self.gb_per_s.append(sum(each.nbytes for each in self.parts) / (clock() - start) / 1e9)


def view(heads: int, kv_heads: int, tokens: int, mix: dict[Format, float], seed: int) -> tuple[PageView, int]:
    """One layer of random pages, and the bytes of all of them and of the dense tokens."""
    draw = torch.Generator().manual_seed(seed)
    pages = (tokens - SINKS - RECENT) // PAGE
    shares = torch.tensor(list(mix.values()))
    ids = torch.tensor([form.id for form in mix], dtype=torch.int8)
    formats = ids[torch.multinomial(shares, kv_heads * pages, True, generator=draw)].reshape(1, kv_heads, pages)
    slots, pools = torch.zeros(formats.shape, dtype=torch.int32), {}
    for form_id in formats.unique().tolist():
        here = formats == form_id
        count = int(here.sum())
        pools[form_id] = random_pages(count, FORMATS[form_id], draw)
        slots[here] = torch.arange(count, dtype=torch.int32)
    ends = [dense_tokens(kv_heads, count, draw) for count in (SINKS, RECENT + (tokens - SINKS - RECENT) % PAGE)]
    query = torch.randn(1, heads, HEAD_DIM, generator=draw) * HEAD_DIM**-0.5
    whole = PageView(
        query=query,
        rotated_query=query,
        key_bias=torch.zeros(1, heads),
        formats=formats,
        slots=slots,
        page_count=torch.tensor([pages], dtype=torch.int32),
        pools=pools,
        sinks=ends[0],
        recent=ends[1],
        first_visible=torch.zeros(1, dtype=torch.int32),
    )
    stored = [*pools.values(), *(each for end in ends for each in (end.keys, end.values))]
    return whole, sum(each.nbytes for each in stored)


def random_pages(count: int, form: Format, draw: torch.Generator) -> Tensor:
    """Any bytes are codes; scales such that numbers are about 1."""
    place = layout(form, HEAD_DIM, MODEL.itemsize)
    if form.dense:
        return normal((count, 2 * PAGE * HEAD_DIM), MODEL, draw).view(torch.uint8)
    block = torch.randint(0, 256, (_BLOCK,), dtype=torch.uint8, generator=draw)
    pages = tiled(block, (count, place.page_bytes))
    scales = 0.01 + 0.01 * torch.rand(count, 2 * PAGE, generator=draw)
    pages[:, place.key_scales :] = scales.half().view(torch.uint8)
    return pages


def normal(size: tuple[int, ...], dtype: torch.dtype, draw: torch.Generator) -> Tensor:
    return tiled(torch.randn(_BLOCK, generator=draw).to(dtype), size)


def tiled(block: Tensor, size: tuple[int, ...]) -> Tensor:
    """The same random numbers over and over: drawing them all would take longer than what is measured."""
    count = torch.Size(size).numel()
    return block.repeat(-(-count // block.numel()))[:count].reshape(size).clone()


def dense_tokens(kv_heads: int, count: int, draw: torch.Generator) -> DenseTokens:
    stored = [normal((1, kv_heads, count, HEAD_DIM), MODEL, draw) for _ in range(2)]
    return DenseTokens(*stored, torch.tensor([count], dtype=torch.int32))


def copies(layer_bytes: int) -> int:
    return max(2, round(COLD_BYTES / layer_bytes))


def torch_steps(heads: int, kv_heads: int, tokens: int, dtype: torch.dtype) -> tuple[list[Step], int]:
    """Attention in full precision over as many tokens."""
    size = (1, kv_heads, tokens, HEAD_DIM)
    layer_bytes = 2 * kv_heads * tokens * HEAD_DIM * dtype.itemsize

    draw = torch.Generator().manual_seed(0)

    def step() -> Step:
        query = torch.randn(1, heads, 1, HEAD_DIM, generator=draw).to(dtype)
        keys, values = (normal(size, dtype, draw) for _ in range(2))
        return lambda: scaled_dot_product_attention(query, keys, values, enable_gqa=heads != kv_heads)

    return [step() for _ in range(copies(layer_bytes))], layer_bytes


def our_steps(heads: int, kv_heads: int, tokens: int, mix: dict[Format, float]) -> tuple[list[Step], int]:
    first, layer_bytes = view(heads, kv_heads, tokens, mix, 0)
    views = [first, *(view(heads, kv_heads, tokens, mix, seed)[0] for seed in range(1, copies(layer_bytes)))]
    return [lambda each=each: cpu.decode_attention(each) for each in views], layer_bytes


def time_steps(steps: list[Step], figures: Figures) -> None:
    clock = time.perf_counter if torch.get_num_threads() > 1 else time.thread_time
    start = clock()
    for step in steps:
        step()
    figures.ms.append((clock() - start) / len(steps) * 1e3)


def measure(shape: str, tokens: int, rounds: int, bandwidth: Bandwidth) -> list[Figures]:
    """All candidates on one shape."""
    heads, kv_heads = SHAPES[shape]
    steps: dict[str, list[Step]] = {}
    found: dict[str, Figures] = {}
    for name, dtype in DTYPES.items():
        steps[f"sdpa {name}"], read_bytes = torch_steps(heads, kv_heads, tokens, dtype)
        found[f"sdpa {name}"] = Figures(shape, f"sdpa {name}", read_bytes)
    for name, mix in MIXES.items():
        steps[f"ours {name}"], read_bytes = our_steps(heads, kv_heads, tokens, mix)
        found[f"ours {name}"] = Figures(shape, f"ours {name}", read_bytes)
    mixed, read_bytes = view(heads, kv_heads, tokens, MIXES["mixed"], 0)
    steps["reference mixed"] = [lambda: reference.decode_attention(mixed)]
    found["reference mixed"] = Figures(shape, "reference mixed", read_bytes)
    for each in steps.values():
        each[0]()
    for number in range(rounds):
        for name, each in steps.items():
            if name.startswith("reference") and number:
                continue  # seconds each
            time_steps(each, found[name])
        bandwidth.measure()
    return list(found.values())


def table(figures: list[Figures], read_gb_per_s: float) -> list[str]:
    lines = [
        "| shape | candidate | MB a step | ms, median (min … max) | × fastest SDPA | GB/s | of read bandwidth |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in figures:
        peers = [other for other in figures if other.shape == each.shape and other.candidate.startswith("sdpa")]
        fastest = min(median(other.ms) for other in peers)
        spread = f"{median(each.ms):.2f} ({min(each.ms):.2f} … {max(each.ms):.2f})"
        share = each.gb_per_s / read_gb_per_s
        lines.append(
            f"| {each.shape} | {each.candidate} | {each.read_bytes / 1e6:.1f} | {spread} "
            f"| {fastest / median(each.ms):.2f} | {each.gb_per_s:.1f} | {share:.0%} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    bandwidth = Bandwidth(chosen.threads)
    bandwidth.measure()
    figures = [each for shape in chosen.shapes for each in measure(shape, chosen.tokens, chosen.rounds, bandwidth)]
    read, usual = max(bandwidth.gb_per_s), median(bandwidth.gb_per_s)
    names = {type(cpu.machines(*_group(shape))[0]).__name__ for shape in chosen.shapes}
    facts = {
        **machine(),
        "torch": torch.__version__,
        "machine code for": ", ".join(sorted(names)),
        "tokens": str(chosen.tokens),
        "threads": str(chosen.threads),
        "read bandwidth": f"{read:.1f} GB/s, best of {len(bandwidth.gb_per_s)}; median {usual:.1f}",
        "load average": f"{load_average():.1f}",
    }
    print("\n".join([*table(figures, read), "", *(f"- {key}: {value}" for key, value in facts.items())]))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"facts": facts, "figures": [asdict(each) for each in figures]}, indent=1) + "\n")


def _group(shape: str) -> tuple[int, int]:
    heads, kv_heads = SHAPES[shape]
    return heads // kv_heads, HEAD_DIM


if __name__ == "__main__":
    main()
