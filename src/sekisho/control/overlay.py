"""What the agent itself changed, laid over what people decided, so that it can be taken away again and only that.

Several rules may want the same field at the same time. Each holds a claim; the claim with the lowest rank wins, among
equals the latest. When the last claim on a field goes, the field gets back the value it was found with. A field that
somebody else changed meanwhile is theirs: all claims on it are forgotten.

    policy's value --claim--> asked for --seen in the policy--> in force --release--> asked back --seen--> forgotten
                                 '--policy unchanged: the engines refused, the claim is dropped
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from sekisho.control.policy import Policy
from sekisho.control.policy_changes import dotted, normalised

MODE: Final = "kv.mode"
_ABSENT: Final = object()


class Claim(msgspec.Struct, frozen=True):
    """`fields`: wanted values by dotted name. `rank`: 0 comes before 1."""

    claimant: str
    rank: int
    fields: dict[str, Any]


class Held(msgspec.Struct, frozen=True):
    """One field under the agent's hand. `found`: what people had decided. `put`: what is in force by us. `wanted`: what
    was asked for at `asked_s` and not seen yet (`pending`)."""

    found: Any
    put: Any
    wanted: Any = None
    pending: bool = False
    asked_s: float = 0.0


class OverlayState(msgspec.Struct, frozen=True):
    """The whole overlay as a value, to be written down and read back."""

    held: dict[str, Held] = {}
    claims: tuple[Claim, ...] = ()


class Reconciled(msgspec.Struct, frozen=True):
    """`theirs`: fields that somebody else changed. `refused`: claimants whose change did not come into force."""

    theirs: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()


class Overlay:
    """Touches no policy: it answers with the changes to make (dotted field -> value), and sees at the next `reconcile`
    what became of them. Changes must be applied before the next round, else they count as refused."""

    def __init__(self, state: OverlayState | None = None) -> None:
        """With the state of an agent that is gone, its claims are dropped, and `leftovers` says what to put back."""
        self._held: dict[str, Held] = dict(state.held) if state is not None else {}
        self._claims: list[Claim] = []

    def state(self) -> OverlayState:
        return OverlayState(dict(self._held), tuple(self._claims))

    def value(self, policy: Policy, field: str) -> Any:
        """What the field is, or is about to be."""
        held = self._held.get(field)
        return value_of(policy, field) if held is None else held.wanted if held.pending else held.put

    def holds(self, claimant: str) -> bool:
        return any(claim.claimant == claimant for claim in self._claims)

    def reconcile(self, policy: Policy, monotonic_s: float) -> Reconciled:
        """Compares with the policy in force. What was asked for in this same round is left alone."""
        theirs: set[str] = set()
        refused: set[str] = set()
        for field, held in list(self._held.items()):
            value = value_of(policy, field)
            if held.pending and held.asked_s == monotonic_s:
                continue
            if held.pending and value == held.wanted:
                self._confirm(field, held)
            elif held.pending and value == held.put:
                self._held[field] = msgspec.structs.replace(held, wanted=None, pending=False)
                winner = self._winner(field)
                if winner is not None and winner.fields[field] == held.wanted:
                    refused.add(winner.claimant)
            elif held.pending or value != held.put:
                theirs.add(field)
                self._forget(field)
        for claimant in refused:
            self._claims = [claim for claim in self._claims if claim.claimant != claimant]
        self._forget_untouched()
        return Reconciled(frozenset(theirs), frozenset(refused))

    def claim(
        self, policy: Policy, claimant: str, rank: int, fields: Mapping[str, Any], monotonic_s: float
    ) -> dict[str, Any]:
        """Wants these values from now on. Answers with what must change: nothing where they are so already (that is no
        claim then), or where a claim of lower rank holds the field (then this one waits its turn)."""
        wanted = {field: value for field, value in fields.items() if self._is_news(policy, field, value)}
        if not wanted:
            return {}
        self._claims.append(Claim(claimant, rank, wanted))
        for field in wanted:
            if field not in self._held:
                found = value_of(policy, field)
                self._held[field] = Held(found, found)
        return self._settle(policy, wanted, monotonic_s)

    def release(self, policy: Policy, belongs: Callable[[str], bool], monotonic_s: float) -> dict[str, Any]:
        """Wants nothing any more; `belongs` says whose claims go. Answers with what must change back."""
        gone = [claim for claim in self._claims if belongs(claim.claimant)]
        self._claims = [claim for claim in self._claims if not belongs(claim.claimant)]
        return self._settle(policy, {field: None for claim in gone for field in claim.fields}, monotonic_s)

    def leftovers(self, policy: Policy, monotonic_s: float) -> dict[str, Any]:
        """What must still change back: releases that the engines refused, and what an agent that is gone left."""
        unclaimed = {field: None for field in self._held if self._winner(field) is None}
        return self._settle(policy, unclaimed, monotonic_s)

    def _is_news(self, policy: Policy, field: str, value: Any) -> bool:
        return self._winner(field) is not None or self.value(policy, field) != value

    def _winner(self, field: str) -> Claim | None:
        claims = [claim for claim in self._claims if field in claim.fields]
        return min(reversed(claims), key=lambda claim: claim.rank, default=None)

    def _settle(self, policy: Policy, fields: Mapping[str, Any], monotonic_s: float) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        for field in fields:
            held = self._held.get(field)
            if held is None:
                continue
            winner = self._winner(field)
            target = held.found if winner is None else winner.fields[field]
            now = held.wanted if held.pending else held.put
            if target != now:
                changes[field] = target
                self._held[field] = msgspec.structs.replace(held, wanted=target, pending=True, asked_s=monotonic_s)
            if target == held.put and self._held[field].pending:  # asked for and taken back within one round
                self._held[field] = msgspec.structs.replace(held, wanted=None, pending=False)
        for field in in_full({MODE: changes[MODE]}) if MODE in changes else ():
            changes.setdefault(field, self.value(policy, field))  # else the mode would bring its own
        self._forget_untouched()
        return changes

    def _confirm(self, field: str, held: Held) -> None:
        self._held[field] = msgspec.structs.replace(held, put=held.wanted, wanted=None, pending=False)

    def _forget_untouched(self) -> None:
        """A field that nobody claims and that has its found value is no longer ours."""
        for field, held in list(self._held.items()):
            if not held.pending and held.put == held.found and self._winner(field) is None:
                del self._held[field]

    def _forget(self, field: str) -> None:
        del self._held[field]
        kept = []
        for claim in self._claims:
            fields = {name: value for name, value in claim.fields.items() if name != field}
            if fields:
                kept.append(msgspec.structs.replace(claim, fields=fields))
        self._claims = kept


def value_of(policy: Policy, field: str) -> Any:
    """The value under a dotted name, in plain terms. Raises KeyError for a name that there is not."""
    part: Any = policy
    for name in field.split("."):
        part = getattr(part, name, _ABSENT)
        if part is _ABSENT:
            raise KeyError(field)
    return msgspec.to_builtins(part)


def in_full(fields: Mapping[str, Any]) -> dict[str, Any]:
    """With what a mode brings along (window, budget, types): the fields that one who sets it takes in hand."""
    return dotted(normalised(nested(fields))) if MODE in fields else dict(fields)


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`{"kv.mode": x}` as `{"kv": {"mode": x}}`, as changes of a policy are written."""
    changes: dict[str, Any] = {}
    for field, value in fields.items():
        *sections, name = field.split(".")
        part = changes
        for section in sections:
            part = part.setdefault(section, {})
        part[name] = value
    return changes
