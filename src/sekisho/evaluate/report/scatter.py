"""Points of several families in one picture, two figures against each other."""

from collections.abc import Sequence

import msgspec

from sekisho.evaluate.definitions import Language, Words, pick
from sekisho.evaluate.report import svg
from sekisho.evaluate.report.axes import axis

WIDTH, HEIGHT = 720.0, 330.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 16.0, 14.0, 46.0
_LEGEND_ROW = 18.0
_EMPTY = ("Nothing was measured.", "計測値がありません。")


class Dot(msgspec.Struct, frozen=True):
    """`words`: all that is to be said of it. `family` says which dots belong together."""

    words: str
    family: Words
    x: float
    y: float


class Frame(msgspec.Struct, frozen=True):
    """`across`, `up`: what the axes show. `log`: both are logarithmic, and what is not above zero cannot be shown; else
    both begin at zero. `order`: of the families; none: as they come."""

    identity: str
    title: Words
    across: Words
    up: Words
    log: bool = False
    order: tuple[Words, ...] = ()


def scatter(dots: Sequence[Dot], frame: Frame, language: Language) -> str:
    """Families differ in shape and colour."""
    shown = sorted(dots, key=lambda each: each.x)
    families = frame.order or tuple(dict.fromkeys(each.family for each in dots))
    across = axis([each.x for each in shown], _LEFT, WIDTH - _RIGHT, log=frame.log, zero=not frame.log)
    bottom = HEIGHT - _BOTTOM
    up = axis([each.y for each in shown], bottom, _TOP, log=frame.log, zero=not frame.log)
    parts = []
    for value, words in across.ticks(6):
        parts += [svg.line(across.at(value), _TOP, across.at(value), bottom + 4, "grid")]
        parts += [svg.text(across.at(value), bottom + 17, words, "tick", "middle")]
    for value, words in up.ticks(5):
        parts += [svg.line(_LEFT - 4, up.at(value), WIDTH - _RIGHT, up.at(value), "grid")]
        parts += [svg.text(_LEFT - 8, up.at(value) + 4, words, "tick", "end")]
    parts += [svg.line(_LEFT, bottom, WIDTH - _RIGHT, bottom, "axis"), svg.line(_LEFT, _TOP, _LEFT, bottom, "axis")]
    parts += [svg.text(WIDTH - _RIGHT, bottom + 34, pick(frame.across, language), "tick", "end")]
    parts += [svg.text(_LEFT + 6, _TOP + 10, pick(frame.up, language), "tick")]
    for index, family in enumerate(families):
        mine = [each for each in shown if each.family == family]
        parts += [svg.group(each.words, svg.mark(across.at(each.x), up.at(each.y), index)) for each in mine]
    legend, height = _legend(families if shown else (), language)
    if not shown:
        parts.append(svg.text(WIDTH / 2, HEIGHT / 2, pick(_EMPTY, language), "empty", "middle"))
    described = ". ".join(each.words for each in shown) or pick(_EMPTY, language)
    identity = f"{language}-{frame.identity}"
    return svg.drawing(identity, WIDTH, height, pick(frame.title, language), described, parts + legend)


def _legend(families: Sequence[Words], language: Language) -> tuple[list[str], float]:
    """And how high the picture is with it."""
    parts, height = [], HEIGHT
    for index, family in enumerate(families):
        column, row = index % 3, index // 3
        x, y = _LEFT + column * 215, HEIGHT + 8 + row * _LEGEND_ROW
        parts += [svg.mark(x + 5, y - 4, index), svg.text(x + 16, y, svg.fitted(pick(family, language), 195), "legend")]
        height = y + 10
    return parts, height
