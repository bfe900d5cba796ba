"""Fallbacks: trouble that lasts is answered by a change of policy or an advice, and undone once it is over."""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from sekisho.control.backoff import Backoff
from sekisho.control.base import Sample, Signals
from sekisho.control.fallback_rules import (
    GUESSES,
    PRECEDENCE,
    RULES,
    Finding,
    Limits,
    QualityReading,
    Reason,
    Rule,
    Rung,
    findings,
    ladder,
)
from sekisho.control.overlay import Overlay, in_full, nested
from sekisho.control.policy import Policy

COUNTED_S: Final = 300.0
CRITICAL_COUNT: Final = 5
ADVICE_AGAIN_S: Final = 900.0  # how often what only a person can mend, or may, is said again
REFUSED_AGAIN_S: Final = 900.0  # how long what the engines refused is left alone; a try may hold turns for a minute
FORGOTTEN_S: Final = 900.0  # how long after a subject was seen last what was done about it is undone


class Action(msgspec.Struct, frozen=True):
    """What to do now. `changes`: of the policy, as `policy_changes.merged` takes them; None: only say `advice`.
    `subject`: which device, engine or figure. `notify`: somebody is to be told. `recovered`: the trouble is over.
    `not_before_s`: monotonic time before which nothing more is done about the same."""

    reason: Reason
    rule: str
    signal: str
    value: float | None
    limit: float | None
    changes: dict[str, Any] | None
    advice: str
    severity: Literal["info", "warning", "critical"]
    not_before_s: float
    subject: str = ""
    notify: bool = False
    recovered: bool = False


@dataclass
class _Episode:
    """What is known of one reason and subject. `rungs` is None while nothing is done about it. `paused_until_s`: where
    the back-off ends; `not_before_s` is later while an advice stands."""

    reason: Reason
    subject: str
    backoff: Backoff
    bad: int = 0
    clear_since_s: float | None = None
    seen_s: float = 0.0
    number: int | None = None
    rungs: tuple[Rung, ...] | None = None
    level: int = 0
    not_before_s: float = 0.0
    paused_until_s: float = 0.0
    theirs: set[str] = field(default_factory=set)

    @property
    def claimant(self) -> str:
        return f"{self.reason}\0{self.subject}\0"


class Fallbacks:
    """One for each policy. Time comes from `monotonic_s` alone. The changes of one `observe` must be applied before
    the next one; what is not in the policy by then counts as refused by the engines and is tried again after a quarter
    of an hour."""

    def __init__(
        self,
        chance: random.Random,
        *,
        limits: Limits | None = None,
        overlay: Overlay | None = None,
        acts: bool = True,
        kv_types: Callable[[], frozenset[str] | None] | None = None,
    ) -> None:
        """`kv_types`: tells those of `Limits`, as far as they are known by then."""
        self._chance = chance
        self._limits = limits if limits is not None else Limits()
        self._kv_types = kv_types
        self.overlay = overlay if overlay is not None else Overlay()
        self._acts = acts
        self._episodes: dict[tuple[Reason, str], _Episode] = {}
        self._answered: dict[str, Sample] = {}
        self._taken: deque[tuple[float, Reason]] = deque()
        self._looked_s: float | None = None
        self._undo = Backoff(60.0, 900.0, 2.2, chance)
        self._undo_not_before_s = 0.0
        self._looked_first = False

    @property
    def acts(self) -> bool:
        """False: everything is an advice, and what was done before is undone when its trouble is over. May be set at
        any time."""
        return self._acts

    @acts.setter
    def acts(self, acts: bool) -> None:
        if acts and not self._acts:
            for episode in self._episodes.values():
                episode.not_before_s = episode.paused_until_s  # what was advised may be done now
        self._acts = acts

    def busy_until(self, monotonic_s: float) -> None:
        """The agent waited for its own work until now (a swap, a measurement): that was no silence, and no part of a
        pause or of a recovery."""
        busy_s = 0.0 if self._looked_s is None else max(0.0, monotonic_s - self._looked_s)
        self._looked_s = monotonic_s
        self._undo_not_before_s += busy_s
        for episode in self._episodes.values():
            episode.not_before_s += busy_s
            episode.paused_until_s += busy_s
            episode.seen_s += busy_s
            if episode.clear_since_s is not None:
                episode.clear_since_s += busy_s

    @property
    def active(self) -> tuple[tuple[Reason, str], ...]:
        """What is being answered now, as (reason, subject)."""
        return tuple(key for key, episode in self._episodes.items() if episode.rungs is not None)

    def observe(
        self, signals: Signals, policy: Policy, monotonic_s: float, *, quality: QualityReading | None = None
    ) -> tuple[Action, ...]:
        """What is to be done now, in the order of `PRECEDENCE`. `policy` is the one in force."""
        silent_s = None if self._looked_s is None else max(0.0, monotonic_s - self._looked_s)
        self._looked_s = monotonic_s
        if silent_s is not None and silent_s > self._limits.silent_s:
            self._start_counting_again()
        self._reconcile(policy, monotonic_s)
        actions = []
        for finding in findings(signals, policy, quality, silent_s, self._limits, self._answered):
            episode = self._episode(finding.reason, finding.subject)
            self._count(episode, finding, monotonic_s)
            action = self._answer(episode, finding, signals, policy, monotonic_s)
            if action is not None:
                actions.append(action)
                self._remember_time_outs(action, signals)
        actions += self._forgotten(policy, monotonic_s)
        actions += self._left_over(policy, monotonic_s)
        return tuple(actions)

    def _episode(self, reason: Reason, subject: str) -> _Episode:
        key = (reason, subject)
        if key not in self._episodes:
            rule = RULES[reason]
            backoff = Backoff(rule.initial_s, rule.limit_s, rule.factor, self._chance)
            self._episodes[key] = _Episode(reason, subject, backoff)
        return self._episodes[key]

    def _remember_time_outs(self, action: Action, signals: Signals) -> None:
        """Those that an answer was given to are not counted again."""
        if action.reason == "timeout" and not action.recovered:
            last = next((each for each in reversed(signals.samples) if each.model == action.subject), None)
            if last is not None:
                self._answered[action.subject] = last

    def _start_counting_again(self) -> None:
        """Readings from before a silence and after it are not «in a row»."""
        for episode in self._episodes.values():
            episode.bad, episode.clear_since_s = 0, None

    def _reconcile(self, policy: Policy, monotonic_s: float) -> None:
        told = self.overlay.reconcile(policy, monotonic_s)
        for episode in self._episodes.values():
            if episode.rungs is None:
                continue
            episode.theirs |= told.theirs
            refused = [
                int(one.removeprefix(episode.claimant)) for one in told.refused if one.startswith(episode.claimant)
            ]
            if refused:
                episode.level = min([episode.level, *refused])
                episode.paused_until_s = max(episode.paused_until_s, monotonic_s + REFUSED_AGAIN_S)
                episode.not_before_s = max(episode.not_before_s, episode.paused_until_s)

    def _count(self, episode: _Episode, finding: Finding, monotonic_s: float) -> None:
        episode.seen_s = monotonic_s
        if finding.number is not None and finding.number == episode.number:
            return  # the same measurement as before
        episode.number = finding.number
        episode.bad = episode.bad + 1 if finding.bad else 0
        if not finding.clear:
            episode.clear_since_s = None
        elif episode.clear_since_s is None:
            episode.clear_since_s = monotonic_s

    def _answer(
        self, episode: _Episode, finding: Finding, signals: Signals, policy: Policy, monotonic_s: float
    ) -> Action | None:
        rule = RULES[episode.reason]
        if episode.rungs is not None and episode.clear_since_s is not None:
            if monotonic_s - episode.clear_since_s < rule.recover_s:
                return None
            return self._recover(episode, finding, policy, monotonic_s)
        if episode.bad < rule.readings or monotonic_s < episode.not_before_s:
            return None
        if episode.rungs is None:
            if monotonic_s - episode.not_before_s >= rule.limit_s:
                episode.backoff.reset()  # it was well for long: this is new trouble
            limits = self._limits
            if self._kv_types is not None:
                limits = msgspec.structs.replace(limits, kv_types=self._kv_types())
            episode.rungs, episode.level = ladder(finding, policy, signals, limits), 0
            episode.theirs = set()
        return self._act(episode, finding, policy, rule, monotonic_s)

    def _act(self, episode: _Episode, finding: Finding, policy: Policy, rule: Rule, monotonic_s: float) -> Action:
        rung, changes = self._climb(episode, policy, monotonic_s)
        episode.paused_until_s = monotonic_s + max(episode.backoff.next_s(), rule.settle_s)
        episode.not_before_s = episode.paused_until_s
        if not changes or not self._acts:
            episode.not_before_s = max(episode.paused_until_s, monotonic_s + ADVICE_AGAIN_S)
        episode.bad = 0
        severity, notify = self._weigh(episode.reason, rule, monotonic_s)
        advice = rule.follow_up
        if changes and not self._acts:
            advice = f"set {_told(changes)}; {advice}"
        name = rung.rule if rung is not None else "only a person can help"
        why = f"{name} ({finding.why})" if finding.why else name
        return Action(
            episode.reason,
            why,
            finding.signal,
            finding.value,
            finding.limit,
            nested(changes) if changes and self._acts else None,
            advice,
            severity,
            episode.not_before_s,
            episode.subject,
            notify,
        )

    def _climb(self, episode: _Episode, policy: Policy, monotonic_s: float) -> tuple[Rung | None, dict[str, Any]]:
        """The next rung that changes something; None and nothing at the ladder's end."""
        rungs = episode.rungs or ()
        while episode.level < len(rungs):
            rung = rungs[episode.level]
            wanted = {name: value for name, value in in_full(rung.fields).items() if name not in episode.theirs}
            if not self._acts:
                changes = {n: value for n, value in wanted.items() if self.overlay.value(policy, n) != value}
                if changes:
                    return rung, changes  # nobody has done it: it stays the next thing to do
            else:
                rank = PRECEDENCE.index(episode.reason)
                claimant = f"{episode.claimant}{episode.level}"
                changes = self.overlay.claim(policy, claimant, rank, wanted, monotonic_s)
            episode.level += 1
            if changes:
                return rung, changes
        return None, {}

    def _weigh(
        self, reason: Reason, rule: Rule, monotonic_s: float
    ) -> tuple[Literal["info", "warning", "critical"], bool]:
        """Five answers of any kind within five minutes are critical."""
        self._taken.append((monotonic_s, reason))
        while self._taken and monotonic_s - self._taken[0][0] > COUNTED_S:
            self._taken.popleft()
        critical = len(self._taken) >= CRITICAL_COUNT
        often = sum(taken == reason for _, taken in self._taken) >= rule.notify_after
        return ("critical" if critical or rule.critical else "warning"), critical or often

    def _recover(self, episode: _Episode, finding: Finding | None, policy: Policy, monotonic_s: float) -> Action:
        changes = self.overlay.release(policy, lambda claimant: claimant.startswith(episode.claimant), monotonic_s)
        episode.rungs, episode.level, episode.bad = None, 0, 0
        episode.theirs = set()
        episode.not_before_s = episode.paused_until_s  # trouble that comes again is said again
        rule = "it is over" if finding is not None else "nothing is heard of it any more"
        return Action(
            episode.reason,
            rule,
            "" if finding is None else finding.signal,
            None if finding is None else finding.value,
            None if finding is None else finding.limit,
            nested(changes) if changes else None,
            "undone" if changes else "nothing is to be undone",
            "info",
            episode.not_before_s,
            episode.subject,
            recovered=True,
        )

    def _forgotten(self, policy: Policy, monotonic_s: float) -> list[Action]:
        """What was done about a subject of which nothing can be measured any more is undone after a while."""
        actions = []
        for key, episode in list(self._episodes.items()):
            if monotonic_s - episode.seen_s < FORGOTTEN_S or monotonic_s < episode.not_before_s:
                continue
            if self._is_silent_by_us(episode):
                continue
            if episode.rungs is not None:
                actions.append(self._recover(episode, None, policy, monotonic_s))
            else:
                del self._episodes[key]
        return actions

    def _is_silent_by_us(self, episode: _Episode) -> bool:
        """Speculation that we ended tells no rate any more: begun again it would only be ended again."""
        rungs = range(len(episode.rungs or ()))
        return episode.subject.startswith(GUESSES) and any(
            self.overlay.holds(f"{episode.claimant}{level}") for level in rungs
        )

    def _has_leftovers(self) -> bool:
        state = self.overlay.state()
        claimed = {field for claim in state.claims for field in claim.fields}
        ours = {field for field, held in state.held.items() if not held.pending and held.put != held.found}
        return bool(ours - claimed)

    def _left_over(self, policy: Policy, monotonic_s: float) -> list[Action]:
        """What is still to be undone: at once what an agent before this one left, later what the engines refused to
        undo."""
        first, self._looked_first = not self._looked_first, True
        if not self._has_leftovers():
            self._undo.reset()
            return []
        if not first and not self._undo.attempts:
            self._undo_not_before_s = monotonic_s + self._undo.next_s()
        if monotonic_s < self._undo_not_before_s:
            return []
        changes = self.overlay.leftovers(policy, monotonic_s)
        self._undo_not_before_s = monotonic_s + self._undo.next_s()
        return [
            Action(
                "agent_silent",
                "undo what was left behind",
                "",
                None,
                None,
                nested(changes),
                "",
                "info",
                self._undo_not_before_s,
                "agent",
                recovered=True,
            )
        ]


def _told(changes: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in changes.items())
