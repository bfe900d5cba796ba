"""What a build of llama.cpp needs of this machine, and what of it is missing."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import msgspec
import psutil

from sekisho.engines import native_machine

Need = Literal["compiler", "old_compiler", "headers", "pip", "disk", "memory"]
Which = Callable[[str], str | None]
Output = Callable[[tuple[str, ...]], str | None]

DISK_BYTES: Final = (
    800 * 2**20
)  # 380 MB were measured: sources, objects, libraries, the wheel; and pip's own environment
JOB_BYTES: Final = 800 * 2**20  # 630 MB were measured: the largest of the sources, gcc 12 at -O3
LEAST_GCC, LEAST_CLANG = (9,), (10,)
_ANSWER_S: Final = 30.0
_PAIRS: Final = (("gcc", "g++"), ("cc", "c++"), ("clang", "clang++"))
_PACKAGES: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "apt-get": {"compiler": "g++", "headers": "python{0}.{1}-dev"},
        "dnf": {"compiler": "gcc-c++", "headers": "python{0}-devel"},
        "zypper": {"compiler": "gcc-c++", "headers": "python{0}{1}-devel"},
        "pacman": {"compiler": "gcc", "headers": "python"},
        "apk": {"compiler": "g++", "headers": "python3-dev"},
        "brew": {"compiler": "gcc", "headers": "python@{0}.{1}"},
    }
)
_INSTALL: Final[Mapping[str, str]] = MappingProxyType(
    {
        "apt-get": "sudo apt-get install {}",
        "dnf": "sudo dnf install {}",
        "zypper": "sudo zypper install {}",
        "pacman": "sudo pacman -S {}",
        "apk": "sudo apk add {}",
        "brew": "brew install {}",
    }
)


class Compiler(msgspec.Struct, frozen=True):
    kind: Literal["gcc", "clang"]
    version: str
    c: str
    cpp: str

    @property
    def is_old(self) -> bool:
        """Too old for C++17 as llama.cpp uses it."""
        numbers = tuple(int(each) for each in self.version.split("."))
        return numbers < (LEAST_GCC if self.kind == "gcc" else LEAST_CLANG)

    def __str__(self) -> str:
        return f"{self.kind} {self.version}"


class Missing(msgspec.Struct, frozen=True):
    """`found`: what there is of it. `get`: a line that helps; empty where none is known."""

    need: Need
    needed: str
    found: str = ""
    get: str = ""


class Survey(msgspec.Struct, frozen=True):
    """`features`: what the compiler will use here. `fetch`: build tools that pip brings into a folder of the build.
    `jobs`: compilers that run at once."""

    compiler: Compiler | None
    features: frozenset[str]
    fetch: tuple[str, ...]
    ninja: bool
    jobs: int
    disk_free_bytes: int
    memory_free_bytes: int
    missing: tuple[Missing, ...]


def survey(root: Path, jobs: int | None, which: Which = shutil.which) -> Survey:
    """Looks at this machine; runs the compiler twice. Never raises."""
    compiler = find_compiler(os.environ, which, output)
    disk, memory = shutil.disk_usage(_existing(root)).free, psutil.virtual_memory().available
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fetch, ninja = build_tools(which)
    return Survey(
        compiler=compiler,
        features=used_features(compiler) if compiler is not None else frozenset(),
        fetch=fetch,
        ninja=ninja,
        jobs=jobs or max(1, min(cores, memory // JOB_BYTES)),
        disk_free_bytes=disk,
        memory_free_bytes=memory,
        missing=missing(compiler, _has_headers(), _has_pip(), disk, memory, which),
    )


def missing(
    compiler: Compiler | None, headers: bool, pip: bool, disk: int, memory: int, which: Which
) -> tuple[Missing, ...]:
    """What stands in the way, each with the line that helps."""
    found = []
    if compiler is None:
        found.append(Missing("compiler", "gcc or clang", get=install_line(["compiler"], which)))
    elif compiler.is_old:
        least = LEAST_GCC if compiler.kind == "gcc" else LEAST_CLANG
        newer = f"{compiler.kind} {least[0]}"
        found.append(Missing("old_compiler", newer, str(compiler), install_line(["compiler"], which)))
    if not headers:
        found.append(Missing("headers", "Python.h", get=install_line(["headers"], which)))
    if not pip:
        uv = f"uv pip install --python {sys.executable} pip"
        found.append(Missing("pip", "pip", get=uv if which("uv") else f"{sys.executable} -m ensurepip --upgrade"))
    if disk < DISK_BYTES:
        found.append(Missing("disk", _gibibytes(DISK_BYTES), _gibibytes(disk)))
    if memory < JOB_BYTES:
        found.append(Missing("memory", _gibibytes(JOB_BYTES), _gibibytes(memory)))
    return tuple(found)


def install_line(what: Iterable[str], which: Which) -> str:
    """For the package manager that is here; empty where none of them is."""
    manager = next((name for name in _PACKAGES if which(name)), None)
    if manager is None:
        return ""
    packages = (_PACKAGES[manager][each].format(*sys.version_info[:2]) for each in what)
    return _INSTALL[manager].format(" ".join(packages))


def find_compiler(environment: Mapping[str, str], which: Which, run: Output) -> Compiler | None:
    """CC and CXX where they are set, else gcc, then whatever the system calls its compiler, then clang."""
    told = (environment.get("CC", ""), environment.get("CXX", ""))
    pairs = [(told[0] or told[1], told[1] or told[0])] if any(told) else list(_PAIRS)
    for c, cpp in pairs:
        paths = which(c), which(cpp)
        if paths[0] is None or paths[1] is None:
            continue
        text = run((paths[1], "--version"))
        found = read_version(text) if text is not None else None
        if found is not None:
            return Compiler(found[0], found[1], paths[0], paths[1])
    return None


def read_version(text: str) -> tuple[Literal["gcc", "clang"], str] | None:
    """Out of what `--version` says; None where it is neither of the two."""
    clang = re.search(r"clang version (\d+(?:\.\d+)*)", text)
    if clang is not None:
        return "clang", clang[1]
    gcc = re.match(r"\S*(?:gcc|g\+\+|cc|c\+\+)\S* \(.*?\) (\d+(?:\.\d+)+)", text)
    return ("gcc", gcc[1]) if gcc is not None else None


def used_features(compiler: Compiler, extra: Iterable[str] = ()) -> frozenset[str]:
    """What the compiler makes use of when it builds for this processor."""
    for native in ("-march=native", "-mcpu=native"):
        text = output((compiler.cpp, native, *extra, "-dM", "-E", "-x", "c++", os.devnull))
        if text is not None:
            return native_machine.defined(text)
    return frozenset()


def build_tools(which: Which) -> tuple[tuple[str, ...], bool]:
    """What pip has to bring, and whether ninja will be there."""
    has_ninja = which("ninja") is not None
    fetch = [] if which("cmake") else ["cmake"]
    if not has_ninja and which("make") is None:
        fetch.append("ninja")
    return tuple(fetch), has_ninja or "ninja" in fetch


def output(command: tuple[str, ...]) -> str | None:
    """Standard output of a program in English; None where it fails."""
    english = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWER_S, check=True, env=english
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def _has_headers() -> bool:
    return (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file()


def _has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
