"""Personal data and secrets in texts: found by form, check digit, context and lists; replaced by placeholders."""

from sekisho.guard.personal.found import Found, Kind
from sekisho.guard.personal.lines import LineRedactor, redact_line
from sekisho.guard.personal.redaction import Pseudonyms, Redacted, find, redact

__all__ = ["Found", "Kind", "LineRedactor", "Pseudonyms", "Redacted", "find", "redact", "redact_line"]
