"""Labelled requests out of the hand-written ones: alternatives, frames, context and style, the same for every seed."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).with_name("data")
LANGUAGES = ("en", "ja")
_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")


@dataclass(frozen=True)
class Core:
    """A hand-written request with its alternatives still open. `family`: what is held out together."""

    text: str
    language: str
    decision: str
    category: str
    family: str
    kind: str


@dataclass(frozen=True)
class Row:
    """A labelled request. `core`: number of the hand-written one; `varied`: whether context or style was added."""

    text: str
    lang: str
    decision: str
    category: str
    family: str
    core: int
    varied: bool


def cores() -> list[Core]:
    """Every hand-written request, in the order of the files. Raises ValueError with file and line."""
    found: list[Core] = []
    for language in LANGUAGES:
        for path in sorted((DATA / language).glob("*.txt")):
            found.extend(_read(path, language))
    return found


def _read(path: Path, language: str) -> Iterator[Core]:
    header: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("# "):
            continue
        match = re.fullmatch(r"\[(allow|escalate|refuse) (\w+) ([\w-]+) (full|vp|np)\]", line)
        if match:
            header = list(match.groups())
        elif not header:
            raise ValueError(f"{path}:{number}: a request before the first section")
        else:
            decision, category, family, kind = header
            yield Core(line, language, decision, category, f"{decision}-{category}-{family}", kind)


def lists(path: Path) -> dict[str, list[str]]:
    """Sections of a file of frames."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            name = line[1:-1]
        elif line.strip() and not line.startswith("# "):
            found.setdefault(name, []).append(line)
    return found


def alternatives(text: str) -> list[str]:
    """All texts that the choices of `text` allow."""
    parts = _CHOICE.split(text)
    options = [[part] if n % 2 == 0 else part.split("|") for n, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*options)]


def small_families(cores: list[Core], lines: int) -> list[str]:
    """For each core the name of its family: `lines` requests that stand together in a section, under the same name in
    both languages, so that translations go the same way."""
    seen: dict[tuple[str, str], int] = {}
    names: list[str] = []
    for core in cores:
        place = seen.get((core.language, core.family), 0)
        seen[core.language, core.family] = place + 1
        names.append(f"{core.family}-{place // lines}")
    return names


def fold(family: str, folds: int) -> int:
    return int(_digest(f"fold:{family}")[:8], 16) % folds


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Composer:
    """Makes rows from cores. `per_core`: at most so many alternatives of one core, each plain and varied."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.frames = {language: lists(DATA / f"frames_{language}.txt") for language in LANGUAGES}

    def rows(self, number: int, core: Core, per_core: int, variants: int) -> list[Row]:
        rng = random.Random(f"{self.seed}:{core.language}:{core.text}")
        texts = alternatives(core.text)
        rng.shuffle(texts)
        made: dict[str, bool] = {}
        for text in texts[: per_core if core.kind == "full" else per_core + 1]:
            phrase = self.framed(text, core, rng)
            made.setdefault(phrase, False)
            for _ in range(variants):
                varied = self.varied(self.framed(text, core, rng), core.language, rng)
                made.setdefault(varied, True)
        return [
            Row(text, core.language, core.decision, core.category, core.family, number, varied)
            for text, varied in made.items()
        ]

    def framed(self, text: str, core: Core, rng: random.Random) -> str:
        if core.kind == "full":
            return text
        return rng.choice(self.frames[core.language][core.kind]).replace("~", text)

    def varied(self, text: str, language: str, rng: random.Random) -> str:
        """`text` with context before or behind, inside a longer text, or in another style."""
        frames = self.frames[language]
        space = " " if language == "en" else ""
        before, after = self._one(frames["before"], rng), self._one(frames["after"], rng)
        roll = rng.random()
        if roll < 0.28:
            text = f"{before}{space}{text}"
        elif roll < 0.5:
            text = f"{text}{' ' if language == 'en' or not text.endswith(('。', '？', '！')) else ''}{after}"
        elif roll < 0.62:
            text = f"{before}{space}{text} {after}"
        elif roll < 0.72:
            text = "\n\n".join(self._placed(text, rng.choice(frames["long"]), rng))
        style = rng.random()
        if style < 0.12:
            text = text.lower()
        elif style < 0.2:
            text = _mistyped(text, rng)
        elif style < 0.27:
            text = text.rstrip(".?!。？！") + rng.choice(["", "!!", "??", "...", "。", "…", " please"])
        elif style < 0.31 and language == "en":
            text = text.upper()
        elif style < 0.34 and language == "en":
            text = text.replace("'", "").replace("you", "u").replace("please", "pls")
        return text

    def _one(self, options: list[str], rng: random.Random) -> str:
        return rng.choice(alternatives(rng.choice(options)))

    def _placed(self, text: str, long: str, rng: random.Random) -> list[str]:
        return [long, text] if rng.random() < 0.5 else [text, long]


def _mistyped(text: str, rng: random.Random) -> str:
    """One or two slips: two letters swapped, one doubled, or one lost."""
    for _ in range(rng.choice([1, 1, 2])):
        if len(text) < 8:
            return text
        place = rng.randrange(1, len(text) - 2)
        text = rng.choice(
            [
                text[:place] + text[place + 1] + text[place] + text[place + 2 :],
                text[:place] + text[place] + text[place:],
                text[:place] + text[place + 1 :],
            ]
        )
    return text
