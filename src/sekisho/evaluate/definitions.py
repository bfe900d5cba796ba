"""What a figure is called, what it means, where it belongs, and how its value is written. In English and Japanese.

The texts are in `definitions.yaml`. An id that no pattern fits keeps its raw id as its name.
"""

import math
import re
from functools import cache
from importlib import resources
from typing import Literal, get_args

import msgspec
import yaml

from sekisho.evaluate.figures import Figure, Interval, Unit

Words = tuple[str, str]
"""English, Japanese."""

Language = Literal["en", "ja"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

Group = Literal[
    "gates", "speed", "cold", "continuity", "sessions", "rubric", "safety", "stability", "cost", "machine",
    "comparison", "other",
]  # fmt: skip

GROUPS: dict[Group, Words] = {
    "gates": ("API gates", "API ゲート"),
    "speed": ("Speed under load", "負荷時の速度"),
    "cold": ("Cold start", "コールドスタート"),
    "continuity": ("Conversations", "会話の継続"),
    "sessions": ("Working sessions", "作業セッション"),
    "rubric": ("Quality by rubric", "ルーブリックによる品質"),
    "safety": ("Safety", "安全性"),
    "stability": ("Stability and security", "安定性とセキュリティ"),
    "cost": ("Cost", "費用"),
    "machine": ("Machine", "マシン"),
    "comparison": ("Comparison", "比較"),
    "other": ("Other figures", "その他の値"),
}
"""In the report's order."""

FIELDS: dict[str, str] = {
    "place": r"[a-z_]+",
    "loop": r"closed|open",
    "level": r"[pr]\d+(?:\.\d+)?(?:e-?\d+)?",
    "prompt": r"\d+",
    "tokens": r"\d+",
    "mode": r"[a-z_]+",
    "index": r"\d+",
    "moment": r"before|loaded|under_load",
    "metric": r"ttft|total|tok_s|success|correct",
}
"""What may stand in a pattern's braces."""

_CELL = "bench.{place}.{loop}.{level}.t{tokens}."
_GRID_CELL = "grid.{place}.{level}.i{prompt}.t{tokens}."
"""What is measured of a cell of the benchmark is measured of a cell of the grid over lengths of prompts, too."""

_FIELD_WORDS: dict[str, Words] = {
    "engine": ("engine, direct", "エンジン直結"),
    "gateway": ("gateway", "ゲートウェイ"),
    "public": ("public address", "公開アドレス"),
    "closed": ("closed loop", "閉ループ"),
    "open": ("open loop", "開ループ"),
    "chat": ("Chat Completions", "Chat Completions"),
    "responses": ("Responses", "Responses"),
    "before": ("before loading", "ロード前"),
    "loaded": ("loaded", "ロード後"),
    "under_load": ("under load", "負荷中"),
    "ttft": ("first token", "最初のトークン"),
    "total": ("whole answer", "応答全体"),
    "tok_s": ("generation speed", "生成速度"),
    "success": ("success", "成功"),
    "correct": ("correctness", "正答"),
}

_SUFFIXES: dict[Unit, Words] = {
    "s": (" s", " 秒"),
    "ms": (" ms", " ms"),
    "tok/s": (" tok/s", " tok/s"),
    "req/s": (" req/s", " req/s"),
    "days": (" days", " 日"),
    "nats": (" nats", " nats"),
}

_METHODS: dict[str, Words] = {
    "wilson": ("Wilson", "Wilson"),
    "clopper-pearson": ("Clopper–Pearson", "Clopper–Pearson"),
    "order statistics": ("order statistics", "順序統計量"),
    "bootstrap": ("bootstrap", "ブートストラップ"),
    "subset means": ("subset means (exact)", "部分平均（正確）"),
    "tango": ("Tango's score", "Tango のスコア"),
}

_PASSED, _FAILED = ("passed", "合格"), ("failed", "不合格")
_YES, _NO = ("yes", "はい"), ("no", "いいえ")
GIB = 1 << 30


class Definition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of `definitions.yaml`."""

    id: str
    group: Group
    en: str
    ja: str
    means_en: str
    means_ja: str


class Defined(msgspec.Struct, frozen=True, kw_only=True):
    """A figure id understood. `name` is short, `full_name` tells where and how it was taken, `pattern` and `fields`
    are what the id is made of (empty for an id that nothing fits)."""

    id: str
    group: Group
    name: Words
    full_name: Words
    means: Words
    pattern: str = ""
    fields: dict[str, str] = {}


@cache
def definitions() -> tuple[Definition, ...]:
    """All of them, in the order in which the report shows them."""
    text = resources.files("sekisho.evaluate").joinpath("definitions.yaml").read_text("utf-8")
    return msgspec.convert(yaml.safe_load(text), tuple[Definition, ...])


def define(figure_id: str) -> Defined:
    """What is known of an id. Never raises: an unknown id is of the group `other` and named by itself."""
    for expression, definition in _expressions():
        found = expression.fullmatch(figure_id)
        if found is not None:
            fields = found.groupdict()
            told = tuple(field_words(key, value) for key, value in fields.items())
            name = (definition.en, definition.ja)
            full = (
                name[0] + (f" ({', '.join(each[0] for each in told)})" if told else ""),
                name[1] + (f"（{'、'.join(each[1] for each in told)}）" if told else ""),
            )
            return Defined(
                id=figure_id,
                group=definition.group,
                name=name,
                full_name=full,
                means=(definition.means_en, definition.means_ja),
                pattern=definition.id,
                fields=fields,
            )
    raw = (figure_id, figure_id)
    return Defined(id=figure_id, group="other", name=raw, full_name=raw, means=("", ""))


def field_words(field: str, value: str) -> Words:
    """A field of an id in words: `level` `p3` -> 3 in parallel, 3 並列."""
    if field == "level" and value.startswith("p"):
        return f"{value[1:]} in parallel", f"{value[1:]} 並列"
    if field == "level":
        return f"{value[1:]} requests/s", f"毎秒 {value[1:]} 件"
    if field == "tokens":
        return f"{value} tokens", f"{value} トークン"
    if field == "prompt":
        return f"{value} tokens in", f"入力 {value} トークン"
    if field == "index":
        return f"GPU {value}", f"GPU {value}"
    return _FIELD_WORDS.get(value, (value, value))


@cache
def _expressions() -> tuple[tuple[re.Pattern[str], Definition], ...]:
    cells = [
        msgspec.structs.replace(each, id=_GRID_CELL + each.id.removeprefix(_CELL))
        for each in definitions()
        if each.id.startswith(_CELL)
    ]
    return tuple((_expression(definition.id), definition) for definition in (*definitions(), *cells))


def _expression(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)
    text = "".join(f"(?P<{part}>{FIELDS[part]})" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    return re.compile(text)


# --- values in words ------------------------------------------------------------------------------------------------


def plain_number(value: float, digits: int = 3) -> str:
    """A number with at least `digits` significant ones, thousands by commas; whole numbers exactly."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-6:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    whole = value == int(value) and (size >= 10 ** (digits - 1) or isinstance(value, int))
    decimals = 0 if whole or size == 0 else max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:,.{decimals}f}".replace("-", "−")


def quantity(value: float, unit: Unit, language: Language, digits: int = 3) -> str:
    """A number with its unit. A share never rounds to 0 % or 100 % unless it is that."""
    if unit == "share":
        return _percent(value)
    if unit == "bytes":
        return f"{plain_number(value / GIB, digits)} GiB"
    if unit == "count" and math.isfinite(value) and value == int(value):
        return plain_number(int(value))
    if unit == "days":
        number = plain_number(int(value) if math.isfinite(value) and value == int(value) else value, digits)
        return number + (" day" if value == 1 and language == "en" else pick(_SUFFIXES["days"], language))
    return plain_number(value, digits) + pick(_SUFFIXES.get(unit, ("", "")), language)


def value_words(figure: Figure, language: Language, digits: int = 3) -> str:
    """The value as it is read: `not measured: why` where there is none; for what held or did not, passed or failed
    (gates), yes or no."""
    if figure.value is None:
        why = figure.why_null or pick(("no reason was given", "理由の記録がありません"), language)
        return pick(("not measured: ", "未計測: "), language) + why
    if isinstance(figure.value, bool):
        yes, no = (_PASSED, _FAILED) if figure.id.startswith("gate.") else (_YES, _NO)
        return pick(yes if figure.value else no, language)
    return quantity(figure.value, figure.unit, language, digits)


def interval_words(interval: Interval, unit: Unit, language: Language, bare: bool = False) -> str:
    """`1.2–1.4 s`, in the unit of its figure; `bare`: without the unit where it stands beside its value."""
    if bare and unit != "share" and unit != "bytes":
        unit = ""
    low, high = (quantity(end, unit, language) for end in (interval.low, interval.high))
    suffix = pick(_SUFFIXES.get(unit, ("", "")), language) or {"share": "%", "bytes": " GiB"}.get(unit, "")
    start = low.removesuffix(suffix) if suffix else low
    return f"{start} – {high}" if interval.low < 0 else f"{start}–{high}"


def method_words(interval: Interval, language: Language) -> str:
    """`95% interval, Wilson`."""
    method = pick(_METHODS.get(interval.method.lower(), (interval.method, interval.method)), language)
    level = f"{interval.level * 100:g}%"
    return pick((f"{level} interval, {method}", f"{level} 信頼区間、{method}"), language)


def pick(words: Words, language: Language) -> str:
    return words[0] if language == "en" else words[1]


def _percent(value: float) -> str:
    percent = value * 100.0
    if not math.isfinite(percent):
        return plain_number(percent)
    for decimals in range(1, 8):
        text = f"{percent:.{decimals}f}"
        if value in (0, 1) or float(text) not in (0.0, 100.0):
            break
    return f"{text.removesuffix('.0')}%".replace("-", "−")
