"""How commands wait for the agent."""

from sekisho.cli.agent_client import CHANGE_TIMEOUT_S
from sekisho.control.perplexity.measure import Job
from sekisho.control.perplexity.texts import Text
from sekisho.ops.engine_swap import Limits


def test_a_command_waits_longer_than_what_it_asks_for_may_take() -> None:
    """A full measurement, which is one under the policy and one at 16 bits, and a swap that is undone at its end."""
    assert 2 * Job(Text("id", "body"), "full").deadline_s < CHANGE_TIMEOUT_S
    swap = Limits()
    assert 2 * (swap.ready_timeout_s + swap.drain_timeout_s) + swap.hold_drain_timeout_s < CHANGE_TIMEOUT_S
