"""Texts to measure on. Ours was written for this and is in no training set that we know of; yours says more about your
work. A text's id changes with its content, so that no figure is compared with one of another text."""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec

from sekisho.control.perplexity.base import STRETCH, Kind, Unmeasured

_OURS: Final = ("work.en.txt", "work.ja.txt")
_MOST_BYTES: Final = 96 * 1024  # a run on more would take hours where there is no GPU


class Text(msgspec.Struct, frozen=True):
    """`id`: name and the first digits of its SHA-256."""

    id: str
    body: str


def built_in() -> Text:
    """English and Japanese prose about work, 11 KB."""
    folder = files("sekisho.control.perplexity") / "texts"
    return _text("work", "\n".join((folder / name).read_text(encoding="utf-8") for name in _OURS))


def own(path: Path) -> Text:
    """A file in UTF-8. Raises `Unmeasured` where it cannot be read as that, is empty, or is too large to be meant."""
    try:
        with path.expanduser().open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        body = raw.decode("utf-8-sig")
    except OSError as error:
        raise Unmeasured(f"the text {path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise Unmeasured(f"the text {path} is not UTF-8") from None
    if len(raw) > _MOST_BYTES:
        raise Unmeasured(f"the text {path} is larger than {_MOST_BYTES >> 10} KiB: a few thousand words are enough")
    if not body.strip():
        raise Unmeasured(f"the text {path} is empty")
    return _text(path.name, body)


def part_id(text: Text, kind: Kind, number: int | None) -> str:
    """The `text_id` of a measurement: the whole text, or the stretch with this number, in stretches of this length."""
    which = "" if number is None else f"#{number}"
    return f"{text.id}@{STRETCH[kind]}{which}"


def _text(name: str, body: str) -> Text:
    return Text(f"{name}:{hashlib.sha256(body.encode()).hexdigest()[:12]}", body)
