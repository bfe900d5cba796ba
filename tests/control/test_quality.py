"""What the quality loop makes of its findings: when it tells, when it acts, how far it goes, and that it ends."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.control.perplexity.base import Delta
from sekisho.control.policy import KvSection, Policy
from sekisho.control.policy_changes import kv_types, merged
from sekisho.control.quality import BAD_IN_A_ROW, Finding, Quality, State, Verdict
from sekisho.control.quality_ladder import RUNGS, Rung, rung_of_tiers, rung_of_types, steps
from sekisho.control.quality_online import EarlySign

LIMIT = 0.5


def finding(value: float | None, kind: str = "light", low: float | None = None) -> Finding:
    if value is None:
        return Finding(kind, None, "the engine is down")
    low = value - 0.1 if low is None else low
    return Finding(kind, Delta(value, value / 10, low, value + 0.1, 900))


GOOD, BAD, NOTHING = finding(0.1), finding(1.0), finding(None)
UNCLEAR = finding(1.0, low=-3.0)


class Loop:
    """A quality loop with a policy that its steps change, as the agent applies them."""

    def __init__(self, rung: Rung = "int4", **settings: object) -> None:
        self.quality = Quality(**settings)
        self.policy = Policy()
        self.rung = rung

    def see(self, found: Finding) -> Verdict:
        # Through JSON, as it goes to disk.
        self.quality.state = msgspec.json.decode(msgspec.json.encode(self.quality.state), type=State)
        return self._apply(self.quality.observe(found, LIMIT, steps(self.rung, self.policy)))

    def fail(self, why: str, before: tuple[Rung, Policy]) -> Verdict:
        self.rung, self.policy = before
        return self._apply(self.quality.not_applied(why, LIMIT, steps(self.rung, self.policy)))

    def _apply(self, verdict: Verdict) -> Verdict:
        if verdict.changes is not None:
            self.policy = merged(self.policy, verdict.changes)
            self.rung = rung_of_tiers(self.policy)
        return verdict


def levels(loop: Loop, *found: Finding) -> list[str]:
    return [loop.see(each).level for each in found]


def test_each_bad_finding_is_told_and_the_third_in_a_row_is_acted_on() -> None:
    """An alert at once each time, with signal, value, limit and why; a light run is wanted next; the third one brings
    the first step."""
    loop = Loop()
    first, second, third = (loop.see(BAD) for _ in range(3))
    assert (first.level, first.alert, first.want, first.changes) == ("bad", True, "light", None)
    assert (first.signal, first.value, first.limit) == ("quality.delta_ppl", 1.0, LIMIT)
    assert first.why == (
        "perplexity rose by 1.000 (+10.00%, 95 % 0.900 to 1.100; 900 tokens), 0.5 is allowed: 1 in a row, 3 are needed "
        "to act"
    )
    assert second.level == "bad"
    assert (third.level, third.action, third.want) == ("step", "change_policy", "light")
    assert loop.rung == "int8"


def test_a_good_finding_between_starts_the_count_anew() -> None:
    """Two bad ones, a good one, two bad ones: nothing is done."""
    assert "step" not in levels(Loop(), BAD, BAD, GOOD, BAD, BAD)


def test_each_step_is_confirmed_before_the_next_and_the_last_failure_is_critical() -> None:
    """INT8 is not enough, 16 bits are not enough: critical once, then only bad; nothing more is changed."""
    loop = Loop()
    assert levels(loop, BAD, BAD, BAD, BAD, BAD, BAD, BAD) == ["bad", "bad", "step", "step", "critical", "bad", "bad"]
    assert loop.rung == "fp16"
    assert loop.see(GOOD).level == "recovered"


def test_after_recovery_it_stays() -> None:
    """A confirmed step is told, and however many good findings follow, nothing is undone by itself."""
    loop = Loop()
    levels(loop, BAD, BAD, BAD)
    assert levels(loop, GOOD, *[finding(0.0, "full")] * 20) == ["recovered", *["good"] * 20]
    assert loop.rung == "int8"


def test_it_may_step_back_after_enough_good_full_runs_and_twice_as_many_the_next_time() -> None:
    """With `step_back_after` 2: two full runs, and the policy is what it was before the step. Bad three times again, it
    climbs to the next rung above the one left and needs four full runs for the next step back."""
    loop, full = Loop(step_back_after=2), finding(0.0, "full")
    before = loop.policy
    levels(loop, BAD, BAD, BAD, GOOD)
    back = [loop.see(each) for each in (GOOD, full, GOOD, full)]
    assert [each.level for each in back] == ["good", "good", "good", "step_back"]
    assert back[-1].want == "light"
    assert (loop.policy, loop.rung) == (before, "int4")
    assert levels(loop, BAD, BAD, BAD, GOOD) == ["bad", "bad", "step", "recovered"]
    assert levels(loop, full, full, full, full) == ["good", "good", "good", "step_back"]


def test_a_step_that_the_engine_does_not_take_is_followed_by_the_next() -> None:
    """Refused INT8: 16 bits are tried at once; refused, too: critical."""
    loop = Loop()
    levels(loop, BAD, BAD)
    before = (loop.rung, loop.policy)
    assert loop.see(BAD).level == "step"
    second = loop.fail("no memory", before)
    assert (second.level, loop.rung) == ("step", "fp16")
    assert "did not take the step: no memory" in second.why
    last = loop.fail("no memory", before)
    assert (last.level, last.alert) == ("critical", True)
    assert loop.policy == before[1]


def test_without_leave_to_act_it_advises() -> None:
    """The third bad finding names the rung; nothing is to be changed."""
    loop = Loop(may_act=False)
    found = [loop.see(BAD) for _ in range(6)]
    assert all(each.changes is None for each in found)
    assert found[2].why.endswith("advised: KV cache at int8")
    assert found[5].why.endswith("advised: KV cache at int8")


def test_what_cannot_be_told_from_chance_asks_for_a_full_run() -> None:
    """A light run whose interval holds zero counts neither way; a full run that cannot tell counts as good."""
    loop = Loop()
    found = [loop.see(each) for each in (BAD, BAD, UNCLEAR, BAD)]
    assert [(each.level, each.want) for each in found[2:]] == [("unclear", "full"), ("step", "light")]
    assert loop.see(finding(1.0, "full", low=-3.0)).level == "recovered"


def test_no_measurement_moves_nothing_and_the_third_in_a_row_is_told() -> None:
    """The engine is down: no figure, no step; one alert at the third time."""
    loop = Loop()
    levels(loop, BAD, BAD)
    found = [loop.see(NOTHING) for _ in range(5)]
    assert [each.alert for each in found] == [False, False, True, False, False]
    assert {each.level for each in found} == {"unmeasured"}
    assert loop.see(BAD).level == "step"


def test_a_change_by_somebody_else_forgets_what_was_found() -> None:
    """Two bad findings under another policy count for nothing."""
    loop = Loop()
    levels(loop, BAD, BAD)
    loop.quality.policy_changed()
    assert levels(loop, BAD, BAD, BAD) == ["bad", "bad", "step"]


FINDINGS = st.lists(st.sampled_from([GOOD, BAD, UNCLEAR, NOTHING, finding(0.0, "full"), finding(2.0, "full")]))


@given(FINDINGS, st.sampled_from(RUNGS), st.booleans())
def test_it_never_acts_before_three_bad_findings_in_a_row(found: list[Finding], rung: Rung, may_act: bool) -> None:
    """For any findings: up to the first step there were three bad ones in a row, unclear and missing ones aside."""
    loop, row = Loop(rung, may_act=may_act), 0
    for each in found:
        told = [each.delta.value > LIMIT and each.delta.low > 0] if each.delta else []
        row = row + 1 if told == [True] else row if each is UNCLEAR or not told else 0
        verdict = loop.see(each)
        if verdict.level in ("step", "critical") or verdict.changes is not None:
            assert row >= BAD_IN_A_ROW
            return


@given(FINDINGS, st.sampled_from(RUNGS))
def test_the_ladder_only_rises_and_ends(found: list[Finding], rung: Rung) -> None:
    """For any findings without leave to step back: each step is above the one before, there are at most as many as
    rungs above the first, and after the last bad one comes `critical`, never another step."""
    loop = Loop(rung)
    reached = [RUNGS.index(rung)]
    for each in [*found, *[BAD] * 8]:
        verdict = loop.see(each)
        if verdict.changes is not None:
            reached.append(RUNGS.index(loop.rung))
    assert all(later > earlier for earlier, later in pairwise(reached))
    assert len(reached) <= len(RUNGS) - RUNGS.index(rung)
    assert loop.quality.state.phase == "exhausted"


@given(FINDINGS, st.integers(1, 3))
def test_every_verdict_says_why(found: list[Finding], after: int) -> None:
    """With signal, limit and, where something was measured, the value; changes come with an alert or a step back."""
    loop = Loop(step_back_after=after)
    for each in found:
        verdict = loop.see(each)
        assert verdict.why
        assert verdict.limit == LIMIT
        assert verdict.signal
        assert (verdict.value is None) == (each.delta is None)
        assert verdict.changes is None or verdict.action == "change_policy"


# --- the ladder ------------------------------------------------------------------------------------------------------


def test_steps_lead_upwards_and_back() -> None:
    """From each rung the ones above; applied, a policy of tiers is on that rung; undone, it is what it was."""
    start = Policy(
        kv=KvSection("throughput_optimized", recent_window=99, evict=True, key_type="q4_0", value_type="q4_0")
    )
    assert [[step.rung for step in steps(rung, start)] for rung in RUNGS] == [["int8", "fp16"], ["fp16"], []]
    for step in steps("int4", start):
        there = merged(start, step.changes)
        assert rung_of_tiers(there) == rung_of_types(*kv_types(there)) == step.rung
        assert merged(there, step.undo) == start


@pytest.mark.parametrize(
    ("key", "value", "rung"),
    [("f16", "bf16", "fp16"), ("f16", "q8_0", "int8"), ("q8_0", "q5_1", "int4"), ("q4_0", "q4_0", "int4")],
)
def test_the_lower_type_decides_the_rung(key: str, value: str, rung: Rung) -> None:
    """Keys at 16 bits do not help values below eight."""
    assert rung_of_types(key, value) == rung


@pytest.mark.parametrize(
    ("changes", "rung"),
    [
        ({}, "int4"),
        ({"mode": "disabled"}, "fp16"),
        ({"budget": 0.6}, "int8"),
        ({"budget": 0.6, "evict": True}, "int4"),
        ({"budget": 0.3}, "int4"),
        ({"level_thresholds": {"L1_int8": 1, "L2_int4": 0, "L3_evict": 0}}, "int8"),
        ({"level_thresholds": {"L1_int8": 0, "L2_int4": 0, "L3_evict": 0}}, "fp16"),
    ],
)
def test_budget_or_thresholds_decide_the_rung_of_tiers(changes: dict[str, object], rung: Rung) -> None:
    """What a page may come to at least."""
    assert rung_of_tiers(merged(Policy(), {"kv": changes})) == rung


# --- the early sign --------------------------------------------------------------------------------------------------


def wave(count: int, mean: float) -> list[float]:
    return [mean + (0.3 if each % 2 else -0.3) for each in range(count)]


def test_an_early_sign_only_asks_for_a_light_run() -> None:
    """Answers that become less likely by more than chance: one sign, which changes nothing, and the next only after a
    whole window."""
    sign = EarlySign(window=100)
    assert all(sign.add(each) is None for each in wave(250, 1.0))
    found = [each for each in map(sign.add, wave(200, 1.6)) if each is not None]
    assert [(each.level, each.want, each.changes) for each in found] == [("early_sign", "light", None)] * len(found)
    assert 1 <= len(found) <= 2


def test_no_sign_before_a_reference_nor_after_a_reset() -> None:
    """The first window is what later ones are compared with; a reset begins anew; likelier answers are no sign."""
    sign = EarlySign(window=50)
    assert all(sign.add(each) is None for each in (*wave(50, 1.0), *wave(300, 0.5)))
    sign.reset()
    assert all(sign.add(each) is None for each in wave(200, 3.0))
    assert sign.add(float("nan")) is None
