"""Two of llama.cpp's servers and the front in one process. The weights are mapped from one file; where llama.cpp lays
them out anew for the processor (Q4_0 and others), it does so for each."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import msgspec
from aiohttp import web

from sekisho.core.clock import SystemClock
from sekisho.engines import kv_size
from sekisho.engines.config import ModelConfig
from sekisho.engines.http_client import HttpClient
from sekisho.engines.kv_size import KvShape
from sekisho.engines.llama_demotion import OPTION, waiting
from sekisho.engines.llama_demotion.counters import Counters, Say, say
from sekisho.engines.llama_demotion.folder import open_folder
from sekisho.engines.llama_demotion.front import Front
from sekisho.engines.llama_demotion.reader import Reader
from sekisho.engines.llama_demotion.relay import Relay
from sekisho.engines.llama_demotion.slots import Slots
from sekisho.engines.llama_demotion.transfer import Storing
from sekisho.engines.slot_file import StoredType
from sekisho.engines.worker_process import WorkerError

Start = Callable[[ModelConfig, int, Path], Any]
"""Starts one of llama.cpp's servers on a port (0: a free one), with a folder for slot files. Raises WorkerError."""
_WAITING: Final = 128
_ANY_PORT: Final = 0  # llama.cpp takes a free one; one that was free a moment ago may be taken by now
_COPIES: Final = 2  # of a full context at 16 bits, that the folder has room for: the one, and what is made of it


def reader_config(config: ModelConfig) -> ModelConfig:
    """The same model and context at 16 bits, one slot, nothing else."""
    return msgspec.structs.replace(
        config, kv_type_k="f16", kv_type_v="f16", slots=1, options={"cache_ram_mib": 0}, chat_template=None
    )


def serve(config: ModelConfig, path: Path, port: int, api_key: str, start: Start) -> None:
    """Serves until this process is told to end, and then removes its folder. Raises `WorkerError`."""
    shape = kv_size.shape(path)
    if isinstance(shape, str):
        raise WorkerError(f"options.{OPTION}: {shape}")
    try:
        folder = open_folder(round(_COPIES * config.context * shape.token_bytes("f16", "f16")))
    except OSError as error:
        raise WorkerError(f"options.{OPTION}: no folder for slot files: {error}", final=False) from error
    # It tells of a malformed request by quoting it: a key or a prompt would stand in the log.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    servers, roots = [], []
    try:
        listener = _listener(port)
        with waiting.answering(listener):
            for part in (config, reader_config(config)):
                servers.append(start(part, _ANY_PORT, folder))
                roots.append(servers[-1].listening_address)
        say(f"serving {config.name} ({path}) on http://127.0.0.1:{port}")
        front = assembled(config, shape, folder, roots[0], roots[1], api_key)
        asyncio.run(_answer(front, listener, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _listener(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=_WAITING)
    except OSError as error:
        raise WorkerError(f"port {port} on 127.0.0.1 is taken ({error.strerror})", final=False) from None


async def _answer(front: Front, listener: socket.socket, folder: Path) -> None:
    with contextlib.suppress(NotImplementedError):  # Windows has no such signals
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _end, number, folder)
    site = web.AppRunner(front.application(), handler_cancellation=True, access_log=None)
    await site.setup()
    await web.SockSite(site, listener).start()
    await asyncio.Event().wait()


def assembled(
    config: ModelConfig, shape: KvShape, folder: Path, keeper: str, reader: str, api_key: str, say: Say = say
) -> Front:
    """The front before two servers that run at these addresses. Needs no loop yet."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {api_key}"}
    keeping, reading = HttpClient(keeper, headers), HttpClient(reader, headers)
    counters = Counters(say)
    kinds = (cast(StoredType, config.kv_type_k), cast(StoredType, config.kv_type_v))  # `why_not` has looked
    storing = Storing(*kinds, shape.key_size, shape.value_size, config.slots)
    demoting = Reader(reading, keeping, folder, storing, config.context, SystemClock(), counters)
    return Front(keeping, Relay(keeper), demoting, Slots(config.slots), counters, api_key)


def _end(number: int, folder: Path) -> None:
    """At once, as a signal ends any worker; but what people wrote goes with it."""
    shutil.rmtree(folder, ignore_errors=True)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
