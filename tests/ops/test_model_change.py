"""The settings of a model, changed field by field."""

from typing import Any

import msgspec
import pytest

from sekisho.core.errors import InvalidRequest
from sekisho.engines.config import ModelConfig
from sekisho.ops.model_change import changed

LLAMA = ModelConfig("m", path="a.gguf", kv_type_k="q8_0", options={"a": 1})
TORCH = ModelConfig("m", engine="torch", path="a", kv={"mode": "dynamic"})


def test_only_what_is_named_changes() -> None:
    """All other fields stay; a field with several values is replaced as a whole; saying what is so changes nothing."""
    new = changed(LLAMA, {"slots": 8, "options": {"b": 2}})
    assert (new.slots, new.options, new.kv_type_k, new.path) == (8, {"b": 2}, "q8_0", "a.gguf")
    assert changed(LLAMA, {}) == LLAMA == changed(LLAMA, {"kv_type_k": "q8_0", "name": "m"})
    assert changed(TORCH, {"kv": {"mode": "quality_optimized"}}).kv == {"mode": "quality_optimized"}


@pytest.mark.parametrize(
    ("config", "changes", "param"),
    [
        (LLAMA, {"slot": 8}, "slot"),
        (LLAMA, {"slots": "8"}, "slots"),
        (LLAMA, {"slots": True}, "slots"),
        (LLAMA, {"slots": 0}, "slots"),
        (LLAMA, {"context": 0}, "context"),
        (LLAMA, {"gpu_layers": -2}, "gpu_layers"),
        (LLAMA, {"threads": 0}, "threads"),
        (LLAMA, {"kv_type_v": "q9"}, "kv_type_v"),
        (LLAMA, {"path": None}, "path"),
        (LLAMA, {"path": ""}, "path"),
        (LLAMA, {"idle_timeout_s": 0}, "idle_timeout_s"),
        (LLAMA, {"idle_timeout_s": float("inf")}, "idle_timeout_s"),
        (LLAMA, {"name": "n"}, "name"),
        (LLAMA, {"thinking": "opened"}, "thinking"),
        (LLAMA, {"url": "http://x/v1"}, "url"),
        (LLAMA, {"api_key_env": "KEY"}, "api_key_env"),
        (LLAMA, {"engine": "openai_http"}, "engine"),
        (LLAMA, {"kv": {}}, "kv"),
        (LLAMA, {"kv_limit_mib": 3}, "kv_limit_mib"),
        (TORCH, {"kv_limit_mib": 0}, "kv_limit_mib"),
        (TORCH, {"kv": {"mode": "magic"}}, "kv.mode"),
        (TORCH, {"kv": {"recent_windows": 3}}, "kv.recent_windows"),
        (TORCH, {"kv": 3}, "kv"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(config: ModelConfig, changes: dict[str, Any], param: str) -> None:
    """All or nothing, whatever else is right."""
    with pytest.raises(InvalidRequest) as told:
        changed(config, {**changes, **({} if "slots" in changes else {"slots": 2})})
    assert told.value.param == param
    assert param.partition(".")[0] in told.value.message


def test_another_engine_of_ours_is_possible() -> None:
    """From llama.cpp to PyTorch, with what that one needs."""
    new = changed(LLAMA, {"engine": "torch", "path": "folder", "kv": {"mode": "dynamic"}})
    assert (new.engine, new.kv) == ("torch", {"mode": "dynamic"})
    assert msgspec.to_builtins(new)["engine"] == "torch"
