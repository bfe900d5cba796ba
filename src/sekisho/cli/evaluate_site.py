"""What `evaluate` and `bench` measure: the places of a running server, or an address elsewhere, with their keys."""

import os
import shlex
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sekisho.cli.aiming import aimed, is_ours
from sekisho.cli.failure import USAGE, CommandFailed
from sekisho.cli.options import settings_of
from sekisho.cli.output import Output

if TYPE_CHECKING:
    from sekisho.engines.config import ModelConfig
    from sekisho.evaluate.client.target import Place, Target
    from sekisho.evaluate.environment import Section
    from sekisho.evaluate.gpu_check import GpuPhases
    from sekisho.evaluate.progress import Progress
    from sekisho.evaluate.speed import cold
    from sekisho.ops.home import Home
    from sekisho.settings import Settings

    Cards = Callable[[Callable[[], Awaitable[object]]], Awaitable[GpuPhases]]


class Where:
    """What the options of a command say about where to measure."""

    def __init__(
        self,
        *,
        url: str | None = None,
        key: str | None = None,
        model: str | None = None,
        public: str | None = None,
        restart: str | None = None,
    ) -> None:
        self.url, self.key, self.model, self.public, self.restart = url, key, model, public, restart


class Found:
    """Targets by place, from the engine outwards; `ours` False: an address elsewhere. `model`: its line of settings."""

    def __init__(self, targets: "dict[Place, Target]", settings: "Settings", model: "ModelConfig | None") -> None:
        self.targets, self.settings, self.model = targets, settings, model

    @property
    def ours(self) -> bool:
        return self.model is not None

    @property
    def outermost(self) -> "Target":
        return list(self.targets.values())[-1]


@contextmanager
def places(out: Output, place: "Home", purpose: str, where: Where, lasts_s: float) -> "Iterator[Found]":
    """On this machine's own server: its engine, its gateway with a key for this run alone, and the public address where
    one is named or set. Elsewhere: that address. Not inside a running loop. Raises CommandFailed, SekishoError."""
    settings = settings_of(place)
    url, key, model = where.url, where.key, where.model
    with aimed(out, place, purpose, url=url, key=key, model=model, lasts_s=lasts_s) as target:
        if where.url is not None and not is_ours(place, where.url):
            yield Found({target.place: target}, settings, None)
            return
        line = settings.model(target.model)
        if line is None:
            raise CommandFailed(f"{target.model}: no such model", exit_code=USAGE)
        found: dict[Place, Target] = {}
        engine = _engine(place, line)
        if engine is not None:
            found["engine"] = engine
        found["gateway"] = target
        public = where.public or settings.gateway.public_url
        if public is not None:
            found["public"] = _public(public, target)
        yield Found(found, settings, line)


def restarter(place: "Home", found: Found, command: str | None) -> "tuple[cold.Restarter | None, str]":
    """How the engine is restarted for a cold start, or why it cannot be."""
    from sekisho.evaluate.speed import cold
    from sekisho.ops.engine_door import restart_engine

    if command:
        try:
            argv = shlex.split(command)
        except ValueError as error:
            raise CommandFailed(f"--restart-command: {error}", exit_code=USAGE) from error
        return cold.by_command(argv, found.outermost), ""
    if found.model is not None and found.model.has_worker:
        return cold.by_our_door(partial(restart_engine, place, found.model.name)), ""
    return None, "the engine is not started by this server: name the command that restarts it with --restart-command"


def cards_of(place: "Home", found: Found) -> "Cards | None":
    """What looks at the graphics cards around a restart of our engine; None without cards or such an engine."""
    from sekisho.evaluate.gpu_check import measure_restart
    from sekisho.ops.gpu_sample import read_gpus

    if found.model is None or not found.model.has_worker or not read_gpus().gpus:
        return None
    return partial(measure_restart, place, found.model.name)


def held_characters(place: "Home", found: Found) -> int | None:
    """How much of a stream our gateway holds back until it is judged; None for other gateways."""
    from sekisho.cli.guard import of_the_running_server
    from sekisho.cli.guard_figures import judge_of

    guard = of_the_running_server(place) or found.settings.guard
    if not found.ours or guard.mode == "off" or not guard.output:
        return None
    return max(guard.hold_back_chars, judge_of(place, found.settings).longest_match())


async def environment(place: "Home", found: Found, progress: "Progress") -> "tuple[Section, ...]":
    """Machine, software, engine and model, settings without secrets."""
    import asyncio

    from sekisho.cli.incident import masked_settings, versions
    from sekisho.evaluate import environment as told
    from sekisho.ops.hardware import detect

    sections = [
        told.machine(await asyncio.to_thread(detect, place.path)),
        told.software(await asyncio.to_thread(versions)),
        await told.engine(tuple(found.targets.values()), _file(found.model), progress),
    ]
    if found.ours:
        settings: dict[str, Any] = masked_settings(found.settings)
        sections.append(told.settings(settings))
    return tuple(sections)


def _engine(place: "Home", line: "ModelConfig") -> "Target | None":
    """The engine's own address; None where it has none that could be asked."""
    import asyncio

    from sekisho.evaluate.client.target import Key, Target
    from sekisho.ops.engine_door import engine_door

    if line.has_worker:
        door = asyncio.run(engine_door(place, line.name))
        return Target("engine", door.url, line.name, Key(door.key.reveal()))
    if line.engine == "openai_http" and line.url is not None:
        return Target("engine", line.url, line.upstream_model or line.name, _upstream_key(line))
    return None


def _public(address: str, gateway: "Target") -> "Target":
    from sekisho.evaluate.client.target import Target

    return Target("public", address, gateway.model, gateway.key)


def _upstream_key(line: "ModelConfig") -> Any:
    from sekisho.evaluate.client.target import read_key

    if line.api_key_env is not None:
        return read_key(f"env:{line.api_key_env}")
    if line.api_key_file is not None:
        return read_key(f"file:{line.api_key_file}")
    return None


def _file(line: "ModelConfig | None") -> Path | None:
    from sekisho.engines import builtin

    if line is None or line.path is None:
        return None
    path = builtin.path() if line.path == "builtin" else Path(line.path).expanduser()
    return path if path.is_file() and os.access(path, os.R_OK) else None
