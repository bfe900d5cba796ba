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
Buckets = NDArray[np.intp]

_SHIFT = np.uint32(32 - 18)
_PRIME = np.uint32(0x01000193)
_SALTS = np.array([0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1], np.uint32)[:, None]
_WORD_SALTS = np.array([0, 0x3C6EF372, 0x78DDE6E4, 0x78DDE6E4, 0x78DDE6E4, 0x78DDE6E4], np.uint32)[:, None]
_SPACE, _LATIN, _HIRAGANA, _KATAKANA, _KANJI, _OTHER = range(6)
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


def codes(text: str) -> Codes:
    """Code points with a space before and behind; every digit is 0."""
    found = np.frombuffer(f" {text} ".encode("utf-32-le", "replace"), np.uint32)
    return np.where((found >= 0x31) & (found <= 0x39), np.uint32(0x30), found)


def parts(points: Codes) -> tuple[Buckets, Buckets, NDArray[np.intp]]:
    """Shape (LENGTHS, len(points)): the bucket of the n-gram that starts at each position. Shape (WORD_FEATURES,
    words): of each word, the pair with the next one, and, for words that carry meaning, the pairs with the next one,
    two, three and four of these; 0 where there is none. Shape (words,): where each word starts."""
    count = len(points)
    found = np.empty((LENGTHS, count), np.uint32)
    ahead = np.zeros(count + LENGTHS, np.uint32)
    np.multiply(points, np.uint32(0x9E3779B1), out=ahead[:count])
    ahead ^= ahead >> np.uint32(15)
    found[0] = ahead[:count]
    for n in range(1, LENGTHS):
        np.multiply(found[n - 1], _PRIME, out=found[n])
        found[n] += ahead[n : n + count]
    found *= _SALTS
    found ^= found >> np.uint32(16)
    found *= np.uint32(0x7FEB352D)
    buckets, starts = _words(points, found)
    found >>= _SHIFT
    return found.astype(np.intp), buckets, starts


def _words(points: Codes, hashed: Codes) -> tuple[Buckets, NDArray[np.intp]]:
    """A word's hash is the sum of those of its letter pairs, and of its last letter."""
    script = _SCRIPTS.take(points, mode="clip")
    edge = np.empty(len(points) + 1, bool)
    edge[0] = edge[-1] = True
    np.not_equal(script[1:], script[:-1], out=edge[1:-1])
    starts = np.flatnonzero(edge[:-1])
    hashes = np.add.reduceat(np.where(edge[1:], hashed[0], hashed[1]), starts, dtype=np.uint32)
    kind = script[starts]
    kept = kind != _SPACE
    hashes, starts, kind = _mix(hashes[kept]), starts[kept], kind[kept]
    count = len(starts)
    found = np.zeros((WORD_FEATURES, count), np.uint32)
    if not count:
        return found.astype(np.intp), starts
    found[0] = hashes
    found[1, :-1] = hashes[:-1] * _PRIME + hashes[1:]
    meaning = np.flatnonzero((kind != _HIRAGANA) & ~_STOP_TABLE[hashes >> np.uint32(16)])
    carried = hashes[meaning]
    first = carried * _PRIME + np.uint32(1)
    for distance in range(1, min(WORD_FEATURES - 1, len(meaning))):
        found[1 + distance, meaning[:-distance]] = first[:-distance] + carried[distance:]
    buckets = (_mix(found + _WORD_SALTS) >> _SHIFT).astype(np.intp)
    buckets[found == 0] = 0
    return buckets, starts


def _mix(values: Codes) -> Codes:
    values = values ^ (values >> np.uint32(16))
    values *= np.uint32(0x7FEB352D)
    values ^= values >> np.uint32(15)
    values *= np.uint32(0x846CA68B)
    return values


def _stop_table() -> NDArray[np.bool_]:
    """By the upper half of a word's hash: whether it is one of the words without a meaning of their own."""
    points = codes(_STOPS)
    table = np.zeros(65536, bool)
    table[_hashes_of_words(points) >> np.uint32(16)] = True
    return table


def _hashes_of_words(points: Codes) -> Codes:
    """The bare hashes, before there is a table of stop words."""
    ahead = points * np.uint32(0x9E3779B1)
    ahead ^= ahead >> np.uint32(15)
    pairs = np.empty((2, len(points)), np.uint32)
    pairs[0] = ahead
    pairs[1] = ahead * _PRIME
    pairs[1, :-1] += ahead[1:]
    pairs *= _SALTS[:2]
    pairs ^= pairs >> np.uint32(16)
    pairs *= np.uint32(0x7FEB352D)
    script = _SCRIPTS[points]
    edge = np.r_[True, script[1:] != script[:-1], True]
    starts = np.flatnonzero(edge[:-1])
    hashes = np.add.reduceat(np.where(edge[1:], pairs[0], pairs[1]), starts, dtype=np.uint32)
    return _mix(hashes[script[starts] != _SPACE])


_STOP_TABLE = _stop_table()
