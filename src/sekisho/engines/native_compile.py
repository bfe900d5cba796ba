"""Builds xllamacpp from its sources for this machine: fetched by pip as the user has set it up, unpacked in a folder
of the build, compiled there. What an interrupted build has compiled is not compiled again.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from sekisho.engines import native_attention
from sekisho.engines.native_build import PACKAGE
from sekisho.engines.native_needs import Compiler

CMAKE_ARGS: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_LLGUIDANCE=OFF",  # would need a Rust compiler; llama.cpp's own grammars hold answers to a schema
    "-DLLAMA_BUILD_BORINGSSL=OFF",  # workers listen on 127.0.0.1 and fetch nothing
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # would be downloaded while it builds
)
_OTHERS: Final = ("XLLAMACPP_", "CUDA_ARCHITECTURES", "AMDGPU_TARGETS", "CMAKE_ARGS", "PYTHONPATH", "NPROC")
_TAIL_LINES: Final = 15
_NICE: Final = 10  # a server that answers meanwhile comes first
_PIP: Final = (sys.executable, "-m", "pip")
_SPOKEN: Final = MappingProxyType({"download": "fetch", "wheel": "build", "install": "install"})

_LLAMA: Final = Path("thirdparty/llama.cpp")

Progress = Callable[[str, int, int], None]


class Compiled(NamedTuple):
    """`attention`: whether it is Sekisho's."""

    wheel: Path
    attention: bool


class Recipe(msgspec.Struct, frozen=True):
    """`folder`: of the build, ours alone. `flags`: for every C and C++ source. `tools`: what pip is to bring first."""

    version: str
    compiler: Compiler
    jobs: int
    folder: Path
    flags: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    ninja: bool = True

    @property
    def log(self) -> Path:
        return self.folder / "build.log"


class BuildFailed(Exception):
    """`tail`: the last lines of what failed; the whole is in the log."""

    def __init__(self, message: str, tail: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.tail = tail


def build(recipe: Recipe, progress: Progress) -> Compiled:
    """Minutes. Raises BuildFailed; whatever ends it early ends the compilers too."""
    recipe.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    recipe.log.unlink(missing_ok=True)
    environment = settings(recipe, os.environ)
    if recipe.tools:
        target = str(recipe.folder / "tools")
        _run(recipe, (*_PIP, "install", "--target", target, "--upgrade", *recipe.tools), environment, progress)
    sources = _sources(recipe, environment, progress)
    try:
        attention = native_attention.add(sources / _LLAMA, recipe.compiler.cpp, recipe.flags)
    except OSError as error:
        raise BuildFailed(f"Sekisho's attention cannot be put among the sources: {error}") from error
    out = recipe.folder / "wheel"
    shutil.rmtree(out, ignore_errors=True)
    order = ("wheel", "--verbose", "--no-deps", "--wheel-dir", str(out), str(sources))
    _run(recipe, (*_PIP, *order), environment, progress)
    wheels = list(out.glob("*.whl"))
    if len(wheels) != 1:
        raise BuildFailed(f"pip built {len(wheels)} wheels, not one")
    return Compiled(wheels[0], attention)


def install(recipe: Recipe, wheel: Path, site: Path, progress: Progress) -> None:
    """Into a folder of its own; the environment's package stays as it is. Raises BuildFailed."""
    shutil.rmtree(site, ignore_errors=True)
    order = ("install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    _run(recipe, (*_PIP, *order), settings(recipe, os.environ), progress)


def settings(recipe: Recipe, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of the build: pip's own variables stay, what would build something else does not."""
    kept = {name: value for name, value in environment.items() if not name.startswith(_OTHERS)}
    tools = recipe.folder / "tools"
    paths = [tools / "cmake" / "data" / "bin", tools / "ninja" / "data" / "bin", tools / "bin"]
    flags = " ".join(recipe.flags)
    return kept | {
        "CC": recipe.compiler.c,
        "CXX": recipe.compiler.cpp,
        "CFLAGS": flags,
        "CXXFLAGS": flags,
        "CMAKE_ARGS": " ".join(CMAKE_ARGS),
        "CMAKE_GENERATOR": "Ninja" if recipe.ninja else "Unix Makefiles",
        "NPROC": str(recipe.jobs),
        "PATH": os.pathsep.join([*(str(path) for path in paths), kept.get("PATH", os.defpath)]),
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
        "LC_ALL": "C",
    }


def step(line: str) -> tuple[int, int] | None:
    """How far the compilers are, by ninja's `[12/345]` or make's `[ 12%]`."""
    ninja = re.match(r"\s*\[(\d+)/(\d+)\] ", line)
    if ninja is not None:
        return int(ninja[1]), int(ninja[2])
    make = re.match(r"\s*\[ *(\d+)%\] ", line)
    return (int(make[1]), 100) if make is not None else None


def _sources(recipe: Recipe, environment: dict[str, str], progress: Progress) -> Path:
    """Fetched once. The sdist of exactly this version, from wherever this user's pip fetches packages."""
    folder = recipe.folder / f"{PACKAGE}-{recipe.version}"
    if folder.is_dir():
        return folder
    fetched = recipe.folder / "sdist"
    shutil.rmtree(fetched, ignore_errors=True)
    named = f"{PACKAGE}=={recipe.version}"
    order = ("download", "--no-deps", "--no-binary", PACKAGE, "--dest", str(fetched), named)
    _run(recipe, (*_PIP, *order), environment, progress)
    archives = list(fetched.glob("*.tar.gz"))
    if len(archives) != 1:
        raise BuildFailed(f"pip fetched {len(archives)} archives of {named}, not one")
    draft = recipe.folder / "unpacking"
    shutil.rmtree(draft, ignore_errors=True)
    with tarfile.open(archives[0]) as archive:
        archive.extractall(draft, filter="data")
    unpacked = draft / folder.name
    if not unpacked.is_dir():
        raise BuildFailed(f"{archives[0].name} holds no folder {folder.name}")
    unpacked.rename(folder)
    return folder


def _run(recipe: Recipe, command: tuple[str, ...], environment: dict[str, str], progress: Progress) -> None:
    """What it says goes into the log; steps go to `progress`. Raises BuildFailed."""
    order = command[len(_PIP)]
    what = _SPOKEN[order]
    progress(what, 0, 1)
    tail: list[str] = []
    with (
        recipe.log.open("a", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as child,
    ):
        assert child.stdout is not None
        with suppress(OSError):  # it has ended already, or we are nicer than that
            os.setpriority(os.PRIO_PGRP, child.pid, _NICE)
        try:
            for line in child.stdout:
                log.write(line)
                tail = [*tail, line.rstrip()][-_TAIL_LINES:]
                told = step(line)
                if told is not None:
                    progress("compile", *told)
            code = child.wait()
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)  # compilers and all
            raise
    if code != 0:
        raise BuildFailed(f"pip {order} ended with {code}", tuple(tail))
    progress(what, 1, 1)
