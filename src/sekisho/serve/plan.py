"""What the supervisor hands to its children, and the addresses that follow from the settings."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from sekisho.engines import worker_process
from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import GatewayConfig
from sekisho.ops.children_file import replace_file
from sekisho.ops.home import Home
from sekisho.settings import Settings

if TYPE_CHECKING:
    from sekisho.ops.engine_swap import Placed


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
