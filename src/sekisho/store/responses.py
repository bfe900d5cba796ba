"""State of `/v1/responses` as a value. The rows are `response_rows`."""

import msgspec

UNFINISHED = ("queued", "in_progress")


class ResponseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One stored response: `response` is the Response object as JSON, `input_items` the JSON list of what this turn
    added. Times are seconds since 1970."""

    id: str
    key_id: str
    created_at: float
    expires_at: float
    status: str
    model: str
    response: bytes
    input_items: bytes
    previous_response_id: str | None = None
