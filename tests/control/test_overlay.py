"""What the agent changed on top of what people decided."""

from typing import Any

import msgspec
import pytest
from faults_harness import Site
from hypothesis import given
from hypothesis import strategies as st

from sekisho.control.overlay import Overlay, OverlayState, in_full, nested, value_of
from sekisho.control.policy import EngineSection, KvSection, Policy
from sekisho.control.policy_changes import exactly

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "engine.slots": st.sampled_from([None, 1, 2, 4, 8]),
    "kv.mode": st.sampled_from(["dynamic", "disabled", "quality_optimized"]),
    "kv.recent_window": st.sampled_from([16, 32, 64]),
}
FIELDS = st.sampled_from(sorted(VALUES))
WANTED = st.dictionaries(FIELDS, st.none(), min_size=1).flatmap(
    lambda names: st.fixed_dictionaries({name: VALUES[name] for name in names})
)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.sampled_from("abc"), st.integers(0, 2), WANTED),
        st.tuples(st.just("release"), st.sampled_from("abc"), st.just(0), st.just({})),
    ),
    max_size=12,
)


@given(MOVES)
def test_when_nobody_claims_anything_the_policy_is_what_it_was(
    moves: list[tuple[str, str, int, dict[str, Any]]],
) -> None:
    """Any interleaving of claims and releases by three rules leaves nothing behind, and nothing is remembered."""
    overlay, site = Overlay(), Site()
    for at_s, (move, who, rank, fields) in enumerate(moves):
        overlay.reconcile(site.policy, float(at_s))
        if move == "claim":
            changes = overlay.claim(site.policy, who, rank, in_full(fields), float(at_s))
        else:
            changes = overlay.release(site.policy, who.__eq__, float(at_s))
        site.apply(nested(changes))
    overlay.reconcile(site.policy, 100.0)
    site.apply(nested(overlay.release(site.policy, lambda who: True, 101.0)))
    overlay.reconcile(site.policy, 102.0)
    assert site.policy == Policy()
    assert overlay.state() == OverlayState()


@given(MOVES, st.integers(0, 11), FIELDS, st.data())
def test_what_a_person_sets_stays(
    moves: list[tuple[str, str, int, dict[str, Any]]], turn: int, field: str, data: st.DataObject
) -> None:
    """A person's value survives the release of all claims that were made before it."""
    overlay, site = Overlay(), Site()
    for at_s, (move, who, rank, fields) in enumerate(moves[:turn]):
        overlay.reconcile(site.policy, float(at_s))
        if move == "claim":
            site.apply(nested(overlay.claim(site.policy, who, rank, in_full(fields), float(at_s))))
        else:
            site.apply(nested(overlay.release(site.policy, who.__eq__, float(at_s))))
    overlay.reconcile(site.policy, 100.0)
    now = value_of(site.policy, field)
    chosen = data.draw(VALUES[field].filter(lambda value: value != now))
    site.apply(exactly(site.policy, nested({field: chosen})))
    overlay.reconcile(site.policy, 101.0)
    site.apply(nested(overlay.release(site.policy, lambda who: True, 102.0)))
    overlay.reconcile(site.policy, 103.0)
    assert value_of(site.policy, field) == chosen
    others = {name: value_of(site.policy, name) for name in VALUES if name != field}
    assert others == {name: value_of(Policy(), name) for name in VALUES if name != field}


def test_the_claim_of_lower_rank_wins_and_the_other_one_waits_its_turn() -> None:
    """Two rules at one field: the order decides, and the loser gets the field when the winner lets go."""
    overlay, site = Overlay(), Site(Policy(engine=EngineSection(slots=8)))
    site.apply(nested(overlay.claim(site.policy, "hot", 1, {"engine.slots": 4}, 1.0)))
    assert overlay.claim(site.policy, "balance", 2, {"engine.slots": 2}, 1.0) == {}
    overlay.reconcile(site.policy, 2.0)
    assert overlay.release(site.policy, "hot".__eq__, 2.0) == {"engine.slots": 2}
    site.apply({"engine": {"slots": 2}})
    overlay.reconcile(site.policy, 3.0)
    assert overlay.release(site.policy, "balance".__eq__, 3.0) == {"engine.slots": 8}


def test_a_change_that_the_engines_refused_is_no_claim() -> None:
    """The policy stayed as it was: whoever asked is told, and nothing is undone later."""
    overlay, site = Overlay(), Site()
    assert overlay.claim(site.policy, "memory", 0, {"kv.mode": "throughput_optimized"}, 1.0)
    assert overlay.reconcile(site.policy, 1.0).refused == frozenset()  # the same round: not asked for yet
    assert overlay.reconcile(site.policy, 2.0).refused == {"memory"}
    assert overlay.release(site.policy, "memory".__eq__, 3.0) == {}
    assert overlay.state() == OverlayState()


def test_an_undoing_that_the_engines_refused_is_left_to_do() -> None:
    """It is asked for again until the policy shows it."""
    overlay, site = Overlay(), Site()
    site.apply(nested(overlay.claim(site.policy, "memory", 0, {"kv.recent_window": 32}, 1.0)))
    overlay.reconcile(site.policy, 2.0)
    assert overlay.release(site.policy, "memory".__eq__, 2.0) == {"kv.recent_window": 64}
    overlay.reconcile(site.policy, 3.0)
    assert overlay.leftovers(site.policy, 3.0) == {"kv.recent_window": 64}
    site.apply({"kv": {"recent_window": 64}})
    overlay.reconcile(site.policy, 4.0)
    assert overlay.leftovers(site.policy, 4.0) == {}


def test_an_agent_that_starts_again_undoes_what_the_one_before_did() -> None:
    """The state survives as JSON; its claims do not, since nobody remembers why they were made."""
    overlay, site = Overlay(), Site(Policy(kv=KvSection(recent_window=100)))
    site.apply(nested(overlay.claim(site.policy, "memory", 0, {"kv.recent_window": 32}, 1.0)))
    overlay.reconcile(site.policy, 2.0)
    written = msgspec.json.encode(overlay.state())
    again = Overlay(msgspec.json.decode(written, type=OverlayState))
    again.reconcile(site.policy, 1.0)
    assert again.leftovers(site.policy, 1.0) == {"kv.recent_window": 100}


def test_a_name_that_no_policy_has_is_a_mistake() -> None:
    """A rule that misspells a field fails in its test and not in silence."""
    with pytest.raises(KeyError, match=r"kv\.modes"):
        value_of(Policy(), "kv.modes")
