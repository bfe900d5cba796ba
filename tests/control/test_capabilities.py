"""What really runs here: graphs on ONNX Runtime's providers, tokens with llama.cpp's KV types, in children that crash,
hang and lie."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sekisho.control import capabilities, onnx_graph
from sekisho.control.capabilities import Capabilities, Llama, Probe, Prober, Provider, fallback_table
from sekisho.control.capability_probe import Place, judged
from sekisho.control.onnx_graph import KINDS

ROOT = Path(__file__).parents[2]
ORT_VENV = ROOT / "build" / "ort-venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
NONE = Probe(False, "no")
RUNS = Probe(True)


def ort_python() -> tuple[str, dict[str, str]]:
    """An interpreter with ONNX Runtime, and its environment; skips where there is none."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    for python in (os.environ.get("SEKISHO_ORT_PYTHON"), str(ORT_VENV), sys.executable):
        if python is not None and Path(python).exists():
            done = subprocess.run([python, "-c", "import onnxruntime"], capture_output=True, timeout=60, check=False)
            if done.returncode == 0:
                return python, environment
    pytest.skip("onnxruntime is in no interpreter here: python -m venv build/ort-venv, pip install onnxruntime there")


def acting(folder: Path, body: str, deadline_s: float = 60.0) -> Prober:
    """A prober whose child is this script; `what` and `names` are what it is asked."""
    script = folder / "child.py"
    script.write_text(f"import json, os, sys, time\nwhat, *names = sys.argv[3:]\n{body}")
    return Prober((sys.executable, str(script)), deadline_s=deadline_s, run=lambda argv: None)


def test_every_precision_really_runs_on_the_processor() -> None:
    """ONNX Runtime's CPU provider: four bits and eight bits run; sixteen bits are widened, and that is said. A provider
    that computes nothing itself is not taken for one that does."""
    python, environment = ort_python()
    found = Prober((python,), environment).probe(5.0)
    assert found.onnxruntime is not None
    assert found.onnxruntime_reason is None
    processor = found.providers["CPUExecutionProvider"]
    assert [getattr(processor, kind).ok for kind in KINDS] == [True] * 4
    assert processor.int8.max_error == 0.0
    assert all(
        getattr(processor, kind).max_error < onnx_graph.case(kind).tolerance for kind in ("int4", "fp16", "fp32")
    )
    if processor.fp16.reason is not None:
        assert "Cast" in processor.fp16.reason
    azure = found.providers.get("AzureExecutionProvider")
    if azure is not None:
        assert not azure.fp32.ok
        assert "CPU EP" in (azure.fp32.reason or "")
    table = fallback_table(found)
    assert "cpu" in table.devices
    assert table.precisions["cpu"] == KINDS


def test_the_graphs_are_onnx() -> None:
    """The vendor's own checker accepts every one of them, where it is installed."""
    python, environment = ort_python()
    check = "import onnx; from sekisho.control.onnx_graph import *\n"
    check += "for kind in KINDS: onnx.checker.check_model(onnx.load_from_string(case(kind).model), full_check=True)\n"
    if subprocess.run([python, "-c", "import onnx"], capture_output=True, timeout=60, check=False).returncode:
        pytest.skip("the package onnx, which checks the graphs, is not installed beside onnxruntime")
    done = subprocess.run([python, "-c", check], env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31, 2**62])
def test_whole_numbers_are_written_as_protocol_buffers_have_them(value: int) -> None:
    """Read back by the rule: seven bits a byte, the lowest first."""
    written = onnx_graph._varint(value)
    assert sum((byte & 127) << (7 * place) for place, byte in enumerate(written)) == value
    assert [byte >> 7 for byte in written] == [1] * (len(written) - 1) + [0]


def test_every_kv_type_really_generates_here() -> None:
    """llama.cpp with the built-in model: 16 bits agree with themselves, fewer bits lose something, and the loss is
    measured."""
    found = Prober().probe(1.0)
    assert found.llama.reason is None
    assert any(device.kind == "cpu" for device in found.llama.devices)
    assert set(found.llama.kv_types) == set(capabilities.KV_TYPES)
    assert found.kv_types >= {"f16", "q8_0", "q4_0"}
    losses = {kind: found.llama.kv_types[kind].max_error for kind in ("f16", "q8_0", "q4_0")}
    assert losses["f16"] == 0.0
    assert (losses["q4_0"] or 0.0) > 0.0
    assert all((probe.took_ms or 0) > 0 for probe in found.llama.kv_types.values())


def test_without_onnx_runtime_it_says_what_to_install(tmp_path: Path) -> None:
    """The child's own error, from an interpreter that has not got it."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True, timeout=100)
    python = bare / ("Scripts" if os.name == "nt" else "bin") / "python"
    found = Prober((str(python),), os.environ | {"PYTHONPATH": str(ROOT / "src")}).probe(1.0)
    assert (found.providers, found.onnxruntime) == ({}, None)
    assert found.onnxruntime_reason == capabilities.INSTALL_ONNX
    assert "xllamacpp" in (found.llama.reason or "")


def test_a_driver_that_aborts_takes_only_its_own_finding(tmp_path: Path) -> None:
    """The kinds before it stand, the ones behind it are tried by the next child."""
    prober = acting(
        tmp_path,
        "if what == 'onnx-list':\n"
        "    print(json.dumps({'name': 'P', 'kinds': ['gpu'], 'version': '9'}))\n"
        "for name in names[1:] if what == 'onnx' else []:\n"
        "    if name == 'int8':\n"
        "        print('cut', end=''); sys.stdout.flush()\n"
        "        print('driver: assertion failed', file=sys.stderr); sys.stderr.flush()\n"
        "        os.abort()\n"
        "    print(json.dumps({'name': name, 'ok': True, 'reason': None, 'max_error': 0.0}), flush=True)\n",
    )
    provider = prober.probe(1.0).providers["P"]
    assert [getattr(provider, kind).ok for kind in KINDS] == [True, False, True, True]
    assert "signal 6: driver: assertion failed" in (provider.int8.reason or "")


def test_a_driver_that_hangs_ends_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it told before stands; the rest is tried again behind it. The deadline passes for the child that hangs, and
    for no other, however slow this machine is."""
    read = capabilities._read

    def read_by_deadline(child: "subprocess.Popen[bytes]", deadline_s: float | None) -> tuple[str, str]:
        if deadline_s is None:
            return read(child, None)
        hung = tmp_path / f"hung-{child.pid}"
        while child.poll() is None and not hung.exists():
            time.sleep(0.01)
        return read(child, 0.05 if hung.exists() else None)

    monkeypatch.setattr(capabilities, "_read", read_by_deadline)
    prober = acting(
        tmp_path,
        "if what == 'llama-list':\n"
        "    print(json.dumps({'name': 'CPU', 'description': 'd', 'kind': 'cpu', 'memory_total_bytes': 1, "
        "'memory_free_bytes': 1, 'version': '9'}))\n"
        "for name in names if what == 'llama' else []:\n"
        "    if name == 'bf16':\n"
        f"        open({str(tmp_path)!r} + f'/hung-{{os.getpid()}}', 'w').close()\n"
        "        time.sleep(600)\n"
        "    print(json.dumps({'name': name, 'ok': True}), flush=True)\n",
        deadline_s=6.0,
    )
    types = prober.probe(1.0).llama.kv_types
    assert types["bf16"].reason == "no answer within 6 s"
    assert {kind for kind, probe in types.items() if not probe.ok} == {"bf16"}


def test_an_interpreter_that_is_not_there_is_a_reason() -> None:
    """Nothing is raised, and nothing is said to run."""
    found = Prober(("/nowhere/python",), run=lambda argv: None).probe(1.0)
    assert (found.providers, found.kv_types) == ({}, frozenset())
    assert found.llama.reason == "/nowhere/python: No such file or directory"


def test_the_findings_are_kept_as_long_as_packages_and_hardware_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file answers without a child; another version, a torn file or the wish to know anew start them."""
    counted = tmp_path / "counted"
    prober = acting(tmp_path, f"open({str(counted)!r}, 'a').write(what + '\\n')\n")
    file = tmp_path / "run" / "capabilities.json"

    def children() -> int:
        return len(counted.read_text().splitlines()) if counted.exists() else 0

    first = prober.cached(file, 1.0)
    once = children()
    assert once == 2
    assert prober.cached(file, 2.0) == first
    assert children() == once
    assert prober.cached(file, 3.0, refresh=True).measured_at == 3.0
    assert children() == 2 * once
    monkeypatch.setattr(capabilities, "_version", lambda package: "another")
    assert prober.cached(file, 4.0).measured_at == 4.0
    file.write_bytes(file.read_bytes()[:-20])
    assert prober.cached(file, 5.0).measured_at == 5.0
    file.write_bytes(b"\xff\xfe{}")
    assert prober.cached(file, 6.0).measured_at == 6.0


def capable(providers: dict[str, Provider], **kv_types: Probe) -> Capabilities:
    return Capabilities(providers, "1", None, Llama("1", kv_types), 1.0, "key")


def test_the_table_goes_from_few_bits_to_many_and_from_npu_to_processor() -> None:
    """Only what really runs is in it; the providers of one place count together."""
    found = capable(
        {
            "QNNExecutionProvider": Provider(NONE, RUNS, NONE, NONE, ("npu",)),
            "DmlExecutionProvider": Provider(NONE, NONE, RUNS, RUNS),
            "CUDAExecutionProvider": Provider(RUNS, NONE, NONE, RUNS, ("gpu",)),
            "CPUExecutionProvider": Provider(NONE, NONE, NONE, NONE, ("cpu",)),
        },
        f16=RUNS,
        q8_0=RUNS,
        q4_0=NONE,
    )
    table = fallback_table(found)
    assert table.devices == ("npu", "dml")
    assert table.precisions == {"npu": ("int8",), "dml": ("int4", "fp16", "fp32")}
    assert table.kv_types == ("q8_0", "f16")


@pytest.mark.parametrize(
    ("told", "ok"),
    [
        ([(1, {1: -0.1, 2: -3.0}), (5, {5: -0.2})], True),
        ([(1, {1: -0.5, 2: -3.0}), (6, {6: -0.2, 5: -0.9})], True),  # another token, and nearly as likely
        ([(1, {1: -0.1}), (6, {6: -0.1, 7: -3.0})], False),  # the right one is not even among the likeliest
        ([(1, {1: -4.0}), (5, {5: -0.2})], False),
        ([(1, {1: math.nan}), (5, {5: -0.2})], False),
    ],
)
def test_a_type_that_says_something_else_does_not_run(told: list[tuple[int, dict[int, float]]], ok: bool) -> None:
    """Tokens that come are not enough: they must be about as likely as at 16 bits."""
    reference = [Place(1, {1: -0.1, 2: -3.0}), Place(5, {5: -0.2, 6: -2.0})]
    verdict: dict[str, Any] = judged(reference, [Place(*place) for place in told])
    assert verdict["ok"] is ok
    msgspec.json.encode(verdict)
    assert verdict["max_error"] is None or math.isfinite(verdict["max_error"])
