from math import exp, log
from random import Random

import msgspec
import pytest

from sekisho.control.measured import Measured, MeasurementFailed
from sekisho.control.policy import Policy
from sekisho.control.policy_changes import PolicyProblem
from sekisho.evaluate.ablation_run import Ablation, AblationFailed, AblationPlan, Part, ablate, combinations_of

PARTS = (
    Part("kv", {"kv": {"key_type": "q8_0"}}),
    Part("slots", {"engine": {"slots": 8}}),
    Part("threads", {"engine": {"threads": 2}}),
    Part("window", {"kv": {"recent_window": 128}}),
    Part("speculation", {"engine": {"speculation": "ngram"}}),
    Part("evict", {"kv": {"evict": True}}),
)
GAINS = {"kv": 0.2, "slots": 0.4, "threads": 0.1, "window": -0.1, "speculation": 0.3, "evict": 0.05}


def parts_on(policy: Policy) -> set[str]:
    kv, engine = policy.kv, policy.engine
    on = {"kv": kv.key_type, "slots": engine.slots, "threads": engine.threads, "speculation": engine.speculation}
    found = {name for name, value in on.items() if value is not None}
    return found | ({"window"} if kv.recent_window == 128 else set()) | ({"evict"} if kv.evict else set())


class Machine:
    """Known effects: each part's own, and 0.25 more with `kv` and `slots` together."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.chance = noise, Random(3)
        self.measured = 0
        self.fails: set[int] = set()

    async def measure(self, policy: Policy, effort: float) -> Measured:
        self.measured += 1
        if self.measured in self.fails:
            raise MeasurementFailed("the engine is gone")
        on = parts_on(policy)
        gain = sum(GAINS[name] for name in on) + (0.25 if {"kv", "slots"} <= on else 0.0)
        return Measured(decode_tokens_per_s=10 * exp(gain + self.chance.gauss(0, self.noise)), contexts=4)


PLAN = AblationPlan(figures=("decode_tokens_per_s",))


def effects_of(ablation: Ablation) -> dict[tuple[str, ...], float]:
    return {effect.factors: log(effect.ratio) for effect in ablation.effects[0].effects}


@pytest.mark.parametrize("count", [2, 4, 5, 6])
async def test_known_effects_are_found(count: int) -> None:
    """All combinations up to four parts, half of them above: main effects and the one interaction come out exactly."""
    machine = Machine()
    parts = PARTS[:count]
    ablation = await ablate(Policy(), parts, machine.measure, PLAN)
    combinations = 2**count if count <= 4 else 2 ** (count - 1)
    assert (machine.measured, ablation.half) == (6 * combinations, count > 4)
    found = effects_of(ablation)
    for part in parts:
        shared = 0.125 if part.name in ("kv", "slots") else 0.0
        assert found[(part.name,)] == pytest.approx(GAINS[part.name] + shared)
    pairs = {which: value for which, value in found.items() if len(which) == 2}
    assert len(pairs) == count * (count - 1) // 2
    assert pairs.pop(("kv", "slots")) == pytest.approx(0.25)
    assert all(value == pytest.approx(0.0, abs=1e-9) for value in pairs.values())


async def test_with_noise_the_intervals_hold_the_truth() -> None:
    """Ten effects of five parts with 5 % noise: every interval of 95 % but one at most holds the true effect."""
    ablation = await ablate(Policy(), PARTS[:5], Machine(0.05).measure, AblationPlan(8, figures=PLAN.figures))
    outside = 0
    for effect in ablation.effects[0].effects:
        shared = (
            0.125 if effect.factors in (("kv",), ("slots",)) else 0.25 if effect.factors == ("kv", "slots") else 0.0
        )
        truth = exp(shared + (GAINS[effect.factors[0]] if len(effect.factors) == 1 else 0.0))
        assert effect.interval is not None
        outside += not effect.interval.low <= truth <= effect.interval.high
    assert outside <= 1


async def test_a_failed_combination_is_measured_again_in_its_round() -> None:
    machine = Machine()
    machine.fails = {3}
    ablation = await ablate(Policy(), PARTS[:2], machine.measure, PLAN)
    assert (ablation.rounds, ablation.faults, machine.measured) == (6, (), 25)


async def test_a_round_that_fails_twice_does_not_count() -> None:
    machine = Machine()
    machine.fails = {1, 5}
    ablation = await ablate(Policy(), PARTS[:2], machine.measure, PLAN)
    assert ablation.rounds == 5
    assert ablation.faults[0].startswith("round 1: ")
    assert ablation.faults[0].endswith("the engine is gone")
    assert effects_of(ablation)[("kv", "slots")] == pytest.approx(0.25)
    assert ablation.effects[0].effects[0].interval is None
    machine.fails = set(range(1000))
    with pytest.raises(AblationFailed, match="round 6: "):
        await ablate(Policy(), PARTS[:2], machine.measure, PLAN)


async def test_a_figure_that_was_not_measured_has_no_effects() -> None:
    """The reason names the figure and a combination; the other figures are told."""
    plan = AblationPlan(figures=("prefill_tokens_per_s", "decode_tokens_per_s"))
    ablation = await ablate(Policy(), PARTS[:2], Machine().measure, plan)
    missing, there = ablation.effects
    assert (missing.effects, missing.missing) == ((), "prefill_tokens_per_s was not measured with none")
    assert len(there.effects) == 3
    assert msgspec.json.decode(msgspec.json.encode(ablation), type=Ablation) == ablation


def test_parts_that_meet_cannot_be_told_apart() -> None:
    """Two parts with a field in common are refused, also where one of them names it only by its mode."""
    with pytest.raises(ValueError, match=r"both change kv\.recent_window"):
        combinations_of([PARTS[3], Part("mode", {"kv": {"mode": "quality_optimized"}})])
    with pytest.raises(ValueError, match="different names"):
        combinations_of([PARTS[0], PARTS[0]])
    with pytest.raises(ValueError, match="one to 8"):
        combinations_of([])
    with pytest.raises(PolicyProblem):
        combinations_of([Part("none", {"kv": {"no": 1}}), PARTS[0]])


def test_half_of_all_is_balanced() -> None:
    """In the half, each part is on half the time, and each pair in each of its four states a quarter of the time."""
    cells = combinations_of(PARTS)
    names = [part.name for part in PARTS]
    assert len(cells) == 32
    for one in names:
        assert sum(one in cell for cell in cells) == 16
        for other in names:
            if one != other:
                assert sum(one in cell and other not in cell for cell in cells) == 8
