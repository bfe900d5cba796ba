"""How the children that run engines are named and started. The present worker of a model is `engine-NAME`; while it is
exchanged, the one beside it is `engine-NAME~next` before it takes over and the old one `engine-NAME~former` after that.
"""

from pathlib import Path
from typing import Final

from sekisho.engines import registry, worker_process
from sekisho.engines.config import ModelConfig
from sekisho.ops.config import LogsConfig
from sekisho.ops.supervised_child import ChildSpec

BESIDE: Final = "~"  # no model's name gives a child's name with it
_STOP_ORDER: Final = 1  # after the gateway, which drains into the engines


def child_name(model: str) -> str:
    """Of the child that runs a model's present worker; the log of all its workers has the same name."""
    return "engine-" + "".join(c if c.isalnum() or c in "-._" else "_" for c in model)


def is_beside(child: str) -> bool:
    """Whether a child is a worker that has not taken over yet, or was taken over from."""
    return BESIDE in child


def address(port: int) -> str:
    """Of a worker."""
    return f"http://127.0.0.1:{port}/v1"


def worker_spec(
    config: ModelConfig, url: str, log_path: Path, key: str, logs: LogsConfig, native_engines: Path | None = None
) -> ChildSpec:
    """How the supervisor starts a worker that will answer at `url`. `native_engines`: as in a worker's environment."""
    port = int(url.removesuffix("/v1").rpartition(":")[2])
    command = registry.WORKERS[config.engine](config, port)
    environment = worker_process.environment(key, native_engines)
    return ChildSpec(child_name(config.name), command, log_path, environment, stop_order=_STOP_ORDER, logs=logs)
