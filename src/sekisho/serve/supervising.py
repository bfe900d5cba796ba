"""The supervisor's process: it starts the children, tells who started it, and waits for the end."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sekisho import __version__
from sekisho.engines import worker_process
from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import GatewayConfig
from sekisho.ops.home import Home, RunState, clear_state, write_state
from sekisho.ops.listening import refusal
from sekisho.serve.agent_alerts import AGENT, AgentAlerts
from sekisho.serve.plan import Plan, PlanFile, base_url, database_url, local_url, make_plan
from sekisho.settings import Settings

if TYPE_CHECKING:  # heavy, and the children do not need it
    from sekisho.ops.children_file import ChildStatus
    from sekisho.ops.control_door import ControlDoor
    from sekisho.ops.stability_log import Probe, StabilityLog
    from sekisho.ops.supervisor import ChildSpec, Supervisor
    from sekisho.ops.swap_board import SwapBoard

READY_TIMEOUT_S = 180.0
PROBE_TIMEOUT_S = 5.0
_ADMIN_SCOPES = frozenset({"chat", "embeddings", "admin", "control", "audit"})


class Announcement(msgspec.Struct, frozen=True):
    """What the person who started the server is told. `admin_key` is there at the first start only, `agent_token` when
    it was made just now."""

    url: str
    home: str
    models: tuple[str, ...]
    admin_key: str | None = None
    warnings: tuple[str, ...] = ()
    agent_token: str | None = None


class StartFailed(Exception):
    """The server cannot start. The text says why and what to do; `log_tail` holds the last lines of the culprit."""

    def __init__(self, message: str, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.log_tail = log_tail


def supervise(home: Home, settings: Settings, *, announce: Callable[[Announcement], None]) -> int:
    """Runs the server until SIGTERM or SIGINT; `announce` is called once it answers. Returns the exit code.

    Raises StartFailed, and `ops.instance_lock.AlreadyRunning` when this home is served already.
    """
    return asyncio.run(_supervise(home, settings, announce))


async def _supervise(home: Home, settings: Settings, announce: Callable[[Announcement], None]) -> int:
    from sekisho.ops.log_file import RedactedFormatter
    from sekisho.ops.stability_log import StabilityLog
    from sekisho.ops.supervisor import Supervisor

    handler = logging.StreamHandler()
    handler.setFormatter(RedactedFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    home.create()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        _on_signal(loop, number, stop.set)
    file, key = PlanFile(home, make_plan(home, settings)), worker_process.new_key()
    stability, alerts = StabilityLog(home), AgentAlerts(settings.control)
    supervisor = Supervisor(home.run, _children(home, file.plan, key), on_change=_onlooker(stability, alerts))
    await supervisor.claim()  # before anything is written: a second `up` must not replace the first one's plan
    listening = socket.create_server(("127.0.0.1", 0))
    file.plan = msgspec.structs.replace(file.plan, door=f"http://127.0.0.1:{listening.getsockname()[1]}")
    door: ControlDoor | None = None
    watching: asyncio.Task[None] | None = None
    try:
        stability.begin()
        _check_address(settings.gateway)
        await _prepare_database(home, settings)
        file.write()
        await supervisor.start()
        write_state(home, RunState.of_this_process(local_url(settings.gateway), __version__))
        watching = loop.create_task(stability.watch(_probes(file)), name="stability")
        ready = loop.create_task(_until_ready(supervisor, settings.gateway))
        stopping = loop.create_task(stop.wait())
        await asyncio.wait({ready, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            warnings = ready.result()
            admin_key = await _first_key(home, settings)  # now, when somebody will read it
            models = tuple(model.name for model in settings.models)
            token, troubles = await _start_agent(supervisor, home, settings, key)
            warnings = (*warnings, *troubles)
            announce(Announcement(base_url(settings.gateway), str(home.path), models, admin_key, warnings, token))
            door = await _open_door(
                listening, supervisor, file, key, home
            )  # not before: it would delay the first answer
        else:
            ready.cancel()
        await stopping
    finally:
        if watching is not None:
            watching.cancel()
        if door is not None:
            await door.close()
        listening.close()
        stability.goodbye(planned=stop.is_set())
        await supervisor.stop()
        await alerts.close()
        await asyncio.to_thread(stability.close)
        clear_state(home)
    return 0


def _onlooker(stability: "StabilityLog", alerts: AgentAlerts) -> "Callable[[ChildStatus], None]":
    from sekisho.ops.engine_children import is_beside

    def changed(status: "ChildStatus") -> None:
        alerts.changed(status)
        if not is_beside(status.name):  # a worker that has not taken over yet, or was taken over from
            stability.changed(status)

    return changed


async def _open_door(
    listening: socket.socket, supervisor: "Supervisor", file: PlanFile, key: str, home: Home
) -> "ControlDoor | None":
    """None where it does not open: then nothing can be exchanged, and all else works."""
    from sekisho.ops.control_door import ControlDoor

    door = ControlDoor(listening, _swap_board(supervisor, file, key, home), supervisor.statuses, key)
    try:
        await door.start()
    except Exception:  # what the door is for can wait; what runs must not end with it
        logging.getLogger(__name__).exception("the supervisor's door does not open")
        await door.close()
        return None
    return door


def _swap_board(supervisor: "Supervisor", file: PlanFile, key: str, home: Home) -> "SwapBoard":
    from sekisho.ops.engine_children import worker_spec
    from sekisho.ops.engine_swap import Limits, Placed
    from sekisho.ops.swap_board import Gateway, SwapBoard

    settings, workers = file.plan.settings, file.plan.workers

    def spec(config: ModelConfig, url: str) -> "ChildSpec":
        log_path = Path(workers[config.name].log_path)
        return worker_spec(config, url, log_path, key, settings.logs, home.native_engines)

    placed = {m.name: Placed(m, workers[m.name].url) for m in settings.models if m.name in workers}
    # While turns wait, those that run have half of the time for which a turn may wait for a slot.
    limits = Limits(hold_drain_timeout_s=settings.gateway.queue_timeout_s / 2)
    return SwapBoard(supervisor, placed, spec, Gateway(local_url(settings.gateway), key, file.place), limits)


def _probes(file: PlanFile) -> "dict[str, Probe]":
    """How the stability log asks whether a child answers again; the empty name is the server."""
    from sekisho.ops.engine_children import child_name
    from sekisho.ops.engine_door import answers
    from sekisho.ops.stability_log import SERVER

    async def engine_answers(model: str) -> bool:
        return await answers(file.plan.workers[model].url)  # as it is at that moment

    server = partial(_is_ready, local_url(file.plan.settings.gateway) + "/readyz")
    probes: dict[str, Probe] = {SERVER: server, "gateway": server}
    for model in file.plan.workers:
        probes[child_name(model)] = partial(engine_answers, model)
    return probes


async def _is_ready(url: str) -> bool:
    import aiohttp

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)) as session,
            session.get(url) as response,
        ):
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False  # not listening yet, or too busy to answer


def _on_signal(loop: asyncio.AbstractEventLoop, number: signal.Signals, callback: Callable[[], None]) -> None:
    try:
        loop.add_signal_handler(number, callback)
    except NotImplementedError:  # Windows' loop has none
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(callback))


def _children(home: Home, plan: Plan, worker_key: str) -> list["ChildSpec"]:
    from sekisho.ops.engine_children import worker_spec
    from sekisho.ops.supervisor import ChildSpec

    # Stopped first, with time to drain; the engines it drains into come after it.
    grace_s = plan.settings.gateway.drain_timeout_s + 10.0
    key = worker_process.environment(worker_key)
    argv = (sys.executable, "-m", "sekisho.serve", "gateway", "--home", str(home.path))
    logs, log_path = plan.settings.logs, home.logs / "gateway.log"
    children = [ChildSpec("gateway", argv, log_path, key, stop_order=0, grace_s=grace_s, logs=logs, logs_by_kind=True)]
    for model in plan.settings.models:
        worker = plan.workers.get(model.name)
        if worker is not None:
            children.append(
                worker_spec(model, worker.url, Path(worker.log_path), worker_key, logs, home.native_engines)
            )
    return children


async def _start_agent(
    supervisor: "Supervisor", home: Home, settings: Settings, worker_key: str
) -> tuple[str | None, tuple[str, ...]]:
    """Where it is wanted. Its token, if it was made just now, and warnings: nothing about it stops the server."""
    wanted, warnings = _agent_wanted(settings.control.enabled, os.environ)
    if not wanted:
        return None, warnings
    try:
        token = _new_agent_token(home)
    except (OSError, ValueError) as error:
        return None, (*warnings, f"The control agent is not started, for its token cannot be used: {error}")
    await supervisor.add(_agent(home, settings, worker_key))
    return token, warnings


def _agent_wanted(configured: bool, environment: Mapping[str, str]) -> tuple[bool, tuple[str, ...]]:
    """Whether to start the agent, and warnings. The environment wins over the settings, unless one of its variables is
    wrong: then none of them counts."""
    from sekisho.control.environment import from_environment
    from sekisho.control.policy_problem import PolicyProblem

    try:
        told = from_environment(environment).enabled
    except PolicyProblem as problem:
        return configured, (f"The environment's settings of the control agent are passed over: {problem}",)
    return configured if told is None else told, ()


def _new_agent_token(home: Home) -> str | None:
    """The token that the agent will ask for, where there was none yet. Raises OSError, ValueError."""
    from sekisho.control.address import token_for

    token, is_new = token_for(home.secrets)
    return token if is_new else None


def _agent(home: Home, settings: Settings, worker_key: str) -> "ChildSpec":
    """The control agent: nobody's request needs it."""
    from sekisho.ops.supervisor import ChildSpec

    argv = (sys.executable, "-m", "sekisho.serve", "agent", "--home", str(home.path))
    environment = worker_process.environment(worker_key, home.native_engines)  # it measures as the workers do
    return ChildSpec(AGENT, argv, home.logs / "agent.log", environment, stop_order=0, logs=settings.logs)


def _check_address(config: GatewayConfig) -> None:
    refused = refusal(config.host, config.port)
    if refused is not None:
        why, advice = refused
        raise StartFailed(f"{config.host}:{config.port} cannot be listened on ({why}): {advice}")


async def _prepare_database(home: Home, settings: Settings) -> None:
    """Brings the database up to date, so that the gateway's start does not have to. Raises StartFailed."""
    from sekisho.core.errors import StoreUnavailable
    from sekisho.store import Store

    try:
        await (await Store.open(database_url(home, settings))).close()
    except StoreUnavailable as error:
        raise StartFailed(f"The database cannot be used: {error.message}") from error


async def _first_key(home: Home, settings: Settings) -> str | None:
    """Makes the admin key when there has never been a key."""
    from sekisho.core.errors import StoreUnavailable
    from sekisho.store import KeySpec, Store

    try:
        store = await Store.open(database_url(home, settings))
        try:
            if await store.list_keys(include_revoked=True):
                return None
            return (await store.create_key(KeySpec(name="admin", scopes=_ADMIN_SCOPES)))[1]
        finally:
            await store.close()
    except StoreUnavailable as error:
        raise StartFailed(f"The first key cannot be made: {error.message}") from error


async def _until_ready(supervisor: "Supervisor", config: GatewayConfig) -> tuple[str, ...]:
    """Waits for the gateway and its first model. Returns warnings. Raises StartFailed when it cannot come up."""
    import aiohttp

    url = local_url(config) + "/readyz"
    deadline_s = asyncio.get_running_loop().time() + READY_TIMEOUT_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)) as session:
        while True:
            for child in supervisor.statuses():
                if child.state == "misconfigured" or (child.state == "failing" and child.name == "gateway"):
                    raise StartFailed(f"{child.name} cannot run with these settings.", child.log_tail)
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return ()
            except (aiohttp.ClientError, TimeoutError):
                pass  # not listening yet, or too busy to answer
            if asyncio.get_running_loop().time() > deadline_s:
                return (f"No model was ready within {READY_TIMEOUT_S:g} s: see `sekisho status`.",)
            await asyncio.sleep(0.1)
