"""The settings of a model, changed field by field, as the exchange of its worker needs them."""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sekisho.core.errors import InvalidRequest
from sekisho.engines.config import WORKER_ENGINES, ModelConfig
from sekisho.kv.policy import PolicyError, from_plain

_LOWEST: Final = {"context": 1, "slots": 1, "gpu_layers": -1, "threads": 1}
_ABOVE_ZERO: Final = ("connect_timeout_s", "first_byte_timeout_s", "idle_timeout_s", "kv_limit_mib")
_FIXED: Final = {
    "name": "is what clients call the model",
    "thinking": "is read by the guard when the server starts: change sekisho.yaml and start again",
    "url": "is for engines at other addresses",
    "upstream_model": "is for engines at other addresses",
    "api_key_env": "is for engines at other addresses",
    "api_key_file": "is for engines at other addresses",
}
_PATH = re.compile(r"`\$\.?([^`]*)`$")


def changed(config: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """`config` with these fields instead; of a field that holds several values, all of them. All or nothing: raises
    InvalidRequest, whose `param` is the field that is wrong."""
    for field in changes:
        if field not in config.__struct_fields__:
            raise _wrong(field, f"is no field of a model; there are {', '.join(config.__struct_fields__)}")
        if field in _FIXED and changes[field] != getattr(config, field):
            raise _wrong(field, f"cannot be changed here: it {_FIXED[field]}")
    try:
        new = msgspec.convert({**msgspec.to_builtins(config), **changes}, ModelConfig)
    except msgspec.ValidationError as error:
        message = str(error)
        place = _PATH.search(message)
        raise _wrong(place[1] if place else "", message) from None
    _check(new)
    return new


def _check(config: ModelConfig) -> None:
    """What types cannot say, as `settings.checks` says it of sekisho.yaml."""
    if config.engine not in WORKER_ENGINES:
        raise _wrong("engine", f"must be one of {', '.join(sorted(WORKER_ENGINES))}, which run here")
    if not config.path:
        raise _wrong("path", "is missing")
    for field, low in _LOWEST.items():
        value = getattr(config, field)
        if value is not None and value < low:
            raise _wrong(field, f"must be at least {low}, is {value}")
    for field in _ABOVE_ZERO:
        value = getattr(config, field)
        if value is not None and not 0 < value < float("inf"):
            raise _wrong(field, f"must be above 0, is {value}")
    if config.engine != "torch":
        for field in ("kv", "kv_limit_mib"):
            if getattr(config, field) is not None:
                raise _wrong(field, "is for the engine torch")
        return
    try:
        from_plain(config.kv or {})
    except PolicyError as error:
        raise _wrong(f"kv.{error.field}", error.fault) from None


def _wrong(field: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {why}" if field else why, param=field or None)
