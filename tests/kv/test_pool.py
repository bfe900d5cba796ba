"""Slots of a pool: held as often as somebody holds them, handed out once, given back."""

from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sekisho.kv.pool import PagePool

pytestmark = pytest.mark.kv

PAGE_BYTES = 24
CPU = torch.device("cpu")


def contents(*numbers: int) -> "torch.Tensor":
    """Pages that say which they are."""
    return torch.tensor(numbers, dtype=torch.int32).view(torch.uint8).reshape(-1, 4).repeat(1, PAGE_BYTES // 4)


class Holding(RuleBasedStateMachine):
    """A pool beside a plain dictionary of what it should hold: slot to (number, holders)."""

    @initialize()
    def begin(self) -> None:
        self.pool = PagePool(PAGE_BYTES, CPU)
        self.held: dict[int, tuple[int, int]] = {}
        self.next = 0

    @rule(count=st.integers(0, 60))
    def put(self, count: int) -> None:
        numbers = range(self.next, self.next + count)
        slots = self.pool.put(contents(*numbers)).tolist()
        assert len(set(slots)) == count
        assert not set(slots) & set(self.held)
        self.next += count
        self.held |= {slot: (number, 1) for slot, number in zip(slots, numbers, strict=True)}

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        slots = data.draw(st.lists(st.sampled_from(sorted(self.held)), max_size=8))
        self.pool.hold(torch.tensor(slots, dtype=torch.int64))
        for slot, more in Counter(slots).items():
            number, holders = self.held[slot]
            self.held[slot] = (number, holders + more)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), most=st.booleans())
    def release(self, data: st.DataObject, most: bool) -> None:
        every = [slot for slot, (_, holders) in sorted(self.held.items()) for _ in range(holders)]
        slots = every[: len(every) * 9 // 10] if most else data.draw(st.permutations(every))[:5]
        self.pool.release(torch.tensor(slots, dtype=torch.int64))
        for slot, fewer in Counter(slots).items():
            number, holders = self.held[slot]
            self.held[slot] = (number, holders - fewer)
        self.held = {slot: each for slot, each in self.held.items() if each[1]}

    @rule()
    def compact(self) -> None:
        moved = self.pool.compact()
        self.held = {int(moved[slot]): each for slot, each in self.held.items()}
        assert not self.pool.loose

    @invariant()
    def holds_what_it_should(self) -> None:
        if not hasattr(self, "pool"):
            return
        holders = torch.zeros(self.pool.capacity, dtype=torch.int32)
        for slot, (number, many) in self.held.items():
            holders[slot] = many
            assert torch.equal(self.pool.data[slot], contents(number)[0])
        assert torch.equal(self.pool.holders, holders)
        assert self.pool.used == len(self.held)

    @invariant()
    def is_no_larger_than_it_was_full(self) -> None:
        if hasattr(self, "pool") and not self.pool.loose:
            assert self.pool.capacity - self.pool.used <= 2 * max(8, self.pool.capacity // 32)


TestHolding = Holding.TestCase
TestHolding.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


@given(count=st.integers(1, 3000), kept=st.integers(0, 3000))
@settings(max_examples=30)
def test_memory_follows_what_is_held(count: int, kept: int) -> None:
    """An idle slot in 32 and a few more, at growth and after `compact`; nothing at all when nothing is held."""
    pool = PagePool(PAGE_BYTES, CPU)
    slots = pool.put(torch.zeros(count, PAGE_BYTES, dtype=torch.uint8))
    books = 4 + 8  # bytes about a slot: its holders, its place in the list of free ones
    assert pool.allocated_bytes <= (count * 33 / 32 + 9) * (PAGE_BYTES + books)
    kept = min(kept, count)
    pool.release(slots[kept:])
    pool.compact()
    assert pool.used == kept
    assert pool.allocated_bytes <= ((kept * 33 / 32 + 9) * (PAGE_BYTES + books) if kept else 0)


def test_growing_one_by_one_copies_seldom() -> None:
    """A thousand pages put one at a time make the pool grow less than every third time: at first every other time, then
    ever more seldom."""
    pool = PagePool(PAGE_BYTES, CPU)
    places = set()
    for number in range(1000):
        pool.put(contents(number))
        places.add(pool.capacity)
    assert len(places) <= 333
    assert len({place for place in places if place > 900}) <= 15


def test_a_pool_is_restored_as_it_was() -> None:
    """Capacity, contents, holders and what is free are those that are asked for."""
    pool = PagePool.restored(20, torch.tensor([3, 7]), contents(30, 70), torch.tensor([1, 2], dtype=torch.int32))
    assert (pool.capacity, pool.used) == (20, 2)
    assert torch.equal(pool.data[7], contents(70)[0])
    assert not {3, 7} & set(pool.put(contents(*range(18))).tolist())
    assert pool.capacity == 20
    pool.release(torch.tensor([7]))
    assert pool.used == 20
    pool.release(torch.tensor([7]))
    assert pool.used == 19
