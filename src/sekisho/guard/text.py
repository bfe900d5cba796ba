"""A text as the guard reads it: first in plain form, then once more for every disguise that was found and taken off.

All of it is linear in the text, and what is made of a text is bounded: `MAX_DEPTH`, `MAX_VIEWS`, `_budget_chars`."""

import re
import unicodedata
from collections.abc import Iterator

import msgspec

from sekisho.guard.beyond_ascii import beyond_ascii
from sekisho.guard.disguise import DISGUISES, ENCODINGS, Form, claims_encoding

MAX_DEPTH = 3
MAX_VIEWS = 12
_OPAQUE_SHARE = 0.3
_OPAQUE_CHARS = 8


class View(msgspec.Struct, frozen=True):
    """One reading of a text: NFKC, case-folded, without invisible characters, one space between words. `via` names the
    disguises taken off, outermost first. `opaque`, on the first view only: the text holds something nobody can read
    (control bytes, an encoding that does not decode or goes too deep), so that a person must look."""

    text: str
    via: tuple[str, ...] = ()
    opaque: bool = False


def _invisible() -> str:
    """A regex class: Unicode Cf, variation selectors, fillers, blank Braille, controls that are not white space."""
    ranges = ["\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f", "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"]
    ranges += ["\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"]
    ranges += ["\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"]
    ranges += ["\U0001d173-\U0001d17a\U000e0000-\U000e0fff"]
    return "[" + "".join(ranges) + "]"


_INVISIBLE = re.compile(_invisible() + "+")
_MARKS = re.compile("[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")
_ODD = re.compile(f"{_INVISIBLE.pattern[:-2]}{_MARKS.pattern[1:-2]}\U0001f130-\U0001f189]")
_TAGS = re.compile("[\U000e0020-\U000e007e]+")
_UNREADABLE = re.compile("[\x80-\x84\x86-\x9f\ufffd\ue000-\uf8ff\ud800-\udfff\U000f0000-\U0010ffff]")
_CONTROLS = bytes([*range(0x09), *range(0x0E, 0x1C), 0x7F])
_JAPANESE = "\u3041-\u30ff\u3400-\u9fff"
_HAS_JAPANESE = re.compile(f"[{_JAPANESE}]")
_JAPANESE_GAP = re.compile(f" (?=[{_JAPANESE}])(?<=[{_JAPANESE}] )")

_LOOK_ALIKES = (  # pairs: the look-alike, then the Latin letter
    "аa еe оo рp сc уy хx іi јj ѕs ԁd һh ӏl ԛq ԝw вb кk мm нh тt гr ьb ґr ѵv ԍg ԑe үy ұy ҡk ҝk қk әe єe ёe "
    "αa βb εe ηn ιi κk νv οo ρp τt υu χx ωw γy δd ϲc ϳj μu σo θo "
    "ɑa ɡg ɩi ɪi ʀr ʙb ᴀa ᴄc ᴅd ᴇe ꜰf ɢg ʜh ᴊj ᴋk ʟl ᴍm ɴn ᴏo ᴘp ꜱs ᴛt ᴜu ᴠv ᴡw ʏy ᴢz ɓb ɗd ƙk "
    "աw ոn սu օo ցg հh զq եt տs"
)
_FOLD = {ord(pair[0]): pair[1] for pair in _LOOK_ALIKES.split()}
_BADGES = {start + n: chr(97 + n) for start in (0x1F130, 0x1F150, 0x1F170) for n in range(26)}
_SUSPECT = re.compile("[\u0196\u0250-\u02af\u0370-\u058f\u1d00-\u1d7f\ua730-\ua7ff]")
_ALPHABETIC_WORD = re.compile("[a-z\u00df-\u02af\u0370-\u058f\u1d00-\u1d7f\ua730-\ua7ff]+")
_HAS_LATIN = re.compile("[a-z]")


def views(text: str) -> tuple[View, ...]:
    """All readings of `text`, the plain one first; more than one only where a disguise was found."""
    first = _form(text)
    found = [View(first.plain)]
    seen = {first.plain}
    budget_chars = _budget_chars(text)
    opaque = _unreadable(text, first) or claims_encoding(first)
    layer: list[tuple[Form, tuple[str, ...]]] = [(first, ())]
    if not text.isascii() and _TAGS.search(text):
        hidden = _form("".join(chr(ord(letter) - 0xE0000) for run in _TAGS.findall(text) for letter in run))
        found.append(View(hidden.plain, ("tags",)))
        layer.append((hidden, ("tags",)))
    for depth in range(MAX_DEPTH + 1):
        following: list[tuple[Form, tuple[str, ...]]] = []
        for form, via in layer:
            for name, revealed in _undisguised(form, via, depth):
                budget_chars -= len(revealed)
                if budget_chars < 0 or len(found) >= MAX_VIEWS or depth == MAX_DEPTH:
                    return (View(found[0].text, (), True), *found[1:])
                new = _form(revealed)
                if not new.plain or new.plain in seen:
                    continue
                seen.add(new.plain)
                opaque = opaque or _unreadable(revealed, new)
                found.append(View(new.plain, (*via, name)))
                following.append((new, (*via, name)))
        if not following:
            break
        layer = following
    return (View(found[0].text, (), opaque), *found[1:])


def _undisguised(form: Form, via: tuple[str, ...], depth: int) -> Iterator[tuple[str, str]]:
    """What lies under `form`: encodings at any depth, other disguises once each and not at the last depth."""
    for disguise in DISGUISES:
        for name, revealed in disguise(form):
            if name in ENCODINGS or (name not in via and depth < MAX_DEPTH):
                yield name, revealed


def plain(text: str) -> str:
    """The plain form of `text`, which is the text of the first view."""
    return _form(text).plain


def _form(text: str) -> Form:
    """`bare`: without invisible characters and marks, NFKC. `plain`: as in `View.text`."""
    if text.isascii():
        folded = " ".join(text.lower().split())
        if not folded.isprintable():
            text = _INVISIBLE.sub("", text)
            folded = " ".join(text.lower().split())
        return Form(text, folded)
    bare, beyond = text, beyond_ascii(text)
    for _ in range(2):  # NFKC makes few invisible characters and marks anew
        if _controls(bare) or _ODD.search(beyond):
            bare = _MARKS.sub("", _INVISIBLE.sub("", bare)).translate(_BADGES)
            beyond = beyond_ascii(bare)
        if unicodedata.is_normalized("NFKC", beyond):  # what is left of marks joins nothing in ASCII
            break
        bare = unicodedata.normalize("NFKC", bare)
        beyond = beyond_ascii(bare)
    folded = bare.casefold()
    if _SUSPECT.search(beyond.casefold()):
        folded = _fold_look_alikes(folded)
    folded = " ".join(folded.split())
    japanese = _HAS_JAPANESE.search(beyond) is not None
    return Form(bare, _JAPANESE_GAP.sub("", folded) if japanese else folded, japanese)


def _fold_look_alikes(text: str) -> str:
    """Latin for look-alikes, in words that hold Latin letters, and in whole words of look-alikes among Latin words."""
    words = _ALPHABETIC_WORD.findall(text)
    foreign = any(not _HAS_LATIN.search(word) and not _is_latin(word.translate(_FOLD)) for word in words)
    latin = any(_HAS_LATIN.search(word) for word in words)

    def fold(match: re.Match[str]) -> str:
        word = match[0]
        folded = word.translate(_FOLD)
        if _HAS_LATIN.search(word) or (latin and not foreign and _is_latin(folded)):
            return folded
        return word

    return _ALPHABETIC_WORD.sub(fold, text)


def _is_latin(word: str) -> bool:
    return word.isascii()


def _unreadable(text: str, form: Form) -> bool:
    """Whether much of `text` is control bytes, private-use or replacement characters."""
    if text is form.bare and text.isascii():
        return False
    count = _controls(text) + len(_UNREADABLE.findall(beyond_ascii(text)))
    return count >= _OPAQUE_CHARS and count >= _OPAQUE_SHARE * len(text)


def _controls(text: str) -> int:
    """How many ASCII control characters that are not white space."""
    data = text.encode("utf-8", "surrogatepass")
    return len(data) - len(data.translate(None, _CONTROLS))


def _budget_chars(text: str) -> int:
    """How many characters all further views may hold together."""
    return 6 * len(text) + 16_384
