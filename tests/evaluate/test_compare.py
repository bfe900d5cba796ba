import asyncio
from collections import Counter
from collections.abc import Iterable

import msgspec
import pytest
from compare_harness import FAILED, ITEMS, SPEED, Machine, canned, fine, never, plan, result_of
from hypothesis import given
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.comparison.compare import (
    Comparison,
    Sample,
    compare_runs,
    figures,
    forest,
    run_comparison,
    shortfalls,
)
from sekisho.evaluate.comparison.compare_plan import (
    DEFAULT_MARGINS,
    BlockResult,
    ComparePlan,
    Item,
    Margin,
    Observation,
    schedule,
)

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


# --- going on after an interruption ---


async def test_goes_on_where_it_stopped() -> None:
    """Killed in the eighth block: the seven kept blocks are not asked again, whatever order they come back in, and
    without chance in the machine the result is that of an undisturbed comparison."""
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
    resumed = await run_comparison(
        made, ask, lambda what, done, total: seen.append((done, total)), finished=stored[::-1]
    )
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
