"""The axes that a tuner is offered for an engine, and the slots that fit the memory of its KV cache."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from sekisho.control import trial_settings
from sekisho.control.policy import Policy
from sekisho.control.presets import PRESETS
from sekisho.control.tuner_space import Axis, contexts_that_fit
from sekisho.engines import llama_worker
from sekisho.engines.config import KvType, ModelConfig
from sekisho.engines.kv_size import KvShape

_PAIRS: Final[Mapping[str, tuple[KvType, KvType]]] = MappingProxyType(
    {"f16": ("f16", "f16"), "q8_0": ("q8_0", "q8_0"), "q8_0/q4_0": ("q8_0", "q4_0"), "q4_0": ("q4_0", "q4_0")}
)
_MOST_SLOTS: Final = 256  # of one llama.cpp
_SMALL_BYTES: Final = 2**62  # no file is larger: all cores


def _kv_types() -> Axis:
    named = {name: {"kv": {"key_type": keys, "value_type": values}} for name, (keys, values) in _PAIRS.items()}
    return Axis("kv", named)


def _prompt() -> Axis:
    """Read at the types of the cache, or at 16 bits and stored at them afterwards."""
    ways = {"direct": False, "demoted": True}
    return Axis("prompt", {name: {"kv": {"demote_after_prefill": on}} for name, on in ways.items()})


def _slots() -> Axis:
    """As many as fit the KV budget, or as many as there are. Read by `Fitting`."""
    return Axis("slots", {"filled": {"engine": {"slots": None}}, "kept": {"engine": {"slots": 1}}})


def _threads() -> Axis:
    cores = llama_worker.default_threads(_SMALL_BYTES)
    choices = sorted({1, max(1, cores // 2), cores})
    return Axis("threads", {str(count): {"engine": {"threads": count}} for count in choices})


def _speculation() -> Axis:
    return Axis("speculation", {name: {"engine": {"speculation": name}} for name in ("off", "ngram")})


def _kv_levels() -> Axis:
    """For the tiered cache: everything in full precision, and what the presets by size keep of it."""
    sized = {name: {"kv": dict(PRESETS[name].changes["kv"])} for name in ("3b", "8b", "20b")}
    return Axis("kv", {"16bit": {"kv": {"mode": "disabled"}}, **sized})


_AXES: Final[Mapping[str, Mapping[str, Callable[[], Axis]]]] = MappingProxyType(
    {
        "llama_cpp": {
            "kv": _kv_types,
            "prompt": _prompt,
            "slots": _slots,
            "threads": _threads,
            "speculation": _speculation,
        },
        "torch": {"kv": _kv_levels, "threads": _threads},
    }
)
USUAL: Final = ("kv", "prompt", "threads")
"""Without being named. Not speculation: long greedy answers to random words repeat themselves, which flatters it."""


def axes(engine: str, names: Sequence[str] = ()) -> tuple[Axis, ...]:
    """Those named, or without names the usual ones that the engine has. Raises ValueError with what it has."""
    known = _AXES.get(engine, {})
    chosen = dict.fromkeys(names) or [name for name in USUAL if name in known]
    strange = [name for name in chosen if name not in known]
    if strange:
        raise ValueError(f"{', '.join(strange)}: {engine} has the axes {', '.join(known) or '(none)'}")
    return tuple(known[name]() for name in chosen)


class Fitting:
    """What completes a combination for llama.cpp: under `budget_bytes` of KV memory, as many slots as contexts fit, the
    16-bit reader of demoted prompts counted. It refuses what has no room for one, what means the same settings as the
    base or as another combination, and a demotion to 16 bits. One for each space."""

    def __init__(self, own: ModelConfig, base: Policy, known: KvShape, budget_bytes: int, *, may_keep: bool) -> None:
        """`may_keep`: the axis `slots` is there, on which the number of slots of the base is a choice."""
        self._own, self._known, self._budget, self._may_keep = own, known, budget_bytes, may_keep
        self._kept, self._threads = trial_settings.meant(base, own).slots, trial_settings.usual_threads(own)
        self._seen = {self._meaning(base)}

    def __call__(self, policy: Policy) -> Policy | None:
        config = trial_settings.meant(policy, self._own)
        if policy.kv.demote_after_prefill and trial_settings.is_whole(config.kv_type_k, config.kv_type_v):
            return None
        most = self.slots(policy)
        slots = self._kept if self._may_keep and policy.engine.slots is not None else most
        if not 0 < slots <= most:
            return None
        policy = with_slots(policy, slots)
        meaning = self._meaning(policy)
        if meaning in self._seen:
            return None
        self._seen.add(meaning)
        return policy

    def slots(self, policy: Policy) -> int:
        """How many contexts of such a policy fit."""
        config = trial_settings.meant(policy, self._own)
        staging = int(self._known.token_bytes("f16", "f16") * config.context) if policy.kv.demote_after_prefill else 0
        pair = (config.kv_type_k, config.kv_type_v)
        return min(_MOST_SLOTS, contexts_that_fit(self._budget, self._known, config.context, *pair, staging))

    def _meaning(self, policy: Policy) -> tuple[bytes, bool]:
        config = trial_settings.effective(trial_settings.meant(policy, self._own), self._threads)
        return msgspec.json.encode(config), policy.kv.demote_after_prefill


def with_slots(policy: Policy, slots: int) -> Policy:
    return msgspec.structs.replace(policy, engine=msgspec.structs.replace(policy.engine, slots=slots))


def present_budget(own: ModelConfig, base: Policy, known: KvShape) -> int:
    """What the KV cache takes under the base."""
    return trial_settings.kv_bytes(trial_settings.meant(base, own), known)
