"""What the tests of the doctor share: somebody to examine, and programs that answer as the real ones do."""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest

from sekisho.engines.config import ModelConfig
from sekisho.ops import hardware
from sekisho.ops.doctor import Finding, Patient, clock, examination, machine, processes, programs, upstream, versions
from sekisho.ops.home import Home


def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """All limits of the examination lie far ahead: on a busy machine everything is slow, and nothing is wrong. A test
    that is about a limit sets it."""
    for module, name in (
        (programs, "IMPORT_TIMEOUT_S"),
        (clock, "PROBE_TIMEOUT_S"),
        (machine, "PROBE_TIMEOUT_S"),
        (versions, "PROBE_TIMEOUT_S"),
        (upstream, "TIMEOUT_S"),
        (processes, "TIMEOUT_S"),
    ):
        monkeypatch.setattr(module, name, 100.0)
    monkeypatch.setattr(hardware.try_probe, "__defaults__", (100.0,))
    monkeypatch.setitem(examination.examine.__kwdefaults__, "deadline_s", 100.0)


def patient(home: Home, *models: ModelConfig, port: int = 1, host: str = "127.0.0.1", **more: object) -> Patient:
    return Patient(home, host, port, models, **more)  # type: ignore[arg-type]


def cases(findings: Iterable[Finding]) -> list[str]:
    """What exactly was found, good news and mere remarks left out."""
    return [finding.case for finding in findings if finding.severity in ("error", "warning")]


def only(findings: list[Finding]) -> Finding:
    """The one finding, which has a fix in both languages where something is wrong."""
    (finding,) = findings
    if finding.severity in ("error", "warning") and finding.fix:
        assert finding.fix_ja
    return finding


def gguf(path: Path) -> Path:
    """A whole GGUF head: one key, one tensor of 4 bytes."""
    key, name = b"general.architecture", b"w"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 5) + b"llama"
    head += struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 1, 0, 0)
    path.write_bytes(head.ljust((len(head) + 31) // 32 * 32, b"\0") + bytes(32))
    return path


class Programs:
    """A folder of programs that comes first on the path."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def put(self, name: str, script: str) -> None:
        """A shell script of that name."""
        program = self.folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
