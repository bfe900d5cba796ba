"""The control agent's process: from the plan to a running agent."""

import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from sekisho.core.errors import EngineUnavailable
from sekisho.engines import worker_process
from sekisho.engines.config import ModelConfig
from sekisho.ops.home import Home
from sekisho.serve.plan import Plan, local_url

if TYPE_CHECKING:
    from sekisho.control.config import ControlConfig
    from sekisho.ops.engine_swap import Placed

log = logging.getLogger("sekisho.control")


def run_agent(home: Home, plan: Plan) -> None:
    """Runs until SIGTERM. Blocks. Raises what `control.assembly.serve` does."""
    from sekisho.control import process
    from sekisho.control.assembly import EngineAddress, Place
    from sekisho.ops.control_door import DoorClient

    key = os.environ.get(worker_process.KEY_ENV, "")

    def address(config: ModelConfig) -> EngineAddress:
        worker = plan.workers.get(config.name)
        if worker is not None:
            return EngineAddress(config, worker.url, key, partial(_placed, home, config.name))
        return EngineAddress(config, config.url, _upstream_key(config))

    config, changes = _adjusted(plan.settings.control, os.environ)
    door = None if plan.door is None else DoorClient(plan.door, key)
    engines = tuple(address(config) for config in plan.configured if config.engine != "fake")
    place = Place(home, config, engines, local_url(plan.settings.gateway), key, door, changes)
    process.run(place, lambda url, _: log.info("the agent is at %s", url))


def _placed(home: Home, name: str) -> "Placed | None":
    """Where the plan has the worker of this model now; None for a model without one. Raises OSError, Undecodable."""
    from sekisho.core.decoding import decoded
    from sekisho.ops.engine_swap import Placed

    now = decoded((home.run / "plan.json").read_bytes(), Plan)
    worker, config = now.workers.get(name), now.settings.model(name)
    return None if worker is None or config is None else Placed(config, worker.url, name in now.held)


def _adjusted(config: "ControlConfig", values: Mapping[str, str]) -> "tuple[ControlConfig, dict[str, Any]]":
    """As `control.process.adjusted`; an environment with a wrong variable is passed over, as the supervisor said."""
    from sekisho.control import process
    from sekisho.control.policy_problem import PolicyProblem

    try:
        return process.adjusted(config, values)
    except PolicyProblem as problem:
        log.warning("the environment's settings are passed over: %s", problem)
        return config, {}


def _upstream_key(config: ModelConfig) -> str | None:
    """None where it is missing: then the engine refuses, and says so."""
    from sekisho.engines.openai_http import upstream_key

    try:
        return upstream_key(config)
    except EngineUnavailable:
        return None
