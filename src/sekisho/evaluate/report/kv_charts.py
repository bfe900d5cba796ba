"""What a cache costs against what it keeps: one picture of points, bytes across and divergence up."""

from collections.abc import Sequence
from typing import Final

import msgspec

from sekisho.evaluate.definitions import Language, Words
from sekisho.evaluate.report.scatter import Dot, Frame, scatter

_FRAME: Final = Frame(
    "kv-tradeoff",
    ("Bytes held and divergence from full precision", "保持バイト数と、全精度からのずれ"),
    ("share of the bytes at 16 bits, %", "16 ビット時のバイト数に対する割合（%）"),
    ("mean KL divergence, nats (logarithmic)", "平均 KL 情報量（nat、対数）"),
    log=True,
)


class Point(msgspec.Struct, frozen=True):
    """One cache at one setting. `family` says which points belong together; `share` 0.25 is 25 %."""

    name: str
    family: Words
    share: float
    divergence: float


def tradeoff(points: Sequence[Point], language: Language) -> str:
    """Lower and further left is better."""
    shown = [each for each in points if each.share > 0 and each.divergence > 0]
    return scatter([_dot(each) for each in shown], _FRAME, language)


def _dot(point: Point) -> Dot:
    words = f"{point.name}: {100 * point.share:.1f} %, {point.divergence:.3g} nat"
    return Dot(words, point.family, 100 * point.share, point.divergence)
