"""What this processor can do, as far as a compiler makes use of it. Linux tells it in /proc/cpuinfo; pure but for
`here`."""

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

CPUINFO: Final = Path("/proc/cpuinfo")
_X86: Final = {
    "pni": "__SSE3__",
    "ssse3": "__SSSE3__",
    "sse4_1": "__SSE4_1__",
    "sse4_2": "__SSE4_2__",
    "popcnt": "__POPCNT__",
    "movbe": "__MOVBE__",
    "abm": "__LZCNT__",
    "aes": "__AES__",
    "pclmulqdq": "__PCLMUL__",
    "f16c": "__F16C__",
    "fma": "__FMA__",
    "bmi1": "__BMI__",
    "bmi2": "__BMI2__",
    "adx": "__ADX__",
    "sha_ni": "__SHA__",
    "gfni": "__GFNI__",
    "vaes": "__VAES__",
    "vpclmulqdq": "__VPCLMULQDQ__",
    "avx": "__AVX__",
    "avx2": "__AVX2__",
    "avx_vnni": "__AVXVNNI__",
    "avx_vnni_int8": "__AVXVNNIINT8__",
    "avx_ifma": "__AVXIFMA__",
    "avx512f": "__AVX512F__",
    "avx512cd": "__AVX512CD__",
    "avx512bw": "__AVX512BW__",
    "avx512dq": "__AVX512DQ__",
    "avx512vl": "__AVX512VL__",
    "avx512ifma": "__AVX512IFMA__",
    "avx512vbmi": "__AVX512VBMI__",
    "avx512_vbmi2": "__AVX512VBMI2__",
    "avx512_vnni": "__AVX512VNNI__",
    "avx512_bitalg": "__AVX512BITALG__",
    "avx512_vpopcntdq": "__AVX512VPOPCNTDQ__",
    "avx512_bf16": "__AVX512BF16__",
    "avx512_fp16": "__AVX512FP16__",
    "amx_tile": "__AMX_TILE__",
    "amx_int8": "__AMX_INT8__",
    "amx_bf16": "__AMX_BF16__",
    "amx_fp16": "__AMX_FP16__",
}
_ARM: Final = {
    "asimd": "__ARM_NEON",
    "atomics": "__ARM_FEATURE_ATOMICS",
    "crc32": "__ARM_FEATURE_CRC32",
    "asimdrdm": "__ARM_FEATURE_QRDMX",
    "asimdhp": "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC",
    "asimdfhm": "__ARM_FEATURE_FP16_FML",
    "asimddp": "__ARM_FEATURE_DOTPROD",
    "i8mm": "__ARM_FEATURE_MATMUL_INT8",
    "bf16": "__ARM_FEATURE_BF16_VECTOR_ARITHMETIC",
    "sve": "__ARM_FEATURE_SVE",
    "sve2": "__ARM_FEATURE_SVE2",
    "sme": "__ARM_FEATURE_SME",
}
MACROS: Final[Mapping[str, str]] = MappingProxyType({**_X86, **_ARM})
"""By the name in /proc/cpuinfo: what a compiler defines where it may use the feature."""
_SPOKEN: Final = {
    "avx2": "AVX2",
    "f16c": "F16C",
    "fma": "FMA",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512vbmi": "AVX-512 VBMI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "asimdhp": "FP16",
    "asimddp": "dot product",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
    "sve2": "SVE2",
    "sme": "SME",
}


class Processor(msgspec.Struct, frozen=True):
    """`features`: those of `MACROS` that every core has."""

    system: str
    name: str
    features: frozenset[str]


def here(cpuinfo: Path = CPUINFO) -> Processor:
    """Without features where the system does not tell them."""
    system = f"{platform.system()} {platform.machine()}"
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Processor(system, platform.processor() or "unknown", frozenset())
    return Processor(system, name(text), features(text))


def name(cpuinfo: str) -> str:
    """The maker's name of the processor; on ARM often only numbers."""
    cells = _cells(cpuinfo)
    told = cells.get("model name") or cells.get("Model")
    numbers = " ".join(sorted(cells.get("CPU implementer", ()))), " ".join(sorted(cells.get("CPU part", ())))
    return min(told) if told else " ".join(each for each in numbers if each) or "unknown"


def features(cpuinfo: str) -> frozenset[str]:
    """What all cores have: a process may run on any of them."""
    cells = _cells(cpuinfo)
    lines = cells.get("flags") or cells.get("Features") or set()
    sets = [frozenset(MACROS.keys() & line.split()) for line in lines]
    return frozenset.intersection(*sets) if sets else frozenset()


def defined(macros: str) -> frozenset[str]:
    """The features that a compiler may use, out of what it defines (`-dM -E`)."""
    names = {parts[1] for line in macros.splitlines() if len(parts := line.split(None, 2)) > 1}
    return frozenset(feature for feature, macro in MACROS.items() if macro in names)


def spoken(found: Iterable[str]) -> str:
    """Those that llama.cpp has arithmetic of its own for, as people write them."""
    known = frozenset(found)
    return ", ".join(words for feature, words in _SPOKEN.items() if feature in known)


def _cells(cpuinfo: str) -> dict[str, set[str]]:
    """Every value that a name has, on any core."""
    cells: dict[str, set[str]] = {}
    for line in cpuinfo.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            cells.setdefault(key.strip(), set()).add(value.strip())
    return cells
