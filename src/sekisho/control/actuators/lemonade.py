"""Lemonade (AMD): its server, lemond, starts the engine of a model anew where the model's options change. It lets
running requests end and keeps new ones waiting meanwhile.

Interface as published: https://github.com/lemonade-sdk/lemonade/blob/main/docs/api/lemonade.md
"""

import asyncio
import itertools
from typing import Any, Final
from urllib.parse import quote

from sekisho.control.actuators.base import asks, done, joined
from sekisho.control.actuators.engine_http import QUESTION_S, STATE_DEADLINE_S, EngineHttp, within
from sekisho.control.actuators.lemonade_options import LABEL, Loaded, changes, differing, target
from sekisho.control.actuators.metrics_text import Samples, accept_rate, samples, total
from sekisho.control.base import ActuatorFailed, Applied, EngineState
from sekisho.control.policy import Policy
from sekisho.engines.config import ModelConfig

LOAD_S: Final = 900.0  # requests end first, and the model may have to be read from a slow disk


class LemonadeActuator:
    """One model of a lemond."""

    engine = "lemonade"
    label = LABEL

    def __init__(self, config: ModelConfig, url: str | None, key: str | None) -> None:
        self.model = config.name
        self._id = config.upstream_model or config.name
        self._options = f"/v1/models/{quote(self._id, safe='')}/options"
        self._http = EngineHttp(config.name, LABEL, url, key)

    async def state(self) -> EngineState:
        return await within(STATE_DEADLINE_S, self.model, self.engine, self._state())

    async def _state(self) -> EngineState:
        health, stats, metrics = await asyncio.gather(
            self._http.told("GET", "/v1/health"), self._http.ask("GET", "/v1/stats"), self._http.ask("GET", "/metrics")
        )
        told = samples(metrics.text) if metrics.status == 200 else {}
        return read(self.model, self._id, health, stats.fields if stats.status == 200 else {}, told)

    async def _loaded(self) -> Loaded:
        """The model's recipe and the options that are in force, or would be at the next load."""
        options, health, system = await asyncio.gather(
            self._http.told("GET", self._options),
            self._http.told("GET", "/v1/health"),
            self._http.told("GET", "/v1/system-info", timeout_s=3 * QUESTION_S),
        )
        running = entry(health, self._id)
        effective = _options(options.get("effective"))
        in_force = effective | _options(running.get("recipe_options")) if running else effective
        recipe = str(options.get("recipe"))
        return Loaded(
            recipe,
            in_force,
            _options(options.get("saved")),
            str(running.get("device", "")) if running else "",
            _usable(system, recipe),
        )

    async def plan(self, policy: Policy) -> tuple[Applied, ...]:
        """Asks lemond to check what would be set, which sets nothing."""
        loaded = await self._loaded()
        planned = changes(policy, self.model, loaded)
        if asks(planned, "swap"):
            new = differing(loaded.options, target(policy, loaded))
            await self._http.told("POST", self._options, new | {"dry_run": True})
        return planned

    async def apply(self, policy: Policy) -> tuple[Applied, ...]:
        """Saves the options, so that they hold after lemond has unloaded the model, and loads it anew. Where it does
        not load, what was saved before is saved again and loaded."""
        loaded = await self._loaded()
        planned = changes(policy, self.model, loaded)
        if not asks(planned, "swap"):
            return planned
        new = differing(loaded.options, target(policy, loaded))
        await self._http.told("POST", self._options, new | {"dry_run": True})
        await self._http.told("POST", self._options, new)
        try:
            await self._load()
        except ActuatorFailed as failure:
            await self._put_back(loaded, new, failure)
            raise
        return done(planned, "swap")

    async def _load(self) -> None:
        await self._http.told("POST", "/v1/load", {"model_name": self._id}, timeout_s=LOAD_S)

    async def _put_back(self, loaded: Loaded, new: dict[str, Any], failure: ActuatorFailed) -> None:
        """Raises ActuatorFailed, which tells both failures, where that is not possible either."""
        try:
            await self._http.told("POST", self._options, {name: loaded.saved.get(name) for name in new})
            await self._load()
        except ActuatorFailed as second:
            raise self._http.failed(
                f"{failure}; and the options before could not be put back: {second}",
                f"reset them: curl -X DELETE {self._http.root}{self._options}",
            ) from failure

    async def close(self) -> None:
        await self._http.close()


def entry(health: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The model among those that lemond has loaded."""
    listed = health.get("all_models_loaded")
    for each in listed if isinstance(listed, list) else []:
        if isinstance(each, dict) and each.get("model_name") == name:
            return each
    return None


def _options(told: Any) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name != "model_name"} if isinstance(told, dict) else {}


def _usable(system: dict[str, Any], recipe: str) -> dict[str, tuple[str, ...]]:
    """The recipe's backends that can run on this machine, the preferred one first, each with its devices."""
    recipes = system.get("recipes")
    mine = recipes.get(recipe) if isinstance(recipes, dict) else None
    backends = mine.get("backends") if isinstance(mine, dict) else None
    if not isinstance(mine, dict) or not isinstance(backends, dict):
        return {}
    found = {
        name: tuple(map(str, each["devices"]))
        for name, each in backends.items()
        if isinstance(each, dict) and each.get("state") != "unsupported" and isinstance(each.get("devices"), list)
    }
    first = mine.get("default_backend")
    return dict(sorted(found.items(), key=lambda item: item[0] != first))


def read(model: str, name: str, health: dict[str, Any], stats: dict[str, Any], told: Samples) -> EngineState:
    """A state out of what lemond tells of the model. Bytes of the KV cache it does not tell."""
    settings: dict[str, Any] = {"version": health.get("version"), "stats": stats, "told": ["running", "accept_rate"]}
    running = entry(health, name)
    if running is None:
        reason = "lemond has not loaded it; the next request for it will"
        return EngineState(model, "lemonade", "ready", reason, 0, settings=settings)
    mine = ("model_name", name)
    busy = total(told, "lemonade_llamacpp_requests_processing", label=mine)
    if busy is None and running.get("is_busy") is False:
        busy = 0
    waiting = total(told, "lemonade_llamacpp_requests_deferred", label=mine)
    drafted = total(told, "lemonade_llamacpp_spec_decode_num_draft_tokens_total", label=mine)
    accepted = total(told, "lemonade_llamacpp_spec_decode_num_accepted_tokens_total", label=mine)
    rate, no_rate = accept_rate(drafted, accepted)
    slots = _slots(running.get("launch_command"))
    return EngineState(
        model,
        "lemonade",
        "ready",
        joined(
            "lemond does not tell what the KV cache takes",
            None if slots else "lemond does not tell the number of slots",
            no_rate,
        ),
        None if busy is None else int(busy),
        None if waiting is None else int(waiting),
        slots,
        None,
        rate,
        settings
        | {each: running.get(each) for each in ("recipe", "device", "recipe_options", "pinned", "is_busy")}
        | {"drafted_tokens": drafted, "accepted_tokens": accepted},
    )


def _slots(command: Any) -> int | None:
    """`-np` of the command that lemond started the engine with."""
    words = list(map(str, command)) if isinstance(command, list) else []
    for flag, value in itertools.pairwise(words):
        if flag in ("-np", "--parallel") and value.isdecimal():
            return int(value)
    return None
