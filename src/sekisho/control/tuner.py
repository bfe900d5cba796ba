"""Finds the policy that reaches a target within limits, with few measurements.

1. A first rung: a sample of the space in which every choice is about equally often, measured shortly.
2. From rung to rung the effort grows. Of the worse two thirds, those are dropped that are worse than the best beyond
   the noise, which is measured in the same rung. New ones come in: what would be best if the choices' effects added up.
3. The best is compared with the baseline once more, in interleaved pairs, and only that is reported as its gain.

In each round the baseline and all candidates are measured once, in random order, and scored against that round's
baseline: a machine that grows slower hits all alike. Over a limit, or of unknown quality: dropped at once.
"""

from random import Random
from typing import Final

import msgspec

from sekisho.control import tuner_reasons as reasons
from sekisho.control.comparison import LEVEL, Block, Comparison, ComparisonPlan, OutOfBudget, compare
from sekisho.control.measured import Measure, Measured, MeasurementFailed, log_ratio, middle
from sekisho.control.policy import Policy
from sekisho.control.subset_means import SubsetMeans, fewest
from sekisho.control.tuner_limits import Budget, Limits
from sekisho.control.tuner_noise import Noise, between_rounds, within
from sekisho.control.tuner_purse import Purse, fault_of
from sekisho.control.tuner_reasons import Dropped, Why
from sekisho.control.tuner_report import Observation, Outcome, RungNoise, Tried, TuningReport
from sekisho.control.tuner_space import Candidate, Place, Space
from sekisho.control.tuner_target import Goal, Target
from sekisho.core.clock import Clock

_BASELINE: Final = Candidate("baseline", (), Policy())
_EQUAL: Final = 1e-9
_KEPT_SHARE: Final = 3
_LEAST_FIRST: Final = 4
_LEAST_NEWCOMERS: Final = 2


async def tune(
    space: Space, measure: Measure, target: Target, limits: Limits, budget: Budget, chance: Random, clock: Clock
) -> TuningReport:
    """Searches `space` for the best policy. A measurement that fails, or does not end within the budget's seconds,
    drops its candidate; where the baseline cannot be measured, nothing can be said. Errors other than MeasurementFailed
    go through."""
    purse = Purse(measure, budget, clock)
    search = _Search(space, purse, target, limits, budget, chance)
    await search.run()
    winner, comparison = await search.confirm()
    return _report(search, purse, winner, comparison)


class _Entry:
    """A candidate while it is being looked at. `scores` and `slowdowns` are those of the last whole rung; `fresh` those
    of the rung that runs."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.observations: list[Observation] = []
        self.scores: list[float] = []
        self.slowdowns: list[float | None] = []
        self.fresh: list[tuple[float, float | None]] = []
        self.dropped: Dropped | None = None
        self.crossed = False  # a limit, or it cannot be measured

    @property
    def score(self) -> float | None:
        return sum(self.scores) / len(self.scores) if self.scores else None

    def settle(self) -> None:
        """The rung that ran is what counts now."""
        self.scores = [score for score, _ in self.fresh]
        self.slowdowns = [slowdown for _, slowdown in self.fresh]

    def tried(self, target: Target, baseline: Measured) -> Tried:
        missed = target.missed(middle(each.measured for each in self.observations), baseline)
        at = self.candidate
        return Tried(at.name, at.policy, tuple(self.observations), self.score, self.dropped, missed)


class _Search:
    """The rungs. `entries` in the order in which they came."""

    def __init__(
        self, space: Space, purse: Purse, target: Target, limits: Limits, budget: Budget, chance: Random
    ) -> None:
        self.space, self.target, self.limits, self.budget = space, target, limits, budget
        self._purse, self._chance = purse, chance
        self.baseline = _Entry(_BASELINE)
        self.entries: dict[Place, _Entry] = {}
        self.noise: list[RungNoise] = []
        self.baseline_fault: str | reasons.TimeRanOut | None = None
        self.seed = chance.getrandbits(32)
        self._round = 0
        self.effort = budget.efforts[0]

    @property
    def alive(self) -> list[_Entry]:
        """Best first; those without a score last."""
        left = [entry for entry in self.entries.values() if entry.dropped is None]
        return sorted(left, key=lambda entry: -entry.score if entry.score is not None else float("inf"))

    def room(self) -> int:
        """Measurements that the search may still spend."""
        return self.budget.measurements - self.budget.confirmation - self._purse.spent

    async def run(self) -> None:
        most, least = self._places(self.room()), self._places(self.room() // 2)
        self._admit(self.space.sample(max(least, min(most, _LEAST_FIRST)), self._chance))
        rung = 0
        while self.alive:
            effort = self.budget.efforts[min(rung, len(self.budget.efforts) - 1)]
            if not self._cut_to_budget(effort):
                return
            self.effort = effort
            try:
                await self._rung(rung)
            except OutOfBudget:
                return
            if not self.baseline.observations:
                return
            came = self._newcomers()
            rung += 1
            if rung >= len(self.budget.efforts) and not came:
                return

    def _places(self, measurements: int) -> int:
        return measurements // self.budget.rounds - 1

    def _admit(self, candidates: list[Candidate]) -> None:
        self.entries.update({each.place: _Entry(each) for each in candidates})

    def _newcomers(self) -> bool:
        """Lets in the most promising that were not tried, as many as half of what is left can measure beside the
        survivors, and at least two while all of it can."""
        alive = len(self.alive)
        soft, hard = self._places(self.room() // 2) - alive, self._places(self.room()) - alive
        chosen = self.space.promising(self._worth(), max(soft, min(hard, _LEAST_NEWCOMERS)), self._chance)
        self._admit(chosen)
        return bool(chosen)

    def _worth(self) -> dict[Place, float]:
        """The last score of each that was tried; one that failed or crossed a limit is below all of them."""
        tried = [entry for entry in self.entries.values() if entry.score is not None or entry.crossed]
        lowest = min((entry.score for entry in tried if entry.score is not None), default=0.0)
        return {each.candidate.place: lowest - 1.0 if each.crossed else each.score or 0.0 for each in tried}

    def _cut_to_budget(self, effort: float) -> bool:
        """Drops the last ones where a rung cannot take them all. False: there is no budget for another rung."""
        places = self._places(self.room())
        confirmation, rounds = self.budget.confirmation, self.budget.rounds
        while places >= 1 and not self._purse.affords(confirmation + rounds * (1 + places), effort):
            places -= 1
        alive = self.alive
        if places < 1 or (places == 1 and len(alive) > 1 and alive[0].score is not None):
            return False
        for entry in alive[places:]:
            entry.dropped = reasons.NoBudgetLeft()
        return True

    async def _rung(self, rung: int) -> None:
        """Raises OutOfBudget: a rung that is not whole counts only where there was none before it."""
        for entry in self.alive:
            entry.fresh = []
        try:
            for _ in range(self.budget.rounds):
                await self._one_round(rung)
        except OutOfBudget:
            if rung > 0:
                raise
            self._judge(rung)
            raise
        self._judge(rung)

    async def _one_round(self, rung: int) -> None:
        self._round += 1
        order = [self.baseline, *self.alive]
        self._chance.shuffle(order)
        got: dict[Place, Measured] = {}
        for entry in order:
            if not self._purse.affords(1 + self.budget.confirmation, self.effort):
                raise OutOfBudget("what is left is kept for the confirmation")
            measured = await self._observed(entry, rung)
            if measured is not None:
                got[entry.candidate.place] = measured
        reference = got.pop(_BASELINE.place, None)
        if reference is None:
            return
        for place, measured in got.items():
            score = self.target.score(measured, reference)
            if score is not None:
                slowdown = log_ratio("prefill_tokens_per_s", measured, reference)
                self.entries[place].fresh.append((score, slowdown))

    async def _observed(self, entry: _Entry, rung: int) -> Measured | None:
        """Measures once; None where it failed or crossed a limit, for which it is dropped."""
        try:
            measured = await self._purse.measured(self._policy(entry), self.effort)
        except MeasurementFailed as error:
            if entry is self.baseline:
                self.baseline_fault = fault_of(error)
            else:
                entry.dropped, entry.crossed = reasons.NotMeasured(fault_of(error)), True
            return None
        entry.observations.append(Observation(rung, self._round, self.effort, measured))
        if entry is self.baseline:
            return measured
        if missing := self.target.missing(measured):
            entry.dropped = reasons.FiguresNotMeasured(missing)
        entry.dropped = self.limits.crossed(measured) or entry.dropped
        entry.crossed = entry.dropped is not None
        return measured if entry.dropped is None else None

    def _policy(self, entry: _Entry) -> Policy:
        return self.space.base if entry is self.baseline else entry.candidate.policy

    def _judge(self, rung: int) -> None:
        """Drops what is over the prefill limit, and of the worse two thirds what is surely worse than the best."""
        for entry in self.alive:
            entry.settle()
        most = max((len(entry.scores) for entry in self.alive), default=0)
        scored = [entry for entry in self.alive if most and len(entry.scores) == most]
        known = [[each for each in entry.slowdowns if each is not None] for entry in scored]
        prefill = within(known)
        for entry in scored:
            margin = prefill.margin(len(entry.slowdowns))
            entry.dropped = self.limits.prefill_crossed(entry.slowdowns, margin)
            entry.crossed = entry.dropped is not None
        left = [entry for entry in scored if entry.dropped is None]
        noise = between_rounds([entry.scores for entry in left])
        self.noise.append(RungNoise(rung, self.effort, noise.sd, prefill.sd))
        for entry in left[-(-len(left) // _KEPT_SHARE) :]:
            self._drop_if_worse(entry, left[0], noise)

    def _drop_if_worse(self, entry: _Entry, best: _Entry, noise: Noise) -> None:
        behind = (best.score or 0.0) - (entry.score or 0.0)
        margin = noise.margin(len(entry.scores), len(best.scores))
        if behind > margin + _EQUAL:
            entry.dropped = reasons.Worse(best.candidate.name, behind, margin)

    async def confirm(self) -> tuple[_Entry | None, Comparison | None]:
        """The best candidate that holds the limits in fresh measurements too, and those measurements."""
        for entry in self.alive:
            if entry.score is None:
                entry.dropped = reasons.NeverBesideBaseline()
                continue
            entry.dropped = self.limits.prefill_crossed(entry.slowdowns)
            if entry.dropped is None and entry.score <= _EQUAL:
                entry.dropped = reasons.NotBetter()
            if entry.dropped is None:
                comparison = await self._compared(entry)
                entry.dropped = self._crossed(comparison)
                if entry.dropped is None:
                    self._drop_the_rest(entry)
                    return entry, comparison
        return None, None

    async def _compared(self, entry: _Entry) -> Comparison:
        plan = ComparisonPlan(self.budget.confirm_blocks, "ab", self.effort)
        return await compare(self.space.base, entry.candidate.policy, self._purse.measured, plan, self._chance)

    def _crossed(self, comparison: Comparison) -> Dropped | None:
        whole = [block for block in comparison.blocks if block.fault is None]
        if not whole:
            faults = (*comparison.faults, comparison.stopped or "")
            return reasons.NotCompared(next(filter(None, faults), "no block"))
        measured = [each for block in comparison.blocks for each in block.second]
        crossed = [fault for each in measured if (fault := self.limits.crossed(each)) is not None]
        if crossed:
            return reasons.CrossedAgain(crossed[0])
        pairs = [pair for block in whole for pair in _pairs(block)]
        slower = [log_ratio("prefill_tokens_per_s", mine, theirs) for theirs, mine in pairs]
        fault = self.limits.prefill_crossed(slower)
        return None if fault is None else reasons.CrossedAgain(fault)

    def _drop_the_rest(self, winner: _Entry) -> None:
        for entry in self.alive:
            if entry is not winner:
                behind = None if entry.score is None else (winner.score or 0.0) - entry.score
                entry.dropped = (
                    reasons.NeverBesideBaseline()
                    if behind is None
                    else reasons.Outranked(winner.candidate.name, behind)
                )


def _report(search: _Search, purse: Purse, winner: _Entry | None, comparison: Comparison | None) -> TuningReport:
    reference = middle(each.measured for each in search.baseline.observations)
    outcome, why = _outcome(search, winner, comparison)
    baseline = search.baseline.tried(search.target, reference)
    baseline = msgspec.structs.replace(baseline, policy=search.space.base, score=0.0)
    policy, missed = search.space.base, baseline.missed
    if outcome == "better" and winner is not None and comparison is not None:
        policy, missed = winner.candidate.policy, _missed(search.target, comparison)
    return TuningReport(
        outcome=outcome,
        why=why,
        policy=policy,
        winner=None if winner is None else winner.candidate.name,
        gain=None if comparison is None else comparison.ratio(search.target.improve),
        missed=missed,
        baseline=baseline,
        tried=tuple(entry.tried(search.target, reference) for entry in search.entries.values()),
        comparison=comparison,
        noise=tuple(search.noise),
        untried=len(search.space.candidates) - len(search.entries),
        measurements=purse.spent,
        seconds=purse.seconds,
        target=search.target,
        limits=search.limits,
        budget=search.budget,
    )


def _approached(target: Target, comparison: Comparison) -> tuple[tuple[Goal, ...], tuple[Goal, ...]]:
    """The goals that the baseline misses: those that the winner reaches, and those that it misses by less."""
    baseline, winner = _middles(comparison)
    missed = target.missed(winner, baseline)
    reached = tuple(goal for goal in target.missed(baseline, baseline) if goal not in missed)
    shortfalls = ((goal, goal.shortfall(winner, baseline), goal.shortfall(baseline, baseline)) for goal in missed)
    nearer = (goal for goal, now, before in shortfalls if now is not None and before is not None and now < before)
    return reached, tuple(nearer)


def _missed(target: Target, comparison: Comparison) -> tuple[Goal, ...]:
    baseline, winner = _middles(comparison)
    return target.missed(winner, baseline)


def _middles(comparison: Comparison) -> tuple[Measured, Measured]:
    """The baseline's figures and the winner's."""
    first = middle(each for block in comparison.blocks for each in block.first)
    return first, middle(each for block in comparison.blocks for each in block.second)


def _outcome(search: _Search, winner: _Entry | None, comparison: Comparison | None) -> tuple[Outcome, Why]:
    if not search.baseline.observations and search.baseline_fault is not None:
        return "not measured", reasons.BaselineNotMeasured(search.baseline_fault)
    if all(entry.score is None and not entry.crossed for entry in search.entries.values()):
        return "not measured", reasons.BudgetEnded()
    if winner is None or comparison is None:
        return "nothing better", reasons.NoneBetter()
    name, ratio = winner.candidate.name, comparison.ratio(search.target.improve)
    pairs = [pair for block in comparison.blocks if block.fault is None for pair in _pairs(block)]
    scores = [score for first, second in pairs if (score := search.target.score(second, first)) is not None]
    bounds = SubsetMeans(scores, search.seed).bounds(LEVEL)
    if ratio is None or bounds is None:
        return "not distinguishable", reasons.TooFewPairs(name, len(scores), fewest(LEVEL))
    known = (name, search.target.improve, ratio.value, ratio.n)
    if bounds[0] <= 0:
        return "not distinguishable", reasons.LeadMayBeNoise(*known)
    return "better", reasons.Better(*known, *_approached(search.target, comparison))


def _pairs(block: Block) -> list[tuple[Measured, Measured]]:
    return list(zip(block.first, block.second, strict=True))
