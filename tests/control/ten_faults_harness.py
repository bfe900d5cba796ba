"""A whole agent in virtual time: its own loops at their usual periods, real fallbacks, balancer, quality loop,
notifier, book and history; only the engine, the cards' driver, the gateway's answers and the way out are values. Beside
it the frame of a test that puts a fault into it."""

import asyncio
import contextlib
import functools
import random
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zoneinfo import ZoneInfo

import msgspec
from agent_harness import PERSON, ValueEngine, no_devices
from fault_table import Table
from quality_harness import compared
from virtual_time import VirtualLoop, in_virtual_time

from sekisho.control.agent import Agent, Parts
from sekisho.control.api.events import EventBus
from sekisho.control.balancer import Balancer
from sekisho.control.base import ActuatorFailed, Applied, Decision, EngineState, Sample
from sekisho.control.config import ControlConfig
from sekisho.control.fallback import Fallbacks
from sekisho.control.feed import Feed, FeedTrouble
from sekisho.control.feed_answer import FeedAnswer
from sekisho.control.history import History
from sekisho.control.notification import Alert, AlertFailed, OutboundNotifier, Sender
from sekisho.control.perplexity import texts
from sekisho.control.perplexity.measure import Compared, Target
from sekisho.control.policy import Policy
from sekisho.control.policy_book import PolicyBook, Version
from sekisho.control.quality_schedule import ScheduleSettings
from sekisho.control.quality_watch import QualitySettings, QualityWatch
from sekisho.control.reactions import Reactions, read_overlay
from sekisho.control.totals import Totals
from sekisho.control.window import Window
from sekisho.core.clock import ManualClock
from sekisho.engines.config import ModelConfig

READY = EngineState("m", "value", "ready", slots=4)


class Engine(ValueEngine):
    """Can die, hang, and run out of memory while it loads."""

    def __init__(self) -> None:
        super().__init__("m")
        self.state_now = READY
        self.answering = asyncio.Event()
        self.answering.set()
        self.load_s: float | None = None

    async def state(self) -> EngineState:
        await self.answering.wait()
        return await super().state()

    async def apply(self, policy: Policy) -> tuple[Applied, ...]:
        if self.load_s is not None:
            await asyncio.sleep(self.load_s)
            raise ActuatorFailed("m: the swap failed: the new worker ended with 1; the one before goes on as it was")
        return await super().apply(policy)

    def die(self) -> None:
        """What was set while it ran is lost with it."""
        self.state_now = msgspec.structs.replace(READY, state="down", reason="connection refused")
        self.policy = Policy()

    def come_back(self) -> None:
        self.state_now = READY


class SlowDisk:
    """`write_s`: how long each write takes."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.write_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def wait(self) -> None:
        assert isinstance(self._loop, VirtualLoop)
        if threading.get_ident() == self._thread:
            self.clock.advance(self.write_s)  # nothing else runs meanwhile
        elif self.write_s:
            self._loop.sleep_in_thread(self.write_s)


class SlowHistory(History):
    disk: SlowDisk

    def append(self, kind: str, record: Any) -> bool:
        self.disk.wait()
        return super().append(kind, record)


class SlowBook(PolicyBook):
    disk: SlowDisk

    def change(self, *arguments: Any, **named: Any) -> Version:
        self.disk.wait()
        return super().change(*arguments, **named)


class Gateway(Feed):
    """The feed, with a gateway that answers from memory while `up` is set."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1", "key", chance=random.Random(1))
        self.up = True
        self.broken = asyncio.Event()
        self.samples: list[Sample] = []
        self.news = asyncio.Event()

    async def _get(self, query: dict[str, str], timeout_s: float) -> tuple[int, bytes]:
        after = int(query["after"])
        waiting = [asyncio.ensure_future(each.wait()) for each in (self.broken, self.news)]
        if self.up and len(self.samples) <= after:
            await asyncio.wait(waiting, timeout=float(query["wait_s"]), return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()
        if not self.up:
            raise FeedTrouble("the gateway does not answer: connection refused")
        self.news.clear()
        new = tuple(self.samples[after:])
        return 200, msgspec.json.encode(FeedAnswer("g", 1000.0, len(self.samples), new, (0.0,) * len(new), ()))

    def break_down(self) -> None:
        self.up = False
        self.broken.set()

    def mend(self) -> None:
        self.up = True
        self.broken.clear()

    def end_request(self, **changes: Any) -> None:
        number = len(self.samples) + 1
        told = Sample(number, "m", 0.0, 100.0, 10.0, 5, 20, "ok")
        self.samples.append(msgspec.structs.replace(told, **changes))
        self.news.set()


class Post:
    """A way out that fails while `up` is not set. `arrived`: when each alert did."""

    name = "post"

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.up = True
        self.arrived: list[tuple[float, Alert]] = []

    async def send(self, alert: Alert, delivery: str, now: float) -> None:
        if not self.up:
            raise AlertFailed("ClientConnectorError")
        self.arrived.append((self.clock.monotonic(), alert))

    async def close(self) -> None:
        return


class _Bus(EventBus):
    """Remembers when what was published."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock
        self.told: list[tuple[float, str, Any]] = []

    def publish(self, kind: str, at: float, data: Any) -> None:
        self.told.append((self._clock.monotonic(), kind, data))
        super().publish(kind, at, data)


class Site:
    """`async with` runs the agent. `loss`: of quality by KV type, as a measurement finds it."""

    def __init__(
        self,
        folder: Path,
        clock: ManualClock,
        *,
        feed: Gateway | None = None,
        senders: tuple[Sender, ...] = (),
        sample_devices: Any = no_devices,
        engine: Engine | None = None,
    ) -> None:
        self.clock, self.folder = clock, folder
        self.engine = engine or Engine()
        self.disk = SlowDisk(clock)
        self.bus = _Bus(clock)
        self.loss = {"f16": 0.0, "q8_0": 0.2, "q4_0": 0.3}
        self.measured: list[tuple[float, str]] = []
        history, book = SlowHistory(folder / "history", clock), SlowBook(folder / "policy", clock)
        history.disk = book.disk = self.disk
        window, engines = Window(60.0, clock=clock), {"m": self.engine}
        parts = Parts(clock, book, history, window, Totals(clock), engines, feed, sample_devices, self.bus)
        self.agent = Agent(ControlConfig(), parts)
        self.notifier = OutboundNotifier(senders, clock, random.Random(1))
        self.agent.unsent = lambda: self.notifier.unsent
        overlay = read_overlay(folder / "overlay.json")
        self.reactions = Reactions(
            self.agent.policies,
            Fallbacks(random.Random(1), overlay=overlay),
            Balancer(overlay=overlay),
            self._tell,
            clock,
            folder / "overlay.json",
        )
        schedule = ScheduleSettings(zone=ZoneInfo("UTC"))
        (folder / "quality").mkdir(exist_ok=True)
        settings = QualitySettings(folder / "quality", texts.built_in(), schedule)
        self.quality = QualityWatch(
            settings,
            {"m": self._target},
            self.agent.policies,
            history,
            self.bus,
            self._tell,
            clock,
            self._compare,
        )
        self.agent.watchers += [self.quality.give_way, self.reactions.watch]
        self.agent.slow_watchers.append(self.quality.watch)
        self.agent.quality_of = self.quality.view_of
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.agent.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As abrupt as a kill: nothing is written any more."""
        assert self._running is not None
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        await self.quality.close()
        await self.notifier.close()
        await self.agent.close()

    def _tell(self, alert: Alert) -> None:
        self.notifier.notify(alert)
        self.bus.publish("alert", alert.at, alert)

    @property
    def kv_type(self) -> Any:
        return self.engine.policy.kv.key_type or "f16"

    def _target(self) -> Target:
        return Target(ModelConfig(name="m", path="builtin", kv_type_k=self.kv_type, kv_type_v=self.kv_type))

    async def _compare(self, target: Target, job: Any, clock: Any, baselines: Any) -> Compared:
        self.measured.append((self.clock.monotonic(), job.kind))
        return compared("m", self.loss[target.config.kv_type_k], clock.now())

    async def settled(self) -> float:
        """The moment of the injection: a minute after the start, right after a look."""
        await asyncio.sleep(60.1)
        return self.clock.monotonic()

    async def set(self, **changes: Any) -> Any:
        return await self.agent.policies.change(changes, PERSON, by="api")

    def decided(self, rule: str, since_s: float = 0.0) -> list[tuple[float, Decision]]:
        """When, and what, since then, by the beginning of the rule's name."""
        found = [(at, data) for at, kind, data in self.bus.told if kind == "decision" and at >= since_s]
        return [(at, each) for at, each in found if each.rule.startswith(rule)]

    def alerts(self, since_s: float = 0.0) -> list[tuple[float, Alert]]:
        return [(at, data) for at, kind, data in self.bus.told if kind == "alert" and at >= since_s]

    async def health_names(self, word: str, within_s: float, named: bool = True) -> float:
        """Virtual moment from which a reason of the health names it, or none does any more."""
        end_s = self.clock.monotonic() + within_s
        while any(word in reason for reason in self.agent.health().reasons) is not named:
            assert self.clock.monotonic() < end_s, self.agent.health().reasons
            await asyncio.sleep(0.1)
        return self.clock.monotonic()

    async def health_without(self, word: str, within_s: float) -> float:
        return await self.health_names(word, within_s, named=False)


class Scene:
    """What a test of one fault has: virtual time, sites that share a folder, and the table that its row goes into."""

    def __init__(self, folder: Path, table: Table, clock: ManualClock) -> None:
        self.clock = clock
        self.site = functools.partial(Site, folder, clock)
        self._table = table

    @property
    def now_s(self) -> float:
        return self.clock.monotonic()

    def row(
        self,
        fault: str,
        injected: str,
        *,
        detected: tuple[float | None, str],
        action: str,
        recovered: tuple[float, str],
    ) -> None:
        """`detected`: seconds after the injection, None: not, and by what. `recovered`: seconds, and since when."""
        self._table.add(
            fault,
            injected=injected,
            detected_s=detected[0],
            detected_by=detected[1],
            action=action,
            recovered_s=recovered[0],
            recovered_since=recovered[1],
        )


def simulated(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs a test in virtual time, in a scene that the fixture of this name makes of a clock."""

    @functools.wraps(test)
    def run(scene: Callable[[ManualClock], Scene], **fixtures: Any) -> None:
        in_virtual_time(lambda clock: test(scene(clock), **fixtures))

    return run
