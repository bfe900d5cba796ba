"""The hands of the agent on each kind of engine. A new one is one file and one line here."""

from collections.abc import Callable
from typing import NamedTuple

from sekisho.control.actuators.base import Swapper
from sekisho.control.actuators.swapping import WhereIsIt
from sekisho.control.base import Actuator
from sekisho.engines.config import ModelConfig


class Place(NamedTuple):
    """How to reach an engine. `swapper`, `placed`: for workers of ours, whose settings and address change."""

    url: str | None
    key: str | None
    swapper: Swapper | None = None
    placed: WhereIsIt | None = None


Create = Callable[[ModelConfig, Place], Actuator]


def _llama_cpp(config: ModelConfig, place: Place) -> Actuator:
    from sekisho.control.actuators.llama_cpp import LlamaCppActuator

    return LlamaCppActuator(config, place.url, place.key, place.swapper, place.placed)


def _torch(config: ModelConfig, place: Place) -> Actuator:
    from sekisho.control.actuators.torch import TorchActuator

    return TorchActuator(config, place.url, place.key, place.swapper, place.placed)


def _vllm(config: ModelConfig, place: Place) -> Actuator:
    from sekisho.control.actuators.vllm import VllmActuator

    return VllmActuator(config, place.url, place.key)


def _lemonade(config: ModelConfig, place: Place) -> Actuator:
    from sekisho.control.actuators.lemonade import LemonadeActuator

    return LemonadeActuator(config, place.url, place.key)


def _onnx_genai(config: ModelConfig, place: Place) -> Actuator:
    from sekisho.control.actuators.onnx_genai import OnnxGenaiActuator

    return OnnxGenaiActuator(config)


def _openai_http(config: ModelConfig, place: Place) -> Actuator:
    from sekisho.control.actuators.openai_http import OpenAiHttpActuator

    return OpenAiHttpActuator(config, place.url, place.key)


ACTUATORS: dict[str, Create] = {
    "llama_cpp": _llama_cpp,
    "torch": _torch,
    "vllm": _vllm,
    "lemonade": _lemonade,
    "onnx_genai": _onnx_genai,
    "openai_http": _openai_http,
    "fake": _openai_http,
}
"""By the name of what runs behind an engine; `fake` is the engine for tests, which has no settings either."""


def create(
    config: ModelConfig,
    url: str | None,
    key: str | None,
    swapper: Swapper | None = None,
    placed: WhereIsIt | None = None,
    kind: str | None = None,
) -> Actuator:
    """The hand on one engine; opens no connection yet. `config`: the model's own settings, which a policy lies upon and
    a default policy leads back to. `placed` tells where a worker of ours is after an exchange, and
    with which settings. `kind`: one of ACTUATORS; None: `actuator` of the settings' `options` (for `openai_http`, which
    does not say what is behind its address), else the engine itself. Raises ValueError for a kind that there is not,
    ActuatorFailed for an address or a key that cannot be used."""
    name = kind or str(config.options.get("actuator", config.engine))
    if name not in ACTUATORS:
        raise ValueError(f"{config.name}: there is no actuator {name!r}; there are {', '.join(sorted(ACTUATORS))}")
    return ACTUATORS[name](config, Place(url if url is not None else config.url, key, swapper, placed))
