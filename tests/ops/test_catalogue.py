"""What is recommended fits, and nothing that fits is left out."""

import re

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.engines.kv_size import KV_BITS
from sekisho.ops.catalogue import (
    GIB,
    Wish,
    catalogue,
    find,
    kv_bytes,
    need,
    recommend,
)
from sekisho.ops.hardware import Gpu, Hardware
from sekisho.ops.hub import REPOSITORY

wishes = st.builds(
    Wish,
    context=st.integers(256, 40_000),
    slots=st.integers(1, 16),
    kv_type=st.sampled_from(sorted(KV_BITS)),
    use=st.sampled_from(["chat", "embedding"]),
    language=st.sampled_from([None, "ja", "en"]),
)


def machine(ram_gib: float, *cards_gib: float, unified: bool = False) -> Hardware:
    gpus = tuple(Gpu("card", int(g * GIB), int(g * GIB), "apple" if unified else "nvidia", unified) for g in cards_gib)
    ram = int(ram_gib * GIB)
    return Hardware("Linux x86_64", 8, 16, ram, ram, None, gpus, None)


machines = st.builds(
    lambda ram, cards: machine(ram, *cards), st.floats(0.5, 512), st.lists(st.floats(1, 141), max_size=4)
)


def test_catalogue_is_well_formed() -> None:
    """Names are unique, repositories are repositories, windows come with their layers, languages with codes."""
    entries = catalogue()
    assert len({entry.name for entry in entries}) == len(entries) >= 12
    for entry in entries:
        assert REPOSITORY.fullmatch(entry.repo), entry.name
        assert (entry.full_layers is None) == (entry.window is None), entry.name
        assert (entry.full_layers or 0) <= entry.layers
        assert entry.active <= entry.parameters_b
        assert all(re.fullmatch("[a-z]{2}", language) for language in entry.languages)
        bits = entry.size_gib * GIB * 8 / (entry.parameters_b * 1e9)
        assert 3.5 < bits < 9.5, f"{entry.name}: {bits} bits per parameter cannot be {entry.quantisation}"
    assert {entry.use for entry in entries} == {"chat", "embedding"}
    assert find("QWEN3-8B") is find("qwen3-8b") is not None


def test_kv_cache_of_a_known_model() -> None:
    """Llama 3.1 8B keeps 128 KiB per token at f16, as its 32 layers of 8 heads of 128 give."""
    entry = find("llama-3.1-8b")
    assert entry is not None
    assert kv_bytes(entry, 4096, 2, "f16") == 4096 * 2 * 128 * 1024
    assert kv_bytes(entry, 4096, 2, "q8_0") == kv_bytes(entry, 4096, 2, "f16") * 34 // 64


@settings(deadline=None)
@given(machines, wishes)
def test_what_is_recommended_fits(hardware: Hardware, wish: Wish) -> None:
    """Each recommendation needs less than the machine has, at the wanted and at the longest context it names."""
    advice = recommend(hardware, wish)
    free = hardware.ram_available_bytes + hardware.vram_free_bytes
    for choice in advice.fitting:
        assert choice.entry.use == wish.use
        assert wish.context <= choice.context_possible <= choice.entry.context_max
        longest = need(choice.entry, msgspec.structs.replace(wish, context=choice.context_possible))
        assert longest.total_bytes < free
        if choice.placement == "gpu":
            assert longest.total_bytes < hardware.vram_free_bytes
        if choice.placement == "cpu":
            assert longest.total_bytes < hardware.ram_available_bytes
    named = {c.entry.name for c in advice.fitting} | {r.entry.name for r in advice.rejected}
    suitable = {
        e.name for e in catalogue() if e.use == wish.use and (wish.language is None or wish.language in e.languages)
    }
    assert named == suitable


@settings(deadline=None)
@given(machines, wishes, st.floats(1.0, 64.0))
def test_more_memory_never_takes_a_model_away(hardware: Hardware, wish: Wish, extra_gib: float) -> None:
    """A machine with more memory runs everything that the smaller one runs."""
    larger = msgspec.structs.replace(hardware, ram_available_bytes=hardware.ram_available_bytes + int(extra_gib * GIB))
    before = {choice.entry.name for choice in recommend(hardware, wish).fitting}
    assert before <= {choice.entry.name for choice in recommend(larger, wish).fitting}


def test_typical_machines() -> None:
    """A laptop gets a model that a processor serves well; one card of 24 GB gets one that fills it; 2 GB get a tiny."""
    laptop = recommend(machine(16), Wish()).fitting
    assert laptop[0].entry.active <= 5
    assert laptop[0].placement == "cpu"
    card = recommend(machine(64, 24), Wish()).fitting
    assert card[0].placement == "gpu"
    assert card[0].entry.parameters_b > 14
    tiny = recommend(machine(2.5), Wish(context=1024, slots=1)).fitting
    assert [choice.entry.name for choice in tiny] == ["qwen3-0.6b"]
    assert recommend(machine(0.25), Wish()).fitting == ()


def test_japanese_first_where_asked() -> None:
    """For Japanese, a model made for it comes before a larger general one."""
    best = recommend(machine(64, 80), Wish(language="ja")).fitting[0]
    assert best.entry.languages[0] == "ja"


def test_apple_memory_is_not_counted_twice() -> None:
    """Unified memory is one memory: a model larger than it is rejected."""
    advice = recommend(machine(32, 21, unified=True), Wish())
    for choice in advice.fitting:
        assert choice.need.total_bytes < 32 * GIB
        assert choice.placement != "gpu+cpu"
