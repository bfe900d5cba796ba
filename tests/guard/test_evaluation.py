import json
import xml.etree.ElementTree as ElementTree
from itertools import product

import pytest

from sekisho.core.verdict import DECISIONS, Verdict
from sekisho.guard.evaluation import (
    BadLine,
    Case,
    Labelled,
    category,
    confusion_svg,
    evaluate,
    labelled,
    read,
)


def told(text: str, _: str) -> Verdict:
    """A judge that is told by the text: `refuse`, `allow`, `escalate` or `band`."""
    if text == "band":
        return Verdict("escalate", "medical", decided_by="band", policy_version="p1")
    return Verdict(text, "none" if text == "allow" else "medical", policy_version="p1")  # type: ignore[arg-type]


def rows(*pairs: tuple[str, str], lang: str = "en") -> list[Labelled]:
    return [Labelled(text, lang, label, "medical" if label != "allow" else "none") for label, text in pairs]  # type: ignore[arg-type]


def test_rates_by_hand() -> None:
    """Ten requests counted by hand give every rate its numerator and denominator."""
    result = evaluate(
        rows(
            ("refuse", "refuse"), ("refuse", "refuse"), ("refuse", "band"), ("refuse", "allow"),
            ("escalate", "escalate"), ("escalate", "allow"),
            ("allow", "allow"), ("allow", "allow"), ("allow", "refuse"), ("allow", "band"),
        ),
        told,
    )  # fmt: skip
    one = result.overall
    counted = {
        name: (getattr(one, name).hits, getattr(one, name).count)
        for name in (
            "accuracy", "refuse_recall", "escalate_recall", "escalate_precision", "unsafe_allowed", "over_refusal",
            "over_escalation", "escalation", "band_width", "category_right",
        )
    }  # fmt: skip
    assert counted == {
        "accuracy": (5, 10), "refuse_recall": (2, 4), "escalate_recall": (1, 2), "escalate_precision": (1, 3),
        "unsafe_allowed": (2, 6), "over_refusal": (1, 4), "over_escalation": (1, 4), "escalation": (3, 10),
        "band_width": (2, 10), "category_right": (4, 4),
    }  # fmt: skip
    assert result.overall.matrix["refuse"] == {"allow": 1, "escalate": 1, "refuse": 2}
    assert result.policy_version == "p1"


def test_a_rate_of_nothing_is_no_number() -> None:
    """Without a REFUSE label there is no Refuse Recall, and no interval of it."""
    recall = evaluate(rows(("allow", "allow")), told).overall.refuse_recall
    assert (recall.value, recall.low, recall.high) == (None, None, None)


@pytest.mark.parametrize(
    ("decision", "lang", "name", "expected"),
    [
        ("ALLOW", "EN", "Benign", ("allow", "en", "none")),
        ("Refuse", "ja-JP", "self-harm", ("refuse", "ja", "self_harm")),
        ("escalate", "Japanese", "Prompt Injection", ("escalate", "ja", "injection")),
        ("BLOCK", "", "harassment", ("refuse", "", "hr")),
        ("REFUSE", "en", "PII", ("refuse", "en", "privacy")),
        ("ALLOW", "en", None, ("allow", "en", "none")),
        ("ALLOW", "en", "benign_violence", ("allow", "en", "none")),
        ("ESCALATE", "en", "somethingelse", ("escalate", "en", "other")),
    ],
)
def test_labels_are_read_in_any_spelling(decision: str, lang: str, name: str | None, expected: tuple[str, ...]) -> None:
    """Case, hyphens, aliases and a missing category are understood."""
    found = labelled(json.dumps({"text": "x", "lang": lang, "decision": decision, "category": name}))
    assert (found.decision, found.lang, found.category) == expected


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"text": 1, "decision": "ALLOW"}', '{"text": "x", "decision": "maybe"}']
)
def test_a_bad_line_is_told(line: str) -> None:
    """What is no labelled request raises BadLine."""
    with pytest.raises(BadLine):
        labelled(line)


def test_bad_lines_are_told_with_their_number_and_skipped() -> None:
    """Empty lines count in the numbering; a byte order mark and Windows line ends do no harm."""
    good = '{"text": "allow", "lang": "en", "decision": "ALLOW", "category": "none"}'
    result = evaluate(read([f"\ufeff{good}\r\n", "\n", "nonsense\n", good.encode() + b"\n"]), told)
    assert result.overall.count == 2
    assert len(result.bad_lines) == 1
    assert result.bad_lines[0].startswith("line 3: not JSON")


def test_a_file_without_a_good_line_is_an_error() -> None:
    """No figures come out of nothing."""
    with pytest.raises(ValueError, match="line 1: not JSON"):
        evaluate(read(["x"]), told)


def test_a_hundred_thousand_lines_stream() -> None:
    """Rows are taken one by one from an iterator, and only counts are kept."""
    line = '{"text": "refuse", "lang": "ja", "decision": "REFUSE", "category": "medical"}'
    result = evaluate(read(line for _ in range(100_000)), told)
    assert result.by_language["ja"].refuse_recall.hits == 100_000


def test_cases_come_in_order_one_a_line() -> None:
    """`keep` is given each row with our verdict, as soon as it is judged."""
    kept: list[Case] = []
    evaluate(rows(("refuse", "allow"), ("allow", "band")), told, kept.append)
    assert [(one.verdict.decision, one.row.decision) for one in kept] == [("allow", "refuse"), ("escalate", "allow")]


def test_outputs_hold_every_language_and_cell() -> None:
    """ja and en have figures of their own; the SVG is well-formed, escapes names and has nine cells a matrix."""
    everything = [
        Labelled(text, lang, label, "other") for lang, label, text in product(("ja", "en"), DECISIONS, DECISIONS)
    ]
    result = evaluate([*everything, Labelled("allow", "<x>&", "allow", "none")], told)
    assert (result.by_language["ja"].count, result.by_language["en"].count) == (9, 9)
    tree = ElementTree.fromstring(confusion_svg(result))
    rectangles = [one for one in tree.iter("{http://www.w3.org/2000/svg}rect") if one.get("stroke")]
    assert len(rectangles) == 9 * 4
    assert result.overall.count == 19


def test_category_keeps_known_names() -> None:
    """Every category of the project is its own name."""
    for name in ("medical", "self_harm", "none", "other"):
        assert category(name) == name
    assert isinstance(Case(Labelled("x", "en", "allow", "none"), told("allow", "en")), Case)
