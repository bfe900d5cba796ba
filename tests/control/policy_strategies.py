"""Policies and changes of all kinds, for properties."""

from typing import get_args

from hypothesis import strategies as st

from sekisho.control.policy import (
    GIB,
    Device,
    EngineSection,
    IoSection,
    KvMode,
    KvSection,
    Placement,
    Policy,
    QualitySection,
    SchedulerSection,
)
from sekisho.control.units import LARGEST_BYTES
from sekisho.engines.config import KvType
from sekisho.kv.policy import LevelThresholds

shares = st.floats(0, 1)
budgets = st.floats(0, 1, exclude_min=True)
types = st.sampled_from(get_args(KvType))
devices = st.sampled_from(get_args(Device))


def maybe(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


thresholds = st.tuples(shares, shares, shares).map(lambda three: LevelThresholds(*sorted(three, reverse=True)))
policies = st.builds(
    Policy,
    kv=st.builds(
        KvSection,
        mode=st.sampled_from(get_args(KvMode)),
        recent_window=st.integers(16, 512),
        level_thresholds=thresholds,
        budget=maybe(budgets),
        evict=st.booleans(),
        key_type=maybe(types),
        value_type=maybe(types),
        demote_after_prefill=st.booleans(),
    ),
    io=st.builds(
        IoSection,
        enable_iobinding=st.booleans(),
        dml_pool_bytes=st.integers(GIB, LARGEST_BYTES),
        host_pool_bytes=st.integers(GIB, LARGEST_BYTES),
    ),
    scheduler=st.builds(
        SchedulerSection,
        mode=st.sampled_from(get_args(Placement)),
        prefill_device=devices,
        decode_device=devices,
    ),
    quality=st.builds(QualitySection, max_delta_ppl=st.floats(0, 2), min_accept_rate=shares),
    engine=st.builds(
        EngineSection,
        slots=maybe(st.integers(1, 1024)),
        context=maybe(st.integers(256, LARGEST_BYTES)),
        gpu_layers=maybe(st.integers(-1, 1000)),
        threads=maybe(st.integers(1, 1000)),
        prompt_cache_bytes=maybe(st.integers(0, LARGEST_BYTES)),
        speculation=st.sampled_from((None, "off", "ngram")),
    ),
)


def _some(**fields: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries({}, optional=fields)


changes = _some(
    kv=maybe(
        _some(
            mode=st.sampled_from(get_args(KvMode)),
            recent_window=st.integers(16, 512),
            level_thresholds=maybe(_some(L1_int8=st.floats(0.5, 1), L3_evict=st.floats(0, 0.4))),
            budget=maybe(budgets),
            evict=st.booleans(),
            key_type=maybe(types),
        )
    ),
    io=maybe(_some(enable_iobinding=st.booleans(), dml_pool_bytes=st.sampled_from(("2GiB", "1500 mb", 3 * GIB)))),
    scheduler=maybe(_some(mode=st.sampled_from(get_args(Placement)), decode_device=devices)),
    quality=maybe(_some(max_delta_ppl=st.floats(0, 2))),
    engine=maybe(_some(slots=maybe(st.integers(1, 1024)), prompt_cache_bytes=st.sampled_from((None, 0, "0B", "1GiB")))),
)
"""Partial mappings as from JSON, right each by itself. Thresholds stay in order with the default L2 of 0.5."""
