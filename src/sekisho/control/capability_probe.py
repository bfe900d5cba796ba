"""The child process that tries out what really runs here: `python -m sekisho.control.capability_probe WHAT NAME...`.

`onnx-list`: ONNX Runtime's providers. `onnx PROVIDER KIND...`: one tiny graph of each kind on that provider alone.
`llama-list`: llama.cpp's devices. `llama TYPE...`: a short generation of the built-in model with each KV type.
One JSON object a line on standard output, each as soon as it is known: a driver that aborts or hangs takes only what
comes after it. Imports nothing of ours that needs more than the standard library.
"""

import importlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from sekisho.control import onnx_graph
from sekisho.engines import builtin, lifeline

CPU_PROVIDER: Final = "CPUExecutionProvider"
PROMPT: Final = "Hello, how are you today? I am"
TOKENS: Final = 8
NATS_OFF: Final = 1.0  # how far the log probability of a token may be off
_LONGEST_REASON: Final = 300


def onnx_list(names: list[str]) -> Iterator[dict[str, Any]]:
    """The providers that can be used, and the devices they say they are for. `get_all_providers` would list what some
    build could have."""
    onnxruntime = importlib.import_module("onnxruntime")  # no dependency of ours
    devices: dict[str, set[str]] = {name: set() for name in onnxruntime.get_available_providers()}
    for device in getattr(onnxruntime, "get_ep_devices", list)():  # since 1.22
        devices.setdefault(device.ep_name, set()).add(device.device.type.name.lower())
    for name, kinds in devices.items():
        yield {"name": name, "kinds": sorted(kinds), "version": onnxruntime.__version__}


def onnx(names: list[str]) -> Iterator[dict[str, Any]]:
    provider, *kinds = names
    for kind in kinds:
        yield _timed(kind, lambda kind=kind: _run_onnx(provider, kind))  # type: ignore[misc]


def _run_onnx(provider: str, kind: Any) -> dict[str, Any]:
    """Runs where it is told to or not at all: nothing falls back to the processor in silence."""
    import numpy as np

    onnxruntime = importlib.import_module("onnxruntime")
    case = onnx_graph.case(kind)
    with tempfile.TemporaryDirectory(prefix="sekisho-probe-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        if provider != CPU_PROVIDER:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.enable_mem_pattern = provider != "DmlExecutionProvider"  # DirectML allows neither of these
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        session = _session(onnxruntime, case.model, options, provider)
        answer = session.run(None, case.inputs)[0]
        nodes = _nodes(Path(session.end_profiling()))
        del session
    error = float(np.max(np.abs(np.asarray(answer, np.float64) - case.expected)))
    elsewhere = sorted({where for _, where in nodes if where and where != provider})
    ran = ", ".join(name for name, _ in nodes)
    if elsewhere:
        return {"ok": False, "reason": f"ran on {', '.join(elsewhere)}", "max_error": error}
    if not error <= case.tolerance:  # also where it is no number
        return {"ok": False, "reason": f"the answer is off by {error:g} ({ran})", "max_error": _finite(error)}
    widened = kind in ("fp16", "int8", "int4") and any(name == "Cast" for name, _ in nodes)
    reason = f"runs as {ran}: widened to 32 bits first, so that it saves no time" if widened else None
    return {"ok": True, "reason": reason, "max_error": error}


def _session(onnxruntime: Any, model: bytes, options: Any, provider: str) -> Any:
    """By name where the build has it, else by its devices, as those that are loaded as plug-ins are."""
    if provider in onnxruntime.get_available_providers():
        return onnxruntime.InferenceSession(model, options, providers=[provider])
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider]
    options.add_provider_for_devices(devices[:1], {})
    return onnxruntime.InferenceSession(model, options)


def _nodes(profile: Path) -> list[tuple[str, str]]:
    """(operator, provider) of what really ran, by the profile."""
    events = json.loads(profile.read_text(encoding="utf-8"))
    told = [event.get("args", {}) for event in events if event.get("cat") == "Node"]
    return [(args.get("op_name", "?"), args["provider"]) for args in told if args.get("provider")]


def llama_list(names: list[str]) -> Iterator[dict[str, Any]]:
    import xllamacpp

    for device in xllamacpp.get_device_info():
        yield {
            "name": device["name"],
            "description": device["description"],
            "kind": device["type"].name.removeprefix("GGML_BACKEND_DEVICE_TYPE_").lower(),
            "memory_free_bytes": device["memory_free"],
            "memory_total_bytes": device["memory_total"],
            "version": xllamacpp.__version__,
        }


def llama(names: list[str]) -> Iterator[dict[str, Any]]:
    """Each type for keys and values, on whatever llama.cpp puts the layers here; held against 16 bits."""
    reference = _generate("f16")
    for kind in names:
        yield _timed(kind, lambda kind=kind: judged(reference, _generate(kind)))  # type: ignore[misc]


class Place(NamedTuple):
    """One generated token, and the log probabilities of those that were likeliest there."""

    token: int
    logprobs: dict[int, float]


def judged(reference: list[Place], told: list[Place]) -> dict[str, Any]:
    """The largest difference of the reference's tokens in log probability, as far as both say the same."""
    off = 0.0
    for expected, place in zip(reference, told, strict=True):
        here = abs(place.logprobs.get(expected.token, -math.inf) - expected.logprobs[expected.token])
        if not here <= NATS_OFF:  # also where it is no number
            why = f"a token's log probability is off by {here:g} nats"
            return {"ok": False, "reason": why, "max_error": _finite(here)}
        off = max(off, here)
        if place.token != expected.token:
            break  # what follows has another beginning
    return {"ok": True, "reason": None, "max_error": off}


def _generate(kind: str) -> list[Place]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(builtin.path())
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 256, 1, 999
    params.fit_params = params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{kind.upper()}")
    server = xllamacpp.Server(params)
    asked = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "logprobs": 10, "ignore_eos": True}
    answer = server.handle_completions(asked)
    del server
    if "choices" not in answer or answer["usage"]["completion_tokens"] != TOKENS:
        raise RuntimeError(f"no {TOKENS} tokens came: {str(answer)[:200]}")
    places = answer["choices"][0]["logprobs"]["content"]
    return [
        Place(place["id"], {each["id"]: float(each["logprob"]) for each in place["top_logprobs"]}) for place in places
    ]


def _timed(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the libraries raise is the finding: one kind that fails says nothing about the next."""
    began = time.perf_counter()
    try:
        told = work()
    except Exception as error:  # noqa: BLE001  # each library has its own errors, and all of them are findings
        text = " ".join(str(error).split()) or type(error).__name__
        told = {"ok": False, "reason": text[:_LONGEST_REASON], "max_error": None}
    return {"name": name, "took_ms": (time.perf_counter() - began) * 1e3, **told}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


_WORK: Final[Mapping[str, Callable[[list[str]], Iterator[dict[str, Any]]]]] = MappingProxyType(
    {"onnx-list": onnx_list, "onnx": onnx, "llama-list": llama_list, "llama": llama}
)


def main(arguments: list[str]) -> int:
    lifeline.die_with_parent()
    what, *names = arguments
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the libraries print goes elsewhere
    for told in _WORK[what](names):
        lines.write(json.dumps(told) + "\n")
        lines.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
