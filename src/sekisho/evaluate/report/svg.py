"""Pieces of a drawing as text. Everything that comes in is escaped; no coordinate is anything but a finite number."""

import math
import re
from html import escape

from sekisho.evaluate.report.text import visible

FONT_PX = 12.5
SERIES = 6
"""How many series have a colour, a dash and a mark of their own; the next ones begin again."""


def px(value: float) -> str:
    """A coordinate, to a tenth. Raises ValueError for what is not finite: a drawing must not hide a wrong number."""
    if not math.isfinite(value):
        raise ValueError(f"{value} is no coordinate")
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """`kind` is a class of the style sheet; `anchor` start, middle or end."""
    attributes = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    return f'<text x="{px(x)}" y="{px(y)}"{attributes}>{clean(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{px(x1)}" y1="{px(y1)}" x2="{px(x2)}" y2="{px(y2)}"/>'


def rectangle(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Between two corners, in whatever order."""
    left, top = min(x1, x2), min(y1, y2)
    return f'<rect class="{kind}" x="{px(left)}" y="{px(top)}" width="{px(abs(x2 - x1))}" height="{px(abs(y2 - y1))}"/>'


def mark(x: float, y: float, series: int, hollow: bool = False) -> str:
    """A point whose shape tells the series apart without its colour. `hollow`: without an interval."""
    kind = f"mark s{series % SERIES}" + (" hollow" if hollow else "")
    shapes = (
        "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # circle
        "m-3.6-3.6h7.2v7.2h-7.2z",  # square
        "m0-5l5 5-5 5-5-5z",  # diamond
        "m0-4.8l4.8 8.4h-9.6z",  # triangle
        "m0 4.8l4.8-8.4h-9.6z",  # triangle, point down
        "m-5-1.6h3.4v-3.4h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4z",  # cross
    )
    return f'<path class="{kind}" d="M{px(x)} {px(y)}{shapes[series % SERIES]}"/>'


def group(title: str, *parts: str) -> str:
    """Parts that share a tool tip."""
    return f"<g><title>{clean(title)}</title>{''.join(parts)}</g>"


def drawing(identity: str, width: float, height: float, title: str, description: str, parts: list[str]) -> str:
    """A whole picture that a screen reader tells as its title and description."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", identity)
    head = f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {px(width)} {px(height)}" role="img"'
    return (
        f'{head} aria-labelledby="{name}-title {name}-text">'
        f'<title id="{name}-title">{clean(title)}</title><desc id="{name}-text">{clean(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def clean(words: str) -> str:
    return escape(visible(words))


def width_px(words: str) -> float:
    """About how wide a text is at the charts' size: Japanese letters are square, Latin ones a little over half."""
    return FONT_PX * sum(1.0 if ord(letter) > 0x2E7F else 0.57 for letter in visible(words))


def fitted(words: str, limit_px: float) -> str:
    """The words, cut with an ellipsis where they are wider than `limit_px`."""
    if width_px(words) <= limit_px:
        return words
    kept = visible(words)
    while kept and width_px(kept + "…") > limit_px:
        kept = kept[:-1]
    return kept + "…"
