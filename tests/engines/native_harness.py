"""Builds of llama.cpp as the tests need them: the wheel's own files in another folder, with what goes wrong added."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from sekisho.engines import native_build, native_machine
from sekisho.engines.native_build import CHOICE, MANIFEST, PACKAGE, SITE, Choice, Manifest

WITHOUT_BUFFERS_ONLY = """
import os as _os, signal as _signal
_Server = Server
def Server(params):
    if not params.no_extra_bufts:
        _os.kill(_os.getpid(), _signal.SIGSEGV)
    return _Server(params)
"""
_OTHERWISE = """
import os as _os
_Server = Server
class Server:
    def __init__(self, params):
        self._server = _Server(params)
    def __getattr__(self, name):
        return getattr(self._server, name)
    def handle_completions(self, asked):
        return self._server.handle_completions(asked | {{"prompt": "of something else"}} if {when} else asked)
"""
WRONG = _OTHERWISE.format(when="True")
WRONG_ATTENTION = _OTHERWISE.format(when="_os.environ.get('SEKISHO_NATIVE_ATTENTION') != '0'")
WRONG_FAR = _OTHERWISE.format(when="len(asked['prompt']) > 2000 and 'logprobs' in asked")
DIES = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"


def manifest(**other: Any) -> Manifest:
    """Of a build that fits here."""
    wheel = native_build.installed()
    assert wheel is not None
    here = native_machine.here()
    fits = Manifest(
        version=wheel.version,
        wheel=wheel.wheel,
        system=here.system,
        processor=here.name,
        features=tuple(sorted(here.features)),
        compiler="gcc 12.2.0",
        treatment="none",
        cmake_args=(),
        built_at=1_790_000_000.0,
        took_s=780.0,
        checked=True,
    )
    return msgspec.structs.replace(fits, **other)


def write_site(site: Path, *, version: str | None = None, added: str = "", instead: str | None = None) -> Path:
    """The wheel's package once more. `added` follows its code, `instead` takes its place; `version`: what its metadata
    says."""
    wheel = metadata.distribution(PACKAGE)
    package = Path(str(wheel.locate_file(PACKAGE)))
    (site / PACKAGE).mkdir(parents=True)
    for path in package.iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            (site / PACKAGE / path.name).symlink_to(path)
    code = (package / "__init__.py").read_text() + added if instead is None else instead
    (site / PACKAGE / "__init__.py").write_text(code)
    told = version or wheel.version
    info = site / f"{PACKAGE}-{told}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {told}\n")
    return site


def write_build(
    root: Path, name: str = "build-1", *, chosen: bool = True, of: Manifest | None = None, **site: Any
) -> Path:
    """A build among others, chosen or not."""
    (root / name).mkdir(parents=True)
    (root / name / MANIFEST).write_bytes(msgspec.json.encode(of or manifest()))
    if chosen:
        (root / CHOICE).write_bytes(msgspec.json.encode(Choice(name)))
    return write_site(root / name / SITE, **site)


def activated(root: Path | None) -> tuple[str, str]:
    """Where a process takes llama.cpp from that calls `activate`, and what it says."""
    code = (
        "from sekisho.engines import native_build as b; b.activate(); import xllamacpp; "
        "print(xllamacpp.__file__, b.software(xllamacpp.__version__), sep='\\n')"
    )
    environment = native_build.environment(root) if root is not None else {}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr
