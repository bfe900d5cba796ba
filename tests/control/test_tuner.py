import asyncio
from math import exp, log
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuner_landscape import AXES, TYPES, Landscape, space

from sekisho.control.measured import Measured, MeasurementFailed, middle
from sekisho.control.policy import Policy
from sekisho.control.policy_changes import PolicyProblem
from sekisho.control.tuner import tune
from sekisho.control.tuner_limits import Budget, Limits
from sekisho.control.tuner_reasons import (
    BaselineNotMeasured,
    Better,
    BudgetEnded,
    NeverBesideBaseline,
    NoBudgetLeft,
    NotMeasured,
    QualityNotMeasured,
    TimeRanOut,
    Worse,
)
from sekisho.control.tuner_report import TuningReport, lines
from sekisho.control.tuner_space import Axis, Space, contexts_that_fit
from sekisho.control.tuner_target import Goal, Target
from sekisho.control.tuner_words import told
from sekisho.engines.kv_size import KvShape

FASTER = Target("decode_tokens_per_s")
BUDGET = Budget(measurements=90, seconds=1e6)
LIMITS = Limits()
CHOICES = [("kv", kind) for kind in TYPES] + [
    (name, n) for name, c in (("slots", (1, 2, 4, 8)), ("threads", (1, 2, 3, 4))) for n in c
]
gains = st.lists(st.floats(-0.5, 0.5), min_size=len(CHOICES), max_size=len(CHOICES))


def found(
    landscape: Landscape, target: Target = FASTER, limits: Limits = LIMITS, budget: Budget = BUDGET, seed: int = 1
) -> TuningReport:
    return asyncio.run(tune(space(), landscape.measure, target, limits, budget, Random(seed), landscape.clock))


@settings(max_examples=60, deadline=None)
@given(gains, st.integers(0, 2**20))
def test_ninety_measurements_of_sixty_four_policies_find_the_best_within_five_percent(
    values: list[float], seed: int
) -> None:
    """Where choices add up and nothing scatters, a search of 64 policies with 12 measurements kept for the end does."""
    landscape = Landscape(speed=dict(zip(CHOICES, values, strict=True)))
    report = found(landscape, seed=seed)
    best = max(landscape.gain(each.policy) for each in space().candidates.values())
    assert landscape.gain(report.policy) >= max(0.0, best) - log(1.05)


def test_with_noise_of_ten_percent_it_comes_within_ten_percent_in_nine_of_ten() -> None:
    """Forty seeded landscapes with gains up to 65 % a choice, a drifting machine, 10 % noise at the first effort."""
    close = 0
    for seed in range(40):
        draw = Random(seed)
        speed = {choice: draw.uniform(-0.5, 0.5) for choice in CHOICES}
        landscape = Landscape(speed=speed, noise=0.1, drift=-0.01, chance=Random(seed))
        report = found(landscape, budget=Budget(measurements=150, seconds=1e6), seed=seed)
        best = max(0.0, *(landscape.gain(each.policy) for each in space().candidates.values()))
        close += landscape.gain(report.policy) >= best - log(1.1)
    assert close >= 36


def test_noise_alone_is_not_a_gain() -> None:
    """Where all policies are equal, at most 3 of 60 searches claim a gain: the winner is compared afresh."""
    outcomes = [found(Landscape(noise=0.2, chance=Random(seed)), seed=seed).outcome for seed in range(60)]
    assert outcomes.count("better") <= 3
    assert set(outcomes) <= {"better", "not distinguishable", "nothing better"}


@settings(max_examples=60, deadline=None)
@given(
    gains,
    st.dictionaries(st.sampled_from(TYPES), st.floats(0, 1)),
    st.dictionaries(st.sampled_from(TYPES), st.floats(-1, 1)),
    st.integers(1000, 9000),
    st.integers(0, 2**20),
)
def test_no_policy_over_a_limit_is_returned(
    values: list[float], loss: dict[object, float], prefill: dict[object, float], memory: int, seed: int
) -> None:
    """A policy over the quality, prefill or memory limit, or of unknown quality, is not chosen, whatever its gain."""
    landscape = Landscape(speed=dict(zip(CHOICES, values, strict=True)), loss=loss, prefill=prefill)
    report = found(landscape, limits=Limits(0.5, 1.2, memory), seed=seed)
    if report.policy != Policy():
        kind = report.policy.kv.key_type
        assert loss.get(kind, 1.0) <= 0.5
        assert -prefill.get(kind, 0.0) <= log(1.2) + 1e-6
        assert 1000 * (report.policy.engine.slots or 4) <= memory
    for each in report.tried:
        if each.observations and each.policy.kv.key_type not in loss:
            assert each.dropped == QualityNotMeasured()


@settings(max_examples=30, deadline=None)
@given(gains, st.floats(0, 0.3), st.integers(0, 2**20))
def test_the_same_seed_gives_the_same_report(values: list[float], noise: float, seed: int) -> None:
    speed = dict(zip(CHOICES, values, strict=True))
    first, second = (found(Landscape(speed=speed, noise=noise, chance=Random(3)), seed=seed) for _ in range(2))
    assert first == second


@settings(max_examples=60, deadline=None)
@given(gains, st.integers(16, 120), st.floats(5, 200), st.floats(0, 0.3), st.integers(0, 2**20))
def test_it_ends_within_its_budget(
    values: list[float], measurements: int, seconds: float, noise: float, seed: int
) -> None:
    """Neither measurements nor seconds are exceeded where a measurement takes as long as its effort says."""
    landscape = Landscape(speed=dict(zip(CHOICES, values, strict=True)), noise=noise, chance=Random(seed))
    budget = Budget(measurements, seconds)
    started_s = landscape.clock.monotonic()
    report = found(landscape, budget=budget, seed=seed)
    assert report.measurements == len(landscape.efforts) <= measurements
    took_s = landscape.clock.monotonic() - started_s
    assert took_s <= seconds + (landscape.seconds if report.measurements == 1 else 1e-9)


@settings(max_examples=60, deadline=None)
@given(gains, st.floats(0, 0.3), st.sets(st.sampled_from(TYPES)), st.integers(16, 120), st.integers(0, 2**20))
def test_every_candidate_is_explained(
    values: list[float], noise: float, broken: set[object], measurements: int, seed: int
) -> None:
    """All but the winner have a reason; one whose engine fails has its engine's words."""
    landscape = Landscape(
        speed=dict(zip(CHOICES, values, strict=True)), noise=noise, broken=frozenset(broken), chance=Random(seed)
    )
    report = found(landscape, budget=Budget(measurements, 1e6), seed=seed)
    for each in report.tried:
        assert (each.dropped is None) == (each.name == report.winner), each
        if each.policy.kv.key_type in broken and each.dropped is not None:
            told_of_it = (NotMeasured("the engine did not start"), NeverBesideBaseline(), NoBudgetLeft())
            assert each.dropped in told_of_it
    assert report.untried + len(report.tried) == len(space().candidates)
    text = "\n".join(lines(report))
    for each in report.tried:
        assert each.name in text
        assert ("the winner" if each.dropped is None else told(each.dropped)) in text


def test_nothing_is_dropped_for_a_lead_that_may_be_noise() -> None:
    """Every drop for being worse names a lead that is larger than the margin of noise measured in the same rung."""
    compared = 0
    for seed in range(10):
        draw = Random(seed)
        landscape = Landscape(speed={choice: draw.uniform(-0.3, 0.3) for choice in CHOICES}, noise=0.1, chance=draw)
        for each in found(landscape, seed=seed).tried:
            if isinstance(each.dropped, Worse):
                assert each.dropped.score_behind > each.dropped.noise_margin
                compared += 1
    assert compared > 10


def test_the_gain_comes_from_fresh_measurements() -> None:
    """The winner's gain is that of the interleaved pairs after the search, with an interval that holds the truth."""
    landscape = Landscape(speed={("kv", "q8_0"): 0.4}, noise=0.05)
    report = found(landscape, budget=Budget(150, 1e6))
    assert report.outcome == "better"
    assert report.gain is not None
    assert report.gain.n == 6
    assert report.gain.low is not None
    assert report.gain.high is not None
    assert report.gain.low < exp(0.4) < report.gain.high
    assert report.comparison is not None
    assert landscape.efforts[-12:] == [report.comparison.plan.effort] * 12
    assert landscape.policies[-12:].count(Policy()) == 6


def test_goals_come_before_gains() -> None:
    """With a goal of twice the contexts, a faster policy that misses it loses, and what is missed is told."""
    landscape = Landscape(speed={("slots", 8): -0.2, ("slots", 4): 0.3})
    report = found(landscape, Target("decode_tokens_per_s", (Goal("contexts", times=2),)))
    assert report.policy.engine.slots == 8
    assert report.missed == ()
    assert report.baseline.missed == (Goal("contexts", times=2),)
    assert isinstance(report.why, Better)
    assert (report.why.reached, report.why.nearer) == ((Goal("contexts", times=2),), ())
    impossible = found(landscape, Target("decode_tokens_per_s", (Goal("contexts", times=3),)))
    assert impossible.missed == (Goal("contexts", times=3),)
    assert isinstance(impossible.why, Better)
    assert (impossible.why.reached, impossible.why.nearer) == ((), (Goal("contexts", times=3),))
    assert impossible.why.times < 1  # which alone would look like no gain at all


def test_without_a_baseline_nothing_is_said() -> None:
    """A baseline that cannot be measured ends the search after its first rung."""
    report = found(Landscape(broken=frozenset([None])))
    assert (report.outcome, report.policy, report.winner) == ("not measured", Policy(), None)
    assert report.why == BaselineNotMeasured("the engine did not start")
    assert report.measurements <= 90 - 12


def test_a_budget_that_ends_before_a_candidate_says_so() -> None:
    """One measurement of ten seconds shows that the twelve at the end would not fit any more: the search stops."""
    report = found(Landscape(seconds=10.0), budget=Budget(90, 100.0))
    assert (report.outcome, report.measurements, report.policy) == ("not measured", 1, Policy())
    assert report.why == BudgetEnded()


async def test_a_measurement_that_hangs_is_cut_when_the_seconds_are_over() -> None:
    """The time-out is the budget's end; the candidate is dropped with that reason."""
    landscape = Landscape(seconds=0.0)  # its clock stands still: only the time-out can end this
    hung: list[Policy] = []

    async def hangs(policy: Policy, effort: float) -> Measured:
        if policy != Policy() and policy in (hung or [policy]):
            hung.append(policy)
            await asyncio.Event().wait()
        return await landscape.measure(policy, effort)

    report = await tune(space(), hangs, FASTER, LIMITS, Budget(90, 0.2), Random(1), landscape.clock)
    assert len(hung) == 1
    (dropped,) = [each.dropped for each in report.tried if each.policy == hung[0]]
    assert dropped == NotMeasured(TimeRanOut(0.2))


async def test_an_error_of_the_program_is_not_a_measurement() -> None:
    """Only MeasurementFailed drops a candidate; anything else ends the search."""

    async def wrong(policy: Policy, effort: float) -> Measured:
        raise KeyError(policy)

    with pytest.raises(KeyError):
        await tune(space(), wrong, FASTER, Limits(), BUDGET, Random(1), Landscape().clock)


def test_what_cannot_be_asked_for_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        Budget(measurements=15, seconds=1)
    with pytest.raises(ValueError, match="either a value or a multiple"):
        Goal("contexts")
    with pytest.raises(PolicyProblem):
        Space(Policy(), [Axis("kv", {"none": {"kv": {"key_type": "q1"}}})])
    with pytest.raises(ValueError, match="nothing to choose"):
        Space(Policy(), [Axis("kv", {"same": {}})])


def test_a_sample_has_every_choice_about_equally_often() -> None:
    for seed in range(5):
        sample = space().sample(16, Random(seed))
        assert len({each.place for each in sample}) == 16
        for axis in range(len(AXES)):
            counts = [sum(each.place[axis] == choice for each in sample) for choice in range(4)]
            assert max(counts) - min(counts) <= 2


def test_the_kv_bytes_of_llama_3_2_1b() -> None:
    """32,768 bytes a token at f16, so 4 contexts of 4,096 tokens in 512 MiB, 7 at q8_0, 14 at q4_0."""
    shape = KvShape(heads=16 * 8, key_size=64, value_size=64)
    assert shape.token_bytes("f16", "f16") == 32_768
    fit = [contexts_that_fit(512 * 2**20, shape, 4096, kind, kind) for kind in ("f16", "q8_0", "q4_0")]
    assert fit == [4, 7, 14]
    assert contexts_that_fit(2**20, shape, 4096, "q4_0", "q4_0", staging_bytes=2**21) == 0


def test_medians_and_the_worst_loss() -> None:
    several = [
        Measured(decode_tokens_per_s=each, delta_ppl=loss) for each, loss in ((1.0, 0.1), (5.0, None), (2.0, 0.3))
    ]
    assert middle(several) == Measured(decode_tokens_per_s=2.0, delta_ppl=0.3)


def test_a_report_goes_through_json() -> None:
    report = found(Landscape(speed={("kv", "q8_0"): 0.4}, noise=0.05))
    assert msgspec.json.decode(msgspec.json.encode(report), type=TuningReport) == report
    assert issubclass(MeasurementFailed, Exception)
