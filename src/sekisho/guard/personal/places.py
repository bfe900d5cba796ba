"""E-mail addresses, postal codes, addresses, dates of birth."""

import re

from sekisho.guard.personal.found import Span

_AT = re.compile(r"@(?<=[A-Za-z0-9._%+'\-]@)(?=[A-Za-z0-9\-])")
_LOCAL_REVERSED = re.compile(r"[A-Za-z0-9_%+\-](?:[A-Za-z0-9._%+'\-]{0,63})")
_DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9\-]{0,62})\.){1,8}([A-Za-z]{2,24})(?![A-Za-z0-9])")
_FILE_ENDINGS = frozenset(
    {
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "css",
        "js",
        "ts",
        "json",
        "html",
        "md",
        "txt",
        "py",
        "so",
        "dll",
        "exe",
        "service",
    }
)
_NO_PEOPLE = frozenset({"git"})


def emails(text: str) -> list[Span]:
    spans: list[Span] = []
    for at in _AT.finditer(text):
        domain = _DOMAIN.match(text, at.end())
        if domain is None or domain[1].lower() in _FILE_ENDINGS:
            continue
        local = _LOCAL_REVERSED.match(text[max(0, at.start() - 65) : at.start()][::-1])
        if local is None:
            continue
        start = at.start() - local.end()
        while text[start] in ".'":
            start += 1
        if text[start : at.start()] not in _NO_PEOPLE:
            spans.append((start, domain.end(), "EMAIL"))
    return spans


_PREFECTURES = (
    "北海道|青森県|岩手県|宮城県|秋田県|山形県|福島県|茨城県|栃木県|群馬県|埼玉県|千葉県|東京都|神奈川県|新潟県|富山県|石川県|福井県"
    "|山梨県|長野県|岐阜県|静岡県|愛知県|三重県|滋賀県|京都府|大阪府|兵庫県|奈良県|和歌山県|鳥取県|島根県|岡山県|広島県|山口県|徳島県"
    "|香川県|愛媛県|高知県|福岡県|佐賀県|長崎県|熊本県|大分県|宮崎県|鹿児島県|沖縄県"
)
_DASH = r"[\-ー－の]"
_COUNT = r"(?:[0-9]{1,5}|[一二三四五六七八九十百〇]{1,5})"
_HOUSE = (
    rf"(?:{_COUNT} ?(?:丁目|番地の?|番町?|号|番)"
    rf"(?: ?(?:{_COUNT}(?: ?(?:番地の?|番|号室?|号)"
    rf"|(?:{_DASH}[0-9]{{1,5}}){{0,3}}(?:号室?)?)|{_DASH}[0-9]{{1,5}})){{0,4}}"
    rf"|[0-9]{{1,5}}(?:{_DASH}[0-9]{{1,5}}){{1,4}}(?:号室?)?)"
)
_BUILDING = (
    r"(?:[ ]?[^\s0-9、。,()「」]{1,20}(?:マンション|ビル|ハイツ|コーポ|荘"
    r"|アパート|タワー|レジデンス|ハウス|メゾン[^\s0-9、。,]{0,10}|団地)"
    r"(?:[ ]?[0-9A-Z\-]{1,6}(?:号室|号棟|号|階|F)?){0,2}|[ ][0-9]{1,5}(?:号室|号))?"
)
_TOWN = r"(?:[^\s0-9、。,:;(「」!?]{1,10}?[市区郡町村]){1,3}"
_QUARTER = r"(?:大字)?[^\s0-9、。,:;(「」!?はをがにで]{0,14}?"
_JAPANESE = re.compile(rf"(?:{_PREFECTURES}) ?{_TOWN} ?{_QUARTER} ?{_HOUSE}{_BUILDING}")
_PREFECTURE_END = re.compile("[都道府県]")
_PREFECTURE_NAMES = frozenset(_PREFECTURES.split("|"))
_PART_NAMES = re.compile("丁目|番地|号室|[0-9](?:番[0-9]|(?<=[^\\x00-\\x7f].)[0-9]{0,4}-[0-9]{1,5}(?:-[0-9]{1,5})?)")
_WITHOUT_PREFECTURE = re.compile(
    rf"(?:[一-鿿ヶケ々ぁ-んァ-ヴ]{{1,6}}?[市区郡]|[一-鿿ヶケ々]{{1,5}}[町村])[^\s0-9、。,:;(「」!?はをがで]{{0,16}}?{_HOUSE}{_BUILDING}"
)
_TOWN_START = re.compile(r"[一-鿿ヶケ々ぁ-んァ-ヴー]{1,24}[0-9 ]{0,4}$")
_ADDRESS_WORD = re.compile(
    r"(?:住所|居所|所在地|送付先|届け先|お届け先)[ ]?[:はが][ ]?"
    r"([^\s。、,]{3,60}[0-9一二三四五六七八九十](?:丁目|番地?|号室?|[\-][0-9]+)*[^\s。、,はがにをで]{0,12})"
)

_POSTAL_MARK = re.compile(r"〒 ?[0-9]{3}[\-ー ]?[0-9]{4}(?![0-9])")
_POSTAL_WORD = re.compile(
    r"(?:郵便番号|postal code|post code|postcode|zip code|zip)"
    r"(?:[ :はが#]|is){0,5}"
    r"([0-9]{3}[\-ー ]?[0-9]{4}|[0-9]{5}(?:-[0-9]{4})?"
    r"|[A-Za-z]{1,2}[0-9][0-9A-Za-z]? ?[0-9][A-Za-z]{2})(?![0-9A-Za-z])"
)
_POSTAL_BEFORE = re.compile(rf"(?<![0-9\-])[0-9]{{3}}-[0-9]{{4}}(?=[ ,、\n]{{0,3}}(?:{_PREFECTURES}))")

_WAY = (
    "Street|St|Avenue|Ave|Boulevard|Blvd|Road|Rd|Lane|Ln|Drive|Dr|Court|Ct|Way|Place|Pl|Terrace|Ter|Parkway|Pkwy|Highway|Hwy"
    "|Square|Sq|Circle|Cir|Trail|Close|Crescent|Row|Broadway"
)
_AMERICAN = re.compile(
    r"[0-9](?<![0-9A-Za-z.,].)[0-9]{0,5}(?:-[0-9]{1,4})?[A-Z]? (?:[NSEW]{1,2}\.? |North |South |East |West )?"
    rf"(?:(?:[A-Z][A-Za-z'\-]{{1,20}}|[0-9]{{1,3}}(?:st|nd|rd|th))\.? ){{1,4}}?"
    rf"(?:{_WAY})(?![A-Za-z])\.?(?: (?:NW|NE|SW|SE|[NSEW])(?![A-Za-z]))?"
    r"(?:,? (?:Apt|Apartment|Suite|Ste|Unit|Floor|Fl|#)\.? ?#?[0-9A-Za-z\-]{1,6})?"
    r"(?:,? [A-Z][A-Za-z]{1,20}(?: [A-Z][A-Za-z]{1,20}){0,2})?"
    r"(?:,? [A-Z]{2}(?![A-Za-z])(?: [0-9]{5}(?:-[0-9]{4})?(?![0-9]))?)?"
)
_BOX = re.compile(r"P\.? ?O\.? Box [0-9]{1,8}")


def addresses(text: str, lower: str) -> list[Span]:
    """Postal codes and addresses. An address has a house number: a town alone is none."""
    spans: list[Span] = [(match.start(), match.end(), "ADDRESS") for match in _AMERICAN.finditer(text)]
    if "Box" in text:
        spans += [(match.start(), match.end(), "ADDRESS") for match in _BOX.finditer(text)]
    if "郵便" in lower or "zip" in lower or "post" in lower:
        spans += [(match.start(1), match.end(1), "POSTAL_CODE") for match in _POSTAL_WORD.finditer(lower)]
    if text.isascii():
        return spans
    if "〒" in text:
        spans += [(match.start(), match.end(), "POSTAL_CODE") for match in _POSTAL_MARK.finditer(text)]
    if "住所" in text or "所在地" in text or "届け先" in text or "送付先" in text or "居所" in text:
        spans += [(match.start(1), match.end(1), "ADDRESS") for match in _ADDRESS_WORD.finditer(text)]
    for match in _PREFECTURE_END.finditer(text):
        end = match.end()
        length = next((size for size in (3, 4) if text[end - size : end] in _PREFECTURE_NAMES), 0) if end > 2 else 0
        address = _JAPANESE.match(text, end - length) if length else None
        if address is not None:
            spans.append((address.start(), address.end(), "ADDRESS"))
    if "-" in text:
        spans += [(match.start(), match.end(), "POSTAL_CODE") for match in _POSTAL_BEFORE.finditer(text)]
    return spans + _without_prefecture(text)


def _without_prefecture(text: str) -> list[Span]:
    spans: list[Span] = []
    done = 0
    for part in _PART_NAMES.finditer(text):
        if part.start() < done:
            continue
        floor = max(done, part.start() - 28)
        before = _TOWN_START.search(text, floor, part.start())
        begin = before.start() if before else part.start()
        address = _WITHOUT_PREFECTURE.search(text, begin, part.end() + 60)
        if address is not None and address.start() <= part.start() < address.end():
            spans.append((address.start(), address.end(), "ADDRESS"))
            done = address.end()
    return spans


_MONTH = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|"
    "aug(?:ust)?|sep(?:t(?:ember)?)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?"
)
_ERA = "昭和|平成|令和|大正|明治|[shrt](?=[0-9]{1,2}[年./])"
_DATE = (
    rf"(?:(?:(?:{_ERA})[0-9元]{{1,2}}|(?:18|19|20)[0-9]{{2}}) ?年 ?[0-9]{{1,2}} ?月 ?[0-9]{{1,2}} ?日?"
    rf"|(?:{_ERA})[0-9]{{1,2}}[./][0-9]{{1,2}}[./][0-9]{{1,2}}"
    r"|(?:18|19|20)[0-9]{2}[/.\- ][0-9]{1,2}[/.\- ][0-9]{1,2}|(?:19|20)[0-9]{6}(?![0-9])"
    r"|[0-9]{1,2}[/.\-][0-9]{1,2}[/.\-](?:(?:18|19|20)[0-9]{2}|[0-9]{2})(?![0-9])"
    rf"|(?:{_MONTH})\.? [0-9]{{1,2}}(?:st|nd|rd|th)?,? (?:18|19|20)[0-9]{{2}}"
    rf"|[0-9]{{1,2}}(?:st|nd|rd|th)?(?: of)? (?:{_MONTH})\.?,? (?:18|19|20)[0-9]{{2}})"
)
_BIRTH_BEFORE = re.compile(
    r"(?:生年月日|誕生日|生まれた日|出生日|date of birth|birth ?date|birthday"
    r"|(?<![a-z])d\.?o\.?b\.?(?![a-z])|(?<![a-z])born(?: on)?)"
    rf"[\"']?[ :=はがis\"'、,\(]{{0,8}}({_DATE})"
)
_BIRTH_AFTER = re.compile(rf"(?<![0-9])({_DATE})(?= ?\(?[^0-9\n。]{{0,4}}(?:生まれ|生れ|出生|誕生|生(?![一-鿿ぁ-ん])))")


def births(lower: str) -> list[Span]:
    """Dates that are called dates of birth."""
    spans: list[Span] = []
    if "生" in lower or "birth" in lower or "dob" in lower or "born" in lower or "d.o.b" in lower:
        spans += [(match.start(1), match.end(1), "BIRTH_DATE") for match in _BIRTH_BEFORE.finditer(lower)]
        if "生" in lower:
            spans += [(match.start(1), match.end(1), "BIRTH_DATE") for match in _BIRTH_AFTER.finditer(lower)]
    return spans
