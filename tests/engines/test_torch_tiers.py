"""A policy that is set or changed from outside. Needs no model."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
pytest.importorskip("transformers", reason="needs the extra kv: pip install 'sekisho[kv]'")

from sekisho.engines.config import ModelConfig
from sekisho.engines.torch_worker.__main__ import serve
from sekisho.engines.torch_worker.refusal import Refused
from sekisho.engines.torch_worker.tiers import differences, merged
from sekisho.engines.worker_process import WorkerError
from sekisho.kv.policy import PRESETS, KVPolicy, LevelThresholds

pytestmark = pytest.mark.kv

IN_FORCE = KVPolicy(recent_window=32, budget=0.5, level_thresholds=LevelThresholds(0.8, 0.6, 0.4))


def changed(**fields: Any) -> KVPolicy:
    return merged(IN_FORCE, json.dumps(fields).encode())


def test_named_fields_change_the_policy_in_force() -> None:
    """What is not named stays, of thresholds too; a whole policy, as `GET /kv` tells it, is taken whole."""
    assert changed() == IN_FORCE
    found = changed(budget=0.15, level_thresholds={"L1_int8": 0.9})
    assert differences(IN_FORCE, found) == {
        "budget": [0.5, 0.15],
        "level_thresholds": [
            {"L1_int8": 0.8, "L2_int4": 0.6, "L3_evict": 0.4},
            {"L1_int8": 0.9, "L2_int4": 0.6, "L3_evict": 0.4},
        ],
    }


@pytest.mark.parametrize("mode", PRESETS)
def test_a_mode_starts_from_its_preset(mode: str) -> None:
    """Nothing of the policy in force is left then."""
    assert changed(mode=mode) == PRESETS[mode]
    assert changed(mode=mode, sinks=3, recent_window=99).budget == PRESETS[mode].budget


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"mode": "fast"}, "mode"), ({"bugdet": 1}, "bugdet"), ({"budget": 7}, "budget"), ({"sinks": "x"}, "sinks")],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], field: str) -> None:
    """The refusal has the field, also where it is unknown or of another type."""
    with pytest.raises(Refused, match=field) as refused:
        changed(recent_window=64, **fields)
    assert refused.value.param == field


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    """Never a traceback."""
    with pytest.raises(Refused, match="cannot be read"):
        merged(IN_FORCE, body)


async def test_a_worker_does_not_start_with_a_wrong_policy(tmp_path: Path) -> None:
    """The line names the field, before anything is loaded."""
    (tmp_path / "config.json").write_text("{}")
    config = ModelConfig("m", engine="torch", path=str(tmp_path), kv={"mode": "fast"})
    with pytest.raises(WorkerError, match="kv: mode must be one of dynamic"):
        await serve(config, 0, "key")
