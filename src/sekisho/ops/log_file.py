"""The logs of a child process: its bytes become lines, the lines lose what is personal or secret, and are kept."""

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from sekisho.guard.personal import LineRedactor, redact
from sekisho.ops.config import LogsConfig
from sekisho.ops.rotating_file import RotatingFile

LONGEST_LINE_BYTES = 65_536
_LINE_CUT = b" [this line was cut]\n"
_CUT_BACK = 1024
_SEPARATOR = re.compile(rb"[\s\"',;&]")
_TAIL_CHARACTERS = 500

REQUEST_LINE = b'{"kind":"request",'
_ORDINARY_LINE = re.compile(rb'\{"time":[0-9.e+\-]+,"level":"(?:debug|info)"')


class RedactedLines:
    """Bytes in any portions become redacted lines. A line is looked at as a whole or not written: half a secret would
    pass. Beyond `LONGEST_LINE_BYTES` a line ends at the last space before, and its rest is dropped."""

    def __init__(self) -> None:
        self._partial = bytearray()
        self._dropping = False
        self._redactor = LineRedactor()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that are complete now, each with its line break."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole = bytes(self._partial) + line if self._partial else line
            self._partial.clear()
            if self._dropping:
                self._dropping = False
            elif len(whole) > LONGEST_LINE_BYTES:
                yield self._cut(whole)
            else:
                yield self._redactor.redact(whole) + b"\n"
        if rest and not self._dropping:
            self._partial += rest
            if len(self._partial) > LONGEST_LINE_BYTES:
                yield self._cut(bytes(self._partial))
                self._partial.clear()
                self._dropping = True

    def end(self) -> Iterator[bytes]:
        """What came without a line break at the end."""
        if self._partial:
            yield self._redactor.redact(bytes(self._partial)) + b"\n"
        self._partial.clear()
        self._dropping = False

    def _cut(self, line: bytes) -> bytes:
        ends = [
            match.start() for match in _SEPARATOR.finditer(line, LONGEST_LINE_BYTES - _CUT_BACK, LONGEST_LINE_BYTES)
        ]
        end = ends[-1] if ends else LONGEST_LINE_BYTES - _CUT_BACK
        return self._redactor.redact(line[:end]) + _LINE_CUT


class RedactedFormatter(logging.Formatter):
    """For a process whose standard error goes to a file directly: the supervisor's own `up.log`."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record)).text


class RotatingLog:
    """Keeps what a child says in `path`, and its last lines for error messages.

    `by_kind` is for the gateway, whose lines are JSON: its request lines go to `performance.log` beside `path`, and
    everything from warnings up, or that is no JSON at all, stands in `error.log` too. `beside`: another child's log at
    the same path, whose file is shared, line by line: while an engine is exchanged, two workers have one log.
    """

    def __init__(
        self,
        path: Path,
        config: LogsConfig | None = None,
        *,
        by_kind: bool = False,
        tail_lines: int = 20,
        now: Callable[[], float] = time.time,
        beside: "RotatingLog | None" = None,
    ) -> None:
        config = config or LogsConfig()
        self.tail: deque[str] = deque(maxlen=tail_lines)
        self._lines = RedactedLines()
        self._all: RotatingFile = RotatingFile(path, config, now) if beside is None else beside._all
        self._errors = RotatingFile(path.with_name("error.log"), config, now) if by_kind else None
        self._requests = RotatingFile(path.with_name("performance.log"), config, now) if by_kind else None

    def write(self, data: bytes) -> None:
        """Any portion of the child's output. Raises nothing."""
        self._keep(list(self._lines.feed(data)))

    def close(self) -> None:
        """Writes what has no line break yet. The next `write` opens the files again."""
        self._keep(list(self._lines.end()))
        for file in (self._all, self._errors, self._requests):
            if file is not None:
                file.close()

    def _keep(self, lines: list[bytes]) -> None:
        if self._errors is None or self._requests is None:
            self._all.append(lines)
        else:
            requests = [line for line in lines if line.startswith(REQUEST_LINE)]
            lines = [line for line in lines if not line.startswith(REQUEST_LINE)] if requests else lines
            self._requests.append(requests)
            self._errors.append(line for line in lines if not _ORDINARY_LINE.match(line))
            self._all.append(lines)
        self.tail.extend(
            line.decode(errors="replace").rstrip("\r\n")[:_TAIL_CHARACTERS] for line in lines if line.strip()
        )
