"""Random keywords in the shapes people choose, each belonging to training or to measuring, never to both."""

from __future__ import annotations

import hashlib
import random
import string
import tomllib
from collections.abc import Callable
from pathlib import Path

from mini.conversation import Language, Split

CONSONANTS = ("", "k", "s", "t", "n", "h", "m", "y", "r", "w", "g", "z", "d", "b", "p", "ch", "sh", "ts", "j", "f")
VOWELS = "aiueo"
WORDS: dict[str, list[str]] = tomllib.loads((Path(__file__).parent / "words.toml").read_text(encoding="utf-8"))
ENGLISH, COLOURS, ADJECTIVES, NOUNS = (WORDS[name] for name in ("english", "colours", "adjectives", "nouns"))
HIRAGANA = (
    "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれ"
    "ろわがぎぐげござじずぜぞだでどばびぶべぼぱぴぷぺぽん"
)
KATAKANA = (
    "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレ"
    "ロワガギグゲゴザジズゼゾダデドバビブベボパピプペポンー"
)


def _level_one_kanji() -> tuple[str, ...]:
    """The 2,965 kanji of JIS level 1, from Python's own codec."""
    found: list[str] = []
    for row in range(16, 48):
        for cell in range(1, 95):
            try:
                found.append(bytes((0xA0 + row, 0xA0 + cell)).decode("euc_jp"))
            except UnicodeDecodeError:
                continue
    return tuple(found)


KANJI = _level_one_kanji()


def _of(rng: random.Random, letters: str | tuple[str, ...], low: int, high: int) -> str:
    return "".join(rng.choice(letters) for _ in range(rng.randint(low, high)))


def _romaji(rng: random.Random) -> str:
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.randint(2, 5)))


def _key_code(rng: random.Random) -> str:
    word = "AOIRINGO" if rng.random() < 0.15 else _romaji(rng).upper()
    prefix = "KEY" if rng.random() < 0.6 else _of(rng, string.ascii_uppercase, 2, 5)
    return f"{prefix}-{rng.randrange(1000):03d}-{word}"


def _ascii(rng: random.Random) -> str:
    letters = rng.choice(
        (
            string.ascii_uppercase,
            string.ascii_lowercase,
            string.ascii_uppercase + string.digits,
            string.ascii_lowercase + string.digits,
            string.ascii_letters + string.digits,
            "0123456789abcdef",
        )
    )
    return _of(rng, letters, 4, 12)


def _grouped(rng: random.Random) -> str:
    joint = rng.choice("-_.:/")
    letters = string.ascii_uppercase + string.digits
    return joint.join(_of(rng, letters, 2, 5) for _ in range(rng.randint(2, 3)))


def _english_pair(rng: random.Random) -> str:
    joint = rng.choice(("-", " ", "-", "_", ""))
    first = rng.choice(COLOURS if rng.random() < 0.4 else ENGLISH)
    words = [first, rng.choice(ENGLISH)]
    if rng.random() < 0.25:
        words.append(str(rng.randrange(1000)))
    case: Callable[[str], str] = rng.choice((str.lower, str.lower, str.upper, str.capitalize))
    return joint.join(case(word) for word in words)


def _english_word(rng: random.Random) -> str:
    word = rng.choice(ENGLISH) if rng.random() < 0.5 else _romaji(rng)
    return rng.choice((str.lower, str.upper, str.capitalize))(word)


def _number(rng: random.Random) -> str:
    return _of(rng, string.digits, 3, 8)


def _kana(rng: random.Random) -> str:
    return _of(rng, HIRAGANA if rng.random() < 0.5 else KATAKANA, 3, 7)


def _kanji(rng: random.Random) -> str:
    return _of(rng, KANJI, 2, 4)


def _adjective_noun(rng: random.Random) -> str:
    return rng.choice(ADJECTIVES) + (rng.choice(NOUNS) if rng.random() < 0.8 else _of(rng, KATAKANA, 2, 4))


def _mixed(rng: random.Random) -> str:
    parts = [_kanji(rng), _kana(rng), _of(rng, string.ascii_uppercase, 1, 4), _number(rng), rng.choice(NOUNS)]
    rng.shuffle(parts)
    return rng.choice(("", "-", "の", "・")).join(parts[: rng.randint(2, 3)])


ASCII_SHAPES = (_key_code, _ascii, _grouped, _english_pair, _english_word, _number)
JAPANESE_SHAPES = (_kana, _kanji, _adjective_noun, _mixed)


def split_of(keyword: str) -> Split:
    """Which side a keyword belongs to: one in eight is kept for measuring, decided by its hash alone."""
    return "measure" if hashlib.sha256(keyword.encode()).digest()[0] % 8 == 0 else "train"


def draw(rng: random.Random, language: Language, split: Split) -> str:
    """A fresh keyword of the given split, in a shape natural for the language."""
    japanese = 0.5 if language == "ja" else 0.04
    while True:
        if rng.random() < 0.2:
            keyword = _key_code(rng)
        else:
            keyword = rng.choice(JAPANESE_SHAPES if rng.random() < japanese else ASCII_SHAPES)(rng)
        if split_of(keyword) == split:
            return keyword
