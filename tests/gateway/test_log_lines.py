"""What the gateway writes to standard error."""

import asyncio
import json
import logging
import os

import pytest

from sekisho.gateway import log_lines
from sekisho.gateway.log_lines import DescriptorHandler, JsonLines, note_request
from sekisho.store import UsageRecord

RECORD = UsageRecord(
    request_id="req_0123456789abcdef01234567",
    key_id="key_1",
    user="somebody",
    model="m",
    protocol="chat",
    started_at=1000.0,
    duration_ms=123.456,
    ttft_ms=10.1234,
    input_tokens=10,
    output_tokens=20,
    cached_tokens=5,
    reasoning_tokens=0,
    estimated=False,
    cost_micros=0,
    status="ok",
    error_id=None,
    error_code=None,
    http_status=200,
)


async def test_request_lines_hold_numbers_and_are_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests make two lines, which go out a moment later in one piece, without key, user or text."""
    reading, writing = os.pipe()
    handler = DescriptorHandler(writing)
    monkeypatch.setattr(log_lines, "_write", handler.write_soon)
    note_request(RECORD)
    note_request(RECORD)
    os.set_blocking(reading, False)
    with pytest.raises(BlockingIOError):
        os.read(reading, 1)
    await asyncio.sleep(0.1)
    first, second = os.read(reading, 65536).splitlines()
    os.close(reading)
    os.close(writing)
    assert first == second
    assert json.loads(first) == {
        "kind": "request",
        "time": 1000.123,
        "id": "req_0123456789abcdef01234567",
        "model": "m",
        "protocol": "chat",
        "status": "ok",
        "http_status": 200,
        "ttft_ms": 10.12,
        "duration_ms": 123.46,
        "input_tokens": 10,
        "output_tokens": 20,
        "cached_tokens": 5,
        "error_id": None,
    }


async def test_nothing_is_written_where_nobody_logs() -> None:
    """Without `log_to_stderr` a request leaves no line."""
    note_request(RECORD)


async def test_what_waits_is_written_at_the_end() -> None:
    """`flush`, which logging calls when the process ends, loses no line; a reader that is gone breaks nothing."""
    reading, writing = os.pipe()
    handler = DescriptorHandler(writing)
    handler.write_soon(b"last\n")
    handler.flush()
    assert os.read(reading, 100) == b"last\n"
    os.close(reading)
    handler.write_soon(b"nobody\n")
    handler.flush()
    os.close(writing)


def test_a_line_names_the_error_that_it_tells_of() -> None:
    """An error's id stands in a field of its own."""
    record = logging.LogRecord("a", logging.ERROR, "f", 1, "broke (%s)", ("err_0123456789abcdef01234567",), None)
    line = json.loads(JsonLines().format(record))
    assert line["id"] == "err_0123456789abcdef01234567"
    assert line["level"] == "error"
