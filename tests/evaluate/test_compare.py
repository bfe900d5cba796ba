import asyncio
import math
import random
from collections import Counter
from collections.abc import Iterable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.compare import (
    Comparison,
    Sample,
    compare_runs,
    figures,
    forest,
    run_comparison,
    shortfalls,
)
from sekisho.evaluate.compare_plan import (
    DEFAULT_MARGINS,
    BlockResult,
    ComparePlan,
    Item,
    Margin,
    Observation,
    schedule,
)
from sekisho.evaluate.compare_verdict import MetricResult
from sekisho.evaluate.paired import score_interval, score_z

ITEMS = tuple(Item(f"item-{n}", f"prompt {n}", 64) for n in range(80))
SPEED = (Margin("ttft", 0.10), Margin("total", 0.10), Margin("tok_s", 0.10))


class Machine:
    """A server on a clock of its own. Its speed wanders, and falls by a third in an hour; an item has a length of its
    own; whoever asks an item second finds it cached. Arm "new" is `slower` and fails with probability `failing`."""

    def __init__(
        self, seed: int, *, slower: float = 0.0, failing: float = 0.0, wrong: float = 0.0, noise: float = 0.08
    ) -> None:
        self.chance = random.Random(seed)
        self.slower, self.failing, self.wrong, self.noise = slower, failing, wrong, noise
        self.now_s = 0.0
        self.phase = self.chance.uniform(0, 6)
        self.asked: list[tuple[str, str]] = []
        self.cached: set[str] = set()

    async def ask(self, arm: str, item: Item) -> Observation:
        await asyncio.sleep(0)
        self.asked.append((arm, item.id))
        new = arm == "new"
        factor = math.exp(0.4 * self.now_s / 3600 + 0.2 * math.sin(self.now_s / 400 + self.phase))
        factor *= math.exp(self.chance.gauss(0, self.noise)) * (1 + self.slower * new)
        length = 1 + int(item.id[5:]) % 7
        total_s = length * factor * (0.8 if item.id in self.cached else 1.0)
        self.cached.add(item.id)
        self.now_s += total_s
        if self.chance.random() < self.failing * new:
            return Observation(ok=False, faults=("timeout",), total_ms=60_000)
        return Observation(
            ok=True,
            ttft_ms=100 * total_s,
            total_ms=1000 * total_s,
            tok_s=40 / factor,
            correct=self.chance.random() >= self.wrong * new,
        )


def plan(blocks: int = 60, margins: tuple[Margin, ...] = SPEED, seed: int = 1, **more: object) -> ComparePlan:
    return ComparePlan(arms=("old", "new"), items=ITEMS, margins=margins, blocks=blocks, seed=seed, **more)  # type: ignore[arg-type]


def result_of(comparison: Comparison, metric: str) -> MetricResult:
    return next(result for result in comparison.metrics if result.metric == metric)


def canned(plan: ComparePlan, outcomes: Iterable[tuple[Observation, Observation]]) -> tuple[BlockResult, ...]:
    """Finished blocks in which the pairs (A, B) came as told."""
    pairs, found = iter(outcomes), []
    for block in schedule(plan):
        (a1, b1), (a2, b2) = next(pairs), next(pairs)
        found.append(BlockResult(block, (a1, b1, b2, a2) if block.order == "ABBA" else (b1, a1, a2, b2)))
    return tuple(found)


async def never(arm: str, item: Item) -> Observation:
    raise AssertionError(f"asked {arm} {item.id}")


def fine(ttft_ms: float = 100.0, correct: bool | None = None) -> Observation:
    return Observation(ok=True, ttft_ms=ttft_ms, total_ms=1000, tok_s=40, correct=correct)


FAILED = Observation(ok=False, faults=("http_500",))


# --- the plan ---


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 1000))
def test_schedule_is_balanced(items: int, blocks: int, seed: int) -> None:
    """Each block asks both arms for the same two items, each arm once first; items come equally often, but for one."""
    made = ComparePlan(arms=("a", "b"), items=ITEMS[:items], blocks=blocks, seed=seed)
    every = schedule(made)
    assert every == schedule(made)
    for block in every:
        requests = list(block.requests())
        assert "".join(arm for arm, _ in requests) == block.order
        assert {block.order[0], block.order[2]} == {"A", "B"}
        assert Counter(requests) == Counter((arm, item) for arm in "AB" for item in block.items)
    times = Counter(item for block in every for item in block.items)
    assert max(times.values()) - min(times.get(item.id, 0) for item in made.items) <= 1


def test_schedule_tosses_a_coin_of_the_seed() -> None:
    """Both orders come about equally often, and another seed gives another schedule."""
    orders = Counter(block.order for block in schedule(plan(1000)))
    assert abs(orders["ABBA"] - 500) < 60
    assert schedule(plan(20)) != schedule(plan(20, seed=2))


def test_plan_is_frozen_by_its_hash() -> None:
    """The hash is of everything: another margin, seed or prompt is another plan; reading it back is the same plan."""
    made = plan()
    others = [
        plan(seed=2),
        plan(61),
        plan(margins=(Margin("ttft", 0.2),)),
        msgspec.structs.replace(made, items=ITEMS[1:]),
    ]
    assert len({made.sha256, *(other.sha256 for other in others)}) == 5
    assert msgspec.json.decode(msgspec.json.encode(made), type=ComparePlan).sha256 == made.sha256


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"arms": ("same", "same")}, "arms"),
        ({"arms": ("", "b")}, "arms"),
        ({"items": ()}, "items"),
        ({"items": (ITEMS[0], ITEMS[0])}, "items"),
        ({"margins": ()}, "margins"),
        ({"margins": (Margin("ttft", 0.1), Margin("ttft", 0.2))}, "margins"),
        ({"margins": (Margin("ttft", 0.0),)}, "margins"),
        ({"margins": (Margin("success", 1.0),)}, "margins"),
        ({"blocks": 0}, "blocks"),
        ({"warmups": -1}, "warmups"),
    ],
)
def test_plan_that_contradicts_itself(change: dict[str, object], param: str) -> None:
    """Each contradiction is refused with the name of the field, also when the plan is read from a file."""
    with pytest.raises(InvalidRequest) as refused:
        msgspec.structs.replace(plan(), **change)
    assert refused.value.param == param
    text = msgspec.json.encode({**msgspec.to_builtins(plan()), **msgspec.to_builtins(change)})
    with pytest.raises(InvalidRequest):
        msgspec.json.decode(text, type=ComparePlan)


def test_shortfalls_are_told_before() -> None:
    """Five blocks cannot judge speed, 10 pairs no margin of 2 %, ten questions none of 5 %; a large plan can do all."""
    told = [english for english, _ in shortfalls(plan(5, DEFAULT_MARGINS))]
    assert [sentence.split(":")[0] for sentence in told] == [
        "Speed needs at least 6 blocks, and 5 are planned.",
        "Success rate",
        "Share of correct answers",
    ]
    assert "189 pairs" in told[1]
    assert shortfalls(plan(100, DEFAULT_MARGINS)) == ()


# --- the verdict, on a machine that drifts ---


async def test_same_against_same_is_adopted() -> None:
    """A against itself on a drifting machine with a cache: never rejected in 20 comparisons, adopted in nearly all."""
    verdicts = Counter([(await run_comparison(plan(seed=seed), Machine(seed).ask)).verdict for seed in range(20)])
    assert verdicts["reject"] == 0
    assert verdicts["adopt"] >= 18


async def one_after_the_other(machine: Machine, first: str, second: str) -> tuple[float, float]:
    """All of one arm, then all of the other: the ratio of their speeds, and the p-value of Welch's test."""
    logs = []
    for arm in (first, second):
        logs.append([math.log((await machine.ask(arm, item)).tok_s or 1) for item in ITEMS * 4])
    return math.exp(np.mean(logs[1]) - np.mean(logs[0])), float(stats.ttest_ind(*logs, equal_var=False).pvalue)


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
    """Without a judge, correctness is limited and says why; one-sided judgements are left out."""
    made = plan(10, (Margin("correct", 0.05),))
    found = await run_comparison(made, never, finished=canned(made, [(fine(), FAILED), (FAILED, FAILED)] * 10))
    result = result_of(found, "correct")
    assert (found.verdict, result.estimate, result.n, result.left_out) == ("limited", None, 0, 20)
    assert "nothing is said" in result.reasons[0][0]
    mixed = plan(10, (Margin("ttft", 0.1), Margin("correct", 0.05)))
    found = await run_comparison(mixed, never, finished=canned(mixed, [(fine(), fine())] * 20))
    assert ([result.verdict for result in found.metrics], found.verdict) == (["adopt", "limited"], "limited")
    one_sided = canned(made, [(fine(correct=True), fine())] * 20)
    assert result_of(await run_comparison(made, never, finished=one_sided), "correct").n == 0


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


# --- going on after an interruption ---


async def test_goes_on_where_it_stopped() -> None:
    """Killed in the eighth block: the seven kept blocks are not asked again, and on a machine without chance the result
    is that of an undisturbed comparison."""
    kept: list[BlockResult] = []
    asked = 0

    async def keep(block: BlockResult) -> None:
        kept.append(block)

    async def ask(arm: str, item: Item) -> Observation:
        nonlocal asked
        asked += 1
        return fine(100 + int(item.id[5:]) + 3 * (arm == "new"), correct=True)

    async def dying(arm: str, item: Item) -> Observation:
        if asked == 2 + 4 * 7 + 1:
            raise ConnectionError("killed")
        return await ask(arm, item)

    made = plan(20, DEFAULT_MARGINS)
    with pytest.raises(ConnectionError):
        await run_comparison(made, dying, keep=keep)
    assert len(kept) == 7
    stored = msgspec.json.decode(msgspec.json.encode(kept), type=list[BlockResult])
    asked, seen = 0, []
    resumed = await run_comparison(made, ask, lambda what, done, total: seen.append((done, total)), finished=stored)
    assert asked == 2 + 4 * 13
    assert (seen[0], seen[-1]) == ((7, 20), (20, 20))
    assert resumed == await run_comparison(made, ask)


async def test_blocks_of_another_plan_are_refused() -> None:
    """Finished blocks of another seed, and the same block twice, are refused in words."""
    made = plan(5)
    blocks = canned(made, [(fine(), fine())] * 10)
    for wrong in (canned(plan(5, seed=2), [(fine(), fine())] * 10), (*blocks, blocks[0])):
        with pytest.raises(InvalidRequest, match="another plan"):
            await run_comparison(made, never, finished=wrong)


async def test_warm_ups_are_not_counted() -> None:
    """Each arm gets its warm-ups first, on the same items; a plan that is finished asks nobody at all."""
    machine = Machine(1)
    made = plan(2, warmups=3)
    found = await run_comparison(made, machine.ask)
    assert machine.asked[:6] == [(arm, f"item-{n}") for n in range(3) for arm in ("old", "new")]
    assert len(machine.asked) == 6 + 8
    assert result_of(found, "ttft").a.n == 4
    done = canned(made, [(fine(), fine())] * 4)
    assert (await run_comparison(made, never, finished=done)).blocks == 2


# --- two finished runs ---


def samples(machine: Machine, arm: str, items: Iterable[Item] = ITEMS) -> list[Sample]:
    async def ask() -> list[Sample]:
        return [Sample(item.id, await machine.ask(arm, item)) for item in items]

    return asyncio.run(ask())


def test_finished_runs_judge_no_speed() -> None:
    """Equal arms one after the other on a drifting machine: speed is limited and says why, however clear it looks."""
    machine = Machine(2)
    found = compare_runs(samples(machine, "old"), samples(machine, "new"), arms=("old", "new"), margins=SPEED)
    assert found.verdict == "limited"
    assert {result.verdict for result in found.metrics} == {"limited"}
    assert all("not interleaved" in result.reasons[-1][0] for result in found.metrics)
    assert (found.interleaved, found.plan_sha256) == (False, "")
    assert result_of(found, "tok_s").unit == "prompts"


def test_finished_runs_judge_quality() -> None:
    """Answers to the same prompts are paired: an arm that is often wrong is rejected, whatever the order of a run."""
    margins = (Margin("success", 0.06), Margin("correct", 0.05))
    old, new = samples(Machine(1), "old"), samples(Machine(2, wrong=0.4), "new")
    found = compare_runs(old, new, arms=("old", "new"), margins=margins)
    assert found.verdict == "reject"
    assert result_of(found, "success").verdict == "adopt"
    assert result_of(found, "correct").verdict == "reject"
    turned = compare_runs(old, new[::-1], arms=("old", "new"), margins=margins)
    assert [(r.estimate, r.interval, r.verdict) for r in turned.metrics] == [
        (r.estimate, r.interval, r.verdict) for r in found.metrics
    ]
    assert compare_runs(old, old, arms=("old", "new"), margins=margins).verdict == "adopt"


def test_finished_runs_of_other_prompts() -> None:
    """Prompts of one run only are left out and counted; without a common prompt there is nothing to compare."""
    old = samples(Machine(1), "old")
    found = compare_runs(old, old[:50], arms=("old", "new"))
    assert result_of(found, "success").n == 50
    assert found.reasons[-1][0].startswith("30 prompts are in one run only")
    with pytest.raises(InvalidRequest, match="share no prompt"):
        compare_runs(old[:10], old[10:20], arms=("old", "new"))


# --- what becomes of it ---


async def test_figures_and_forest() -> None:
    """Every metric gives its estimate with interval, limit and verdict as figures; on the forest's scale the limit is
    −margin for all, and each verdict can be read off; all of it survives JSON."""
    found = await run_comparison(plan(60, DEFAULT_MARGINS), Machine(4, slower=0.2).ask)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Comparison) == found
    made = figures(found, command="sekisho evaluate compare old new", file="compare.json")
    by_id = {figure.id: figure for figure in made}
    assert len(by_id) == len(made)
    assert by_id["compare.adopt"].value is False
    assert by_id["compare.blocks"].value == 60
    assert all(figure.command and figure.file == "compare.json" for figure in made)
    assert all(figure.value is not None or figure.why_null for figure in made)
    assert by_id["compare.total.ratio"].interval == result_of(found, "total").interval
    assert by_id["compare.tok_s.limit"].value == 0.95
    assert by_id["compare.correct.difference"].unit == "share"
    for row in forest(found):
        verdict = "reject" if row.high < -row.margin else "adopt" if row.low > -row.margin else "limited"
        assert row.verdict == verdict
        assert row.low <= row.estimate <= row.high
    assert [row.metric for row in forest(found)] == ["ttft", "total", "tok_s", "success", "correct"]


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


async def test_every_sentence_is_in_both_languages() -> None:
    """Reasons in English have no Japanese in them, and those in Japanese do."""
    found = [
        await run_comparison(plan(8, DEFAULT_MARGINS), Machine(1, failing=0.3).ask, gates_ok=False),
        await run_comparison(plan(60, DEFAULT_MARGINS), Machine(1, slower=0.1).ask),
        compare_runs(samples_async := [Sample("a", fine()), Sample("b", FAILED)], samples_async[:1], arms=("a", "b")),
    ]
    sentences = [words for one in found for words in (*one.reasons, *(w for m in one.metrics for w in m.reasons))]
    assert len(sentences) > 20
    for english, japanese in sentences:
        assert english.isascii() or not set(english) - set(map(chr, range(128))) - set("−×≥")
        assert any("\u3040" <= letter <= "\u9fff" for letter in japanese)
