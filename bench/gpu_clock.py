"""Time on a GPU: replays of a CUDA graph, and what the card itself can copy."""

import gc
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REPLAYS, WARM_UP = 40, 5
COLD_CACHES = 4  # times the second-level cache, over which a measurement's data is spread
Figures = dict[str, Any]


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


def cold_copies(size: int) -> int:
    """How many copies of `size` bytes the second-level cache cannot hold."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(1, min(32, -(-COLD_CACHES * cache // size)))


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
