"""llama.cpp built for this machine: what is found out before, and how a process takes the build."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from kept_port import kept_port
from native_harness import WITHOUT_BUFFERS_ONLY, activated, manifest, write_build

from sekisho.engines import (
    lifeline,
    llama_worker,
    native_build,
    native_compile,
    native_machine,
    native_making,
    native_needs,
    native_trap,
)
from sekisho.engines.config import ModelConfig
from sekisho.engines.native_build import Installed, Misfit
from sekisho.engines.native_check import Place
from sekisho.engines.native_compile import Recipe
from sekisho.engines.native_machine import Processor
from sekisho.engines.native_needs import Compiler
from sekisho.engines.native_trap import Finding

XEON = "processor\t: 0\nmodel name\t: A Xeon\nflags\t\t: fpu avx2 fma f16c amx_tile amx_int8 rdtscp\n"
GCC = Compiler("gcc", "12.2.0", "/usr/bin/gcc", "/usr/bin/g++")
GIB = 2**30


def place(token: int, *others: tuple[int, float]) -> Place:
    return Place(token, dict(others))


# the processor


def test_features_are_what_every_core_has() -> None:
    """Only instruction sets count, and only those of all cores: threads move between them."""
    assert native_machine.features(XEON) == {"avx2", "fma", "f16c", "amx_tile", "amx_int8"}
    weaker = XEON.replace("amx_tile amx_int8", "")
    assert native_machine.features(XEON + "\n" + weaker) == {"avx2", "fma", "f16c"}


def test_an_arm_processor_is_read_as_well() -> None:
    """There the line is called `Features`, and makers give numbers instead of a name."""
    text = "processor : 0\nFeatures : fp asimd asimddp i8mm sve\nCPU implementer : 0x41\nCPU part : 0xd40\n"
    assert native_machine.features(text) == {"asimd", "asimddp", "i8mm", "sve"}
    assert native_machine.name(text) == "0x41 0xd40"
    assert native_machine.name(XEON) == "A Xeon"


def test_a_system_that_tells_nothing_has_no_features(tmp_path: Path) -> None:
    """No /proc/cpuinfo, no claim."""
    assert native_machine.here(tmp_path / "none").features == frozenset()
    assert native_machine.features("nothing here\n") == frozenset()


def test_what_a_compiler_uses_is_read_from_its_macros() -> None:
    """A name that only begins like one of ours is another one."""
    text = "#define __AVX2__ 1\n#define __AVX512FP16__ 1\n#define __FMA4__ 1\n#define __AMX_TILE__ 1\n"
    assert native_machine.defined(text) == {"avx2", "avx512_fp16", "amx_tile"}
    assert native_machine.spoken({"avx2", "amx_int8", "pni"}) == "AVX2, AMX INT8"


# what it needs


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("g++ (Debian 12.2.0-14+deb12u1) 12.2.0\nCopyright", ("gcc", "12.2.0")),
        ("g++-13 (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0\n", ("gcc", "13.3.0")),
        ("c++ (GCC) 11.5.0 20240719 (Red Hat 11.5.0-2)\n", ("gcc", "11.5.0")),
        ("Debian clang version 19.1.7 (3)\nTarget: x86_64", ("clang", "19.1.7")),
        ("icpx 2025\n", None),
        ("", None),
    ],
)
def test_a_compilers_version_is_read(text: str, found: tuple[str, str] | None) -> None:
    """Of the makers' own words, with what distributions add to them."""
    assert native_needs.read_version(text) == found


def test_the_users_compiler_comes_first() -> None:
    """CC and CXX win; one of them alone stands for both; without them gcc comes before clang."""

    def which(name: str) -> str | None:
        return f"/bin/{name}" if name in ("gcc", "g++", "clang++") else None

    def run(command: tuple[str, ...]) -> str:
        return "clang version 19.1.7" if "clang" in command[0] else "g++ (Debian) 12.2.0"

    assert str(native_needs.find_compiler({}, which, run)) == "gcc 12.2.0"
    told = native_needs.find_compiler({"CXX": "clang++"}, which, run)
    assert told == Compiler("clang", "19.1.7", "/bin/clang++", "/bin/clang++")
    assert native_needs.find_compiler({"CXX": "icpx"}, which, run) is None


@pytest.mark.parametrize(
    ("manager", "line"),
    [
        ("apt-get", f"sudo apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-dev"),
        ("dnf", "sudo dnf install python3-devel"),
        ("brew", f"brew install python@{sys.version_info[0]}.{sys.version_info[1]}"),
        ("nix", ""),
    ],
)
def test_what_is_missing_comes_with_the_line_that_helps(manager: str, line: str) -> None:
    """For the package manager that is there; nothing is claimed for one that is not known."""

    def which(name: str) -> str | None:
        return name if name == manager else None

    (missing,) = native_needs.missing(GCC, False, True, 9 * GIB, 9 * GIB, which)
    assert (missing.need, missing.get) == ("headers", line)


def test_everything_that_is_missing_is_told_at_once() -> None:
    """Nobody is sent away twice."""
    all_missing = native_needs.missing(None, False, False, 0, 0, lambda _: None)
    assert [each.need for each in all_missing] == ["compiler", "headers", "pip", "disk", "memory"]
    old = msgspec.structs.replace(GCC, version="8.5.0")
    (only,) = native_needs.missing(old, True, True, 9 * GIB, 9 * GIB, lambda _: None)
    assert (only.need, only.needed, only.found) == ("old_compiler", "gcc 9", "gcc 8.5.0")
    assert native_needs.missing(GCC, True, True, 9 * GIB, 9 * GIB, lambda _: None) == ()


@pytest.mark.parametrize(
    ("there", "fetch", "ninja"),
    [
        (("cmake", "ninja"), (), True),
        (("cmake", "make"), (), False),
        (("make",), ("cmake",), False),
        ((), ("cmake", "ninja"), True),
    ],
)
def test_pip_brings_the_build_tools_that_are_not_there(
    there: tuple[str, ...], fetch: tuple[str, ...], ninja: bool
) -> None:
    """cmake where there is none, ninja where there is no make either."""
    assert native_needs.build_tools(lambda name: name if name in there else None) == (fetch, ninja)


# the trap


@pytest.mark.parametrize(
    ("plain", "treated", "treatment"),
    [
        ("right", "right", "none"),
        ("refused", "refused", "none"),
        ("dropped", "right", "barrier"),
        ("dropped", "dropped", "without_amx"),
        ("uncompiled", "uncompiled", "without_amx"),
    ],
)
def test_the_trap_is_treated_as_the_probe_says(plain: str, treated: str, treatment: str, tmp_path: Path) -> None:
    """A compiler that is right is left alone; the barrier is taken where it helps, else AMX is left out."""
    barrier = tmp_path / "tile_barrier.h"

    def attempt(flags: Any) -> Any:
        return treated if tuple(flags) == ("-include", str(barrier)) else plain

    assert native_trap.find(frozenset({"amx_tile"}), attempt, barrier).treatment == treatment
    assert native_trap.find(frozenset({"avx2"}), attempt, barrier) == Finding("none")


def test_a_crash_brings_the_barrier_once() -> None:
    """Only where there are tiles, and only where it was built without."""
    tiles = frozenset({"amx_tile"})
    assert native_trap.after_crash("none", tiles) == "barrier"
    assert native_trap.after_crash("barrier", tiles) is None
    assert native_trap.after_crash("none", frozenset()) is None


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
@pytest.mark.skipif("amx_tile" not in native_machine.here().features, reason="this processor has no AMX")
def test_the_barrier_keeps_a_tile_configuration_whole(tmp_path: Path) -> None:
    """Compiled and run here: what the processor has loaded is what was written, whatever this g++ does alone."""
    barrier = native_trap.write_barrier(tmp_path)
    assert native_trap.attempt("g++", tmp_path, native_trap.included(barrier)) in ("right", "refused")
    assert native_trap.attempt("g++", tmp_path) != "uncompiled"


# the build


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("  [17/211] Building CXX object ggml/src/ops.cpp.o\n", (17, 211)),
        ("[ 42%] Building CXX object src/llama.cpp.o\n", (42, 100)),
        ("[100%] Linking CXX static library\n", (100, 100)),
        ("-- [17/211] is not at the beginning\n", None),
        ("Running: cmake ..\n", None),
    ],
)
def test_the_compilers_progress_is_read(line: str, told: tuple[int, int] | None) -> None:
    """ninja counts steps, make per cent."""
    assert native_compile.step(line) == told


def test_nothing_of_the_environment_builds_something_else(tmp_path: Path) -> None:
    """What a user has set for pip stays; what would make it a portable build or one for a card goes."""
    recipe = Recipe("1", GCC, 3, tmp_path, flags=("-include", "b.h"))
    given = {"PIP_INDEX_URL": "https://i", "XLLAMACPP_RELEASE": "1", "XLLAMACPP_BUILD_CUDA": "1", "CMAKE_ARGS": "-DX=1"}
    settings = native_compile.settings(recipe, given | {"PATH": "/bin", "PYTHONPATH": "/x"})
    assert settings["PIP_INDEX_URL"] == "https://i"
    assert not {"XLLAMACPP_RELEASE", "XLLAMACPP_BUILD_CUDA", "PYTHONPATH"} & settings.keys()
    assert "-DGGML_NATIVE=ON" in settings["CMAKE_ARGS"]
    assert "-DX=1" not in settings["CMAKE_ARGS"]
    assert (settings["CXX"], settings["NPROC"], settings["CXXFLAGS"]) == ("/usr/bin/g++", "3", "-include b.h")
    assert settings["PATH"].endswith(f"{os.pathsep}/bin")


def test_a_failed_build_tells_its_last_lines(tmp_path: Path) -> None:
    """A wheel that is none: pip's own words, and the log holds all of them."""
    recipe = Recipe("1", GCC, 1, tmp_path)
    (tmp_path / "no.whl").write_text("nothing")
    with pytest.raises(native_compile.BuildFailed) as caught:
        native_compile.install(recipe, tmp_path / "no.whl", tmp_path / "site", lambda *_: None)
    assert "wheel" in caught.value.tail[-1]
    assert recipe.log.read_text().rstrip().endswith(caught.value.tail[-1])


# whether it fits


@pytest.mark.parametrize(
    ("wheel", "processor", "reason"),
    [
        ({}, {}, None),
        ({"version": "2"}, {}, "version"),
        ({"wheel": "other"}, {}, "wheel"),
        ({}, {"system": "Linux aarch64"}, "system"),
        ({}, {"features": frozenset({"avx2"})}, "processor"),
        ({}, {"features": frozenset({"avx2", "amx_tile", "sve"}), "name": "newer"}, None),
    ],
)
def test_a_build_fits_what_it_was_built_for(
    wheel: dict[str, Any], processor: dict[str, Any], reason: str | None
) -> None:
    """The same version, the same wheel, and a processor with all that was used; more than that does not matter."""
    built = manifest(version="1", wheel="w", system="Linux x86_64", features=("amx_tile", "avx2"))
    there = msgspec.structs.replace(Installed("1", "w"), **wheel)
    here = Processor("Linux x86_64", "a Xeon", frozenset({"avx2", "amx_tile"}))
    found = native_build.misfit(built, there, msgspec.structs.replace(here, **processor))
    assert (found.reason if found else None) == reason
    assert native_build.misfit(built, None, here) == Misfit("version", "1", "none")


# how a process takes it


def test_a_process_takes_the_chosen_build(tmp_path: Path) -> None:
    """Before the wheel, in one line, and what it measures is named after it."""
    site = write_build(tmp_path)
    out, said = activated(tmp_path)
    library, software = out.splitlines()
    assert Path(library).is_relative_to(site)
    assert software.endswith(" native build-1")
    assert said == "llama.cpp runs as built for this machine (build-1)\n"


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ({"version": "1999.1.1"}, "its package says 1999.1.1, not "),
        ({"instead": "import nothing_of_that_name\n"}, "it does not load: No module named 'nothing_of_that_name'"),
        ({"instead": "def torn(\n"}, "it does not load: "),
        ({"of": manifest(version="1999.1.1")}, "it is 1999.1.1, installed is "),
        ({"of": manifest(features=("avx2", "avx9999"))}, " lacks avx9999"),
    ],
)
def test_a_build_that_does_not_fit_is_passed_over(tmp_path: Path, build: dict[str, Any], words: str) -> None:
    """One line says why, and the wheel runs."""
    site = write_build(tmp_path, **build)
    out, said = activated(tmp_path)
    assert not Path(out.splitlines()[0]).is_relative_to(site)
    assert " native " not in out
    assert said.startswith("the native build of llama.cpp is not used: ")
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("note", [b"{", b'{"build": 7}', b'{"build": "gone"}'])
def test_a_note_that_leads_nowhere_is_told(tmp_path: Path, note: bytes) -> None:
    """A torn note, or one that names a build that was deleted."""
    (tmp_path / native_build.CHOICE).write_bytes(note)
    out, said = activated(tmp_path)
    assert " native " not in out
    assert "cannot be read" in said


def test_nothing_chosen_is_the_wheel(tmp_path: Path) -> None:
    """In silence: with a build that nobody chose, without a folder, and without the variable."""
    write_build(tmp_path, chosen=False)
    for root in (tmp_path, tmp_path / "none", None):
        out, said = activated(root)
        assert " native " not in out
        assert said == ""


def test_builds_are_listed_newest_first_and_chosen_by_name(tmp_path: Path) -> None:
    """What cannot be read is not one; the choice is replaced and taken back."""
    for name, at in (("old", 1.0), ("new", 2.0)):
        write_build(tmp_path, name, chosen=False, of=manifest(built_at=at))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / native_build.MANIFEST).write_text("{")
    assert list(native_build.builds(tmp_path)) == ["new", "old"]
    native_making.choose(tmp_path, "old")
    assert native_build.chosen(tmp_path) == "old"
    native_making.choose(tmp_path, None)
    native_making.choose(tmp_path, None)
    assert native_build.chosen(tmp_path) is None


def test_a_worker_takes_the_build_and_its_buffers(tmp_path: Path) -> None:
    """The worker's own process: this build dies where weights are put in another order, as its manifest says, so it
    serves without that. Without the manifest's word it dies."""
    config = ModelConfig("m", path="builtin", slots=1, threads=1)
    for extra, serves in ((False, True), (True, False)):
        root = tmp_path / str(extra)
        write_build(root, of=manifest(extra_buffers=extra), added=WITHOUT_BUFFERS_ONLY)
        environment = llama_worker.environment("k", root)
        with subprocess.Popen(
            llama_worker.argv(config, kept_port()),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment | lifeline.environment(),
        ) as worker:
            assert worker.stderr is not None
            said = ""
            while (line := worker.stderr.readline()) and not line.startswith("serving m "):
                said += line
            worker.kill()
        assert "llama.cpp runs as built for this machine (build-1)\n" in said
        assert line.startswith("serving m ") is serves
