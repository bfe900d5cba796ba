"""What a text must hold for a pattern to match: literals, read off the pattern, so that most rules cost nothing.

A Latin literal at a word's start is looked up by its first three letters among the words of the text, a Japanese one by
two letters among the pairs of the text."""

import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import msgspec

PREFIX = 3
_LONGEST_REPEAT = 200
_MOST_STEPS = 2_000
_MOST_SETS = 5
_COMMON_LIST = (
    "make making how with your this please the and for can what you get use give tell show write want need from all "
    "any without step steps explain have create build person people into someone work help that are not she her his "
    "him they them was who why when where would should could does did has been being able information system data "
    "user company code file teach best way ways find out put buy order set send something about which guide list "
    "wanna detailed describe design produce easiest intend plan good new see look read run open like just take "
    "instructions instruction recipe manual tutorial formula directions prepare mix develop program generate script "
    "must may might will now then there here time day week name address number phone account email message site"
)
_COMMON = frozenset(_COMMON_LIST.split())
_WORD = re.compile("[0-9a-z]+")
_KANA = re.compile("[\u3041-\u309f]")


class PatternError(ValueError):
    """A pattern that must not be used, and why."""


class Need(msgspec.Struct, frozen=True):
    """A literal that must be in the text; `key` begins a word of such a text, or is a pair
    of its letters, "" when none can be told. `worth` says how seldom it is in ordinary text."""

    literal: str
    key: str
    worth: int


Needs = frozenset[Need]


def keyed_word(need: Need) -> str:
    """The word of the literal that its key is the beginning of; the pair itself for other letters."""
    return next((word for word in _WORD.findall(need.literal) if word.startswith(need.key)), need.key)


def needs(pattern: str) -> tuple[Needs, ...]:
    """Sets of literals: every match holds one of each set, the most telling set first. Raises PatternError for a
    pattern that is wrong, or could be slow: without bounds, or with repetition in repetition."""
    try:
        tree = _parser.parse(pattern, re.ASCII)
    except re.error as error:
        raise PatternError(f"not a regular expression: {error}") from error
    _check(tree, 1)
    return ranked(_of_sequence(tree, at_start=False))


def reach(pattern: str) -> int:
    """How far from any of its characters a match, and what the pattern looks at beside it, may lie."""
    tree = _parser.parse(pattern, re.ASCII)
    return int(tree.getwidth()[1]) + _looks(tree) + 2


def _looks(sequence: Any) -> int:
    """The width of all that is looked at beside a match."""
    total = 0
    for node, argument in sequence:
        if node in (op.ASSERT, op.ASSERT_NOT):
            total += int(argument[1].getwidth()[1]) + _looks(argument[1])
        elif node is op.SUBPATTERN:
            total += _looks(argument[-1])
        elif node is op.ATOMIC_GROUP:
            total += _looks(argument)
        elif node in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            total += int(argument[1]) * _looks(argument[2])
        elif node is op.BRANCH:
            total += sum(map(_looks, argument[1]))
    return total


def ranked(sets: Iterable[Needs]) -> tuple[Needs, ...]:
    """The most telling sets, best first."""
    best = sorted(dict.fromkeys(sets), key=_worth, reverse=True)[:_MOST_SETS]
    return tuple(best)


def union(choices: Sequence[Sequence[Needs]]) -> list[Needs]:
    """What a text must hold when one of several patterns must match: nothing, if one of them tells nothing."""
    if not choices or not all(choices):
        return []
    return [frozenset(need for choice in choices for need in max(choice, key=_worth))]


def _worth(choice: Needs) -> tuple[int, int]:
    return min(need.worth for need in choice), -len(choice)


def _of_sequence(sequence: Any, at_start: bool) -> list[Needs]:
    """The needs of a sequence of parsed nodes. `at_start`: a word begins here."""
    sets: list[Needs] = []
    run, run_at_start = "", at_start
    for node, argument in sequence:
        if node is op.LITERAL:
            run_at_start = run_at_start if run else at_start
            run += chr(argument)
            at_start = not chr(argument).isalnum()
            continue
        sets += _of_literal(run, run_at_start)
        run = ""
        if node is op.AT:
            at_start = argument in (op.AT_BOUNDARY, op.AT_BEGINNING_STRING, op.AT_BEGINNING)
            continue
        if node in (op.ASSERT, op.ASSERT_NOT):
            continue
        sets += _of_node(node, argument, at_start)
        at_start = _starts_after(node, argument, at_start)
    return sets + _of_literal(run, run_at_start)


def _starts_after(node: Any, argument: Any, at_start: bool) -> bool:
    """Whether a word, if one follows the node, surely begins there."""
    if node is op.LITERAL:
        return not chr(argument).isalnum()
    if node is op.AT:
        return argument in (op.AT_BOUNDARY, op.AT_BEGINNING_STRING, op.AT_BEGINNING)
    if node in (op.ASSERT, op.ASSERT_NOT):
        return at_start
    if node is op.SUBPATTERN:
        return _starts_after_all(argument[-1], at_start)
    if node is op.BRANCH:
        return all(_starts_after_all(branch, at_start) for branch in argument[1])
    if node in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        return (at_start or argument[0] > 0) and _starts_after_all(argument[2], at_start)
    return False


def _starts_after_all(sequence: Any, at_start: bool) -> bool:
    for node, argument in sequence:
        at_start = _starts_after(node, argument, at_start)
    return at_start


def _of_node(node: Any, argument: Any, at_start: bool) -> list[Needs]:
    if node is op.SUBPATTERN:
        return _of_sequence(argument[-1], at_start)
    if node is op.ATOMIC_GROUP:
        return _of_sequence(argument, at_start)
    if node is op.BRANCH:
        return union([_of_sequence(branch, at_start) for branch in argument[1]])
    if node in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT) and argument[0] > 0:
        return _of_sequence(argument[2], at_start)
    if node is op.IN and all(kind is op.LITERAL for kind, _ in argument):
        return [frozenset(Need(chr(code), "", 0) for _, code in argument)]
    return []


def _of_literal(literal: str, at_start: bool) -> list[Needs]:
    options = list(_keys_of_literal(literal, at_start))
    if options:
        worth, key = max(options)
        return [frozenset({Need(literal, key, worth)})]
    if not literal.strip():
        return []
    return [frozenset({Need(literal, "", 0 if len(literal) < 2 or literal.isascii() else 2)})]


def _keys_of_literal(literal: str, at_start: bool) -> Iterator[tuple[int, str]]:
    for word in _WORD.finditer(literal):
        if (at_start or word.start()) and len(word[0]) >= PREFIX:
            key = word[0][:PREFIX]
            yield (1 if word[0] in _COMMON else min(len(word[0]), 6)), key
    for pair in map(operator.add, literal, literal[1:]):
        if not pair[0].isascii() and not pair[1].isascii():
            yield 5 - 2 * len(_KANA.findall(pair)), pair


def _check(sequence: Any, steps: int) -> None:
    """Every repetition is bounded, and repetitions within repetitions stay small: no text can make a match slow."""
    for node, argument in sequence:
        if node in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
            most = argument[1]
            if most is op.MAXREPEAT or most > _LONGEST_REPEAT:
                raise PatternError(f"a repetition without a bound; write {{0,40}} (at most {_LONGEST_REPEAT})")
            inner = steps * max(most, 1)
            if inner > _MOST_STEPS:
                raise PatternError("a large repetition within a repetition")
            _check(argument[2], inner)
        elif node is op.SUBPATTERN:
            _check(argument[-1], steps)
        elif node is op.ATOMIC_GROUP:
            _check(argument, steps)
        elif node in (op.ASSERT, op.ASSERT_NOT):
            _check(argument[1], steps)
        elif node is op.BRANCH:
            for branch in argument[1]:
                _check(branch, steps)
        elif node in (op.LITERAL, op.NOT_LITERAL) and 65 <= argument <= 90:
            raise PatternError(f"the capital {chr(argument)!r}: texts are lower-case when rules see them")
