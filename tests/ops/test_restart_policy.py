"""When a dead child is started again."""

from hypothesis import given
from hypothesis import strategies as st

from sekisho.ops.restart_policy import Decision, Exits, RestartPolicy

runs = st.lists(st.tuples(st.floats(0, 300), st.floats(0, 0.999)), min_size=1, max_size=40)


def lives(policy: RestartPolicy, runs: list[tuple[float, float]]) -> list[Decision]:
    """What is decided after each run (how long it ran, the dice), each started after the delay decided before."""
    exits, now_s, decisions = Exits(policy), 0.0, []
    for ran_s, chance in runs:
        now_s += ran_s
        decisions.append(exits.ended(now_s=now_s, ran_s=ran_s, exit_code=1, chance=chance))
        now_s += decisions[-1].delay_s
    return decisions


@given(runs)
def test_no_delay_is_longer_than_the_longest_or_shorter_than_the_first(runs: list[tuple[float, float]]) -> None:
    """A child always comes back within the longest delay, and never in a tight loop."""
    policy = RestartPolicy()
    for decision in lives(policy, runs):
        assert policy.first_delay_s * (1 - policy.jitter) <= decision.delay_s <= policy.max_delay_s


@given(st.lists(st.floats(0, 0.999), min_size=6, max_size=12))
def test_five_quick_exits_are_a_crash_loop(dice: list[float]) -> None:
    """From the fifth exit within a minute on, every try waits about the longest delay, and the state says so."""
    decisions = lives(RestartPolicy(), [(0.0, chance) for chance in dice])
    assert [decision.state for decision in decisions[:4]] == ["waiting"] * 4
    assert {decision.state for decision in decisions[4:]} == {"failing"}
    assert all(decision.delay_s >= 30 * 0.8 for decision in decisions[4:])


@given(runs)
def test_a_minute_of_health_starts_the_count_over(runs: list[tuple[float, float]]) -> None:
    """Whatever came before: after a run of a minute the next delay is the first one."""
    last = lives(RestartPolicy(jitter=0.0), [*runs, (60.0, 0.0)])[-1]
    assert last == Decision("waiting", 0.2)


def test_a_configuration_error_is_not_tried_again() -> None:
    """Exit code 78 means: somebody must change something first."""
    assert Exits(RestartPolicy()).ended(now_s=1, ran_s=1, exit_code=78, chance=0).state == "misconfigured"
