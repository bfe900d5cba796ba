"""The KV cache as it is told and changed from outside."""

from typing import Any

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines.torch_worker.refusal import Refused
from sekisho.engines.torch_worker.runner import Runner
from sekisho.kv.policy import KVPolicy, PolicyError, from_plain
from sekisho.kv.statistics import statistics


def state(runner: Runner) -> dict[str, Any]:
    """What `GET /kv` says; to be asked in the runner's thread. `tokens`: held for all sequences; `reserved_bytes`: what
    they may come to; `cache`: see `sekisho.kv.statistics`, all sequences and layers together."""
    caches = [each.cache for each in runner.prefilling] + [runner.batch.cache]
    told = msgspec.to_builtins(statistics([tier for cache in caches if cache is not None for tier in cache.tiers]))
    for name in ("layers", "tokens", "dense_tokens"):  # of one cache
        del told[name]
    return {
        "policy": msgspec.to_builtins(runner.policy),
        "slots": runner.slots,
        "running": len(runner.batch.running),
        "prefilling": len(runner.prefilling),
        "waiting": len(runner.waiting),
        "context": runner.context,
        "tokens": sum(each.position for each in runner.admitted),
        "limit_bytes": runner.limit_bytes,
        "reserved_bytes": runner.reserved_bytes,
        "cache": told,
    }


def merged(policy: KVPolicy, fields: bytes) -> KVPolicy:
    """The policy with the named fields changed (of `level_thresholds`, those that are named); with a `mode` among them,
    the preset of that name instead of the policy. Raises `Refused` with the field that is wrong."""
    try:
        return from_plain(decoded(fields, dict[str, Any]), policy)
    except Undecodable as error:
        raise Refused(f"the policy cannot be read: {error}") from None
    except PolicyError as error:
        raise Refused(str(error), param=error.field) from None


def differences(old: KVPolicy, new: KVPolicy) -> dict[str, list[Any]]:
    """By field: what it was and what it is."""
    before, after = msgspec.to_builtins(old), msgspec.to_builtins(new)
    return {name: [before[name], after[name]] for name in before if before[name] != after[name]}
