"""When a child that died is started again: a pure decision, so that hours of crashing are tested in no time."""

from typing import Literal

import msgspec

from sekisho.ops.child import EXIT_CONFIGURATION


class RestartPolicy(msgspec.Struct, frozen=True):
    """Delays double from `first_delay_s` to `max_delay_s` and start over once a child has run `reset_after_s`.

    `loop_exits` exits within `loop_window_s` are a crash loop: every further try waits the longest delay.
    """

    first_delay_s: float = 0.2
    max_delay_s: float = 30.0
    jitter: float = 0.2
    reset_after_s: float = 60.0
    loop_exits: int = 5
    loop_window_s: float = 60.0
    final_exit_codes: frozenset[int] = frozenset({EXIT_CONFIGURATION})


class Decision(msgspec.Struct, frozen=True):
    """What becomes of a child that ended. `delay_s` means nothing for `misconfigured`."""

    state: Literal["waiting", "failing", "misconfigured"]
    delay_s: float = 0.0


class Exits:
    """The exits of one child so far. `ended` is told each and answers with what to do; it reads no clock."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._in_a_row = 0
        self._recent: list[float] = []

    def ended(self, *, now_s: float, ran_s: float, exit_code: int, chance: float) -> Decision:
        """`now_s` is monotonic; `chance` in [0, 1) spreads the delays of children that died together."""
        policy = self._policy
        if exit_code in policy.final_exit_codes:
            return Decision("misconfigured")
        if ran_s >= policy.reset_after_s:
            self._in_a_row = 0
            self._recent.clear()
        self._recent = [moment for moment in self._recent if now_s - moment < policy.loop_window_s] + [now_s]
        if len(self._recent) >= policy.loop_exits:
            self._in_a_row = max(self._in_a_row, self._doublings)
        delay_s = policy.first_delay_s * 2 ** min(self._in_a_row, self._doublings)
        self._in_a_row += 1
        state: Literal["waiting", "failing"] = "failing" if self._in_a_row > self._doublings else "waiting"
        return Decision(state, min(delay_s, policy.max_delay_s) * (1 - policy.jitter * chance))

    @property
    def _doublings(self) -> int:
        """How many doublings reach the longest delay."""
        count = 0
        while self._policy.first_delay_s * 2**count < self._policy.max_delay_s and count < 64:
            count += 1
        return count
