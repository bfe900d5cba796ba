"""What a sequence may come to is never less than what it takes."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")

import hypothesis.strategies as st
from hypothesis import given, settings

from sekisho.engines.torch_worker.admission import LayerShape, idle_bytes, most_tokens, sequence_bytes
from sekisho.kv.policy import KVPolicy, LevelThresholds
from sekisho.kv.rows import HeadShape, TieredRows

pytestmark = pytest.mark.kv

LADDERS = [((8, 8), (4, 4), (3, 3), (2, 2)), ((8, 8),), ((4, 4), (2, 2)), ((3, 3),)]
POLICIES = st.builds(
    KVPolicy,
    recent_window=st.sampled_from([16, 64, 100]),
    sinks=st.sampled_from([0, 4, 16]),
    budget=st.sampled_from([None, 0.1, 0.25, 0.6, 1.0]),
    ladder=st.sampled_from(LADDERS),
    evict=st.booleans(),
    host_copy=st.booleans(),
    level_thresholds=st.sampled_from([LevelThresholds(), LevelThresholds(0, 0, 0), LevelThresholds(1, 1, 1)]),
)
SHAPES = st.builds(
    LayerShape,
    kv_heads=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([16, 32]),
    itemsize=st.sampled_from([2, 4]),
    window=st.sampled_from([None, 128]),
)


@settings(deadline=None, max_examples=60)
@given(POLICIES, SHAPES, st.lists(st.integers(1, 300), min_size=1, max_size=3), st.integers(1, 200), st.booleans())
def test_rows_never_take_more_than_was_reserved(
    policy: KVPolicy, shape: LayerShape, prompts: list[int], chunk: int, looked_at: bool
) -> None:
    """Rows that grow in portions, together in one table, under any policy and whatever attention they get, stay within
    the sum of their bounds and the pools' idle room, copies in the same memory included."""
    dtype = torch.float16 if shape.itemsize == 2 else torch.float32
    heads = HeadShape(shape.kv_heads, shape.head_dim, dtype, torch.device("cpu"))
    rows = TieredRows(heads, policy, shape.window)
    rows.add_rows(len(prompts))
    reserved = idle_bytes([shape], policy) + sum(sequence_bytes([shape], policy, count) for count in prompts)
    generator = torch.Generator().manual_seed(1)
    longest = max(prompts)
    for start in range(0, longest, chunk):
        count = min(chunk, longest - start)
        left = [max(0, min(count, prompt - start)) for prompt in prompts]
        drawn = torch.randn(2, len(prompts), shape.kv_heads, count, shape.head_dim, generator=generator).to(dtype)
        rows.extend(drawn[0], drawn[1], skip=[count - each for each in left])
        if looked_at:
            rows.observe(torch.rand(rows.table.mass.shape, generator=generator), [4] * rows.batch)
        assert rows.allocated_bytes + rows.table.host_bytes <= reserved
    assert rows.lengths == prompts


@settings(deadline=None)
@given(POLICIES, st.lists(SHAPES, min_size=1, max_size=3), st.integers(0, 2_000_000), st.integers(1, 5000))
def test_the_longest_sequence_fits_and_a_longer_one_does_not(
    policy: KVPolicy, layers: list[LayerShape], limit: int, most: int
) -> None:
    """`most_tokens` is the largest number that fits, or all that are wanted; bytes never fall with tokens."""
    found = most_tokens(layers, policy, limit, most)
    room = limit - idle_bytes(layers, policy)
    assert 0 <= found <= most
    assert found == 0 or sequence_bytes(layers, policy, found) <= room
    assert found == most or sequence_bytes(layers, policy, found + 1) > room
