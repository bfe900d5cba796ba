"""The quality loop, from a loss to the engine."""

from pathlib import Path
from typing import Any

import msgspec
from quality_harness import Scene

from sekisho.control.base import ActuatorFailed, Applied
from sekisho.control.perplexity.base import Unmeasured
from sekisho.control.perplexity.compare import Agreement
from sekisho.control.perplexity.measure import Compared, Target
from sekisho.control.policy import Policy
from sekisho.control.quality_watch import WHOLE
from sekisho.engines.config import ModelConfig


async def test_a_loss_is_climbed_out_of_step_by_step(tmp_path: Path) -> None:
    """Three bad runs, then INT4 -> INT8, a light run, and it stays; each step is a decision with the measured value."""
    scene = Scene(tmp_path)
    await scene.set(key_type="q4_0", value_type="q4_0")
    for _ in range(6):
        await scene.look()
    assert scene.kind == "q8_0"
    assert scene.measured[:4] == ["light"] * 4
    rules = [(each["rule"], each["outcome"]) for each in scene.decisions() if each["rule"].startswith("quality")]
    assert rules[:4] == [
        ("quality.bad", "nothing"),
        ("quality.bad", "nothing"),
        ("quality.step", "applied"),
        ("quality.recovered", "nothing"),
    ]
    step = next(each for each in scene.decisions() if each["rule"] == "quality.step")
    assert (step["value"], step["limit"], step["loop"]) == (0.9, 0.5, "slow")
    assert len(scene.alerts) == 4
    view = scene.watch.view_of("mini")
    assert (view.delta_ppl, view.status) == (0.2, "within_threshold")
    await scene.agent.close()


async def test_where_the_first_step_is_not_enough_the_next_one_follows(tmp_path: Path) -> None:
    """INT8 -> FP16; and where that is not enough either, critical, and no further change."""
    scene = Scene(tmp_path)
    scene.losses = {"f16": 0.7, "q8_0": 0.8, "q4_0": 0.9}
    await scene.set(key_type="q4_0", value_type="q4_0")
    for _ in range(12):
        await scene.look()
    assert scene.kind == "f16"
    assert scene.engine.policy.kv.mode == "disabled"
    assert [alert.severity for alert in scene.alerts].count("critical") >= 1
    assert [each["rule"] for each in scene.decisions()].count("quality.step") == 2
    await scene.agent.close()


async def test_a_step_that_the_engine_refuses_is_followed_by_the_next(tmp_path: Path) -> None:
    """An engine that cannot have INT8 is brought to FP16."""
    scene = Scene(tmp_path)
    await scene.set(key_type="q4_0", value_type="q4_0")
    take = scene.engine.apply

    async def apply(policy: Policy) -> tuple[Applied, ...]:
        if policy.kv.key_type == "q8_0":
            raise ActuatorFailed("mini: no INT8 here")
        return await take(policy)

    scene.engine.apply = apply  # type: ignore[method-assign]
    for _ in range(6):
        await scene.look()
    assert (scene.kind, scene.engine.policy.kv.mode) == ("f16", "disabled")
    await scene.agent.close()


async def test_advising_changes_nothing(tmp_path: Path) -> None:
    """Without `quality` in `control.act` the step is told and the policy stays."""
    scene = Scene(tmp_path, acts=False)
    await scene.set(key_type="q4_0", value_type="q4_0")
    for _ in range(8):
        await scene.look()
    assert scene.kind == "q4_0"
    assert any("advised" in alert.text for alert in scene.alerts)
    await scene.agent.close()


async def test_what_cannot_be_measured_says_why_and_is_no_loss(tmp_path: Path) -> None:
    """Null with a reason; no step is taken, however often."""
    scene = Scene(tmp_path)
    scene.losses["q4_0"] = None
    await scene.set(key_type="q4_0", value_type="q4_0")
    for _ in range(40):
        await scene.look()
    view = scene.watch.view_of(None)
    assert (view.delta_ppl, view.status, view.reason) == (None, "not measured", "the worker is gone")
    assert scene.kind == "q4_0"
    await scene.agent.close()


async def test_the_state_survives_a_restart(tmp_path: Path) -> None:
    """Two bad runs before it and one after it are three."""
    scene = Scene(tmp_path)
    await scene.set(key_type="q4_0", value_type="q4_0")
    for _ in range(2):
        await scene.look()
    assert scene.kind == "q4_0"
    engine = scene.engine
    await scene.agent.close()
    again = Scene(tmp_path)
    again.engine.policy = engine.policy
    await again.look()
    assert again.kind == "q8_0"
    await again.agent.close()


async def test_a_persons_change_begins_anew(tmp_path: Path) -> None:
    """What was found out under the old policy says nothing about the new one, which is measured soon."""
    scene = Scene(tmp_path)
    await scene.set(key_type="q4_0", value_type="q4_0")
    for _ in range(2):
        await scene.look()
    await scene.set(key_type="q8_0", value_type="q8_0")
    await scene.look()
    assert scene.watch._watched["mini"].quality.state.bad == 0
    assert scene.watch.view_of("mini").delta_ppl == 0.2
    await scene.agent.close()


async def test_without_a_persons_policy_it_advises(tmp_path: Path) -> None:
    """What sekisho.yaml says is not changed; from a person's first policy on it is."""
    scene = Scene(tmp_path, configured="q4_0")
    for _ in range(8):
        await scene.look()
    assert (scene.kind, scene.agent.policies.book.version) == ("q4_0", 0)
    assert any("advised" in alert.text for alert in scene.alerts)
    await scene.set(recent_window=80)
    for _ in range(6):
        await scene.look()
    assert scene.kind == "q8_0"
    await scene.agent.close()


async def test_whether_it_may_act_is_asked_at_every_finding(tmp_path: Path) -> None:
    """`act` of POST /v1/config holds at once."""
    scene = Scene(tmp_path)
    await scene.set(key_type="q4_0", value_type="q4_0")
    await scene.look()
    await scene.look()
    scene.may_act = False
    await scene.look()
    assert scene.kind == "q4_0"
    assert "advised" in scene.alerts[-1].text
    await scene.agent.close()


async def test_16_bits_are_not_measured_against_16_bits(tmp_path: Path) -> None:
    """No scheduled run, with the reason; one on request is measured, and so is the next policy, at once."""
    scene = Scene(tmp_path)
    for _ in range(2000):
        await scene.look()
    assert scene.measured == []
    view = scene.watch.view_of("mini")
    assert (view.status, view.reason) == ("not measured", WHOLE)
    await scene.watch.measure("mini", "light")
    assert scene.measured == ["light"]
    await scene.set(key_type="q8_0", value_type="q8_0")
    await scene.look()
    assert len(scene.measured) == 2
    assert scene.watch.view_of("mini").delta_ppl == 0.2
    await scene.set(mode="disabled")
    await scene.look()
    view = scene.watch.view_of("mini")
    assert (len(scene.measured), view.delta_ppl, view.reason, view.last_run is None) == (2, None, WHOLE, False)
    await scene.agent.close()


async def test_a_full_run_compares_the_two_routes(tmp_path: Path) -> None:
    """Where the process that measures and the worker that serves do not see the same, people are told; the record has
    both figures. A light run does not ask, and an engine with one route has no agreement."""
    scene = Scene(tmp_path)
    asked: list[str] = []

    async def check(target: Target, job: Any) -> Agreement:
        asked.append(job.kind)
        if len(asked) > 1:
            raise Unmeasured("only a running llama.cpp worker can be cross-checked")
        return Agreement(False, 2.3, 2.5, 0.08, 0.4, 24, 0.005, "24 positions: the routes disagree")

    scene.watch._check = check
    light = await scene.watch.measure("mini", "light")
    full = await scene.watch.measure("mini", "full")
    again = await scene.watch.measure("mini", "full")
    assert (light["agreement"], full["agreement"].agrees, again["agreement"]) == (None, False, None)
    assert asked == ["full", "full"]
    assert [alert.kind for alert in scene.alerts] == ["quality.routes_disagree"]
    await scene.agent.close()


async def test_the_status_is_what_the_verdict_says(tmp_path: Path) -> None:
    """A difference above the limit that may be chance is unclear, not an alert."""
    scene = Scene(tmp_path)
    await scene.set(key_type="q4_0", value_type="q4_0")
    await scene.watch.measure("mini", "light")
    assert scene.watch.view_of("mini").status == "alert"
    sure = scene.compare

    async def unsure(*arguments: Any) -> Compared:
        found = await sure(*arguments)
        return msgspec.structs.replace(found, delta=msgspec.structs.replace(found.delta, low=-0.1))

    scene.watch._compare = unsure
    await scene.watch.measure("mini", "light")
    assert scene.watch.view_of("mini").status == "unclear"
    await scene.agent.close()


async def test_no_step_leads_to_a_type_that_does_not_run_here(tmp_path: Path) -> None:
    """INT8 is passed over where llama.cpp was seen not to run it; torch, which has types of its own, is not asked."""
    scene = Scene(tmp_path)
    scene.watch._kv_types = lambda: frozenset({"f16", "q4_0"})
    await scene.set(key_type="q4_0", value_type="q4_0")
    for _ in range(6):
        await scene.look()
    assert (scene.kind, scene.engine.policy.kv.mode) == ("f16", "disabled")
    assert scene.measured[3:] == ["light"]
    policy, torch = Policy(), Target(ModelConfig(name="mini", engine="torch", path="builtin"))
    low = msgspec.structs.replace(policy, kv=msgspec.structs.replace(policy.kv, budget=0.2))
    assert [step.rung for step in scene.watch._steps(torch, low)] == ["int8", "fp16"]
    await scene.agent.close()
