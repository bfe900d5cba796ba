"""Any other address with OpenAI's interface: nothing of a policy can be set there, and that is what it says."""

import asyncio
from collections.abc import Mapping
from typing import Final

from sekisho.control.actuators.base import Wanted, answers, joined
from sekisho.control.actuators.engine_http import STATE_DEADLINE_S, EngineHttp, within
from sekisho.control.actuators.metrics_text import Samples, samples, total
from sekisho.control.base import Applied, EngineState
from sekisho.control.policy import Policy
from sekisho.engines.config import ModelConfig

_NO_WAY: Final = "tells and takes no settings over OpenAI's interface: set it where it is started"
MISSING: Final[Mapping[str, str]] = dict.fromkeys(("kv", "io", "scheduler", "engine"), _NO_WAY)
_RUNNING: Final = ("llamacpp:requests_processing", "vllm:num_requests_running", "sglang:num_running_reqs")
_WAITING: Final = ("llamacpp:requests_deferred", "vllm:num_requests_waiting", "sglang:num_queue_reqs")


def changes(policy: Policy, config: ModelConfig, label: str) -> tuple[Applied, ...]:
    """What becomes of a policy there. `engine.slots` is ours: how many requests the gateway sends at once."""
    wanted = {}
    if policy.engine.slots is not None:
        reason = f"{label} cannot be told; the gateway sends {config.slots} requests at once (`slots` of its settings)"
        wanted["engine.slots"] = Wanted(config.slots, policy.engine.slots, "unsupported", reason)
    return answers(config.name, label, policy, wanted, MISSING)


class OpenAiHttpActuator:
    """Reads `/v1/models`, and `/metrics` where there are some."""

    engine = "openai_http"

    def __init__(self, config: ModelConfig, url: str | None, key: str | None) -> None:
        self.model = config.name
        self.label = f"the engine of {config.name}"
        self._config = config
        self._http = EngineHttp(config.name, self.label, url, key)
        self._models = f"{self._http.api}/models"  # of an address without /v1, too: it stands before /chat/completions

    async def state(self) -> EngineState:
        return await within(STATE_DEADLINE_S, self.model, self.engine, self._state())

    async def _state(self) -> EngineState:
        models, metrics = await asyncio.gather(self._http.ask("GET", self._models), self._http.ask("GET", "/metrics"))
        if models.status != 200:
            raise self._http.refused("GET", self._models, models)
        return read(self._config, samples(metrics.text) if metrics.status == 200 else {})

    async def plan(self, policy: Policy) -> tuple[Applied, ...]:
        models = await self._http.ask("GET", self._models)
        if models.status != 200:
            raise self._http.refused("GET", self._models, models)
        return changes(policy, self._config, self.label)

    async def apply(self, policy: Policy) -> tuple[Applied, ...]:
        return await self.plan(policy)

    async def close(self) -> None:
        await self._http.close()


def read(config: ModelConfig, told: Samples) -> EngineState:
    """A state out of the few metrics that have the same meaning in several engines."""
    running, waiting = total(told, *_RUNNING), total(told, *_WAITING)
    return EngineState(
        config.name,
        "openai_http",
        "ready",
        joined(
            "it tells no metrics that are known here" if running is None else None,
            "OpenAI's interface tells nothing of the KV cache or of speculation",
        ),
        None if running is None else int(running),
        None if waiting is None else int(waiting),
        None,
        settings={"gateway_slots": config.slots, "told": [] if running is None else ["running", "waiting"]},
    )
