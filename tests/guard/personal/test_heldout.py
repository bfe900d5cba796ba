"""The hand-written set that no rule was made from: `personal_heldout.jsonl`, figures in docs/personal-data.md."""

import json
import re
from collections import Counter
from pathlib import Path

from sekisho.guard.personal import find

ROOT = Path(__file__).parents[3]
LINES = [
    json.loads(line) for line in (ROOT / "tests/guard/personal_heldout.jsonl").read_text(encoding="utf-8").splitlines()
]


def measured() -> Counter[str]:
    """Values hidden whole, values, finds that touch no value, finds, look-alike lines, those touched."""
    count: Counter[str] = Counter()
    for line in LINES:
        spans = [(found.start, found.end) for found in find(line["text"])]
        hidden = {place for start, end in spans for place in range(start, end)}
        values = line["find"]
        count["values"] += len(values)
        count["hidden"] += sum(hidden.issuperset(range(start, end)) for _, start, end in values)
        count["finds"] += len(spans)
        count["right"] += sum(any(start < last and first < end for _, first, last in values) for start, end in spans)
        count["look-alikes"] += not values
        count["touched"] += not values and bool(spans)
    return count


def test_the_figures_of_the_page_are_true() -> None:
    """docs/personal-data.md states recall and precision as they are now."""
    now = measured()
    page = (ROOT / "docs/personal-data.md").read_text(encoding="utf-8")
    stated = re.search(
        r"now: (\d+) of (\d+) values hidden, (\d+) of (\d+) finds right, (\d+) of (\d+) look-alike", page
    )
    assert stated is not None
    names = ("hidden", "values", "right", "finds", "touched", "look-alikes")
    assert tuple(map(int, stated.groups())) == tuple(now[name] for name in names)
    assert len(LINES) >= 300
