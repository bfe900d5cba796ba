"""The way back to full precision, as changes of the policy: INT4 -> INT8 -> FP16. Pure."""

from collections.abc import Collection
from typing import Any, Final, Literal

import msgspec

from sekisho.control.policy import Policy
from sekisho.engines.config import KvType

Rung = Literal["int4", "int8", "fp16"]
RUNGS: Final[tuple[Rung, ...]] = ("int4", "int8", "fp16")
"""`int4` is everything below eight bits."""
_BITS: Final[dict[KvType, Rung]] = {"f32": "fp16", "f16": "fp16", "bf16": "fp16", "q8_0": "int8"}
# Share of the bytes at 16 bits: a page in eight bits takes 0.51 to 0.53 of them with its scales, so that this holds all
# pages in eight bits and none in fewer.
INT8_BUDGET: Final = 0.6


class Step(msgspec.Struct, frozen=True):
    """`changes` bring the policy to the rung, for engines with tiers (mode, budget) and with one type per context
    (types) at once; `undo` brings the same fields back."""

    rung: Rung
    changes: dict[str, Any]
    undo: dict[str, Any]


_CHANGES: Final[tuple[tuple[Rung, dict[str, Any]], ...]] = (
    (
        "int8",
        {
            "mode": "quality_optimized",
            "budget": INT8_BUDGET,
            "evict": False,
            "key_type": "q8_0",
            "value_type": "q8_0",
        },
    ),
    ("fp16", {"mode": "disabled", "budget": None, "evict": False, "key_type": None, "value_type": None}),
)

_BROUGHT: Final = ("recent_window",)  # a mode brings its own


def rung_of_types(key: KvType, value: KvType) -> Rung:
    """Where an engine with one type per context is: the lower of the two."""
    return min((_BITS.get(each, "int4") for each in (key, value)), key=RUNGS.index)


def rung_of_tiers(policy: Policy) -> Rung:
    """Where an engine with tiers is under a policy: the budget decides, and where there is none, the thresholds."""
    kv = policy.kv
    if kv.mode == "disabled":
        return "fp16"
    if kv.evict:
        return "int4"
    if kv.budget is not None:
        return "int8" if kv.budget >= INT8_BUDGET else "int4"
    if kv.level_thresholds.L1_int8 == 0:
        return "fp16"
    return "int8" if kv.level_thresholds.L2_int4 == 0 else "int4"


def steps(now: Rung, policy: Policy, kv_types: Collection[str] | None = None) -> tuple[Step, ...]:
    """What is above `now`, the nearest first. Each one's `undo` is the policy of now: take the steps of the policy in
    force anew after each. `kv_types`: those that run, for an engine with one type per context (None: not known)."""
    plain = msgspec.to_builtins(policy.kv)
    return tuple(
        Step(rung, {"kv": dict(changes)}, {"kv": {name: plain[name] for name in (*changes, *_BROUGHT)}})
        for rung, changes in _CHANGES
        if RUNGS.index(rung) > RUNGS.index(now) and _run(changes, kv_types)
    )


def _run(changes: dict[str, Any], kv_types: Collection[str] | None) -> bool:
    """Whether all types that a step names run."""
    named = {changes[name] for name in ("key_type", "value_type")} - {None}
    return kv_types is None or named <= set(kv_types)
