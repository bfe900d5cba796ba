"""What a benchmark asks: Japanese and English in turns, from `prompts.yaml`.

`unique` puts a mark before each text, another one for each place, cell and request, so that no prompt cache has seen
its beginning; `same` leaves the texts as they are, as a team asks that shares its prompts.
"""

import random
from collections.abc import Sequence
from functools import cache
from hashlib import blake2s
from importlib import resources
from typing import Literal

import msgspec
import yaml

from sekisho.evaluate.speed.samples import Language

Cache = Literal["unique", "same"]

_MARKS = {"ja": "［依頼 {}］\n", "en": "[Request {}]\n"}
_NOTES = {"ja": "次のメモを前提とします。\n{}", "en": "Take these notes as given.\n{}"}
_CONSONANTS, _VOWELS = "kstnhmrw", "aiueo"


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    language: Language
    text: str


class Prompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`notes`: sentences by language, to fill a prompt up with."""

    prompts: tuple[Prompt, ...]
    notes: dict[Language, tuple[str, ...]]


@cache
def prompts() -> Prompts:
    text = resources.files(__package__).joinpath("prompts.yaml").read_text("utf-8")
    return msgspec.convert(yaml.safe_load(text), Prompts)


def pick(index: int, languages: Sequence[Language] = ("ja", "en")) -> Prompt:
    """The prompt of request `index`: the languages in turns, and in each all prompts in turns."""
    language = languages[index % len(languages)]
    pool = [prompt for prompt in prompts().prompts if prompt.language == language]
    return pool[index // len(languages) % len(pool)]


def marked(prompt: Prompt, seed: int, *name: object) -> str:
    """The text with a mark before it that is made of `seed` and `name`."""
    return _MARKS[prompt.language].format(mark(seed, *name)) + prompt.text


def mark(seed: int, *name: object) -> str:
    """Six syllables, 40^6 different ones: letters alone, as numbers may look like somebody's."""
    digest = blake2s(repr((seed, *name)).encode(), digest_size=12).digest()
    syllables = zip(digest[::2], digest[1::2], strict=True)
    return "".join(_CONSONANTS[one % 8] + _VOWELS[other % 5] for one, other in syllables)


def notes(language: Language, characters: int, seed: int, *name: object) -> str:
    """Some `characters` of notes for a system message, where a guard looks for orders to the model only. A mark is in
    front, and the order is another one, by `seed` and `name`."""
    label = mark(seed, *name)
    chance = random.Random(label)
    text, pool = _MARKS[language].format(label) + _NOTES[language].format(""), list[str]()
    while len(text) < characters:
        if not pool:
            pool = list(prompts().notes[language])
            chance.shuffle(pool)
        text += f"- {pool.pop()}\n"
    return text[: max(characters, 0)]
