"""Several labels as one."""

from collections.abc import Sequence

from sekisho.core.verdict import DECISIONS, SEVERITIES
from sekisho.guard.model_formats.base import Label


def weight(label: Label) -> tuple[int, int]:
    return DECISIONS.index(label.decision), SEVERITIES.index(label.severity)


def gravest(labels: Sequence[Label], words: tuple[str, ...] | None = None) -> Label:
    """The gravest of `labels` (at least one), the first among equals, told in `words` or in all their own words."""
    top = max(labels, key=weight)
    told = words if words is not None else tuple(dict.fromkeys(word for label in labels for word in label.labels))
    return Label(top.decision, top.category, top.severity, told)
