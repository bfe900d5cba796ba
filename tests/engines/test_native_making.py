"""A native build of llama.cpp: tried out against the wheel, repaired where it can be, and kept whole or not at all."""

import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from demotion_harness import demoting, process, ready
from native_harness import (
    DIES,
    WITHOUT_BUFFERS_ONLY,
    WRONG,
    WRONG_ATTENTION,
    WRONG_FAR,
    activated,
    manifest,
    write_build,
    write_site,
)

from sekisho.core.clock import ManualClock
from sekisho.engines import native_build, native_machine, native_making, native_needs, native_trial
from sekisho.engines.config import ModelConfig
from sekisho.engines.native_check import Order, Place, Told
from sekisho.engines.native_compile import Recipe
from sekisho.engines.native_making import Wanted, Wrong
from sekisho.engines.native_needs import Compiler
from sekisho.engines.native_trap import Finding
from sekisho.engines.native_trial import Ended, TrialFailed

GCC = Compiler("gcc", "12.2.0", "/usr/bin/gcc", "/usr/bin/g++")
GIB = 2**30


def place(token: int, *others: tuple[int, float]) -> Place:
    return Place(token, dict(others))


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
    root: Path,
    finding: Finding,
    *sites: dict[str, Any],
    features: frozenset[str] = frozenset({"amx_tile"}),
    attention: bool = False,
    measured: tuple[ModelConfig, ...] = (),
) -> Any:
    """What comes out where each build in turn is one of these, and the flags that each was built with."""
    flags: list[tuple[str, ...]] = []

    def build(recipe: Recipe, site: Path, progress: object) -> bool:
        write_site(site, **sites[len(flags)])
        flags.append(recipe.flags)
        return attention

    order = msgspec.structs.replace(wanted(root, features), measured=measured, repeats=1)
    made = native_making.make(order, finding, lambda *_: None, ManualClock(), build)
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


def test_attention_that_answers_wrongly_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build is kept with llama.cpp's own, as its manifest tells the workers, and the reason is told."""
    monkeypatch.setenv("SEKISHO_NATIVE_ATTENTION", "0")  # of the operator's: what was built is tried out all the same
    made, _ = making(tmp_path, Finding("none", "right"), {"added": WRONG_ATTENTION}, attention=True)
    assert made.manifest.attention is False
    assert made.manifest.checked
    assert "off by" in made.refuted[0]
    good, _ = making(tmp_path, Finding("none", "right"), {}, attention=True)
    assert (good.manifest.attention, good.refuted) == (True, ())


def test_wrong_answers_are_not_blamed_on_attention_alone(tmp_path: Path) -> None:
    """Where they are as wrong without, nothing is kept."""
    with pytest.raises(Wrong, match="off by"):
        making(tmp_path, Finding("none", "right"), {"added": WRONG}, attention=True)
    assert native_build.builds(tmp_path) == {}


@pytest.mark.slow
def test_a_long_context_is_compared_as_well(tmp_path: Path) -> None:
    """On the model that is measured: what goes wrong only there is found, and what goes well is kept with figures."""
    config = ModelConfig("mini", path="builtin", context=1024)
    with pytest.raises(Wrong, match="f16: a token's log probability is off by"):
        making(tmp_path / "wrong", Finding("none", "right"), {"added": WRONG_FAR}, measured=(config,))
    made, _ = making(tmp_path / "right", Finding("none", "right"), {}, measured=(config,))
    assert (made.nats_off, made.far) == (0.0, True)
    assert [each.speed for each in made.manifest.figures] == ["prefill", "decode"]


@pytest.mark.parametrize(("attention", "told"), [(True, "None"), (False, "0")])
def test_workers_are_told_whose_attention_to_use(tmp_path: Path, attention: bool, told: str) -> None:
    """Before the library is loaded, which looks once."""
    added = "import os, sys\nprint('attention', os.environ.get('SEKISHO_NATIVE_ATTENTION'), file=sys.stderr)\n"
    write_build(tmp_path, of=manifest(attention=attention), added=added)
    _, said = activated(tmp_path)
    assert f"attention {told}" in said.splitlines()


@pytest.mark.parametrize(("attention", "switch", "told"), [(True, "1", True), (False, "1", False), (True, "0", False)])
async def test_demotion_that_gains_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: bool, switch: str, told: bool
) -> None:
    """The worker does what it was asked to and says what to change; without Sekisho's attention it has no reason to."""
    monkeypatch.setenv("SEKISHO_NATIVE_ATTENTION", switch)
    write_build(tmp_path / "native", of=manifest(attention=attention))
    with process(demoting(), tmp_path / "log", tmp_path / "native") as (_, root):
        await ready(root)
    log = (tmp_path / "log").read_text()
    assert "llama.cpp runs as built for this machine" in log
    assert ("sekisho policy set kv.demote_after_prefill=false" in log) is told


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
    assert made.manifest.attention
    native_making.choose(tmp_path, made.name)
    out, _ = activated(tmp_path)
    assert f"native {made.name}" in out
