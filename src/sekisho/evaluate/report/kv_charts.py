"""What a cache costs against what it keeps: one picture of points, bytes across and divergence up."""

from collections.abc import Sequence

import msgspec

from sekisho.evaluate.definitions import Language, Words, pick
from sekisho.evaluate.report import svg
from sekisho.evaluate.report.axes import axis

WIDTH, HEIGHT = 720.0, 330.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 16.0, 14.0, 46.0
_LEGEND_ROW = 18.0
_TITLE = ("Bytes held and divergence from full precision", "保持バイト数と、全精度からのずれ")
_ACROSS = ("share of the bytes at 16 bits, %", "16 ビット時のバイト数に対する割合（%）")
_UP = ("mean KL divergence, nats (logarithmic)", "平均 KL 情報量（nat、対数）")
_EMPTY = ("Nothing was measured.", "計測値がありません。")


class Point(msgspec.Struct, frozen=True):
    """One cache at one setting. `family` says which points belong together; `share` 0.25 is 25 %."""

    name: str
    family: Words
    share: float
    divergence: float


def tradeoff(points: Sequence[Point], language: Language) -> str:
    """Lower and further left is better. Families differ in shape and colour."""
    shown = [each for each in points if each.share > 0 and each.divergence > 0]
    families = list(dict.fromkeys(each.family for each in shown))
    across = axis([100 * each.share for each in shown], _LEFT, WIDTH - _RIGHT, log=True)
    bottom = HEIGHT - _BOTTOM
    up = axis([each.divergence for each in shown], bottom, _TOP, log=True)
    parts = []
    for value, words in across.ticks(6):
        parts += [svg.line(across.at(value), _TOP, across.at(value), bottom + 4, "grid")]
        parts += [svg.text(across.at(value), bottom + 17, words, "tick", "middle")]
    for value, words in up.ticks(5):
        parts += [svg.line(_LEFT - 4, up.at(value), WIDTH - _RIGHT, up.at(value), "grid")]
        parts += [svg.text(_LEFT - 8, up.at(value) + 4, words, "tick", "end")]
    parts += [svg.line(_LEFT, bottom, WIDTH - _RIGHT, bottom, "axis"), svg.line(_LEFT, _TOP, _LEFT, bottom, "axis")]
    parts += [svg.text(WIDTH - _RIGHT, bottom + 34, pick(_ACROSS, language), "tick", "end")]
    parts += [svg.text(_LEFT + 6, _TOP + 10, pick(_UP, language), "tick")]
    told = []
    for index, family in enumerate(families):
        mine = sorted((each for each in shown if each.family == family), key=lambda each: each.share)
        places = [(across.at(100 * each.share), up.at(each.divergence)) for each in mine]
        for each, (x, y) in zip(mine, places, strict=True):
            words = f"{each.name}: {100 * each.share:.1f} %, {each.divergence:.3g} nat"
            told.append(words)
            parts.append(svg.group(words, svg.mark(x, y, index)))
    height = HEIGHT
    for index, family in enumerate(families):
        column, row = index % 3, index // 3
        x, y = _LEFT + column * 215, HEIGHT + 8 + row * _LEGEND_ROW
        parts += [svg.mark(x + 5, y - 4, index), svg.text(x + 16, y, svg.fitted(pick(family, language), 195), "legend")]
        height = y + 10
    if not shown:
        parts.append(svg.text(WIDTH / 2, HEIGHT / 2, pick(_EMPTY, language), "empty", "middle"))
    described = ". ".join(told) or pick(_EMPTY, language)
    return svg.drawing(f"{language}-kv-tradeoff", WIDTH, height, pick(_TITLE, language), described, parts)
