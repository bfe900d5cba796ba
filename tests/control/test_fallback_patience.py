"""Fallbacks that do not act again and again: what was answered, refused, advised or ended stays so for a while."""

from itertools import pairwise

import msgspec
from faults_harness import ENGINE, FULL, GPU, MEMORY, NPU, Site, guessing, sample, signals
from faults_harness import FallbackRun as Run

from sekisho.control.base import DeviceState
from sekisho.control.fallback import ADVICE_AGAIN_S, REFUSED_AGAIN_S
from sekisho.control.policy import EngineSection, Policy

set_to = msgspec.structs.replace
HOT_NPU, NO_NPU = set_to(NPU, temperature_c=90.0), DeviceState("npu", "npu", "NPU", present=False)


def test_time_outs_that_were_answered_are_not_counted_again() -> None:
    """However long the window keeps them; while it has nothing else they are no ease either. New ones go on from there,
    those of another model by themselves, and an empty window is ease as before."""
    run = Run()
    old = tuple(sample(number, "engine_timeout") for number in range(10))
    assert len(run.look_for(10, samples=old)) == 1
    assert run.look_for(3_000, samples=old) == []
    later = (*old, *(sample(number, "engine_timeout") for number in (10, 11)))
    assert run.look_for(600, samples=later) == []
    (slots,) = run.look_for(600, samples=(*later, sample(0, "engine_timeout")))  # of a gateway that began anew
    assert (slots.changes, slots.value) == ({"engine": {"slots": 4}}, 1.0)
    two = (ENGINE, set_to(ENGINE, model="n"))
    other = tuple(sample(number, "engine_timeout", "n") for number in range(3))
    assert [action.subject for action in run.look_for(10, samples=other, engines=two)] == ["n"]
    assert [action.subject for action in run.look_for(320, engines=two) if action.recovered] == ["m", "n"]
    assert run.site.policy == Policy()


def test_time_outs_that_ended_are_over_once_new_requests_are_well() -> None:
    """Five minutes of them, although the window still has the old ones."""
    run = Run()
    samples = tuple(sample(number, "engine_timeout") for number in range(10))
    run.look_for(10, samples=samples)
    samples += tuple(sample(number) for number in range(10, 20))
    assert run.look_for(300, samples=samples) == []
    assert [action.recovered for action in run.look(samples=samples)] == [True]


def test_guessing_that_was_ended_stays_ended() -> None:
    """No engine that does not guess tells a rate, and one that guesses well says nothing of another: a day changes
    nothing. Only what a person sets, or a new agent, begins it again."""
    run = Run(Policy(engine=EngineSection(speculation="ngram")), period_s=30.0)
    run.look_for(90, engines=(guessing(0.2),))
    assert run.look_for(86_400, engines=(guessing(None, 0), guessing(0.9, model="n"))) == []
    assert run.site.policy.engine.speculation == "off"
    run.site.apply({"engine": {"speculation": "ngram"}})
    told = run.look_for(1_200, engines=(guessing(0.2, 500),))
    assert [(action.recovered, action.changes) for action in told] == [(True, None)]
    assert run.site.policy.engine.speculation == "ngram"


def test_a_change_that_engines_refuse_is_tried_again_after_a_quarter_of_an_hour() -> None:
    """The policy service rolls back what no engine takes; the same step comes again."""
    run = Run(period_s=1.0)
    at, steps = [], []
    for _ in range(3_800):
        run.now_s += 1
        for action in run.fallbacks.observe(signals(run.now_s, NO_NPU, GPU), run.site.policy, run.now_s):
            at.append(run.now_s)
            steps.append(action.changes)
    assert len(steps) >= 4
    assert all(step == steps[0] for step in steps)
    pauses = [later - earlier for earlier, later in pairwise(at)]
    assert all(REFUSED_AGAIN_S <= pause <= REFUSED_AGAIN_S + 2 for pause in pauses)
    run.look_for(310, NPU, GPU)
    assert run.site.policy == Policy()


def test_the_time_of_a_try_is_no_part_of_the_pause_after_it() -> None:
    """A swap that gives up after a minute is tried at most five times in an hour; one that is made is given its time to
    show after it is made."""
    for refuses in (True, False):
        run, tries = Run(), []
        while run.now_s < 4_600:
            for action in run.look(FULL):
                run.site = Site() if refuses else run.site
                tries.append((run.now_s, action.changes))
                run.now_s += 60
            run.fallbacks.busy_until(run.now_s)
        if refuses:
            assert 2 <= len(tries) <= 5
        else:
            assert [later - was for (was, _), (later, _) in pairwise(tries[:4])] == [90.0] * 3


def test_an_undo_that_engines_refuse_is_tried_again_later_each_time() -> None:
    """A minute after the first try, at most a quarter of an hour apart, and not for ever once they take it."""
    run = Run()
    run.look_for(15, HOT_NPU, GPU)
    changed, tries = run.site.policy, []
    for _ in range(800):
        for action in run.look(NPU, GPU):
            tries.append((run.now_s, action.changes))
            run.site.policy = changed
    assert all(changes == {"scheduler": {"decode_device": "npu"}} for _, changes in tries)
    pauses = [later - was for (was, _), (later, _) in pairwise(tries)]
    assert pauses[0] >= 60
    assert 900 <= pauses[-1] <= 900 * 1.3 + 5
    run.look_for(1_200, NPU, GPU)
    assert run.site.policy == Policy()
    assert run.look_for(3_000, NPU, GPU) == []


def test_an_agent_that_may_not_act_advises_and_changes_nothing() -> None:
    """The advice names the fields; as long as nobody does it, it stays the same one, every quarter of an hour."""
    run = Run(acts=False)
    told = run.look_for(2_000, FULL)
    assert [later.not_before_s - was.not_before_s for was, later in pairwise(told)] == [ADVICE_AGAIN_S] * 2
    assert all(action.changes is None for action in told)
    assert all("engine.prompt_cache_bytes = 0" in action.advice for action in told)
    assert run.site.policy == Policy()
    assert run.look_for(70, MEMORY)[-1].recovered


def test_whether_it_acts_can_be_changed_at_any_time() -> None:
    """Switched off, it advises the next step, and undoes what it did when the trouble is over; switched on, it does
    what it advised without waiting for the next advice."""
    run = Run()
    run.look_for(10, FULL)
    assert run.site.policy.engine.prompt_cache_bytes == 0
    run.fallbacks.acts = False
    told = run.look_for(900, FULL)
    assert [action.changes for action in told] == [None]
    assert "kv.recent_window = 32" in told[0].advice
    run.fallbacks.acts = True
    assert (run.look_for(15, FULL)[0].changes or {})["kv"]["recent_window"] == 32
    run.fallbacks.acts = False
    assert not run.fallbacks.acts
    assert run.look_for(70, MEMORY)[-1].recovered
    assert run.site.policy == Policy()
