"""The layout of pages: codes survive packing, numbers survive quantising as well as the codebooks promise."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")

import hypothesis.strategies as st
from hypothesis import given

from sekisho.kv.formats import (
    DENSE,
    FORMATS,
    PAGE,
    WIDTHS,
    Format,
    codebook,
    decode_pages,
    dequantise,
    encode_pages,
    layout,
    pack,
    quantise,
    unpack,
)
from sekisho.kv.plan import DISTORTION

pytestmark = pytest.mark.kv

HEAD_DIMS = (4, 16, 32, 64, 80, 96, 128, 256)
widths = st.sampled_from(WIDTHS)
seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> "torch.Tensor":
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_ids_are_those_that_files_and_kernels_know() -> None:
    """An id fits a signed byte, is nobody else's, and is what it always was."""
    assert {str(form): form_id for form_id, form in FORMATS.items() if form_id in (0, 1, 2, 6, 11, 16)} == {
        "dense": 0,
        "k8v8": 1,
        "k8v4": 2,
        "k4v4": 6,
        "k3v3": 11,
        "k2v2": 16,
    }
    assert sorted(FORMATS) == list(range(17))


@pytest.mark.parametrize(("keys", "values"), [(16, 8), (8, 16), (5, 4), (1, 1), (0, 0)])
def test_no_other_widths_exist(keys: int, values: int) -> None:
    """A format of other widths is refused, with the widths that there are."""
    with pytest.raises(ValueError, match="8, 4, 3, 2"):
        Format(keys, values)


def test_a_head_must_be_a_multiple_of_four() -> None:
    """Codes are packed four at a time."""
    with pytest.raises(ValueError, match="multiple of four"):
        layout(FORMATS[1], 66)


@given(bits=widths, blocks=st.integers(1, 40), pages=st.integers(1, 3), seed=seeds)
def test_codes_survive_packing(bits: int, blocks: int, pages: int, seed: int) -> None:
    """`unpack` is the inverse of `pack` for all codes of all widths, and what is packed has the size of the layout."""
    codes = torch.randint(0, 2**bits, (pages, blocks * 256), generator=torch.Generator().manual_seed(seed))
    codes = codes.to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (pages, blocks * 32 * bits)
    assert torch.equal(unpack(packed, bits), codes)


@given(bits=widths, blocks=st.integers(1, 8), seed=seeds)
def test_bytes_survive_unpacking(bits: int, blocks: int, seed: int) -> None:
    """Every byte means something: packing what was unpacked gives the same bytes."""
    stored = torch.randint(0, 256, (1, blocks * 32 * bits), generator=torch.Generator().manual_seed(seed))
    stored = stored.to(torch.uint8)
    assert torch.equal(pack(unpack(stored, bits), bits), stored)


def test_the_order_of_packed_codes() -> None:
    """The order that the module's docstring gives, which kernels rely on: one code set at a time, in which bits?"""
    for bits in WIDTHS:
        for code in (0, 1, 63, 64, 127, 128, 200, 255):
            codes = torch.zeros(1, 256, dtype=torch.uint8)
            codes[0, code] = 2**bits - 1
            packed = pack(codes, bits)[0].tolist()
            expected = [0] * len(packed)
            if bits == 8:
                expected[code] = 255
            elif bits == 4:
                half, rest = divmod(code, 128)
                expected[64 * half + rest % 64] = 15 << (4 * (rest // 64))
            else:
                expected[code % 64] = 3 << (2 * (code // 64))
                if bits == 3:
                    expected[64 + code // 8] = 1 << (code % 8)
            assert packed == expected


@pytest.mark.parametrize("form", FORMATS.values(), ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_pages_hold_what_quantising_says(form: Format, head_dim: int, dtype: "torch.dtype") -> None:
    """A page decodes to exactly `dequantise(quantise(x))`, keys and values each with their bits; a dense page to the
    numbers themselves; and has the bytes of the layout."""
    keys, values = (normal(head_dim + place, 3, PAGE, head_dim).to(dtype) for place in (0, 1))
    pages = encode_pages(keys, values, form)
    assert pages.shape == (3, layout(form, head_dim, dtype.itemsize).page_bytes)
    assert pages.dtype == torch.uint8
    found = decode_pages(pages, form, head_dim, torch.float32, dtype)
    for numbers, bits, got in zip((keys, values), (form.key_bits, form.value_bits), found, strict=True):
        of_keys = numbers is keys
        expected = numbers.float() if form.dense else dequantise(*quantise(numbers, bits, of_keys=of_keys), bits)
        assert torch.equal(got, expected)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_distortion_is_what_the_plan_reckons_with(bits: int, scale: float) -> None:
    """On normal rows, the mean squared error relative to the variance is that of the best quantiser, within a tenth;
    for eight bits it is no more than the plan's figure."""
    rows = normal(bits, 4000, 128) * scale
    error = (dequantise(*quantise(rows, bits), bits) - rows).square().mean() / rows.square().mean()
    if bits == 8:
        assert error <= DISTORTION[8]
    else:
        longer = DISTORTION[bits] / (1 - DISTORTION[bits])  # the scale keeps products, not the least error
        assert error == pytest.approx(longer, rel=0.1)


@given(bits=widths, head_dim=st.sampled_from(HEAD_DIMS), seed=seeds, power=st.floats(-3, 4))
def test_the_error_of_a_row_is_bounded(bits: int, head_dim: int, seed: int, power: float) -> None:
    """Eight bits: no number is off by more than half a step. Fewer: a row is never worse than leaving it out."""
    rows = normal(seed, 8, head_dim) * 10**power
    codes, scales = quantise(rows, bits)
    error = dequantise(codes, scales, bits) - rows
    if bits == 8:
        half = rows.abs().amax(-1, keepdim=True) / 254
        assert bool((error.abs() <= half * 1.13 + 1e-7).all())  # a float16 scale may be a little small: 127 * 2**-11
    else:
        assert bool((error.square().sum(-1) <= rows.square().sum(-1) * 1.001 + 1e-9).all())
    assert int(codes.max()) < 2**bits


@given(bits=widths, seed=seeds)
def test_quantising_twice_changes_little(bits: int, seed: int) -> None:
    """What is already on the levels of a width stays there within a hundredth of the row's size: moving a page from
    k4v4 to k4v2 does not hurt its keys."""
    once = dequantise(*quantise(normal(seed, 64, 64), bits), bits)
    twice = dequantise(*quantise(once, bits), bits)
    assert bool(((twice - once).norm(dim=-1) <= 0.3 * once.norm(dim=-1)).all())
    assert float((twice - once).square().mean() / once.square().mean()) < 0.01


@pytest.mark.parametrize("bits", WIDTHS)
def test_strange_rows(bits: int) -> None:
    """A row of zeros stays zero; one too small for a float16 scale becomes zero; one too large for it is finite; NaN
    makes its own row NaN and no other."""
    rows = torch.ones(5, 16)
    rows[0] = 0
    rows[1] = 1e-9
    rows[2] = 1e30
    rows[3, 5] = torch.nan
    found = dequantise(*quantise(rows, bits), bits)
    assert bool((found[0] == 0).all())
    assert bool((found[1] == 0).all())
    assert bool(found[2].isfinite().all())
    assert bool(found[3].isnan().all())
    assert torch.allclose(found[4], torch.ones(16), rtol=2e-3)


@pytest.mark.parametrize("bits", WIDTHS)
def test_levels_are_symmetric_and_ascend(bits: int) -> None:
    """As many levels as codes; below eight bits they ascend with the code and mirror each other around zero."""
    levels = codebook(bits)
    assert len(levels) == 2**bits
    assert all(-128 <= each <= 127 for each in levels)
    if bits < 8:
        assert list(levels) == sorted(levels)
        assert [-each for each in reversed(levels)] == list(levels)


def test_fewer_bits_take_fewer_bytes() -> None:
    """A page of a format with fewer bits is smaller, and the dense one of 16 bits is the largest."""
    for head_dim in HEAD_DIMS:
        sizes = {each: layout(each, head_dim).page_bytes for each in FORMATS.values()}
        for one, size in sizes.items():
            for other, larger in sizes.items():
                bits = (one.key_bits + one.value_bits, other.key_bits + other.value_bits)
                if bits[0] < bits[1] and not (other == DENSE and head_dim < 8):
                    assert size < larger
