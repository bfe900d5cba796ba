"""The agent put together: from settings and addresses to a process that answers."""

import asyncio
import logging
import os
import random
import socket
from collections.abc import Callable, Mapping
from datetime import time
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from aiohttp import web

from sekisho.control import actuators
from sekisho.control.actuators.base import Swapper
from sekisho.control.actuators.swapping import WhereIsIt
from sekisho.control.address import TokenUnusable, clear_address, token_for, write_address
from sekisho.control.agent import Agent, Parts
from sekisho.control.api.door import Door
from sekisho.control.api.events import EventBus
from sekisho.control.api.routes import application
from sekisho.control.balancer import Balancer
from sekisho.control.base import Actuator, ActuatorFailed, Applied, EngineState
from sekisho.control.capabilities import CapabilitiesAnswer, Probed, Prober
from sekisho.control.config import DEFAULT_PORT, ControlConfig
from sekisho.control.devices import Devices
from sekisho.control.fallback import Fallbacks
from sekisho.control.feed import Batch, Feed
from sekisho.control.history import History
from sekisho.control.notification import Alert, HttpSender, OutboundNotifier
from sekisho.control.notification import Target as WebhookTarget
from sekisho.control.perplexity import texts
from sekisho.control.perplexity.base import Unmeasured
from sekisho.control.perplexity.measure import ROUTES, Target
from sekisho.control.policy import Policy
from sekisho.control.policy_book import BookInUse, BookUnwritable, PolicyBook
from sekisho.control.policy_changes import PolicyProblem, merged
from sekisho.control.policy_service import Cause
from sekisho.control.quality_schedule import ScheduleSettings
from sekisho.control.quality_watch import QualitySettings, QualityWatch
from sekisho.control.reactions import Reactions, read_overlay
from sekisho.control.totals import Totals
from sekisho.control.window import Window
from sekisho.core.clock import Clock, SystemClock
from sekisho.engines import gguf_header
from sekisho.engines.config import ModelConfig
from sekisho.engines.llama_worker import model_path
from sekisho.engines.worker_process import WorkerError
from sekisho.ops.home import Home

log = logging.getLogger("sekisho.control")

GOODBYE_S = 1.0  # how long answers that never end by themselves (events) keep the agent from ending


class EngineAddress(NamedTuple):
    """`config`: as the settings have it; a policy lies upon that. `url` ends in /v1; `key` is what the engine asks for.
    `placed`: settings and address of a worker of ours now, for both change with each exchange."""

    config: ModelConfig
    url: str | None
    key: str | None = None
    placed: WhereIsIt | None = None


class Place(NamedTuple):
    """Where the agent works. `gateway_url` and `worker_key` None: there is no gateway of ours in front. `swapper` None:
    nobody can start engines anew. `changes`: of the policy, that the environment asks for."""

    home: Home
    config: ControlConfig
    engines: tuple[EngineAddress, ...]
    gateway_url: str | None = None
    worker_key: str | None = None
    swapper: Swapper | None = None
    changes: Mapping[str, Any] = MappingProxyType({})

    @property
    def folder(self) -> Path:
        return self.home.path / "control"


async def serve(place: Place, announce: Callable[[str, str | None], None]) -> None:
    """Runs until it is cancelled. `announce` is told the address, and the token where it was made just now. Raises
    OSError where the port cannot be had or another agent is at work (it may be about to end), PolicyProblem and
    PolicyBookError for what a person must mend."""
    clock = SystemClock()
    try:
        token, is_new = token_for(place.home.secrets)
    except TokenUnusable as error:
        raise PolicyProblem("token", str(error)) from error
    async with _Assembled(place, clock) as agent:
        await _follow_environment(agent, place.changes)
        app = application(agent, Door(token, place.config.cors_origins))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=GOODBYE_S)
        await runner.setup()
        try:
            listening = listen(place.config.port)
            await web.SockSite(runner, listening).start()
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            write_address(place.home.run, url)
            announce(url, token if is_new else None)
            await agent.run()
        finally:
            clear_address(place.home.run)
            await runner.cleanup()


async def _follow_environment(agent: Agent, changes: Mapping[str, Any]) -> None:
    """What the environment asks for is in force from the start; where it is so already, nothing is written."""
    current = agent.policies.current()
    if changes and merged(current, changes) != current:
        cause = Cause("api", "environment", "environment", "variables of the environment ask for it")
        try:
            await agent.policies.change(changes, cause, by="environment")
        except BookUnwritable as error:
            log.error("what the environment asks for is not in force: %s", error)


def listen(port: int) -> socket.socket:
    """A listening socket on loopback. The usual port gives way to any free one where somebody has it; one that was
    chosen does not: raises OSError."""
    try:
        return _bound(port)
    except OSError:
        if port != DEFAULT_PORT:
            raise
        log.warning("port %d is taken: the agent takes another one", port)
        return _bound(0)


def _bound(port: int) -> socket.socket:
    listening = socket.socket()
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    return listening


class _Assembled:
    """The agent with all that it needs, closed again in the opposite order."""

    def __init__(self, place: Place, clock: Clock) -> None:
        self._place = place
        self._clock = clock

    async def __aenter__(self) -> Agent:
        place, clock, folder = self._place, self._clock, self._place.folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        book = _opened(folder, clock)
        hands = {engine.config.name: _hand(engine, place.swapper) for engine in place.engines}
        lemonade = _lemonade(place.engines)
        devices = Devices(clock, lemonade_url=lemonade and lemonade.url, lemonade_key=lemonade and lemonade.key)
        bus, window, feed = EventBus(), Window(place.config.window_s, clock=clock), self._feed()
        if feed is None:
            window.take(Batch(reason="no gateway of Sekisho is in front: requests are not seen"))
        parts = Parts(
            clock,
            book,
            History(folder / "history", clock),
            window,
            Totals(clock),
            hands,
            feed,
            devices.sample,
            bus,
        )
        agent = Agent(place.config, parts)
        notifier = self._notifier()
        agent.unsent = lambda: notifier.unsent
        self._agent, self._devices, self._alerts = agent, devices, notifier

        self._probed = Probed(Prober(), folder / "capabilities.json")
        await asyncio.to_thread(self._probed.read)

        def tell(alert: Alert) -> None:
            notifier.notify(alert)
            bus.publish("alert", alert.at, alert)

        self._quality = self._watch_quality(agent, bus, tell)
        agent.watchers += [self._quality.give_way, self._reactions(agent, tell).watch]
        agent.slow_watchers.append(self._quality.watch)
        agent.quality_of = self._quality.view_of
        agent.measure = self._quality.measure

        async def probe(refresh: bool) -> CapabilitiesAnswer:
            return await asyncio.to_thread(lambda: self._probed.answer(clock.now(), refresh=refresh))

        agent.probe = probe
        return agent

    async def __aexit__(self, *_: object) -> None:
        await self._quality.close()
        await self._alerts.close()
        await self._devices.close()
        await self._agent.close()

    def _feed(self) -> Feed | None:
        if self._place.gateway_url is None or self._place.worker_key is None:
            return None
        return Feed(self._place.gateway_url, self._place.worker_key)

    def _notifier(self) -> OutboundNotifier:
        config = self._place.config
        senders: tuple[HttpSender, ...] = ()
        if config.webhook_url is not None:
            target = WebhookTarget("webhook", config.webhook_url, key_env=config.webhook_key_env)
            senders = (HttpSender("webhook", target),)
        return OutboundNotifier(senders, self._clock, random.Random())

    def _reactions(self, agent: Agent, tell: Callable[[Alert], None]) -> Reactions:
        overlay_file = self._place.folder / "overlay.json"
        overlay = read_overlay(overlay_file)
        fallbacks = Fallbacks(random.Random(), overlay=overlay, kv_types=self._kv_types)
        balancer = Balancer(overlay=overlay, layers=_layers(self._place.engines), kv_types=self._kv_types)
        return Reactions(agent.policies, fallbacks, balancer, tell, self._clock, overlay_file, lambda: agent.config.act)

    def _kv_types(self) -> frozenset[str] | None:
        """Those that llama.cpp runs here; None where no engine is llama.cpp of this machine, or it is not known."""
        ours = any(engine.config.engine == "llama_cpp" for engine in self._place.engines)
        return self._probed.kv_types if ours else None

    def _watch_quality(self, agent: Agent, bus: EventBus, tell: Callable[[Alert], None]) -> QualityWatch:
        chosen = self._place.config.quality
        hour, minute = (int(part) for part in chosen.full_at.split(":"))
        schedule = ScheduleSettings(
            time(hour, minute),
            chosen.light_every_h * 3600.0,
            None if chosen.zone is None else ZoneInfo(chosen.zone),
        )
        folder = self._place.folder / "quality"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = QualitySettings(
            folder,
            self._text(chosen.text, tell),
            schedule,
            chosen.enabled,
            step_back_after=chosen.step_back_after,
        )
        targets = {
            engine.config.name: partial(_target, engine)
            for engine in self._place.engines
            if engine.config.engine in ROUTES and engine.url is not None
        }
        return QualityWatch(
            settings,
            targets,
            agent.policies,
            agent.history,
            bus,
            tell,
            self._clock,
            acts=lambda: "quality" in agent.config.act,
            kv_types=self._kv_types,
        )

    def _text(self, path: str | None, tell: Callable[[Alert], None]) -> texts.Text:
        """The built-in one where a text of one's own is gone: a wrong part does not end the whole."""
        try:
            return texts.built_in() if path is None else texts.own(Path(path))
        except Unmeasured as error:
            why = f"{error}; the built-in text is measured on instead"
            tell(Alert("quality.text", "agent", "warning", why, self._clock.now(), {"path": path}))
            return texts.built_in()


class _Unreachable:
    """In the place of an engine that cannot be talked to at all: it is down, with the reason, and takes nothing."""

    def __init__(self, model: str, engine: str, why: str) -> None:
        self.model, self.engine, self._why = model, engine, why

    async def state(self) -> EngineState:
        return EngineState(self.model, self.engine, "down", self._why)

    async def plan(self, policy: Policy) -> tuple[Applied, ...]:
        raise ActuatorFailed(self._why)

    async def apply(self, policy: Policy) -> tuple[Applied, ...]:
        raise ActuatorFailed(self._why)

    async def close(self) -> None:
        return


def _hand(engine: EngineAddress, swapper: Swapper | None) -> Actuator:
    try:
        return actuators.create(engine.config, engine.url, engine.key, swapper, engine.placed)
    except (ActuatorFailed, ValueError) as error:
        log.error("%s", error)
        return _Unreachable(engine.config.name, engine.config.engine, str(error))


def _opened(folder: Path, clock: Clock) -> PolicyBook:
    """Another agent that has the book may be about to end: no fault that a person must mend."""
    try:
        return PolicyBook(folder, clock)
    except BookInUse as error:
        raise OSError(f"another control agent is at work: {error}") from error


def _lemonade(engines: tuple[EngineAddress, ...]) -> EngineAddress | None:
    """The first Lemonade server, at its root: it tells of an NPU, which nothing else here does."""
    for engine in engines:
        if engine.config.options.get("actuator") == "lemonade" and engine.url is not None:
            return engine._replace(url=engine.url.removesuffix("/v1"))
    return None


def _layers(engines: tuple[EngineAddress, ...]) -> int | None:
    """The fewest layers of a model of llama.cpp, so that a common number of layers on the card means something for all;
    None where no file tells. Reads the files' heads."""
    counts = []
    for engine in engines:
        if engine.config.engine == "llama_cpp":
            try:
                told = gguf_header.values(model_path(engine.config), ("block_count",)).get("block_count")
            except (OSError, ValueError, WorkerError) as error:
                log.info("the layers of %s are not known: %s", engine.config.name, error)
                continue
            counts += [told] if isinstance(told, int) else []
    return min(counts, default=None)


def _target(engine: EngineAddress) -> Target:
    """What is measured: the settings that are in force now, at the engine's root."""
    placed = engine.placed() if engine.placed is not None else None
    config, url = (placed.config, placed.url) if placed is not None else (engine.config, engine.url)
    return Target(config, None if url is None else url.removesuffix("/v1"), engine.key)
