"""A cache as a file: one safetensors file with everything, bit for bit.

    StorageError        a file that cannot be loaded
      NotACache         not a file of this kind
      OtherVersion      written by a version whose files this one does not know
      OtherShape        a cache for another model
      Damaged           cut off or changed

A page that several rows share is stored once. Tensors are named `layer.name`; the facts about them are JSON in the
header. A file holds what people wrote to a model: only its owner may read it.
"""

import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sekisho.kv.formats import DENSE, EVICTED, FORMATS, layout
from sekisho.kv.policy import KVPolicy, PolicyError, from_plain
from sekisho.kv.pool import PagePool
from sekisho.kv.rows import HeadShape, TieredRows

VERSION: Final = 1
_KEY: Final = "sekisho.kv"
_LONGEST_HEADER: Final = 1 << 27  # bytes; safetensors itself stops below that
_DTYPES: Final = {
    str(each).removeprefix("torch."): each for each in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}
_TABLES: Final = {
    "formats": torch.int8,
    "slots": torch.int32,
    "copies": torch.int32,
    "mass": torch.float32,
    "settled": torch.float32,
}
_HOST: Final = "host"  # the pool of full-precision copies; other pools are named by their format's id


class StorageError(ValueError):
    """A file that cannot be loaded; the message says why."""


class NotACache(StorageError):
    """Not a file of this kind."""


class OtherVersion(StorageError):
    """Written by a version whose files this one does not know."""


class OtherShape(StorageError):
    """A cache for another model."""


class Damaged(StorageError):
    """Cut off or changed after it was written."""


class _Layer(msgspec.Struct, frozen=True):
    """What the tensors of one layer do not say. `capacities`: slots of each pool."""

    kv_heads: int
    head_dim: int
    dtype: str
    window: int | None
    sink_room: int
    sinks: list[int]
    recent: list[int]
    pages: list[int]
    forgotten: list[int]
    moves: int
    seconds: dict[str, float]
    capacities: dict[str, int]


class _Facts(msgspec.Struct, frozen=True):
    """`policy`: for `from_plain`; the first files have a `mode` in it, beside all that it would choose."""

    seen: int
    policy: dict[str, Any]
    layers: list[_Layer]


class _Version(msgspec.Struct, frozen=True):
    version: int


@dataclass(frozen=True)
class Stored:
    """What `load` found: one `TieredRows` for each layer, their policy, and `seen`, the tokens of the longest row with
    its padding."""

    tiers: list[TieredRows]
    policy: KVPolicy
    seen: int


def save(path: Path, tiers: Sequence[TieredRows], policy: KVPolicy, seen: int) -> None:
    """Writes beside `path` and renames, so that nobody ever sees half a file. Does not change the tiers. Raises OSError
    where it cannot write, and leaves what was there."""
    tensors: dict[str, Tensor] = {}
    layers = []
    for number, rows in enumerate(tiers):
        layer, theirs = _taken(rows)
        layers.append(layer)
        tensors |= {f"{number}.{name}": each.detach().cpu().contiguous() for name, each in theirs.items()}
    facts = msgspec.json.encode(_Facts(seen, msgspec.to_builtins(policy), layers)).decode()
    header = {
        _KEY: msgspec.json.encode(_Version(VERSION)).decode(),
        f"{_KEY}.facts": facts,
        f"{_KEY}.digest": _digest(facts, tensors),
    }
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        save_file(tensors, temporary, header)
        temporary.chmod(0o600)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, device: torch.device, expected: Sequence[HeadShape] | None = None) -> Stored:
    """The inverse of `save`, on any device. `expected`: the shape of each layer of the model that will use it; None: as
    the file says. Raises `StorageError`, or OSError where the file cannot be read."""
    facts, policy, told, digest = _facts(path)
    if expected is not None:
        _check_shapes(path, facts.layers, expected)
    try:
        with safe_open(path, "pt", device="cpu") as stored:
            tensors: dict[str, Tensor] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Damaged(f"{path} is damaged: {error}") from error
    if _digest(told, tensors) != digest:
        raise Damaged(f"{path} is damaged: it does not hold what was written")
    tiers = []
    for number, layer in enumerate(facts.layers):
        prefix = f"{number}."
        theirs = {name[len(prefix) :]: each for name, each in tensors.items() if name.startswith(prefix)}
        try:
            tiers.append(_restored(layer, theirs, policy, device))
        except (ValueError, LookupError, RuntimeError, TypeError, ArithmeticError) as error:
            raise Damaged(f"{path} is damaged in layer {number}: {error}") from error
    return Stored(tiers, policy, facts.seen)


# --- what is in the header ------------------------------------------------------------------------------------------


def _digest(facts: str, tensors: Mapping[str, Tensor]) -> str:
    """Of all that a file holds: it tells an accident, not somebody who writes a file of their own."""
    found = hashlib.blake2b(facts.encode(), digest_size=32)
    for name in sorted(tensors):
        each = tensors[name].contiguous()
        found.update(f"{name} {each.dtype} {tuple(each.shape)}".encode())
        found.update(each.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _facts(path: Path) -> tuple[_Facts, KVPolicy, str, str]:
    """What a header tells, the policy in it, its text, and the digest."""
    with path.open("rb") as stored:
        length = int.from_bytes(stored.read(8), "little")
        head = stored.read(length) if length <= _LONGEST_HEADER else b""
    try:
        found = msgspec.json.decode(head, type=dict[str, msgspec.Raw])["__metadata__"]
        texts = msgspec.json.decode(found, type=dict[str, str])
        version = msgspec.json.decode(texts[_KEY], type=_Version).version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        raise NotACache(f"{path} is not a saved cache, or was cut off at its very beginning") from None
    if version != VERSION:
        raise OtherVersion(f"{path} has version {version} of the format; this program reads version {VERSION}")
    try:
        told = texts[f"{_KEY}.facts"]
        facts = msgspec.json.decode(told, type=_Facts)
        return facts, from_plain(facts.policy), told, texts[f"{_KEY}.digest"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, PolicyError) as error:
        raise Damaged(f"{path} is damaged in its header: {error}") from error


def _check_shapes(path: Path, layers: Sequence[_Layer], expected: Sequence[HeadShape]) -> None:
    if len(layers) != len(expected):
        raise OtherShape(f"{path} holds {len(layers)} layers, the model has {len(expected)}")
    for number, (layer, shape) in enumerate(zip(layers, expected, strict=True)):
        theirs, ours = (layer.kv_heads, layer.head_dim, layer.dtype), (shape.kv_heads, shape.head_dim, _name(shape))
        if theirs != ours:
            raise OtherShape(
                f"{path} holds {theirs[0]} heads of {theirs[1]} numbers ({theirs[2]}) in layer {number}, "
                f"the model has {ours[0]} of {ours[1]} ({ours[2]})"
            )


def _name(shape: HeadShape) -> str:
    return str(shape.dtype).removeprefix("torch.")


# --- one layer ------------------------------------------------------------------------------------------------------


def _taken(rows: TieredRows) -> tuple[_Layer, dict[str, Tensor]]:
    table, shape = rows.table, rows.shape
    tensors, lengths = rows.state()
    tensors |= {name: getattr(table, name) for name in _TABLES} | {"hits": table.hits}
    pools = {str(form_id): pool for form_id, pool in table.pools.items()} | {_HOST: table.host}
    for name, pool in pools.items():
        held = pool.holders.nonzero().squeeze(1)
        tensors |= {f"pool.{name}.slots": held, f"pool.{name}.pages": pool.data[held]}
    layer = _Layer(
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        dtype=_name(shape),
        window=rows.window,
        sink_room=rows.sink_room,
        sinks=lengths["sinks"],
        recent=lengths["recent"],
        pages=table.counts,
        forgotten=table.forgotten,
        moves=table.moves,
        seconds=table.clock.seconds,
        capacities={name: pool.capacity for name, pool in pools.items()},
    )
    return layer, tensors


def _restored(layer: _Layer, tensors: Mapping[str, Tensor], policy: KVPolicy, device: torch.device) -> TieredRows:
    """Raises ValueError, LookupError or RuntimeError where the parts do not fit together: nothing that a kernel would
    follow out of a pool's memory gets there."""
    shape = HeadShape(layer.kv_heads, layer.head_dim, _DTYPES[layer.dtype], device)
    rows = TieredRows(shape, msgspec.structs.replace(policy, sinks=layer.sink_room), layer.window)
    rows.policy = policy
    here = {name: each.to(device, copy=True) for name, each in tensors.items() if not name.startswith(f"pool.{_HOST}.")}
    rows.restore(here, {"sinks": layer.sinks, "recent": layer.recent})
    batch, pages = rows.batch, max(layer.pages, default=0)
    if not len(layer.pages) == len(layer.forgotten) == len(layer.sinks) == batch:
        raise ValueError("rows without lengths")
    gone_too_far = any(gone > count for gone, count in zip(layer.forgotten, layer.pages, strict=True))
    if gone_too_far or any(each < 0 for each in (*layer.forgotten, *layer.sinks, *layer.recent)):
        raise ValueError("lengths that cannot be")
    for name, dtype in _TABLES.items():
        if here[name].dtype != dtype or here[name].shape != (batch, layer.kv_heads, pages):
            raise ValueError(f"a table {name} of {here[name].dtype} {tuple(here[name].shape)}")
    if here["hits"].dtype != rows.table.hits.dtype or here["hits"].shape != rows.table.hits.shape:
        raise ValueError(f"hits of {here['hits'].dtype} {tuple(here['hits'].shape)}")
    _check_table(here, layer.pages)
    forms, slots, copies = here["formats"], here["slots"].long(), here["copies"].long().cpu()
    pools = {}
    for name in layer.capacities:
        if name != _HOST:
            held = slots[forms == int(name)]
            pools[int(name)] = _pool(layer, name, here, held, shape)
    host = _pool(layer, _HOST, tensors, copies[copies >= 0], shape)
    if not set(forms.unique().tolist()) <= {EVICTED, *pools}:
        raise ValueError("pages without a pool")
    rows.table.restore(here, layer.pages, layer.forgotten, pools, host)
    rows.table.hits, rows.table.moves = here["hits"].clone(), layer.moves
    rows.table.clock.seconds.update(layer.seconds)
    return rows


def _check_table(tables: Mapping[str, Tensor], counts: list[int]) -> None:
    formats, at = tables["formats"], torch.arange(tables["formats"].shape[2], device=tables["formats"].device)
    beyond = at >= torch.tensor(counts, dtype=torch.int64, device=at.device)[:, None, None]
    if bool((beyond & ((formats != EVICTED) | (tables["copies"] != -1))).any()):
        raise ValueError("pages beyond the rows' ends")


def _pool(layer: _Layer, name: str, tensors: Mapping[str, Tensor], held: Tensor, shape: HeadShape) -> PagePool:
    """`held`: the slots that the tables name, once for each holder."""
    form = DENSE if name == _HOST else FORMATS[int(name)]
    size = layout(form, shape.head_dim, shape.dtype.itemsize).page_bytes
    slots, pages = tensors[f"pool.{name}.slots"], tensors[f"pool.{name}.pages"]
    named, holders = held.unique(return_counts=True)
    if pages.dtype != torch.uint8 or pages.shape != (slots.numel(), size) or not torch.equal(named, slots):
        raise ValueError(f"a pool of {form} with pages that no table names, or without some that it does")
    if slots.numel() and not 0 <= int(slots.min()) <= int(slots.max()) < layer.capacities[name]:
        raise ValueError(f"a pool of {form} with slots beyond its end")
    return PagePool.restored(layer.capacities[name], slots, pages, holders.to(torch.int32))
