"""Of the ten faults (see test_ten_faults) those that meet the agent itself and what it leans on, in virtual time."""

import asyncio
import errno
from typing import Any

import msgspec
import pytest
from agent_harness import no_devices
from faults_harness import FULL, MEMORY
from ten_faults_harness import Engine, Gateway, Post, Scene, simulated

from sekisho.control.base import DeviceState


@simulated
async def test_agent_killed(scene: Scene) -> None:
    """Killed while its answer to full memory is in force: the next agent has policy, history and overlay, and undoes
    what nothing asks for any more."""
    memory = [FULL]

    async def devices_now() -> tuple[DeviceState, ...]:
        return (memory[0],)

    engine = Engine()
    async with scene.site(sample_devices=devices_now, engine=engine) as site:
        await site.set(quality={"max_delta_ppl": 0.25})
        before = site.agent.policies.current()
        await site.settled()
        await asyncio.sleep(60)  # a minute in which memory may say nothing: something was measured or exchanged
        answered = site.agent.policies.current()
        last = site.decided("")[-1][1].number
        assert answered != before
    memory[0] = MEMORY
    await asyncio.sleep(1)
    async with scene.site(sample_devices=devices_now, engine=engine) as again:
        start_s = scene.now_s
        assert again.agent.policies.current() == answered
        await asyncio.sleep(120)
        (undone_s, first), *_ = again.decided("fallback", start_s)
        assert again.agent.policies.current() == before
        assert again.engine.policy == before
        assert first.number > last
        scene.row(
            "agent killed, its answer to full memory in force",
            injected="the agent is gone without a word; the memory is free again meanwhile",
            detected=(None, "nobody here; the supervisor sees it end (below)"),
            action="the next agent reads policy, history and overlay and undoes what nothing asks for any more",
            recovered=(undone_s - start_s, "after the next agent's start"),
        )


@simulated
async def test_agent_stopped(scene: Scene) -> None:
    """Nobody sees an agent that stands still; once it goes on it notices by itself and tells it. No policy changes."""
    async with scene.site() as site:
        await site.set(kv={"mode": "throughput_optimized"})
        before = site.agent.policies.current()
        at_s = await site.settled()
        scene.clock.advance(300)  # the process is stopped: nothing of it runs
        on_s = scene.now_s
        await asyncio.sleep(120)
        (told_s, told), (over_s, _) = site.decided("fallback.agent_silent", on_s)
        (_, alert), *_ = site.alerts(on_s)
        assert told_s - on_s < 0.2
        assert told.outcome == "advised"
        assert alert.kind == "fallback.agent_silent"
        assert site.agent.policies.current() == before
        scene.row(
            "agent stopped (SIGSTOP)",
            injected="the agent's process stands still for 300 s",
            detected=(
                told_s - at_s,
                "itself, once it goes on: agent.silent_s above 120, fallback.agent_silent; else nobody",
            ),
            action="alert; the policy stays",
            recovered=(over_s - on_s, "after it goes on: said to be over"),
        )


@simulated
async def test_slow_disk(scene: Scene) -> None:
    """A change of policy waits for book and history, and the loops with it: the health says that they are late. What
    the slow loop writes holds nobody up. Nothing is lost."""
    async with scene.site() as site:
        at_s = await site.settled()
        site.disk.write_s = 8.0
        change = asyncio.create_task(site.set(kv={"recent_window": 100}))
        late_s = await site.health_names("late", 60)
        assert (await change).outcome == "applied"
        written_s = scene.now_s
        well_s = await site.health_without("late", 30)
        await asyncio.sleep(180)
        runs = {loop.name: loop for loop in site.agent.health().loops}
        assert runs["slow"].missed == 0
        site.disk.write_s = 0.0
        await site.set(kv={"recent_window": 101})
        assert site.agent.history.lost == 0
        assert site.agent.policies.current().kv.recent_window == 101
        assert site.decided("fallback", at_s) == []
        assert late_s - at_s == pytest.approx(16.0, abs=0.2)
        scene.row(
            "slow disk",
            injected="each write takes 8 s; somebody changes the policy",
            detected=(late_s - at_s, "lateness of the fast and middle loops, in the health; no alert below 120 s"),
            action="none: the change waits for its two writes, and every loop with it",
            recovered=(well_s - written_s, "after the change was written: all loops in time again"),
        )


@simulated
async def test_disk_that_takes_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the history cannot write is counted and told in the health; the loops go on, and so does the history once
    there is room."""

    def full(self: Any, line: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with scene.site() as site:
        at_s = await site.settled()
        with monkeypatch.context() as patch:
            patch.setattr("sekisho.control.history._Open.write", full)
            seen_s = await site.health_names("history cannot be written", 70)
            await asyncio.sleep(120)
            assert site.agent.history.lost == 3
        back_s = scene.now_s
        well_s = await site.health_without("history", 70)
        assert site.decided("fallback", at_s) == []
        scene.row(
            "full disk",
            injected="the disk takes nothing for two minutes",
            detected=(seen_s - at_s, "the history's next record, in log and health"),
            action="goes on without a history; what is lost is counted",
            recovered=(well_s - back_s, "after there is room: with the next record"),
        )


@pytest.mark.parametrize("days", [1, -1], ids=["ahead", "back"])
@simulated
async def test_clock_jump(scene: Scene, days: int) -> None:
    """No fallback, no emptied window, no alert; ahead, the full run that was missed is made up for once."""
    gateway = Gateway()
    async with scene.site(feed=gateway) as site:
        await site.set(kv={"key_type": "q8_0", "value_type": "q8_0"})
        at_s = await site.settled()
        gateway.end_request()
        await asyncio.sleep(1)
        scene.clock.jump(days * 86_400.0)
        await asyncio.sleep(30)
        assert site.agent.metrics(None)["requests"]["ok"] == 1
        await asyncio.sleep(3600)
        kinds = [(when, kind) for when, kind in site.measured if when > at_s]
        assert [kind for _, kind in kinds] == (["full"] if days > 0 else [])
        assert site.decided("fallback", at_s) == []
        assert site.alerts(at_s) == []
        assert site.agent.health().status == "healthy"
        scene.row(
            "clock jump, a day " + ("ahead" if days > 0 else "back"),
            injected="the wall clock moves, monotonic time does not",
            detected=(
                kinds[0][0] - at_s if kinds else None,
                "the schedule: a full run was missed" if kinds else "(nothing depends on it)",
            ),
            action="one full quality run" if kinds else "none needed",
            recovered=(0.0, "(nothing was disturbed)"),
        )


@simulated
async def test_metrics_endpoint_down(scene: Scene) -> None:
    """The running question breaks at once; figures say since when they are blind, and nothing is decided on them."""
    gateway = Gateway()
    async with scene.site(feed=gateway) as site:
        at_s = await site.settled()
        assert site.agent.health().status == "healthy"
        gateway.break_down()
        seen_s = await site.health_names("the gateway does not answer", 30)
        await asyncio.sleep(120)
        blind: dict[str, Any] = site.agent.metrics(None)
        assert "the gateway does not answer" in msgspec.json.encode(blind).decode()
        gateway.mend()
        back_s = scene.now_s
        well_s = await site.health_without("gateway", 30)
        gateway.end_request()
        await asyncio.sleep(1)
        assert site.agent.metrics(None)["requests"]["ok"] == 1
        assert site.decided("fallback", at_s) == []
        assert seen_s - at_s < 0.2
        assert well_s - back_s <= 13.2  # the longest pause with its chance share
        scene.row(
            "metrics endpoint down",
            injected="the gateway's feed refuses connections for 120 s",
            detected=(seen_s - at_s, "the feed's question that was waiting; in health and metrics; no alert"),
            action="figures of requests are null with the reason; asked again after 0.25 s, growing to 10 s",
            recovered=(well_s - back_s, "after it is back; requests that ended meanwhile are read then"),
        )


@simulated
async def test_notification_down(scene: Scene) -> None:
    """The log has the alert at once, the health says that it waits, and it arrives once the receiver is back."""
    post = Post(scene.clock)
    async with scene.site(senders=(post,), sample_devices=no_devices) as site:
        await site.settled()
        post.up = False
        site.engine.die()
        await asyncio.sleep(10)
        (told_s, alert), *_ = site.alerts()
        shown_s = await site.health_names("did not arrive", 10)
        site.engine.come_back()
        await asyncio.sleep(told_s + 60 - scene.now_s)
        post.up = True
        back_s = scene.now_s
        await asyncio.sleep(120)
        (arrived_s, first), *_ = post.arrived
        assert first == alert
        assert not any("did not arrive" in reason for reason in site.agent.health().reasons)
        assert shown_s - told_s <= 0.2
        scene.row(
            "notification down",
            injected="the receiver refuses for 60 s, from before an alert on",
            detected=(shown_s - told_s, "the failed send; in log and health"),
            action="sent again after 1 s, 2 s, 4 s, …: eight tries in two and a half minutes, then it is lost",
            recovered=(arrived_s - back_s, "after the receiver is back: the alert arrives, once"),
        )
