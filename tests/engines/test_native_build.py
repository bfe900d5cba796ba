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

from native_harness import DIES, WITHOUT_BUFFERS_ONLY, activated, manifest, write_build, write_site

from sekisho.core.clock import ManualClock
from sekisho.engines import (
    lifeline,
    llama_worker,
    native_build,
    native_compile,
    native_machine,
    native_making,
    native_needs,
    native_trap,
    native_trial,
)
from sekisho.engines.config import ModelConfig
from sekisho.engines.native_build import Installed, Misfit
from sekisho.engines.native_check import Order, Place, Told
from sekisho.engines.native_compile import Recipe
from sekisho.engines.native_machine import Processor
from sekisho.engines.native_making import Wanted, Wrong
from sekisho.engines.native_needs import Compiler
from sekisho.engines.native_trap import Finding
from sekisho.engines.native_trial import Ended, TrialFailed

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
            llama_worker.argv(config, llama_worker.free_port()),
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


# the trial


def test_a_difference_is_measured_until_the_answers_part() -> None:
    """A close race may end otherwise; a token that the wheel finds far likelier may not."""
    reference = (place(1, (1, -0.1), (2, -2.0)), place(3, (3, -0.7), (4, -0.7)), place(5, (5, -0.2)))
    same = (place(1, (1, -0.2), (2, -2.0)), place(4, (4, -0.6), (3, -0.8)), place(9, (9, -0.2)))
    off, problem = native_trial.difference(reference, same)
    assert (round(off, 3), problem) == (0.1, None)
    wrong = (place(2, (2, -0.1), (1, -2.0)), *same[1:])
    assert "off by 1.90 nats" in str(native_trial.difference(reference, wrong)[1])
    assert "off by inf nats" in str(native_trial.difference(reference, (place(7, (7, 0.0)), *same[1:]))[1])
    assert "off by nan nats" in str(native_trial.difference(reference, (place(1, (1, float("nan"))), *same[1:]))[1])
    assert native_trial.difference(reference, same[:2])[1] == "2 tokens, not 3"
    assert native_trial.difference((), ())[1] == "0 tokens, not 0"


def test_a_crash_is_told_with_the_kind_it_came_at() -> None:
    """What came before it counts, what would come after it is not judged."""
    good = {kind: Told(kind, places=(place(1, (1, -0.1)),)) for kind in ("f16", "q8_0", "q4_0")}
    wheel, dead = Ended(good, 0), Ended({"f16": good["f16"]}, -11)
    verdict = native_trial.compare(wheel, dead, tuple(good))
    assert (verdict.problems, verdict.crash) == (("q8_0: SIGSEGV",), "SIGSEGV")
    assert Ended({}, -4).crash == "SIGILL"
    assert Ended({}, 1, "error: no memory").crash is None
    assert Ended({}, None).how == "it took too long"
    with pytest.raises(TrialFailed, match="q8_0: SIGSEGV"):
        native_trial.compare(dead, wheel, tuple(good))


@pytest.mark.parametrize(("text", "good"), [('"sekisho"', True), ('"other"', False), ("sekisho", False), ("{", False)])
def test_an_answer_is_held_to_its_schema(text: str, good: bool) -> None:
    """JSON, and of the words that were allowed."""
    assert (native_trial.schema_problem(text) is None) is good


def test_a_build_is_tried_out_for_real(tmp_path: Path) -> None:
    """The wheel's own code as a build: all KV types answer alike to the last bit, and both are measured."""
    site = write_site(tmp_path / "site")
    verdict = native_trial.compare(native_trial.answers(None), native_trial.answers(site))
    assert verdict.problems == ()
    assert verdict.nats_off == 0.0
    config = ModelConfig("mini", path="builtin", context=256, slots=1, kv_type_k="q8_0", kv_type_v="q8_0")
    order = Order("speed", config, prompt_tokens=64, answer_tokens=8)
    told: list[tuple[str, int, int]] = []
    figures = native_trial.measure(config, order, site, 2, lambda *each: told.append(each))
    assert [(each.speed, each.kv, each.repeats) for each in figures] == [("prefill", "q8_0", 2), ("decode", "q8_0", 2)]
    for each in figures:
        assert 0 < each.ratio_low <= each.ratio <= each.ratio_high
    assert told[-1] == ("measure q8_0", 2, 2)


def test_the_installed_wheel_uses_no_card_here() -> None:
    """What `build-native` asks first; a card would be named."""
    assert all(isinstance(name, str) for name in native_trial.devices())


# from end to end, with the wheel's files in the place of the compiler's


def wanted(root: Path, features: frozenset[str] = frozenset({"amx_tile"})) -> Wanted:
    wheel = native_build.installed()
    assert wheel is not None
    survey = native_needs.Survey(GCC, features, (), True, 1, 9 * GIB, 9 * GIB, ())
    return Wanted(root, wheel, native_machine.here(), survey, GCC, kinds=("q8_0", "schema"))


def making(
    root: Path, finding: Finding, *sites: dict[str, Any], features: frozenset[str] = frozenset({"amx_tile"})
) -> Any:
    """What comes out where each build in turn is one of these, and the flags that each was built with."""
    flags: list[tuple[str, ...]] = []

    def build(recipe: Recipe, site: Path, progress: object) -> None:
        write_site(site, **sites[len(flags)])
        flags.append(recipe.flags)

    made = native_making.make(wanted(root, features), finding, lambda *_: None, ManualClock(), build)
    return made, flags


def test_a_good_build_is_kept_whole(tmp_path: Path) -> None:
    """It is listed, checked, and fits; nothing is chosen by that."""
    made, flags = making(tmp_path, Finding("none", "right"), {})
    assert (made.crashes, made.manifest.is_worth_it, flags) == ((), True, [()])
    assert native_build.builds(tmp_path) == {made.name: made.manifest}
    assert made.manifest.checked
    wheel = native_build.installed()
    assert native_build.usable(tmp_path, made.name, wheel, native_machine.here()) == made.manifest
    assert native_build.chosen(tmp_path) is None


def test_a_build_that_crashes_is_made_again_with_the_barrier(tmp_path: Path) -> None:
    """The probe found nothing, the build dies all the same."""
    made, flags = making(tmp_path, Finding("none", "right"), {"instead": DIES}, {})
    assert made.manifest.treatment == "barrier"
    assert made.crashes == ("q8_0: SIGSEGV",)
    assert [bool(each) for each in flags] == [False, True]
    assert list(native_build.builds(tmp_path)) == [made.name]


def test_a_build_that_crashes_with_the_barrier_runs_without_extra_buffers(tmp_path: Path) -> None:
    """Where that helps; the manifest says so to the workers."""
    made, _ = making(tmp_path, Finding("barrier", "dropped", "right"), {"added": WITHOUT_BUFFERS_ONLY})
    assert made.manifest.extra_buffers is False
    assert made.crashes == ("q8_0: SIGSEGV",)


def test_a_build_that_cannot_be_repaired_is_not_kept(tmp_path: Path) -> None:
    """Without tiles there is nothing to repair."""
    with pytest.raises(Wrong, match="q8_0: SIGSEGV"):
        making(tmp_path, Finding("none"), {"instead": DIES}, features=frozenset())
    assert native_build.builds(tmp_path) == {}


def test_two_do_not_build_at_once(tmp_path: Path) -> None:
    """The second is told, and may when the first is done."""
    with native_making.alone(tmp_path), pytest.raises(native_making.Busy), native_making.alone(tmp_path):
        pass
    with native_making.alone(tmp_path):
        pass


@pytest.mark.parametrize(
    ("ratios", "worth"), [((), True), ((1.9, 1.0), True), ((1.02, 1.01), False), ((2.0, 0.5), False)]
)
def test_a_build_is_taken_where_it_is_faster(ratios: tuple[float, ...], worth: bool) -> None:
    """Faster in one way, and in no way clearly slower."""
    config = ModelConfig("m", path="builtin")
    figures = tuple(native_trial.figure("decode", config, [10.0], [10.0 * ratio]) for ratio in ratios)
    assert manifest(figures=figures).is_worth_it is worth
    assert not manifest(figures=figures, checked=False).is_worth_it


def test_a_ratio_is_of_neighbours() -> None:
    """The machine slows down midway: the medians move, the ratio does not."""
    figure = native_trial.figure("decode", ModelConfig("m", path="builtin"), [10.0, 8.0, 2.0], [20.0, 16.0, 4.0])
    assert (figure.ratio_low, figure.ratio, figure.ratio_high) == (2.0, 2.0, 2.0)
    assert (figure.wheel_tokens_per_s, figure.native_tokens_per_s, figure.repeats) == (8.0, 16.0, 3)


@pytest.mark.skipif(
    not os.environ.get("SEKISHO_BUILD_NATIVE"), reason="SEKISHO_BUILD_NATIVE=1 builds llama.cpp: minutes"
)
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_llama_cpp_is_built_for_this_machine(tmp_path: Path) -> None:
    """The whole of it, from the sdist to the figures: run it with SEKISHO_BUILD_NATIVE=1, it takes some 30 minutes of
    one core and the network."""
    survey = native_needs.survey(tmp_path, None)
    assert survey.missing == ()
    assert survey.compiler is not None
    wheel = native_build.installed()
    assert wheel is not None
    config = ModelConfig("mini", path="builtin", context=1024)
    all_of_it = Wanted(tmp_path, wheel, native_machine.here(), survey, survey.compiler, measured=(config,))
    finding = native_making.look_for_trap(all_of_it)
    made = native_making.make(all_of_it, finding, lambda *_: None, ManualClock())
    assert made.crashes == ()
    native_making.choose(tmp_path, made.name)
    out, _ = activated(tmp_path)
    assert f"native {made.name}" in out
