"""Where the linear model may decide alone: thresholds by conformal risk control (arXiv 2208.02814), a person between.

ALLOW below the first threshold on the probability of harm, REFUSE above the second on that of refusal; what remains
escalates, and how much remains is the honest measure of the model. Thresholds are kept per language and per category
that the model names, and apart for texts of several windows, because that is known when a text is judged: the worst
of many windows looks worse than one, in a harmless text as in a harmful one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from sekisho.core.verdict import Category, Decision
from sekisho.guard.classifier import Scores
from sekisho.guard.language import language as language_of
from sekisho.guard.text import plain

ALPHA = 0.05
ALPHA_REFUSAL = 0.05
SHARE_OF_LONG = 0.5  # of `alpha_refusal` for long harmless texts: so many refused, and as many held for sure
SIZES = (10, 2)  # from so many windows on a text has thresholds of its own
POOLED = "*"
_FEWEST_REFUSALS = 19


class Threshold(msgspec.Struct, frozen=True):
    """`allow_below`: harm under it is allowed. `refuse_from`: refusal at or above it is refused. `unsafe` and `safe`
    count the calibration rows. `pooled` names what it fell back to (a language, or `*`), empty where it stands on its
    own rows; `width` is the share of its calibration rows between the two. `sure_from`: an escalation is sure at or
    above it, where it is the likeliest."""

    allow_below: float
    refuse_from: float
    unsafe: int
    safe: int
    width: float
    pooled: str = ""
    sure_from: float = 0.0


class Cut(NamedTuple):
    """`confidence` and `threshold` are of the decision; `sure` is False where the text fell between the thresholds."""

    decision: Decision
    category: Category
    confidence: float
    threshold: float
    sure: bool


class Labelled(Protocol):
    @property
    def text(self) -> str: ...
    @property
    def lang(self) -> str: ...
    @property
    def decision(self) -> Decision: ...


class Scoring(Protocol):
    def scores(self, text: str, language: str) -> Scores: ...


class Band(msgspec.Struct, frozen=True):
    """`thresholds`: by `language/category`, `language/*` and `*/*`, and for texts of at least n windows by
    `language/category@n` and `language/*@n` where there were rows enough."""

    alpha: float
    alpha_refusal: float
    thresholds: dict[str, Threshold]
    notes: tuple[str, ...] = ()

    def threshold(self, language: str, category: str, windows: int = 1) -> Threshold:
        known = self.thresholds
        for size in (*(f"@{least}" for least in SIZES if windows >= least), ""):
            for key in (f"{language}/{category}{size}", f"{language}/{POOLED}{size}"):
                if key in known:
                    return known[key]
        if f"{POOLED}/{POOLED}" in known:
            return known[f"{POOLED}/{POOLED}"]
        raise ValueError("a band without pooled thresholds")

    def decide(self, scores: Scores, language: str) -> Cut:
        held = self.threshold(language, scores.category, scores.windows)
        if scores.refuse >= held.refuse_from and scores.refuse > scores.escalate:
            return Cut("refuse", scores.category, scores.refuse, held.refuse_from, True)
        if scores.unsafe < held.allow_below:
            return Cut("allow", "none", scores.allow, held.allow_below, True)
        sure = scores.escalate >= held.sure_from and scores.escalate > max(scores.allow, scores.refuse)
        return Cut("escalate", scores.category, scores.escalate, held.allow_below, sure)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_name(path.name + ".new")
        written.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2))
        written.replace(path)

    @classmethod
    def load(cls, path: Path) -> Band:
        """Raises OSError, or ValueError for a file that is not a band."""
        return msgspec.json.decode(path.read_bytes(), type=cls)


class Point(NamedTuple):
    """A calibration row once scored."""

    language: str
    decision: Decision
    scores: Scores


def fewest(alpha: float) -> int:
    """How many positives the bound needs before any threshold can meet it: 19 at .05, 99 at .01."""
    return ceil(1 / alpha - 1e-9) - 1


def risk_threshold(harms: Sequence[float], alpha: float) -> float:
    """The largest λ with n/(n+1)·R̂(λ) + 1/(n+1) ≤ α, R̂ the share of `harms` under λ. 0 (allow nothing) if there
    are too few."""
    allowed = int(alpha * (len(harms) + 1) - 1 + 1e-9)
    if len(harms) < fewest(alpha) or allowed < 0:
        return 0.0
    return sorted(harms)[allowed]


def band_of(
    points: Iterable[Point],
    alpha: float = ALPHA,
    alpha_refusal: float = ALPHA_REFUSAL,
    alpha_long: float | None = None,
) -> Band:
    """The band of scored rows. A category of a language with too few positives takes its language's thresholds, a
    language with too few those of all; the notes say which. Texts of several windows get thresholds of their own, with
    `alpha_long`, where there are enough of them in their language, and stand among the short ones elsewhere. Raises
    ValueError where even all rows are too few."""
    if not 0 < alpha < 1 or not 0 < alpha_refusal < 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha} and {alpha_refusal}")
    every = list(points)
    long: dict[str, Threshold] = {}
    for least, most in zip(SIZES, (10**9, *SIZES), strict=False):
        members = [point for point in every if least <= point.scores.windows < most]
        long |= _of_long(members, f"@{least}", alpha_long or alpha, alpha_refusal * SHARE_OF_LONG)
    short = [
        point
        for point in every
        if not any(point.scores.windows >= least and f"{point.language}/{POOLED}@{least}" in long for least in SIZES)
    ]
    groups: dict[str, list[Point]] = {f"{POOLED}/{POOLED}": short}
    for point in short:
        groups.setdefault(f"{point.language}/{POOLED}", []).append(point)
        groups.setdefault(f"{point.language}/{point.scores.category}", []).append(point)
    needed, needed_safe = fewest(alpha), fewest(alpha_refusal)
    thresholds: dict[str, Threshold] = {}
    notes: list[str] = []
    for key in sorted(groups, key=lambda key: key.count(POOLED), reverse=True):
        members = groups[key]
        unsafe = [point.scores.unsafe for point in members if point.decision != "allow"]
        safe = [point.scores.refuse for point in members if point.decision == "allow"]
        language, category = key.split("/")
        wider = f"{language}/{POOLED}" if category != POOLED else f"{POOLED}/{POOLED}"
        if key == wider and len(unsafe) < needed:
            raise ValueError(f"{len(unsafe)} unsafe rows, but alpha {alpha} needs {needed}")
        pooled = ""
        allow_below = risk_threshold(unsafe, alpha)
        if len(unsafe) < needed:
            allow_below, pooled = thresholds[wider].allow_below, wider
            notes.append(f"{key}: {len(unsafe)} unsafe rows, {needed} needed: thresholds of {wider}")
        refuse_from = _kept_under(safe, alpha_refusal)
        if len(safe) < needed_safe:
            refuse_from = thresholds[wider].refuse_from if key != wider else 2.0
        thresholds[key] = Threshold(
            allow_below, refuse_from, len(unsafe), len(safe), _width(members, allow_below, refuse_from), pooled
        )
    return Band(alpha, alpha_refusal, thresholds | long, tuple(notes))


def _of_long(points: Sequence[Point], size: str, alpha: float, share: float) -> dict[str, Threshold]:
    """Thresholds for texts of several windows, of each language and category that has rows enough of both kinds."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(f"{point.language}/{POOLED}{size}", []).append(point)
        groups.setdefault(f"{point.language}/{point.scores.category}{size}", []).append(point)
    found: dict[str, Threshold] = {}
    for key, members in sorted(groups.items()):
        unsafe = [point.scores.unsafe for point in members if point.decision != "allow"]
        safe = [point.scores for point in members if point.decision == "allow"]
        if len(unsafe) < fewest(alpha) or len(safe) < fewest(share):
            continue
        allow_below = risk_threshold(unsafe, alpha)
        refuse_from = _kept_under([scores.refuse for scores in safe], share)
        sure_from = _kept_under([scores.escalate for scores in safe], share)
        width = _width(members, allow_below, refuse_from)
        found[key] = Threshold(allow_below, refuse_from, len(unsafe), len(safe), width, "", sure_from)
    return found


def _kept_under(scores: Sequence[float], alpha: float) -> float:
    """The smallest threshold that all but a share of α of the scores stay under."""
    return max(1.0 - risk_threshold([1.0 - score for score in scores], alpha) + 1e-9, 1e-9)


def _width(members: Sequence[Point], allow_below: float, refuse_from: float) -> float:
    between = [p for p in members if p.scores.unsafe >= allow_below and p.scores.refuse < refuse_from]
    return len(between) / len(members)


def calibrate(rows: Iterable[Labelled], classifier: Scoring, alpha: float = ALPHA) -> Band:
    """The band of labelled `rows` that the classifier was not trained on."""

    def point(row: Labelled) -> Point:
        text = plain(row.text)
        language = language_of(text)
        return Point(language, row.decision, classifier.scores(text, language))

    return band_of((point(row) for row in rows), alpha)
