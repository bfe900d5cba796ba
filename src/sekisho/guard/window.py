"""How much of an answer must be held back: never less than the longest match of a rule that could stop it."""

from functools import lru_cache

from sekisho.guard.rule_file import Rule
from sekisho.guard.rule_needs import reach


def stops_answers(rule: Rule) -> bool:
    """Whether a rule can end an answer: refusals, but for orders to a model, which no answer gives (`judge.OUTPUT`)."""
    return rule.enabled and rule.decision == "refuse" and rule.category != "injection"


def longest_match(rules: tuple[Rule, ...]) -> int:
    """How far the widest match of a rule that can end an answer reaches, in characters. Reading it off a pattern takes
    half a millisecond, once in the life of the process."""
    return max((_rule_reach(rule) for rule in rules if stops_answers(rule)), default=0)


def _rule_reach(rule: Rule) -> int:
    patterns = [*rule.any, *rule.all, *(rule.near.patterns if rule.near else ())]
    widest = max((_reach(pattern) for pattern in patterns), default=0)
    return widest + (rule.near.within_chars if rule.near else 0)


@lru_cache(maxsize=8_192)
def _reach(pattern: str) -> int:
    return reach(pattern)
