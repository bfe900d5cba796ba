"""What a cache tells of itself is what it holds."""

import warnings

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
    pytest.importorskip("transformers.cache_utils", reason="needs the extra kv: pip install 'sekisho[kv]'")

import hypothesis.strategies as st
import msgspec
from hypothesis import given, settings
from rows_shadow import CPU, Shadow, shadow

from sekisho.kv.attention import Call, decode
from sekisho.kv.formats import PAGE
from sekisho.kv.kernels.reference import decode_attention
from sekisho.kv.policy import KVPolicy, LevelThresholds
from sekisho.kv.rows import HeadShape
from sekisho.kv.statistics import CacheStatistics, recount, statistics

pytestmark = pytest.mark.kv

SHAPE = HeadShape(2, 16, torch.float16, CPU)
TABLES = ("formats", "slots", "copies", "mass", "settled")
ONLY_EIGHT = KVPolicy(budget=None, level_thresholds=LevelThresholds(1, 0, 0))


def filled(policy: KVPolicy, lengths: list[int], window: int | None = None, seed: int = 0) -> Shadow:
    shade = shadow(policy, SHAPE, window, seed)
    shade.add_rows(len(lengths))
    shade.extend(max(lengths), [max(lengths) - each for each in lengths], known=True)
    return shade


@given(
    lengths=st.lists(st.integers(0, 500), min_size=1, max_size=3),
    budget=st.sampled_from([None, 0.1, 0.25, 0.7]),
    evict=st.booleans(),
    window=st.sampled_from([None, 90]),
    forks=st.lists(st.integers(0, 2), max_size=4),
)
@settings(max_examples=40)
def test_statistics_equal_a_recount(
    lengths: list[int], budget: float | None, evict: bool, window: int | None, forks: list[int]
) -> None:
    """For layers of different kinds, before and after forks: what is told is what the tables say, entry by entry."""
    policy = KVPolicy(budget=budget, evict=evict, host_copy=evict)
    layers = [filled(policy, lengths, seen, seed) for seed, seen in enumerate((None, window))]
    for layer in layers:
        layer.select([row % len(lengths) for row in forks])
        layer.observe()
    tiers = [layer.rows for layer in layers]
    told = statistics(tiers)
    assert told == recount(tiers)
    assert sum(told.levels.values()) == told.chunks == told.levels["L3"] + sum(told.formats.values())
    assert told.bytes_saved == told.bytes_at_16_bits - told.bytes_used
    assert told.tokens == sum(tiers[0].lengths)
    assert told.bytes_used <= told.bytes_allocated
    overhead = sum(rows.batch * rows.dense_token_bytes for rows in tiers)
    tables = (each for rows in tiers for name, each in vars(rows.table).items() if name in TABLES)
    overhead += sum(each.numel() * each.element_size() for each in tables)
    assert sum(told.level_bytes[each] for each in ("L0", "L1", "L2")) == told.bytes_used - overhead
    assert told.level_bytes["L3"] == told.levels["L3"] * PAGE * 2 * 16 * 2


def test_what_is_told_can_be_reckoned_by_hand() -> None:
    """One row of 16 + 64 + 64 * 5 tokens, all pages in eight bits: every figure."""
    told = statistics([filled(ONLY_EIGHT, [16 + 64 + PAGE * 5]).rows])
    page = 2 * PAGE * 16 + 2 * PAGE * 2
    tables = 10 * (1 + 4 + 4 + 4 + 4)
    token = 2 * 2 * 16 * 2
    assert (told.layers, told.tokens, told.dense_tokens, told.chunks) == (1, 400, 80, 10)
    assert told.levels == {"L0": 0, "L1": 10, "L2": 0, "L3": 0}
    assert told.formats == {"k8v8": 10}
    assert told.level_bytes == {"L0": 80 * token, "L1": 10 * page, "L2": 0, "L3": 0}
    assert told.bytes_used == 10 * page + tables + (80 + 1) * token
    assert told.bytes_at_16_bits == 400 * token
    assert told.ratio == told.bytes_used / told.bytes_at_16_bits
    assert (told.moves, told.host_bytes, told.hits, told.attention_s) == (0, 0, None, None)
    assert told.packing_s is not None
    assert told.packing_s > 0
    assert told.planning_s is not None


def test_a_cache_that_holds_nothing() -> None:
    """No layers, or layers without rows: zeros, and no ratio of nothing to nothing."""
    empty = shadow(KVPolicy())
    for tiers in ([], [empty.rows]):
        told = statistics(tiers)
        assert told == recount(tiers)
        assert (told.tokens, told.chunks, told.bytes_used, told.ratio, told.hits) == (0, 0, 0, None, None)


def test_statistics_survive_json() -> None:
    """They are sent to whoever asks for them."""
    told = statistics([filled(KVPolicy(), [300]).rows])
    assert msgspec.json.decode(msgspec.json.encode(told), type=CacheStatistics) == told


def test_forks_count_their_chunks_and_share_their_bytes() -> None:
    """Three forks hold three times the chunks and tokens, and the bytes of one row's pages."""
    shade = filled(ONLY_EIGHT, [400])
    alone = statistics([shade.rows])
    shade.select([0, 0, 0])
    told = statistics([shade.rows])
    assert (told.chunks, told.tokens) == (3 * alone.chunks, 3 * alone.tokens)
    pages = alone.chunks * (2 * PAGE * 16 + 2 * PAGE * 2)
    assert told.bytes_used == 3 * alone.bytes_used - 2 * pages
    assert told.level_bytes == alone.level_bytes | {"L0": 3 * alone.level_bytes["L0"]}


def test_what_was_evicted_is_told_at_16_bits() -> None:
    """All pages of a policy that keeps none: bytes in L3 alone, beside what is dense."""
    nothing = LevelThresholds(1, 1, 1)
    told = statistics([filled(KVPolicy(budget=None, evict=True, level_thresholds=nothing), [16 + 64 + PAGE * 3]).rows])
    gone = told.levels["L3"]
    assert gone > 0
    assert told.level_bytes["L3"] == gone * 2 * PAGE * 16 * 2
    assert told.bytes_at_16_bits == 2 * 2 * 16 * 2 * (80 + PAGE * 3)


def test_pages_behind_a_window_count_nowhere() -> None:
    """Neither as chunks nor at 16 bits, where a cache for a sliding window would not hold them either."""
    told = statistics([filled(ONLY_EIGHT, [5000], window=128).rows])
    assert told.levels["L3"] == 0
    assert told.chunks <= 2 * (128 // PAGE + 2)
    assert told.bytes_at_16_bits < 600 * 2 * 2 * 16 * 2
    assert told.tokens == 5000


def test_moves_count_changes_of_format() -> None:
    """Each page that gets another format than its first counts once for each change."""
    shade = filled(ONLY_EIGHT, [16 + 64 + PAGE * 3])
    shade.apply(KVPolicy(budget=None, ladder=((4, 4),), level_thresholds=LevelThresholds(1, 0, 0)))
    assert statistics([shade.rows]).moves == 6
    shade.apply(KVPolicy(budget=None, ladder=((2, 2),), level_thresholds=LevelThresholds(1, 0, 0)))
    assert statistics([shade.rows]).moves == 12


@given(seed=st.integers(0, 99), steps=st.integers(1, 6))
@settings(max_examples=15)
def test_hits_are_where_the_attention_lay(seed: int, steps: int) -> None:
    """Over some steps of decoding: the share of the softmax on dense tokens, and on pages by level, sums to one and is
    what the kernel's masses give, one query after the other."""
    shade = filled(KVPolicy(budget=0.4), [250, 600], seed=seed)
    expected = dict.fromkeys(("L0", "L1", "L2", "tokens"), 0.0)
    names = {0: "L0", 1: "L1"}

    def watched(view: object) -> object:
        partial = decode_attention(view)  # type: ignore[arg-type]
        for mass, form in zip(partial.page_mass.flatten().tolist(), view.formats.flatten().tolist(), strict=True):  # type: ignore[attr-defined]
            expected[names.get(form, "L2")] += mass
        expected["tokens"] += partial.page_mass.shape[0] * 2 - float(partial.page_mass.sum())
        return partial

    for _ in range(steps):
        keys, values = shade.tokens(2, 1)
        query = torch.randn(2, 4, 1, 16, generator=shade.generator).half()
        decode(shade.rows, query, keys, values, Call(0.25), watched)  # type: ignore[arg-type]
    hits = statistics([shade.rows]).hits
    assert hits is not None
    assert sum(hits.values()) == pytest.approx(1.0)
    whole = sum(expected.values())
    assert hits == pytest.approx({name: mass / whole for name, mass in expected.items()}, abs=1e-5)


def test_time_is_summed_over_layers() -> None:
    """Seconds of all layers, by what they were spent on; what was never measured stays unknown."""
    layers = [filled(KVPolicy(), [300], seed=seed).rows for seed in (0, 1)]
    for rows, seconds in zip(layers, (1.5, 2.0), strict=True):
        rows.table.clock.seconds = {"packing": seconds}
    told = statistics(layers)
    assert (told.packing_s, told.planning_s, told.attention_s) == (3.5, None, None)
    with pytest.raises(ZeroDivisionError), layers[0].table.clock.measure("attention"):
        raise ZeroDivisionError
    assert statistics(layers).attention_s is not None
