"""Fallbacks: what is seen, what is done, when it is done again, and how it is undone."""

import random
from itertools import pairwise

import msgspec
from faults_harness import CPU, ENGINE, FULL, GPU, MEMORY, NPU, Site, guessing, sample, signals
from faults_harness import FallbackRun as Run
from hypothesis import given
from hypothesis import strategies as st

from sekisho.control.base import DeviceState, EngineState, KvState
from sekisho.control.fallback import ADVICE_AGAIN_S, Fallbacks
from sekisho.control.fallback_rules import PRECEDENCE, RULES, Limits, QualityReading, findings, ladder
from sekisho.control.overlay import Overlay, nested
from sekisho.control.policy import EngineSection, KvSection, Policy, SchedulerSection
from sekisho.kv.policy import LevelThresholds

set_to = msgspec.structs.replace
HOT_NPU, NO_NPU = set_to(NPU, temperature_c=90.0), DeviceState("npu", "npu", "NPU", present=False)
NO_GPU = DeviceState("gpu-1", "gpu", "Card", present=False)
DOWN = EngineState("m", "llama_cpp", "down", "exit code 1")


def test_a_hot_npu_hands_its_work_to_the_gpu_after_three_readings_and_gets_it_back_when_cool() -> None:
    """Two hot readings are nothing; three move decode; between limit and limit - 8 nothing happens; 60 s below that
    undo it."""
    run = Run()
    assert run.look(HOT_NPU, GPU) == run.look(HOT_NPU, GPU) == ()
    (action,) = run.look(HOT_NPU, GPU)
    assert (action.reason, action.subject, action.severity) == ("device_hot", "npu", "warning")
    assert (action.value, action.limit) == (90.0, 85.0)
    assert action.changes == {"scheduler": {"decode_device": "dml"}}
    assert run.site.policy.scheduler.decode_device == "dml"
    assert run.look_for(600, set_to(NPU, temperature_c=80.0), GPU) == []  # not hot any more, and not cool yet
    assert run.look_for(60, set_to(NPU, temperature_c=76.0), GPU) == []
    (undone,) = run.look(set_to(NPU, temperature_c=76.0), GPU)
    assert (undone.recovered, undone.severity) == (True, "info")
    assert run.site.policy == Policy()


def test_the_drivers_own_limit_goes_before_ours() -> None:
    """88 degrees are hot for a card by default, and not for one that says it bears 95."""
    warm = set_to(GPU, temperature_c=88.0)
    assert Run().look_for(15, warm) != []
    assert Run().look_for(60, set_to(warm, hot_c=95.0)) == []


def test_a_hot_card_gets_fewer_requests_then_none_of_the_scheduled_work() -> None:
    """8, 4, 2 slots, then prefill leaves it; then only a person can help."""
    run = Run(Policy(engine=EngineSection(slots=8)))
    hot = set_to(GPU, temperature_c=99.0)
    told = run.look_for(900, hot, CPU)
    assert [action.changes for action in told[:3]] == [
        {"engine": {"slots": 4}},
        {"engine": {"slots": 2}},
        {"scheduler": {"prefill_device": "cpu"}},
    ]
    assert told[3].changes is None
    assert run.look_for(70, GPU, CPU)[-1].recovered
    assert run.site.policy == Policy(engine=EngineSection(slots=8))


def test_a_missing_npu_moves_decode_and_comes_back_after_five_minutes() -> None:
    """One reading may be a slip of the driver; two act; five minutes of presence undo it."""
    run = Run()
    assert run.look(NPU, GPU) == run.look(NO_NPU, GPU) == ()
    (action,) = run.look(NO_NPU, GPU)
    assert action.reason == "device_missing"
    assert run.site.policy.scheduler.decode_device == "dml"
    assert run.site.policy.kv.recent_window == 96
    assert run.look_for(300, NPU, GPU) == []
    assert run.look(NPU, GPU)[0].recovered
    assert run.site.policy == Policy()


def test_a_missing_card_moves_everything_to_the_processor_unless_there_is_another() -> None:
    """With a second card of the same kind no policy helps: it is said."""
    run = Run(Policy(scheduler=SchedulerSection(mode="gpu_only", decode_device="dml")))
    run.look_for(10, NO_GPU, CPU)
    assert run.site.policy.scheduler == SchedulerSection("hybrid", "cpu", "cpu")
    assert run.site.policy.engine.gpu_layers == 0
    other = Run()
    (action,) = other.look_for(10, NO_GPU, set_to(GPU, id="gpu-2"))
    assert action.changes is None
    assert "driver" in action.advice


def test_full_memory_is_answered_step_by_step_and_undone_below_eighty_per_cent() -> None:
    """Prompts, then compression, then mode, then slots; 85 % is neither pressure nor ease."""
    run = Run()
    told = run.look_for(300, FULL)
    assert [list(action.changes or {}) for action in told[:4]] == [["engine"], ["kv"], ["kv"], ["engine"]]
    assert run.site.policy.kv.mode == "throughput_optimized"
    assert run.site.policy.engine == EngineSection(slots=4, prompt_cache_bytes=0)
    assert all(later.not_before_s - earlier.not_before_s >= 30 for earlier, later in pairwise(told))
    assert run.look_for(600, set_to(MEMORY, used_bytes=85)) == []
    assert run.look_for(70, MEMORY)[-1].recovered
    assert run.site.policy == Policy()


def test_a_full_kv_pool_is_memory_trouble_too() -> None:
    """The signal names the engine."""
    full = set_to(ENGINE, kv=KvState(96, 100))
    (action,) = Run().look_for(10, engines=(full,))
    assert (action.reason, action.subject, action.signal) == ("memory", "kv:m", "kv.used_share")


def test_time_outs_ask_for_sooner_answers() -> None:
    """Three of ten; one of ten, or two of two, are none."""
    late = tuple(sample(number, "engine_timeout" if number < 3 else "ok") for number in range(10))
    (action,) = Run().look_for(10, samples=late)
    assert (action.reason, action.value) == ("timeout", 0.3)
    assert (action.changes or {})["kv"]["mode"] == "latency_optimized"
    assert Run().look_for(60, samples=late[2:]) == []
    assert Run().look_for(60, samples=late[:2]) == []
    cancelled = tuple(sample(number, "cancelled") for number in range(50))
    assert Run().look_for(10, samples=late + cancelled) != []


def test_quality_acts_on_three_measurements_and_not_on_one_that_is_seen_three_times() -> None:
    """Less in four bits, eight bits, sixteen bits, each after three new bad measurements; ten good minutes undo it."""
    run = Run(period_s=30.0)
    assert [run.look(quality=QualityReading(1, 0.9)) for _ in range(10)] == [()] * 10
    assert run.look(quality=QualityReading(2, 0.9)) == ()
    (first,) = run.look(quality=QualityReading(3, 0.9))
    assert (first.changes or {})["kv"]["level_thresholds"] == {"L1_int8": 0.6, "L2_int4": 0.4, "L3_evict": 0.2}
    modes = []
    for number in range(4, 10):
        run.look(quality=QualityReading(number, 0.9))
        modes.append(run.site.policy.kv.mode)
    assert modes == ["configured"] * 2 + ["quality_optimized"] * 3 + ["disabled"]
    assert run.look(quality=QualityReading(10, 0.45)) == ()  # within the limit, and not yet well
    told = [action for number in range(11, 40) for action in run.look(quality=QualityReading(number, 0.1))]
    assert [action.recovered for action in told] == [True]
    assert run.site.policy == Policy()


def test_guesses_that_are_not_kept_end_the_guessing() -> None:
    """The accept rate of any engine against the policy's limit, once it has guessed a thousand tokens."""
    run = Run(Policy(engine=EngineSection(speculation="ngram")))
    assert run.look_for(600, engines=(guessing(0.2, 999), guessing(None, None, "n"))) == []
    (action,) = run.look_for(15, engines=(guessing(0.2), guessing(0.9, model="n")))
    assert (action.subject, action.changes) == ("accept_rate:m", {"engine": {"speculation": "off"}})


def test_an_agent_that_was_silent_says_so_and_changes_nothing() -> None:
    """Unless it says that it was busy; and readings from before the silence do not count on."""
    run = Run()
    run.look(HOT_NPU)
    run.look(HOT_NPU)
    run.now_s += 300
    (action,) = run.look(HOT_NPU)
    assert (action.reason, action.severity, action.changes) == ("agent_silent", "warning", None)
    assert action.notify
    assert [(a.reason, a.changes, a.recovered) for a in run.look_for(65)] == [("agent_silent", None, True)]
    run.now_s += 300
    run.fallbacks.busy_until(run.now_s)
    assert run.look() == ()


def test_an_engine_that_is_down_is_critical_and_told_with_its_reason() -> None:
    """The supervisor starts it again: the agent changes nothing, says it once in a quarter of an hour, and says that it
    is over."""
    run = Run()
    told = run.look_for(ADVICE_AGAIN_S - 10, engines=(DOWN,))
    assert [(a.reason, a.severity, a.notify, a.changes) for a in told] == [("engine_down", "critical", True, None)]
    assert "exit code 1" in told[0].rule
    assert [a.recovered for a in run.look_for(60, MEMORY)] == [True]
    run.now_s += 90
    run.fallbacks.busy_until(run.now_s)
    assert [a.reason for a in run.look_for(15, engines=(DOWN,))] == ["engine_down"]  # new trouble is said again


def test_what_a_person_set_meanwhile_is_not_undone() -> None:
    """The fields that the agent alone changed go back, the person's stays."""
    run = Run()
    run.look_for(10, NO_NPU, GPU)
    run.site.apply({"kv": {"recent_window": 200}})
    run.look_for(310, NPU, GPU)
    assert run.site.policy == Policy(kv=KvSection(recent_window=200))


def test_a_field_that_a_person_took_is_left_out_of_what_is_done_next() -> None:
    """The next step is done without it, also where a mode would bring it along."""
    run = Run()
    run.look_for(45, FULL)
    assert run.site.policy.kv.recent_window == 32
    run.site.apply({"kv": {"recent_window": 200}})
    run.look_for(60, FULL)
    assert (run.site.policy.kv.mode, run.site.policy.kv.recent_window) == ("throughput_optimized", 200)


def test_two_reasons_at_one_field_follow_the_precedence() -> None:
    """Memory holds the mode against quality; when memory is at ease, quality gets what it waited for."""
    run = Run(period_s=30.0)
    for number in range(1, 31):
        run.look(FULL, quality=QualityReading(number, 0.9))
    assert run.site.policy.kv.mode == "throughput_optimized"
    for number in range(31, 36):
        run.look(MEMORY, quality=QualityReading(number, 0.9))
    assert run.site.policy.kv.mode == "disabled"
    for number in range(36, 80):
        run.look(MEMORY, quality=QualityReading(number, 0.0))
    assert run.site.policy == Policy()


def test_five_answers_within_five_minutes_are_critical_and_told() -> None:
    """Whatever their reasons."""
    run = Run()
    bad = {"engines": (DOWN, set_to(DOWN, model="n"), set_to(DOWN, model="o"))}
    told = run.look_for(10, FULL, NO_NPU, **bad)
    assert len(told) == 5
    assert [action.severity for action in told[3:]] == ["warning", "critical"]
    assert told[4].notify


def test_a_device_that_tells_nothing_any_more_gets_its_policy_back() -> None:
    """Nothing can say that it is over: after a quarter of an hour it is undone."""
    run = Run()
    run.look_for(15, HOT_NPU, GPU)
    told = run.look_for(920, set_to(NPU, temperature_c=None), GPU)
    assert [action.recovered for action in told] == [True]
    assert run.site.policy == Policy()


def test_a_restart_undoes_what_the_agent_before_changed() -> None:
    """The overlay's state is handed over; what is still wrong is found anew."""
    run = Run()
    run.look_for(15, HOT_NPU, GPU)
    again = Fallbacks(random.Random(2), overlay=Overlay(run.fallbacks.overlay.state()))
    (action,) = again.observe(signals(1.0, NPU, GPU), run.site.policy, 1.0)
    assert action.changes == {"scheduler": {"decode_device": "npu"}}


DEVICES = st.lists(
    st.sampled_from([GPU, set_to(GPU, temperature_c=99.0), NO_GPU, NPU, HOT_NPU, NO_NPU, MEMORY, FULL, CPU]),
    max_size=3,
    unique_by=lambda device: device.id,
)
MOMENTS = st.lists(
    st.tuples(
        st.floats(0.5, 90),
        DEVICES,
        st.sampled_from([ENGINE, DOWN, guessing(0.1)]),
        st.one_of(st.none(), st.floats(0, 1)),
    ),
    max_size=60,
)


@given(MOMENTS)
def test_nothing_is_repeated_before_its_back_off_and_everything_is_undone(
    moments: list[tuple[float, list[DeviceState], EngineState, float | None]],
) -> None:
    """Whatever happens in whatever order: no answer to the same trouble comes before the time that the last one named,
    and an hour of peace leaves the policy as people made it."""
    start = Policy(engine=EngineSection(slots=6, speculation="ngram"))
    site, fallbacks = Site(start), Fallbacks(random.Random(0))
    now_s = 0.0
    not_before: dict[tuple[str, str], float] = {}
    peace = [(30.0, [GPU, NPU, MEMORY, CPU], guessing(0.9), 0.0)] * 120
    for number, (passed_s, devices, engine, delta) in enumerate(moments + peace):
        now_s += passed_s
        seen = signals(now_s, *devices, engines=(engine,))
        for action in fallbacks.observe(seen, site.policy, now_s, quality=QualityReading(number, delta)):
            key = (action.reason, action.subject)
            assert action.recovered or now_s >= not_before.get(key, 0.0)
            not_before[key] = action.not_before_s
            site.apply(action.changes)
    assert site.policy == start
    assert fallbacks.active == ()


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.integers(16, 512), st.integers(1, 9), st.data())
def test_every_rung_of_every_ladder_is_a_policy(
    levels: list[float], window: int, slots: int, data: st.DataObject
) -> None:
    """Whatever people have set, each step of each ladder can be merged into it."""
    thresholds = LevelThresholds(*sorted(levels, reverse=True))
    policy = Policy(kv=KvSection(recent_window=window, level_thresholds=thresholds), engine=EngineSection(slots=slots))
    devices = data.draw(DEVICES)
    seen = signals(1.0, *devices, engines=(DOWN, set_to(guessing(0.1), kv=KvState(99, 100))))
    for finding in findings(seen, policy, QualityReading(1, 2.0), 500.0, Limits()):
        fallback_site = Site(policy)
        for rung in ladder(finding, policy, seen, Limits()):
            fallback_site.apply(nested(rung.fields))


def test_what_cannot_be_measured_is_no_trouble() -> None:
    """Devices and engines without figures make no finding that is bad."""
    bare = [
        DeviceState("gpu-1", "gpu", "Card", temperature_c=None),
        DeviceState("memory", "memory", "memory", used_bytes=None, total_bytes=100),
    ]
    seen = signals(1.0, *bare, engines=(EngineState("m", "x", "starting"),))
    assert not any(one.bad for one in findings(seen, Policy(), QualityReading(1, None), None, Limits()))


def test_every_reason_has_a_rule_and_a_place() -> None:
    """The table of rules and the order of precedence name the same reasons."""
    assert set(RULES) == set(PRECEDENCE)
    assert all(rule.follow_up for rule in RULES.values())


def test_findings_come_in_the_order_of_precedence() -> None:
    """So that the first action of a round is the one that matters most."""
    seen = signals(1.0, GPU, NPU, MEMORY, engines=(guessing(0.1),))
    found = findings(seen, Policy(), QualityReading(1, 1.0), 1.0, Limits())
    order = [PRECEDENCE.index(one.reason) for one in found]
    assert order == sorted(order)
    assert len(set(order)) == len(PRECEDENCE)
