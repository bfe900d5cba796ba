"""Python, llama.cpp's library and the build of it for this machine, and packages that must fit each other."""

import signal
import subprocess
import sys

from sekisho.engines import native_build, native_machine
from sekisho.ops.doctor import versions
from sekisho.ops.doctor.finding import Case, Finding, Patient, Words

OLDEST_PYTHON = (3, 11)
IMPORT_TIMEOUT_S = 4.0

PYTHON_GOOD = Case("python.good", "ok", ("Python {version}", "Python {version}"))
PYTHON_OLD = Case(
    "python.too_old",
    "error",
    ("Python {version} is too old", "Python {version} は古すぎます"),
    ("3.11 is needed", "3.11 以上が必要です"),
    ("install Python 3.11 or newer", "Python 3.11 以上をインストールしてください"),
)
LIBRARY_GOOD = Case("llama_cpp.good", "ok", ("llama.cpp loads (xllamacpp)", "llama.cpp を読み込めました（xllamacpp）"))
LIBRARY_BAD = Case(
    "llama_cpp.does_not_load",
    "error",
    ("llama.cpp does not load", "llama.cpp を読み込めません"),
    ("{why}", "{why}"),
    ("{fix}", "{fix}"),
)
LIBRARY_UNUSED = Case("llama_cpp.does_not_load", "warning", LIBRARY_BAD.what, LIBRARY_BAD.why, LIBRARY_BAD.fix)
BUILD_GOOD = Case(
    "native_engine.good",
    "ok",
    (
        "llama.cpp runs as built for this machine ({build})",
        "このマシン向けにビルドした llama.cpp を使います（{build}）",
    ),
)
BUILD_UNUSED = Case(
    "native_engine.unused",
    "warning",
    (
        "the build of llama.cpp for this machine ({build}) is not used",
        "このマシン向けの llama.cpp のビルド（{build}）は使われていません",
    ),
    ("{why}; the wheel runs instead, which is slower", "{why}。代わりに wheel が動き、遅くなります"),
    (
        "sekisho engine build-native, or: sekisho engine use wheel",
        "sekisho engine build-native、または sekisho engine use wheel",
    ),
)

_REINSTALL: Words = ("pip install --force-reinstall xllamacpp", "pip install --force-reinstall xllamacpp")
_BUILD: Words = (
    "build it for this processor: pip install --no-binary xllamacpp xllamacpp",
    "このプロセッサー向けにビルドしてください: pip install --no-binary xllamacpp xllamacpp",
)


def check_programs(patient: Patient) -> list[Finding]:
    return [check_python(sys.version_info[:3]), *versions.check_versions()]


def check_python(version: tuple[int, ...]) -> Finding:
    text = ".".join(str(part) for part in version)
    return (PYTHON_GOOD if version >= OLDEST_PYTHON else PYTHON_OLD).found(version=text)


def check_engine_library(patient: Patient) -> list[Finding]:
    """Loads llama.cpp in a process of its own: on a processor that lacks an instruction it would take us with it."""
    command = [sys.executable, "-c", "import xllamacpp"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        why: Words = (f"no end within {IMPORT_TIMEOUT_S:g} s", f"{IMPORT_TIMEOUT_S:g} 秒以内に終わりません")
        return [_bad(patient, why, _REINSTALL)]
    if done.returncode == 0:
        return [LIBRARY_GOOD.found()]
    if done.returncode == -getattr(signal, "SIGILL", 4):
        why = (
            "the wheel uses an instruction that this processor lacks",
            "このプロセッサーにない命令が使われています",
        )
        return [_bad(patient, why, _BUILD)]
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return [_bad(patient, (last, last), _REINSTALL)]


def check_native_build(patient: Patient) -> list[Finding]:
    """Nothing where none is chosen."""
    root, build = patient.home.native_engines, None
    try:
        build = native_build.chosen(root)
        if build is None:
            return []
        native_build.usable(root, build, native_build.installed(), native_machine.here())
    except native_build.Unusable as error:
        return [BUILD_UNUSED.found(build=build or root.name, why=error.misfit.words())]
    return [BUILD_GOOD.found(build=build)]


def _bad(patient: Patient, why: Words, fix: Words) -> Finding:
    needed = any(model.engine == "llama_cpp" for model in patient.models)
    return (LIBRARY_BAD if needed else LIBRARY_UNUSED).found(why=why, fix=fix)
