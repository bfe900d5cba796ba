"""Sequences that join a running batch, and leave it."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")

import hypothesis.strategies as st
from hypothesis import given, settings

from sekisho.kv.join import adopt
from sekisho.kv.policy import KVPolicy, LevelThresholds
from sekisho.kv.rows import HeadShape, TieredRows

pytestmark = pytest.mark.kv

SHAPE = HeadShape(2, 16, torch.float32, torch.device("cpu"))
POLICIES = [
    KVPolicy(recent_window=16, sinks=4, budget=None, level_thresholds=LevelThresholds(0, 0, 0)),
    KVPolicy(recent_window=16, sinks=4),
    KVPolicy(recent_window=16, sinks=4, budget=None, evict=True),
    KVPolicy(recent_window=16, sinks=4, budget=0.4, host_copy=True),
]


def tokens(seed: int, count: int) -> tuple["torch.Tensor", "torch.Tensor"]:
    """(1, H, count, D) keys and values, the same for the same seed, whatever the count."""
    drawn = torch.randn(2, count, 1, SHAPE.kv_heads, SHAPE.head_dim, generator=torch.Generator().manual_seed(seed))
    keys, values = drawn.transpose(1, 3).transpose(1, 2).contiguous()
    return keys, values


def grown(policy: KVPolicy, seed: int, count: int) -> TieredRows:
    rows = TieredRows(SHAPE, policy)
    rows.add_rows(1)
    if count:
        rows.extend(*tokens(seed, count))
    return rows


def copied(rows: TieredRows, row: int) -> tuple["torch.Tensor", "torch.Tensor"]:
    """What one row holds, without the zeros before it."""
    length = rows.lengths[row]
    keys, values = rows.materialise()
    return keys[row, :, keys.shape[2] - length :], values[row, :, values.shape[2] - length :]


def check_pools(rows: TieredRows) -> None:
    """Every page that the table names is held, once for each time that it is named; nothing else is."""
    table = rows.table
    for form_id, pool in table.pools.items():
        here = table.exists() & (table.formats == form_id)
        named = torch.bincount(table.slots[here].long(), minlength=pool.capacity)
        assert torch.equal(named, pool.holders.long())


@settings(deadline=None, max_examples=40)
@given(
    policy=st.sampled_from(POLICIES),
    counts=st.lists(st.integers(0, 420), min_size=2, max_size=5),
    left=st.integers(0, 4),
    more=st.integers(1, 90),
)
def test_rows_that_join_are_what_they_were_alone(policy: KVPolicy, counts: list[int], left: int, more: int) -> None:
    """Rows of any lengths that join one after the other hold what each holds alone, bit for bit: at once, after one of
    them has left, and after all have grown further."""
    alone = [grown(policy, seed, count) for seed, count in enumerate(counts)]
    batch = grown(policy, 0, counts[0])
    for seed, count in enumerate(counts[1:], 1):
        joining = grown(policy, seed, count)
        adopt(batch, joining)
        assert joining.batch == 0
    check_pools(batch)
    order = list(range(len(counts)))
    for step in range(2):
        assert batch.lengths == [alone[seed].lengths[0] for seed in order]
        for row, seed in enumerate(order):
            for mine, theirs in zip(copied(batch, row), copied(alone[seed], 0), strict=True):
                assert torch.equal(mine, theirs)
        if step == 0:
            order.pop(left % len(order))
            batch.select([row for row in range(len(counts)) if row in order])
            for token in range(more):
                new = [[each[:, :, token : token + 1] for each in tokens(100 + seed, more)] for seed in order]
                batch.extend(torch.cat([keys for keys, _ in new]), torch.cat([values for _, values in new]))
                for seed, pair in zip(order, new, strict=True):
                    alone[seed].extend(*pair)
            check_pools(batch)


def test_pages_that_are_shared_stay_shared() -> None:
    """Two rows with the same pages bring them along once."""
    forked = grown(POLICIES[1], 1, 400)
    forked.select([0, 0])
    batch = grown(POLICIES[1], 2, 300)
    single = grown(POLICIES[1], 2, 300)
    adopt(single, grown(POLICIES[1], 1, 400))
    adopt(batch, forked)
    check_pools(batch)
    used = {form_id: pool.used for form_id, pool in batch.table.pools.items()}
    assert used == {form_id: pool.used for form_id, pool in single.table.pools.items()}


def test_a_row_takes_the_policy_of_those_that_it_joins() -> None:
    """A row that was dense lies in fewer bytes once it has joined rows of a smaller budget."""
    dense, small = POLICIES[:2]
    batch, joining = grown(small, 1, 400), grown(dense, 2, 400)
    before = joining.allocated_bytes
    assert 0 in joining.table.pools
    adopt(batch, joining)
    assert batch.allocated_bytes < before * 2 * 0.6
    assert batch.policy == small


@pytest.mark.parametrize(
    "other",
    [
        TieredRows(HeadShape(4, 16, torch.float32, torch.device("cpu")), POLICIES[0]),
        TieredRows(SHAPE, POLICIES[0], window=128),
        TieredRows(SHAPE, KVPolicy(recent_window=16, sinks=8)),
    ],
    ids=["heads", "window", "sinks"],
)
def test_strange_rows_are_refused(other: TieredRows) -> None:
    """Rows of other heads, another window or another number of sinks do not fit in, and nothing is changed."""
    batch = grown(POLICIES[0], 1, 100)
    with pytest.raises(ValueError, match="join"):
        adopt(batch, other)
    assert batch.lengths == [100]
