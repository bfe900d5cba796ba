"""The page table alone: what it stores, how it moves between formats, who shares what."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")

import hypothesis.strategies as st
from hypothesis import given, settings

from sekisho.kv.formats import DENSE, EVICTED, FORMATS, PAGE, Format, decode_pages, encode_pages, layout
from sekisho.kv.pages import PageTable
from sekisho.kv.plan import FRESH_MASS, Terms
from sekisho.kv.policy import KVPolicy, LevelThresholds
from sekisho.kv.rotation import Transform, rotation

pytestmark = pytest.mark.kv

CPU = torch.device("cpu")
HEADS, HEAD_DIM = 2, 32
FREE = LevelThresholds(0, 0, 0)


def only(form: Format | None, **more: bool) -> KVPolicy:
    """A policy under which all pages get one format: a quantised one, or (None) the dense one."""
    thresholds = LevelThresholds(1, 0, 0) if form else FREE
    ladder = ((form.key_bits, form.value_bits),) if form else ((8, 8),)
    return KVPolicy(budget=None, level_thresholds=thresholds, ladder=ladder, hysteresis=0.0, **more)


def terms(policy: KVPolicy, rows: int, allowed: float = 1e12) -> Terms:
    return Terms(policy, torch.full((rows,), allowed, dtype=torch.float64))


def table(rows: int = 1, dtype: "torch.dtype" = torch.float32) -> PageTable:
    made = PageTable(HEADS, HEAD_DIM, dtype, CPU)
    made.add_rows(rows)
    return made


def transform(rows: int, seed: int = 7) -> Transform:
    means = torch.randn(2, rows, HEADS, 1, HEAD_DIM, generator=torch.Generator().manual_seed(seed))
    return Transform((means[0], means[1]), rotation(HEAD_DIM, CPU))


def tokens(rows: int, pages: int, seed: int = 3) -> tuple["torch.Tensor", "torch.Tensor"]:
    drawn = torch.randn(2, rows, HEADS, pages * PAGE, HEAD_DIM, generator=torch.Generator().manual_seed(seed))
    return drawn[0], drawn[1]


def decide(made: PageTable, turn: Transform, policy: Terms) -> None:
    """As after a change of policy."""
    made.unsettle()
    made.plan(turn, policy)


@pytest.mark.parametrize("form", [None, *(form for form in FORMATS.values() if not form.dense)], ids=str)
def test_a_page_is_its_tokens_centred_rotated_and_quantised(form: Format | None) -> None:
    """What the table stores for each row and head is what encoding that head's tokens alone gives, byte for byte."""
    rows, pages, turn = 2, 3, transform(2)
    keys, values = tokens(rows, pages)
    made = table(rows)
    made.add_pages([0, 1], keys, values, None, turn, terms(only(form), rows))
    expected_id = form.id if form else DENSE.id
    assert made.formats.unique().tolist() == [expected_id]
    for row in range(rows):
        for head in range(HEADS):
            stored = made.pools[expected_id].data[made.slots[row, head].long()]
            mine = [each[row, head].unflatten(0, (pages, PAGE)) for each in (keys, values)]
            if form:
                owners = torch.tensor([[row, head]] * pages)
                mine = list(turn.stored(mine[0], mine[1], owners))
            whole = encode_pages(mine[0], mine[1], FORMATS[expected_id])
            # Rotating other pages in the same product may round differently: numbers, not bytes, for those.
            found = decode_pages(stored, FORMATS[expected_id], HEAD_DIM, torch.float32, torch.float32)
            alone = decode_pages(whole, FORMATS[expected_id], HEAD_DIM, torch.float32, torch.float32)
            for one, other in zip(found, alone, strict=True):
                assert float((one - other).norm()) <= 1e-3 * float(other.norm())


@given(rows=st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True), count=st.integers(1, 3))
@settings(max_examples=30)
def test_pages_go_to_the_rows_that_are_named(rows: list[int], count: int) -> None:
    """In whatever order the rows are named, each gets its own tokens, and the others get nothing."""
    made, turn = table(4), transform(4)
    keys, values = tokens(len(rows), count)
    made.add_pages(rows, keys, values, None, turn, terms(only(None), 4))
    assert made.counts == [count if row in rows else 0 for row in range(4)]
    found = made.decoded(turn)
    for place, row in enumerate(rows):
        assert torch.equal(found[0][row], keys[place])
        assert torch.equal(found[1][row], values[place])


def test_masses_belong_to_pages() -> None:
    """The attention that a new page has had counts in units of an average page; a page nobody looked at is a little
    above; a step moves all of them towards what it saw."""
    made, turn = table(2), transform(2)
    policy = terms(only(None), 2)
    keys, values = tokens(1, 2)
    made.add_pages([1], keys, values, torch.tensor([[[0.5, 0.1], [0.2, 0.0]]]), turn, policy)
    assert torch.allclose(made.mass[1], torch.tensor([[1.0, 0.2], [0.4, 0.0]]))
    made.add_pages([1], *tokens(1, 1), None, turn, policy)
    assert made.mass[1, :, 2].tolist() == [FRESH_MASS] * HEADS
    seen = torch.zeros(2, HEADS, 3)
    seen[1, :, 0] = 1.0
    made.observe(seen, decay=0.75)
    assert torch.allclose(made.mass[1, 0], torch.tensor([0.75 * 1.0 + 0.25 * 3, 0.75 * 0.2, 0.75 * FRESH_MASS]))


@given(
    steps=st.lists(st.sampled_from([form for form in FORMATS.values() if not form.dense]), min_size=1, max_size=5),
    copies=st.booleans(),
)
@settings(max_examples=60)
def test_a_page_follows_as_far_as_it_can(steps: list[Format], copies: bool) -> None:
    """Through any sequence of wanted formats: with copies a page is always what is wanted, made from the full numbers;
    without, it takes what has no more bits than it has, in keys and in values, and else stays."""
    made, turn = table(1), transform(1)
    keys, values = tokens(1, 2)
    made.add_pages([0], keys, values, None, turn, terms(only(None, host_copy=copies), 1))
    now = DENSE
    for wanted in steps:
        decide(made, turn, terms(only(wanted, host_copy=copies), 1))
        if copies or (wanted.key_bits <= now.key_bits and wanted.value_bits <= now.value_bits):
            now = wanted
        assert made.formats.unique().tolist() == [now.id]
        if copies:
            direct = table(1)
            direct.add_pages([0], keys, values, None, turn, terms(only(wanted), 1))
            for one, other in zip(made.decoded(turn), direct.decoded(turn), strict=True):
                assert torch.equal(one, other)
    decide(made, turn, terms(only(None, host_copy=copies), 1))
    if copies:
        assert torch.equal(made.decoded(turn)[0], keys)


def test_copies_serve_those_that_have_one() -> None:
    """Of pages that move together, those with copies are made from them, the others from what they are."""
    made, turn = table(2), transform(2)
    keys, values = tokens(2, 1)
    made.add_pages([0], keys[:1], values[:1], None, turn, terms(only(Format(4, 4), host_copy=True), 2))
    made.add_pages([1], keys[1:], values[1:], None, turn, terms(only(Format(4, 4)), 2))
    decide(made, turn, terms(only(Format(2, 2)), 2))
    direct = table(2)
    direct.add_pages([0, 1], keys, values, None, turn, terms(only(Format(2, 2)), 2))
    found, expected = made.decoded(turn)[0], direct.decoded(turn)[0]
    assert torch.equal(found[0], expected[0])
    assert not torch.equal(found[1], expected[1])


def test_shared_pages_move_once() -> None:
    """Rows that were forked keep sharing after a change of format, from pages as from copies; a row that goes alone
    leaves the others' page as it is."""
    for copies in (False, True):
        made, turn = table(1), transform(1)
        made.add_pages([0], *tokens(1, 4), None, turn, terms(only(None, host_copy=copies), 1))
        made.select(torch.tensor([0, 0, 0]))
        turn = Transform(tuple(each.repeat(3, 1, 1, 1) for each in turn.means), turn.rotation)
        decide(made, turn, terms(only(Format(8, 8), host_copy=copies), 3))
        pool = made.pools[Format(8, 8).id]
        assert pool.used == 4 * HEADS
        assert pool.holders[made.slots[0].long().flatten()].tolist() == [3] * 4 * HEADS
        before = made.decoded(turn)[0]
        made.truncate(0, 2)
        made.mass[1] = 1e-9
        eight = layout(Format(8, 8), HEAD_DIM).page_bytes * HEADS
        decide(made, turn, Terms(KVPolicy(), torch.tensor([2.0 * eight, 0.0, 4.0 * eight], dtype=torch.float64)))
        assert torch.equal(made.decoded(turn)[0][0, :, : 2 * PAGE], before[0, :, : 2 * PAGE])
        assert made.formats[1].unique().tolist() == [Format(2, 2).id]
        assert made.formats[2].unique().tolist() == [Format(8, 8).id]


def test_evicted_pages_are_zero_and_take_nothing() -> None:
    """Eviction frees the memory of a page; where a copy was kept, it can come back."""
    made, turn = table(1), transform(1)
    keys, values = tokens(1, 3)
    gone = KVPolicy(budget=None, evict=True, host_copy=True, level_thresholds=LevelThresholds(1, 1, 1))
    made.add_pages([0], keys, values, None, turn, terms(gone, 1))
    assert made.formats.unique().tolist() == [EVICTED]
    assert not made.pools
    assert not bool(made.decoded(turn)[0].any())
    assert made.host_bytes > 0
    decide(made, turn, terms(only(None, host_copy=True), 1))
    assert torch.equal(made.decoded(turn)[1], values)


def test_what_a_window_left_behind_is_gone_for_good() -> None:
    """Forgotten pages lose their memory and their copies, and no policy brings them back; forgetting again is free."""
    made, turn = table(2), transform(2)
    policy = terms(only(None, host_copy=True), 2)
    made.add_pages([0, 1], *tokens(2, 4), None, turn, policy)
    made.forget_before(1, 3)
    made.forget_before(1, 2)
    assert made.forgotten == [0, 3]
    assert made.kept(1) == 1
    assert (made.pools[DENSE.id].used, made.host.used) == (5 * HEADS, 5 * HEADS)
    decide(made, turn, policy)
    assert made.formats[1, 0].tolist() == [EVICTED] * 3 + [DENSE.id]
    made.select(torch.tensor([1]))
    assert made.forgotten == [3]
    made.truncate(0, 2)
    assert (made.forgotten, made.counts, made.host_bytes) == ([2], [2], 0)
    made.add_forgotten([0], 2)
    assert (made.forgotten, made.counts, made.formats.shape[2]) == ([4], [4], 4)


def test_tables_are_as_wide_as_the_longest_row() -> None:
    """Also after the longest one was cut or left."""
    made, turn = table(2), transform(2)
    made.add_pages([0], *tokens(1, 9), None, turn, terms(only(None), 2))
    made.add_pages([1], *tokens(1, 4), None, turn, terms(only(None), 2))
    made.truncate(0, 6)
    assert made.formats.shape == made.mass.shape == (2, HEADS, 6)
    made.select(torch.tensor([1]))
    assert made.slots.shape == (1, HEADS, 4)
    made.select(torch.tensor([], dtype=torch.int64))
    assert made.allocated_bytes == 0


def test_many_pages_at_once() -> None:
    """More pages than are packed at a time: all are there, in their places."""
    made, turn = table(1), transform(1)
    keys, values = tokens(1, 300)
    made.add_pages([0], keys, values, None, turn, terms(only(None), 1))
    assert torch.equal(made.decoded(turn)[0], keys)
    decide(made, turn, terms(only(Format(8, 8)), 1))
    assert float((made.decoded(turn)[1] - values).square().mean()) < 1e-3
    assert made.moves == 300 * HEADS


def test_only_the_rows_that_grow_are_decided_upon() -> None:
    """A page made for one row does not change the pages of another, whatever the policy says by now."""
    made, turn = table(2), transform(2)
    made.add_pages([0, 1], *tokens(2, 2), None, turn, terms(only(None), 2))
    made.unsettle()
    made.add_pages([1], *tokens(1, 2), None, turn, terms(only(Format(4, 4)), 2))
    assert made.formats[0, :, :2].unique().tolist() == [DENSE.id]
    assert made.formats[1].unique().tolist() == [Format(4, 4).id]
