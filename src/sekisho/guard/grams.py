"""What the linear model sees of a text: hashed character 1- to 5-grams, words, and pairs of words that stand near.

A Japanese text has no spaces, so that a run of one script (kanji, katakana, hiragana, Latin) serves as its word.
No loop per n-gram: a polynomial hash rolls over the whole text in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1 << 18
LENGTHS = 5
WORD_FEATURES = 6
BLOCK = 16  # positions that are summed together; windows are made of blocks

Codes = NDArray[np.uint32]
Buckets = NDArray[np.int64]

_SHIFT = np.uint32(32 - 18)
_PRIME = np.uint32(0x01000193)
_SALTS = np.array([0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1], np.uint32)
_WORD_SALTS = np.array([0xD3A2646D, 0xFD7046C5, 0xB55A4F09, 0x8DA6B343, 0xD8163841, 0xCB1AB31F], np.uint32)
_SPACE, _LATIN, _HIRAGANA, _KATAKANA, _KANJI, _OTHER = range(6)
_LONGEST_WORD = 24
_STOPS = (
    "a an the of to in on at for from with by and or but is are was were be been am it its this that i me my you your "
    "he she him her his we us our they them their do does did how what which who when where why can could would should "
    "will may please some any so as if then there here not no have has had about into out up just want need"
)


def _scripts() -> NDArray[np.uint8]:
    table = np.full(65536, _OTHER, np.uint8)
    table[:0x30] = table[0x3A:0x61] = table[0x7B:0xC0] = table[0x2000:0x3041] = table[0xFF00:] = _SPACE
    table[0x30:0x3A] = table[0x61:0x7B] = table[0xC0:0x250] = table[0x27] = _LATIN
    table[0x3041:0x30A0], table[0x30A1:0x3100], table[0x3400:0xA000] = _HIRAGANA, _KATAKANA, _KANJI
    table[0x3005] = _KANJI
    return table


_SCRIPTS = _scripts()
_POWERS = np.array([pow(0x01000193, n, 1 << 32) for n in range(_LONGEST_WORD)], np.uint32)


def codes(text: str) -> Codes:
    """Code points with a space before and behind; every digit is 0."""
    found = np.frombuffer(f" {text} ".encode("utf-32-le", "replace"), np.uint32)
    return np.where((found >= 0x31) & (found <= 0x39), np.uint32(0x30), found)


def grams(points: Codes) -> Buckets:
    """Shape (LENGTHS, len(points)): the bucket of the n-gram that starts at each position."""
    found = np.empty((LENGTHS, len(points)), np.uint32)
    ahead = np.zeros(len(points) + LENGTHS, np.uint32)
    ahead[: len(points)] = points
    ahead *= np.uint32(0x9E3779B1)
    ahead ^= ahead >> np.uint32(15)
    rolled = ahead[: len(points)].copy()
    for n in range(LENGTHS):
        if n:
            rolled = rolled * _PRIME + ahead[n : n + len(points)]
        found[n] = rolled
    found *= _SALTS[:, None]
    found ^= found >> np.uint32(16)
    found *= np.uint32(0x7FEB352D)
    return (found >> _SHIFT).astype(np.int64)


def words(points: Codes) -> tuple[Buckets, NDArray[np.int64]]:
    """Shape (WORD_FEATURES, words): each word, the pair with the next one, and, for words that carry meaning, the pairs
    with the next one, two, three and four of these; and where each word starts."""
    script = _SCRIPTS[np.minimum(points, 0xFFFF)]
    edge = np.empty(len(points), bool)
    edge[0] = True
    np.not_equal(script[1:], script[:-1], out=edge[1:])
    starts = np.flatnonzero(edge)
    if not len(starts):
        return np.empty((WORD_FEATURES, 0), np.int64), starts
    runs = np.cumsum(edge) - 1
    within = np.minimum(np.arange(len(points)) - starts[runs], _LONGEST_WORD - 1)
    hashes = np.add.reduceat((points * np.uint32(0x85EBCA6B)) * _POWERS[within], starts, dtype=np.uint32)
    kind = script[starts]
    kept = kind != _SPACE
    hashes, starts, kind = _mix(hashes[kept]), starts[kept], kind[kept]
    count = len(starts)
    found = np.zeros((WORD_FEATURES, count), np.uint32)
    found[0] = hashes
    found[1, :-1] = hashes[:-1] * _PRIME + hashes[1:]
    meaning = np.flatnonzero((kind != _HIRAGANA) & ~_STOP_TABLE[hashes >> np.uint32(16)])
    carried = hashes[meaning]
    for distance in range(1, WORD_FEATURES - 1):
        if len(meaning) > distance:
            pair = carried[:-distance] * _PRIME + carried[distance:]
            found[1 + distance, meaning[:-distance]] = pair + np.uint32(1)
    absent = found == 0
    found += np.array([0, 1, 2, 2, 2, 2], np.uint32)[:, None] * np.uint32(0x3C6EF372)
    buckets = (_mix(found) >> _SHIFT).astype(np.int64)
    buckets[absent] = 0
    return buckets, starts


def _mix(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    values = values ^ (values >> np.uint32(16))
    values = values * np.uint32(0x7FEB352D)
    values = values ^ (values >> np.uint32(15))
    return values * np.uint32(0x846CA68B)


def _stop_table() -> NDArray[np.bool_]:
    """By the upper half of a word's hash: whether it is one of the words without a meaning of their own."""
    table = np.zeros(65536, bool)
    for word in _STOPS.split():
        points = np.array([ord(letter) for letter in word], np.uint32)
        total = (points * np.uint32(0x85EBCA6B) * _POWERS[: len(points)]).sum(dtype=np.uint32)
        table[_mix(np.array([total], np.uint32))[0] >> np.uint32(16)] = True
    return table


_STOP_TABLE = _stop_table()
