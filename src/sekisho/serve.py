"""The wiring: settings become a supervisor with its children, and in the gateway's process a running gateway.

sekisho up  ->  supervise  ->  Supervisor  ->  `python -m sekisho.serve gateway`  ->  Gateway in uvicorn
                                           ->  `python -m sekisho.serve agent`  ->  the control agent
                                           ->  `python -m sekisho.engines.llama_worker` or `….torch_worker`, one a
                                               local model
"""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sekisho import __version__
from sekisho.core.clock import SystemClock
from sekisho.core.errors import EngineUnavailable
from sekisho.engines import registry, worker_process
from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import GatewayConfig
from sekisho.ops.child import EXIT_CONFIGURATION, die_with_parent
from sekisho.ops.children_file import replace_file
from sekisho.ops.home import Home, RunState, clear_state, write_state
from sekisho.ops.listening import refusal
from sekisho.settings import Settings

if TYPE_CHECKING:  # heavy, and only one of the two processes needs each
    from sekisho.gateway.app import Gateway
    from sekisho.ops.children_file import ChildStatus
    from sekisho.ops.control_door import ControlDoor
    from sekisho.ops.engine_swap import Placed
    from sekisho.ops.stability_log import Probe
    from sekisho.ops.supervisor import ChildSpec, Supervisor
    from sekisho.ops.swap_board import SwapBoard

READY_TIMEOUT_S = 180.0
PROBE_TIMEOUT_S = 5.0
_ADMIN_SCOPES = frozenset({"chat", "embeddings", "admin", "control", "audit"})


class Announcement(msgspec.Struct, frozen=True):
    """What the person who started the server is told. `admin_key` is there at the first start only."""

    url: str
    home: str
    models: tuple[str, ...]
    admin_key: str | None = None
    warnings: tuple[str, ...] = ()


class StartFailed(Exception):
    """The server cannot start. The text says why and what to do; `log_tail` holds the last lines of the culprit."""

    def __init__(self, message: str, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.log_tail = log_tail


class Worker(msgspec.Struct, frozen=True):
    """Where a local engine listens and what its log is."""

    url: str
    log_path: str


class Plan(msgspec.Struct, frozen=True):
    """What the supervisor hands to the gateway's process, as `run/plan.json`. Holds no secret. Written anew when a
    worker is exchanged: then `settings` and `workers` are those of the new one. `held`: models whose turns wait for
    that. `door`: the supervisor's own address (`ops.control_door`). `configured`: the models as sekisho.yaml has
    them."""

    settings: Settings
    workers: dict[str, Worker]
    held: tuple[str, ...] = ()
    door: str | None = None
    configured: tuple[ModelConfig, ...] = ()


def database_url(home: Home, settings: Settings, environment: Mapping[str, str] | None = None) -> str:
    """DATABASE_URL, else `store.url`, else the SQLite file of the home."""
    values = os.environ if environment is None else environment
    return values.get("DATABASE_URL") or settings.store.url or str(home.database)


def base_url(config: GatewayConfig) -> str:
    """The address to print: `public_url`, else host and port, with loopback for a wildcard host."""
    if config.public_url:
        return config.public_url.rstrip("/")
    return local_url(config)


def local_url(config: GatewayConfig) -> str:
    """The address at which this machine reaches the gateway."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{config.port}"


# --- the supervisor's process ---------------------------------------------------------------------------------------


def supervise(home: Home, settings: Settings, *, announce: Callable[[Announcement], None]) -> int:
    """Runs the server until SIGTERM or SIGINT; `announce` is called once it answers. Returns the exit code.

    Raises StartFailed, and `ops.instance_lock.AlreadyRunning` when this home is served already.
    """
    return asyncio.run(_supervise(home, settings, announce))


async def _supervise(home: Home, settings: Settings, announce: Callable[[Announcement], None]) -> int:
    from sekisho.ops.engine_children import is_beside
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
    stability = StabilityLog(home)

    def changed(status: "ChildStatus") -> None:
        if not is_beside(status.name):  # a worker that has not taken over yet, or was taken over from
            stability.changed(status)

    supervisor = Supervisor(home.run, _children(home, file.plan, key), on_change=changed)
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
            announce(Announcement(base_url(settings.gateway), str(home.path), models, admin_key, warnings))
            door = await _open_door(listening, supervisor, file, key)  # not before: it would delay the first answer
            if settings.control.enabled:
                await supervisor.add(_agent(home, settings, key))
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
        await asyncio.to_thread(stability.close)
        clear_state(home)
    return 0


class PlanFile:
    """`run/plan.json`, and what stands in it."""

    def __init__(self, home: Home, plan: Plan) -> None:
        self.plan = plan
        self._path = home.run / "plan.json"

    def write(self) -> None:
        """Raises OSError."""
        replace_file(self._path, msgspec.json.encode(self.plan))

    def place(self, name: str, placed: "Placed", held: bool) -> None:
        """This worker is the model's now. Raises OSError: then everything stands as it did."""
        before = self.plan
        models = tuple(placed.config if model.name == name else model for model in before.settings.models)
        worker = msgspec.structs.replace(before.workers[name], url=placed.url)
        others = tuple(other for other in before.held if other != name)
        self.plan = msgspec.structs.replace(
            before,
            settings=msgspec.structs.replace(before.settings, models=models),
            workers={**before.workers, name: worker},
            held=(*others, name) if held else others,
        )
        try:
            self.write()
        except OSError:
            self.plan = before
            raise


async def _open_door(
    listening: socket.socket, supervisor: "Supervisor", file: PlanFile, key: str
) -> "ControlDoor | None":
    """None where it does not open: then nothing can be exchanged, and all else works."""
    from sekisho.ops.control_door import ControlDoor

    door = ControlDoor(listening, _swap_board(supervisor, file, key), supervisor.statuses, key)
    try:
        await door.start()
    except Exception:  # what the door is for can wait; what runs must not end with it
        logging.getLogger(__name__).exception("the supervisor's door does not open")
        await door.close()
        return None
    return door


def _swap_board(supervisor: "Supervisor", file: PlanFile, key: str) -> "SwapBoard":
    from sekisho.ops.engine_children import worker_spec
    from sekisho.ops.engine_swap import Limits, Placed
    from sekisho.ops.swap_board import Gateway, SwapBoard

    settings, workers = file.plan.settings, file.plan.workers

    def spec(config: ModelConfig, url: str) -> "ChildSpec":
        return worker_spec(config, url, Path(workers[config.name].log_path), key, settings.logs)

    placed = {m.name: Placed(m, workers[m.name].url) for m in settings.models if m.name in workers}
    # Turns that wait have half of their time for those that run, the rest for the new worker's start.
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


def make_plan(home: Home, settings: Settings) -> Plan:
    from sekisho.ops.engine_children import address, child_name

    workers = {
        model.name: Worker(address(worker_process.free_port()), str(home.logs / f"{child_name(model.name)}.log"))
        for model in settings.models
        if model.has_worker
    }
    if os.environ.get("DATABASE_URL"):  # may hold a password: the gateway reads it from its own environment
        settings = msgspec.structs.replace(settings, store=msgspec.structs.replace(settings.store, url=None))
    return Plan(settings, workers, configured=settings.models)


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
            children.append(worker_spec(model, worker.url, Path(worker.log_path), worker_key, logs))
    return children


def _agent(home: Home, settings: Settings, worker_key: str) -> "ChildSpec":
    """The control agent: nobody's request needs it."""
    from sekisho.ops.supervisor import ChildSpec

    argv = (sys.executable, "-m", "sekisho.serve", "agent", "--home", str(home.path))
    environment = worker_process.environment(worker_key)
    return ChildSpec("agent", argv, home.logs / "agent.log", environment, stop_order=0, logs=settings.logs)


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


# --- the gateway's process ------------------------------------------------------------------------------------------


def build_gateway(home: Home, plan: Plan) -> "Gateway":
    """Puts the gateway together. Opens nothing yet."""
    from sekisho.console.assets import SECURITY_HEADERS, asset
    from sekisho.gateway import page
    from sekisho.gateway.app import Gateway
    from sekisho.gateway.guarding import Guarding
    from sekisho.gateway.queue import FairQueue
    from sekisho.gateway.roster import Entry, Roster
    from sekisho.gateway.router import Router
    from sekisho.gateway.routes import ROUTES
    from sekisho.gateway.seal import Sealer, load_or_create_key
    from sekisho.ops.denials import DenialLog
    from sekisho.store import Store, UsageSpool

    settings = plan.settings
    config = settings.gateway
    worker_key = os.environ.get(worker_process.KEY_ENV)
    entries = []
    for model in settings.models:
        worker = plan.workers.get(model.name)
        engine = registry.create(
            model,
            worker.url if worker else None,
            worker_key if worker else None,
            Path(worker.log_path) if worker else None,
        )
        queue = FairQueue(model.slots, config.queue_limit, config.queue_timeout_s)
        if model.name in plan.held:
            queue.hold()
        entries.append(Entry(model, engine, queue, worker.url if worker else None))
    default = settings.default_model or (entries[0].name if entries else None)
    database = database_url(home, settings)

    async def open_store() -> Store:
        return await Store.open(database)

    @cache
    def sealer() -> Sealer:
        return Sealer(load_or_create_key(home.secrets / "seal.key"))

    clock = SystemClock()
    escalation = settings.guard.escalation
    if escalation.link_base_url is None and config.public_url is not None:
        escalation = msgspec.structs.replace(escalation, link_base_url=config.public_url)
    guard = msgspec.structs.replace(settings.guard, escalation=escalation)
    habits = {model.name: model.thinking for model in settings.models}
    guarding = Guarding(guard, settings.audit, (home.audit, home.secrets, home.guard), sealer, clock, habits)
    return Gateway(
        config,
        Router((*ROUTES, *page.routes(asset, SECURITY_HEADERS))),
        Roster(entries, settings.aliases, default, config.restart_wait_s, guarding.stage),
        UsageSpool(home.spool, fsync=settings.store.usage_fsync),
        open_store,
        sealer,
        clock,
        settings.store.responses_ttl_days * 86_400,
        guarding,
        DenialLog(home, clock),
    )


def run_gateway(home: Home, plan: Plan) -> None:
    """Serves until SIGTERM. Blocks."""
    # The guard's sums are small: a second thread of numpy's would cost memory and gain nothing.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from sekisho.gateway.server import serve

    serve(build_gateway(home, plan))


# --- the agent's process --------------------------------------------------------------------------------------------


def run_agent(home: Home, plan: Plan) -> None:
    """Runs until SIGTERM. Blocks. Raises what `control.assembly.serve` does."""
    from sekisho.control import process
    from sekisho.control.assembly import EngineAddress, Place
    from sekisho.core.decoding import decoded
    from sekisho.ops.control_door import DoorClient
    from sekisho.ops.engine_swap import Placed

    key = os.environ.get(worker_process.KEY_ENV, "")

    def placed(name: str) -> Placed | None:
        now = decoded((home.run / "plan.json").read_bytes(), Plan)
        worker, config = now.workers.get(name), now.settings.model(name)
        return None if worker is None or config is None else Placed(config, worker.url)

    def address(config: ModelConfig) -> EngineAddress:
        worker = plan.workers.get(config.name)
        if worker is not None:
            return EngineAddress(config, worker.url, key, partial(placed, config.name))
        return EngineAddress(config, config.url, _upstream_key(config))

    config, changes = process.adjusted(plan.settings.control, os.environ)
    door = None if plan.door is None else DoorClient(plan.door, key)
    engines = tuple(address(config) for config in plan.configured if config.engine != "fake")
    place = Place(home, config, engines, local_url(plan.settings.gateway), key, door, changes)
    process.run(place, lambda url, _: logging.getLogger("sekisho.control").info("the agent is at %s", url))


def _upstream_key(config: ModelConfig) -> str | None:
    """None where it is missing: then the engine refuses, and says so."""
    from sekisho.engines.openai_http import upstream_key

    try:
        return upstream_key(config)
    except EngineUnavailable:
        return None


def main() -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m sekisho.serve")
    parser.add_argument("process", choices=["gateway", "agent"])
    parser.add_argument("--home", required=True, type=Path)
    arguments = parser.parse_args()
    home = Home.find(arguments.home)
    try:
        plan = msgspec.json.decode((home.run / "plan.json").read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        print(f"{home.run / 'plan.json'} cannot be read ({error}): start with `sekisho up`", file=sys.stderr)  # noqa: T201
        return EXIT_CONFIGURATION
    return _run_agent_process(home, plan) if arguments.process == "agent" else _run_gateway_process(home, plan)


def _run_agent_process(home: Home, plan: Plan) -> int:
    from sekisho.control.policy_book import PolicyBookError
    from sekisho.control.policy_changes import PolicyProblem
    from sekisho.gateway.log_lines import log_to_stderr

    log_to_stderr()
    try:
        run_agent(home, plan)
    except (PolicyProblem, PolicyBookError) as error:  # a wrong variable, or a book that a person must look at
        print(f"The control agent cannot run: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_CONFIGURATION
    return 0


def _run_gateway_process(home: Home, plan: Plan) -> int:
    from sekisho.guard.assembly import GuardUnusable

    try:
        run_gateway(home, plan)
    except (ValueError, EngineUnavailable, GuardUnusable) as error:  # what only building could judge
        print(f"The gateway cannot run with these settings: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_CONFIGURATION
    return 0


if __name__ == "__main__":
    sys.exit(main())
