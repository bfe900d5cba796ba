"""What the workers, processes of ours that each run one model, have in common: the key that keeps others out, the port,
and how they end. Trouble is told in one line on standard error; exit code 78 means that starting again cannot help.
"""

import argparse
import contextlib
import os
import secrets
import signal
import socket
from pathlib import Path
from typing import Final, NamedTuple

from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines import lifeline, native_build
from sekisho.engines.config import ModelConfig

KEY_ENV = "SEKISHO_WORKER_KEY"
EXIT_CONFIGURATION = 78
EXIT_FAILED = 1
_FIRST_WORKER_PORT: Final = 20_000
_USUAL_FIRST_OUTGOING_PORT: Final = 32_768  # Linux'; macOS and Windows begin at 49152
_PORT_TRIES: Final = 100
_LINUX_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


class WorkerError(Exception):
    """One line for the log. `final`: the settings or the file must change first."""

    def __init__(self, message: str, *, final: bool = True) -> None:
        super().__init__(message)
        self.final = final


class Order(NamedTuple):
    """What a worker is started with."""

    config: ModelConfig
    port: int
    api_key: str


def begin(module: str, description: str | None, arguments: list[str] | None) -> Order:
    """A worker's first steps: it ends with its parent, at once where it is interrupted, and knows what to serve. The
    key leaves the environment. Raises `WorkerError`."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--config", required=True, help="one ModelConfig as JSON")
    parser.add_argument("--port", required=True, type=int)
    options = parser.parse_args(arguments)
    lifeline.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    api_key = os.environ.pop(KEY_ENV, "")
    if not api_key:
        raise WorkerError(f"{KEY_ENV} is not set: a worker without a key would let anybody past the gateway")
    try:
        config = decoded(options.config.encode("utf-8", "surrogateescape"), ModelConfig)
    except Undecodable as error:
        raise WorkerError(f"--config: {error}") from None
    return Order(config, options.port, api_key)


def environment(api_key: str, native_engines: Path | None = None) -> dict[str, str]:
    """What the worker's environment needs besides the parent's own. `native_engines`: the folder of builds, of which it
    takes the chosen one where it loads llama.cpp."""
    return {KEY_ENV: api_key} | (native_build.environment(native_engines) if native_engines is not None else {})


def new_key() -> str:
    """A fresh key for one worker."""
    return secrets.token_urlsafe(24)


def free_port() -> int:
    """A port on 127.0.0.1 that was free a moment ago: where possible one of those that systems give to no outgoing
    connection, which could take it before the worker has it, or between two of the worker's lives."""
    mine = range(_FIRST_WORKER_PORT, min(_first_outgoing_port(), _USUAL_FIRST_OUTGOING_PORT))
    for _ in range(_PORT_TRIES if mine else 0):
        with contextlib.suppress(OSError):  # taken
            return _bound(secrets.choice(mine))
    return _bound(0)


def _bound(port: int) -> int:
    """The port (0: one that the system chooses) after binding it for a moment. Raises OSError where it is taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        return int(probe.getsockname()[1])


def _first_outgoing_port() -> int:
    """As Linux was told, or the usual one."""
    try:
        return int(_LINUX_PORTS.read_bytes().split()[0])
    except (OSError, ValueError, IndexError):
        return _USUAL_FIRST_OUTGOING_PORT


def check_port(port: int) -> None:
    """Raises `WorkerError` where somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise WorkerError(f"port {port} on 127.0.0.1 is taken ({error.strerror})", final=False) from None


def readable(path: Path, what: str) -> None:
    """Raises `WorkerError` with the system's reason where a file cannot be read."""
    try:
        with path.open("rb"):
            return
    except OSError as error:
        raise WorkerError(f"{what} {path}: {(error.strerror or str(error)).lower()}") from None
