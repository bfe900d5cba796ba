"""The held-out requests and their disguises: zero-width, full-width, base64, look-alikes, spacing, translation."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from dataclasses import dataclass

from guard.compose import DATA

SOURCE = DATA / "heldout.txt"


@dataclass(frozen=True)
class HeldOut:
    """`via`: the disguise, empty for the plain text. `pair`: the same number for all forms of one request."""

    text: str
    lang: str
    decision: str
    category: str
    family: str
    via: str
    pair: int


def held_out_rows(seed: int) -> list[HeldOut]:
    """Plain ones in both languages, then each unsafe one in every disguise. Raises ValueError with the line number."""
    plain: list[HeldOut] = []
    header: list[str] = []
    for number, line in enumerate(SOURCE.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("# "):
            continue
        if line.startswith("["):
            header = line.strip("[]").split()
            continue
        texts = line.split(" || ")
        if len(texts) != 2 or len(header) != 4:
            raise ValueError(f"{SOURCE}:{number}: not a pair in a section")
        for language, text in zip(("en", "ja"), texts, strict=True):
            plain.append(HeldOut(text, language, header[0], header[1], header[2], "", number))
    disguised = [
        HeldOut(made, row.lang, row.decision, row.category, row.family, via, row.pair)
        for row in plain
        if row.decision != "allow"
        for via, disguise in DISGUISES.items()
        if (made := disguise(row.text, random.Random(f"{seed}:{via}:{row.text}"))) != row.text
    ]
    return plain + disguised


def zero_width(text: str, rng: random.Random) -> str:
    return "".join(letter + (rng.choice("\u200b\u200c\u2060\ufeff") if rng.random() < 0.4 else "") for letter in text)


def full_width(text: str, rng: random.Random) -> str:
    return "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in text)


def in_base64(text: str, rng: random.Random) -> str:
    return base64.b64encode(text.encode()).decode()


def mixed_script(text: str, rng: random.Random) -> str:
    """Cyrillic and Greek letters for some Latin ones; in Japanese, half-width kana where there is katakana."""
    latin = dict(zip("aeopcyxi", "аеорсухі", strict=True))
    swapped = "".join(latin[letter] if letter in latin and rng.random() < 0.5 else letter for letter in text)
    full = "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワンッャュョー"
    half = "ｱｲｳｴｵｶｷｸｹｺｻｼｽｾｿﾀﾁﾂﾃﾄﾅﾆﾇﾈﾉﾊﾋﾌﾍﾎﾏﾐﾑﾒﾓﾔﾕﾖﾗﾘﾙﾚﾛﾜﾝｯｬｭｮｰ"
    return swapped.translate(str.maketrans(full, half))


def spaced(text: str, rng: random.Random) -> str:
    """A space between all letters; words of a language with spaces stay apart by three."""
    return "   ".join(" ".join(word) for word in text.split(" "))


DISGUISES: dict[str, Callable[[str, random.Random], str]] = {
    "zero-width": zero_width,
    "full-width": full_width,
    "base64": in_base64,
    "mixed-script": mixed_script,
    "spacing": spaced,
}
