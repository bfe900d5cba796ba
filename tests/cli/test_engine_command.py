"""`sekisho engine`."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))  # the harness lies beside the engines' tests

from native_harness import manifest, write_build

from sekisho.cli import engine
from sekisho.engines import native_build, native_compile, native_making, native_needs, native_trial
from sekisho.engines.config import ModelConfig
from sekisho.engines.native_build import Manifest
from sekisho.engines.native_needs import Compiler, Survey

Run = Callable[..., tuple[int, str, str]]
Answer = Callable[..., Any]
GCC = Compiler("gcc", "12.2.0", "/usr/bin/gcc", "/usr/bin/g++")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="a build for this machine is made on Linux")


def builds_of(home: Path) -> Path:
    return home / "engines" / "native"


def measured() -> Manifest:
    """As fast as it was measured once."""
    config = ModelConfig("my-model", path="builtin")
    figures = (native_trial.figure("decode", config, [10.0, 10.0], [19.0, 21.0]),)
    found: Manifest = manifest(figures=figures)
    return found


def test_without_a_build_workers_use_the_wheel(sekisho: Run, answer: Answer) -> None:
    """Told with its version; no build is made up."""
    told = answer("engine", "status")
    assert (told["uses"], told["build"], told["builds"], told["why_not"]) == ("wheel", None, [], None)
    code, out, _ = sekisho("engine", "status")
    assert (code, f"Workers use the wheel: xllamacpp {told['wheel']}" in out) == (0, True)


def test_a_build_is_chosen_and_left(sekisho: Run, answer: Answer, home: Path) -> None:
    """`use native` takes the newest that fits, `use wheel` goes back; the status says which it is, and how fast."""
    write_build(builds_of(home), "mine", chosen=False, of=measured())
    write_build(builds_of(home), "newer", chosen=False, of=manifest(version="1999.1.1", built_at=2e9))
    assert answer("engine", "use", "native") == {"uses": "native", "build": "mine"}
    told = answer("engine", "status")
    assert (told["uses"], told["build"]) == ("native", "mine")
    assert [(each["build"], each["fits"]) for each in told["builds"]] == [("newer", False), ("mine", True)]
    _, out, _ = sekisho("engine", "status")
    assert "Workers use the build mine" in out
    assert "2.00" in out
    assert "1.90 … 2.10" in out
    assert answer("engine", "use", "wheel") == {"uses": "wheel", "build": None}
    assert answer("engine", "status")["uses"] == "wheel"


def test_a_build_that_no_longer_fits_is_told(sekisho: Run, answer: Answer, home: Path) -> None:
    """Another version was installed, or the home was moved to another processor: the wheel, and why."""
    write_build(builds_of(home), "mine", of=manifest(features=("avx9999",)))
    told = answer("engine", "status")
    assert (told["uses"], told["chosen"]) == ("wheel", "mine")
    assert "lacks avx9999" in told["why_not"]
    code, out, error = sekisho("engine", "status")
    assert code == 0
    assert "lacks avx9999" in error
    assert "Workers use the wheel" in out


def test_what_is_not_there_cannot_be_used(sekisho: Run, home: Path) -> None:
    """No build that fits ends with 3, each with its reason; another word than the two with 2."""
    write_build(builds_of(home), "mine", chosen=False, of=manifest(version="1999.1.1"))
    code, _, error = sekisho("engine", "use", "native")
    assert code == 3
    assert "mine: it is 1999.1.1" in error
    assert "sekisho engine build-native" in error
    assert sekisho("engine", "use", "fast")[0] == 2


@LINUX
def test_a_build_needs_a_compiler(sekisho: Run, answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without one: what is missing, before anything is fetched."""
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, error = sekisho("engine", "build-native", "--yes")
    assert code == 1
    assert "a C++ compiler: gcc or clang" in error
    told = answer("engine", "build-native", "--yes", code=1)
    assert [each["need"] for each in told["error"]["missing"]] == ["compiler"]


class Machine:
    """A machine on which nothing is missing, and where a build takes no time: the wheel's own files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        survey = Survey(GCC, frozenset(), (), True, 1, 9 << 30, 9 << 30, ())
        monkeypatch.setattr(native_needs, "survey", lambda root, jobs: survey)
        monkeypatch.setattr(engine, "KV_MEASURED", ())  # what is measured is proved beside the engines
        self.fails = False
        self.built = 0
        self.attention = True
        make = native_making.make

        def build(recipe: Any, site: Path, progress: Any) -> bool:
            from native_harness import write_site

            if self.fails:
                raise native_compile.BuildFailed("pip wheel ended with 1", ("ops.cpp:1: error: no",))
            self.built += 1
            write_site(site)
            return self.attention

        def quick(wanted: Any, finding: Any, progress: Any, clock: Any) -> native_making.Made:
            return make(wanted, finding, progress, clock, build)

        monkeypatch.setattr(native_making, "make", quick)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@LINUX
def test_nothing_is_built_without_a_yes(sekisho: Run, machine: Machine) -> None:
    """Nobody is at a terminal: it ends with 2 and names the option."""
    code, out, error = sekisho("engine", "build-native")
    assert code == 2
    assert "--yes" in error
    assert "gcc 12.2.0, 1 at once" in out
    assert machine.built == 0


@LINUX
def test_a_build_is_made_once(answer: Answer, machine: Machine, home: Path) -> None:
    """Unchecked it is kept but not used; what is known for this compiler and processor is not built again."""
    told = answer("engine", "build-native", "--yes", "--no-check")
    assert (told["used"], told["manifest"]["checked"]) == (False, False)
    assert answer("engine", "status")["uses"] == "wheel"
    assert not (builds_of(home) / native_making.WORK).exists()
    again = answer("engine", "build-native", "--yes", "--keep-sources")
    assert (again["build"], again["manifest"]["checked"]) == (told["build"], True)
    assert (builds_of(home) / native_making.WORK).is_dir()
    known = answer("engine", "build-native", "--yes")
    assert (known["build"], known["used"], machine.built) == (told["build"], True, 2)
    assert answer("engine", "status")["build"] == told["build"]


@LINUX
@pytest.mark.parametrize(
    ("ours", "told"), [(True, "Attention is Sekisho's"), (False, "its attention is llama.cpp's own")]
)
def test_whose_attention_it_is_is_told(sekisho: Run, machine: Machine, ours: bool, told: str) -> None:
    """After the build, and in the list of builds."""
    machine.attention = ours
    code, out, error = sekisho("engine", "build-native", "--yes", "--no-check")
    assert code == 0
    assert told in out + error
    assert ("llama.cpp" in sekisho("engine", "status")[1].partition("Attention")[2]) is not ours


@LINUX
def test_a_failed_build_says_where_it_failed(sekisho: Run, machine: Machine, home: Path) -> None:
    """The compiler's last words, and where all of them are; nothing is chosen."""
    machine.fails = True
    code, _, error = sekisho("engine", "build-native", "--yes")
    assert code == 1
    assert "ops.cpp:1: error: no" in error
    assert str(builds_of(home)) in error
    assert native_build.chosen(builds_of(home)) is None


@LINUX
def test_somebody_else_builds(sekisho: Run, machine: Machine, home: Path) -> None:
    """Two builds would write into the same folder."""
    os.makedirs(builds_of(home))
    with native_making.alone(builds_of(home)):
        code, _, error = sekisho("engine", "build-native", "--yes")
    assert code == 1
    assert "somebody else builds" in error
