"""Codes to numbers on a GPU, in registers: the inverse of `formats.pack` and of the codebook, for Triton kernels.

An int32 word holds the codes of four channels (keys) or four tokens (values), one in each byte; below eight bits it
holds 2 or 4 such quads, `PLANES` of them, 16 quads apart. A quad's number is its place in the order of the layout:
`64 * channel group + token` for keys, `D * token group + channel` for values.

What limits such a kernel is how many instructions a code takes, not the memory: at four bits an H100 reads 29 codes per
clock and processor, which has 128 lanes. A table in memory costs a load per code, so levels are computed, two at a time
in half precision: a code that is or-ed into the mantissa of 1024.0 is already a number; an odd polynomial takes it to
within 0.46 of its level; adding 1536.0 rounds. All is exact, fused or not: a test goes through every code.
"""

from typing import Final

import triton
import triton.language as tl

PAGE: Final = tl.constexpr(64)
LOW: Final = tl.constexpr(1.0 / 2048)  # the weight of what rounding to half precision leaves, see `in_two`

# Coefficients of x, x^3 and x^5, all half-precision numbers, that take x = (2 * code - (2^bits - 1)) / 2^bits to within
# less than a half of the levels of `formats`.
_TWO: Final = tl.constexpr((149.875, 34.65625))
_THREE: Final = tl.constexpr((115.25, 22.109375, 21.390625))
_FOUR: Final = tl.constexpr((98.0, -1.080078125, 49.15625))
_ROUNDING: Final = tl.constexpr(1536.0)  # in [1024, 2048) half precision has whole numbers only


@triton.jit
def half_of(bits: tl.tensor) -> tl.tensor:
    return bits.to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def level_of(number: tl.tensor, AT: tl.constexpr, BITS: tl.constexpr) -> tl.tensor:
    """float16 levels from float16 numbers 1024 + code * 2^AT. AT is not 0: x must be exact."""
    unit: tl.constexpr = 2.0 ** (1 - AT - BITS)
    x = number * unit - (1024.0 * unit + (2.0**BITS - 1) / 2.0**BITS)
    square = x * x
    if BITS == 4:
        slope = (_FOUR[2] * square + _FOUR[1]) * square + _FOUR[0]
    elif BITS == 3:
        slope = (_THREE[2] * square + _THREE[1]) * square + _THREE[0]
    else:
        slope = _TWO[1] * square + _TWO[0]
    return (x * slope + _ROUNDING) - _ROUNDING


@triton.jit
def plane_words(words: tl.tensor, third: tl.tensor, PLANE: tl.constexpr, BITS: tl.constexpr) -> tl.tensor:
    """int32 words in which the codes of one plane stand in each byte from bit 1 on, of plane 1 and up of
    2 and 4 bits from where they are. `third`: for 3 bits, words
    whose bits 0 to 3 are the codes' third bits; else not looked at."""
    if BITS == 3:
        low = words << 1 if PLANE == 0 else words >> (2 * PLANE - 1)
        moved = low & 0x06060606 | (third & 15) * 0x01020408 & 0x08080808
    elif BITS == 8 or PLANE > 0:
        moved = words
    else:
        moved = words << 1
    return moved


@triton.jit
def levels(words: tl.tensor, BYTE: tl.constexpr, PLANE: tl.constexpr, BITS: tl.constexpr) -> tl.tensor:
    """float16 levels of the codes in byte `BYTE` of what `plane_words` gives."""
    byte = words >> (8 * BYTE)
    if BITS == 8:
        level = half_of((byte & 255 ^ 128) | 0x6400) - 1152.0
    else:
        at: tl.constexpr = 1 if PLANE == 0 or BITS == 3 else PLANE * BITS
        level = level_of(half_of(byte & (((1 << BITS) - 1) << at) | 0x6400), at, BITS)
    return level


@triton.jit
def word_of(quad: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """Which int32 word of a plane of codes holds a quad's codes (of 3 bits the lower two)."""
    if BITS == 8:
        word = quad
    elif BITS == 4:
        word = quad // 32 * 16 + quad % 16
    elif BITS == 3:
        word = quad // 64 * 24 + quad % 16
    else:
        word = quad // 64 * 16 + quad % 16
    return word


@triton.jit
def shift_of(quad: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """From which bit of each byte on."""
    return quad // 16 % 2 * 4 if BITS == 4 else quad // 16 % 4 * 2


@triton.jit
def third_bits(words: tl.tensor, nibbles: tl.tensor, octets: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """int32 words whose bits 0 to 3 are the third bits of quads' codes, (N, 8 * K). `octets` (N, K): the first quads,
    multiples of eight, of eight each in a row. `words` points at a plane of 3-bit codes. `nibbles` points at 0, 4, … 28
    in memory: with shifts that are computed from places, the compiler would not decode where its matrix unit wants the
    numbers, but bring them there through shared memory."""
    stored = tl.load(words + octets // 64 * 24 + 16 + octets % 64 // 8, mask=mask, other=0)
    many: tl.constexpr = 8 * octets.shape[1]
    spread = tl.broadcast_to(stored[:, :, None], (octets.shape[0], octets.shape[1], 8))
    shift = tl.load(nibbles + tl.arange(0, many) % 8)
    return tl.reshape(spread, (octets.shape[0], many)) >> shift[None, :]


@triton.jit
def in_two(x: tl.tensor) -> tl.tensor:
    """(N, K) float32 between -1 and 1 to (2N, K) float16: the numbers rounded, and below them what rounding leaves,
    times 2048. A matrix unit takes sixteen rows, a group has mostly eight queries or fewer: 22 bits cost no more than
    11."""
    high = x.to(tl.float16)
    low = ((x - high.to(tl.float32)) * 2048).to(tl.float16)
    return tl.reshape(tl.permute(tl.join(high, low), (2, 0, 1)), (2 * x.shape[0], x.shape[1]))


@triton.jit
def in_one(x: tl.tensor) -> tl.tensor:
    """(2N, K) float32 products of what `in_two` gives, to (N, K)."""
    halves = tl.permute(tl.reshape(x, (2, x.shape[0] // 2, x.shape[1])), (1, 2, 0))
    high, low = tl.split(halves)
    return high + low * LOW
