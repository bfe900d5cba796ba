"""Parts of a policy switched on and off: what each brings, and what two bring together, measured on a live engine.

Up to four parts: all 2^k combinations. Five to eight: the half in which an even number is off; an effect of n parts
can then not be told from that of the k − n others, so only effects of one and two parts are told, which from k = 5 on
are mixed with effects of three and more parts only.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Final

import msgspec
import numpy as np

from sekisho.control.comparison import OutOfBudget
from sekisho.control.measured import FigureName, Measure, Measured, MeasurementFailed
from sekisho.control.policy import Policy
from sekisho.control.policy_changes import difference, merged
from sekisho.evaluate.factorial import Cell, Effect, effects, from_contrasts
from sekisho.evaluate.paired import Floats

FULL_UP_TO: Final = 4
MOST_PARTS: Final = 8


class AblationFailed(Exception):
    """No round was measured whole. The text says what failed."""


class Part(msgspec.Struct, frozen=True):
    """`changes`: what it changes in the policy when it is on, in the form that `policy_changes.merged` takes."""

    name: str
    changes: dict[str, Any]


class AblationPlan(msgspec.Struct, frozen=True):
    """`rounds`: each measures every combination once, in random order; 6 for intervals of 95 %."""

    rounds: int = 6
    effort: float = 1.0
    seed: int = 1
    figures: tuple[FigureName, ...] = ("decode_tokens_per_s", "prefill_tokens_per_s")


class FigureEffects(msgspec.Struct, frozen=True):
    """Effects on one figure, as ratios. `missing`: why there are none."""

    figure: FigureName
    effects: tuple[Effect, ...]
    missing: str | None = None


class Ablation(msgspec.Struct, frozen=True):
    """`cells`: by the names of the parts that are on (`none`: the base), what each round measured. `half`: not all
    combinations were measured. `faults`: rounds that do not count, and why. `stopped`: why there are fewer rounds than
    planned."""

    parts: tuple[Part, ...]
    base: Policy
    plan: AblationPlan
    half: bool
    rounds: int
    cells: dict[str, tuple[Measured, ...]]
    effects: tuple[FigureEffects, ...]
    faults: tuple[str, ...]
    stopped: str | None = None


async def ablate(base: Policy, parts: Sequence[Part], measure: Measure, plan: AblationPlan) -> Ablation:
    """Measures and works out the effects. A combination that fails is measured once more at the end of its round; a
    round in which it fails again does not count. Where `measure` raises OutOfBudget, the rounds before count. Raises
    ValueError for parts that cannot be told apart, `policy_changes.PolicyProblem` for a change that is none,
    AblationFailed where no round counts."""
    chosen = combinations_of(parts)
    policies = {cell: _policy(base, parts, cell) for cell in chosen}
    random = np.random.default_rng(plan.seed)
    rounds: list[dict[Cell, Measured]] = []
    faults: list[str] = []
    stopped: str | None = None
    for number in range(1, plan.rounds + 1):
        order = [chosen[place] for place in random.permutation(len(chosen))]
        try:
            rounds.append(await _round(order, policies, measure, plan.effort))
        except MeasurementFailed as error:
            faults.append(f"round {number}: {error}")
        except OutOfBudget as error:
            stopped = str(error)
            break
    if not rounds:
        raise AblationFailed("; ".join((*faults, *filter(None, [stopped]))) or "no round was asked for")
    names = tuple(part.name for part in parts)
    series = {cell: tuple(each[cell] for each in rounds) for cell in chosen}
    return Ablation(
        parts=tuple(parts),
        base=base,
        plan=plan,
        half=len(parts) > FULL_UP_TO,
        rounds=len(rounds),
        cells={name_of(cell, names): measured for cell, measured in series.items()},
        effects=tuple(_figure_effects(figure, names, series, plan.seed) for figure in plan.figures),
        faults=tuple(faults),
        stopped=stopped,
    )


def combinations_of(parts: Sequence[Part]) -> tuple[Cell, ...]:
    """Those that are measured, from few parts to many. Raises ValueError for no parts, too many, or two that have a
    name or a field in common."""
    names = [part.name for part in parts]
    if not 1 <= len(parts) <= MOST_PARTS or len(set(names)) != len(names):
        raise ValueError(f"one to {MOST_PARTS} parts with different names, not {names}")
    for one, other in combinations(parts, 2):
        both = _fields(one) & _fields(other)
        if both:
            raise ValueError(f"{one.name} and {other.name} both change {', '.join(sorted(both))}")
    every = (frozenset(chosen) for size in range(len(names) + 1) for chosen in combinations(names, size))
    if len(names) <= FULL_UP_TO:
        return tuple(every)
    return tuple(cell for cell in every if (len(names) - len(cell)) % 2 == 0)


def name_of(cell: Cell, names: Sequence[str]) -> str:
    return "+".join(name for name in names if name in cell) or "none"


def half_effects(factors: Sequence[str], measured: Mapping[Cell, Sequence[float]], *, seed: int) -> tuple[Effect, ...]:
    """Effects of one and two factors from half of the combinations, as `factorial.effects` has them from all."""
    cells = tuple(measured)
    logs = np.log(np.array([measured[cell] for cell in cells], dtype=float))
    chosen = [which for size in (1, 2) for which in combinations(factors, size)]
    return from_contrasts({which: _contrast(which, cells) @ logs for which in chosen}, seed=seed)


async def _round(
    order: Sequence[Cell], policies: Mapping[Cell, Policy], measure: Measure, effort: float
) -> dict[Cell, Measured]:
    got: dict[Cell, Measured] = {}
    failed: list[Cell] = []
    for cell in order:
        try:
            got[cell] = await measure(policies[cell], effort)
        except MeasurementFailed:
            failed.append(cell)
    for cell in failed:
        try:
            got[cell] = await measure(policies[cell], effort)
        except MeasurementFailed as error:
            raise MeasurementFailed(f"{'+'.join(sorted(cell)) or 'none'}: {error}") from error
    return got


def _policy(base: Policy, parts: Sequence[Part], cell: Cell) -> Policy:
    for part in parts:
        if part.name in cell:
            base = merged(base, part.changes)
    return base


def _fields(part: Part) -> set[str]:
    """The dotted fields that a part changes in a policy which has none of them."""
    return set(_dotted(part.changes, "")) | set(difference(Policy(), merged(Policy(), part.changes)))


def _dotted(changes: Mapping[str, Any], path: str) -> list[str]:
    found: list[str] = []
    for name, value in changes.items():
        found += _dotted(value, f"{path}{name}.") if isinstance(value, Mapping) else [f"{path}{name}"]
    return found


def _figure_effects(
    figure: FigureName, names: Sequence[str], series: Mapping[Cell, Sequence[Measured]], seed: int
) -> FigureEffects:
    values = {cell: [getattr(each, figure) for each in measured] for cell, measured in series.items()}
    for cell, row in values.items():
        if any(value is None or value <= 0 for value in row):
            return FigureEffects(figure, (), f"{figure} was not measured with {name_of(cell, names)}")
    whole = effects if len(names) <= FULL_UP_TO else half_effects
    return FigureEffects(figure, whole(names, values, seed=seed))


def _contrast(which: tuple[str, ...], cells: Sequence[Cell]) -> Floats:
    """Weights of the cells: + where an even number of these factors is off; a difference of differences of means."""
    signs = [(-1.0) ** sum(factor not in cell for factor in which) for cell in cells]
    return np.asarray(np.array(signs) * 2 ** len(which) / len(cells))
