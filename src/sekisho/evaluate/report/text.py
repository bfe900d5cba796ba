"""Text from outside, made safe to look at: a model's answer may hide, reorder or overlay letters by characters."""

import re

_HIDDEN = re.compile(
    "["
    "\u0000-\u0008\u000b-\u001f\u007f-\u009f"  # C0 but tab and newline, DEL, C1
    "\u00ad\u061c\u180e\u200b\u200e\u200f"  # soft hyphen, marks of direction, zero width
    "\u2028-\u202e\u2060-\u206f"  # line separators, embeddings, overrides, isolates, invisible operators
    "\ufeff\ufff9-\uffff\ud800-\udfff"  # byte order mark, annotations, replacement, noncharacters, lone surrogates
    "\U000e0000-\U000e0fff"  # tags and variation selectors that nobody sees
    "]"
)
_MARK = "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
_MARKS = re.compile(f"({_MARK}{{4}}){_MARK}+")


def visible(text: str) -> str:
    """The text with every control, bidirectional and invisible character spelt as `⟨U+202E⟩`, and with heaps of
    combining marks cut at four. Newlines and tabs stay. It still has to be escaped for HTML."""
    return _MARKS.sub(r"\1⟨…⟩", _HIDDEN.sub(_spell, text.replace("\r\n", "\n")))


def shortened(text: str, limit: int, note: str) -> str:
    """At most `limit` characters, with `note` after a cut."""
    return text if len(text) <= limit else text[:limit].rstrip() + note


def _spell(found: re.Match[str]) -> str:
    return f"⟨U+{ord(found[0]):04X}⟩"
