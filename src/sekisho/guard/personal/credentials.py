"""Secrets: keys of vendors, private keys, bearer tokens, passwords, connection strings.

A key that was cut off counts from 12 characters on, its known beginning included.
"""

import re

from sekisho.guard.personal.found import Kind, Span

_SHORTEST = 12
_TAIL = r"(?:(?:\.{3}|…)[A-Za-z0-9_\-]{2,})?"  # a preview that shows the end as well


def _key(prefix: str, characters: str = r"A-Za-z0-9_\-") -> tuple[str, re.Pattern[str]]:
    body = max(_SHORTEST - len(prefix), 1)
    return prefix, re.compile(rf"(?<![A-Za-z0-9]){re.escape(prefix)}[{characters}]{{{body},}}{_TAIL}")


_KEYS = (
    *(_key(f"sk-{vendor}-") for vendor in ("ant", "proj", "svcacct", "admin", "sekisho", "or", "lf", "None")),
    *(_key(prefix, "A-Z0-9") for prefix in ("AKIA", "ASIA", "ABIA", "ACCA")),
    *(_key(prefix) for prefix in ("AIza", "GOCSPX-")),
    _key("ya29.", r"A-Za-z0-9_.\-"),
    *(_key(prefix, "A-Za-z0-9_") for prefix in ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_")),
    *(_key(prefix) for prefix in ("glpat-", "gldt-", "glrt-", "glptt-", "glcbt-", "glsoat-")),
    *(_key(f"xox{letter}-") for letter in "abeoprs"),
    _key("xapp-"),
    *(_key(f"{kind}_{mode}_", "A-Za-z0-9") for kind in ("sk", "rk", "pk") for mode in ("live", "test")),
    _key("whsec_", "A-Za-z0-9+/="),
    _key("hf_", "A-Za-z0-9"),
    *(_key(prefix, "A-Za-z0-9") for prefix in ("gsk_", "npm_", "r8_", "xai-", "pplx-", "dop_v1_")),
    *(_key(prefix) for prefix in ("nvapi-", "pypi-", "dckr_pat_", "shpat_", "SG.")),
    _key("AGE-SECRET-KEY-1", "A-Z0-9"),
    ("hooks.slack.com/", re.compile(r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_\-]+")),
)
_MARKED_KEYS = {
    mark: tuple(key for key in _KEYS if key[0].endswith(mark) or key[0].startswith("AGE" + mark)) for mark in "-_"
}
_MARKS = {mark: re.compile(mark) for mark in _MARKED_KEYS}
_MARK_ENDINGS = {mark: ("AGE-", *(key[0] for key in keys)) for mark, keys in _MARKED_KEYS.items()}
"""Prose has few hyphens and underlines; what stands before them tells whether it is worth to search for each prefix."""
_OTHER_KEYS = tuple(key for key in _KEYS if not any(key in keys for keys in _MARKED_KEYS.values()))
_BARE_SK = re.compile(rf"(?<![A-Za-z0-9])sk-(?=([A-Za-z0-9_\-]{{9,}}))\1{_TAIL}")
_LIKE_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])|(?=.*[a-z])(?=.*[A-Z])|^[A-Za-z0-9]{20}", re.DOTALL)
_JWT = re.compile(r"(?<![A-Za-z0-9_\-])eyJ[A-Za-z0-9_\-]{9,}(?:\.[A-Za-z0-9_\-]*){0,4}")
_AWS_SECRET = re.compile(
    r"(?<![A-Za-z0-9/+=])(?=[A-Za-z/+]*[0-9])(?=[a-z0-9/+]*[A-Z])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])"
)

_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-{0,5}")
_END = re.compile(r"-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-{0,5}")
_PEM_REST = re.compile(
    r"(?:\s|\\[nr]|(?:Proc-Type|DEK-Info|Version|Comment):[^\n\\]*)*(?:[A-Za-z0-9+/=]{8,}(?:\s|\\[nr])*)*"
)
_PEM_LAST = re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/=]{1,7}(?=\s*\Z)")
_PEM_LONGEST = 16_384
_PEM_BEFORE = re.compile(r"\s*[A-Za-z0-9+/=]*(?:\s+[A-Za-z0-9+/=]{8,})*")  # on the reversed text

_BEARER = re.compile(r"(?<![A-Za-z0-9])(?:[Bb]earer|BEARER|[Bb]asic|Token)[ \t:]{1,3}([A-Za-z0-9._~+/\-]{12,}=*)")
_SCHEME_REVERSED = re.compile(r"[A-Za-z0-9+.\-]{1,30}")
_URL = re.compile(
    r"://[^\s/@:\"'<>\[\]]{0,200}:(?!\[[A-Z_]+_\d+\])[^\s/@\"'<>]{1,200}@"
    r"[^\s\"'<>、。]{1,300}"
)
_WORD = re.compile(
    r"(?:passwords?|passwd|passphrase|passcode|(?<![a-z])pwd|(?<![a-z])pass(?=[ \t]?[=:])|secrets?"
    r"|(?<![a-z])pin(?=(?: code| number)?[ \t]?(?:[=:]|is ))"
    r"|credentials?|access[_-]?key|account[_-]?key|api[_ -]?keys?|apikey|auth[_-]?key|client[_-]?secret|token"
    r"|パスワード|パスフレーズ|暗証番号|秘密の合言葉|アクセスキー|apiキー|シークレット(?:キー)?)"
    r"(?:[_-]?(?:key|access[_-]key|id|code|number|text))?"
)
_JOINT = re.compile(
    r"[\"'`]?[ \t]{0,4}(=>|[=:]{1,2}|は、?|が|is:?(?=[ \"'])|was(?=[ \"']))[ \t]{0,4}(?:\n[ \t]{0,4})?"
    r"(?:([\"'`「『])([^\"'`」』\n]{1,200})|([^\s\"'`、。」』]{1,200}))"
)
_NO_VALUE = re.compile(
    r"\[[A-Z_]+_\d+\].*|[*•●x.…_\-]+|\$\{.*|\$\(.*|\$?[A-Z_]+|\{.*|<[^>]*>?|%\(.*|%\w+%?|[A-Za-z_.]+[(\[].*|(?:none|null|nil|undefined|true|false|str|string|int|bool|bytes|text|any|optional"
    r"|required|empty|input|self|os|env|process|config|settings|args|request|options?|params|props|this|data|user|field|value"
    r"|secret|password|token|key|hidden|redacted|type|the|a|an|not|must|should|too|in|at|for|and|or|to|of|wrong|incorrect|invalid"
    r"|expired|missing|changed|correct|weak|strong|safe|stored|hashed|encrypted|protected|reset|sent|set|unknown|length|char"
    r"|varchar)(?:[.?!].*)?",
    re.IGNORECASE,
)
_STRONG = ("passw", "pwd", "passphrase", "passcode", "pass", "pin", "パス", "暗証", "合言葉")


def credentials(text: str, lower: str) -> list[Span]:
    """`lower` is `text` with its ASCII letters in lower case."""
    spans: list[Span] = []
    keys_to_try = _OTHER_KEYS
    for mark, keys in _MARKED_KEYS.items():
        if any(text.endswith(_MARK_ENDINGS[mark], 0, match.end()) for match in _MARKS[mark].finditer(text)):
            keys_to_try += keys
    for prefix, pattern in keys_to_try:
        if prefix in text:
            spans += [(match.start(), match.end(), "API_KEY") for match in pattern.finditer(text)]
    if "sk-" in text:
        found = (match for match in _BARE_SK.finditer(text) if _LIKE_RANDOM.match(match[1]))
        spans += [(match.start(), match.end(), "API_KEY") for match in found]
    if "eyJ" in text:
        spans += [(match.start(), match.end(), "TOKEN") for match in _JWT.finditer(text)]
    if "PRIVATE KEY" in text:
        spans += _private_keys(text)
    if "aws" in lower or "AKIA" in text or "ASIA" in text:
        spans += [(match.start(), match.end(), "API_KEY") for match in _AWS_SECRET.finditer(text)]
    if "earer" in text or "asic " in text or "BEARER" in text or "Token" in text:
        spans += [
            (match.start(1), match.end(1), "TOKEN")
            for match in _BEARER.finditer(text)
            if len(match[1]) >= 24 or any(c.isdigit() for c in match[1])
        ]
    if "://" in text and "@" in text:
        spans += _connections(text)
    if any(word in lower for word in _WORDS):
        spans += _named(text, lower)
    return spans


def _connections(text: str) -> list[Span]:
    spans: list[Span] = []
    for match in _URL.finditer(text):
        scheme = _SCHEME_REVERSED.match(text[max(0, match.start() - 30) : match.start()][::-1])
        if scheme is not None:
            spans.append((match.start() - scheme.end(), match.end(), "CONNECTION"))
    return spans


_WORDS = (
    "pass",
    "pwd",
    "secret",
    "pin",
    "credential",
    "key",
    "token",
    "パス",
    "暗証",
    "合言葉",
    "アクセスキー",
    "シークレット",
)


def _named(text: str, lower: str) -> list[Span]:
    """Values after a word that names them: `password=…`, `パスワードは…です`."""
    spans: list[Span] = []
    for word in _WORD.finditer(lower):
        joint = _JOINT.match(text, word.end())
        if joint is None:
            continue
        group = 3 if joint[3] is not None else 4
        value, strong = joint[group], word[0].startswith(_STRONG)
        start, end = joint.start(group), joint.end(group)
        if group == 4 and _RULE.match(text, start):
            continue  # it speaks of passwords
        if group == 4:
            value = _without_ending(value)
            end = start + len(value)
        if _is_value(value, quoted=group == 3, strong=strong, joint=joint[1]):
            kind: Kind = "PASSWORD" if strong else "API_KEY"
            spans.append((start, end, kind))
    return spans


_RULE = re.compile("[0-9]+ ?(?:文字|桁|字|回|個|種類|年|日|か月|ヶ月|分|characters|chars|digits|letters)")
_ENDING = re.compile(r"[぀-ヿ一-鿿].*", re.DOTALL)


def _without_ending(value: str) -> str:
    """An unquoted value ends where Japanese prose begins, or with the sentence."""
    if value[:1].isascii():
        value = _ENDING.sub("", value)
    return value.rstrip(".!?:,;)}]")


def _is_value(value: str, *, quoted: bool, strong: bool, joint: str) -> bool:
    if not value or _NO_VALUE.fullmatch(value):
        return False
    if not strong and len(value) < 8:
        return False
    if not value.isascii():
        return quoted and strong and joint in ("=", ":", "は") and " " not in value
    if " " in value:
        return False
    digits = any(c.isdigit() for c in value)
    odd = any(not c.isalnum() and c not in "-_./" for c in value)
    mixed = not value.islower() and not value.istitle() and not value.isupper()
    if strong:
        return (
            digits
            or odd
            or mixed
            or quoted
            or (joint == "=" and len(value) >= 4)
            or (joint == "は" and len(value) >= 4)
        )
    return (digits and len(value) >= 12) or (digits and (quoted or mixed)) or (quoted and len(value) >= 12 and mixed)


def _private_keys(text: str) -> list[Span]:
    """PEM blocks, also those whose beginning or end is missing."""
    spans: list[Span] = []
    done = 0
    for begin in _BEGIN.finditer(text):
        if begin.start() < done:
            continue
        end = _END.search(text, begin.end(), begin.end() + _PEM_LONGEST)
        following = _BEGIN.search(text, begin.end(), begin.end() + _PEM_LONGEST)
        if end is not None and (following is None or end.start() < following.start()):
            done = end.end()
        else:
            rest = _PEM_REST.match(text, begin.end())
            done = rest.end() if rest else begin.end()
            if not text[begin.end() : done].strip("\\nr \n\t"):
                continue  # somebody speaks of the header
            last = _PEM_LAST.match(text, done)
            done = last.end() if last else done
        spans.append((begin.start(), done, "PRIVATE_KEY"))
    for end in _END.finditer(text):
        if end.start() < done:
            continue
        before = _PEM_BEFORE.match(text[max(done, end.start() - 4096) : end.start()][::-1])
        length = before.end() if before else 0
        if length >= _SHORTEST:
            spans.append((end.start() - length, end.end(), "PRIVATE_KEY"))
        done = end.end()
    return spans
