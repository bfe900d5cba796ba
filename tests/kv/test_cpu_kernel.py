"""The CPU kernel computes what the reference computes, on every machine that this processor can be."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
pytest.importorskip("numba", reason="needs the extra kv: pip install 'sekisho[kv]'")

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sekisho.kv.formats import DENSE, EVICTED, FORMATS, PAGE, Format, encode_pages
from sekisho.kv.kernels import cpu, reference
from sekisho.kv.kernels.base import DenseTokens, PageView, Partial

pytestmark = pytest.mark.kv

MACHINES = ("Portable", "Avx2", "Vnni", "Amx")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = 1e-3  # of the scale of the largest number; 16 bits of query and weights give some 1e-4
BATCH, KV_HEADS = 2, 2


class Draw:
    """Random numbers of one example."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator)

    def whole(self, low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high + 1, size, generator=self.generator, dtype=torch.int32)


def tokens(draw: Draw, capacity: int, head_dim: int, dtype: torch.dtype) -> DenseTokens:
    length = draw.whole(0, capacity, BATCH)
    stored = [draw.normal(BATCH, KV_HEADS, capacity, head_dim).to(dtype) for _ in range(2)]
    for each in stored:  # what no row has must not be read
        for row in range(BATCH):
            each[row, :, length[row] :] = torch.nan
    return DenseTokens(*stored, length)


def pools(draw: Draw, formats: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[dict[int, Tensor], Tensor]:
    """Pages for a table of formats in shuffled slots, and the slots."""
    slots, found = torch.full(formats.shape, -1, dtype=torch.int32), {}
    for form_id in formats.unique().tolist():
        if form_id != EVICTED:
            count = int((formats == form_id).sum())
            keys, values = (draw.normal(count + 1, PAGE, head_dim) * (1 + draw.normal(1).abs()) for _ in range(2))
            if form_id == DENSE.id:
                keys, values = keys.to(dtype), values.to(dtype)
            found[form_id] = encode_pages(keys, values, FORMATS[form_id])
            slots[formats == form_id] = torch.randperm(count + 1, generator=draw.generator)[:count].int()
    return found, slots


def random_view(
    seed: int, group: int = 2, head_dim: int = 64, pages: int = 5, dtype: torch.dtype = torch.float32,
    window: bool = False, dense: tuple[int, int] = (16, 70), among: tuple[int, ...] = (EVICTED, *FORMATS),
) -> PageView:  # fmt: skip
    draw = Draw(seed)
    choice = draw.whole(0, len(among) - 1, BATCH, KV_HEADS, pages).long()
    formats = torch.tensor(among, dtype=torch.int8)[choice]
    stored, slots = pools(draw, formats, head_dim, dtype)
    sinks, recent = (tokens(draw, capacity, head_dim, dtype) for capacity in dense)
    counts = draw.whole(0, pages, BATCH)
    total = sinks.length + counts * PAGE + recent.length
    heads = KV_HEADS * group
    return PageView(
        query=draw.normal(BATCH, heads, head_dim) * head_dim**-0.5 * 2,
        rotated_query=draw.normal(BATCH, heads, head_dim) * head_dim**-0.5 * 2,
        key_bias=draw.normal(BATCH, heads),
        formats=formats,
        slots=slots,
        page_count=counts,
        pools=stored,
        sinks=sinks,
        recent=recent,
        first_visible=(torch.rand(BATCH, generator=draw.generator) * (total + 2)).int() if window else total * 0,
    )


def on_machine(name: str, view: PageView) -> Partial:
    group = view.query.shape[1] // view.formats.shape[1]
    for machine in cpu.machines(group, view.query.shape[2]):
        if type(machine).__name__ == name:
            return cpu.decode_attention(view, machine)
    pytest.skip(f"this processor, or a head of {view.query.shape[2]} numbers, cannot do {name}")


def assert_same(found: Partial, wanted: Partial, tolerance: float = TOLERANCE) -> None:
    for name in ("output", "rotated_output", "rotated_mass", "page_mass", "lse"):
        mine, true = getattr(found, name), getattr(wanted, name)
        assert mine.shape == true.shape
        assert mine.dtype == torch.float32
        assert torch.equal(mine == -torch.inf, true == -torch.inf), name
        finite = true != -torch.inf
        if finite.any():
            scale = max(1e-3, float(true[finite].abs().max()))
            assert float((mine[finite] - true[finite]).abs().max()) <= tolerance * scale, name


def assert_reference(name: str, view: PageView) -> None:
    assert_same(on_machine(name, view), reference.decode_attention(view, torch.float64))


@pytest.mark.parametrize("name", MACHINES)
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**31),
    group=st.integers(1, 8),
    head_dim=st.sampled_from((32, 64, 96, 128, 256)),
    pages=st.integers(0, 6),
    window=st.booleans(),
)
def test_equals_the_reference(name, seed, group, head_dim, pages, window):
    """Mixed and evicted formats, ragged rows, groups, windows that begin anywhere: the reference in float64 agrees."""
    assert_reference(name, random_view(seed, group, head_dim, pages, window=window))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), group=st.integers(1, 8), head_dim=st.sampled_from((20, 64, 128)))
def test_dense_types(dtype, seed, group, head_dim):
    """Sinks, recent tokens and dense pages are read in the model's own type."""
    view = random_view(seed, group, head_dim, dtype=dtype, window=True, among=(EVICTED, DENSE.id, Format(8, 4).id))
    assert_same(cpu.decode_attention(view), reference.decode_attention(view, torch.float64))


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("form", FORMATS.values(), ids=str)
def test_every_format_alone(name, form):
    """Each pair of widths is read as it was packed."""
    assert_reference(name, random_view(form.id, group=3, head_dim=128, pages=4, among=(form.id,), dense=(0, 1)))


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize(("group", "head_dim"), [(1, 4), (2, 20), (9, 80), (12, 112), (5, 160), (2, 512), (3, 1024)])
def test_unusual_heads(name, group, head_dim):
    """Any multiple of four is a head, any number a group."""
    assert_reference(name, random_view(7, group, head_dim, window=True))


@pytest.mark.parametrize("name", MACHINES)
def test_a_row_that_sees_nothing(name):
    """Beyond the last token there is no weight: lse is minus infinity, all else zero."""
    view = random_view(3)
    found = on_machine(name, replace(view, first_visible=torch.full((BATCH,), 10**6, dtype=torch.int32)))
    assert torch.equal(found.lse, torch.full_like(found.lse, -torch.inf))
    for each in (found.output, found.rotated_output, found.rotated_mass, found.page_mass):
        assert not each.any()


@pytest.mark.parametrize("name", MACHINES)
def test_steep_logits(name):
    """Where one token takes all the weight, and others differ by hundreds, nothing overflows."""
    view = random_view(11, pages=6, head_dim=128)
    assert_same(
        on_machine(name, replace(view, query=view.query * 30, rotated_query=view.rotated_query * 30)),
        reference.decode_attention(
            replace(view, query=view.query * 30, rotated_query=view.rotated_query * 30), torch.float64
        ),
        5e-3,  # logits in the hundreds, rounded to 16 bits
    )


@pytest.mark.parametrize("name", MACHINES)
def test_zero_keys_and_values(name):
    """Pages of zeros have scale zero: their weights count, their values are nothing."""
    view = random_view(5, among=(Format(4, 4).id,), dense=(1, 1))
    zeros = torch.zeros(view.pools[Format(4, 4).id].shape[0], PAGE, 64)
    assert_reference(name, replace(view, pools={Format(4, 4).id: encode_pages(zeros, zeros, Format(4, 4))}))


def test_machines_agree_to_the_bit_on_dot_products():
    """The machines differ in speed: digits, and sums of whole numbers, are the same."""
    view = random_view(17, group=4, head_dim=64, pages=6)
    found = [cpu.decode_attention(view, machine) for machine in cpu.machines(4, 64)]
    for each in found[1:]:
        assert torch.equal(each.rotated_output, found[0].rotated_output)
        assert torch.equal(each.lse, found[0].lse)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_number_of_threads_changes_nothing_but_rounding(threads):
    """Items are joined into the same answer, however the work was shared out."""
    view, before = random_view(23, pages=40), torch.get_num_threads()
    wanted = reference.decode_attention(view, torch.float64)
    try:
        torch.set_num_threads(threads)
        assert_same(cpu.decode_attention(view), wanted)
    finally:
        torch.set_num_threads(before)


def test_several_callers_at_once():
    """Threads that call at the same time get their own answers."""
    views = [random_view(seed, pages=8) for seed in range(6)]
    alone = [cpu.decode_attention(view) for view in views]
    with ThreadPoolExecutor(6) as callers:
        together = list(callers.map(cpu.decode_attention, views * 5))
    for place, each in enumerate(together):
        assert_same(each, alone[place % len(views)], 1e-6)


def test_tokens_that_do_not_lie_together():
    """Keys and values may be views into something larger, with any strides."""
    view = random_view(29)
    apart = [
        replace(
            each,
            keys=each.keys.repeat_interleave(2, 3)[..., ::2],
            values=each.values.transpose(2, 3).contiguous().transpose(2, 3),
        )
        for each in (view.sinks, view.recent)
    ]
    assert_same(cpu.decode_attention(replace(view, sinks=apart[0], recent=apart[1])), cpu.decode_attention(view), 1e-6)


def test_double_precision_models():
    """Types for which there is no machine code are left to the reference."""
    view = random_view(31, dtype=torch.float64)
    assert_same(cpu.decode_attention(view), reference.decode_attention(view, torch.float64), 1e-5)


def test_nothing_is_changed():
    """A kernel reads what it is given and writes elsewhere."""
    view = random_view(37)
    before = {form_id: pool.clone() for form_id, pool in view.pools.items()}
    kept = view.query.clone(), view.slots.clone(), view.formats.clone()
    cpu.decode_attention(view)
    assert all(torch.equal(pool, before[form_id]) for form_id, pool in view.pools.items())
    assert all(torch.equal(*pair) for pair in zip(kept, (view.query, view.slots, view.formats), strict=True))


def test_items_cover_every_page_once():
    """Whatever the counts and the threads, each page and each end belongs to one item."""
    view = replace(random_view(41, pages=200), page_count=torch.tensor([200, 37], dtype=torch.int32))
    for threads in (1, 2, 7, 64):
        items = cpu.work_items(view, threads)
        for row, count in enumerate([200, 37]):
            for head in range(KV_HEADS):
                mine = items[(items[:, 0] == row) & (items[:, 1] == head)]
                covered = np.concatenate([np.arange(*each[2:4]) for each in mine])
                assert covered.tolist() == list(range(count))
                assert mine[:, 4].sum() == 3
