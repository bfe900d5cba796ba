"""What the gateway writes to standard error: JSON lines, which the supervisor redacts and sorts (`ops.log_file`)."""

import asyncio
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable

import msgspec

from sekisho.store import UsageRecord

_GATHER_S = 0.02
_ERROR_ID = re.compile(r"err_[0-9a-f]{24}")


class JsonLines(logging.Formatter):
    """One JSON object a line. Never holds a prompt or a key: nobody logs them."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line: dict[str, object] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        found = _ERROR_ID.search(message)
        if found is not None:
            line["id"] = found[0]
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = traceback.format_exception(record.exc_info[1])
        return msgspec.json.encode(line).decode()


class DescriptorHandler(logging.Handler):
    """Writes whole lines to a file descriptor: two threads never mix theirs."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting: list[bytes] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.write(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
        except Exception:  # noqa: BLE001  # as every handler does: a log line must not break what it tells of
            self.handleError(record)

    def write_soon(self, line: bytes) -> None:
        """For the event loop's thread: the line goes out with those of the next moment, and costs its caller no system
        call. What waits when the process is killed is lost."""
        self._waiting.append(line)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_later(_GATHER_S, self.flush)

    def flush(self) -> None:
        """Writes what waits. Called at the end of the process as well."""
        lines, self._waiting = self._waiting, []
        if lines:
            try:
                self.write(b"".join(lines))
            except OSError:
                return  # nobody reads our standard error any more; the usage rows tell the same

    def write(self, line: bytes) -> None:
        """Raises OSError."""
        self.acquire()
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        finally:
            self.release()


class RequestLine(msgspec.Struct, frozen=True, tag_field="kind", tag="request"):
    """One request in `performance.log`: numbers and names, no text."""

    time: float
    id: str
    model: str
    protocol: str
    status: str
    http_status: int
    ttft_ms: float | None
    duration_ms: float
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int
    error_id: str | None


_encoder = msgspec.json.Encoder()
_write: Callable[[bytes], None] | None = None


def note_request(record: UsageRecord) -> None:
    """Writes the request's line, where this process logs at all. Called in the event loop."""
    if _write is None:
        return
    ttft_ms = record.ttft_ms
    line = RequestLine(
        round(record.started_at + record.duration_ms / 1e3, 3),
        record.request_id,
        record.model,
        record.protocol,
        record.status,
        record.http_status,
        None if ttft_ms is None else round(ttft_ms, 2),
        round(record.duration_ms, 2),
        record.input_tokens,
        record.output_tokens,
        record.cached_tokens,
        record.error_id,
    )
    _write(_encoder.encode(line) + b"\n")


def log_to_stderr() -> None:
    """From now on this process logs. The supervisor reads our standard error."""
    global _write
    sys.stderr.flush()
    handler = DescriptorHandler(sys.stderr.fileno())
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    _write = handler.write_soon
