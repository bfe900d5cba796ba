"""The wiring: settings become a supervisor with its children, and in the gateway's process a running gateway.

sekisho up  ->  supervise  ->  Supervisor  ->  `python -m sekisho.serve gateway`  ->  Gateway in uvicorn
                                           ->  `python -m sekisho.engines.llama_worker` or `….torch_worker`, one a
                                               local model
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import cache
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
from sekisho.ops.home import Home, RunState, clear_state, write_atomically, write_state
from sekisho.ops.listening import refusal
from sekisho.settings import Settings

if TYPE_CHECKING:  # heavy, and only one of the two processes needs each
    from sekisho.gateway.app import Gateway
    from sekisho.ops.stability_log import Probe
    from sekisho.ops.supervisor import ChildSpec, Supervisor

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
    """What the supervisor hands to the gateway's process, as `run/plan.json`. Holds no secret."""

    settings: Settings
    workers: dict[str, Worker]


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
    plan = make_plan(home, settings)
    stability = StabilityLog(home)
    supervisor = Supervisor(home.run, _children(home, plan), on_change=stability.changed)
    await supervisor.claim()  # before anything is written: a second `up` must not replace the first one's plan
    watching: asyncio.Task[None] | None = None
    try:
        stability.begin()
        _check_address(settings.gateway)
        await _prepare_database(home, settings)
        write_atomically(home.run / "plan.json", msgspec.json.encode(plan))
        await supervisor.start()
        write_state(home, RunState.of_this_process(local_url(settings.gateway), __version__))
        watching = loop.create_task(stability.watch(_probes(plan)), name="stability")
        ready = loop.create_task(_until_ready(supervisor, settings.gateway))
        stopping = loop.create_task(stop.wait())
        await asyncio.wait({ready, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            warnings = ready.result()
            admin_key = await _first_key(home, settings)  # now, when somebody will read it
            models = tuple(model.name for model in settings.models)
            announce(Announcement(base_url(settings.gateway), str(home.path), models, admin_key, warnings))
        else:
            ready.cancel()
        await stopping
    finally:
        if watching is not None:
            watching.cancel()
        stability.goodbye(planned=stop.is_set())
        await supervisor.stop()
        await asyncio.to_thread(stability.close)
        clear_state(home)
    return 0


def _probes(plan: Plan) -> "dict[str, Probe]":
    """How the stability log asks whether a child answers again; the empty name is the server."""
    from functools import partial

    from sekisho.ops.engine_door import answers
    from sekisho.ops.stability_log import SERVER

    server = partial(_is_ready, local_url(plan.settings.gateway) + "/readyz")
    probes: dict[str, Probe] = {SERVER: server, "gateway": server}
    for model in plan.settings.models:
        worker = plan.workers.get(model.name)
        if worker is not None:
            probes[f"engine-{_slug(model)}"] = partial(answers, worker.url)
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
    workers = {
        model.name: Worker(
            f"http://127.0.0.1:{worker_process.free_port()}/v1", str(home.logs / f"engine-{_slug(model)}.log")
        )
        for model in settings.models
        if model.has_worker
    }
    if os.environ.get("DATABASE_URL"):  # may hold a password: the gateway reads it from its own environment
        settings = msgspec.structs.replace(settings, store=msgspec.structs.replace(settings.store, url=None))
    return Plan(settings, workers)


def _slug(model: ModelConfig) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in model.name)


def _children(home: Home, plan: Plan) -> list["ChildSpec"]:
    from sekisho.ops.supervisor import ChildSpec

    # Stopped first, with time to drain; the engines it drains into come after it.
    grace_s = plan.settings.gateway.drain_timeout_s + 10.0
    key = worker_process.environment(worker_process.new_key())
    argv = (sys.executable, "-m", "sekisho.serve", "gateway", "--home", str(home.path))
    logs, log_path = plan.settings.logs, home.logs / "gateway.log"
    children = [ChildSpec("gateway", argv, log_path, key, stop_order=0, grace_s=grace_s, logs=logs, logs_by_kind=True)]
    for model in plan.settings.models:
        worker = plan.workers.get(model.name)
        if worker is not None:
            port = int(worker.url.rsplit(":", 1)[1].removesuffix("/v1"))
            command = registry.WORKERS[model.engine](model, port)
            name = f"engine-{_slug(model)}"
            children.append(ChildSpec(name, command, Path(worker.log_path), key, stop_order=1, logs=logs))
    return children


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
        entries.append(Entry(model, engine, FairQueue(model.slots, config.queue_limit, config.queue_timeout_s)))
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


def main() -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m sekisho.serve")
    parser.add_argument("process", choices=["gateway"])
    parser.add_argument("--home", required=True, type=Path)
    arguments = parser.parse_args()
    home = Home.find(arguments.home)
    try:
        plan = msgspec.json.decode((home.run / "plan.json").read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        print(f"{home.run / 'plan.json'} cannot be read ({error}): start with `sekisho up`", file=sys.stderr)  # noqa: T201
        return EXIT_CONFIGURATION
    from sekisho.guard.assembly import GuardUnusable

    try:
        run_gateway(home, plan)
    except (ValueError, EngineUnavailable, GuardUnusable) as error:  # what only building could judge
        print(f"The gateway cannot run with these settings: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_CONFIGURATION
    return 0


if __name__ == "__main__":
    sys.exit(main())
