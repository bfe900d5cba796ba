"""Whether the Triton kernels compile for GPUs, on machines that have none."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
triton = pytest.importorskip("triton", reason="the GPU kernels need Triton: pip install triton")

from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_views import INTERPRETED, Case, random_view

from sekisho.kv.formats import DENSE, PAGE, Format
from sekisho.kv.kernels import triton_decode, triton_pack

pytestmark = [
    pytest.mark.kv,
    pytest.mark.skipif(INTERPRETED, reason="what is interpreted is not compiled"),
]

_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
}


class Compiler:
    """Stands in for a kernel: compiles what it would be launched with, as Triton does, without a GPU."""

    def __init__(self, kernel: Any, target: GPUTarget, done: list[str]) -> None:
        self.kernel, self.target, self.done = kernel, target, done

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._compile

    def _compile(self, *arguments: Any, **named: Any) -> None:
        names = self.kernel.arg_names
        options = {name: named.pop(name) for name in list(named) if name not in names}
        given = dict(zip(names, arguments, strict=False)) | named
        fixed = {name for name in given if name in named or (isinstance(given[name], int) and given[name] == 1)}
        signature = {name: "constexpr" if name in fixed else _type(given[name]) for name in names}
        aligned = [isinstance(given[name], Tensor) or _even(given[name]) for name in names]
        attributes = {(at,): [["tt.divisibility", 16]] for at, each in enumerate(aligned) if each}
        constants = {(names.index(name),): given[name] for name in fixed}
        attributes = {place: each for place, each in attributes.items() if place not in constants}
        source = ASTSource(self.kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=self.target, options=options)
        assert "cubin" in compiled.asm
        self.done.append(self.kernel.fn.__name__)


def _even(value: Any) -> bool:
    return isinstance(value, int) and value % 16 == 0


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + _TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


@pytest.fixture
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of kernels that were compiled, instead of launched, for a GPU of the parameter's compute capability."""
    done: list[str] = []
    for module in (triton_decode, triton_pack):
        for name in ("list_pages", "dense_tokens", "dense_pages", "quantised_pages", "merge_splits", "page_shares",
                     "fit_scales", "pack_codes"):  # fmt: skip
            if hasattr(module, name):
                target = GPUTarget("cuda", request.param, 32)
                monkeypatch.setattr(module, name, Compiler(getattr(module, name), target, done))
    return done


@pytest.mark.parametrize(
    ("compiled", "case"),
    [
        (90, Case((DENSE, Format(8, 8), Format(4, 4)), head_dim=128, dtype=torch.float16, pages=8)),
        (80, Case((Format(3, 2),), group=8, head_dim=96, dtype=torch.bfloat16, pages=1, batch=1)),
    ],
    indirect=["compiled"],
    ids=["H100", "A100"],
)
def test_decoding_compiles(compiled: list[str], case: Case) -> None:
    """Every kernel that a call launches compiles for a GPU."""
    triton_decode.decode_attention(random_view(case))
    pages = {"quantised_pages", "list_pages", "page_shares", "dense_tokens", "merge_splits"}
    assert set(compiled) == pages | ({"dense_pages"} if DENSE in case.forms else set())


@pytest.mark.parametrize("compiled", [90], indirect=True)
def test_packing_compiles(compiled: list[str]) -> None:
    """Packing, too."""
    numbers = torch.zeros(1, PAGE, 64)
    triton_pack.encode_pages(numbers, numbers, Format(8, 3))
    assert compiled == ["fit_scales", "pack_codes"] * 2
