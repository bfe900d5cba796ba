import asyncio
import math
import random
from collections import Counter

import msgspec
import numpy as np
import pytest
from compare_harness import FAILED, ITEMS, Machine, canned, fine, never, plan, result_of
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sekisho.evaluate.comparison.compare import (
    run_comparison,
    shortfalls,
)
from sekisho.evaluate.comparison.compare_plan import (
    DEFAULT_MARGINS,
    ComparePlan,
    Item,
    Margin,
    Observation,
)
from sekisho.evaluate.comparison.compare_verdict import MetricResult
from sekisho.evaluate.paired import score_interval, score_z

# --- the verdict, on a machine that drifts ---


async def test_same_against_same_is_adopted() -> None:
    """A against itself on a drifting machine with a cache: never rejected in 20 comparisons, adopted in nearly all."""
    verdicts = Counter([(await run_comparison(plan(40, seed=seed), Machine(seed).ask)).verdict for seed in range(20)])
    assert verdicts["reject"] == 0
    assert verdicts["adopt"] >= 18


async def one_after_the_other(machine: Machine, first: str, second: str) -> tuple[float, float]:
    """All of one arm, then all of the other: the ratio of their speeds, and the p-value of Welch's test."""
    logs = []
    for arm in (first, second):
        logs.append([math.log((await machine.ask(arm, item)).tok_s or 1) for item in ITEMS * 4])
    return math.exp(np.mean(logs[1]) - np.mean(logs[0])), float(stats.ttest_ind(*logs, equal_var=False).pvalue)


@pytest.mark.slow
async def test_a_fifth_slower_is_found_where_one_after_the_other_errs() -> None:
    """20 % slower is rejected in each of 8 comparisons, with the right ratio. One arm after the other, on the same
    machines, equal arms mostly look different, and the slower arm, asked first, sometimes looks no slower by 10 %."""
    apart = missed = 0
    for seed in range(8):
        found = await run_comparison(plan(seed=seed), Machine(seed, slower=0.2).ask)
        interval = result_of(found, "total").interval
        assert found.verdict == "reject"
        assert interval is not None
        assert interval.low <= 1.2 <= interval.high
        apart += (await one_after_the_other(Machine(seed), "old", "new"))[1] < 0.01
        missed += (await one_after_the_other(Machine(seed, slower=0.2), "new", "old"))[0] < 1.1
    assert apart >= 6
    assert missed >= 2


async def test_intervals_cover_under_drift() -> None:
    """Of 120 comparisons of 12 blocks, 92 % or more hold the true ratio, though the machine's own speed changes by more
    than that ratio within each."""
    hits = 0
    for seed in range(120):
        found = await run_comparison(plan(12, (Margin("total", 0.1),), seed), Machine(seed, slower=0.1).ask)
        interval = result_of(found, "total").interval
        hits += interval is not None and interval.low <= 1.1 <= interval.high
    assert hits >= 0.92 * 120


@pytest.mark.slow
async def test_too_few_says_how_many() -> None:
    """Noisy answers and ten blocks: limited, with a number of pairs; with that many, equal arms are mostly adopted."""
    margins = (Margin("ttft", 0.10),)
    found = await run_comparison(plan(10, margins), Machine(1, noise=0.4).ask)
    result = result_of(found, "ttft")
    assert found.verdict == "limited"
    needed = result.pairs_needed
    assert needed is not None
    assert needed > 20
    english, japanese = result.reasons[1]
    assert english == f"20 pairs were too few for a margin of 10 %: about {needed} are needed."
    assert japanese == f"許容幅 10 % に対して 20 組では足りません。約 {needed} 組が必要です。"
    verdicts = Counter(
        [
            (await run_comparison(plan(needed // 2, margins, seed), Machine(seed, noise=0.4).ask)).verdict
            for seed in range(8)
        ]
    )
    assert verdicts["adopt"] >= 5
    assert verdicts["reject"] == 0


async def test_five_blocks_judge_no_speed() -> None:
    """Below six blocks there is no interval: limited, however equal the answers."""
    made = plan(5, (Margin("ttft", 0.1),))
    found = await run_comparison(made, never, finished=canned(made, [(fine(), fine())] * 10))
    result = result_of(found, "ttft")
    assert (found.verdict, result.interval, result.pairs_needed) == ("limited", None, 12)
    assert result.estimate == 1.0


# --- shares ---


async def test_failures_reject_early() -> None:
    """An arm that fails every second time is rejected on success, and the rest of the plan is not asked."""
    machine = Machine(3, failing=0.5)
    found = await run_comparison(plan(80, DEFAULT_MARGINS), machine.ask)
    assert (found.verdict, found.stopped_early) == ("reject", True)
    assert result_of(found, "success").verdict == "reject"
    assert found.blocks < 40
    assert len(machine.asked) == 4 * found.blocks + 2
    assert f"Stopped after {found.blocks} of 80 blocks" in found.reasons[1][0]


async def test_to_the_end_when_told_so() -> None:
    """Without `stop_early` every block is asked, with the same verdict."""
    found = await run_comparison(plan(40, DEFAULT_MARGINS, stop_early=False), Machine(3, failing=0.5).ask)
    assert (found.verdict, found.stopped_early, found.blocks) == ("reject", False, 40)


async def test_no_early_end_without_its_reason() -> None:
    """Surely worse but within the margin is no reason to stop, and neither is an A that fails when B is only slow."""

    async def failing(arm: str, item: Item) -> Observation:
        return FAILED if arm == "new" and int(item.id[5:]) % 5 == 0 else fine()

    async def slow(arm: str, item: Item) -> Observation:
        return FAILED if arm == "old" and int(item.id[5:]) % 5 == 0 else fine(150 if arm == "new" else 100)

    within = await run_comparison(plan(80, (Margin("success", 0.4),)), failing)
    assert (within.verdict, within.stopped_early) == ("adopt", False)
    assert (result_of(within, "success").e_value or 0) > 20
    rejected = await run_comparison(plan(80, (Margin("ttft", 0.1), Margin("success", 0.02))), slow)
    assert (rejected.verdict, rejected.stopped_early) == ("reject", False)


async def test_equal_failing_arms_are_not_stopped() -> None:
    """Two arms that both fail once in five are stopped early in at most one of 30 comparisons of 80 looks."""
    stopped = 0
    for seed in range(30):
        chance = random.Random(seed)

        async def ask(arm: str, item: Item, chance: random.Random = chance) -> Observation:
            return fine() if chance.random() < 0.8 else FAILED

        stopped += (await run_comparison(plan(80, (Margin("success", 0.02),), seed), ask)).stopped_early
    assert stopped <= 1


async def test_perfect_success_needs_enough_pairs() -> None:
    """No failure at all within a margin of 2 %: limited at 94 blocks, adopted at 95 (189 pairs)."""
    for blocks, verdict in ((94, "limited"), (95, "adopt")):
        made = plan(blocks, (Margin("success", 0.02),))
        found = await run_comparison(made, never, finished=canned(made, [(fine(), fine())] * 2 * blocks))
        assert found.verdict == verdict
        assert (result_of(found, "success").pairs_needed or 0) >= (189 if verdict == "limited" else 0)
    assert result_of(found, "success").only_a == 0
    assert result_of(found, "success").pairs_needed is None


@pytest.mark.parametrize("repeats", [1, 3])
async def test_an_item_counts_once(repeats: int) -> None:
    """Correctness of 80 items is that of 80 items, however often each is asked; a failed answer is a wrong one."""
    made = plan(40 * repeats, (Margin("correct", 0.05),), stop_early=False)
    right = {item.id: (n % 10 != 0, n % 10 != 1 and n % 20 != 2) for n, item in enumerate(ITEMS)}

    async def ask(arm: str, item: Item) -> Observation:
        correct = right[item.id][arm == "new"]
        return FAILED if item.id == "item-2" and arm == "new" else fine(correct=correct)

    result = result_of(await run_comparison(made, ask), "correct")
    assert (result.n, result.only_b, result.only_a) == (80, 8, 12)
    assert result.estimate == pytest.approx(-4 / 80)
    assert result.interval == score_interval(8, 12, 80)
    assert result.interval is not None
    assert score_z(8, 12, 80, result.interval.low) == pytest.approx(1.96, abs=1e-3)


async def test_an_item_asked_again_stops_nothing() -> None:
    """One question that B alone gets wrong, asked 40 times, is one wrong answer: no early end, though B is slow."""
    made = ComparePlan(
        arms=("old", "new"), items=ITEMS[:2], blocks=40, margins=(Margin("ttft", 0.1), Margin("correct", 0.1))
    )

    async def ask(arm: str, item: Item) -> Observation:
        new = arm == "new"
        return fine(150 if new else 100, correct=not (new and item.id == "item-0"))

    found = await run_comparison(made, ask)
    assert (found.verdict, found.blocks, found.stopped_early) == ("reject", 40, False)
    assert result_of(found, "correct").e_value == pytest.approx(1.0)


async def test_what_nobody_judged_is_not_judged() -> None:
    """Without a judge, correctness is limited and says why; one-sided judgements are left out and hold back."""
    made = plan(10, (Margin("correct", 0.05),))
    found = await run_comparison(made, never, finished=canned(made, [(fine(), FAILED), (FAILED, FAILED)] * 10))
    result = result_of(found, "correct")
    assert (found.verdict, result.estimate, result.n, result.left_out) == ("limited", None, 0, 0)
    assert "nothing is said" in result.reasons[0][0]
    mixed = plan(10, (Margin("ttft", 0.1), Margin("correct", 0.05)))
    found = await run_comparison(mixed, never, finished=canned(mixed, [(fine(), fine())] * 20))
    assert ([result.verdict for result in found.metrics], found.verdict) == (["adopt", "limited"], "limited")
    one_sided = canned(made, [(fine(correct=True), fine())] * 20)
    result = result_of(await run_comparison(made, never, finished=one_sided), "correct")
    assert (result.verdict, result.n, result.left_out) == ("limited", 0, 20)


async def test_items_for_speed_alone_hold_nothing_back() -> None:
    """Half of the items have no right answer: correctness is that of the other half, none is left out, and a plan says
    beforehand how many there will be."""
    items = tuple(msgspec.structs.replace(item, expected="x" if n % 2 else "") for n, item in enumerate(ITEMS))
    made = ComparePlan(arms=("old", "new"), items=items, blocks=40, margins=(Margin("correct", 0.1),))

    async def ask(arm: str, item: Item) -> Observation:
        return fine(correct=True if item.expected else None)

    found = await run_comparison(made, ask)
    result = result_of(found, "correct")
    assert (found.verdict, result.n, result.left_out) == ("adopt", 40, 0)
    assert shortfalls(made) == ()
    assert "20 are planned" in shortfalls(msgspec.structs.replace(made, blocks=20))[0][0]


async def test_a_fast_failure_is_not_fast() -> None:
    """An arm that fails one request in ten at once is no faster for it: its blocks are left out, and speed is limited
    because what is left may be the easy part."""

    async def ask(arm: str, item: Item) -> Observation:
        failing = arm == "new" and item.id.endswith("0")
        return Observation(ok=False, ttft_ms=1.0, total_ms=1.0) if failing else fine()

    result = result_of(await run_comparison(plan(40, (Margin("ttft", 0.1),)), ask), "ttft")
    assert (result.verdict, result.estimate) == ("limited", 1.0)
    assert 0 < result.left_out <= 8
    assert "easy part" in result.reasons[-1][0]


async def test_half_a_block_is_none() -> None:
    """Where both arms fail on one item, the other item alone would keep the drift: the block is left out."""
    made = plan(8, (Margin("ttft", 0.1),))
    halves = [(fine(100), fine(100)), (fine(100), fine(100))] * 7 + [(FAILED, FAILED), (fine(100), fine(500))]
    result = result_of(await run_comparison(made, never, finished=canned(made, halves)), "ttft")
    assert (result.n, result.left_out, result.estimate) == (7, 1, 1.0)


async def test_near_the_limit_takes_many() -> None:
    """A ratio of 1.09 at a limit of 1.10: enough pairs were there for equal arms, far more are needed to tell these;
    at the limit itself no number is named."""
    made = plan(20, (Margin("ttft", 0.1),))
    for ratio, words in ((1.09, "near the limit"), (1.1, "Look for the cause")):
        pairs = [(fine(100), fine(100 * ratio * (1.05 if n % 4 < 2 else 1 / 1.05))) for n in range(40)]
        result = result_of(await run_comparison(made, never, finished=canned(made, pairs)), "ttft")
        assert result.verdict == "limited"
        assert words in result.reasons[1][0]
        assert (result.pairs_needed or 0) > 400 if ratio == 1.09 else result.pairs_needed is None


async def test_gates_hold_back() -> None:
    """Equal arms with a failed gate are limited, and the sentence says so; a worse arm is rejected all the same."""
    good = await run_comparison(plan(), Machine(1).ask, gates_ok=False)
    assert good.verdict == "limited"
    assert "gate" in good.reasons[-1][0]
    assert (await run_comparison(plan(), Machine(1, slower=0.3).ask, gates_ok=False)).verdict == "reject"


async def test_holm_over_metrics() -> None:
    """Just worse than the margin on one of five metrics, at p = 1/64: chance may do that once in thirteen, so not
    rejected; judged alone it is."""
    alone, among = plan(6, (Margin("ttft", 0.1),)), plan(6, DEFAULT_MARGINS)
    verdicts = []
    for made in (alone, among):
        slower = canned(made, [(fine(100, True), fine(120 + n, True)) for n in range(12)])
        verdicts.append(result_of(await run_comparison(made, never, finished=slower), "ttft"))
    assert [result.verdict for result in verdicts] == ["reject", "limited"]
    assert [result.p_worse for result in verdicts] == [1 / 64, 5 / 64]
    assert "Holm" in verdicts[1].reasons[-1][0]


@given(st.lists(st.tuples(st.floats(50, 500), st.floats(50, 500)), min_size=12, max_size=12), st.floats(0.1, 10))
def test_the_unit_of_time_does_not_matter(times: list[tuple[float, float]], scale: float) -> None:
    """Other units of time change neither ratio nor verdict; exchanging the arms inverts the ratio and its interval; the
    p-value agrees with the verdict."""
    made = plan(6, (Margin("ttft", 0.1),))

    def judged(pairs: list[tuple[float, float]]) -> MetricResult:
        blocks = canned(made, [(fine(a), fine(b)) for a, b in pairs])
        return result_of(asyncio.run(run_comparison(made, never, finished=blocks)), "ttft")

    one = judged(times)
    scaled, turned = judged([(a * scale, b * scale) for a, b in times]), judged([(b, a) for a, b in times])
    assert one.interval is not None
    assert scaled.interval is not None
    assert turned.interval is not None
    assert scaled.estimate == pytest.approx(one.estimate)
    for result in (one, scaled, turned):
        assert (result.p_worse <= 0.025) == (result.verdict == "reject")
    assert (turned.interval.low, turned.interval.high) == pytest.approx((1 / one.interval.high, 1 / one.interval.low))
    assert turned.estimate == pytest.approx(1 / (one.estimate or 1))
    assert np.sign(math.log(one.interval.high / 1.1)) == np.sign(math.log(scaled.interval.high / 1.1)) or math.isclose(
        one.interval.high, 1.1
    )
