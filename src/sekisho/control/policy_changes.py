"""Partial changes of a policy: checked field by field, merged as a whole or not at all; what differs between two
policies; and what a policy means to the caches that we have ourselves.

`kv.mode` stands for more than itself: it brings the window and the budget of its preset
(`sekisho.kv.policy.PRESETS`), `configured` brings these and the types back to their defaults, and `disabled`
takes away types that were named before. What is named beside it wins.
Whoever puts back single fields, a mode among them, says so with `exactly`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import inspect

from sekisho.control.policy import KvSection, Policy
from sekisho.control.policy_problem import PolicyProblem, shown
from sekisho.control.units import LARGEST_BYTES, human, memory_bytes
from sekisho.engines.config import KvType
from sekisho.kv.policy import PRESETS, KVPolicy, LevelThresholds, PolicyError

__all__ = [
    "PolicyProblem",
    "completed",
    "difference",
    "dotted",
    "exactly",
    "kv_policy",
    "kv_types",
    "merged",
    "normalised",
    "overlaid",
    "plain",
]

Plain = dict[str, Any]

_SIZES: Final = frozenset({"io.dml_pool_bytes", "io.host_pool_bytes", "engine.prompt_cache_bytes"})
_UNNAMED: Final = KvSection()
_BELOW_EIGHT_BITS: Final[frozenset[KvType]] = frozenset({"q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"})
_TIER_FIELDS: Final = ("recent_window", "level_thresholds", "budget", "evict")
_EVERYTHING_DENSE: Final = LevelThresholds(L1_int8=0.0, L2_int4=0.0, L3_evict=0.0)


def merged(policy: Policy, changes: Mapping[str, Any]) -> Policy:
    """The policy with the named fields changed. null resets a field that may be null, and a whole section to its
    default. Raises PolicyProblem, with the field and what it may be; nothing is changed then."""
    return completed(overlaid(plain(policy), normalised(changes)))


def plain(policy: Policy) -> Plain:
    """All fields, as JSON has them. `merged(any policy, plain(policy)) == policy`."""
    fields: Plain = msgspec.to_builtins(policy)
    return fields


def difference(old: Policy, new: Policy) -> dict[str, tuple[Any, Any]]:
    """By dotted field, what it was and what it is. Empty only for equal policies."""
    before, after = dotted(plain(old)), dotted(plain(new))
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def normalised(changes: Mapping[str, Any]) -> Plain:
    """The changes alone, checked and said in full: sizes in bytes, defaults for a section that is null, and what a mode
    brings. What it returns changes any policy in the same way as what it was given, and can be laid over other
    normalised changes. Raises PolicyProblem."""
    fields = _checked(Policy, changes, "")
    if "mode" in fields.get("kv", {}):
        fields["kv"] = {**_brought(fields["kv"]["mode"]), **fields["kv"]}
    return fields


def exactly(policy: Policy, changes: Mapping[str, Any]) -> Plain:
    """Changes that touch nothing but the named fields of this policy: what a mode would bring is named as it is. Raises
    PolicyProblem."""
    named = _checked(Policy, changes, "")
    now = plain(policy)
    if "mode" in named.get("kv", {}):
        named["kv"] = {**{name: now["kv"][name] for name in _brought(named["kv"]["mode"])}, **named["kv"]}
    return named


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> Plain:
    """Both, and `above` where they meet. Neither is changed."""
    joined = dict(below)
    for name, value in above.items():
        beneath = joined.get(name)
        joined[name] = overlaid(beneath if isinstance(beneath, dict) else {}, value) if _is_object(value) else value
    return joined


def completed(fields: Mapping[str, Any]) -> Policy:
    """The policy of normalised fields, what is not named at its default. Raises PolicyProblem where fields that are
    right each by itself contradict each other."""
    try:
        return msgspec.convert(fields, Policy)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        if isinstance(cause, PolicyError):
            raise PolicyProblem(f"kv.{cause.field}", cause.fault) from None
        raise PolicyProblem("policy", str(error)) from None


def kv_policy(policy: Policy, base: KVPolicy | None = None) -> KVPolicy:
    """What the tiered cache (engine `torch`) shall do. Fields that a policy here does not have are those of `base`
    (None: of `KVPolicy()`), and in the mode `configured` all that are at their default. `disabled` puts every page at
    or above the first threshold, so that all stay in full precision; what was packed before stays packed unless a copy
    is at hand."""
    kv, below = policy.kv, base or KVPolicy()
    if kv.mode == "configured":
        named = {name: getattr(kv, name) for name in _TIER_FIELDS if getattr(kv, name) != getattr(_UNNAMED, name)}
        return msgspec.structs.replace(below, **named)
    off = kv.mode == "disabled"
    return msgspec.structs.replace(
        below,
        recent_window=kv.recent_window,
        level_thresholds=_EVERYTHING_DENSE if off else kv.level_thresholds,
        budget=None if off else kv.budget,
        evict=kv.evict and not off,
    )


def kv_types(policy: Policy, configured: tuple[KvType, KvType] = ("f16", "f16")) -> tuple[KvType, KvType]:
    """Types of keys and values for an engine with one of each per context (llama.cpp). Named ones win; in the mode
    `configured` the rest are those of the settings, and the modes that save memory give none more bits than these.
    Measured on two processor cores with a model of 1B: at 4,096 tokens
    q8_0 makes tokens faster than f16 (8.0 and 6.8 a second) in 53 % of the bytes, but reads prompts slower (19 and 45 a
    second; 4.1 and 20 at 16,384): f16 where the first token counts, q8_0 else. q4_0 makes no more tokens in the same
    memory than q8_0 (11.35 and 11.3 a second in 512 MiB) and loses more: it is there for whoever names it."""
    match policy.kv.mode:
        case "configured":
            keys, values = configured
        case "dynamic" | "throughput_optimized":
            keys, values = (kind if kind in _BELOW_EIGHT_BITS else "q8_0" for kind in configured)
        case "quality_optimized":
            keys = values = "q8_0"
        case "disabled" | "latency_optimized":
            keys = values = "f16"
    return policy.kv.key_type or keys, policy.kv.value_type or values


def dotted(fields: Mapping[str, Any], path: str = "") -> Plain:
    """Values by dotted name."""
    flat: Plain = {}
    for name, value in fields.items():
        flat.update(dotted(value, f"{path}{name}.") if _is_object(value) else {f"{path}{name}": value})
    return flat


def _brought(mode: str) -> Plain:
    if mode == "disabled":
        return {"key_type": None, "value_type": None}
    if mode == "configured":
        names = ("recent_window", "budget", "key_type", "value_type")
        return {name: getattr(_UNNAMED, name) for name in names}
    return {"recent_window": PRESETS[mode].recent_window, "budget": PRESETS[mode].budget}


def _checked(section: type[msgspec.Struct], changes: Any, path: str) -> Plain:
    """The named fields of a section, each of its own type."""
    types = {field.name: field.type for field in msgspec.structs.fields(section)}
    valid = ", ".join(types)
    if not _is_object(changes):
        raise PolicyProblem(path or "policy", f"must be an object with any of {valid}, not {shown(changes)}")
    fields: Plain = {}
    for name, value in changes.items():
        here = f"{path}.{name}" if path else str(name)
        if name not in types:
            raise PolicyProblem(here if here.isprintable() else shown(here), f"is no field here; valid: {valid}")
        fields[name] = _field(types[name], value, here)
    return fields


def _field(kind: Any, value: Any, here: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return msgspec.to_builtins(kind()) if value is None else _checked(kind, value, here)
    if here in _SIZES and isinstance(value, str):
        value = memory_bytes(value, here)
    if isinstance(value, int) and not isinstance(value, bool) and value > LARGEST_BYTES:
        raise PolicyProblem(here, f"must be at most {LARGEST_BYTES}, not {shown(value)}")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        given = human(value) if here in _SIZES and type(value) is int and value >= 0 else shown(value)
        raise PolicyProblem(here, f"must be {_allowed(kind, here)}, not {given}") from None


def _allowed(kind: Any, here: str) -> str:
    """What a field may be, in words."""
    told = inspect.type_info(kind)
    kinds = told.types if isinstance(told, inspect.UnionType) else (told,)
    words = [_words(each, here in _SIZES) for each in kinds if not isinstance(each, inspect.NoneType)]
    return " or ".join(words) + (", or null" if len(words) < len(kinds) else "")


def _words(kind: inspect.Type, is_size: bool) -> str:
    match kind:
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(map(str, values))}"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() if is_size:
            return f"bytes, or a size like `2GiB`,{_bounds(kind, human)}"
        case inspect.IntType():
            return f"a whole number{_bounds(kind, str)}"
        case inspect.FloatType():
            return f"a number{_bounds(kind, str)}"
    raise TypeError(f"no words for {kind}")


def _bounds(kind: inspect.IntType | inspect.FloatType, number: Callable[[Any], str]) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" between {number(kind.ge)} and {number(kind.le)}"
    low = "" if kind.ge is None else f" of at least {number(kind.ge)}"
    low = low if kind.gt is None else f" above {number(kind.gt)}"
    return low if kind.le is None else f"{low} and at most {number(kind.le)}"


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)
