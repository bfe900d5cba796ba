"""Names of people: by honorific or title, by the words before them, and by surname with given name."""

import re

from sekisho.guard.personal.found import Span
from sekisho.guard.personal.name_lists import (
    ENGLISH_GIVEN_NAMES,
    ENGLISH_SURNAMES,
    JAPANESE_GIVEN_NAMES,
    JAPANESE_READINGS,
    JAPANESE_SURNAMES,
    NO_NAME_BEFORE,
    NO_NAMES,
    NOT_GIVEN,
)

_HONORIFIC = re.compile(
    "さん(?![ま馬])|さま(?![ざ])|様(?![々子式相態])|氏(?![名族神子])|先生|殿(?![堂下])|くん|君|ちゃん|部長|課長|社長|係長|主任|教授|弁護士|医師|選手|議員|容疑者|被告"
)
_BEFORE_KANJI = re.compile(r"[一-鿿々ヶケ]{1,8}(?: [一-鿿々]{1,4})?")
_BEFORE_KATAKANA = re.compile(r"[ァ-ヺー・]{2,20}")
_BEFORE_HIRAGANA = re.compile(r"[ぁ-ん]{2,8}")
_BEFORE_LATIN = re.compile(r"[A-Za-z'\-]{2,20}(?: [A-Za-z'\-]{1,20})?(?![A-Za-z])")
_TITLE = re.compile(
    "(?:部長|課長|社長|係長|専務|常務|会長|教授|准教授|医師|選手|議員|弁護士|監督|主任|店長|社員|容疑者|被告|代表|理事|取締役)$"
)
_LONGEST_GIVEN = 3
_WINDOW = 24

_PAIR_FIRST = "".join(sorted({name[0] for name in JAPANESE_SURNAMES}))
_PAIR_SECOND = "".join(sorted({name[1] for name in JAPANESE_SURNAMES if len(name) > 1}))
_PAIR = re.compile(f"[{_PAIR_FIRST}](?=[{_PAIR_SECOND}])")
_SHORT_SURNAME = re.compile(f"[{''.join(name for name in JAPANESE_SURNAMES if len(name) == 1)}](?= [一-鿿])")
_LONGEST_SURNAME = max(map(len, JAPANESE_SURNAMES))
_LONGEST_GIVEN_LISTED = max(map(len, JAPANESE_GIVEN_NAMES))
_HIRAGANA_NAMES = JAPANESE_READINGS | JAPANESE_GIVEN_NAMES
_SAYS_NAME = re.compile("(?: ?[一-鿿]{1,3})?(?:と(?:申します|申し|いいます|言います|いう者|名乗)|です(?=[。、!\n]|$))")
_INTRODUCED = re.compile(
    "(?:私は|わたしは|僕は|俺は|担当の|担当は|担当者は|担当:|名前は|名義は|宛名は|申します、|人は) ?$"
)
_FIELD = re.compile(
    r"(?:氏名|お名前|名前|名義|宛名|担当者|契約者|患者名|受取人|申込者|署名|フリガナ|ふりがな)[ \"']{0,2}:[ \"']{0,3}"
    r"([一-鿿々ヶケぁ-んァ-ヺー]{1,8}(?: [一-鿿々ヶケぁ-んァ-ヺー]{1,8})?"
    r"|[A-Z][A-Za-z'\-]{1,20} [A-Z][A-Za-z'\-]{1,20})"
)

_CAPITAL = r"(?:[A-Z][a-z]+(?:[A-Z][a-z]+)?|O'[A-Z][a-z]+|Ma?c[A-Z][a-z]+)(?:-[A-Z][a-z]+)?"
_ENGLISH_TITLE = re.compile(
    rf"(?:Mr|Mrs|Ms|Miss|Dr|Prof|Professor|Doctor|Mx)"
    rf"(?:\. ?| )({_CAPITAL}(?:(?: [A-Z]\.)? {_CAPITAL}){{0,2}})"
)
_ENGLISH_PAIR = re.compile(rf"([A-Z](?<![A-Za-z].)[a-z]{{1,14}})(?= (?:[A-Z]\. )?({_CAPITAL}))")
_SAYING = (
    "name is",
    "name:",
    "Name:",
    "atient:",
    "ustomer:",
    "mployee:",
    "ontact:",
    "igned:",
    "igned by",
    "incerely,",
    "egards,",
    "all me",
    "am called",
)
_SAID = re.compile(rf"\s{{1,2}}({_CAPITAL}(?:(?: [A-Z]\.)? {_CAPITAL}){{0,2}})")
_NO_TITLED = frozenset({"Pepper", "Who", "President", "Speaker", "Chairman", "Robot", "Strangelove", "Bean", "Watson"})
_NO_SAID = frozenset(
    {"The", "This", "Please", "Not", "Unknown", "None", "Required", "Optional", "My", "Your", "Team", "Support"}
)


def names(text: str) -> list[Span]:
    """A name without its honorific."""
    spans = _english(text)
    if text.isascii():
        return spans
    for honorific in _HONORIFIC.finditer(text):
        start = _before(text, honorific.start(), honorific[0])
        if start is not None:
            spans.append((start, honorific.start(), "NAME"))
    for field in _FIELD.finditer(text):
        if not field[1].startswith(tuple(NOT_GIVEN)):
            spans.append((field.start(1), field.end(1), "NAME"))
    return spans + _listed(text)


def _before(text: str, end: int, honorific: str) -> int | None:
    """Where the name before an honorific begins."""
    window = text[max(0, end - _WINDOW) : end]
    trimmed = window.rstrip(" ")
    if not trimmed or len(window) - len(trimmed) > 1:
        return None
    end -= len(window) - len(trimmed)
    reversed_window = trimmed[::-1]
    last = trimmed[-1]
    if "一" <= last <= "鿿" or last in "々ヶケ":
        match = _BEFORE_KANJI.match(reversed_window)
        return None if match is None else _kanji(text, end - match.end(), end, honorific)
    if honorific not in ("さん", "さま", "様", "氏", "先生", "くん", "君", "ちゃん", "選手", "容疑者"):
        return None
    if "ァ" <= last <= "ヺ" or last == "ー":
        match = _BEFORE_KATAKANA.match(reversed_window)
        word = match[0][::-1].strip("・") if match else ""
        return end - len(word) if len(word) > 1 and word not in NO_NAMES else None
    if "ぁ" <= last <= "ん":
        match = _BEFORE_HIRAGANA.match(reversed_window)
        word = match[0][::-1] if match else ""
        known = next((size for size in range(len(word), 2, -1) if word[-size:] in _HIRAGANA_NAMES), 0)
        return end - known if known else None
    if last.isascii() and last.isalpha():
        match = _BEFORE_LATIN.match(reversed_window)
        if match is None:
            return None
        words = match[0][::-1]
        if not words[0].isupper():
            words = words.rpartition(" ")[2]
        return end - len(words) if words[:1].isupper() and not words.isupper() else None
    return None


def _kanji(text: str, start: int, end: int, honorific: str) -> int | None:
    run = text[start:end]
    title = _TITLE.search(run)
    if title is not None and title.start():
        run = run[: title.start()]
    for first in range(len(run)):
        surname = surname_at(run, first)
        if surname:
            rest = run[first + surname :].lstrip(" ")
            if len(rest) <= _LONGEST_GIVEN and (surname > 1 or not rest or rest != run[first + surname :]):
                if surname == 1 and first and run[first - 1] != " ":
                    continue
                return start + first
    word = run.rpartition(" ")[2] if " " in run else run
    stop = NO_NAME_BEFORE.get({"さま": "様"}.get(honorific, honorific))
    if stop is None or not 2 <= len(word) <= 4 or word[-1] in stop or word in NO_NAMES or title is not None:
        return None
    if any(word.endswith(name) for name in NO_NAMES):
        return None
    return end - len(word)


def surname_at(text: str, start: int) -> int:
    """The length of the longest surname of the list that begins there; 0: none does."""
    for length in range(_LONGEST_SURNAME, 0, -1):
        if text[start : start + length] in JAPANESE_SURNAMES and start + length <= len(text):
            return length
    return 0


def _listed(text: str) -> list[Span]:
    """A surname with a given name, or a surname that somebody gives as theirs."""
    spans: list[Span] = []
    starts = [match.start() for match in _PAIR.finditer(text)]
    starts += [match.start() for match in _SHORT_SURNAME.finditer(text)]
    for start in starts:
        surname = surname_at(text, start)
        if not surname:
            continue
        after = start + surname
        gap = 1 if text[after : after + 1] == " " else 0
        given = next(
            (
                n
                for n in range(_LONGEST_GIVEN_LISTED, 0, -1)
                if text[after + gap : after + gap + n] in JAPANESE_GIVEN_NAMES
            ),
            0,
        )
        following = text[after + gap + given : after + gap + given + 1]
        if given and (given > 1 or gap or not _kanji_like(following)):
            spans.append((start, after + gap + given, "NAME"))
            continue
        says = _SAYS_NAME.match(text, after)
        if says is not None and (
            "申" in says[0] or "い" in says[0] or _INTRODUCED.search(text[max(0, start - 6) : start])
        ):
            spans.append(
                (start, says.end() - len(says[0].lstrip(" ")) if says[0][:1] not in "と で" else after, "NAME")
            )
    return spans


def _kanji_like(character: str) -> bool:
    return "一" <= character <= "鿿"


def _english(text: str) -> list[Span]:
    spans: list[Span] = []
    for match in _ENGLISH_PAIR.finditer(text):
        if match[1] in ENGLISH_GIVEN_NAMES and (
            match[2] in ENGLISH_SURNAMES or match[2].rpartition("-")[2] in ENGLISH_SURNAMES
        ):
            spans.append((match.start(), match.end(2), "NAME"))
    if (
        "Mr" in text
        or "Ms" in text
        or "Miss" in text
        or "Mx" in text
        or "Dr" in text
        or "Prof" in text
        or "Doctor" in text
    ):
        for match in _ENGLISH_TITLE.finditer(text):
            inside_word = text[match.start() - 1 : match.start()].isalpha()
            if not inside_word and match[1].partition(" ")[0] not in _NO_TITLED:
                spans.append((match.start(1), match.end(1), "NAME"))
    for phrase in _SAYING:
        place = text.find(phrase)
        while place >= 0:
            said = _SAID.match(text, place + len(phrase))
            if said is not None and said[1].partition(" ")[0] not in _NO_SAID:
                spans.append((said.start(1), said.end(1), "NAME"))
            place = text.find(phrase, place + len(phrase))
    return spans
