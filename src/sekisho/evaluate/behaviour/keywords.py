"""Keywords that no server can have seen: random by seed, in the shapes people choose."""

import random
from typing import Literal, get_args

Shape = Literal["ascii", "kanji", "mixed", "fixed"]
SHAPES: tuple[Shape, ...] = get_args(Shape)

_SYLLABLES = [consonant + vowel for consonant in "KSTNHMRGZDB" for vowel in "AIUEO"]
_KANJI = "青赤白黒金銀東西南北山川海空森林花草鳥風雪月星石木水火土春夏秋冬朝夜雨雲光音色糸竹米貝魚馬犬羊虫船門"


def keyword(chance: random.Random, shape: Shape, number: int) -> str:
    """`KEY-417-SAMIRO` (ascii), `青川星` (kanji), `青川-417-SAMIRO` (mixed); `fixed` is `KEY-001-AOIRINGO` with the
    conversation's number, which does not change from run to run."""
    if shape == "fixed":
        return f"KEY-{number:03d}-AOIRINGO"
    code = f"{chance.randrange(1000):03d}-{''.join(chance.choices(_SYLLABLES, k=3))}"
    if shape == "ascii":
        return f"KEY-{code}"
    return "".join(chance.sample(_KANJI, 3)) if shape == "kanji" else f"{''.join(chance.sample(_KANJI, 2))}-{code}"
