"""A tiered KV cache for Hugging Face causal models. Stands alone: `pip install 'sekisho[kv]'`.

    from sekisho.kv import KVPolicy, TieredCache, register

    model.set_attn_implementation(register())
    model.generate(**inputs, cache=TieredCache(KVPolicy(budget=0.25), config=model.config))

The policy needs no torch; torch and transformers are loaded when a name that needs them is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

from sekisho.kv.policy import KVPolicy, LevelThresholds, PolicyError

if TYPE_CHECKING:
    from sekisho.kv.cache import TieredCache, register
    from sekisho.kv.kernels import kernel_for, kernel_named
    from sekisho.kv.rows import HeadShape, TieredRows
    from sekisho.kv.statistics import CacheStatistics
    from sekisho.kv.storage import StorageError

_LATER: Final = {
    "CacheStatistics": "statistics",
    "HeadShape": "rows",
    "StorageError": "storage",
    "TieredCache": "cache",
    "TieredRows": "rows",
    "kernel_for": "kernels",
    "kernel_named": "kernels",
    "register": "cache",
}
_EXTRA: Final = frozenset({"torch", "transformers"})

__all__ = [
    "CacheStatistics",
    "HeadShape",
    "KVPolicy",
    "LevelThresholds",
    "PolicyError",
    "StorageError",
    "TieredCache",
    "TieredRows",
    "kernel_for",
    "kernel_named",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_LATER[name]}")
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] not in _EXTRA:
            raise
        raise ImportError(
            f"sekisho.kv.{name} needs {missing.name}: pip install 'sekisho[kv]'", name=missing.name
        ) from missing
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
