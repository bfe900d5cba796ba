"""Packing on the CPU gives the bytes of `formats.encode_pages`, and is what pages on the CPU are packed with."""

import sys

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
pytest.importorskip("numba", reason="needs the extra kv: pip install 'sekisho[kv]'")

import hypothesis.strategies as st
from hypothesis import given, settings
from torch import Tensor

from sekisho.kv import formats, kernels
from sekisho.kv.formats import DENSE, FORMATS, PAGE, Format, decode_pages, layout
from sekisho.kv.kernels import cpu_pack, encoder_for

pytestmark = pytest.mark.kv

HEAD_DIMS = (4, 12, 20, 32, 48, 64, 80, 96, 128, 256)
QUANTISED = [form for form in FORMATS.values() if not form.dense]
forms = st.sampled_from(QUANTISED)
head_dims = st.sampled_from(HEAD_DIMS)
seeds = st.integers(0, 2**32 - 1)
counts = st.integers(1, 3)  # pages
examples = settings(deadline=None, max_examples=40)


class Draw:
    """Random numbers of one example."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator)

    def between(self, low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high + 1, size, generator=self.generator).float()

    def halves(self, count: int, head_dim: int, smallest: int, largest: int) -> Tensor:
        """Pages whose rows are halves times a power of two between 2**smallest and 2**largest, and some are zero: their
        sums are exact in whatever order, and at eight bits many lie between two levels."""
        numbers = self.between(-254, 254, count, PAGE, head_dim) / 2
        numbers[..., 0] = 127
        numbers[self.between(0, 9, count, PAGE) == 0] = 0
        return numbers * 2.0 ** self.between(smallest, largest, count, PAGE, 1)


def assert_agrees(found: Tensor, expected: Tensor, exact: tuple[Tensor, Tensor], form: Format) -> None:
    """One row of a hundred, and one more, may have other bytes, because its sums were rounded elsewhere and so a scale
    or a number between two levels too; what it says is as near to the numbers."""
    head_dim = exact[0].shape[2]
    pages = [decode_pages(each, form, head_dim, torch.float64, torch.float32) for each in (found, expected)]
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    for mine, theirs, numbers in zip(*pages, exact, strict=True):
        others = (mine != theirs).any(-1)
        assert int(others.sum()) <= 1 + others.numel() / 100
        errors = [float((each - numbers).square().sum()) for each in (mine, theirs)]
        assert errors[0] <= 1.01 * errors[1]
    if bool((pages[0][0] == pages[1][0]).all()) and bool((pages[0][1] == pages[1][1]).all()):
        assert torch.equal(found, expected)


@examples
@given(form=forms, head_dim=head_dims, count=counts, seed=seeds)
def test_exact_sums(form: Format, head_dim: int, count: int, seed: int) -> None:
    """Where sums are exact the bytes are the same, for every format and head, for numbers half-way between two levels,
    rows of zeros, and scales down to where half precision ends."""
    draw = Draw(seed)
    keys, values = (draw.halves(count, head_dim, -26, 8) for _ in range(2))
    assert torch.equal(cpu_pack.encode_pages(keys, values, form), formats.encode_pages(keys, values, form))


@examples
@given(form=forms, head_dim=head_dims, count=counts, seed=seeds, size=st.floats(1e-3, 1e3))
def test_random_numbers(form: Format, head_dim: int, count: int, seed: int, size: float) -> None:
    """Numbers as models have them give the same bytes but for what the order of sums decides."""
    draw = Draw(seed)
    keys, values = (draw.normal(count, PAGE, head_dim) * size for _ in range(2))
    found, expected = (each(keys, values, form) for each in (cpu_pack.encode_pages, formats.encode_pages))
    assert_agrees(found, expected, (keys, values), form)


@examples
@given(form=forms, head_dim=head_dims, seed=seeds)
def test_scales_that_half_precision_cannot_hold(form: Format, head_dim: int, seed: int) -> None:
    """Scales and levels of huge numbers are the greatest that there are."""
    draw = Draw(seed)
    keys, values = (draw.halves(1, head_dim, 12, 40) for _ in range(2))
    found = cpu_pack.encode_pages(keys, values, form)
    scales = found[:, layout(form, head_dim).key_scales :].view(torch.float16)
    assert torch.equal(found, formats.encode_pages(keys, values, form))
    assert float(scales.max()) == torch.finfo(torch.float16).max


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", [Format(8, 3), Format(4, 2), Format(3, 8), Format(2, 4)], ids=str)
def test_any_kind_of_numbers_in_any_place(form: Format, dtype: torch.dtype) -> None:
    """Numbers of 16 bits, and those that lie apart or belong to a graph, are packed as the same numbers in float32."""
    draw = Draw(form.id)
    keys = draw.normal(96, PAGE, 3).to(dtype).requires_grad_().permute(2, 1, 0)
    values = draw.normal(6, PAGE, 200).to(dtype)[::2, :, 7:103]
    plain = [each.detach().float().contiguous() for each in (keys, values)]
    found = cpu_pack.encode_pages(keys, values, form)
    assert torch.equal(found, cpu_pack.encode_pages(*plain, form))
    assert_agrees(found, formats.encode_pages(*plain, form), (plain[0], plain[1]), form)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads(threads: int) -> None:
    """A page's bytes do not depend on the pages beside it, nor on the number of threads."""
    keys, values = (Draw(threads).normal(83, PAGE, 64) for _ in range(2))
    form, before = Format(4, 3), torch.get_num_threads()
    one_by_one = [cpu_pack.encode_pages(*page, form) for page in zip(keys.split(1), values.split(1), strict=True)]
    try:
        torch.set_num_threads(threads)
        together = cpu_pack.encode_pages(keys, values, form)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, torch.cat(one_by_one))


@pytest.mark.parametrize("form", [DENSE, Format(4, 3)], ids=str)
def test_nothing_to_quantise(form: Format) -> None:
    """Dense pages, and no page at all, are as the reference has them."""
    keys, values = (Draw(1).normal(2 * form.dense, PAGE, 32).bfloat16() for _ in range(2))
    assert torch.equal(cpu_pack.encode_pages(keys, values, form), formats.encode_pages(keys, values, form))


def test_a_head_must_be_a_multiple_of_four() -> None:
    """Other heads are refused as everywhere."""
    keys = torch.zeros(1, PAGE, 66)
    with pytest.raises(ValueError, match="multiple of four"):
        cpu_pack.encode_pages(keys, keys, Format(4, 4))


# --- which encoder ----------------------------------------------------------------------------------------------------


def test_pages_on_the_cpu_are_packed_by_this(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of device has its encoder; one that nobody wrote an encoder for has the reference."""
    monkeypatch.setattr(kernels, "_encoders", {})
    assert encoder_for(torch.device("cpu")) is cpu_pack.encode_pages
    assert encoder_for(torch.device("meta")) is formats.encode_pages


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_missing_packages(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the packages of an encoder are missing, the reference packs."""
    monkeypatch.setattr(kernels, "_encoders", {})
    for module in ("cpu_pack", "triton_pack"):
        monkeypatch.setitem(sys.modules, f"sekisho.kv.kernels.{module}", None)
    assert encoder_for(torch.device(kind)) is formats.encode_pages
