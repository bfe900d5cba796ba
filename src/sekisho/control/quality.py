"""What a measured loss of quality means, and what is done about it. Pure: findings in, verdicts out.

    watching    each finding is good or bad. A bad one is told at once; three in a row, and the first step is taken.
    confirming  a step was taken: a light run says whether it was enough. If not, the next step, at once.
    held        it was enough: the policy stays there until somebody changes it, or, where that is allowed, enough good
                full runs in a row let it go one step back.
    exhausted   the last step was not enough: critical. The cache is not what costs the quality.

A finding is bad where perplexity rose by more than the limit and the rise is more than chance (its 95 % interval lies
above zero). A light run that cannot tell asks for a full one; a full run that cannot tell counts as good.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from sekisho.control.perplexity.base import Delta, Kind
from sekisho.control.quality_ladder import RUNGS, Rung, Step

BAD_IN_A_ROW: Final = 3
_UNMEASURED_IN_A_ROW: Final = 3
_MOST_DOUBLINGS: Final = 6
Phase = Literal["watching", "confirming", "held", "exhausted"]
Level = Literal["good", "unclear", "unmeasured", "bad", "step", "recovered", "step_back", "critical", "early_sign"]
SIGNAL: Final = "quality.delta_ppl"


class Finding(msgspec.Struct, frozen=True):
    """One measurement's result. `delta` None: there is none, `reason` says why."""

    kind: Kind
    delta: Delta | None
    reason: str | None = None


class Verdict(msgspec.Struct, frozen=True):
    """`rule`, `signal`, `value`, `limit`, `action`, `why` go into a `base.Decision`. `alert`: tell people now. `want`:
    a measurement that should come next, sooner than scheduled. `changes`: of the policy, to be applied."""

    level: Level
    rule: str
    action: str
    why: str
    value: float | None = None
    limit: float | None = None
    signal: str = SIGNAL
    alert: bool = False
    want: Kind | None = None
    changes: dict[str, Any] | None = None


class State(msgspec.Struct, frozen=True):
    """What survives a restart. `tried`: rungs taken since the policy last came from somewhere else; `undo`: changes
    that take each back, the newest last. `good_full`: in a row, while held. `step_backs`: that did not last."""

    phase: Phase = "watching"
    bad: int = 0
    unmeasured: int = 0
    good_full: int = 0
    step_backs: int = 0
    tried: tuple[Rung, ...] = ()
    undo: tuple[dict[str, Any], ...] = ()


class Quality:
    """Of one model. `step_back_after`: so many good full runs in a row; None never steps back. `may_act` False: steps
    are advised in the verdict's `why`, and none is carried in `changes`."""

    def __init__(self, *, step_back_after: int | None = None, may_act: bool = True, state: State | None = None) -> None:
        self.state = state or State()
        self._step_back_after, self._may_act = step_back_after, may_act

    def observe(self, finding: Finding, limit: float, steps: Sequence[Step]) -> Verdict:
        """`limit`: `quality.max_delta_ppl` of the policy in force; `steps`: `quality_ladder.steps` from that policy."""
        if finding.delta is None:
            return self._unmeasured(finding, limit)
        self._set(unmeasured=0)
        if not _is_bad(finding.delta, limit):
            if finding.kind == "light" and finding.delta.value > limit:
                return _unclear(finding.delta, limit)
            return self._good(finding, finding.delta, limit)
        return self._bad(finding.delta, limit, steps)

    def not_applied(self, why: str, limit: float, steps: Sequence[Step]) -> Verdict:
        """The engine did not take the last step. `steps`: from the policy in force, as ever."""
        self._set(undo=self.state.undo[:-1])
        return self._step(None, limit, steps, f"the engine did not take the step: {why}")

    def policy_changed(self) -> None:
        """By a person or the tuner, not by this: what was found out holds no longer."""
        self.state = State()

    # --- findings ----------------------------------------------------------------------------------------------------

    def _unmeasured(self, finding: Finding, limit: float) -> Verdict:
        """Says nothing about quality: no counter moves but its own."""
        count = self.state.unmeasured + 1
        self._set(unmeasured=count)
        return Verdict(
            level="unmeasured",
            rule="quality.unmeasured",
            action="none",
            why=finding.reason or "no reason was given",
            limit=limit,
            alert=count == _UNMEASURED_IN_A_ROW,
        )

    def _good(self, finding: Finding, delta: Delta, limit: float) -> Verdict:
        state = self.state
        self._set(bad=0)
        text = f"perplexity changed by {_told(delta)}, {limit:g} is allowed"
        if state.phase == "confirming":
            self._set(phase="held", good_full=0)
            rung = state.tried[-1] if state.tried else "as it was"
            return _verdict("recovered", delta, limit, f"{text}: {rung} is enough, and stays", alert=True)
        if state.phase == "exhausted":
            self._set(phase="held", good_full=0)
            return _verdict("recovered", delta, limit, f"{text}: it is within the limit again", alert=True)
        if state.phase == "held" and finding.kind == "full":
            self._set(good_full=state.good_full + 1)
            return self._step_back(delta, limit, text)
        return _verdict("good", delta, limit, text)

    def _step_back(self, delta: Delta, limit: float, text: str) -> Verdict:
        state = self.state
        if self._step_back_after is None or not state.undo:
            return _verdict("good", delta, limit, text)
        needed = self._step_back_after * 2 ** min(state.step_backs, _MOST_DOUBLINGS)
        if state.good_full < needed or not self._may_act:
            return _verdict("good", delta, limit, text)
        changes = state.undo[-1]
        self._set(
            phase="held",
            good_full=0,
            step_backs=state.step_backs + 1,
            tried=state.tried[:-1],
            undo=state.undo[:-1],
        )
        why = f"{text}, {needed} full runs in a row: one step back from {state.tried[-1]}"
        return _verdict("step_back", delta, limit, why, changes=changes, want="light")

    def _bad(self, delta: Delta, limit: float, steps: Sequence[Step]) -> Verdict:
        state = self.state
        text = f"perplexity rose by {_told(delta)}, {limit:g} is allowed"
        if state.phase == "confirming":
            return self._step(delta, limit, steps, f"{text}: {state.tried[-1]} is not enough")
        if state.phase == "exhausted":
            return _verdict("bad", delta, limit, f"{text}: nothing is left to try", alert=True)
        count = state.bad + 1
        self._set(bad=count, phase="watching", good_full=0)
        text = f"{text}: {count} in a row"
        if count < BAD_IN_A_ROW:
            why = f"{text}, {BAD_IN_A_ROW} are needed to act"
            return _verdict("bad", delta, limit, why, alert=True, want="light")
        return self._step(delta, limit, steps, text)

    def _step(self, delta: Delta | None, limit: float, steps: Sequence[Step], why: str) -> Verdict:
        state = self.state
        reached = max((RUNGS.index(each) for each in state.tried), default=-1)
        step = next((each for each in steps if RUNGS.index(each.rung) > reached), None)
        if step is None:
            self._set(phase="exhausted", bad=0)
            text = f"{why}; the KV cache is at 16 bits or cannot be brought there"
            return _verdict("critical", delta, limit, text, alert=True)
        if not self._may_act:
            self._set(bad=0)
            text = f"{why}; advised: KV cache at {step.rung}"
            return _verdict("bad", delta, limit, text, alert=True)
        self._set(phase="confirming", bad=0, tried=(*state.tried, step.rung), undo=(*self.state.undo, step.undo))
        text = f"{why}; next: KV cache at {step.rung}"
        return _verdict("step", delta, limit, text, alert=True, changes=step.changes, want="light")

    def _set(self, **fields: Any) -> None:
        self.state = msgspec.structs.replace(self.state, **fields)


def _is_bad(delta: Delta, limit: float) -> bool:
    return delta.value > limit and (delta.low is None or delta.low > 0)


def _unclear(delta: Delta, limit: float) -> Verdict:
    why = f"perplexity rose by {_told(delta)}, {limit:g} is allowed: too few tokens to tell it from none"
    return _verdict("unclear", delta, limit, why, want="full")


def _told(delta: Delta) -> str:
    interval = "" if delta.low is None or delta.high is None else f", 95 % {delta.low:.3f} to {delta.high:.3f}"
    return f"{delta.value:.3f} ({delta.relative:+.2%}{interval}; {delta.tokens} tokens)"


_ACTIONS: Final = {"step": "change_policy", "step_back": "change_policy", "unclear": "measure", "early_sign": "measure"}


def _verdict(
    level: Level,
    delta: Delta | None,
    limit: float,
    why: str,
    *,
    alert: bool = False,
    want: Kind | None = None,
    changes: dict[str, Any] | None = None,
) -> Verdict:
    value = None if delta is None else delta.value
    action = _ACTIONS.get(level, "alert" if alert else "none")
    return Verdict(level, f"quality.{level}", action, why, value, limit, SIGNAL, alert, want, changes)
