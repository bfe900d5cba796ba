"""What a tiered cache of a whole 7B model really takes at a long context: storages held, and what the process grew by.

    python bench/kv_memory.py [--tokens 16384] [--layers 32] [--kv-heads 32]

Random keys and values and a skewed random attention, layer after layer, as a prefill gives them, in bfloat16 under the
default policy. The same tokens as plain tensors are measured beside it, unless `--no-dense`.
"""

import argparse
import gc
import json
import os
import time
from pathlib import Path

import psutil
import torch

import report
from sekisho.kv.policy import KVPolicy
from sekisho.kv.rows import HeadShape, TieredRows

OUT = Path(__file__).with_name("out")


def drawn(given: argparse.Namespace, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = (1, given.kv_heads, given.tokens, given.head_dim)
    keys, values = (torch.randn(size, generator=generator, dtype=torch.bfloat16) for _ in range(2))
    mass = torch.rand(size[:3], generator=generator) ** 12
    return keys, values, mass / mass.sum(-1, keepdim=True)


def packed(shape: HeadShape, tokens: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> TieredRows:
    rows = TieredRows(shape, KVPolicy())
    rows.add_rows(1)
    rows.extend(tokens[0], tokens[1], mass=tokens[2])
    return rows


def resident_bytes() -> int:
    gc.collect()
    return psutil.Process(os.getpid()).memory_info().rss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=32)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--no-dense", action="store_true")
    given = parser.parse_args()
    shape = HeadShape(given.kv_heads, given.head_dim, torch.bfloat16, torch.device("cpu"))
    packed(shape, drawn(given, 0))  # what compiling and the allocator keep for themselves is there before we look
    begin, packing_s = resident_bytes(), 0.0
    layers = []
    for number in range(given.layers):
        tokens = drawn(given, number)
        started = time.perf_counter()
        layers.append(packed(shape, tokens))
        packing_s += time.perf_counter() - started
        del tokens
    tiered = resident_bytes() - begin
    held = sum(each.allocated_bytes for each in layers)
    whole = 2 * 2 * given.layers * given.kv_heads * given.head_dim * given.tokens
    result = {
        "machine": report.machine(),
        "shape": {name: getattr(given, name) for name in ("tokens", "layers", "kv_heads", "head_dim")},
        "bytes_at_16_bits": whole,
        "allocated_bytes": held,
        "allocated_share": held / whole,
        "resident_bytes": tiered,
        "resident_share": tiered / whole,
        "packing_s": packing_s,
        "evicted_pages": sum(int((each.table.formats == -1).sum()) for each in layers),
    }
    if not given.no_dense:
        layers.clear()
        begin = resident_bytes()
        kept = [drawn(given, number)[:2] for number in range(given.layers)]
        result["dense_resident_bytes"] = resident_bytes() - begin
        del kept
    OUT.mkdir(exist_ok=True)
    (OUT / "kv_memory.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "machine"}, indent=1))


if __name__ == "__main__":
    main()
