"""The Triton kernels against the reference: on a GPU where there is one (`pytest -m gpu`), else in Triton's
interpreter, in a process of its own, for Triton must be told before it is imported."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
pytest.importorskip("triton", reason="the GPU kernels need Triton: pip install triton")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from triton_views import DEVICE, INTERPRETED, ON_GPU, QUANTISED, Case, random_view

from sekisho.kv.formats import DENSE, PAGE, Format, decode_pages, layout
from sekisho.kv.formats import encode_pages as encode_reference
from sekisho.kv.kernels import reference, triton_decode, triton_pack
from sekisho.kv.kernels.base import PageView, Partial

pytestmark = pytest.mark.kv

_runs = (
    pytest.mark.gpu
    if ON_GPU
    else pytest.mark.skipif(not INTERPRETED, reason="runs within test_interpreter, or on a GPU with -m gpu")
)
PACKED = 64 if ON_GPU else 1  # pages
examples = settings(max_examples=40 if ON_GPU else 4, deadline=None, suppress_health_check=list(HealthCheck))


def assert_agrees(view: PageView) -> Partial:
    """Products have at least 21 bits and sums 24, so that a logit below 30 is off by less than 1e-5, and a sum of
    values below 20 by as much again. A query of eleven bits alone would be off by more than 1e-4."""
    found, exact = triton_decode.decode_attention(view), reference.decode_attention(view, torch.float64)
    limits = {"output": 2e-5, "rotated_output": 2e-5, "rotated_mass": 5e-6, "lse": 1e-5, "page_mass": 5e-6}
    for name, limit in limits.items():
        torch.testing.assert_close(getattr(found, name), getattr(exact, name), rtol=1e-5, atol=limit)
    return found


# --- decode attention -------------------------------------------------------------------------------------------------


@_runs
@pytest.mark.parametrize("form", [DENSE, *QUANTISED], ids=str)
def test_every_format(form: Format) -> None:
    """Attention over pages of each format, alone, is that of the reference."""
    assert_agrees(random_view(Case((form,), group=2, pages=2, batch=1, sinks=3, recent=5, whole=True, seed=form.id)))


@_runs
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 256])
def test_every_head_size(head_dim: int) -> None:
    """Heads whose quads fill blocks, heads whose quads do not, and heads that are no power of two."""
    forms = (DENSE, Format(8, 3), Format(4, 2), Format(2, 4), Format(3, 8))
    assert_agrees(
        random_view(Case(forms, head_dim=head_dim, batch=1, pages=8, sinks=4, recent=4, whole=True, seed=head_dim))
    )


@_runs
@pytest.mark.parametrize("head_dim", [8, 48, 80])
def test_odd_head_sizes(head_dim: int) -> None:
    """Heads smaller than a matrix unit's tile, and those where four bits do not fill blocks either."""
    forms = tuple(Format(bits, bits) for bits in (8, 4, 3, 2))
    assert_agrees(
        random_view(Case(forms, head_dim=head_dim, batch=1, pages=6, sinks=4, recent=4, whole=True, seed=head_dim))
    )


@_runs
@pytest.mark.parametrize("group", [1, 3, 5, 8, 12])
def test_every_group(group: int) -> None:
    """Any number of query heads may share a key/value head."""
    assert_agrees(random_view(Case((Format(4, 4), DENSE), group=group, kv_heads=2, batch=1, whole=True, seed=group)))


@_runs
@examples
@given(
    case=st.builds(
        Case,
        forms=st.sets(st.sampled_from([DENSE, *QUANTISED]), min_size=1, max_size=4).map(
            lambda each: tuple(sorted(each))
        ),
        group=st.integers(1, 8),
        head_dim=st.sampled_from([32, 64, 96]),
        dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
        batch=st.integers(1, 3),
        kv_heads=st.integers(1, 2),
        pages=st.integers(0, 5),
        sinks=st.integers(0, 17),
        recent=st.integers(0, 130),
        visible=st.floats(0, 1),
        seed=st.integers(0, 2**32),
    )
)
def test_random_views(case: Case) -> None:
    """Ragged rows, missing pages, windows, every dense type, any mix of formats: the answer is the reference's."""
    assert_agrees(random_view(case))


@_runs
def test_row_that_sees_nothing() -> None:
    """A row that sees no token has lse -inf, and zeros; its neighbour has what the reference says."""
    view = random_view(Case((Format(8, 8), DENSE), seed=5))
    everything = torch.tensor([10_000, 0], dtype=torch.int32, device=DEVICE)
    found = assert_agrees(replace(view, first_visible=everything))
    assert bool((found.lse[0] == -torch.inf).all())
    assert not any(bool(each[0].any()) for each in (found.output, found.rotated_output, found.page_mass))


@_runs
def test_shares_are_whole() -> None:
    """What lies on pages, on first and on recent tokens is one."""
    view = random_view(Case((Format(4, 4), Format(2, 2)), group=4, pages=5, seed=11))
    found = assert_agrees(view)
    flat = {
        name: replace(getattr(view, name), values=torch.ones_like(getattr(view, name).values))
        for name in ("sinks", "recent")
    }
    dense = triton_decode.decode_attention(replace(view, **flat)).output[..., 0]
    torch.testing.assert_close(dense + found.rotated_mass, torch.ones_like(dense), rtol=0, atol=1e-5)


@_runs
@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_any_scale(size: float) -> None:
    """Queries and values far from one lose no precision: what the kernels round is first brought to one."""
    view = random_view(Case((Format(8, 8),), batch=1, sinks=0, recent=0, pages=4, seed=3))
    pool = view.pools[Format(8, 8).id].clone()
    scales = pool[:, layout(Format(8, 8), 64).key_scales :].view(torch.float16)
    key_scales, value_scales = scales[:, :PAGE], scales[:, PAGE:]
    key_scales.fill_(1 / size if size > 1 else 500.0)
    value_scales.mul_(size if size < 1 else 100.0)
    scaled = replace(view, rotated_query=view.rotated_query * size, pools={Format(8, 8).id: pool})
    found, exact = triton_decode.decode_attention(scaled), reference.decode_attention(scaled, torch.float64)
    greatest = float(exact.rotated_output.abs().max())
    torch.testing.assert_close(found.rotated_output, exact.rotated_output, rtol=1e-4, atol=1e-4 * greatest)


@_runs
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_every_code(bits: int) -> None:
    """Bytes of every kind decode to exactly their levels: weights and scales of a power of two make sums exact, and one
    level that is wrong by one would show."""
    form = Format(bits, bits)
    view = random_view(Case((form,), batch=1, sinks=0, recent=0, pages=1, seed=4))
    pool = view.pools[form.id]
    pool[:, layout(form, 64).key_scales :].view(torch.float16).fill_(1.0)
    pool[:, layout(form, 64).key_scales : layout(form, 64).value_scales].zero_()
    slot, count = torch.zeros_like(view.slots), torch.ones_like(view.page_count)
    values = decode_pages(pool[:1], form, 64, torch.float64, torch.float32)[1]
    one = replace(view, formats=torch.full_like(view.formats, form.id), slots=slot, page_count=count)
    found = triton_decode.decode_attention(replace(one, first_visible=torch.zeros_like(count)))
    assert values.unique().numel() >= min(2**bits, 200)
    torch.testing.assert_close(found.rotated_output, values.mean(1).float().unsqueeze(1), rtol=0, atol=1e-5)


@_runs
def test_split_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many programs share a head, the answer is the same."""
    view = random_view(Case((Format(4, 4), Format(3, 3), DENSE), batch=1, pages=7, sinks=4, recent=8, seed=2))
    for processors in (1, 64):
        monkeypatch.setattr(triton_decode, "_processors", lambda device, many=processors: many)
        assert_agrees(view)


def test_three_bits_of_an_odd_head() -> None:
    """A head that third bits of one token group do not fill is refused, by name."""
    with pytest.raises(ValueError, match="not 20"):
        triton_decode.page_constants(Format(8, 3), 20, 8)


# --- packing ----------------------------------------------------------------------------------------------------------


@_runs
@pytest.mark.parametrize("form", [DENSE, Format(8, 3), Format(4, 2), Format(3, 8), Format(2, 4)], ids=str)
def test_pack(form: Format) -> None:
    """Pages are those of `formats.encode_pages`, but for scales that are the next half-precision number, in at most one
    of a hundred tokens, and codes of numbers half-way between two levels; the numbers come out as near."""
    generator = torch.Generator().manual_seed(form.id)
    head_dim = 96 if form.id % 2 else 64
    keys, values = (torch.randn(PACKED, PAGE, head_dim, generator=generator).to(DEVICE) * 5 for _ in range(2))
    keys[0, 3] = 0  # a row without a number
    found, expected = triton_pack.encode_pages(keys, values, form), encode_reference(keys, values, form)
    assert found.shape == expected.shape
    place = layout(form, head_dim, 4)
    scales = [each[:, place.key_scales :].contiguous().view(torch.int16).int() for each in (found, expected)]
    assert int((scales[0] - scales[1]).abs().max() if scales[0].numel() else 0) <= 1
    assert int((scales[0] != scales[1]).sum()) <= scales[0].numel() / 100
    assert int((found != expected).sum()) <= found.numel() / 100
    numbers = [decode_pages(each, form, head_dim, torch.float32, torch.float32) for each in (found, expected)]
    for mine, theirs, exact in zip(*numbers, (keys, values), strict=True):
        errors = [float((each - exact).square().mean()) for each in (mine, theirs)]
        assert errors[0] <= 1.001 * errors[1]


# --- the interpreter --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(INTERPRETED or ON_GPU, reason="the other tests of this file run already")
@pytest.mark.timeout(300)
def test_interpreter() -> None:
    """On a machine without a GPU the tests above pass in Triton's interpreter."""
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib --strict-markers"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, *options],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
