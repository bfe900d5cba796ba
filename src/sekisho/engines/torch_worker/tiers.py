"""The KV cache as it is told and changed from outside."""

from typing import Any

import msgspec

from sekisho.engines.torch_worker.refusal import Refused
from sekisho.engines.torch_worker.runner import Runner
from sekisho.kv.policy import KVPolicy, PolicyError
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
    """The policy with the named fields changed (of `level_thresholds`, those that are named). Raises `Refused` with the
    field that is wrong."""
    try:
        changes = msgspec.json.decode(fields, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"the policy cannot be read: {error}") from None
    whole = msgspec.to_builtins(policy)
    thresholds = changes.get("level_thresholds")
    if isinstance(thresholds, dict):
        changes["level_thresholds"] = {**whole["level_thresholds"], **thresholds}
    try:
        return msgspec.convert({**whole, **changes}, KVPolicy)
    except PolicyError as error:
        raise Refused(str(error), param=error.field) from None
    except msgspec.ValidationError as error:
        cause = error.__cause__
        raise Refused(str(error), param=cause.field if isinstance(cause, PolicyError) else None) from None


def differences(old: KVPolicy, new: KVPolicy) -> dict[str, list[Any]]:
    """By field: what it was and what it is."""
    before, after = msgspec.to_builtins(old), msgspec.to_builtins(new)
    return {name: [before[name], after[name]] for name in before if before[name] != after[name]}
