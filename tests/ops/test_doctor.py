"""The examination as a whole: quick, in both languages, and each thing it can say is proved somewhere."""

import asyncio
import importlib
import pkgutil
import re
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from string import Formatter
from types import SimpleNamespace

import pytest
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests
sys.path.insert(1, str(Path(__file__).parents[1] / "engines"))

from doctor_harness import Programs, cases, gguf, only, patient
from native_harness import manifest, write_build

from sekisho.engines import native_build
from sekisho.engines.config import ModelConfig
from sekisho.ops import doctor
from sekisho.ops.doctor import Case, examination, files, programs
from sekisho.ops.home import Home


def every_case() -> dict[str, Case]:
    """All cases of all modules, by module and name."""
    found = {}
    for module in pkgutil.iter_modules(doctor.__path__):
        loaded = importlib.import_module(f"{doctor.__name__}.{module.name}")
        found |= {f"{module.name}.{name}": case for name, case in vars(loaded).items() if isinstance(case, Case)}
    return found


@pytest.mark.parametrize("case", every_case().values(), ids=every_case())
def test_both_languages_say_the_same(case: Case) -> None:
    """A case has both languages or neither, with the same values; what is wrong has a reason or a fix."""
    assert all(case.what)
    for pair in (case.what, case.why, case.fix):
        assert bool(pair[0]) == bool(pair[1])
        names = [{name for _, name, _, _ in Formatter().parse(words) if name} for words in pair]
        assert names[0] == names[1]
    if case.severity in ("error", "warning"):
        assert case.why[0] or case.fix[0]
    if case.severity == "error":
        assert case.fix[0]


def test_each_case_is_proved_by_a_test() -> None:
    """Every name that a finding can have stands in one of these tests, which make what it is about."""
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_doctor*.py"))
    assert [case.name for case in every_case().values() if f'"{case.name}"' not in tests] == []


def test_a_finding_in_japanese() -> None:
    """The words come in the reader's language; values that differ by language, too."""
    found = Case("a.b", "error", ("no {x}", "{x} なし"), fix=("do", "する")).found(x=("hat", "帽子"))
    assert found.told("en") == ("no hat", "", "do")
    assert found.told("ja") == ("帽子 なし", "", "する")
    assert (found.id, found.case) == ("a", "a.b")


def test_old_python() -> None:
    """3.11 is the oldest that will do."""
    assert programs.check_python((3, 11, 0)).case == "python.good"
    assert programs.check_python((3, 10, 14)).case == "python.too_old"


def test_settings(tmp_path: Path) -> None:
    """Each problem of the settings becomes a finding that repeats it; none, or no file, is fine."""
    home = Home(tmp_path)
    sick = patient(home, settings_problems=("sekisho.yaml:2:3: gateway.prot: unknown",))
    assert [(f.case, f.why) for f in files.check_settings(sick)] == [("settings.wrong", sick.settings_problems[0])]
    assert only(files.check_settings(patient(home))).case == "settings.default"
    home.settings_file.write_text("")
    assert only(files.check_settings(patient(home))).case == "settings.good"


def test_llama_cpp_that_loads(tmp_path: Path) -> None:
    """The library of this environment loads."""
    assert only(programs.check_engine_library(patient(Home(tmp_path)))).case == "llama_cpp.good"


@pytest.mark.parametrize(
    ("body", "word", "limit_s"),
    [
        ("raise ImportError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12", 100.0),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "instruction", 100.0),
        ("import time; time.sleep(600)", "no end", 0.1),
    ],
)
def test_llama_cpp_that_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, word: str, limit_s: float
) -> None:
    """A library that is broken, kills the process or hangs is told; it counts as an error where a model needs it."""
    (tmp_path / "xllamacpp.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(programs, "IMPORT_TIMEOUT_S", limit_s)
    home = Home(tmp_path)
    needed = only(programs.check_engine_library(patient(home, ModelConfig(name="m", path="builtin"))))
    assert (needed.case, needed.severity, word in needed.why) == ("llama_cpp.does_not_load", "error", True)
    assert only(programs.check_engine_library(patient(home))).severity == "warning"


def test_a_native_build_that_is_not_used(tmp_path: Path) -> None:
    """It says why, in both languages; one that fits is told as good, and none at all is nothing to tell."""
    home = Home(tmp_path).create()
    assert programs.check_native_build(patient(home)) == []
    write_build(home.native_engines, of=manifest(version="2020.1.1"))
    found = only(programs.check_native_build(patient(home)))
    wheel = native_build.installed()
    assert wheel is not None
    assert (found.case, found.severity) == ("native_engine.unused", "warning")
    assert found.why == f"it is 2020.1.1, installed is {wheel.version}; the wheel runs instead, which is slower"
    assert f"インストール済みは {wheel.version}" in found.why_ja
    write_build(home.native_engines, "build-2")
    assert only(programs.check_native_build(patient(home))).case == "native_engine.good"
    (home.native_engines / native_build.CHOICE).write_text("{")
    assert "use.json" in only(programs.check_native_build(patient(home))).why


async def test_whole_examination(tmp_path: Path, unused_tcp_port: int) -> None:
    """No errors, and each kind of check has its say, in a steady order."""
    model = ModelConfig(name="m", path=str(gguf(tmp_path / "m.gguf")))
    home = Home(tmp_path / "home").create()
    sound = patient(home, model, port=unused_tcp_port, database=str(home.database))
    found = await doctor.examine(sound)
    assert [f for f in found if f.severity == "error"] == []
    ids = [f.id for f in found]
    assert {*ids} >= {"python", "versions", "settings", "home", "files", "disk", "port", "clock", "llama_cpp"}
    assert {*ids} >= {"memory", "limits", "gpu", "model_file", "database", "server"}
    assert [f.id for f in await doctor.examine(sound)] == ids


async def test_what_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three addresses that never answer and a driver that hangs: the examination ends in its time all the same, tells
    of each, and has looked at everything else."""
    release = threading.Event()
    given: list[float] = []
    running: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def timeout(limit_s: float) -> AsyncIterator[None]:
        """Ends when the test says so: by the clock, a check that is slow here and now would end with those that
        hang."""
        given.append(limit_s)
        async with asyncio.timeout(None) as limit:
            running.add(limit)
            try:
                yield
            finally:
                running.discard(limit)

    async def silent(_request: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        return web.Response()

    application = web.Application()
    application.router.add_get("/v1/models", silent)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    models = [ModelConfig(name=f"m{number}", engine="openai_http", url=url) for number in range(3)]

    def hang(_patient: object) -> list[doctor.Finding]:
        release.wait(600)
        return []

    monkeypatch.setitem(examination.CHECKS, "graphics cards", hang)
    monkeypatch.setattr(examination, "asyncio", SimpleNamespace(**{**vars(asyncio), "timeout": timeout}))
    examining = asyncio.create_task(doctor.examine(patient(Home(tmp_path / "home"), *models), deadline_s=1.5))
    try:
        checks = len(examination.CHECKS) + len(models) + len(("database", "server"))
        while len(given) < checks or len(running) > 4:  # noqa: ASYNC110 - the checks are threads
            await asyncio.sleep(0.01)
        for limit in tuple(running):
            limit.reschedule(asyncio.get_running_loop().time())
        found = await examining
    finally:
        await runner.cleanup()
        release.set()
    assert given == [1.5] * checks
    assert cases(found).count("check.slow") == 4
    assert "python.good" in [f.case for f in found]


async def test_a_check_that_may_not_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system refuses, the finding says so, and the others are there; a mistake of ours is
    called one, with its place."""

    def refused(_patient: object) -> list[doctor.Finding]:
        raise PermissionError(13, "Permission denied", "/secret")

    monkeypatch.setitem(examination.CHECKS, "clock", refused)
    found = await doctor.examine(patient(Home(tmp_path / "home")))
    (failed,) = [f for f in found if f.case == "check.failed"]
    assert "/secret" in failed.why
    assert "python.good" in [f.case for f in found]

    def wrong(_patient: object) -> list[doctor.Finding]:
        raise KeyError("our mistake")

    monkeypatch.setitem(examination.CHECKS, "clock", wrong)
    found = await doctor.examine(patient(Home(tmp_path / "home")))
    (broken,) = [f for f in found if f.case == "check.broken"]
    assert broken.why.startswith("KeyError: 'our mistake' (test_doctor.py:")
    assert broken.fix_ja
    assert "python.good" in [f.case for f in found]


def test_the_programs_of_the_harness_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that a test puts on the path is the one that is asked."""
    Programs(tmp_path / "bin", monkeypatch).put("nvidia-smi", "echo hello")
    from sekisho.ops.hardware import run_probe

    assert run_probe(["nvidia-smi"]) == "hello\n"


def row(case: Case) -> str:
    """A case's line in `docs/doctor.md`: values in braces are dots there."""

    def cell(words: str) -> str:
        return re.sub(r"\{[^}]*\}", "…", words).replace("|", "\\|")

    return f"| `{case.name}` | {case.severity} | {cell(case.what[0])} | {cell(case.why[0])} | {cell(case.fix[0])} |"


def test_the_page_lists_what_can_be_wrong() -> None:
    """Every warning and error has its line in docs/doctor.md, in the words of the program, and no other line is
    there."""
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    listed = [line for line in page.splitlines() if line.startswith("| `")]
    expected = [row(case) for case in every_case().values() if case.severity in ("warning", "error")]
    assert sorted(listed) == sorted(dict.fromkeys(expected))
