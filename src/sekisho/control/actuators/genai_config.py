"""`genai_config.json` of a model folder of ONNX Runtime GenAI: what its own reader accepts of the parts that a policy
decides, and how a policy changes them.

The reader takes no unknown names and no other types: https://github.com/microsoft/onnxruntime-genai/blob/main/src/config.cpp
"""

import copy
from typing import Any, Final

Config = dict[str, Any]
FILE: Final = "genai_config.json"
_NUMBERS: Final = ("intra_op_num_threads", "inter_op_num_threads", "log_severity_level", "log_verbosity_level")
_SWITCHES: Final = ("enable_cpu_mem_arena", "enable_mem_pattern")
_FILTERS: Final = ("hardware_device_type", "hardware_device_id", "hardware_vendor_id")
_SPECULATIVE: Final = ("max_draft_tokens", "ngram_size", "ngram_chained_lookup", "min_adaptive_k", "cooldown")
_BATCHING: Final = ("dynamic_batching", "static_batching")
_SECTIONS: Final = ("model", "search", "engine", "speculative")
NGRAM: Final = {"ngram_size": 4, "max_draft_tokens": 8}
_PROVIDERS: Final = {
    "cpu": "CPU",
    "cuda": "cuda",
    "dml": "DML",
    "webgpu": "WebGPU",
    "qnn": "QNN",
    "openvino": "OpenVINO",
    "vitisai": "VitisAI",
    "ryzenai": "RyzenAI",
    "nvtensorrtrtx": "NvTensorRtRtx",
    "amdgpu": "AMDGPU",
}
ON_CARD: Final = ("DML", "cuda", "WebGPU", "NvTensorRtRtx", "AMDGPU")
ON_NPU: Final = ("RyzenAI", "VitisAI", "QNN")
ORT_NAMES: Final = {"DML": "DmlExecutionProvider", "cuda": "CUDAExecutionProvider", "WebGPU": "WebGpuExecutionProvider"}


def problems(config: Any) -> list[str]:
    """What the library's reader would refuse in the parts that are looked at here; empty where all is well."""
    if not isinstance(config, dict):
        return ["must be an object"]
    found = [f"{name}: is no section of it" for name in config if name not in _SECTIONS]
    model = config.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        return [*found, "model.decoder: must be an object"]
    length = model.get("context_length", 0)
    if not _whole(length) or length <= 0:
        found.append("model.context_length: must be a number of tokens")
    found += _session_problems(decoder.get("session_options", {}), "model.decoder.session_options")
    for index, stage in enumerate(_stages(decoder)):
        for name, part in stage.items():
            path = f"model.decoder.pipeline[{index}].{name}"
            found += _session_problems(part.get("session_options", {}), f"{path}.session_options")
    search = config.get("search", {})
    if not isinstance(search, dict) or not _whole(search.get("max_length", 0)):
        found.append("search.max_length: must be a number of tokens")
    return found + _speculative_problems(config.get("speculative", {})) + _engine_problems(config.get("engine", {}))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _stages(decoder: Config) -> list[dict[str, Config]]:
    """The models that a decoder is made of, where it is more than one."""
    listed = decoder.get("pipeline", [])
    stages = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return [{name: part for name, part in stage.items() if isinstance(part, dict)} for stage in stages]


def _session_problems(session: Any, path: str) -> list[str]:
    if not isinstance(session, dict):
        return [f"{path}: must be an object"]
    found = []
    for name, value in session.items():
        if name == "provider_options":
            found += _provider_problems(value, f"{path}.{name}")
        elif name in _NUMBERS and not _whole(value):
            found.append(f"{path}.{name}: must be a whole number")
        elif name in _SWITCHES and not isinstance(value, bool):
            found.append(f"{path}.{name}: must be true or false")
        elif name not in (*_NUMBERS, *_SWITCHES) and not isinstance(value, str):
            found.append(f"{path}.{name}: must be a text")
    return found


def _provider_problems(listed: Any, path: str) -> list[str]:
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        return [f"{path}: must be a list of objects"]
    found = []
    for each in listed:
        for provider, options in each.items():
            if not isinstance(options, dict):
                found.append(f"{path}.{provider}: must be an object")
                continue
            filters = options.get("device_filtering_options", {})
            if not isinstance(filters, dict) or set(filters) - set(_FILTERS):
                found.append(f"{path}.{provider}.device_filtering_options: may have {', '.join(_FILTERS)}")
            rest = {name: value for name, value in options.items() if name != "device_filtering_options"}
            found += [
                f"{path}.{provider}.{name}: must be a text" for name, it in rest.items() if not isinstance(it, str)
            ]
    return found


def _speculative_problems(section: Any) -> list[str]:
    if not isinstance(section, dict):
        return ["speculative: must be an object"]
    found = [f"speculative.{name}: is no option of it" for name in section if name not in _SPECULATIVE]
    size = section.get("ngram_size", 0)
    if not _whole(size) or not (size == 0 or 2 <= size <= 16):
        found.append("speculative.ngram_size: must be 0, or 2 to 16")
    drafted = section.get("max_draft_tokens", 4)
    if not _whole(drafted) or not 1 <= drafted <= 16:
        found.append("speculative.max_draft_tokens: must be 1 to 16")
    return found


def _engine_problems(section: Any) -> list[str]:
    if not isinstance(section, dict) or not all(isinstance(each, dict) for each in section.values()):
        return ["engine: must be an object of objects"]
    found = [
        f"engine.{name}: is no option of it" for name in section if name not in ("dynamic_batching", "static_batching")
    ]
    sizes = {name: each.get("max_batch_size", 1) for name, each in section.items()}
    return found + [
        f"engine.{name}.max_batch_size: must be a number of requests"
        for name, size in sizes.items()
        if not _whole(size) or size < 1
    ]


def providers(config: Config) -> tuple[str, ...]:
    """Execution providers in their order, by the library's own names. None named means the processor."""
    listed = config["model"]["decoder"].get("session_options", {}).get("provider_options", [])
    return tuple(canonical(name) for each in listed for name in each)


def canonical(name: str) -> str:
    """The library's name of a provider, however it is written; an unknown one stays."""
    return _PROVIDERS.get(name.lower().removesuffix("executionprovider"), name)


def phases(config: Config) -> bool:
    """Whether the model has stages of its own for prompts and for tokens, which may lie on different devices."""
    stages = [part for stage in _stages(config["model"]["decoder"]) for part in stage.values()]
    return any(not part.get("run_on_prompt", True) or not part.get("run_on_token_gen", True) for part in stages)


def threads(config: Config) -> int | None:
    told = config["model"]["decoder"].get("session_options", {}).get("intra_op_num_threads")
    return told if _whole(told) else None


def max_length(config: Config) -> int:
    """Tokens of prompt and answer: what `search` says, or all that the model has."""
    return int(config.get("search", {}).get("max_length") or config["model"]["context_length"])


def batch_size(config: Config) -> int | None:
    """Requests at once, for programs that use the library's Engine; None where it is not set."""
    for each in config.get("engine", {}).values():
        if "max_batch_size" in each:
            return int(each["max_batch_size"])
    return None


def speculates(config: Config) -> bool:
    return bool(config.get("speculative", {}).get("ngram_size"))


def changed(
    config: Config,
    *,
    provider: str | None = None,
    thread_count: int | None = None,
    length: int | None = None,
    requests: int | None = None,
    ngram: bool | None = None,
) -> Config:
    """The same with these parts changed, None leaves one; nothing else is touched. `provider` `CPU` names none."""
    new = copy.deepcopy(config)
    session = new["model"]["decoder"].setdefault("session_options", {})
    if provider is not None:
        kept = [each for each in session.get("provider_options", []) if [*map(canonical, each)] == [provider]]
        session["provider_options"] = [] if provider == "CPU" else kept or [{provider: {}}]
    if thread_count is not None:
        session["intra_op_num_threads"] = thread_count
    if length is not None:
        new.setdefault("search", {})["max_length"] = length
    if requests is not None:
        engine = new.setdefault("engine", {})
        engine[next(iter(engine), "dynamic_batching")] = next(iter(engine.values()), {}) | {"max_batch_size": requests}
    if ngram is not None and ngram != speculates(new):
        speculative = {**new.get("speculative", {}), **NGRAM} if ngram else {**new["speculative"], "ngram_size": 0}
        new["speculative"] = speculative
    return new
