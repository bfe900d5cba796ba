"""What a cache may cost and what it must keep: the policy, and the presets by name.

The fields and their bounds are those of the agent's policy (`kv.*`); `level_thresholds` are on importance, 0 to 1:

    importance = 0.5 + log10(a page's attention mass / the mass of an average page) / 4, cut to 0 … 1

so that 0.5 is an average page, 0.7 has six times that, 0.3 a sixth. They decide where there is no `budget`. With one,
the least loss for the bytes decides, and the thresholds only say what may be evicted.
"""

from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final

import msgspec

WINDOW_RANGE: Final = (16, 512)
WIDTHS: Final = (8, 4, 3, 2)


class PolicyError(ValueError):
    """A policy that cannot be. `field` names what is wrong, `fault` says what is wrong with it."""

    def __init__(self, field: str, fault: str) -> None:
        super().__init__(f"{field} {fault}")
        self.field, self.fault = field, fault


class LevelThresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At or above `L1_int8` a page stays in full precision, at or above `L2_int4` it lies in eight bits, at or above
    `L3_evict` in four or fewer, below it with the fewest bits of the ladder or, with `evict`, nowhere."""

    L1_int8: float = 0.7
    L2_int4: float = 0.5
    L3_evict: float = 0.3

    def __post_init__(self) -> None:
        for name in ("L1_int8", "L2_int4", "L3_evict"):
            if not 0 <= getattr(self, name) <= 1:
                raise PolicyError(f"level_thresholds.{name}", "must be between 0 and 1")
        if not self.L1_int8 >= self.L2_int4 >= self.L3_evict:
            raise PolicyError("level_thresholds", "must fall: L1_int8 >= L2_int4 >= L3_evict")


class KVPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one cache keeps its tokens. Raises `PolicyError` where a field is out of bounds.

    `recent_window`: tokens that stay in full precision at the end (up to 63 more until a page is full). `sinks`: tokens
    that stay so at the beginning. `budget`: share of the bytes at 16 bits that the pages of a row may take, which sinks
    and recent tokens come on top of (2 % at 16,384 tokens); None leaves it to the thresholds. `ladder`: the formats of
    quantised pages from best to least, as (key bits, value bits). `evict`: may drop what is below `L3_evict`.
    `host_copy`: keeps full-precision copies in host memory, which alone makes promotion possible. `hysteresis`: how far
    importance must move before a page changes level again. `decay`: what one decode step leaves of the remembered
    attention mass.
    """

    recent_window: int = 64
    level_thresholds: LevelThresholds = LevelThresholds()
    sinks: int = 16
    budget: float | None = 0.23
    ladder: tuple[tuple[int, int], ...] = ((8, 8), (4, 4), (4, 3), (4, 2), (3, 2), (2, 2))
    evict: bool = False
    host_copy: bool = False
    hysteresis: float = 0.05
    decay: float = 0.98

    def __post_init__(self) -> None:
        low, high = WINDOW_RANGE
        if not low <= self.recent_window <= high:
            raise PolicyError("recent_window", f"must be between {low} and {high}")
        if not 0 <= self.sinks <= 256:
            raise PolicyError("sinks", "must be between 0 and 256")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise PolicyError("budget", "must be above 0 and at most 1, or null")
        for name in ("hysteresis", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise PolicyError(name, "must be between 0 and 1")
        _check_ladder(self.ladder)


def _check_ladder(ladder: tuple[tuple[int, int], ...]) -> None:
    if not ladder:
        raise PolicyError("ladder", "must have at least one format")
    for step in ladder:
        if any(bits not in WIDTHS for bits in step):
            raise PolicyError("ladder", f"has {step}: the widths are {', '.join(map(str, WIDTHS))} bits")
    sums = [sum(step) for step in ladder]
    if any(later >= earlier for earlier, later in pairwise(sums)):
        raise PolicyError("ladder", "must go down: each step needs fewer bits than the one before")


PRESETS: Final[Mapping[str, KVPolicy]] = MappingProxyType(
    {
        "dynamic": KVPolicy(),
        "latency_optimized": KVPolicy(recent_window=128),
        "throughput_optimized": KVPolicy(recent_window=32, budget=0.18),
        "quality_optimized": KVPolicy(recent_window=256, budget=0.30),
    }
)
"""By mode, to be taken whole or changed: `from_plain({"mode": "quality_optimized", "budget": 0.4})`."""
_TYPES: Final = {field.name: field.type for field in msgspec.structs.fields(KVPolicy)}


def from_plain(fields: Mapping[str, Any], base: KVPolicy | None = None) -> KVPolicy:
    """The policy that plain values, as JSON and YAML have them, make of `base` (None: of the default). `mode` names the
    preset that they change instead. Of `level_thresholds` the named ones change. Raises `PolicyError`."""
    changes = dict(fields)
    start = _preset(changes.pop("mode")) if "mode" in changes else base or KVPolicy()
    return msgspec.structs.replace(start, **{name: _value(start, name, value) for name, value in changes.items()})


def _preset(mode: Any) -> KVPolicy:
    if not isinstance(mode, str) or mode not in PRESETS:
        raise PolicyError("mode", f"must be one of {', '.join(PRESETS)}, not {mode!r}")
    return PRESETS[mode]


def _value(start: KVPolicy, name: str, value: Any) -> Any:
    if name not in _TYPES:
        raise PolicyError(name, f"is no field of a policy: those are mode, {', '.join(_TYPES)}")
    if name == "level_thresholds" and isinstance(value, Mapping):
        value = msgspec.to_builtins(start.level_thresholds) | dict(value)
    try:
        return msgspec.convert(value, _TYPES[name])
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, PolicyError):
            raise error.__cause__ from None
        raise PolicyError(name, f"is not as it should be: {error}") from None
