"""The account of one request from admission to its usage record."""

import logging
from collections.abc import Sequence
from math import inf, isfinite

from sekisho.core.clock import Clock
from sekisho.core.errors import SekishoError, StoreUnavailable
from sekisho.core.events import (
    Event,
    Failed,
    Finished,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from sekisho.gateway.identity import Holder
from sekisho.gateway.ledger import Ledger
from sekisho.gateway.limits import Reservation
from sekisho.gateway.log_lines import note_request
from sekisho.gateway.metrics import Metrics
from sekisho.store import UsageRecord, UsageStatus

log = logging.getLogger("sekisho.gateway.exchange")

_DELTAS = (TextDelta, ReasoningDelta, ToolCallDelta, RefusalDelta)
_UNTOLD_LOGPROB = -9999.0  # what OpenAI's interface says where it does not tell how improbable a token was


def estimate_tokens(body_bytes: int, max_tokens: int | None) -> int:
    """What a request may use, before anybody counted: four bytes of JSON a token, and what it asked for. It only
    reserves room in the token window until the engine's own count replaces it."""
    return body_bytes // 4 + 1 + (max_tokens or 0)


class Exchange:
    """Watches the events of one turn and settles the key's meter and the ledger exactly once.

    `record` must be called before the answer's last byte is sent; `close` afterwards in any case.
    """

    __slots__ = (
        "_clock",
        "_deltas",
        "_first_s",
        "_holder",
        "_ledger",
        "_metrics",
        "_nll_nats",
        "_nll_tokens",
        "_recorded",
        "_reservation",
        "_started_s",
        "_started_unix_s",
        "failed",
        "finished",
        "id",
        "model",
        "protocol",
        "usage",
        "user",
        "whole",
    )

    def __init__(
        self,
        request_id: str,
        model: str,
        protocol: str,
        holder: Holder,
        ledger: Ledger,
        metrics: Metrics,
        clock: Clock,
        estimate: int,
        user: str | None = None,
    ) -> None:
        """Admits the request. Raises RateLimited or QuotaSpent."""
        self.id = request_id
        self.model = model
        self.protocol = protocol
        self.user = user
        self.usage: Usage | None = None
        self.failed: Failed | None = None
        self.finished = False
        self.whole = False  # nobody saw a first token: it has no time
        self._holder = holder
        self._ledger = ledger
        self._metrics = metrics
        self._clock = clock
        self._started_s = clock.monotonic()
        self._started_unix_s = clock.now()
        self._first_s: float | None = None
        self._deltas = 0
        self._nll_nats = 0.0
        self._nll_tokens = 0
        self._recorded = False
        key_id = holder.record.id
        self._reservation: Reservation = holder.meter.admit(self._started_s, estimate, ledger.spending(key_id))

    def observe(self, batch: Sequence[Event]) -> None:
        for event in batch:
            if isinstance(event, _DELTAS):
                self._deltas += 1
                if type(event) is TextDelta and event.logprobs:
                    self._note_logprobs(event.logprobs)
            elif isinstance(event, Usage):
                self.usage = event
            elif isinstance(event, Finished):
                self.finished = True
            elif isinstance(event, Failed):
                self.failed = event
        if self._first_s is None and self._deltas:
            self._first_s = self._clock.monotonic()

    def record(self, status: UsageStatus, http_status: int, error: Failed | SekishoError | None = None) -> None:
        """Writes the usage record. Raises StoreUnavailable: then the answer must not be completed.

        Where the turn broke before the engine told its usage, the output is counted by deltas (llama.cpp and vLLM
        send one token a delta) and marked as an estimate; the unknown input stays null.
        """
        if self._recorded:
            return
        usage = self.usage
        estimated = usage is None and self._deltas > 0
        input_tokens = usage.input_tokens if usage else None
        output_tokens = usage.output_tokens if usage else (self._deltas if estimated else None)
        now_s = self._clock.monotonic()
        record = UsageRecord(
            request_id=self.id,
            key_id=self._holder.record.id,
            user=self.user,
            model=self.model,
            protocol=self.protocol,
            started_at=self._started_unix_s,
            duration_ms=(now_s - self._started_s) * 1e3,
            ttft_ms=None if self._first_s is None or self.whole else (self._first_s - self._started_s) * 1e3,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_tokens=usage.cached_tokens if usage else 0,
            reasoning_tokens=usage.reasoning_tokens if usage else 0,
            estimated=estimated,
            cost_micros=self._ledger.price(self.model, input_tokens or 0, output_tokens or 0),
            status=status,
            error_id=error.id if error else None,
            error_code=None if error is None else error.code if isinstance(error, Failed) else error.error_code,
            http_status=http_status,
        )
        self._recorded = True
        self._ledger.record(record, self._mean_nll())
        self._metrics.observe(record, self._holder.record.name)
        note_request(record)
        if usage is not None:
            self._holder.meter.settle(self._reservation, usage.input_tokens + usage.output_tokens)

    def _note_logprobs(self, logprobs: tuple[TokenLogprob, ...]) -> None:
        untold = min(each.logprob for each in logprobs) <= _UNTOLD_LOGPROB
        self._nll_nats += inf if untold else -sum(each.logprob for each in logprobs)
        self._nll_tokens += len(logprobs)

    def _mean_nll(self) -> float | None:
        """Nats per generated token; None where the engine was not asked for them or did not tell them all."""
        return self._nll_nats / self._nll_tokens if self._nll_tokens and isfinite(self._nll_nats) else None

    def close(self) -> None:
        """Gives back what is still reserved; an answer whose tokens nobody counted keeps its estimate in the window.
        A turn that nothing recorded broke on a programmer's error: it leaves its record all the same."""
        if not self._recorded:
            try:
                self.record("failed", 500)
            except StoreUnavailable as error:
                log.error("usage of %s is lost: %s (%s)", self.id, error.message, error.id)
        used = self._reservation.tokens if self._deltas else 0
        self._holder.meter.settle(self._reservation, used)
