"""See the package. Ends with its parent; a signal ends it at once, for whoever stops it has let the gateway drain."""

import asyncio
import logging
import os
import sys
from typing import Final

from aiohttp import web

from sekisho.engines.config import ModelConfig
from sekisho.engines.torch_worker import checks
from sekisho.engines.worker_process import EXIT_CONFIGURATION, EXIT_FAILED, WorkerError, begin, check_port
from sekisho.kv.policy import KVPolicy, PolicyError, from_plain

# The rest of free memory is for prompts in full precision while they are read, and for everybody else.
_KV_SHARE: Final = {"cpu": 0.5}
_KV_SHARE_OF_A_CARD: Final = 0.8


async def serve(config: ModelConfig, port: int, api_key: str) -> None:
    """Answers at once, loads the model meanwhile, and serves until this process ends. Raises `WorkerError`."""
    checks.check(config)
    policy = _policy(config)
    try:
        from sekisho.engines.torch_worker import model
        from sekisho.engines.torch_worker.runner import Runner
        from sekisho.engines.torch_worker.server import Server
    except ImportError as error:
        raise WorkerError(f"{error}: the engine torch needs the extra kv: pip install 'sekisho[kv]'") from error
    server = Server(config, api_key)
    site = web.AppRunner(server.application(), handler_cancellation=True, access_log=None)
    await site.setup()
    await web.TCPSite(site, "127.0.0.1", port).start()
    loaded = await asyncio.to_thread(model.load, config, policy)
    if config.kv_limit_mib is not None:
        limit_bytes = int(config.kv_limit_mib * 2**20)
    else:
        share = _KV_SHARE.get(loaded.device.type, _KV_SHARE_OF_A_CARD)
        limit_bytes = int(share * model.free_bytes(loaded.device))
    runner = Runner(
        loaded,
        policy,
        slots=config.slots,
        limit_bytes=limit_bytes,
        chunk=checks.prefill_chunk(config),
        publish=server.publish,
    )
    _check_room(config, runner.context, loaded.context, limit_bytes)
    runner.start()
    server.serve(runner)
    _say(f"serving {config.name} ({config.path}) on 127.0.0.1:{port}, {loaded.device}, context {runner.context}")
    await asyncio.Event().wait()


def _policy(config: ModelConfig) -> KVPolicy:
    try:
        return from_plain(config.kv or {})
    except PolicyError as error:
        raise WorkerError(f"kv: {error}") from None


def _check_room(config: ModelConfig, context: int, wanted: int, limit_bytes: int) -> None:
    room = f"{limit_bytes / 2**20:.0f} MiB for the KV cache hold {context} tokens of one sequence"
    if context < 2:
        raise WorkerError(f"{config.name}: {room}: raise kv_limit_mib, or free memory")
    if context < wanted:
        _say(f"warning: {room}, not {wanted}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # It tells of a malformed request by quoting it: a key or a prompt would stand in the log.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    try:
        order = begin("sekisho.engines.torch_worker", __doc__, arguments)
        check_port(order.port)
        asyncio.run(serve(order.config, order.port, order.api_key))
    except WorkerError as error:
        sys.stdout.flush()
        _say(f"error: {error}")
        code = EXIT_CONFIGURATION if error.final else EXIT_FAILED
        os._exit(code)  # loading may have left threads behind that would keep the process
    return 0


if __name__ == "__main__":
    sys.exit(main())
