"""Rows in tiers, beside a dense shadow: whatever happens to them, they hold what they should, at the price they say."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")

import hypothesis.strategies as st
import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from rows_shadow import CPU, Shadow, shadow

from sekisho.kv.formats import DENSE, EVICTED, PAGE, WIDTHS, Format
from sekisho.kv.policy import KVPolicy, LevelThresholds
from sekisho.kv.rows import HeadShape

pytestmark = pytest.mark.kv

ALWAYS_DENSE = LevelThresholds(0, 0, 0)
NEVER_DENSE = LevelThresholds(1, 0, 0)
ladders = (
    st.lists(st.tuples(st.sampled_from(WIDTHS), st.sampled_from(WIDTHS)), min_size=1, max_size=4)
    .map(lambda steps: tuple(sorted({sum(step): step for step in steps}.values(), key=sum, reverse=True)))
    .filter(bool)
)
policies = st.builds(
    KVPolicy,
    recent_window=st.sampled_from([16, 17, 64, 100, 512]),
    level_thresholds=st.sampled_from([LevelThresholds(), ALWAYS_DENSE, NEVER_DENSE, LevelThresholds(0.9, 0.8, 0.7)]),
    sinks=st.sampled_from([0, 1, 16, 70]),
    budget=st.sampled_from([None, 0.05, 0.15, 0.25, 0.4, 0.7, 1.0]),
    ladder=st.just(KVPolicy().ladder) | ladders,
    evict=st.booleans(),
    host_copy=st.booleans(),
    hysteresis=st.sampled_from([0.0, 0.05, 0.5]),
    decay=st.sampled_from([0.0, 0.5, 0.98]),
)
shapes = st.builds(
    HeadShape,
    kv_heads=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([16, 20, 80, 96]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    device=st.just(CPU),
)


class Living(RuleBasedStateMachine):
    """Everything that a server does to its rows, in any order; the shadow checks itself after every step."""

    shadow: Shadow

    @initialize(
        policy=policies,
        shape=shapes,
        window=st.sampled_from([None, None, 40, 200]),
        prompts=st.lists(
            st.integers(0, 500) | st.integers(0, 6).map(lambda pages: 20 + PAGE * pages), min_size=1, max_size=3
        ),
        seed=st.integers(0, 99),
    )
    def begin(self, policy: KVPolicy, shape: HeadShape, window: int | None, prompts: list[int], seed: int) -> None:
        self.shadow = shadow(policy, shape, window, seed)
        self.shadow.add_rows(len(prompts))
        longest = max(prompts)
        self.shadow.extend(longest, [longest - each for each in prompts], known=True)

    @rule(count=st.sampled_from([0, 1, 1, 2, 63, 64, 65, 200, 300]), known=st.booleans())
    def extend(self, count: int, known: bool) -> None:
        self.shadow.extend(count, known=known)

    @rule(count=st.sampled_from([1, 5, 130, 250]), data=st.data())
    def extend_ragged(self, count: int, data: st.DataObject) -> None:
        many = len(self.shadow.truth)
        skip = data.draw(st.lists(st.integers(0, count) | st.just(count), min_size=many, max_size=many))
        self.shadow.extend(count, skip, known=data.draw(st.booleans()))

    @rule(count=st.integers(1, 2))
    def arrive(self, count: int) -> None:
        if len(self.shadow.truth) + count <= 5:
            self.shadow.add_rows(count)

    @rule(data=st.data())
    def select(self, data: st.DataObject) -> None:
        many = len(self.shadow.truth)
        self.shadow.select(data.draw(st.lists(st.integers(0, many - 1), min_size=1, max_size=5)))

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        many = len(self.shadow.truth)
        forked = data.draw(st.integers(0, many - 1))
        self.shadow.select([*range(many), forked][-5:])

    @rule(count=st.sampled_from([0, 1, 10, 63, 64, 65, 128, 300]))
    def drop_last(self, count: int) -> None:
        self.shadow.drop_last(count)

    @rule(policy=policies)
    def apply(self, policy: KVPolicy) -> None:
        self.shadow.apply(policy)

    @rule(power=st.sampled_from([0.0, 1.0, 5.0]))
    def look(self, power: float) -> None:
        self.shadow.observe(power)

    def teardown(self) -> None:
        if hasattr(self, "shadow"):
            self.shadow.select([])


TestLiving = Living.TestCase
TestLiving.settings = settings(
    max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)


# --- one thing at a time ---


@given(
    pages=st.lists(st.integers(0, 6), min_size=2, max_size=4),
    left=st.integers(0, 63),
    more=st.sampled_from([1, 64, 130]),
    policy=policies,
)
@settings(max_examples=60)
def test_rows_that_differ_by_whole_pages(pages: list[int], left: int, more: int, policy: KVPolicy) -> None:
    """Rows whose sinks and recent tokens look alike, but which have different numbers of pages, stay apart."""
    shade = shadow(policy)
    shade.add_rows(len(pages))
    lengths = [policy.sinks + policy.recent_window + left + PAGE * each for each in pages]
    shade.extend(max(lengths), [max(lengths) - each for each in lengths])
    shade.extend(more)
    shade.extend(more)


@given(policy=policies, skips=st.lists(st.integers(0, 200), min_size=2, max_size=4), steps=st.integers(1, 150))
@settings(max_examples=15)
def test_ragged_rows_decode_token_by_token(policy: KVPolicy, skips: list[int], steps: int) -> None:
    """Single tokens arrive at rows of different lengths: each goes to its own row's end, also where that is a page."""
    shade = shadow(policy)
    shade.add_rows(len(skips))
    shade.extend(200, skips)
    for step in range(steps):
        keys, values = shade.tokens(len(skips), 1)
        shade.rows.extend(keys, values)
        for row, key, value in zip(shade.truth, keys, values, strict=True):
            row.keys, row.values = torch.cat((row.keys, key), 1), torch.cat((row.values, value), 1)
        if step % 40 == 0:
            shade.check()
    shade.check()


def test_all_rows_leave() -> None:
    """Selecting nothing gives all memory back, copies too; rows that come afterwards begin anew."""
    shade = shadow(KVPolicy(host_copy=True))
    shade.add_rows(2)
    shade.extend(700)
    shade.select([])
    assert shade.rows.allocated_bytes == 0
    assert shade.rows.table.host_bytes == 0
    shade.extend(0)
    shade.apply(KVPolicy(recent_window=512))
    shade.add_rows(1)
    shade.extend(700)


@pytest.mark.parametrize("forks", [2, 5])
def test_forks_share_their_pages(forks: int) -> None:
    """A fork costs its dense tokens and tables, no pages; pages that change their format together stay shared; what
    one fork adds or takes back changes no other."""
    shade = shadow(KVPolicy(budget=0.5))
    shade.add_rows(1)
    shade.extend(1000)
    pages = sum(pool.used for pool in shade.rows.table.pools.values())
    shade.select([0] * forks)
    assert sum(pool.used for pool in shade.rows.table.pools.values()) == pages
    shade.apply(KVPolicy(budget=0.15))
    assert shade.rows.table.moves > 0
    assert sum(pool.used for pool in shade.rows.table.pools.values()) == pages
    shade.extend(150, [30 * row for row in range(forks)])
    shade.drop_last(190)
    shade.extend(150, [10 * row for row in range(forks)])
    shade.select([forks - 1])


@given(length=st.integers(0, 400), count=st.integers(0, 450), policy=policies, copies=st.booleans())
@settings(max_examples=60)
def test_a_crop_takes_back_what_came_last(length: int, count: int, policy: KVPolicy, copies: bool) -> None:
    """To any length: nothing, sinks only, a page's edge, inside a page; then the row grows as any other does."""
    shade = shadow(msgspec.structs.replace(policy, host_copy=copies))
    shade.add_rows(2)
    shade.extend(length)
    shade.select([0, 1, 0])
    shade.drop_last(count)
    shade.extend(70)
    assert shade.rows.lengths == [max(0, length - count) + 70] * 3


def test_a_cropped_page_that_was_evicted_is_its_mean() -> None:
    """Nothing is known of it but the head's mean: that is what its tokens become, not zeros."""
    shade = shadow(KVPolicy(budget=None, evict=True, level_thresholds=LevelThresholds(1, 1, 1)))
    shade.add_rows(1)
    shade.extend(16 + 64 * 4)
    assert shade.rows.table.formats.unique().tolist() == [EVICTED]
    shade.drop_last(64 + 20)
    keys, values = shade.rows.materialise()
    for found, mean in zip((keys, values), shade.rows._means, strict=True):
        assert torch.equal(found[:, :, -44:], mean.expand(-1, -1, 44, -1))


def test_a_copy_makes_promotion_exact() -> None:
    """With copies, pages that went down to two bits, or away, come back bit for bit when the budget rises."""
    low = KVPolicy(budget=0.02, evict=True, host_copy=True, level_thresholds=LevelThresholds(1, 1, 1))
    shade = shadow(low, HeadShape(2, 32, torch.bfloat16, CPU))
    shade.add_rows(2)
    shade.extend(600)
    assert EVICTED in shade.rows.table.formats.unique().tolist()
    shade.apply(msgspec.structs.replace(low, budget=1.0, level_thresholds=ALWAYS_DENSE))
    assert shade.rows.table.formats.unique().tolist() == [DENSE.id]


def test_copies_begin_and_end_with_the_policy() -> None:
    """Dense pages get a copy when copies are asked for, and can come back from then on; all copies go when they are
    not wanted any more."""
    dense = KVPolicy(budget=1.0, level_thresholds=ALWAYS_DENSE)
    shade = shadow(dense, HeadShape(2, 32, torch.float16, CPU))
    shade.add_rows(1)
    shade.extend(500)
    shade.select([0, 0])
    assert shade.rows.table.host_bytes == 0
    shade.apply(msgspec.structs.replace(dense, host_copy=True))
    held = shade.rows.table.host.used
    assert held == 2 * 6
    shade.apply(msgspec.structs.replace(dense, host_copy=True, budget=0.2))
    shade.apply(msgspec.structs.replace(dense, host_copy=True))
    assert shade.rows.table.formats.unique().tolist() == [DENSE.id]
    shade.apply(msgspec.structs.replace(dense, budget=0.2))
    assert shade.rows.table.host_bytes == 0
    shade.apply(dense)
    assert DENSE.id not in shade.rows.table.formats.unique().tolist()


def test_another_policy_is_followed_at_once() -> None:
    """Hysteresis holds pages against importance that wavers, not against a policy that has changed."""
    shade = shadow(KVPolicy(budget=None, hysteresis=1.0))
    shade.add_rows(1)
    shade.extend(500)
    assert shade.rows.table.formats.unique().tolist() == [Format(8, 8).id]
    shade.observe(5.0)
    shade.apply(shade.rows.policy)
    assert shade.rows.table.formats.unique().tolist() == [Format(8, 8).id]
    shade.apply(KVPolicy(budget=None, hysteresis=1.0, level_thresholds=LevelThresholds(1, 1, 1)))
    assert shade.rows.table.formats.unique().tolist() == [Format(2, 2).id]


@pytest.mark.parametrize("window", [16, 100, 512])
def test_the_ring_is_as_large_as_its_window(window: int) -> None:
    """Whatever the window was before: dense memory follows the policy's, up and down."""
    shade = shadow(KVPolicy(recent_window=window))
    shade.add_rows(2)
    shade.extend(900)
    expected = shade.rows.dense_bytes
    for other in (512, 16, 77):
        shade.apply(KVPolicy(recent_window=other))
        shade.extend(40)
        shade.apply(KVPolicy(recent_window=window))
        assert shade.rows.dense_bytes == expected


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_sliding_window_keeps_what_it_sees(ahead: int) -> None:
    """Pages behind the window go, their copies too, whether a prompt is long or tokens come one by one; its budget is
    that of the pages that stay; all that the window sees is there."""
    shade = shadow(KVPolicy(sinks=4, recent_window=16, host_copy=True), window=200)
    shade.add_rows(1)
    shade.extend(1000)
    for _ in range(ahead * 40):
        shade.extend(1)
    table, length = shade.rows.table, shade.rows.lengths[0]
    assert table.kept(0) <= 200 // PAGE + 3
    assert (table.formats[0, 0] == EVICTED).tolist() == [page < table.forgotten[0] for page in range(table.counts[0])]
    assert 4 + table.forgotten[0] * PAGE <= length - 200 - PAGE
    shade.drop_last(PAGE)
    assert 4 + table.forgotten[0] * PAGE <= shade.rows.lengths[0] - 200


def test_importance_in_a_sliding_window_is_of_what_is_there() -> None:
    """An average page of the window has importance one half, however many pages the window has left behind."""
    shade = shadow(KVPolicy(sinks=0, recent_window=16, decay=0.0), window=200)
    shade.add_rows(1)
    shade.extend(3000)
    table = shade.rows.table
    here = (table.formats != EVICTED).float()
    shade.rows.observe(here / here.sum(-1, keepdim=True))
    assert table.mass[here.bool()].tolist() == pytest.approx([1.0] * int(here.sum()))


def test_sinks_stay_those_of_the_beginning() -> None:
    """A policy with other sinks changes nothing for the rows that there are, nor for those that come."""
    shade = shadow(KVPolicy(sinks=16))
    shade.add_rows(1)
    shade.extend(5)
    shade.apply(KVPolicy(sinks=0))
    shade.extend(300)
    shade.add_rows(1)
    shade.extend(40)
    assert shade.rows.sink_lengths == [16, 16]


@pytest.mark.parametrize(
    ("size", "skip"),
    [
        ((2, 2, 3, 16), None),
        ((1, 1, 3, 16), None),
        ((1, 2, 3, 8), None),
        ((1, 2, 3, 16), [4]),
        ((1, 2, 3, 16), [-1]),
        ((1, 2, 3, 16), [0, 0]),
    ],
    ids=["rows", "heads", "numbers", "skip too many", "skip too few", "skip of another"],
)
def test_strange_tokens_are_refused(size: tuple[int, ...], skip: list[int] | None) -> None:
    """Tokens of another shape, or padding that cannot be, are an error and change nothing."""
    shade = shadow(KVPolicy())
    shade.add_rows(1)
    with pytest.raises(ValueError, match=r"must be|cannot skip"):
        shade.rows.extend(torch.zeros(size), torch.zeros(size), skip)
    with pytest.raises(ValueError, match="cannot take -1"):
        shade.rows.drop_last(-1)
    shade.check()


def test_attention_on_other_pages_is_refused() -> None:
    """Masses for another number of pages are an error, also for one page, which would fit any table."""
    shade = shadow(KVPolicy())
    shade.add_rows(1)
    shade.extend(500)
    for pages in (1, 5, 7):
        with pytest.raises(ValueError, match="attention on pages"):
            shade.rows.observe(torch.zeros(1, 2, pages))


def test_attention_that_is_no_number_says_nothing() -> None:
    """NaN and infinity in one step are as if nobody had looked; later steps count as ever."""
    shade = shadow(KVPolicy(decay=0.5))
    shade.add_rows(1)
    shade.extend(500)
    strange = torch.full(shade.rows.table.mass.shape, torch.nan)
    strange[..., 0] = torch.inf
    before = shade.rows.table.mass.clone()
    shade.rows.observe(strange)
    assert torch.equal(shade.rows.table.mass, before / 2)


def test_recent_tokens_nobody_asked_about_are_no_worse_than_new_ones() -> None:
    """What stood in the window before a prompt's next part has no known attention: its page is not the least for it."""
    shade = shadow(KVPolicy(recent_window=64, sinks=0))
    shade.add_rows(1)
    shade.extend(100)
    keys, values = shade.tokens(1, 64 * 5)
    shade.rows.extend(keys, values, None, torch.full(keys.shape[:3], 1e-3))
    assert float(shade.rows.table.mass[0, 0, 0]) > float(shade.rows.table.mass[0, 0, 2])


def test_rows_that_are_not_there_cannot_be_selected() -> None:
    """Neither beyond the last nor, as Python counts, before the first."""
    shade = shadow(KVPolicy())
    shade.add_rows(2)
    shade.extend(300)
    for row in (-1, 2):
        with pytest.raises(IndexError, match="among 2"):
            shade.rows.select([0, row])
    shade.check()


def test_taking_back_recent_tokens_decides_nothing() -> None:
    """A guess that is taken back every step costs no plan of all pages."""
    shade = shadow(KVPolicy())
    shade.add_rows(2)
    shade.extend(500)
    shade.rows.table.clock.seconds.clear()
    shade.drop_last(5)
    assert "planning" not in shade.rows.table.clock.seconds
    shade.drop_last(150)
    assert "planning" in shade.rows.table.clock.seconds
