"""What a tuner may choose between: axes with named choices, every choice a change of the policy."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import msgspec
import numpy as np

from sekisho.control.policy import Policy
from sekisho.control.policy_changes import merged
from sekisho.engines.config import KvType
from sekisho.engines.kv_size import KvShape

Place = tuple[int, ...]
"""Which choice of each axis."""


class Axis(msgspec.Struct, frozen=True):
    """One thing to choose. `choices`: by name, the changes in the form that `policy_changes.merged` takes."""

    name: str
    choices: dict[str, dict[str, Any]]


class Candidate(msgspec.Struct, frozen=True):
    """`name` tells the choices: `kv=q8_0 threads=2`."""

    name: str
    place: Place
    policy: Policy


def _as_it_is(policy: Policy) -> Policy | None:
    return policy


class Space:
    """All combinations of the axes' choices on top of `base`, each different policy once, `base` itself left out.

    `fitted` completes a combination (the slots that fit a budget, say) or refuses it with None. Raises PolicyProblem
    where a choice is no valid change, ValueError where nothing is left to choose.
    """

    def __init__(
        self, base: Policy, axes: Sequence[Axis], fitted: Callable[[Policy], Policy | None] = _as_it_is
    ) -> None:
        self.base, self.axes = base, tuple(axes)
        self.candidates: dict[Place, Candidate] = {}
        seen = {msgspec.json.encode(base)}
        for place in itertools.product(*(range(len(axis.choices)) for axis in axes)):
            policy = fitted(self._policy(place))
            encoded = msgspec.json.encode(policy)
            if policy is not None and encoded not in seen:
                seen.add(encoded)
                self.candidates[place] = Candidate(self._name(place), place, policy)
        if not self.candidates:
            raise ValueError("nothing to choose between: no combination differs from the base")

    def sample(self, count: int, chance: Random) -> list[Candidate]:
        """Up to `count` candidates in which every choice of every axis is about equally often."""
        left = list(self.candidates.values())
        chance.shuffle(left)
        used: dict[tuple[int, int], int] = {}
        taken: list[Candidate] = []
        while left and len(taken) < count:
            rarest = min(left, key=lambda each: sum(used.get(choice, 0) for choice in enumerate(each.place)))
            left.remove(rarest)
            taken.append(rarest)
            for choice in enumerate(rarest.place):
                used[choice] = used.get(choice, 0) + 1
        return taken

    def promising(self, worth: Mapping[Place, float], count: int, chance: Random) -> list[Candidate]:
        """Up to `count` of those without a known worth: the best first, if the effects of choices add up (least
        squares over what is known)."""
        left = [each for place, each in self.candidates.items() if place not in worth]
        if not left or not worth or count < 1:
            return []
        chance.shuffle(left)
        known = np.array([self._choices(place) for place in worth])
        effects = np.linalg.lstsq(known, np.array(list(worth.values())), rcond=None)[0]
        guesses = np.array([self._choices(each.place) for each in left]) @ effects
        return [left[index] for index in np.argsort(-guesses, kind="stable")[:count]]

    def _choices(self, place: Place) -> list[float]:
        """One column for what all share, one for each choice of each axis."""
        return [
            1.0,
            *(
                float(at == choice)
                for axis, at in zip(self.axes, place, strict=True)
                for choice in range(len(axis.choices))
            ),
        ]

    def _policy(self, place: Place) -> Policy:
        policy = self.base
        for axis, choice in zip(self.axes, place, strict=True):
            policy = merged(policy, list(axis.choices.values())[choice])
        return policy

    def _name(self, place: Place) -> str:
        return " ".join(
            f"{axis.name}={list(axis.choices)[choice]}" for axis, choice in zip(self.axes, place, strict=True)
        )


def contexts_that_fit(
    budget_bytes: int, shape: KvShape, context: int, key_type: KvType, value_type: KvType, staging_bytes: int = 0
) -> int:
    """How many contexts of so many tokens the budget holds. `staging_bytes`: what of it something else needs."""
    return max(0, int((budget_bytes - staging_bytes) // (shape.token_bytes(key_type, value_type) * context)))
