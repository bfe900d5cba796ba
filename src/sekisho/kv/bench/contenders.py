"""Who is compared: every rival and the tiered cache, each with the knob that moves its bytes, where it has one.

A new one is an entry of `CONTENDERS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from sekisho.kv import cache as tiered
from sekisho.kv.bench import layers
from sekisho.kv.bench.evicting import HeavyHitterLayer, SnapLayer
from sekisho.kv.bench.layers import DenseLayer, RivalLayer
from sekisho.kv.bench.quantising import KiviLayer, UniformLayer, library_layers
from sekisho.kv.bench.unavailable import Unavailable
from sekisho.kv.policy import KVPolicy

Knobs = Mapping[str, Any]
Build = Callable[[PreTrainedConfig, torch.dtype, Knobs], Cache]


@dataclass(frozen=True)
class Dial:
    """The knob that moves a contender's bytes: more of it, more bytes. `least` and `most` depend on how many tokens
    there are. `step`: the knob is a whole number of these; None: any number."""

    knob: str
    least: float
    most: Callable[[int], float]
    step: int | None = None


@dataclass(frozen=True)
class Contender:
    """A cache that can take part. `attention`: the implementation that the model must use with it."""

    name: str
    build: Build
    knobs: Knobs
    dial: Dial | None = None
    attention: str = layers.ATTENTION

    def cache(self, config: PreTrainedConfig, dtype: torch.dtype) -> Cache:
        """An empty cache that stores dense numbers in `dtype`. Raises Unavailable."""
        try:
            return self.build(config.get_text_config(decoder=True), dtype, self.knobs)
        except (ImportError, ValueError) as error:
            raise Unavailable(" ".join(str(error).split())) from error

    def turned(self, value: float) -> "Contender":
        """With its dial at `value`. Raises Unavailable where it has none."""
        if self.dial is None:
            raise Unavailable("its bytes cannot be chosen; see its natural point")
        whole = value if self.dial.step is None else int(value // self.dial.step * self.dial.step)
        return replace(self, knobs={**self.knobs, self.dial.knob: whole})


class SixteenBitTieredLayer(tiered.TieredLayer):
    """Stores dense tokens in `dtype`, whatever the model computes in."""

    def __init__(
        self,
        policy: KVPolicy,
        config: PreTrainedConfig | None,
        window: int | None,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        super().__init__(policy, config, window)
        self.stored_dtype = dtype

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states.to(self.stored_dtype), value_states.to(self.stored_dtype))


def _tiered(config: PreTrainedConfig, dtype: torch.dtype, knobs: Knobs) -> Cache:
    policy = msgspec.convert(dict(knobs), KVPolicy, strict=False)
    cache = tiered.TieredCache(policy, config)
    cache.layers = [SixteenBitTieredLayer(policy, config, each, dtype) for each in tiered.layer_windows(config)]
    return cache


def _all(config: PreTrainedConfig, layer: Callable[[], RivalLayer]) -> Cache:
    return Cache(layers=[layer() for _ in range(config.num_hidden_layers)])


def _full(config: PreTrainedConfig, dtype: torch.dtype, knobs: Knobs) -> Cache:
    return _all(config, lambda: DenseLayer(dtype))


def _kivi(config: PreTrainedConfig, dtype: torch.dtype, knobs: Knobs) -> Cache:
    return _all(config, lambda: KiviLayer(dtype, knobs["bits"], knobs["group"], knobs["residual"]))


def _uniform(config: PreTrainedConfig, dtype: torch.dtype, knobs: Knobs) -> Cache:
    return _all(config, lambda: UniformLayer(dtype, knobs["bits"], knobs["rotated"]))


def _library(config: PreTrainedConfig, dtype: torch.dtype, knobs: Knobs) -> Cache:
    options = {name: value for name, value in knobs.items() if name != "backend"}
    return Cache(layers=list(library_layers(config, dtype, knobs["backend"], **options)))


def _evicting(kind: type[SnapLayer] | type[HeavyHitterLayer]) -> Build:
    def build(config: PreTrainedConfig, dtype: torch.dtype, knobs: Knobs) -> Cache:
        if any(window is not None for window in tiered.layer_windows(config)):
            raise ValueError("a layer with a sliding window loses track of positions when tokens are dropped")
        return _all(config, lambda: kind(dtype, knobs["share"]))

    return build


def ours(policy: KVPolicy, name: str = "tiered") -> Contender:
    """The tiered cache at a policy; its budget is the dial."""
    dial = Dial("budget", 0.01, lambda tokens: 1.0) if policy.budget is not None else None
    return Contender(name, _tiered, msgspec.to_builtins(policy), dial, tiered.ATTENTION)


def _kivi_contender(bits: int, group: int) -> Contender:
    dial = Dial("residual", 0, lambda tokens: tokens, step=1)
    knobs = {"bits": bits, "group": group, "residual": 128}
    return Contender(f"kivi-{bits}bit-g{group}", _kivi, knobs, dial)


def _library_contender(backend: str, bits: int) -> Contender:
    knobs: dict[str, Any] = {"backend": backend}
    if backend != "fp8":
        axis = {"quanto": 0, "hqq": 1}[backend]  # as transformers advises for each
        knobs |= {"nbits": bits, "axis_key": axis, "axis_value": axis, "q_group_size": 64}
    return Contender(f"transformers-{backend}-{bits}bit", _library, knobs)


def _eviction_contender(name: str, kind: type[SnapLayer] | type[HeavyHitterLayer]) -> Contender:
    return Contender(name, _evicting(kind), {"share": 0.25}, Dial("share", 0.001, lambda tokens: 1.0))


_RIVALS: Final = (
    Contender("full", _full, {}),
    *(_library_contender(*each) for each in (("fp8", 8), ("hqq", 8), ("quanto", 8))),
    *(_library_contender(backend, bits) for bits in (4, 2) for backend in ("quanto", "hqq")),
    *(_kivi_contender(bits, group) for bits in (4, 2) for group in (32, 64)),
    Contender("uniform-8bit", _uniform, {"bits": 8, "rotated": False}),
    Contender("uniform-4bit", _uniform, {"bits": 4, "rotated": False}),
    Contender("uniform-4bit-rotated", _uniform, {"bits": 4, "rotated": True}),
    _eviction_contender("snapkv", SnapLayer),
    _eviction_contender("h2o", HeavyHitterLayer),
    ours(KVPolicy()),
)
CONTENDERS: Final[Mapping[str, Contender]] = MappingProxyType({each.name: each for each in _RIVALS})


def contender(name: str) -> Contender:
    """Raises ValueError with the names there are."""
    if name not in CONTENDERS:
        raise ValueError(f"no cache is called {name!r}; there are {', '.join(CONTENDERS)}")
    return CONTENDERS[name]
