"""The quality loop, from the schedule to the engine."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from agent_harness import ValueEngine, make_agent

from sekisho.control.base import ActuatorFailed, Applied, EngineState, Signals
from sekisho.control.notification import Alert
from sekisho.control.perplexity import texts
from sekisho.control.perplexity.base import Delta, Measurement, Unmeasured
from sekisho.control.perplexity.compare import Agreement
from sekisho.control.perplexity.measure import Compared, Target
from sekisho.control.policy import Policy
from sekisho.control.quality_schedule import ScheduleSettings
from sekisho.control.quality_watch import WHOLE, QualitySettings, QualityWatch
from sekisho.engines.config import ModelConfig

LOSSES = {"f16": 0.0, "q8_0": 0.2, "q4_0": 0.9}


class Scene:
    """A model whose loss follows from the KV type that its engine has."""

    def __init__(self, folder: Path, configured: str = "f16", **given: Any) -> None:
        self.configured = configured
        self.may_act = given.get("acts", True)
        self.engine = ValueEngine()
        self.agent, self.clock = make_agent(folder, self.engine)
        self.losses: dict[str, float | None] = dict(LOSSES)
        self.alerts: list[Alert] = []
        self.measured: list[str] = []
        self.gate: asyncio.Event | None = None
        settings = QualitySettings(folder / "quality", texts.built_in(), ScheduleSettings(), **given)
        self.watch = QualityWatch(
            settings,
            {"mini": self.target},
            self.agent.policies,
            self.agent.history,
            self.agent.bus,
            self.alerts.append,
            self.clock,
            self.compare,
            lambda: self.may_act,
        )

    @property
    def kind(self) -> str:
        kv = self.engine.policy.kv
        return kv.key_type or (self.configured if kv.mode == "configured" else "f16")

    def target(self) -> Target:
        kind: Any = self.kind
        return Target(ModelConfig(name="mini", path="builtin", kv_type_k=kind, kv_type_v=kind))

    async def compare(self, target: Target, job: Any, clock: Any, baselines: Any) -> Compared:
        self.measured.append(job.kind)
        assert self.agent.policies.unsettled
        if self.gate is not None:
            await self.gate.wait()
        loss = self.losses[target.config.kv_type_k]
        if loss is None:
            raise Unmeasured("the worker is gone")
        baseline = Measurement("mini", "text", 1000, 2.3, 10.0, "route", 1.0, clock.now(), {})
        now = msgspec.structs.replace(baseline, perplexity=10.0 + loss)
        return Compared(now, baseline, Delta(loss, loss / 10, loss - 0.05, loss + 0.05, 1000))

    async def set(self, **kv: Any) -> None:
        from sekisho.control.policy_service import Cause

        await self.agent.policies.change({"kv": kv}, Cause("api", "request", "api", "a person"), by="api")

    async def look(self, *, busy: bool = False) -> None:
        """One slow round, and whatever measurement it begins."""
        state = EngineState("mini", "value", "ready", running=int(busy), waiting=0)
        self.clock.advance(60)
        await self.watch.watch(Signals(self.clock.now(), self.clock.monotonic(), (state,)))
        if self.watch._task is not None and self.gate is None:
            await asyncio.gather(self.watch._task)

    async def look_closer(self, *, busy: bool, seconds: float) -> None:
        """Middle rounds, every five seconds; at each so many requests as a busy server has."""
        state = EngineState("mini", "value", "ready", running=2 * busy, waiting=int(busy))
        for _ in range(int(seconds / 5)):
            self.clock.advance(5)
            await self.watch.give_way(Signals(self.clock.now(), self.clock.monotonic(), (state,)))
        broken_off = self.watch._giving_way._deadline is not None and self.watch._giving_way._why is not None
        if broken_off and self.watch._task is not None:
            await self.watch._task

    def records(self) -> list[dict[str, Any]]:
        return [entry.record for entry in self.agent.history.read("quality")]

    def decisions(self) -> list[dict[str, Any]]:
        return [entry.record for entry in self.agent.history.read("decisions")]


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


async def test_traffic_comes_first(tmp_path: Path) -> None:
    """Nothing is measured while somebody is served, until it has waited for two hours."""
    scene = Scene(tmp_path)
    await scene.set(key_type="q8_0", value_type="q8_0")
    for _ in range(100):
        await scene.look(busy=True)
    assert scene.measured == []
    for _ in range(30):
        await scene.look(busy=True)
    assert scene.measured
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


async def begun(scene: Scene) -> None:
    """A run is due, begins in a quiet moment and does not end."""
    await scene.set(key_type="q8_0", value_type="q8_0")
    scene.gate = asyncio.Event()
    await scene.look()
    await asyncio.sleep(0)
    assert scene.measured == ["light"]


async def test_a_scheduled_run_gives_way_to_traffic(tmp_path: Path) -> None:
    """Requests at two looks, and it is broken off: the record says why, nothing is judged, and it stays due: again
    after a quarter of an hour."""
    scene = Scene(tmp_path)
    await begun(scene)
    await scene.look_closer(busy=False, seconds=60)
    await scene.look_closer(busy=True, seconds=10)
    (record,) = scene.records()
    assert (record["ended"], record["compared"], record["verdict"]) == ("broken_off", None, None)
    assert record["reason"] == "broken off for the traffic (mini: 2 run, 1 wait)"
    assert scene.watch.view_of("mini").reason == record["reason"]
    assert not [each for each in scene.decisions() if each["rule"].startswith("quality")]
    scene.gate = None
    for _ in range(14):
        await scene.look()
    assert scene.measured == ["light"]
    await scene.look()
    assert scene.measured == ["light"] * 2
    assert [each["ended"] for each in scene.records()] == ["broken_off", "measured"]
    assert scene.watch.view_of("mini").delta_ppl == 0.2
    await scene.agent.close()


async def test_one_request_at_one_look_is_no_traffic(tmp_path: Path) -> None:
    """It may have been over a moment later."""
    scene = Scene(tmp_path)
    await begun(scene)
    for _ in range(10):
        await scene.look_closer(busy=True, seconds=5)
        await scene.look_closer(busy=False, seconds=5)
    assert scene.gate is not None
    scene.gate.set()
    await asyncio.gather(*filter(None, [scene.watch._task]))
    assert [each["ended"] for each in scene.records()] == ["measured"]
    await scene.agent.close()


async def test_a_run_that_a_person_asks_for_is_never_broken_off(tmp_path: Path) -> None:
    """Nor is it begun later for the traffic."""
    scene = Scene(tmp_path)
    scene.gate = asyncio.Event()
    asked = asyncio.create_task(scene.watch.measure("mini", "full"))
    await asyncio.sleep(0)
    await scene.look_closer(busy=True, seconds=600)
    assert not asked.done()
    scene.gate.set()
    assert (await asked)["ended"] == "measured"
    await scene.agent.close()


async def test_the_fourth_try_of_a_run_goes_to_its_end(tmp_path: Path) -> None:
    """Three were broken off, after pauses of a quarter, a half and a whole hour."""
    scene = Scene(tmp_path)
    await begun(scene)
    began = [scene.clock.now()]
    while len(scene.measured) < 4:
        await scene.look_closer(busy=True, seconds=10)
        while len(scene.measured) == len(began):
            await scene.look()
            await asyncio.sleep(0)
        began.append(scene.clock.now())
    assert [round((later - earlier) / 900) for earlier, later in pairwise(began)] == [1, 2, 4]
    await scene.look_closer(busy=True, seconds=600)
    assert scene.gate is not None
    scene.gate.set()
    await asyncio.gather(*filter(None, [scene.watch._task]))
    assert [each["ended"] for each in scene.records()] == ["broken_off"] * 3 + ["measured"]
    await scene.agent.close()


async def test_a_run_that_traffic_has_put_off_for_long_is_not_broken_off_by_it(tmp_path: Path) -> None:
    """It began in spite of it."""
    scene = Scene(tmp_path)
    await scene.set(key_type="q8_0", value_type="q8_0")
    scene.gate = asyncio.Event()
    while not scene.measured:
        await scene.look(busy=True)
        await asyncio.sleep(0)
    await scene.look_closer(busy=True, seconds=60)
    scene.gate.set()
    await asyncio.gather(*filter(None, [scene.watch._task]))
    assert [each["ended"] for each in scene.records()] == ["measured"]
    await scene.agent.close()


async def test_what_a_verdict_asked_for_is_still_wanted_after_a_break(tmp_path: Path) -> None:
    """The confirmation of a step does not wait for the schedule."""
    scene = Scene(tmp_path)
    await scene.set(key_type="q4_0", value_type="q4_0")
    await scene.look()
    scene.gate = asyncio.Event()
    await scene.look()
    await asyncio.sleep(0)
    await scene.look_closer(busy=True, seconds=10)
    scene.gate = None
    for _ in range(16):
        await scene.look()
    assert scene.kind == "q8_0"
    await scene.agent.close()


async def test_an_engine_that_counts_the_measurement_says_nothing_about_traffic(tmp_path: Path) -> None:
    """vLLM tells its own prompt as running; another engine beside it does count."""
    scene = Scene(tmp_path)
    target = Target(ModelConfig(name="mini", engine="openai_http", url="http://127.0.0.1:9/v1", kv_type_k="q8_0"))
    scene.watch._targets = {"mini": lambda: target}
    await begun(scene)
    await scene.look_closer(busy=True, seconds=60)
    assert scene.records() == []
    other = EngineState("other", "value", "ready", running=1)
    for _ in range(2):
        scene.clock.advance(5)
        await scene.watch.give_way(Signals(scene.clock.now(), scene.clock.monotonic(), (other,)))
    await asyncio.gather(*filter(None, [scene.watch._task]))
    assert [each["ended"] for each in scene.records()] == ["broken_off"]
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
