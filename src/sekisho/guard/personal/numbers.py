"""Numbers: cards, phones, My Number, accounts and other numbers that only their surroundings tell apart.

Digits are looked at in runs of groups (`090-1234-5678` has three). Every start in a run is tried with every length that
a number may have, so the work is linear in the text. What overlaps is settled by the caller.
"""

import re

from sekisho.guard.personal import check_digits
from sekisho.guard.personal.found import Kind, Span

_SEPARATOR = r"[ \-.()_/ーｰ･・の]"
_RUN = re.compile(rf"[0-9](?<![0-9][0-9])(?:{_SEPARATOR}{{0,3}}[0-9]){{6,}}")
_GROUP = re.compile(r"[0-9]+")
_TOKEN = re.compile(r"[0-9A-Za-z]*")
_HEX = re.compile(r"[0-9a-f]*|[0-9A-F]*")
_MOST_DIGITS = 19
_MOST_GROUPS = 8  # of one number in a longer run
_WINDOW = 40  # characters before a number in which its context is looked for
_AFTER = 16
_MANY = 16  # questions from which on it pays to see first which words there are at all

_CONTEXTS = {
    "my_number": "マイナンバー 個人番号 my·number mynumber individual·number",
    "licence": "免許 license licence",
    "passport": "パスポート 旅券 passport",
    "bank": "口座 普通預金 普通 当座 貯蓄 ゆうちょ 記号番号 =account =acct =accounts routing =iban sort·code",
    "phone": (
        "電話 でんわ =tel telephone phone mobile =cell 携帯 ケータイ スマホ"
        " =fax ファックス 連絡先 内線 直通 whatsapp =sms call·me call·us call·him call·her call·at dial"
        " reach·me reach·him reach·her reach·us =phones"
    ),
    "card": "カード =card =cards =visa mastercard =jcb amex クレジット =credit =debit クレカ",
    "social": "social·security =ssn",
    "other": (
        "注文 伝票 =order =orders 追跡 tracking invoice 請求書 受注 商品 =sku isbn =jan 型番 品番 管理番号"
        " 受付番号 チケット ticket serial version"
        " バージョン 部品 製造番号"
        " 会員番号 学籍番号 社員番号 =issue =build =commit timestamp =lot =doi"
    ),
}
_WORDS = tuple(
    (word.lstrip("=").replace("·", " "), word.startswith("="), what)
    for what, words in _CONTEXTS.items()
    for word in words.split()
)
"""Each word, whether it must stand alone, and what it calls the number beside it."""


class Surroundings:
    """What the words around a number call it. `lower` is the text with its ASCII letters in lower case."""

    def __init__(self, lower: str) -> None:
        self.lower = lower
        self._words = _WORDS
        self._questions = 0
        self._known: dict[tuple[int, int], str | None] = {}

    def name(self, start: int, end: int) -> str | None:
        """Of the nearest word before it, else of the first one after it."""
        self._questions += 1
        if self._questions == _MANY:
            self._words = tuple(word for word in _WORDS if word[0] in self.lower)
        key = (start, end)
        if key not in self._known:
            before = self.lower[max(0, start - _WINDOW) : start]
            after = self.lower[end : end + _AFTER]
            self._known[key] = self._nearest(before, last=True) or self._nearest(after, last=False)
        return self._known[key]

    def _nearest(self, window: str, *, last: bool) -> str | None:
        best: tuple[int, str] | None = None
        for word, alone, what in self._words:
            place = window.rfind(word) if last else window.find(word)
            if place < 0 or (alone and not _stands_alone(window, place, len(word))):
                continue
            distance = -(place + len(word)) if last else place
            if best is None or distance < best[0]:
                best = (distance, what)
        return best[1] if best else None


def _stands_alone(window: str, place: int, length: int) -> bool:
    beside = window[place - 1 : place] + window[place + length : place + length + 1]
    return not any("a" <= character <= "z" for character in beside)


_DATE = re.compile(r"(?:19|20)[0-9]{2}[\-./][01]?[0-9][\-./][0-3]?[0-9](?:[ /][0-2]?[0-9])?")
_JAPANESE = re.compile(
    r"0[5789]0\d{8}|0(?:120|570|990)\d{6}|0800\d{7}|0[1-9]\d{8}",
)
_JAPANESE_GROUPS = frozenset(
    {
        *((3, 4, 4), (3, 8), (7, 4), (11,)),  # mobile, IP, some toll-free
        *((4, 3, 3), (4, 6), (4, 2, 4), (4, 3, 4), (4, 7), (4, 2, 2, 2)),
        *((2, 4, 4), (2, 8), (3, 3, 4), (3, 7), (5, 1, 4), (5, 5), (6, 4), (10,)),
    }
)
_AMERICAN = re.compile(r"1?[2-9]\d\d[2-9]\d{6}")
_BEFORE_PLUS = re.compile(r"(?:^|[^0-9A-Za-z+])(?:\+|00)[ (]{0,2}$")


def numbers(text: str, lower: str) -> list[Span]:
    """`lower` is `text` with its ASCII letters in lower case."""
    spans: list[Span] = []
    around = Surroundings(lower)
    for run in _RUN.finditer(text):
        if _DATE.fullmatch(run[0]):
            continue
        groups = [match.span() for match in _GROUP.finditer(text, run.start(), run.end())]
        digits = sum(end - start for start, end in groups)
        most_groups = len(groups) if digits <= _MOST_DIGITS else _MOST_GROUPS
        covered = 0
        for first in range(len(groups)):
            found = _from(text, around, groups[first : first + most_groups], groups[first][0] < covered)
            covered = max((covered, *(end for _, end, _ in found)))
            spans += found
    return spans


def _from(text: str, around: Surroundings, groups: list[tuple[int, int]], inside: bool) -> list[Span]:
    """Everything that begins with the first group: of each kind the longest. `inside` another find only cards count:
    they must not survive beside a number that merely seems to begin earlier."""
    digits = ""
    sizes: list[int] = []
    found: dict[Kind, Span] = {}
    begin = groups[0][0]
    for start, end in groups:
        if len(digits) + end - start > _MOST_DIGITS:
            break
        digits += text[start:end]
        sizes.append(end - start)
        if len(digits) >= (13 if inside else 7):
            kind = _kind(text, around, begin, end, digits, tuple(sizes))
            if kind is not None:
                found[kind] = (_with_opening(text, begin, kind), end, kind)
    return list(found.values())


def _with_opening(text: str, begin: int, kind: Kind) -> int:
    """A phone number begins with its `+` or bracket."""
    while kind == "PHONE" and begin and text[begin - 1] in "+(":
        begin -= 1
    return begin


def _kind(text: str, around: Surroundings, start: int, end: int, digits: str, sizes: tuple[int, ...]) -> Kind | None:
    count = len(digits)
    if count >= 13 and check_digits.luhn(digits) and _card(text, around, start, end, digits):
        return "CARD"
    before, after = text[start - 1 : start], text[end : end + 1]
    if (before.isascii() and before.isalpha()) or (after.isascii() and after.isalpha()):
        return None  # a part of a name, a hash, a version
    if count <= 15 and _phone(text, around, start, end, digits, sizes):
        return "PHONE"
    if count == 9 and sizes == (3, 2, 4) and digits[:3] not in ("000", "666") and digits[0] != "9":
        return "SOCIAL_SECURITY"
    if 7 <= count <= 17:
        return _by_context(around, start, end, digits, sizes)
    return None


def _card(text: str, around: Surroundings, start: int, end: int, digits: str) -> bool:
    if text.count(".", start, end) == 1 and end - start == len(digits) + 1:
        return False  # a decimal number
    if check_digits.issued(digits) and len(digits) <= 16:
        return not _inside_token(text, start, end)
    return len(set(digits)) > 1 and around.name(start, end) == "card"


def _inside_token(text: str, start: int, end: int) -> bool:
    """Whether the digits are a piece of a longer word of letters and digits, such as a hash."""
    left = _TOKEN.match(text[max(0, start - 32) : start][::-1])
    right = _TOKEN.match(text[end : end + 32])
    around = (left[0] if left else "") + (right[0] if right else "")
    return len(around) >= 16 or (len(around) >= 4 and _HEX.fullmatch(around) is not None)


def _phone(text: str, around: Surroundings, start: int, end: int, digits: str, sizes: tuple[int, ...]) -> bool:
    if _BEFORE_PLUS.search(text, max(0, start - 4), start):
        return len(digits) >= 8 and digits[0] != "0"
    if re.search(r"[0-9A-Za-z][\-._/]$|[#$¥€£]$", text[max(0, start - 2) : start]) and not around.lower[
        max(0, start - 9) : start - 1
    ].endswith(("tel", "fax", "phone", "mobile")):
        return False
    if re.match(r"[\-._/][0-9A-Za-z]", text[end : end + 2]):
        return False
    grouped = len(sizes) > 1
    if _JAPANESE.fullmatch(digits) and sizes in _JAPANESE_GROUPS and "/" not in text[start:end]:
        return grouped or around.name(start, end) not in ("other", "bank", "my_number", "licence")
    if digits[0] == "0" and sizes in ((3, 4, 4), (5, 6), (4, 3, 4), (5, 3, 3)):
        return True  # British
    if digits.startswith("0081") and len(digits) >= 13:
        return True
    if _AMERICAN.fullmatch(digits) and sizes in ((3, 3, 4), (1, 3, 3, 4)) and "/" not in text[start:end]:
        return "_" not in text[start:end]
    return len(digits) <= 12 and len(sizes) <= 6 and around.name(start, end) == "phone" and _not_a_date(digits, sizes)


def _not_a_date(digits: str, sizes: tuple[int, ...]) -> bool:
    return not (len(digits) == 8 and digits[:2] in ("19", "20") and sizes in ((8,), (4, 2, 2)))


def _by_context(around: Surroundings, start: int, end: int, digits: str, sizes: tuple[int, ...]) -> Kind | None:
    if len(sizes) > _MOST_GROUPS - 2:
        return None
    count, what = len(digits), around.name(start, end)
    if what == "my_number" and count == 12 and check_digits.my_number(digits):
        return "MY_NUMBER"
    if what == "licence" and count == 12:
        return "LICENCE"
    if what == "passport" and count == 9:
        return "PASSPORT"
    if what == "social" and count == 9:
        return "SOCIAL_SECURITY"
    if what == "bank" and _not_a_date(digits, sizes):
        return "BANK_ACCOUNT"
    return None


_LETTERED = re.compile(
    r"(?<![0-9A-Za-z])(?:[A-Z]{2}[0-9]{7}|[A-Z][0-9]{8}|[A-Z]{1,3}[0-9][0-9A-Z\-]{4,14})(?![0-9A-Za-z])"
)
_LETTERED_PASSPORT = re.compile(r"[A-Z]{1,2}[0-9]{6,8}")
_IBAN = re.compile(r"[A-Z](?<![0-9A-Za-z].)[A-Z][0-9]{2}(?: ?[0-9A-Z]{4}){2,7}(?: ?[0-9A-Z]{1,4})?(?![0-9A-Za-z])")
_SHORT_ACCOUNT = re.compile(
    r"(?:口座番号|口座|普通預金|(?:普通|当座)(?=[ :(]|口座|預金)|ゆうちょ[^0-9\n]{0,6}|記号)"
    r"[ :はが(番号)]{0,6}[0-9]{4,8}(?:[ -][0-9]{1,8})?(?![0-9])"
    r"|(?:銀行|信用金庫|信金|信組|農協)[^\n。0-9]{0,20}(?:支店|本店|出張所)[^\n。0-9]{0,12}[0-9]{6,8}(?![0-9])"
)
_DIGITS_AT_END = re.compile(r"[0-9][0-9 \-]*$")


def lettered(text: str, lower: str) -> list[Span]:
    """Numbers with letters or with a bank's name: passports, licences, IBAN, Japanese accounts."""
    spans: list[Span] = []
    if "旅券" in lower or "パスポート" in lower or "passport" in lower or "licen" in lower or "免許" in lower:
        around = Surroundings(lower)
        for match in _LETTERED.finditer(text):
            what = around.name(*match.span())
            if what == "passport" and _LETTERED_PASSPORT.fullmatch(match[0]):
                spans.append((match.start(), match.end(), "PASSPORT"))
            elif what == "licence":
                spans.append((match.start(), match.end(), "LICENCE"))
    for match in _IBAN.finditer(text):
        length = _iban_length(match[0])
        if length:
            spans.append((match.start(), match.start() + length, "BANK_ACCOUNT"))
    if "口座" in text or "銀行" in text or "信用金庫" in text or "信金" in text or "普通" in text or "ゆうちょ" in text:
        for match in _SHORT_ACCOUNT.finditer(text):
            number = _DIGITS_AT_END.search(match[0])
            if number is not None:
                spans.append((match.start() + number.start(), match.end(), "BANK_ACCOUNT"))
    return spans


def _iban_length(text: str) -> int:
    """How much of the text is an IBAN: the last words may belong to what follows."""
    while text:
        if check_digits.iban(text.replace(" ", "")):
            return len(text)
        text = text.rpartition(" ")[0]
    return 0
