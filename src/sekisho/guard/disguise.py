"""Disguises of text and how each is taken off.

A disguise is a function Form -> pairs (name, revealed text), empty when it is not worn. What is revealed stands where
the disguise stood, in its sentence. Each looks with one cheap test first, mostly for a substring in the form's shape,
is linear, and never raises."""

import base64
import binascii
import codecs
import html
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from urllib.parse import unquote_to_bytes

from sekisho.guard.beyond_ascii import beyond_ascii
from sekisho.guard.segment import begins_word, segment


class Form:
    """A text on its way through the guard. `bare` keeps case and white space, `plain` is folded (see text.py).
    Shapes have one byte per character. `runs`: `a` for what Base64 is made of; `letters`: `a` for letters and digits;
    `signs`: `a` for letters, `0` for digits and signs that stand for letters. All else is a blank."""

    __slots__ = ("_blobs", "bare", "data", "japanese", "letters", "plain", "runs", "signs")

    def __init__(self, bare: str, plain: str, japanese: bool = False) -> None:
        self.bare, self.plain, self.japanese = bare, plain, japanese
        self.data = bare.encode("ascii", "replace")
        self.runs = self.data.translate(_RUNS)
        self.letters = b" %b " % self.data.translate(_LETTERS)
        self.signs = b" %b" % self.data.translate(_SIGNS)
        self._blobs: list[tuple[int, int]] | None = None

    def blobs(self) -> list[tuple[int, int]]:
        """Where long runs of letters and digits stand, and short ones that end in =; at most so many."""
        if self._blobs is None:
            self._blobs = _find_blobs(self)
        return self._blobs


def _shape(letters: str, digits: str) -> bytes:
    return bytes(97 if chr(c) in letters else 48 if chr(c) in digits else 32 for c in range(256))


_ALPHABET = string.ascii_letters
_RUNS = _shape(_ALPHABET + string.digits + "+/_-", "")
_LETTERS = _shape(_ALPHABET + string.digits, "")
_SIGNS = _shape(_ALPHABET, "0134578@$!|")
_BASE32_RUNS = _shape(string.ascii_uppercase + "234567", "")
_HEX_RUNS = _shape(string.hexdigits, "")
_BIT_RUNS = _shape("01", "")

Disguise = Callable[[Form], Iterable[tuple[str, str]]]

ENCODINGS = frozenset(
    {"base64", "base32", "hex", "binary", "percent", "escape", "entity"}
)  # may be worn one in another
_SHORTEST_BLOB = 12
_MOST_CANDIDATES = 64
_LONGEST_LEET_WORD = 20
_RUN, _LONG_RUN = b"a" * _SHORTEST_BLOB, b"a" * 24

_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])(?:[A-Za-z0-9+/_-]{12,}+|[A-Za-z0-9+/_-]{6,}+(?==))={0,2}")
_WRAPPED = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{16,}+(?:[ \t]*\r?\n[ \t]*[A-Za-z0-9+/]{2,}+)++={0,2}")
_BASE32 = re.compile(r"(?<![A-Za-z0-9])[A-Z2-7]{16,}+={0,6}(?![A-Za-z0-9])")
_HEX = re.compile(
    r"(?<![0-9A-Za-z])(?:0x)?(?:[0-9A-Fa-f]{2}){6,}+(?![0-9A-Za-z])"
    r"|(?<![0-9A-Za-z])(?:0x|\\x)?[0-9A-Fa-f]{2}(?:[ :,-]{1,2}(?:0x)?[0-9A-Fa-f]{2}){3,}+(?![0-9A-Za-z])"
)
_HEX_DIGITS = re.compile(r"0x|[^0-9A-Fa-f]")
_BINARY = re.compile(r"(?<![0-9A-Za-z])[01]{8}(?:[ ,]?[01]{8}){2,}+(?![0-9A-Za-z])")
_PADDED = re.compile(r"=(?<=[A-Za-z0-9+/]{6}=)")
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})++")
_ENTITY = re.compile(r"&(?:#x?[0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_ESCAPE = re.compile(
    r"\\(?:u\{([0-9A-Fa-f]{1,6})\}|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|x([0-9A-Fa-f]{2}))"
    r"|(?<![0-9A-Za-z])U\+([0-9A-Fa-f]{4,6}) ?"
)
_DIGEST_CHARS = frozenset({32, 40, 56, 64, 96, 128})

_CJK = "\u3041-\u309f\u30a1-\u30ff\u3400-\u9fff"
_GAP = r"[ .\-_*·・•|/~+=,:;]"
_SPACED = re.compile(
    rf"(?<![^\W_])[^\W\d_](?:{_GAP}[^\W\d_]){{2,}}(?![^\W_])"
    rf"(?:[ \t\r\n]{{2,}}[^\W\d_](?:{_GAP}[^\W\d_])*(?![^\W_]))*"
)
_WORD_GAP = re.compile(r"[ \t\r\n]{2,}")
_MARKED_JAPANESE = re.compile(rf"(?:[.\-_*·•|/~+=][.\-_*·•|/~+=]{{0,2}}+|・)(?=[{_CJK}])")
_JAPANESE_LETTER = re.compile(f"[{_CJK}]")
_LEET_WORD = re.compile(rb"(?<![a0])(?:a+0{1,3}a[a0]*|a+0(?![a0])|0{1,2}a{3,}[a0]*)")
_LEET_HINTS = (b"a0a", b"a00a", b"a000a", b" 0aaa", b" 00aaa")
_SURE_LEET = re.compile("[A-Za-z]+[0134578]{1,3}(?:[a-z][A-Za-z0134578@$!|]*|[A-Z][A-Z0134578@$!|]*)")
_LEET_SHORT = frozenset({"t0", "d0", "g0", "n0", "s0"})
_LEET = str.maketrans("013457@8$!|", "oieastabsil")
_LEET_L = str.maketrans("013457@8$!|", "oleastabsll")

_ACCENTED = re.compile("[\u00e0-\u024f\u1e00-\u1eff]")

_COMMON_LIST = (
    "the and you for how can make with that this are what have from your all please tell me to of is in it my do "
    "not ignore previous instructions system prompt write show explain give password without into kill bomb"
)
_COMMON = frozenset(_COMMON_LIST.split())
_ROT13 = frozenset(codecs.encode(word, "rot13") for word in _COMMON if len(word) > 1) - _COMMON - {"or", "be", "va"}
_REVERSED = frozenset(word[::-1] for word in _COMMON if len(word) > 1) - _COMMON - {
    "fo", "si", "ni", "ti", "ym", "od", "era", "em", "ot", "ton", "siht", "rof"
}  # fmt: skip
_TURNED = _ROT13 | _REVERSED
_REVERSED_PAIR = re.compile(r"(?<![a-z])(?:ot|fo|si|ni|em|ym)(?![a-z])")
_JAPANESE_REVERSED = re.compile("いさだく|てえ教|方り作|法方|いさな|てしに|るす|たしま|すまし|すで")
_JAPANESE_FORWARD = re.compile("ください|教えて|作り方|方法|なさい|です|ます|する|した|して|ない|から|こと|には")
_CLAIM = re.compile(
    r"base ?64|base ?32|rot ?13|hex(?:adecimal)?\b|de(?:code|crypt|cipher|obfuscate)|復号|デコード|暗号|エンコード",
    re.I,
)
_KNOWN_BINARY = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,|-----BEGIN |ssh-(?:rsa|ed25519) |eyJ[A-Za-z0-9_-]+\.")
_CLAIMED_BLOB = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{24,}+={0,2}")


def spaced_out(form: Form) -> Iterator[tuple[str, str]]:
    """Letters held apart: "b o m b", "b.o.m.b", "爆*弾". Two or more blanks part words; else words are guessed."""
    joined = form.bare
    if b" a a a " in form.letters or b" a  a  a " in form.letters:
        joined = _SPACED.sub(_join, joined)
    if form.japanese:
        joined = _MARKED_JAPANESE.sub(_unmark, joined)
    if joined != form.bare:
        yield "spacing", joined


def _unmark(match: re.Match[str]) -> str:
    """Nothing, where Japanese letters stand before and behind; a middle dot may part words of two letters and more."""
    text, start = match.string, match.start()
    if not start or not _JAPANESE_LETTER.match(text[start - 1]):
        return match[0]
    wordy = match[0] == "・" and start > 1 and _JAPANESE_LETTER.match(text[start - 2])
    return match[0] if wordy else ""


def _join(match: re.Match[str]) -> str:
    words = [re.sub(_GAP, "", word) for word in _WORD_GAP.split(match[0])]
    if len(words) > 1 or not words[0].isascii():
        return " ".join(words)
    return segment(words[0].lower())


def leet(form: Form) -> Iterator[tuple[str, str]]:
    """Digits and signs for letters, in words that look like it: "b0mb", "k1ll". Both letters for 1, ! and |."""
    if not any(hint in form.signs for hint in _LEET_HINTS):
        return
    bare = form.bare.lower() if len(form.bare.lower()) == len(form.bare) else form.bare
    spans = [
        (start, end)
        for start, end in (match.span() for match in _LEET_WORD.finditer(form.signs))
        if end - start <= _LONGEST_LEET_WORD and bare[end - 2] not in "!|" and bare[start - 1] != "$"
    ]
    if not any(_means_a_word(form, start, end) for start, end in spans):
        return
    for table in (_LEET, _LEET_L):
        pieces, done = [], 0
        for start, end in spans:
            pieces += [bare[done : start - 1], bare[start - 1 : end - 1].translate(table)]  # signs begin with a blank
            done = end - 1
        if pieces:
            yield "leet", "".join([*pieces, bare[done:]])


def _means_a_word(form: Form, start: int, end: int) -> bool:
    """Whether a word with signs for letters is a disguise. `b0mb` is; `v1`, `Qwen3Guard`, `@property`, `user@host`,
    `a|b` and `\\x7f` are that only where a word comes out that such a text is known to hide."""
    word = form.bare[start - 1 : end - 1]
    sure = _SURE_LEET.fullmatch(word) is not None and form.bare[start - 2 : start - 1] != "\\"
    if sure or word.lower() in _LEET_SHORT:
        return True
    sign = form.signs.find(b"0", start) - start
    return any(begins_word(word.lower().translate(table), sign) for table in (_LEET, _LEET_L))


def accents(form: Form) -> Iterator[tuple[str, str]]:
    """Marks on Latin letters: "bòmb"."""
    plain = form.plain
    if not plain.isascii() and _ACCENTED.search(beyond_ascii(plain)):
        split = unicodedata.normalize("NFD", plain.replace("ı", "i"))
        yield "accents", unicodedata.normalize("NFC", re.sub("(?<=[a-z])[\u0300-\u036f]+", "", split))


def base64_text(form: Form) -> Iterator[tuple[str, str]]:
    """Base64 of readable text, standard or URL-safe, in one piece or wrapped; UTF-8 or UTF-16."""
    bare = form.bare
    if not (_RUN in form.runs or "=" in bare):
        return
    revealed = bare
    if "\n" in bare and _RUN in form.runs:
        revealed = _replace(_WRAPPED.finditer(bare), bare, _from_base64)
    if revealed == bare:
        revealed = _replace(_in_spans(_BASE64, bare, form.blobs()), bare, _from_base64)
    if revealed != bare:
        yield "base64", revealed
    if b"a" * 16 in form.data.translate(_BASE32_RUNS):
        base32 = _replace(_in_spans(_BASE32, bare, form.blobs()), bare, _from_base32)
        if base32 != bare:
            yield "base32", base32


def hex_text(form: Form) -> Iterator[tuple[str, str]]:
    """Hexadecimal bytes or binary digits of readable text."""
    bare = form.bare
    found: Iterator[re.Match[str]] = iter(())
    if b" aa aa aa " in form.letters or "0x" in bare:
        found = _HEX.finditer(bare)
    elif _RUN in form.runs and (_RUN in form.data.translate(_HEX_RUNS) or b" aa  aa " in form.letters):
        found = _in_spans(_HEX, bare, form.blobs())
    if (revealed := _replace(found, bare, _from_hex)) != bare:
        yield "hex", revealed
    if (_RUN in form.runs or b" aaaaaaaa aaaaaaaa " in form.letters) and b"a" * 8 in form.data.translate(_BIT_RUNS):
        revealed = _replace(_BINARY.finditer(bare), bare, _from_binary)
        if revealed != bare:
            yield "binary", revealed


def escaped(form: Form) -> Iterator[tuple[str, str]]:
    """URL percent signs, HTML entities, backslash escapes, U+ notation."""
    bare = form.bare
    if "%" in bare:
        revealed = _PERCENT.sub(lambda match: unquote_to_bytes(match[0]).decode("utf-8", "replace"), bare)
        if revealed != bare:
            yield "percent", revealed
    if "&" in bare and _ENTITY.search(bare):
        yield "entity", html.unescape(bare)
    if "\\" in bare or "U+" in bare:
        revealed = _ESCAPE.sub(_character, bare)
        if revealed != bare:
            yield "escape", revealed


def turned(form: Form) -> Iterator[tuple[str, str]]:
    """Rot13 and reversal, where the result holds common words and the original shows them turned."""
    bare, plain = form.bare, form.plain
    words = plain.split()
    turned_words = () if _TURNED.isdisjoint(words) else set(words) & _TURNED
    if len(_ROT13.intersection(turned_words)) >= 2:
        yield "rot13", codecs.encode(bare, "rot13")
    if (marks := len(_REVERSED.intersection(turned_words))) >= 2 or (marks and _REVERSED_PAIR.search(plain)):
        yield "reversed", bare[::-1]
        yield "reversed", " ".join(word[::-1] for word in bare.split())
    elif form.japanese and _JAPANESE_REVERSED.search(plain) and not _JAPANESE_FORWARD.search(plain):
        yield "reversed", bare[::-1]


DISGUISES: tuple[Disguise, ...] = (spaced_out, base64_text, hex_text, escaped, turned, leet, accents)


def claims_encoding(form: Form) -> bool:
    """Whether the text is, or says it is, an encoding that does not decode to text. Digests, tokens, keys, pictures
    and other things that are known not to be text do not count."""
    bare = form.bare
    if _LONG_RUN not in form.runs:
        return False
    blobs = [match for match in _in_spans(_CLAIMED_BLOB, bare, form.blobs()) if _looks_encoded(match[0])]
    if not blobs or _KNOWN_BINARY.search(bare):
        return False
    hidden = [blob for blob in blobs if _from_base64(blob[0]) is None and _from_hex(blob[0]) is None]
    longest = max((len(blob[0]) for blob in hidden), default=0)
    if not longest:
        return False
    return 2 * longest > len(bare) or _CLAIM.search(bare) is not None


def _looks_encoded(blob: str) -> bool:
    """Whether a run of letters and digits is more than a word, a path, a name or a digest."""
    if re.fullmatch("[0-9A-Fa-f]+", blob) and len(blob) in _DIGEST_CHARS:
        return False
    kinds = sum(re.search(kind, blob) is not None for kind in ("[A-Z]", "[a-z]", "[0-9]"))
    wordy = len(blob) < 200 and re.search("[A-Za-z]{12,}|(?:[a-z]{3,}[-_/]){2}", blob) is not None
    return kinds == 3 and len(set(blob)) >= 8 and not wordy


def _find_blobs(form: Form) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    start = form.runs.find(_RUN)
    while start >= 0 and len(spans) < _MOST_CANDIDATES:
        end = form.runs.find(b" ", start)
        end = len(form.runs) if end < 0 else end
        spans.append((start, end + 6))
        start = form.runs.find(_RUN, end)
    if "=" in form.bare:
        for number, match in enumerate(_PADDED.finditer(form.bare)):
            if number >= _MOST_CANDIDATES:
                break
            if match.start() - (start := form.runs.rfind(b" ", 0, match.start()) + 1) < _SHORTEST_BLOB:
                spans.append((start, match.end() + 1))
    return sorted(spans)


def _in_spans(pattern: re.Pattern[str], text: str, spans: list[tuple[int, int]]) -> Iterator[re.Match[str]]:
    for start, end in spans:
        yield from pattern.finditer(text, start, min(end, len(text)))


def _replace(matches: Iterator[re.Match[str]], text: str, decode: Callable[[str], str | None]) -> str:
    """`text` with what `decode` makes of the first candidates in their places."""
    pieces: list[str] = []
    end = 0
    for match in islice(matches, _MOST_CANDIDATES):
        if match.start() >= end and (revealed := decode(match[0])) is not None:
            pieces += [text[end : match.start()], revealed]
            end = match.end()
    return "".join([*pieces, text[end:]]) if pieces else text


def _from_base64(blob: str) -> str | None:
    digits = "".join(blob.split()).rstrip("=").replace("-", "+").replace("_", "/")
    if len(digits) % 4 == 1:
        digits = digits[:-1]
    try:
        return _readable(base64.b64decode(digits + "=" * (-len(digits) % 4)))
    except (binascii.Error, ValueError):
        return None


def _from_base32(blob: str) -> str | None:
    digits = blob.rstrip("=")
    try:
        return _readable(base64.b32decode(digits + "=" * (-len(digits) % 8)))
    except (binascii.Error, ValueError):
        return None


def _from_hex(blob: str) -> str | None:
    digits = _HEX_DIGITS.sub("", blob)
    try:
        return _readable(bytes.fromhex(digits))
    except ValueError:
        return None


def _from_binary(blob: str) -> str | None:
    bits = re.sub("[ ,]", "", blob)
    return _readable(int(bits, 2).to_bytes(len(bits) // 8, "big")) if len(bits) <= 65_536 else None


def _readable(data: bytes) -> str | None:
    """The text that `data` is, or None when it is not text."""
    if len(data) >= 4 and data[1::2].count(0) * 10 >= len(data) * 4:
        data = data.decode("utf-16-le", "ignore").encode("utf-8", "ignore")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    sample = " ".join(text[:4096].split())
    if len(sample) < 3:
        return None
    printable = sum(map(str.isprintable, sample))
    return text if printable >= 0.95 * len(sample) and re.search(r"[^\W\d_]{2}|[^\W\d_] ", sample) else None


def _character(match: re.Match[str]) -> str:
    code = int(next(group for group in match.groups() if group), 16)
    return chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"
