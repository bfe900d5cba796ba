"""The agent put together: from settings and addresses to a process that answers."""

import asyncio
import logging
import os
import random
import socket
from collections.abc import Callable
from datetime import time
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
from aiohttp import web

from sekisho.control import actuators
from sekisho.control.actuators.base import Swapper
from sekisho.control.address import clear_address, token_for, write_address
from sekisho.control.agent import Agent, Parts
from sekisho.control.api.door import Door
from sekisho.control.api.events import EventBus
from sekisho.control.api.routes import application
from sekisho.control.balancer import Balancer
from sekisho.control.base import Actuator
from sekisho.control.capabilities import Capabilities, Prober
from sekisho.control.config import DEFAULT_PORT, ControlConfig
from sekisho.control.devices import Devices
from sekisho.control.fallback import Fallbacks
from sekisho.control.feed import Feed
from sekisho.control.history import History
from sekisho.control.notification import Alert, HttpSender, OutboundNotifier
from sekisho.control.notification import Target as WebhookTarget
from sekisho.control.perplexity import texts
from sekisho.control.perplexity.measure import ROUTES, Target
from sekisho.control.policy_book import PolicyBook
from sekisho.control.quality_schedule import ScheduleSettings
from sekisho.control.quality_watch import QualitySettings, QualityWatch
from sekisho.control.reactions import Reactions, read_overlay
from sekisho.control.totals import Totals
from sekisho.control.window import Window
from sekisho.core.clock import Clock, SystemClock
from sekisho.engines.config import ModelConfig
from sekisho.ops.home import Home

log = logging.getLogger("sekisho.control")


class EngineAddress(msgspec.Struct, frozen=True):
    """`url` ends in /v1; `key` is what the engine asks for."""

    config: ModelConfig
    url: str | None
    key: str | None = None


class Place(msgspec.Struct, frozen=True):
    """Where the agent works. `gateway_url` and `worker_key` None: there is no gateway of ours in front."""

    home: Home
    config: ControlConfig
    engines: tuple[EngineAddress, ...]
    gateway_url: str | None = None
    worker_key: str | None = None

    @property
    def folder(self) -> Path:
        return self.home.path / "control"


async def serve(place: Place, swapper: Swapper | None, announce: Callable[[str, str | None], None]) -> None:
    """Runs until it is cancelled. `announce` is told the address, and the token where it was made just now."""
    clock = SystemClock()
    token, is_new = token_for(place.home.secrets)
    async with _Assembled(place, swapper, clock) as agent:
        runner = web.AppRunner(application(agent, Door(token, place.config.cors_origins)), access_log=None)
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

    def __init__(self, place: Place, swapper: Swapper | None, clock: Clock) -> None:
        self._place = place
        self._swapper = swapper
        self._clock = clock

    async def __aenter__(self) -> Agent:
        place, clock, folder = self._place, self._clock, self._place.folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        hands = {
            engine.config.name: actuators.create(engine.config, engine.url, engine.key, self._swapper)
            for engine in place.engines
        }
        devices = Devices(clock)
        bus = EventBus()
        parts = Parts(
            clock,
            PolicyBook(folder, clock),
            History(folder / "history", clock),
            Window(place.config.window_s, clock=clock),
            Totals(clock),
            hands,
            self._feed(),
            devices.sample,
            bus,
        )
        agent = Agent(place.config, parts)
        notifier = self._notifier()
        self._agent, self._devices, self._alerts = agent, devices, notifier

        def tell(alert: Alert) -> None:
            notifier.notify(alert)
            bus.publish("alert", alert.at, alert)

        self._quality = self._watch_quality(agent, bus, tell, hands)
        agent.watchers.append(self._reactions(agent, tell).watch)
        agent.slow_watchers.append(self._quality.watch)
        agent.quality_of = self._quality.view_of
        agent.measure = self._quality.measure
        prober = Prober()

        async def probe(refresh: bool) -> Capabilities:
            file = folder / "capabilities.json"
            return await asyncio.to_thread(lambda: prober.cached(file, clock.now(), refresh=refresh))

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
        act = self._place.config.act
        overlay_file = self._place.folder / "overlay.json"
        overlay = read_overlay(overlay_file)
        fallbacks = Fallbacks(random.Random(), overlay=overlay, acts="fallback" in act)
        balancer = Balancer(overlay=overlay) if "balance" in act else None
        return Reactions(agent.policies, fallbacks, balancer, tell, self._clock, overlay_file)

    def _watch_quality(
        self, agent: Agent, bus: EventBus, tell: Callable[[Alert], None], hands: "dict[str, Actuator]"
    ) -> QualityWatch:
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
            texts.built_in() if chosen.text is None else texts.own(Path(chosen.text)),
            schedule,
            chosen.enabled,
            "quality" in self._place.config.act,
            chosen.step_back_after,
        )
        targets = {
            engine.config.name: partial(_target, hands[engine.config.name], engine)
            for engine in self._place.engines
            if engine.config.engine in ROUTES and engine.url is not None
        }
        return QualityWatch(settings, targets, agent.policies, agent.history, bus, tell, self._clock)


def _target(hand: Actuator, engine: EngineAddress) -> Target:
    """What is measured: the settings that are in force now, at the engine's root."""
    config = getattr(hand, "config", engine.config)
    root = None if engine.url is None else engine.url.removesuffix("/v1")
    return Target(config, root, engine.key)
