"""Ready-made changes of a policy, by the size of the model and by use, and the road back to none.

Measured is (docs/performance.md, "The tiered KV cache": SmolLM2-135M, 4,096 tokens, 1,024 positions): the window of 64
and the budget of 0.23 hold 26.6 % of the bytes for +0.3 % perplexity [-0.3, 1.0], the points beside them 29.8 % for
+0.06 % [-0.5, 0.6] and 24.8 % for +0.6 % [-0.1, 1.2]. Everything else is where the tuner (`tuner`) may start: windows,
placements and limits are those of the guide that the agent's interface comes from, and no model of 3B parameters or
more, no NPU and no graphics chip has been measured here.

That guide gives thresholds by size. These presets give budgets in their stead: with a budget the least loss for the
bytes decides, which is what was measured, and the guide's thresholds for large models (0.6, 0.4, 0.2), meant to save
memory, would keep more pages in full precision here.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sekisho.control.policy_problem import PolicyProblem, shown


class Preset(msgspec.Struct, frozen=True):
    """`changes` are for `policy_changes.merged`. `why` says what they are for and how well that is known."""

    name: str
    why: str
    changes: Mapping[str, Any]


PLACEMENTS: Final[Mapping[str, Mapping[str, str]]] = {
    "hybrid": {"mode": "hybrid", "prefill_device": "dml", "decode_device": "npu"},
    "gpu_only": {"mode": "gpu_only", "prefill_device": "dml", "decode_device": "dml"},
    "npu_only": {"mode": "npu_only", "prefill_device": "npu", "decode_device": "npu"},
}
"""By `scheduler.mode`, with the devices that it means."""
_HYBRID: Final = PLACEMENTS["hybrid"]
_GPU_ONLY: Final = PLACEMENTS["gpu_only"]
_AFRESH: Final = {"evict": False, "key_type": None, "value_type": None}  # whatever was chosen before

_ALL: Final = (
    Preset(
        "3b",
        "Up to 3B parameters, and up to 4.5B: the cache is small beside the weights, so it keeps more. No NPU: the "
        "guide says that handing over costs a small model more than it brings. A starting point.",
        {"kv": {**_AFRESH, "mode": "dynamic", "recent_window": 128, "budget": 0.30}, "scheduler": _GPU_ONLY},
    ),
    Preset(
        "8b",
        "7B and 8B parameters, and above 4.5B up to 10B: the cache's own default. Its figures are measured, on a model "
        "of 135M; the placement is a starting point.",
        {"kv": {**_AFRESH, "mode": "dynamic", "recent_window": 64, "budget": 0.23}, "scheduler": _HYBRID},
    ),
    Preset(
        "20b",
        "13B and 20B parameters, and all above 10B: the weights leave little room, so the cache takes less, and still "
        "drops nothing. A starting point.",
        {"kv": {**_AFRESH, "mode": "dynamic", "recent_window": 32, "budget": 0.18}, "scheduler": _HYBRID},
    ),
    Preset(
        "chat",
        "One person waits: a long window, and prompts that are read fast (16 bits in llama.cpp, measured on a "
        "processor). The stricter limit of quality is a choice.",
        {
            "kv": {**_AFRESH, "mode": "latency_optimized", "recent_window": 128},
            "scheduler": _HYBRID,
            "quality": {"max_delta_ppl": 0.3},
        },
    ),
    Preset(
        "batch",
        "Many requests in little memory, nobody waits: a short window and the smallest budget. A starting point: add "
        "engine.slots as far as memory goes.",
        {
            "kv": {**_AFRESH, "mode": "throughput_optimized", "recent_window": 32},
            "scheduler": _HYBRID,
            "quality": {"max_delta_ppl": 0.5},
        },
    ),
    Preset(
        "quality",
        "The answer counts more than memory: a window of 256 and the largest budget, near which the loss was too "
        "small to tell (on a model of 135M). The placement is a starting point.",
        {
            "kv": {**_AFRESH, "mode": "quality_optimized", "recent_window": 256},
            "scheduler": _GPU_ONLY,
            "quality": {"max_delta_ppl": 0.1},
        },
    ),
)
PRESETS: Final[Mapping[str, Preset]] = {each.name: each for each in _ALL}

BASELINE: Final = Preset(
    "baseline",
    "Nothing optimised, to compare with: the cache at 16 bits, no IO binding, no speculation.",
    {
        "kv": {**_AFRESH, "mode": "disabled", "demote_after_prefill": False},
        "io": {"enable_iobinding": False},
        "engine": {"speculation": "off"},
    },
)
"""Not among the presets: it is no way to run, and has a switch of its own."""

# What lies between two sizes belongs to the one it is nearer to, as a ratio: the roots of 3 * 7 and 8 * 13.
_UP_TO: Final = ((4.5e9, "3b"), (10e9, "8b"))


def by_size(parameters: int) -> Preset:
    """For a model of so many parameters. Raises PolicyProblem below 1."""
    if parameters < 1:
        raise PolicyProblem("parameters", f"must be at least 1, not {shown(parameters)}")
    return PRESETS[next((name for limit, name in _UP_TO if parameters <= limit), "20b")]


def preset(name: str) -> Preset:
    """Raises PolicyProblem with the names that there are."""
    if name not in PRESETS:
        raise PolicyProblem("preset", f"must be one of {', '.join(PRESETS)}, not {shown(name)}")
    return PRESETS[name]
