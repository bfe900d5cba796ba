"""ONNX Runtime GenAI: a library inside somebody's program. What can be done from outside is to change the settings of a
model folder, which hold from the next time that a program loads it."""

import asyncio
import importlib
import importlib.metadata
import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from sekisho.control.actuators import genai_config
from sekisho.control.actuators.base import Wanted, answers, asks, failed, joined
from sekisho.control.actuators.engine_http import STATE_DEADLINE_S, within
from sekisho.control.actuators.genai_config import FILE, ON_CARD, ON_NPU, Config
from sekisho.control.base import Applied, EngineState
from sekisho.control.policy import Policy
from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines.config import ModelConfig
from sekisho.ops.home import write_atomically

LABEL: Final = "ONNX Runtime GenAI"
ORIGINAL: Final = f"{FILE}.before-sekisho"
_IN_THE_MODEL: Final = "has its KV cache's type in the model file, and drops no token"
MISSING: Final[Mapping[str, str]] = {
    "kv": _IN_THE_MODEL,
    "io.dml_pool_bytes": "has no setting for the size of DirectML's pool",
    "io.host_pool_bytes": "has no setting for the size of the pool in host memory: its arena grows as it must",
    "engine.gpu_layers": "runs a model whole on one provider",
    "engine.prompt_cache_bytes": "keeps no prompt in host memory",
}
_AT_THE_NEXT_LOAD: Final = "it holds once the program that uses the folder loads it anew: restart that"
_SCHEDULER: Final = ("scheduler.mode", "scheduler.prefill_device", "scheduler.decode_device")


class Machine(msgspec.Struct, frozen=True):
    """What is installed here. `providers`: of ONNX Runtime, None where it is not. `version`: of the library."""

    providers: tuple[str, ...] | None = None
    version: str | None = None


def machine() -> Machine:
    """Imports ONNX Runtime where it is there."""
    try:
        version = importlib.metadata.version("onnxruntime-genai")
    except importlib.metadata.PackageNotFoundError:
        version = None
    if importlib.util.find_spec("onnxruntime") is None:
        return Machine(None, version)
    runtime = importlib.import_module("onnxruntime")
    return Machine(tuple(runtime.get_available_providers()), version)


def provider(policy: Policy) -> str | None:
    """The provider that the placement asks for; None where no single one does."""
    scheduler = policy.scheduler
    if scheduler.mode == "gpu_only":
        return "DML"
    both = {scheduler.prefill_device, scheduler.decode_device}
    return {"cpu": "CPU", "dml": "DML"}.get(both.pop()) if scheduler.mode == "hybrid" and len(both) == 1 else None


def target(policy: Policy, config: Config) -> Config:
    """The settings that the policy asks for."""
    engine, asked = policy.engine, provider(policy)
    there = genai_config.providers(config)
    if asked is None or _fits(asked, there) or _npu_only(there):
        asked = None
    length = None if engine.context is None else min(engine.context, config["model"]["context_length"])
    return genai_config.changed(
        config,
        provider=asked,
        thread_count=engine.threads,
        length=length,
        requests=engine.slots,
        ngram=None if engine.speculation is None else engine.speculation == "ngram",
    )


def _fits(asked: str, there: tuple[str, ...]) -> bool:
    return not there if asked == "CPU" else bool(there) and there[0] in ON_CARD


def _npu_only(there: tuple[str, ...]) -> bool:
    """Whether the model was made for an NPU, and cannot run elsewhere."""
    return bool(there) and there[0] in ON_NPU


def changes(policy: Policy, model: str, config: Config, here: Machine) -> tuple[Applied, ...]:
    """What `apply` would write."""
    new, engine = target(policy, config), policy.engine
    pairs: dict[str, tuple[Any, Any, str | None]] = {}
    if engine.slots is not None:
        only = "programs that use the library's Engine look at it"
        pairs["engine.slots"] = (genai_config.batch_size(config), genai_config.batch_size(new), only)
    if engine.context is not None:
        most = config["model"]["context_length"]
        cut = f"the model was made for {most} tokens" if engine.context > most else None
        pairs["engine.context"] = (genai_config.max_length(config), genai_config.max_length(new), cut)
    if engine.threads is not None:
        pairs["engine.threads"] = (genai_config.threads(config), engine.threads, None)
    if engine.speculation is not None:
        was, value = ("ngram" if genai_config.speculates(each) else "off" for each in (config, new))
        version = f"of {here.version} here" if here.version else "which is not installed here"
        pairs["engine.speculation"] = (was, value, f"the library ({version}) must know `speculative`: 0.16 or later")
    wanted = {
        name: Wanted(was, value, "restart", joined(why, _AT_THE_NEXT_LOAD)) for name, (was, value, why) in pairs.items()
    }
    if not policy.io.enable_iobinding:
        reason = f"{LABEL} always binds inputs and outputs"
        wanted["io.enable_iobinding"] = Wanted(True, False, "unsupported", reason)
    return answers(model, LABEL, policy, wanted | _placed(policy, config, new, here), MISSING)


def _placed(policy: Policy, config: Config, new: Config, here: Machine) -> dict[str, Wanted]:
    """The fields of `scheduler`: a model is made for its devices; among card and processor there is a choice."""
    scheduler, there = policy.scheduler, genai_config.providers(config)
    shown = ", ".join(there) or "CPU"
    asked = provider(policy)
    if asked is not None and not _npu_only(there):
        value = ", ".join(genai_config.providers(new)) or "CPU"
        wanted = Wanted(shown, value, "restart", joined(_runs_here(value, here), _AT_THE_NEXT_LOAD))
        return dict.fromkeys(_SCHEDULER, wanted)
    if scheduler.mode == "npu_only" and _npu_only(there):
        return dict.fromkeys(_SCHEDULER, Wanted(shown, shown, "unchanged"))
    devices = (scheduler.prefill_device, scheduler.decode_device)
    if scheduler.mode == "hybrid" and devices == ("dml", "npu"):
        return {}  # the default, which nobody asked for in particular
    stages = "its stages are placed in its pipeline" if genai_config.phases(config) else "it has no stages of its own"
    reason = f"{LABEL} runs a model where it was made for, here {shown}; {stages}; other devices need another model"
    return dict.fromkeys(_SCHEDULER, Wanted(shown, f"{devices[0]}/{devices[1]}", "unsupported", reason))


def _runs_here(name: str, here: Machine) -> str | None:
    """A warning where the provider is not there on this machine."""
    if name == "CPU":
        return None
    if here.providers is None:
        return "ONNX Runtime is not installed here, so that it is not known whether this provider runs"
    wanted = genai_config.ORT_NAMES.get(name, name)
    return None if wanted in here.providers else f"ONNX Runtime here has no {wanted}"


class OnnxGenaiActuator:
    """The folder at `path` of the model's settings."""

    engine = "onnx_genai"
    label = LABEL

    def __init__(self, config: ModelConfig) -> None:
        self.model = config.name
        self._folder = None if config.path is None else Path(config.path).expanduser()

    async def state(self) -> EngineState:
        return await within(STATE_DEADLINE_S, self.model, self.engine, self._state())

    async def _state(self) -> EngineState:
        config, here = await asyncio.gather(asyncio.to_thread(self._read), asyncio.to_thread(machine))
        return EngineState(
            self.model,
            self.engine,
            "ready",
            f"{LABEL} runs inside another program: only its settings are seen, not what it does",
            slots=genai_config.batch_size(config),
            settings={
                "providers": genai_config.providers(config),
                "threads": genai_config.threads(config),
                "context": genai_config.max_length(config),
                "speculation": "ngram" if genai_config.speculates(config) else "off",
                "onnxruntime_providers": here.providers,
                "version": here.version,
                "told": [],
                "computed": [],
            },
        )

    def _read(self) -> Config:
        """Raises ActuatorFailed for a file that is not there or that the library would refuse."""
        if self._folder is None:
            raise failed(self.model, LABEL, "it has no model folder", "set its `path`")
        file = self._folder / FILE
        try:
            config = decoded(file.read_bytes(), Config)
        except OSError as error:
            raise failed(self.model, LABEL, f"{file}: {error.strerror}", "correct its `path`") from None
        except Undecodable as error:
            raise failed(
                self.model, LABEL, f"{file}: {error}", f"repair it; {ORIGINAL} may hold it as it was"
            ) from None
        if wrong := genai_config.problems(config):
            raise failed(self.model, LABEL, f"{file}: {'; '.join(wrong[:3])}", "repair it: the library would refuse it")
        return config

    async def plan(self, policy: Policy) -> tuple[Applied, ...]:
        config, here = await asyncio.gather(asyncio.to_thread(self._read), asyncio.to_thread(machine))
        return changes(policy, self.model, config, here)

    async def apply(self, policy: Policy) -> tuple[Applied, ...]:
        """Writes the settings; nothing of it is in force before the program that uses them loads them anew."""
        planned = await self.plan(policy)
        if asks(planned, "restart"):
            await asyncio.to_thread(self._write, policy)
        return planned

    def _write(self, policy: Policy) -> None:
        """Whole or not at all. The file as it was before our first change stays beside it."""
        config = self._read()
        new = target(policy, config)
        if wrong := genai_config.problems(new):
            raise failed(self.model, LABEL, f"the new settings: {'; '.join(wrong)}", "nothing was written")
        assert self._folder is not None  # `_read` has seen to it
        file, original = self._folder / FILE, self._folder / ORIGINAL
        try:
            mode = file.stat().st_mode & 0o777
            if not original.exists():
                shutil.copy2(file, original)
            write_atomically(file, msgspec.json.format(msgspec.json.encode(new), indent=2) + b"\n", mode)
        except OSError as error:
            raise failed(self.model, LABEL, f"{file}: {error.strerror}", "nothing was written") from error

    async def close(self) -> None:
        """There is nothing to free."""
