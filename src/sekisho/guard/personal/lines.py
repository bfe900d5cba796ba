"""Redaction of log lines: bytes in, bytes out."""

import re

from sekisho.guard.personal.redaction import redact

_BEGIN = re.compile(rb"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY")
_END = re.compile(rb"-----END [A-Z0-9 ]{0,30}PRIVATE KEY[A-Z ]*-*")
_BODY = re.compile(rb"\s*(?:[A-Za-z0-9+/=]{1,128}|(?:Proc-Type|DEK-Info|Version|Comment): ?[^\n]*|)\s*")
_LONGEST_KEY_LINES = 200


def redact_line(line: bytes) -> bytes:
    """The line without personal data and secrets. Bytes that are no UTF-8 stay as they are."""
    text = line.decode("utf-8", "surrogateescape")
    redacted = redact(text)
    return redacted.text.encode("utf-8", "surrogateescape") if redacted.found else line


class LineRedactor:
    """Redacts the lines of one stream. Unlike `redact_line` it knows a private key that goes over many lines."""

    def __init__(self) -> None:
        self._key_lines = 0

    def redact(self, line: bytes) -> bytes:
        if self._key_lines:
            end = _END.search(line)
            if end is None and _BODY.fullmatch(line) and self._key_lines < _LONGEST_KEY_LINES:
                self._key_lines += 1
                return b""
            self._key_lines = 0
            if end is not None:
                return self.redact(line[end.end() :])
        *_, last = [None, *_BEGIN.finditer(line)]
        if last is not None and _END.search(line, last.end()) is None:
            self._key_lines = 1
        return redact_line(line)
