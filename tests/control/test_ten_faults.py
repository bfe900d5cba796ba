"""Ten faults, each put into a whole agent whose loops run at their usual periods in virtual time: after how many
seconds it is seen, by what, what is done, and after how many seconds all is as before. The rows become the table of
bench/control_faults.py. Faults are injected right after a look of the middle loop: nothing takes longer to be seen."""

import asyncio
from itertools import pairwise

import msgspec
import pytest
from ten_faults_harness import Gateway, Scene, simulated

from sekisho.control import devices
from sekisho.control.base import Applied, DeviceState
from sekisho.control.policy import Policy
from sekisho.ops.gpu_sample import GpuReading, GpuSample


@simulated
async def test_engine_killed(scene: Scene) -> None:
    """Told as critical at the second look; the engine that comes back is brought to the policy at the first one."""
    async with scene.site() as site:
        await site.set(kv={"mode": "quality_optimized"})
        wanted = site.engine.policy
        at_s = await site.settled()
        site.engine.die()
        shown_s = await site.health_names("m: down", 10)
        await asyncio.sleep(at_s + 22 - scene.now_s)
        site.engine.come_back()
        back_s = scene.now_s
        await asyncio.sleep(60)
        (told_s, alert), *_ = site.alerts(at_s)
        (policy_s, decision), *_ = site.decided("engine_back", back_s)
        over_s = site.decided("fallback.engine_down", back_s)[0][0]
        assert (alert.severity, alert.subject, decision.outcome) == ("critical", "m", "applied")
        assert site.engine.policy == wanted
        assert shown_s - at_s == pytest.approx(4.9, abs=0.15)
        assert told_s - at_s == pytest.approx(9.9)
        assert policy_s - back_s == pytest.approx(3.0, abs=0.2)
        assert over_s - policy_s == pytest.approx(30.0)
        scene.row(
            "engine killed",
            injected="the engine refuses connections for 22 s and has lost its policy",
            detected=(
                told_s - at_s,
                f"engine.state at two looks: fallback.engine_down; the health after {shown_s - at_s:.1f} s",
            ),
            action="critical alert; the supervisor restarts it; then the policy is applied again (engine_back)",
            recovered=(policy_s - back_s, f"after the engine is ready; said to be over {over_s - policy_s:g} s later"),
        )


@simulated
async def test_engine_killed_between_two_looks(scene: Scene) -> None:
    """An engine that dies and is back before the next look is not missed; that it has lost what it was told at run
    time is seen by the slow loop, and answered once."""
    async with scene.site() as site:
        await site.set(kv={"mode": "quality_optimized"})
        wanted = site.engine.policy
        at_s = await site.settled()
        site.engine.die()
        await asyncio.sleep(3)
        site.engine.come_back()
        back_s = scene.now_s
        await asyncio.sleep(300)
        ((seen_s, decision),) = site.decided("", at_s)
        assert (decision.rule, decision.outcome) == ("engine_drift", "applied")
        assert site.engine.policy == wanted
        scene.row(
            "engine killed, back within 3 s",
            injected="the engine is back before the next look and has lost its policy",
            detected=(seen_s - at_s, "the engine's settings against the policy, once a minute: engine_drift"),
            action="the policy is applied again",
            recovered=(seen_s - back_s, "after the engine is ready"),
        )


@simulated
async def test_an_engine_that_stays_different_is_asked_less_and_less_often(scene: Scene) -> None:
    """It says nothing and changes nothing: the health says how it differs, for as long as it does."""
    async with scene.site() as site:
        await site.set(kv={"recent_window": 100})
        at_s = await site.settled()
        take, site.engine.policy = site.engine.apply, Policy()

        async def apply(policy: Policy) -> tuple[Applied, ...]:
            return tuple(msgspec.structs.replace(each, done=True) for each in await site.engine.plan(policy))

        site.engine.apply = apply  # type: ignore[method-assign]
        await asyncio.sleep(3600)
        tries = [when for when, _ in site.decided("engine_drift", at_s)]
        pauses = [later - earlier for earlier, later in pairwise(tries)]
        assert 6 <= len(tries) <= 12
        assert [min(each, 600) for each in pauses] == sorted(min(each, 600) for each in pauses)
        assert pauses[-1] >= 600
        told = "m: not as the policy wants it, tried again: kv.recent_window is 64, not 100"
        assert told in site.agent.health().reasons
        site.engine.apply = take  # type: ignore[method-assign]
        await site.health_without("policy wants", 1000)
        assert site.engine.policy.kv.recent_window == 100
        assert len(site.decided("", at_s)) == len(tries) + 1


@simulated
async def test_engine_hung(scene: Scene) -> None:
    """Each look waits its five seconds, so that the second one ends after fifteen; it is only told."""
    async with scene.site() as site:
        await site.set(kv={"mode": "quality_optimized"})
        at_s = await site.settled()
        site.engine.answering.clear()
        await asyncio.sleep(120)
        site.engine.answering.set()
        back_s = scene.now_s
        await asyncio.sleep(60)
        (told_s, alert), *more = site.alerts(at_s)
        over_s = site.decided("fallback.engine_down", back_s)[0][0]
        assert "did not tell its state within 5 s" in alert.text
        assert told_s - at_s == pytest.approx(14.9)
        assert [each.severity for _, each in more] in ([], ["info"])
        scene.row(
            "engine hung",
            injected="the engine takes connections and answers nothing for 120 s",
            detected=(told_s - at_s, "no state within 5 s at two looks, fallback.engine_down"),
            action="critical alert; nobody restarts it: a person must",
            recovered=(over_s - back_s, "after it answers: said to be over"),
        )


@simulated
async def test_out_of_memory_on_load(scene: Scene) -> None:
    """The change ends as failed when the worker has ended; policy and engine are as before, and so is the next look."""
    async with scene.site() as site:
        await site.set(engine={"slots": 8})
        before, running = site.agent.policies.current(), site.engine.policy
        at_s = await site.settled()
        site.engine.load_s = 12.0
        change = await site.set(engine={"slots": 200})
        told_s = scene.now_s
        assert change.outcome == "failed"
        assert site.agent.policies.current() == before
        assert site.engine.policy == running
        assert "swap failed" in site.decided("request", at_s)[0][1].applied[0].reason
        assert site.agent.health().status == "healthy"
        scene.row(
            "OOM on load",
            injected="a change of policy whose new worker ends after 12 s of loading",
            detected=(told_s - at_s, "what the swap reports, as the decision's outcome `failed`"),
            action="the version before is in force again; the reason stands in the answer",
            recovered=(0.0, "after that: the old worker never stopped"),
        )


@pytest.mark.parametrize("traffic", [False, True], ids=["nobody asks", "traffic"])
@simulated
async def test_perplexity_jump(scene: Scene, traffic: bool) -> None:
    """Without traffic the next light run finds it, four hours after the last at the latest; answers that became less
    likely ask for one sooner. Three bad runs, a minute apart, and INT4 becomes INT8."""
    gateway = Gateway()
    async with scene.site(feed=gateway) as site:
        await site.set(kv={"key_type": "q4_0", "value_type": "q4_0"})
        at_s = await site.settled()
        ran_s = site.measured[-1][0]
        asking = asyncio.create_task(answers(gateway, at_s + 300, scene)) if traffic else None
        if traffic:
            await asyncio.sleep(300)
            at_s = scene.now_s
        site.loss["q4_0"] = 0.9
        await asyncio.sleep(1200 if traffic else 5 * 3600)
        if asking is not None:
            asking.cancel()
        (told_s, alert), *_ = site.alerts(at_s)
        (step_s, step), *_ = site.decided("quality.step", at_s)
        (well_s, _), *_ = site.decided("quality.recovered", at_s)
        assert (alert.kind, step.outcome, site.kv_type) == ("quality.bad", "applied", "q8_0")
        if not traffic:
            assert told_s - ran_s == pytest.approx(4 * 3600, abs=61)
        assert step_s - told_s == pytest.approx(120)
        sign = site.decided("quality.early_sign", at_s)
        assert bool(sign) == traffic
        scene.row(
            "ΔPPL jump" + (", one request a second" if traffic else ", no traffic"),
            injected="perplexity under INT4 rises from +0.3 to +0.9" + (", nats per token by 0.3" if traffic else ""),
            detected=(
                told_s - at_s,
                "mean_nll of 100 requests asks for a light run: quality.delta_ppl above its limit"
                if traffic
                else "the light run every 4 h: quality.delta_ppl above its limit",
            ),
            action=f"alert at once; INT4 to INT8 after three bad runs, {step_s - told_s:g} s later",
            recovered=(well_s - step_s, "after the step: a light run says that it was enough"),
        )


async def answers(gateway: Gateway, worse_s: float, scene: Scene) -> None:
    """A request a second, whose tokens are less likely from a moment on."""
    number = 0
    while True:
        await asyncio.sleep(1)
        number += 1
        gateway.end_request(mean_nll=2.0 + number % 5 / 50 + (0.3 if scene.now_s > worse_s else 0.0))


@simulated
async def test_device_lost(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readings of the driver and two looks; then work is moved off the card, and back five minutes after it is
    there again."""
    card = GpuSample(0, "Card", 100, 50, 0.5, uuid="GPU-1")
    there = [card]
    monkeypatch.setattr(devices, "GPU_WAIT_S", 3600.0)  # however slow this machine's threads are
    driver = devices.Devices(scene.clock, run=lambda _: None, read_cards=lambda _: GpuReading(tuple(there)))

    async def cards() -> tuple[DeviceState, ...]:
        return tuple(each for each in await driver.sample() if each.kind == "gpu")

    async with scene.site(sample_devices=cards) as site:
        await site.set(scheduler={"mode": "gpu_only"})
        before = site.agent.policies.current()
        at_s = await site.settled()
        there.clear()
        await asyncio.sleep(100)
        (acted_s, decision), *_ = site.decided("fallback.device_missing", at_s)
        moved = site.agent.policies.current()
        there.append(card)
        back_s = scene.now_s
        await asyncio.sleep(400)
        (undone_s, _), *_ = site.decided("fallback.device_missing", back_s)
        assert acted_s - at_s <= 25
        assert (moved.scheduler.mode, moved.scheduler.prefill_device) == ("hybrid", "cpu")
        assert moved.engine.gpu_layers == 0
        assert site.agent.policies.current() == before
        scene.row(
            "device lost",
            injected="the driver lists the card no more, for 100 s",
            detected=(
                acted_s - at_s,
                "device.present at two readings (10 s apart) and two looks, fallback.device_missing",
            ),
            action="scheduler to cpu, no layers on the card, more kept in full precision: "
            f"{decision.outcome} (this engine has no scheduler)",
            recovered=(undone_s - back_s, "after the card is back: undone once it was there for 300 s"),
        )
    await driver.close()
