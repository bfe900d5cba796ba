"""Usage as values: one record per request that was answered or refused, and sums of them. Rows are `usage_rows`."""

import math
import time
from functools import lru_cache
from typing import Literal

import msgspec

UsageStatus = Literal["completed", "failed", "cancelled", "refused"]
Group = Literal["key", "model", "day", "user"]

GROUPS: tuple[Group, ...] = ("key", "model", "day", "user")
LONGEST_TEXT = 512
LARGEST_TIME = 1e11  # seconds since 1970 whose year still has four digits
LARGEST_COUNT = 2**40  # no request has 10^12 tokens; a sum of 8 million such rows still fits 64 bits


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one request cost. `request_id` is made by the server, never by the client: it is what "once" means.

    Tokens are None where nobody counted them, `estimated` where the server did and not the engine. `cost_micros`
    are millionths of the currency of the price list. `started_at` is seconds since 1970 and decides the month.
    """

    request_id: str
    key_id: str
    model: str
    protocol: str
    started_at: float
    duration_ms: float
    status: UsageStatus
    http_status: int
    user: str | None = None
    ttft_ms: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    cost_micros: int = 0
    error_id: str | None = None
    error_code: str | None = None


class Spent(msgspec.Struct, frozen=True):
    """What a key used in one month."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int = 0


class UsageSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over a group; a field that was not grouped by is None. `day` is "2026-11-20", UTC.

    `unmeasured` requests have no token count, `estimated` ones were counted by the server, not by the engine.
    """

    key_id: str | None = None
    model: str | None = None
    day: str | None = None
    user: str | None = None
    requests: int
    completed: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_micros: int
    estimated: int
    unmeasured: int


def month_of(timestamp: float) -> str:
    """`1_790_000_000.0` -> `2026-09`, UTC."""
    return day_of(timestamp)[:7]


def day_of(timestamp: float) -> str:
    """`1_790_000_000.0` -> `2026-09-21`, UTC."""
    return _day(int(timestamp // 86_400))


@lru_cache(maxsize=64)
def _day(days: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(days * 86_400))


def storable(record: UsageRecord) -> UsageRecord:
    """The record with whatever a database would refuse made harmless, so that one bad value never blocks the rest.

    NUL and lone surrogates in text, endless names, negative or absurd counts and NaN come from clients and engines.
    """
    if _is_sound(record):
        return record
    changes: dict[str, object] = {}
    for field in msgspec.structs.fields(UsageRecord):
        value = getattr(record, field.name)
        kept = _storable_value(value)
        if kept is not value:
            changes[field.name] = kept
    return msgspec.structs.replace(record, **changes) if changes else record


def _is_sound(record: UsageRecord) -> bool:
    """The quick look that nearly every record passes."""
    texts = (
        record.request_id,
        record.key_id,
        record.user or "",
        record.model,
        record.protocol,
        record.error_id or "",
        record.error_code or "",
    )
    counts = (
        record.input_tokens or 0,
        record.output_tokens or 0,
        record.cached_tokens,
        record.reasoning_tokens,
        record.cost_micros,
        record.http_status,
    )
    times = (record.started_at, record.duration_ms, record.ttft_ms or 0.0)
    joined = "".join(texts)
    return (
        joined.isascii()
        and "\0" not in joined
        and max(map(len, texts)) <= LONGEST_TEXT
        and min(counts) >= 0
        and max(counts) <= LARGEST_COUNT
        and all(0.0 <= moment <= LARGEST_TIME for moment in times)
    )


def _storable_value(value: object) -> object:
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT or "\0" in value or not value.isascii():
            kept = value[:LONGEST_TEXT].replace("\0", "�").encode("utf-8", "replace").decode("utf-8")
            return value if kept == value else kept
    elif isinstance(value, float):
        if not 0.0 <= value <= LARGEST_TIME:  # NaN too
            return LARGEST_TIME if value > LARGEST_TIME and math.isfinite(value) else 0.0
    elif type(value) is int and not 0 <= value <= LARGEST_COUNT:
        return min(max(value, 0), LARGEST_COUNT)
    return value
