"""What ONNX Runtime GenAI's settings file makes of a policy."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from actuator_harness import GENAI_CONFIG, UNLIKE, write_genai_folder
from hypothesis import given
from hypothesis import strategies as st
from policy_strategies import policies

from sekisho.control.actuators import create, genai_config
from sekisho.control.actuators.base import DEFAULTS, fields
from sekisho.control.actuators.onnx_genai import ORIGINAL, Machine, changes, target
from sekisho.control.base import Actuator, ActuatorFailed
from sekisho.control.policy import EngineSection, Policy, SchedulerSection
from sekisho.engines.config import ModelConfig

HERE = Machine(("CPUExecutionProvider",), "0.16.0")
ON_CARD = SchedulerSection("gpu_only", "dml", "dml")


def with_providers(*listed: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = copy.deepcopy(GENAI_CONFIG)
    config["model"]["decoder"]["session_options"]["provider_options"] = list(listed)
    return config


def hand(folder: Path) -> Actuator:
    return create(ModelConfig("m", path=str(folder)), None, None, kind="onnx_genai")


def told(folder: Path) -> Any:
    return json.loads((folder / "genai_config.json").read_text())


@given(policies, st.sampled_from(([], [{"dml": {}}], [{"cuda": {"enable_cuda_graph": "0"}}], [{"RyzenAI": {}}])))
def test_no_field_is_forgotten_and_what_is_written_is_in_order(policy: Policy, listed: list[dict[str, Any]]) -> None:
    """Each field that differs from its default is answered; the new settings pass the check and are as asked."""
    config = with_providers(*listed)
    answered = changes(policy, "m", config, HERE)
    assert {name for name, value in fields(policy).items() if value != DEFAULTS[name]} <= {e.field for e in answered}
    assert {each.effect for each in answered} <= {"unchanged", "restart", "unsupported"}
    new = target(policy, config)
    assert genai_config.problems(new) == []
    assert "restart" not in {each.effect for each in changes(policy, "m", new, HERE)}


async def test_settings_are_written_whole_and_the_first_ones_kept(tmp_path: Path) -> None:
    """What no policy decides stays, in its order; the file keeps its mode; the copy is the file before our first
    change, whatever comes later; and it holds from the next load, which the answer says."""
    folder = write_genai_folder(tmp_path / "m", [{"cuda": {"enable_cuda_graph": "0"}}])
    file = folder / "genai_config.json"
    os.chmod(file, 0o640)
    before = file.read_bytes()
    engine = EngineSection(threads=3, context=1000, slots=2, speculation="ngram")
    applied = await hand(folder).apply(Policy(engine=engine))
    assert {each.effect for each in applied} == {"restart"}
    assert all("loads it anew" in (each.reason or "") and not each.done for each in applied)
    expected = with_providers({"cuda": {"enable_cuda_graph": "0"}})
    expected["model"]["decoder"]["session_options"]["intra_op_num_threads"] = 3
    expected["search"]["max_length"] = 1000
    expected |= {"engine": {"dynamic_batching": {"max_batch_size": 2}}}
    expected |= {"speculative": {"ngram_size": 4, "max_draft_tokens": 8}}
    assert told(folder) == expected
    assert list(told(folder)) == ["model", "search", "engine", "speculative"]
    assert file.stat().st_mode & 0o777 == 0o640
    await hand(folder).apply(Policy(engine=EngineSection(threads=1, speculation="off")))
    assert told(folder)["speculative"]["ngram_size"] == 0
    assert (folder / ORIGINAL).read_bytes() == before
    assert sorted(each.name for each in folder.iterdir()) == ["genai_config.json", ORIGINAL]


async def test_nothing_is_written_where_nothing_changes(tmp_path: Path) -> None:
    """Not even the copy."""
    folder = write_genai_folder(tmp_path / "m")
    await hand(folder).apply(Policy())
    assert [each.name for each in folder.iterdir()] == ["genai_config.json"]


@pytest.mark.parametrize(
    ("listed", "scheduler", "effect", "providers"),
    [
        ([], ON_CARD, "restart", ("DML",)),
        ([{"dml": {"performance_preference": "high"}}], ON_CARD, "unchanged", ("DML",)),
        ([{"cuda": {}}], ON_CARD, "unchanged", ("cuda",)),
        ([{"cuda": {}}], SchedulerSection("hybrid", "cpu", "cpu"), "restart", ()),
        ([{"RyzenAI": {}}], SchedulerSection("npu_only", "npu", "npu"), "unchanged", ("RyzenAI",)),
        ([{"RyzenAI": {}}], ON_CARD, "unsupported", ("RyzenAI",)),
        ([], SchedulerSection("npu_only", "npu", "npu"), "unsupported", ()),
        ([], SchedulerSection("hybrid", "dml", "cpu"), "unsupported", ()),
    ],
)
def test_card_and_processor_are_a_choice_and_an_npu_is_the_models(
    listed: list[dict[str, Any]], scheduler: SchedulerSection, effect: str, providers: tuple[str, ...]
) -> None:
    """Options of a provider that fits stay with it."""
    config, policy = with_providers(*listed), Policy(scheduler=scheduler)
    found = {each.field: each for each in changes(policy, "m", config, HERE)}
    assert found["scheduler.mode"].effect == effect
    new = target(policy, config)
    assert genai_config.providers(new) == providers
    if effect != "restart":
        assert new == config


def test_a_provider_that_is_not_here_is_warned_of() -> None:
    """From ONNX Runtime's own list, or that it is not installed."""
    policy = Policy(scheduler=ON_CARD)
    for here, words in ((HERE, "has no DmlExecutionProvider"), (Machine(), "is not installed here")):
        (found, *_) = changes(policy, "m", with_providers(), here)
        assert words in (found.reason or "")


def test_a_context_is_cut_to_what_the_model_was_made_for() -> None:
    """The library would refuse more."""
    found = {each.field: each for each in changes(UNLIKE, "m", with_providers(), HERE)}
    assert (found["engine.context"].was, found["engine.context"].value) == (4096, 512)
    more = msgspec.structs.replace(UNLIKE, engine=EngineSection(context=9999))
    assert {e.field: e.effect for e in changes(more, "m", with_providers(), HERE)}["engine.context"] == "unchanged"


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("model", "context_length"), "4096", "model.context_length"),
        (("model", "decoder"), [], "model.decoder"),
        (("model", "decoder", "session_options"), 3, "session_options"),
        (("model", "decoder", "session_options", "intra_op_num_threads"), "4", "intra_op_num_threads"),
        (("model", "decoder", "session_options", "enable_mem_pattern"), 1, "enable_mem_pattern"),
        (("model", "decoder", "session_options", "session.x"), 1, "session.x"),
        (("model", "decoder", "session_options", "provider_options"), {"dml": {}}, "provider_options"),
        (("model", "decoder", "session_options", "provider_options"), [{"dml": {"a": 1}}], "provider_options.dml.a"),
        (("model", "decoder", "session_options", "provider_options"), [{"dml": []}], "provider_options.dml"),
        (("search", "max_length"), 1.5, "search.max_length"),
        (("speculative",), {"ngram_size": 1}, "speculative.ngram_size"),
        (("speculative",), {"other": 1}, "speculative.other"),
        (("engine",), {"dynamic_batching": {"max_batch_size": 0}}, "engine.dynamic_batching.max_batch_size"),
        (("engine",), {"other": {}}, "engine.other"),
        (("other",), 1, "other"),
    ],
)
async def test_what_the_library_would_refuse_is_refused_with_its_place(
    tmp_path: Path, path: tuple[str, ...], value: Any, where: str
) -> None:
    """And not touched."""
    folder = write_genai_folder(tmp_path / "m")
    config = told(folder)
    section = config
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(ActuatorFailed, match=where.replace(".", r"\.")):
        await hand(folder).apply(UNLIKE)
    assert told(folder) == config
    state = await hand(folder).state()
    assert state.state == "down"
    assert where in (state.reason or "")


async def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    """No folder, no file, no JSON, no path."""
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(ActuatorFailed, match="genai_config"):
            await hand(wrong).plan(Policy())
    (tmp_path / "genai_config.json").write_bytes(b"\xff{")
    with pytest.raises(ActuatorFailed, match="repair it"):
        await hand(tmp_path).plan(Policy())
    with pytest.raises(ActuatorFailed, match="no model folder"):
        await create(ModelConfig("m"), None, None, kind="onnx_genai").plan(Policy())


async def test_a_folder_that_cannot_be_written_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure says that nothing was written."""
    folder = write_genai_folder(tmp_path / "m")
    before = told(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ActuatorFailed, match="No space left on device; nothing was written"):
        await hand(folder).apply(UNLIKE)
    assert told(folder) == before
    assert not [each for each in folder.iterdir() if each.name.startswith(".")]
