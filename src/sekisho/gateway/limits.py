"""Limits of one key: requests and tokens in the last 60 s, parallel requests, the month's budget.

Windows are exact: every admitted request stands in them with its time, not in buckets, so a limit of 10 a minute is
10 in any 60 s. Tokens are reserved at admission by an estimate and set right when the engine has counted them. The
windows live in this process and start empty; the month's spending comes from the store.
"""

from collections import deque

import msgspec

from sekisho.core.errors import QuotaSpent, RateLimited

WINDOW_S = 60.0


class Limits(msgspec.Struct, frozen=True):
    """None means no limit. Budgets are per calendar month (UTC); `cost_micros` is millionths of the currency."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel: int | None = None
    budget_tokens: int | None = None
    budget_cost_micros: int | None = None


class Spending(msgspec.Struct):
    """What a key has used this month, kept by the ledger."""

    tokens: int = 0
    cost_micros: int = 0


class Reservation(msgspec.Struct):
    """One admitted request. `tokens` is the estimate until it is settled."""

    at_s: float
    tokens: int
    open: bool = True


class Meter:
    """The counters of one key. Everything is synchronous: admission and its reservation are one step."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._window: deque[Reservation] = deque()
        self._window_tokens = 0
        self._reserved_tokens = 0
        self.running = 0

    def admit(self, now_s: float, estimate_tokens: int, spending: Spending) -> Reservation:
        """Lets a request in or raises RateLimited (with the exact wait) or QuotaSpent. `now_s` is monotonic."""
        limits = self.limits
        self._forget(now_s)
        self._check_budget(spending)
        if limits.parallel is not None and self.running >= limits.parallel:
            raise RateLimited(
                f"This key may run {limits.parallel} requests at once, and that many are running.",
                retry_after_s=1.0,
                code="parallel_limit_exceeded",
            )
        if limits.requests_per_minute is not None and len(self._window) >= limits.requests_per_minute:
            wait_s = WINDOW_S if not self._window else self._window[-limits.requests_per_minute].at_s + WINDOW_S - now_s
            raise RateLimited(
                f"This key may make {limits.requests_per_minute} requests a minute.", retry_after_s=max(wait_s, 0.001)
            )
        if limits.tokens_per_minute is not None:
            self._check_tokens(now_s, estimate_tokens, limits.tokens_per_minute)
        reservation = Reservation(now_s, estimate_tokens)
        self._window.append(reservation)
        self._window_tokens += estimate_tokens
        self._reserved_tokens += estimate_tokens
        self.running += 1
        return reservation

    def settle(self, reservation: Reservation, used_tokens: int) -> None:
        """Replaces the estimate by what was used. A second call for the same reservation does nothing."""
        if not reservation.open:
            return
        reservation.open = False
        self.running -= 1
        self._reserved_tokens -= reservation.tokens
        if self._window and self._window[0].at_s <= reservation.at_s:
            self._window_tokens += used_tokens - reservation.tokens
            reservation.tokens = used_tokens

    def remaining(self, now_s: float) -> tuple[int | None, int | None]:
        """(requests, tokens) left in the window, None where there is no limit."""
        self._forget(now_s)
        rpm, tpm = self.limits.requests_per_minute, self.limits.tokens_per_minute
        return (
            None if rpm is None else max(0, rpm - len(self._window)),
            None if tpm is None else max(0, tpm - self._window_tokens),
        )

    def _forget(self, now_s: float) -> None:
        edge = now_s - WINDOW_S
        window = self._window
        while window and window[0].at_s <= edge:
            self._window_tokens -= window.popleft().tokens

    def _check_tokens(self, now_s: float, estimate: int, limit: int) -> None:
        if estimate > limit:
            raise RateLimited(
                f"This request may need {estimate} tokens and the key is limited to {limit} a minute: "
                "shorten the prompt or lower max_tokens.",
                code="request_exceeds_token_limit",
            )
        if self._window_tokens + estimate <= limit:
            return
        excess = self._window_tokens + estimate - limit
        wait_s = WINDOW_S
        for reservation in self._window:
            excess -= reservation.tokens
            if excess <= 0:
                wait_s = reservation.at_s + WINDOW_S - now_s
                break
        raise RateLimited(
            f"This key may use {limit} tokens a minute; {self._window_tokens} are used or reserved.",
            retry_after_s=max(wait_s, 0.001),
            code="tokens_per_minute_exceeded",
        )

    def _check_budget(self, spending: Spending) -> None:
        """Running requests count with their reservation, so that many at once do not overrun the budget."""
        tokens = self.limits.budget_tokens
        if tokens is not None and spending.tokens + self._reserved_tokens >= tokens:
            raise QuotaSpent(
                f"This key's budget of {tokens} tokens for the month is spent (or reserved by running requests). "
                "Ask the administrator of this server."
            )
        cost = self.limits.budget_cost_micros
        if cost is not None and spending.cost_micros >= cost:
            raise QuotaSpent(
                f"This key's cost budget of {cost / 1e6:g} a month is spent. Ask the administrator of this server."
            )
