from math import exp, log
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.control.comparison import Block, ComparisonPlan, OutOfBudget, compare, ratios
from sekisho.control.measured import Measured, MeasurementFailed
from sekisho.control.policy import EngineSection, Policy
from sekisho.control.subset_means import SubsetMeans, fewest

A, B = Policy(), Policy(engine=EngineSection(threads=2))


class Machine:
    """Speeds with noise and a drift; B is `times` as fast as A."""

    def __init__(self, times: float, noise: float = 0.0, drift: float = 0.0, seed: int = 1) -> None:
        self._times, self._noise, self._drift, self._chance = times, noise, drift, Random(seed)
        self.order = ""

    async def measure(self, policy: Policy, effort: float) -> Measured:
        self.order += "b" if policy == B else "a"
        speed = log(10.0 * (self._times if policy == B else 1.0))
        speed += self._drift * len(self.order) + self._chance.gauss(0, self._noise)
        return Measured(decode_tokens_per_s=exp(speed), contexts=4)


async def test_a_steady_drift_cancels_in_a_block() -> None:
    """A machine that slows by 5 % with each measurement shifts the ratio by nothing: A B B A is symmetric in time."""
    machine = Machine(1.3, drift=-0.05)
    ratio = (await compare(A, B, machine.measure, ComparisonPlan(), Random(2))).ratio("decode_tokens_per_s")
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.3, 1.3, 1.3))
    assert ratio.verdict == "more"
    blocks = {machine.order[place : place + 4] for place in range(0, 24, 4)}
    assert blocks == {"abba", "baab"}


async def test_equal_policies_are_rarely_told_apart() -> None:
    """Of 200 comparisons of equals, at most 20 claim a difference (5 % are expected), and the others say so."""
    verdicts = []
    for seed in range(200):
        machine = Machine(1.0, noise=0.1, seed=seed)
        found = await compare(A, B, machine.measure, ComparisonPlan(order="ab"), Random(seed))
        verdicts.append(found.ratios[0].verdict)
    assert verdicts.count("not distinguishable") >= 180
    assert set(verdicts) <= {"not distinguishable", "more", "less"}


async def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        machine = Machine(1.2, noise=0.1, seed=seed)
        ratio = (await compare(A, B, machine.measure, ComparisonPlan(blocks=8), Random(seed))).ratios[0]
        assert ratio.low is not None
        assert ratio.high is not None
        held += ratio.low <= 1.2 <= ratio.high
    assert 180 <= held <= 198


async def test_five_blocks_are_too_few() -> None:
    """Below the stated minimum there is a ratio, and no interval."""
    ratio = (await compare(A, B, Machine(2.0).measure, ComparisonPlan(blocks=5), Random(1))).ratios[0]
    assert (ratio.value, ratio.n, ratio.needed) == (pytest.approx(2.0), 5, 6)
    assert (ratio.low, ratio.high, ratio.verdict) == (None, None, "too few blocks")


async def test_a_failed_measurement_spoils_its_block_only() -> None:
    machine = Machine(1.5)

    async def measure(policy: Policy, effort: float) -> Measured:
        if len(machine.order) == 5:
            machine.order += "x"
            raise MeasurementFailed("the engine is gone")
        return await machine.measure(policy, effort)

    found = await compare(A, B, measure, ComparisonPlan(blocks=7), Random(1))
    assert len(found.faults) == 1
    assert found.faults[0].endswith(": the engine is gone")
    assert found.ratios[0].n == 6
    assert found.ratios[0].verdict == "more"


async def test_what_is_measured_when_the_budget_ends_counts() -> None:
    machine = Machine(1.5)

    async def measure(policy: Policy, effort: float) -> Measured:
        if len(machine.order) == 10:
            raise OutOfBudget("spent")
        return await machine.measure(policy, effort)

    found = await compare(A, B, measure, ComparisonPlan(), Random(1))
    assert (found.stopped, len(found.blocks), found.ratios[0].n) == ("spent", 2, 2)


async def test_a_plan_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a block"):
        await compare(A, B, Machine(1.0).measure, ComparisonPlan(blocks=0), Random(1))


def test_a_figure_that_one_side_lacks_has_no_ratio() -> None:
    block = Block("ab", (Measured(contexts=4, decode_tokens_per_s=1.0),), (Measured(contexts=8),))
    assert [each.figure for each in ratios([block], 0.95, 1)] == ["contexts"]


def test_both_count_measurements() -> None:
    assert ComparisonPlan(blocks=6).measurements == 24
    assert ComparisonPlan(blocks=6, order="ab").measurements == 12


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=6, max_size=9), st.floats(-3, 3))
def test_subset_means_are_the_sign_flip_test_turned_round(values: list[float], at: float) -> None:
    """The interval holds exactly the means that the test at 5 % does not refuse; all subsets, by brute force."""
    means = SubsetMeans(values, 1)
    bounds = means.bounds(0.95)
    assert bounds is not None
    count = len(values)
    brute = sorted(np.mean([v for i, v in enumerate(values) if mask >> i & 1]) for mask in range(1, 2**count))
    assert means.sorted == pytest.approx(brute)
    if bounds[0] < at < bounds[1]:
        assert means.p_other_than(at) > 0.05 - 1e-9


def test_how_many_values_an_interval_needs() -> None:
    for level in (0.8, 0.9, 0.95, 0.99):
        needed = fewest(level)
        assert SubsetMeans([1.0] * needed, 1).bounds(level) is not None
        assert SubsetMeans([1.0] * (needed - 1), 1).bounds(level) is None
