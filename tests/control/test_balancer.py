"""The resource balancer."""

import random
from itertools import pairwise

import msgspec
import pytest
from faults_harness import CPU, ENGINE, GPU, MEMORY, Site, signals
from hypothesis import example, given
from hypothesis import strategies as st

from sekisho.control.balancer import ORDER, Balance, Balancer, Band, Step, load, usage
from sekisho.control.base import DeviceState, EngineState
from sekisho.control.fallback import Fallbacks
from sekisho.control.policy import EngineSection, KvSection, Policy
from sekisho.engines.kv_size import KV_BITS

set_to = msgspec.structs.replace
FULL_GPU, FULL = set_to(GPU, used_bytes=98), set_to(MEMORY, used_bytes=95)
BETWEEN = set_to(MEMORY, used_bytes=80)


class Run:
    """A balancer with its site, asked every `period_s`."""

    def __init__(
        self, policy: Policy | None = None, *, layers: int | None = 32, kv_types: frozenset[str] | None = None
    ) -> None:
        self.site = Site(policy)
        self.balancer = Balancer(layers=layers, kv_types=lambda: kv_types)
        self.now_s = 1_000.0

    def ask(self, *devices: DeviceState, period_s: float = 10.0, engine: EngineState = ENGINE) -> Step | None:
        self.now_s += period_s
        step = self.balancer.step(signals(self.now_s, *devices, engines=(engine,)), self.site.policy)
        if step is not None:
            self.site.apply(step.changes)
        return step

    def ask_for(self, seconds: float, *devices: DeviceState, engine: EngineState = ENGINE) -> list[Step]:
        steps = [self.ask(*devices, engine=engine) for _ in range(int(seconds / 10))]
        return [step for step in steps if step is not None]


def test_full_video_memory_takes_batch_then_offload_then_precision_and_gives_all_back_in_reverse() -> None:
    """8 to 1 requests, 32 to 0 layers in quarters, 16 to 8 to 4 bits; then the same backwards."""
    run = Run()
    down = run.ask_for(1_000, FULL_GPU, MEMORY)
    assert [step.kind for step in down] == ["batch"] * 3 + ["offload"] * 4 + ["precision"] * 2
    assert [step.depth for step in down] == list(range(1, 10))
    assert run.site.policy.engine == EngineSection(slots=1, gpu_layers=0)
    assert (run.site.policy.kv.key_type, run.site.policy.kv.mode) == ("q4_0", "throughput_optimized")
    up = run.ask_for(3_000, GPU, MEMORY)
    assert [step.kind for step in up] == [step.kind for step in reversed(down)]
    assert run.site.policy == Policy()
    assert run.balancer.summary().depth == 0


def test_full_memory_of_the_machine_is_not_answered_with_more_work_for_the_processor() -> None:
    """Offloading would fill it further."""
    kinds = [step.kind for step in Run().ask_for(1_000, FULL, GPU)]
    assert kinds == ["batch"] * 3 + ["precision"] * 2


def test_pressure_must_last_and_the_band_between_changes_nothing() -> None:
    """Three readings in a row; one that is between starts the count again."""
    run = Run()
    assert [run.ask(FULL), run.ask(FULL), run.ask(BETWEEN), run.ask(FULL), run.ask(FULL)] == [None] * 5
    step = run.ask(FULL)
    assert step is not None
    assert (step.resource, step.value, step.limit) == ("ram", 0.95, 0.9)
    assert run.ask_for(3_000, BETWEEN) == []


def test_a_busy_processor_is_no_pressure_unless_somebody_says_so() -> None:
    """Work is what it is there for; with a band of its own it counts."""
    busy = (set_to(GPU, utilisation=1.0), set_to(CPU, utilisation=1.0))
    assert Run().ask_for(600, *busy) == []
    run = Run()
    run.balancer = Balancer(Balance(cpu=Band(0.95, 0.75)))
    assert [step.resource for step in run.ask_for(40, *busy)] == ["cpu"]
    assert run.balancer.summary().usage["gpu"] == 1.0


def test_what_people_asked_for_is_kept() -> None:
    """No lower precision where compression is off; not below eight bits where quality is asked for; nothing where it is
    low already; only types that run here."""

    def types(kv: KvSection, kv_types: frozenset[str] | None = None) -> list[str | None]:
        run = Run(Policy(kv=kv, engine=EngineSection(slots=1)), kv_types=kv_types)
        run.ask_for(600, FULL)
        return [run.site.policy.kv.key_type, run.site.policy.kv.value_type]

    assert types(KvSection(mode="disabled")) == [None, None]
    assert types(KvSection(mode="quality_optimized")) == ["q8_0", "q8_0"]
    assert types(KvSection(key_type="q4_0", value_type="q4_0")) == ["q4_0", "q4_0"]
    assert types(KvSection(), frozenset({"q8_0", "f16"})) == ["q8_0", "q8_0"]


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (("q4_0", "q4_0"), (None, None)),
        (("q8_0", "q8_0"), ("q4_0", "q4_0")),
        (("q8_0", "f16"), ("q4_0", "q4_0")),
        (("q4_0", "f16"), (None, "q4_0")),
    ],
)
def test_less_memory_is_never_more_bits_than_an_engine_has(
    told: tuple[str, str], found: tuple[str | None, str | None]
) -> None:
    """Where the policy names no type, what the engines were set up with is where it begins, keys and values each by
    itself; of two engines the one with fewer bits counts."""
    run = Run(Policy(engine=EngineSection(slots=1)))
    engine = set_to(ENGINE, settings={"kv_type_k": told[0], "kv_type_v": told[1]})
    seen = [Policy().kv]
    for _ in range(60):
        run.ask(FULL, engine=engine)
        seen.append(run.site.policy.kv)
    for kv in seen:
        for kind, was in zip((kv.key_type, kv.value_type), told, strict=True):
            assert kind is None or KV_BITS[kind] < KV_BITS[was]
    assert (seen[-1].key_type, seen[-1].value_type) == found
    both = Run(Policy(engine=EngineSection(slots=1)))
    whole = set_to(ENGINE, model="n", settings={"kv_type_k": "f16", "kv_type_v": "f16"})
    small = set_to(ENGINE, settings={"kv_type_k": "q4_0", "kv_type_v": "q4_0"})
    for now_s in range(0, 600, 10):
        assert both.balancer.step(signals(now_s, FULL, engines=(whole, small)), both.site.policy) is None


def test_types_of_an_engine_that_is_not_ready_are_not_guessed() -> None:
    """It tells none: a step could give it more bits than it was set up with. Types that the policy names are known."""
    starting = EngineState("m", "llama_cpp", "starting")
    run = Run(Policy(engine=EngineSection(slots=1)))
    assert run.ask_for(600, FULL, engine=starting) == []
    assert "not ready" in run.balancer.summary().skipped["precision"]
    named = Run(Policy(kv=KvSection(key_type="f16", value_type="f16"), engine=EngineSection(slots=1)))
    assert [step.kind for step in named.ask_for(600, FULL, engine=starting)] == ["precision"] * 2


@pytest.mark.parametrize("shared", [False, True])
def test_what_the_engines_refuse_is_left_alone_for_a_quarter_of_an_hour(shared: bool) -> None:
    """Also where the fallbacks, who share the overlay, look first and reconcile it."""
    run = Run()
    fallbacks = Fallbacks(random.Random(1), overlay=run.balancer.overlay)
    pressed, at = set_to(MEMORY, used_bytes=92), []
    for now_s in range(1_000, 4_600, 5):
        seen = signals(now_s, pressed)
        if shared:
            assert fallbacks.observe(seen, run.site.policy, now_s) == ()
        if run.balancer.step(seen, run.site.policy) is not None:
            at.append(now_s)
    assert len(at) == 4
    assert all(later - was >= 900 for was, later in pairwise(at))
    assert run.balancer.summary().depth == 0


def test_a_person_has_the_field_also_where_the_fallbacks_see_it_first() -> None:
    """They share the overlay and reconcile it first."""
    run = Run()
    fallbacks = Fallbacks(random.Random(1), overlay=run.balancer.overlay)
    run.ask_for(30, set_to(MEMORY, used_bytes=92))
    run.site.apply({"engine": {"slots": 6}})
    for now_s in range(1_040, 2_000, 5):
        seen = signals(now_s, set_to(MEMORY, used_bytes=92))
        fallbacks.observe(seen, run.site.policy, now_s)
        step = run.balancer.step(seen, run.site.policy)
        run.site.apply(step.changes if step is not None else None)
    assert run.site.policy.engine.slots == 6
    assert run.site.policy.kv.key_type == "q4_0"


def test_it_can_be_told_to_let_go_and_to_begin_anew() -> None:
    """All steps are undone in one change; under pressure it begins with the first step again."""
    run = Run()
    run.ask_for(200, FULL)
    assert run.site.policy.kv.key_type is not None
    run.site.apply(run.balancer.let_go(run.site.policy, run.now_s + 1))
    assert run.site.policy == Policy()
    assert run.balancer.let_go(run.site.policy, run.now_s + 2) == {}
    assert [step.kind for step in run.ask_for(40, FULL)] == ["batch"]


def test_what_cannot_be_done_is_told() -> None:
    """Without the model's number of layers nothing is offloaded; without an engine that tells its slots no batch."""
    run = Run(layers=None)
    steps = run.ask_for(600, FULL_GPU, engine=EngineState("m", "vllm", "ready"))
    assert [step.kind for step in steps] == ["precision"] * 2
    assert set(run.balancer.summary().skipped) == {"batch", "offload"}


def test_a_person_who_sets_the_field_has_it() -> None:
    """It is neither set again nor undone while the pressure lasts; after it everything starts afresh."""
    run = Run()
    run.ask_for(30, FULL)
    assert run.site.policy.engine.slots == 4
    run.site.apply({"engine": {"slots": 6}})
    run.ask_for(600, FULL)
    assert run.site.policy.engine.slots == 6
    run.ask_for(3_000, MEMORY)
    assert run.site.policy == Policy(engine=EngineSection(slots=6))
    assert [step.kind for step in run.ask_for(30, FULL)] == ["batch"]


def test_pressure_that_returns_makes_it_more_patient() -> None:
    """Each relapse after a step back doubles the calm that the next one needs, up to an hour."""
    run = Run()
    calm = []
    for _ in range(8):
        run.ask_for(60, FULL)
        while run.ask(MEMORY) is None:
            pass
        calm.append(run.balancer.summary().calm_s)
    assert calm[:6] == [120, 240, 480, 960, 1_920, 3_600]
    run.ask_for(20_000, MEMORY)
    assert run.site.policy == Policy()
    assert run.balancer.summary().calm_s == 120


def test_the_summary_counts_steps_and_time() -> None:
    """Seconds in each state of load add up to the time watched; so do the steps to the history."""
    run = Run()
    run.ask_for(100, FULL)
    run.ask_for(1_000, MEMORY)
    run.ask_for(50)
    told = run.balancer.summary()
    assert sum(told.seconds.values()) == 1_150 - 10  # the first look has nothing before it
    assert (told.seconds["pressed"], told.load) == (100, "unknown")
    assert sum(told.steps.values()) == len(run.balancer.history)
    assert told.reduced_s > 0


def test_a_resource_that_is_gone_does_not_hold_its_step_for_ever() -> None:
    """Nobody can say that the pressure is over; after an hour of ease of the rest it counts as over."""
    run = Run()
    run.ask_for(30, FULL_GPU, MEMORY)
    assert run.ask_for(3_500, MEMORY) == []
    assert [step.direction for step in run.ask_for(200, MEMORY)] == ["up"]
    assert run.site.policy == Policy()


STRETCHES = st.lists(
    st.tuples(
        st.sampled_from([1.0, 7.0, 20.0, 200.0]),  # how often it is asked
        st.sampled_from([10, 80, 95]),  # memory of the machine and of the card: easy, between or pressed
        st.sampled_from([10, 90, 98]),
        st.integers(1, 30),  # how many times in a row
    ),
    max_size=12,
)


@given(STRETCHES, st.sampled_from([1, 2, 32]), st.sampled_from([None, 1, 32]))
@example([(7.0, 95, 10, 30), (7.0, 10, 98, 30)], 2, 32)  # precision for one memory, then the other one is full
def test_it_never_flaps_keeps_the_order_and_always_comes_back(
    stretches: list[tuple[float, int, int, int]], slots: int, layers: int | None
) -> None:
    """For any course of memory: two steps are at least the settle time apart, a step down is never of an earlier kind
    than what is in force, steps back undo the latest first, and when pressure stays away the policy is what it was."""
    start = Policy(engine=EngineSection(slots=slots))
    run = Run(start, layers=layers)
    last_s: float | None = None
    stack: list[str] = []
    moments = [(passed_s, ram, vram) for passed_s, ram, vram, times in stretches for _ in range(times)]
    peace = [(120.0, 10, 10)] * 1_000
    for number, (passed_s, ram, vram) in enumerate(moments + peace):
        if number >= len(moments) and not stack and run.site.policy == start:
            break
        step = run.ask(set_to(MEMORY, used_bytes=ram), set_to(GPU, used_bytes=vram), period_s=passed_s)
        if step is None:
            continue
        assert last_s is None or run.now_s - last_s >= 30.0
        last_s = run.now_s
        if step.direction == "down":
            assert not stack or ORDER.index(stack[-1]) <= ORDER.index(step.kind)  # type: ignore[arg-type]
            stack.append(step.kind)
        else:
            assert stack.pop() == step.kind
        assert step.depth == len(stack)
    assert run.site.policy == start
    assert stack == []


def test_the_worst_resource_decides_and_the_unmeasured_ones_do_not() -> None:
    """Of two cards the fuller one counts; one that is gone does not."""
    gone = set_to(FULL_GPU, id="gpu-3", present=False)
    seen = usage(signals(1.0, GPU, set_to(GPU, id="gpu-2", used_bytes=70), gone))
    assert seen == {"gpu": 0.5, "vram": 0.7}
    assert load({}, Balance()) == (None, "unknown")
    assert load({"vram": 0.97, "ram": 1.0}, Balance()) == ("ram", "pressed")


def test_a_band_without_a_gap_is_refused() -> None:
    """Without hysteresis it would flap."""
    with pytest.raises(ValueError, match="low < high"):
        Band(0.8, 0.8)
    assert set(KV_BITS) > {"f16", "q8_0", "q4_0"}
