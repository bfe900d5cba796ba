"""What really runs on this machine: tried out, not assumed.

Each ONNX Runtime provider runs a tiny graph of each precision, and llama.cpp generates some tokens with each KV type,
in child processes with a deadline, since drivers abort and hang. The findings are kept in a file as long as packages
and hardware stay what they were.
"""

import contextlib
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

import msgspec

from sekisho import __version__
from sekisho.control.onnx_graph import KINDS, Kind
from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines import lifeline
from sekisho.engines.config import KvType
from sekisho.ops.gpu_sample import read_gpus
from sekisho.ops.hardware import RunProbe, run_probe
from sekisho.ops.home import write_atomically

log = logging.getLogger("sekisho.control")

DEADLINE_S: Final = 60.0
KV_TYPES: Final[tuple[str, ...]] = get_args(KvType)
INSTALL_ONNX: Final = (
    "ONNX Runtime is not installed: `pip install onnxruntime` for processors, `onnxruntime-gpu` for CUDA, "
    "`onnxruntime-directml` for DirectML, `onnxruntime-qnn` for Qualcomm's NPU"
)
_MODULE: Final = "sekisho.control.capability_probe"
_FORMAT: Final = 1  # of the file; another number, and everything is tried again
_PACKAGES: Final = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-windowsml",
    "xllamacpp",
)

Place = Literal["npu", "dml", "cpu"]
PLACES: Final[tuple[Place, ...]] = ("npu", "dml", "cpu")
_PLACE_OF: Final[Mapping[str, Place]] = MappingProxyType(
    {"QNNExecutionProvider": "npu", "VitisAIExecutionProvider": "npu", "CPUExecutionProvider": "cpu"}
)  # by name, where no device tells; everything else that computes is a graphics card's
_PLACE_OF_KIND: Final[Mapping[str, Place]] = MappingProxyType({"npu": "npu", "gpu": "dml", "cpu": "cpu"})


class Probe(msgspec.Struct, frozen=True):
    """`reason`: why it does not run, or what is to be known although it does. `max_error`: the largest difference from
    the right answer; for KV types in nats, of the next token's log probability at 16 bits."""

    ok: bool
    reason: str | None = None
    max_error: float | None = None
    took_ms: float | None = None


class Provider(msgspec.Struct, frozen=True):
    """One execution provider. `kinds`: of the devices it says it is for (cpu, gpu, npu); empty where it does not."""

    int4: Probe
    int8: Probe
    fp16: Probe
    fp32: Probe
    kinds: tuple[str, ...] = ()


class LlamaDevice(msgspec.Struct, frozen=True):
    name: str
    description: str
    kind: str
    memory_total_bytes: int | None
    memory_free_bytes: int | None


class Llama(msgspec.Struct, frozen=True):
    """`reason`: why nothing could be tried."""

    version: str | None = None
    kv_types: dict[str, Probe] = {}
    devices: tuple[LlamaDevice, ...] = ()
    reason: str | None = None


class Capabilities(msgspec.Struct, frozen=True):
    """`key`: the packages and the hardware that this holds for."""

    providers: dict[str, Provider]
    onnxruntime: str | None
    onnxruntime_reason: str | None
    llama: Llama
    measured_at: float
    key: str

    @property
    def kv_types(self) -> frozenset[str]:
        """llama.cpp's KV types that really run here."""
        return frozenset(kind for kind, probe in self.llama.kv_types.items() if probe.ok)


class FallbackTable(msgspec.Struct, frozen=True):
    """`devices`: in the order npu, dml, cpu, those on which something runs. `precisions`: what runs there, from fewest
    bits to most. `kv_types`: llama.cpp's, likewise."""

    devices: tuple[Place, ...]
    precisions: dict[Place, tuple[Kind, ...]]
    kv_types: tuple[str, ...]


class CapabilitiesAnswer(Capabilities, frozen=True):
    """As the interface tells them. `fallback`: what there is instead of what does not run."""

    fallback: FallbackTable


class Prober:
    """Starts the children. `python`: of the interpreter that has the packages; `environment` replaces ours."""

    def __init__(
        self,
        python: Sequence[str] = (sys.executable,),
        environment: Mapping[str, str] | None = None,
        deadline_s: float = DEADLINE_S,
        run: RunProbe = run_probe,
    ) -> None:
        self._python = tuple(python)
        self._environment = dict(os.environ if environment is None else environment)
        self._deadline_s = deadline_s
        self._run = run

    def key(self) -> str:
        """Changes with whatever could change the findings."""
        versions = {name: _version(name) for name in _PACKAGES}
        cards = [gpu.name for gpu in read_gpus(self._run).gpus]
        told = {"format": _FORMAT, "sekisho": __version__, "python": self._python, "packages": versions}
        told |= {"system": platform.platform(), "processor": _processor(), "cards": cards}
        return json.dumps(told, sort_keys=True)

    def probe(self, now: float) -> Capabilities:
        """Tries everything. Takes seconds, up to a deadline for each thing that hangs; blocks. Never raises for what a
        child does."""
        listed, ended = self._ask("onnx-list")
        version = str(listed[0]["version"]) if listed else None
        why = None if listed else INSTALL_ONNX if "No module named 'onnxruntime'" in (ended or "") else ended
        providers = {}
        for told in listed:
            name = str(told["name"])
            found = self._each(["onnx", name], KINDS)
            providers[name] = Provider(found["int4"], found["int8"], found["fp16"], found["fp32"], tuple(told["kinds"]))
        return Capabilities(providers, version, why, self._llama(), now, self.key())

    def kept(self, file: Path) -> Capabilities | None:
        """What the file says as long as it holds; None where nothing is known yet, or where another version of ours
        wrote it. Tries nothing. Raises OSError where the file cannot be read."""
        with contextlib.suppress(FileNotFoundError, Undecodable):
            known = decoded(file.read_bytes(), Capabilities)
            return known if known.key == self.key() else None
        return None

    def cached(self, file: Path, now: float, *, refresh: bool = False) -> Capabilities:
        """What the file says as long as it holds, else `probe`, written down. Raises OSError where it cannot be."""
        known = None if refresh else self.kept(file)
        if known is not None:
            return known
        found = self.probe(now)
        write_atomically(file, msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        return found

    def _llama(self) -> Llama:
        listed, ended = self._ask("llama-list")
        if not listed:
            return Llama(reason=ended)
        shown = [{name: value for name, value in told.items() if name != "version"} for told in listed]
        devices = msgspec.convert(shown, tuple[LlamaDevice, ...])
        return Llama(str(listed[0]["version"]), self._each(["llama"], KV_TYPES), devices)

    def _each(self, what: Sequence[str], names: Sequence[str]) -> dict[str, Probe]:
        """One finding for each name: where the child ends in the middle, the next one goes on behind that."""
        found: dict[str, Probe] = {}
        left = list(names)
        while left:
            lines, ended = self._ask(*what, *left)
            for line in lines:
                found[str(line.pop("name"))] = msgspec.convert(line, Probe)
            left = [name for name in left if name not in found]
            if left:
                found[left.pop(0)] = Probe(False, ended or "the probe ended without a word")
        return {name: found[name] for name in names}

    def _ask(self, *arguments: str) -> tuple[list[dict[str, Any]], str | None]:
        """(what the child told, how it failed)."""
        argv = [*self._python, "-m", _MODULE, *arguments]
        environment = self._environment | lifeline.environment()
        lifeline_end, ours = os.pipe()  # not `PIPE`, which `communicate` closes first thing
        try:
            child = subprocess.Popen(
                argv, env=environment, stdin=lifeline_end, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            os.close(ours)
            return [], f"{self._python[0]}: {error.strerror or error}"
        finally:
            os.close(lifeline_end)
        late = False
        try:
            output, errors = _read(child, self._deadline_s)
        except subprocess.TimeoutExpired:
            late = True
            child.kill()
            output, errors = _read(child, None)
        finally:
            os.close(ours)
        ended = f"no answer within {self._deadline_s:g} s" if late else _end(child.returncode, errors)
        return [line for line in map(_line, output.splitlines()) if line is not None], ended


class Probed:
    """The findings in one file, and what is known of them for whoever may not wait."""

    def __init__(self, prober: Prober, file: Path) -> None:
        self._prober, self._file = prober, file
        self._known: Capabilities | None = None

    def read(self) -> None:
        """What was found out earlier, if it still holds. Blocks, and tries nothing. Never raises."""
        try:
            self._known = self._prober.kept(self._file)
        except OSError as error:
            log.warning("%s cannot be read: %s", self._file, error)

    def answer(self, now: float, *, refresh: bool = False) -> CapabilitiesAnswer:
        """As `Prober.cached`, of which it raises what that raises."""
        found = self._known = self._prober.cached(self._file, now, refresh=refresh)
        return CapabilitiesAnswer(**msgspec.structs.asdict(found), fallback=fallback_table(found))

    @property
    def kv_types(self) -> frozenset[str] | None:
        """llama.cpp's that really run here; None where that is not known, also where not even 16 bits would run: then
        it is not the type that fails."""
        runs = self._known.kv_types if self._known is not None else frozenset[str]()
        return runs if "f16" in runs else None


def fallback_table(found: Capabilities) -> FallbackTable:
    """Made of what really runs: INT4 -> INT8 -> FP16 -> FP32, and npu -> dml -> cpu."""
    precisions: dict[Place, tuple[Kind, ...]] = {}
    for name, provider in found.providers.items():
        runs = [kind for kind in KINDS if getattr(provider, kind).ok]
        for place in _places(name, provider):
            both = {*runs, *precisions.get(place, ())}
            if both:
                precisions[place] = tuple(kind for kind in KINDS if kind in both)
    return FallbackTable(
        tuple(place for place in PLACES if place in precisions),
        precisions,
        tuple(kind for kind in reversed(KV_TYPES) if kind in found.kv_types),
    )


def _places(name: str, provider: Provider) -> tuple[Place, ...]:
    told = tuple(dict.fromkeys(_PLACE_OF_KIND[kind] for kind in provider.kinds if kind in _PLACE_OF_KIND))
    return told or (_PLACE_OF.get(name, "dml"),)


def _read(child: "subprocess.Popen[bytes]", timeout_s: float | None) -> tuple[str, str]:
    output, errors = child.communicate(timeout=timeout_s)
    return output.decode(errors="replace"), errors.decode(errors="replace")


def _end(code: int, errors: str) -> str | None:
    if code == 0:
        return None
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    how = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"the probe {how}{': ' + lines[-1][:300] if lines else ''}"


def _line(text: str) -> dict[str, Any] | None:
    try:
        return decoded(text.encode(), dict[str, Any])
    except Undecodable:
        return None  # a line that was cut when its child ended


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The model's name; Linux has it in a file only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
