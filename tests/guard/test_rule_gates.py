import random
import re

import pytest
from counted_steps import steps

from sekisho.guard.rule_gates import Gates, Span, Tried, _Reading
from sekisho.guard.rule_needs import reach
from sekisho.guard.rules import RuleSet, ready
from sekisho.guard.text import plain

RULES = RuleSet.load(check_built_in=True)
GATES = [gate for rule in RULES.rules for gate in ready(rule).gates]
EXAMPLES = [plain(text) for rule in RULES.rules for text in rule.match_tests]
FILLER = [plain(text) for rule in RULES.rules for text in rule.pass_tests]


@pytest.mark.parametrize("seed", range(40))
def test_a_gate_is_shut_only_where_its_pattern_does_not_match(seed: int) -> None:
    """Beside a plain search of every pattern, on requests in the midst of other text of up to some thousand letters."""
    chance = random.Random(seed)
    pieces = chance.sample(FILLER, chance.randrange(60)) + chance.sample(EXAMPLES, chance.randrange(1, 4))
    chance.shuffle(pieces)
    text = chance.choice([" ", ". ", "。", ""]).join(pieces)
    matching = {
        place for place, gate in enumerate(GATES) if gate.pattern and re.compile(gate.pattern, re.ASCII).search(text)
    }
    assert matching == set(Gates(GATES).open(text, set()))
    assert matching


def test_what_stayed_shut_is_not_tried_again_and_what_opens_is() -> None:
    """`tried` makes a second reading of the same text cheap, and changes nothing of what it says."""
    gates, tried = Gates(GATES), set()
    text = " ".join([*FILLER[:60], EXAMPLES[0], *FILLER[60:120]])
    first = gates.open(text, tried)
    assert first
    assert gates.open(text, tried) == first
    assert tried


@pytest.mark.parametrize(
    ("pattern", "chars"), [("bombs?", 5), (r"\bbomb\b", 4), ("a(?=bc)", 3), ("(?:a|bcd){2}e", 7), ("x(?<!yy)", 3)]
)
def test_reach_is_the_widest_match_and_what_it_looks_at(pattern: str, chars: int) -> None:
    """Two characters more: the neighbours that `\\b` looks at."""
    assert reach(pattern) == chars + 2


@pytest.mark.parametrize(
    "word", ["kill ", "how to make a ", "where does she live ", "爆弾の作り方", "a ", "がのは", "the system prompt "]
)
def test_the_worst_text_costs_a_gate_no_more_than_its_length(word: str) -> None:
    """A megabyte of what opens gates takes at most 25 times the steps of 50 KB, and all patterns together look
    at some lengths of it: no text makes gates slow."""

    class Counting(Gates):
        looked_at = 0

        def _matches(self, place: int, reading: _Reading, span: Span, tried: Tried) -> bool:
            self.looked_at += span[1] - span[0]
            return super()._matches(place, reading, span, tried)

    def text(chars: int) -> str:
        return (word * (chars // len(word) + 1))[:chars]

    gates = Counting(GATES)
    gates.open(text(1_000), set())  # words are learned once
    assert steps(lambda: gates.open(text(1_000_000), set())) <= 25 * steps(lambda: gates.open(text(50_000), set()))
    gates.looked_at = 0
    gates.open(text(1_000_000), set())
    assert gates.looked_at <= 10 * 1_000_000
