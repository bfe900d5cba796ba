"""One criterion: what is wanted of which figures, and whether they give it.

Pure. Fails where one figure fails; else open where one is open or missing; else passes. The worst one is told.
"""

import math
import re
from itertools import product
from typing import Literal

import msgspec

from sekisho.evaluate.figures import Figure, Figures

Words = tuple[str, str]
"""English, Japanese."""

Pattern = Literal["a", "b"]
Outcome = Literal["pass", "fail", "open"]
Operator = Literal["at_least", "at_most", "is"]
Threshold = float | bool | Literal["n"]

PATTERNS: tuple[Pattern, ...] = ("a", "b")


class Criterion(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the thresholds, for one profile.

    `figures`: ids with `{1,2,3}` (each of them must be there) and `*` (whichever have a value, within a dot); the worst
    one decides. Of several such patterns the first counts that has a value. `value` `"n"`: the figure's own number of
    observations. `minimal_n`: fewer observations leave it open. `patterns`: `a` the chat UI, `b` Codex.
    """

    id: str
    figures: tuple[str, ...]
    operator: Operator
    value: Threshold
    patterns: tuple[Pattern, ...] = PATTERNS
    minimal_n: int = 0
    name: Words
    when_failed: Words
    when_open: Words


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One criterion judged. `figure` is the one that decided (None: there is none of that id), `missing` the ids that
    were wanted and are not there. `certain` is False where the figure's interval reaches across the threshold or is not
    known, and for whatever is open. `next_action` is None for what passed."""

    criterion: Criterion
    outcome: Outcome
    certain: bool
    reason: Words
    figure: Figure | None = None
    missing: tuple[str, ...] = ()
    next_action: Words | None = None


class _Judged(msgspec.Struct, frozen=True):
    figure: Figure
    outcome: Outcome
    certain: bool
    reason: Words
    margin: float  # how far on the good side; for the worst of several


def judge(criterion: Criterion, figures: Figures) -> Result:
    """Fails where one figure fails; else open where one is open or missing; else passes. The worst one is told."""
    found, missing = _cells(criterion, figures)
    judged = [_one(criterion, figure) for figure in found]
    failed, opened = (tuple(each for each in judged if each.outcome == outcome) for outcome in ("fail", "open"))
    if failed:
        certain = any(each.certain for each in failed)
        return _result(criterion, min(failed, key=_margin), certain, missing, criterion.when_failed)
    if opened:
        return _result(criterion, min(opened, key=_margin), False, missing, criterion.when_open)
    if missing or not judged:
        return Result(
            criterion=criterion,
            outcome="open",
            certain=False,
            reason=_missing(missing),
            missing=missing,
            next_action=criterion.when_open,
        )
    return _result(criterion, min(judged, key=_margin), all(each.certain for each in judged), (), None)


def _margin(judged: _Judged) -> float:
    return judged.margin


def _result(
    criterion: Criterion, worst: _Judged, certain: bool, missing: tuple[str, ...], next_action: Words | None
) -> Result:
    return Result(
        criterion=criterion,
        outcome=worst.outcome,
        certain=certain,
        reason=worst.reason,
        figure=worst.figure,
        missing=missing,
        next_action=next_action,
    )


def _cells(criterion: Criterion, figures: Figures) -> tuple[list[Figure], tuple[str, ...]]:
    """The figures that a criterion is about, and the ids that are wanted and not there. One of them is not empty."""
    tried: list[tuple[list[Figure], tuple[str, ...]]] = []
    for pattern in criterion.figures:
        found: list[Figure] = []
        missing: list[str] = []
        for wanted in expand(pattern):
            these = _matching(wanted, figures)
            found += these
            if not these:
                missing.append(wanted)
        if any(figure.value is not None for figure in found):
            return found, tuple(missing)
        tried.append((found, tuple(missing)))
    return next((each for each in tried if each[0]), tried[0])


def expand(pattern: str) -> tuple[str, ...]:
    """`p{1,2}.t{a,b}` -> `p1.ta`, `p1.tb`, `p2.ta`, `p2.tb`."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    return tuple(dict.fromkeys("".join(chosen) for chosen in product(*choices)))


def _matching(wanted: str, figures: Figures) -> list[Figure]:
    if "*" not in wanted:
        figure = figures.get(wanted)
        return [] if figure is None else [figure]
    pattern = re.compile("[^.]*".join(map(re.escape, wanted.split("*"))))
    names = dict.fromkeys(figure.id for figure in figures.all if pattern.fullmatch(figure.id))
    found = [figure for name in names if (figure := figures.get(name)) is not None]
    return [figure for figure in found if figure.value is not None] or found


def _one(criterion: Criterion, figure: Figure) -> _Judged:
    value, n = figure.value, figure.n
    if value is None or (isinstance(value, float) and math.isnan(value)):
        why = figure.why_null or "no value"
        return _Judged(figure, "open", False, (f"{figure.id}: not measured: {why}", f"{figure.id}: 未計測: {why}"), 0.0)
    if criterion.operator == "is" or isinstance(value, bool):
        return _yes_or_no(criterion, figure, value)
    threshold = n if criterion.value == "n" else criterion.value
    if threshold is None or isinstance(threshold, str | bool):
        told = (f"{figure.id}: it is not known of how many", f"{figure.id}: 件数がわかりません")
        return _Judged(figure, "open", False, told, 0.0)
    if figure.unit == "share" and not 0 <= threshold <= 1:
        told = (
            f"{figure.id}: a share is compared with 0 to 1, not with {threshold:g}",
            f"{figure.id}: 割合の基準は 0〜1 です（{threshold:g} は使えません）",
        )
        return _Judged(figure, "open", False, told, 0.0)
    good = value >= threshold if criterion.operator == "at_least" else value <= threshold
    margin = (value - threshold) if criterion.operator == "at_least" else (threshold - value)
    few = _too_few(criterion, figure)
    if few is not None and (good or not _only_grows(criterion, figure)):
        return _Judged(figure, "open", False, few, margin)
    outcome: Outcome = "pass" if good else "fail"
    certain = _certain(criterion.operator, figure, threshold, good)
    return _Judged(figure, outcome, certain, _compared(criterion, figure, threshold), margin)


def _yes_or_no(criterion: Criterion, figure: Figure, value: float | bool) -> _Judged:
    if not isinstance(value, bool) or not isinstance(criterion.value, bool):
        told = (
            f"{figure.id}: a figure of yes or no needs a threshold with `is`, and no other does",
            f"{figure.id}: はい・いいえの指標には `is` の閾値が必要です（それ以外には使えません）",
        )
        return _Judged(figure, "open", False, told, 0.0)
    few = _too_few(criterion, figure)
    good = value is criterion.value
    if good and few is not None:
        return _Judged(figure, "open", False, few, 1.0)
    held = ("yes", "はい") if value else ("no", "いいえ")
    note = f" ({figure.note})" if figure.note and not good else ""
    words = (f"{figure.id}: {held[0]}{note}", f"{figure.id}: {held[1]}{note}")
    return _Judged(figure, "pass" if good else "fail", True, words, 1.0 if good else -1.0)


def _too_few(criterion: Criterion, figure: Figure) -> Words | None:
    wanted = criterion.minimal_n
    if wanted and (figure.n is None or figure.n < wanted):
        known = "?" if figure.n is None else str(figure.n)
        return (
            f"{figure.id}: n = {known}, at least {wanted} are needed",
            f"{figure.id}: n = {known}（{wanted} 以上が必要）",
        )
    return None


def _only_grows(criterion: Criterion, figure: Figure) -> bool:
    """A count beyond its limit stays beyond it, however many more observations come."""
    return criterion.operator == "at_most" and figure.unit == "count"


def _certain(operator: Operator, figure: Figure, threshold: float, good: bool) -> bool:
    """Whether the whole interval lies on the side of the value. A figure that needs none (a count) is certain."""
    if figure.interval is None:
        return not figure.interval_missing
    low, high = figure.interval.low, figure.interval.high
    if operator == "at_least":
        return low >= threshold if good else high < threshold
    return high <= threshold if good else low > threshold


def _compared(criterion: Criterion, figure: Figure, threshold: float) -> Words:
    """`bench.….ttfb_p95_s = 8.2 s, at most 8 s (n = 80)`."""
    value = shown(figure.value, figure.unit)
    n = "" if figure.n is None else f" (n = {figure.n})"
    limit = bound(msgspec.structs.replace(criterion, value=threshold), figure.unit)
    return (f"{figure.id} = {value}, {limit[0]}{n}", f"{figure.id} = {value}（基準 {limit[1]}）{n}")


def bound(criterion: Criterion, unit: str = "") -> Words:
    """What is wanted, in words: `at least 95 %`. `unit`: of the figure that it is compared with."""
    if criterion.operator == "is":
        return ("yes", "はい") if criterion.value is True else ("no", "いいえ")
    limit = ("all of them", "全件") if criterion.value == "n" else (shown(criterion.value, unit),) * 2
    if criterion.operator == "at_least":
        return (f"at least {limit[0]}", f"{limit[1]} 以上")
    return (f"at most {limit[0]}", f"{limit[1]} 以下")


def _missing(missing: tuple[str, ...]) -> Words:
    first = missing[0]
    more = (f" and {len(missing) - 1} more", f" ほか {len(missing) - 1} 件") if len(missing) > 1 else ("", "")
    return (f"{first}{more[0]}: not measured", f"{first}{more[1]}: 未計測")


def shown(value: float | bool | str | None, unit: str) -> str:
    """A figure's value as people read it: `95.0 %`, `8.2 s`, `30`."""
    if value is None or isinstance(value, str):
        return value or "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == "share":
        return f"{100 * value:.4g} %"
    suffix = "" if unit in ("", "count", "ratio", "currency") else f" {unit}"
    return f"{value:.4g}{suffix}" if abs(value) < 10_000 else f"{value:,.0f}{suffix}"
