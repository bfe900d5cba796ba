"""The side door to the engines of a running server: where they listen, with which key, and how to start one anew.

For measuring an engine without the gateway, and for its cold start. The key is in no file: it is in the environment of
the worker and of the gateway, which the system shows to the user they run as, and to the administrator.

Raises, all of `core.errors`: `NotFound` (no server, or no such engine of ours), `Forbidden` (another user's process),
`EngineUnavailable` (it did not come back, or it is between two lives).
"""

import asyncio
import os
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec
import psutil

from sekisho.core.decoding import Undecodable, decoded
from sekisho.core.errors import EngineUnavailable, Forbidden, NotFound
from sekisho.engines import llama_worker
from sekisho.ops import process_tree
from sekisho.ops.children_file import ChildrenFile, ChildStatus, read_children
from sekisho.ops.home import Home, running
from sekisho.ops.stability_log import announce_restart

READY_TIMEOUT_S = 180.0
PROBE_TIMEOUT_S = 2.0
POLL_S = 0.02
GATEWAY = "gateway"


class Secret:
    """A key that no log, traceback or JSON file shows by accident."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"


class EngineDoor(msgspec.Struct, frozen=True):
    """One engine worker. `url` ends in /v1. `pid` and `birth` name its process and no later one of the same id; None
    while there is none, between two lives. `ready`: its model is loaded."""

    model: str
    url: str
    key: Secret
    pid: int | None
    birth: str | None
    ready: bool


class Restart(msgspec.Struct, frozen=True):
    """Moments of `time.monotonic()`, each seen at most `POLL_S` late: the old process was told to end, was gone, the
    new one was there, and it had loaded its model."""

    model: str
    told_at: float
    ended_at: float
    started_at: float
    ready_at: float
    old_pid: int
    new_pid: int

    @property
    def total_s(self) -> float:
        return self.ready_at - self.told_at


class _Worker(msgspec.Struct):
    url: str
    log_path: str


class _Plan(msgspec.Struct):
    """What is needed here of `run/plan.json`, which `serve` writes."""

    workers: dict[str, _Worker]


async def engine_doors(home: Home) -> tuple[EngineDoor, ...]:
    """The engines that the server of this home runs itself, in the order of the settings; perhaps none.

    Engines at other addresses (`openai_http`) are not among them: their address and key are in the settings.
    """
    found = []
    for model, worker in _workers(home).items():
        pid, birth = _process(_child(home, model, worker))
        key = worker_key(home, pid)
        found.append(EngineDoor(model, worker.url, key, pid, birth, pid is not None and await answers(worker.url)))
    return tuple(found)


async def engine_door(home: Home, model: str) -> EngineDoor:
    """The door to one model's engine."""
    for door in await engine_doors(home):
        if door.model == model:
            return door
    raise _unknown(home, model)


async def restart_engine(
    home: Home, model: str, *, why: str = "measuring a cold start", timeout_s: float = READY_TIMEOUT_S
) -> Restart:
    """Ends the worker with SIGTERM and waits until the supervisor has started it again and it has loaded its model.

    Turns that run there break off. More than four restarts within a minute look like a crash loop to the supervisor,
    which then waits for half a minute before each further start. The stability log takes it for wanted, with `why`.
    """
    worker = _workers(home).get(model)
    if worker is None:
        raise _unknown(home, model)
    child = _child(home, model, worker)
    pid, birth = _process(child)
    if pid is None or birth is None:
        raise EngineUnavailable(f"the engine of {model} is not running now ({child.state}): see `sekisho status`")
    deadline = time.monotonic() + timeout_s
    announce_restart(home, child.name, birth, why)
    told_at = time.monotonic()
    _terminate(pid, birth, model)
    while process_tree.birth(pid) == birth:
        await _pause(deadline, f"the engine of {model} did not end within {timeout_s:g} s of SIGTERM")
    ended_at = time.monotonic()
    while (new := _child(home, model, worker)).pid is None or new.birth == birth:
        if new.state == "misconfigured" or running(home) is None:
            raise EngineUnavailable(f"the engine of {model} was not started again: see `sekisho status`")
        await _pause(deadline, f"the supervisor did not start the engine of {model} within {timeout_s:g} s")
    started_at = time.monotonic()
    while not await answers(worker.url):
        child = _child(home, model, worker)
        if child.pid != new.pid and child.state != "running":
            raise EngineUnavailable(f"the engine of {model} ended while it loaded: see `sekisho status`")
        await _pause(deadline, f"the engine of {model} was not ready within {timeout_s:g} s")
    return Restart(model, told_at, ended_at, started_at, time.monotonic(), pid, new.pid)


async def answers(url: str) -> bool:
    """Whether llama.cpp's server at `url` (ends in /v1) says that its model is loaded. Never raises."""
    timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
    address = urlsplit(url)._replace(path="/health").geturl()
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(address) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def worker_key(home: Home, pid: int | None) -> Secret:
    """The key that the server gave its workers: read from the worker's environment, or from the gateway's where there
    is no worker now, or where the system shows only what a process has kept (a worker forgets the key)."""
    refused = None
    for candidate in (pid, _gateway_pid(home)):
        try:
            if candidate is None:
                continue
            key = psutil.Process(candidate).environ().get(llama_worker.KEY_ENV)
        except psutil.AccessDenied:
            refused = candidate
            continue
        except (psutil.Error, OSError):
            continue  # it ended meanwhile
        if key:
            return Secret(key)
    if refused is not None:
        raise Forbidden(
            f"the engine's key is in the environment of process {refused}, which belongs to another user: run this as "
            "the user who ran `sekisho up`"
        )
    raise EngineUnavailable("the engine and the gateway are between two lives: see `sekisho status`, and try again")


def _gateway_pid(home: Home) -> int | None:
    children = read_children(home.run)
    found = [] if children is None else [child.pid for child in children.children if child.name == GATEWAY]
    return found[0] if found else None


def _workers(home: Home) -> dict[str, _Worker]:
    try:
        if running(home) is None:
            raise NotFound(f"no Sekisho runs from {home.path}: start it with `sekisho up`")
        return decoded((home.run / "plan.json").read_bytes(), _Plan).workers
    except PermissionError as error:
        why = f"{error.filename} belongs to another user: run this as the user who ran `sekisho up`"
        raise Forbidden(why) from error
    except (OSError, Undecodable) as error:
        raise NotFound(f"{home.run / 'plan.json'} cannot be read ({error}): sekisho down, then sekisho up") from error


def _child(home: Home, model: str, worker: _Worker) -> ChildStatus:
    """The worker's entry in `children.json`: its name is that of its log."""
    children: ChildrenFile | None = read_children(home.run)
    name = Path(worker.log_path).stem
    for child in children.children if children is not None else ():
        if child.name == name:
            return child
    raise NotFound(f"the supervisor knows no process for {model}: sekisho down, then sekisho up")


def _process(child: ChildStatus) -> tuple[int, str] | tuple[None, None]:
    if child.pid is None or child.birth is None or process_tree.birth(child.pid) != child.birth:
        return None, None
    return child.pid, child.birth


def _unknown(home: Home, model: str) -> NotFound:
    names = ", ".join(_workers(home)) or "none"
    return NotFound(f"{model}: the server starts no engine for it. Engines of its own: {names}", param="model")


def _terminate(pid: int, birth: str, model: str) -> None:
    """SIGTERM to this very process. On Linux the handle is taken first and the birth read then, so that the id cannot
    change hands in between; elsewhere psutil compares start times right before it signals."""
    gone = EngineUnavailable(f"the engine of {model} ended by itself just now: see `sekisho status`")
    try:
        if hasattr(os, "pidfd_open"):
            handle = os.pidfd_open(pid)
            try:
                if process_tree.birth(pid) != birth:
                    raise gone
                signal.pidfd_send_signal(handle, signal.SIGTERM)
            finally:
                os.close(handle)
            return
        process = psutil.Process(pid)
        if process_tree.birth(pid) != birth:
            raise gone
        process.terminate()
    except (ProcessLookupError, psutil.NoSuchProcess):
        raise gone from None
    except (PermissionError, psutil.AccessDenied):
        raise Forbidden(f"process {pid} belongs to another user: run this as who ran `sekisho up`") from None


async def _pause(deadline: float, late: str) -> None:
    if time.monotonic() > deadline:
        raise EngineUnavailable(late)
    await asyncio.sleep(POLL_S)
