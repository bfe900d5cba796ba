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
class Work:
    """A harmless text of several lines, as people paste it into a request."""

    name: str
    text: str
    language: str

    @property
    def family(self) -> str:
        return f"allow-work-{self.name}"


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


def works() -> list[Work]:
    """Every harmless work text, in the order of the files. Raises ValueError where a text has no name."""
    found: list[Work] = []
    for language in LANGUAGES:
        path = DATA / f"work_{language}.txt"
        head, *texts = re.split(r"^%% ([\w-]+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if any(line.strip() and not line.startswith("# ") for line in head.splitlines()):
            raise ValueError(f"{path}: a text before the first name")
        found += [Work(name, text.strip("\n"), language) for name, text in zip(texts[::2], texts[1::2], strict=True)]
    return found


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


WINDOW = {"en": 128, "ja": 64}  # letters of a window of the classifier
_LINES_OF_A_WORK = 6


class Desk:
    """Work texts as the classifier meets them: windows and single lines to train on, whole texts to calibrate on, both
    with and without a request in the middle. A request is only ever put into texts of its own fold."""

    def __init__(self, seed: int, works: list[Work], folds: int) -> None:
        self.seed = seed
        self.folds = folds
        self.works = works
        self._of: dict[tuple[str, int], list[Work]] = {}
        for work in works:
            self._of.setdefault((work.language, fold(work.family, folds)), []).append(work)

    def rows(self, first: int) -> list[Row]:
        """Windows that overlap by half, some lines, and pairs of lines; cores are numbered from `first`."""
        made: list[Row] = []
        for number, work in enumerate(self.works, first):
            rng = random.Random(f"{self.seed}:{work.language}:{work.text}")
            width = WINDOW[work.language]
            begin = rng.randrange(-width // 4, width // 4)
            texts = {work.text[max(0, at) : at + width] for at in range(begin, len(work.text), width // 2)}
            texts |= {work.text[max(0, at) : at + 2 * width] for at in range(begin, len(work.text), 2 * width)}
            lines = [line for line in work.text.splitlines() if line.strip()]
            texts |= set(rng.sample(lines, min(_LINES_OF_A_WORK, len(lines))))
            at = rng.randrange(max(1, len(lines) - 1))
            texts.add("\n".join(lines[at : at + 2]))
            made += [
                Row(text, work.language, "allow", "none", work.family, number, True) for text in sorted(texts) if text
            ]
        return made

    def around(self, row: Row, place: int) -> Row:
        """The row inside a window of work text: what stands before and behind it fills the window."""
        rng = random.Random(f"{self.seed}:around:{row.text}")
        left = max(WINDOW[row.lang] // 4, WINDOW[row.lang] - len(row.text) - 2)
        before = rng.choice([0, left // 4, left // 2, left])
        one, other = self._some(row.lang, place, rng, 2)
        head = one.text[-before:] if before else ""
        text = "\n".join(filter(None, (head, row.text, other.text[: left - before])))
        return Row(text, *self._labels(row))

    def buried(self, row: Row, place: int) -> Row:
        """The row before, between or behind whole work texts."""
        rng = random.Random(f"{self.seed}:buried:{row.text}")
        texts = [work.text for work in self._some(row.lang, place, rng, rng.choice([1, 1, 2, 3]))]
        texts.insert(rng.randrange(len(texts) + 1), row.text)
        return Row(rng.choice(["\n", "\n\n"]).join(texts), *self._labels(row))

    def whole(self, first: int) -> list[Row]:
        """Each work text by itself, before one other and before two others."""
        made: list[Row] = []
        for number, work in enumerate(self.works, first):
            rng = random.Random(f"{self.seed}:whole:{work.language}:{work.text}")
            for more in range(3):
                others = self._some(work.language, fold(work.family, self.folds), rng, more)
                text = "\n\n".join([work.text, *(one.text for one in others)])
                made.append(Row(text, work.language, "allow", "none", work.family, number, True))
        return made

    def _some(self, language: str, place: int, rng: random.Random, count: int) -> list[Work]:
        return rng.sample(self._of[language, place], count)

    def _labels(self, row: Row) -> tuple[str, str, str, str, int, bool]:
        return row.lang, row.decision, row.category, row.family, row.core, True


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
