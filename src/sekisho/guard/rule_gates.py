"""Which patterns of the rules may match a text, told from the words it holds, and where in it.

Each pattern has a gate: sets of literals of which a match holds one each. Words tell which sets a text may hold. Around
each literal of the set of which fewest are there, as far as a match can reach, the other sets are looked for, and last
the pattern itself is tried there. A gate stays shut only where the pattern cannot match."""

import operator
import re
from collections.abc import Sequence
from functools import partial

import msgspec

from sekisho.guard.rule_needs import PREFIX, Need, keyed_word

_LONGEST_WORD = 32
_MOST_REMEMBERED = 20_000
_WORDS = bytes(c if chr(c).isalnum() and c < 128 else 32 for c in range(256))
_ASCII = re.compile("[\x00-\x7f]+")

Tried = set[tuple[int, str]]
Span = tuple[int, int]


class Gate(msgspec.Struct, frozen=True):
    """What a text must hold for a pattern of a rule's `any` to match, one literal of each set; `pattern` is None where
    the gate is the whole rule's. `reach`: within so many characters of any of its literals a match lies, and all that
    it looks at; 0 where that is not known."""

    pattern: str | None
    sets: tuple[tuple[Need, ...], ...]
    reach: int = 0


class _Armed:
    """A gate with its pattern, compiled when first needed. `keyed`: those of its sets that words of a text tell of,
    `loose`: of the other sets the number, and the literals that no word tells of."""

    def __init__(self, gate: Gate, sets: list[int]) -> None:
        self.pattern = gate.pattern
        self.reach = gate.reach
        self.sets = sets
        self.keyed = frozenset(n for n, one in zip(sets, gate.sets, strict=True) if all(need.key for need in one))
        self.loose = [
            (number, tuple(need.literal for need in one if not need.key))
            for number, one in zip(sets, gate.sets, strict=True)
            if number not in self.keyed
        ]
        self.has_latin = all(any(need.literal.isascii() for need in one) for one in gate.sets)
        self._compiled: re.Pattern[str] | None = None

    def matches(self, text: str, span: Span) -> bool:
        """Whether the pattern matches within the span."""
        if self._compiled is None:
            self._compiled = re.compile(self.pattern or "", re.ASCII)
        return self._compiled.search(text, *span) is not None


class _Reading:
    """A text on its way through the gates. `latin`: with one byte a character, in which literals are found soonest.
    `literals`: those that its words speak for; `sets`: those that hold one of these."""

    def __init__(self, text: str, latin: str, literals: set[int], sets: set[int]) -> None:
        self.text, self.latin, self.literals, self.sets = text, latin, literals, sets
        self.held: dict[int, frozenset[int]] = {}
        self.spots: dict[int, list[int]] = {}


class Gates:
    """The gates of many rules. Safe in several threads: what it remembers of words is only ever added or dropped."""

    def __init__(self, gates: Sequence[Gate]) -> None:
        self._needs: dict[Need, int] = {}
        self._sets: dict[tuple[Need, ...], int] = {}
        self._members: list[frozenset[int]] = []  # per set: its literals
        self._in_sets: list[list[int]] = []  # per literal: the sets that it is in
        self._by_key: dict[str, list[tuple[str, int]]] = {}
        self._by_pair: dict[str, list[int]] = {}
        self._armed: list[_Armed] = []
        self._leads: dict[int, list[int]] = {}  # per set: the gates that it leads to
        self._always: list[int] = []
        for place, gate in enumerate(gates):
            armed = _Armed(gate, [self._set(one) for one in gate.sets])
            self._armed.append(armed)
            if armed.keyed:
                self._leads.setdefault(next(n for n in armed.sets if n in armed.keyed), []).append(place)
            else:
                self._always.append(place)
        self._literals = [need.literal for need in self._needs]
        self._latin = [literal.isascii() for literal in self._literals]
        self._weights = [4 if need.worth < 2 else 1 for need in self._needs]
        self._leading = frozenset(self._leads)
        self._pairs = frozenset(self._by_pair)
        self._always_latin = [place for place in self._always if self._armed[place].has_latin]
        self._dull: set[str] = set()  # words that lead nowhere
        self._telling: dict[str, tuple[int, ...]] = {}

    def _set(self, choice: tuple[Need, ...]) -> int:
        if choice in self._sets:
            return self._sets[choice]
        number = self._sets[choice] = len(self._sets)
        members = [self._need(need) for need in choice]
        self._members.append(frozenset(members))
        for member in members:
            self._in_sets[member].append(number)
        return number

    def _need(self, need: Need) -> int:
        if need not in self._needs:
            number = self._needs[need] = len(self._needs)
            self._in_sets.append([])
            if not need.key.isascii():
                self._by_pair.setdefault(need.key, []).append(number)
            elif need.key:
                self._by_key.setdefault(need.key, []).append((keyed_word(need), number))
        return self._needs[need]

    def open(self, text: str, tried: Tried) -> list[int]:
        """The gates that open, in order. `tried` remembers stretches where gates stayed shut, from one reading of a
        text to the next."""
        reading = self._read(text)
        opened = [
            place
            for number in self._leading & reading.sets
            for place in self._leads[number]
            if self._armed[place].keyed <= reading.sets and self._opens(place, reading, tried)
        ]
        opened += [
            place
            for place in (self._always_latin if text.isascii() else self._always)
            if self._opens(place, reading, tried)
        ]
        return sorted(opened)

    def _opens(self, place: int, reading: _Reading, tried: Tried) -> bool:
        """Whether a gate opens where its sets stand together. Its keyed sets are among the reading's."""
        armed = self._armed[place]
        for number, literals in armed.loose:
            if number not in reading.sets and not _holds(reading.text, literals):
                return False
        if not armed.reach:
            return True
        driving = min(armed.keyed, key=partial(self._weight, reading), default=None)
        if driving is None:
            return self._matches(place, reading, (0, len(reading.text)), tried)
        spots = [spot for literal in reading.held[driving] for spot in self._spots(literal, reading)]
        if not spots:
            return False
        if len(spots) > 1:
            spots.sort()
            if len(spots) * armed.reach > len(reading.text):
                return self._matches(place, reading, (0, len(reading.text)), tried)
        others = [reading.held[number] for number in armed.keyed if number != driving]
        for low, high in _around(spots, armed.reach, len(reading.text)):
            stretch = reading.text[low:high]
            for held in others:
                for literal in held:
                    if self._literals[literal] in stretch:
                        break
                else:
                    break
            else:
                if self._matches(place, reading, (low, high), tried):
                    return True
        return False

    def _matches(self, place: int, reading: _Reading, span: Span, tried: Tried) -> bool:
        """Whether the pattern of the gate matches there, unless it was tried on the same stretch."""
        armed = self._armed[place]
        stretch = (place, reading.text[span[0] : span[1]])
        if stretch in tried:
            return False
        if armed.pattern is None or armed.matches(reading.text, span):
            return True
        if span[0] and span[1] < len(reading.text):  # at an edge of the text a pattern may see more than the stretch
            tried.add(stretch)
        return False

    def _weight(self, reading: _Reading, number: int) -> int:
        """How many literals of a set the words of a text speak for; frequent ones count more."""
        held = reading.held.get(number)
        if held is None:
            held = reading.held[number] = self._members[number] & reading.literals
        return sum([self._weights[literal] for literal in held])

    def _spots(self, literal: int, reading: _Reading) -> list[int]:
        """Where a literal stands in the text."""
        spots = reading.spots.get(literal)
        if spots is None:
            spots = reading.spots[literal] = []
            text, wanted = reading.latin if self._latin[literal] else reading.text, self._literals[literal]
            start = text.find(wanted)
            while start >= 0:
                spots.append(start)
                start = text.find(wanted, start + 1)
        return spots

    def _read(self, text: str) -> _Reading:
        """The literals that the words and pairs of letters of a text speak for."""
        data = text.encode("ascii", "replace")
        words = set(data.translate(_WORDS).decode("ascii").split())
        literals: set[int] = set()
        for word in words - self._dull:
            numbers = self._telling.get(word)
            literals.update(self._learn(word) if numbers is None else numbers)
        if not text.isascii():
            rest = _ASCII.sub(" ", text)
            for pair in self._pairs.intersection(map(operator.add, rest, rest[1:])):
                literals.update(self._by_pair[pair])
        sets = {number for literal in literals for number in self._in_sets[literal]}
        return _Reading(text, data.decode("ascii"), literals, sets)

    def _learn(self, word: str) -> tuple[int, ...]:
        """The literals that a word may begin."""
        numbers = tuple(n for start, n in self._by_key.get(word[:PREFIX], ()) if word.startswith(start))
        if len(word) <= _LONGEST_WORD:
            if len(self._dull) + len(self._telling) >= _MOST_REMEMBERED:
                self._dull, self._telling = set(), {}
            if numbers:
                self._telling[word] = numbers
            else:
                self._dull.add(word)
        return numbers


def _holds(text: str, literals: tuple[str, ...]) -> bool:
    return any(literal in text for literal in literals)


def _around(spots: list[int], reach: int, size: int) -> list[Span]:
    """The stretches so far around, those that touch joined."""
    joined: list[Span] = []
    low, high = max(0, spots[0] - reach), spots[0] + reach
    for spot in spots[1:]:
        if spot - reach > high:
            joined.append((low, high))
            low = spot - reach
        high = spot + reach
    joined.append((low, min(high, size)))
    return joined
