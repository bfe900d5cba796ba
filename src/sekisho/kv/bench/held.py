"""How many bytes a cache really holds: every tensor storage that can be reached from it, counted once."""

from collections.abc import Iterable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

_LEAVES = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Generator)
_OUTSIDE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, torch.nn.Module)


def held_bytes(root: object) -> int:
    """Bytes of all distinct storages that `root` holds: attributes, containers, parts of tensor subclasses. Models,
    modules, functions and classes are not entered."""
    storages: dict[tuple[torch.device, int], int] = {}
    known: set[int] = set()
    waiting: list[Any] = [root]
    while waiting:
        each = waiting.pop()
        if id(each) in known or isinstance(each, (*_LEAVES, *_OUTSIDE)):
            continue
        known.add(id(each))
        if isinstance(each, Tensor) and not hasattr(each, "__tensor_flatten__"):
            storage = each.untyped_storage()
            storages[each.device, storage.data_ptr()] = storage.nbytes()
        else:
            waiting.extend(_parts(each))
    return sum(storages.values())


def _parts(each: Any) -> Iterable[Any]:
    if isinstance(each, Tensor):  # a subclass that wraps others has no memory of its own
        names, _ = each.__tensor_flatten__()  # type: ignore[attr-defined]
        return [getattr(each, name) for name in names]
    if isinstance(each, Mapping):
        return list(each.values())
    if isinstance(each, list | tuple | set | frozenset):
        return list(each)
    slots = [getattr(each, name, None) for kind in type(each).__mro__ for name in getattr(kind, "__slots__", ())]
    return [*vars(each).values(), *slots] if hasattr(each, "__dict__") else slots


def dense_bytes(kv_heads: int, head_dim: int, layers: int, tokens: int) -> int:
    """What keys and values of so many tokens take at 16 bits a number."""
    return 2 * 2 * kv_heads * head_dim * layers * tokens
