"""Log lines: bytes in, bytes out."""

import json

from hypothesis import given
from hypothesis import strategies as st

from sekisho.guard.personal import LineRedactor, redact_line


@given(st.binary(max_size=200))
def test_any_bytes_are_taken(line: bytes) -> None:
    """Bytes that are no UTF-8 stay as they are; redacting twice changes nothing more."""
    once = redact_line(line)
    assert redact_line(once) == once


def test_bad_bytes_beside_a_find_stay() -> None:
    """Only the find goes."""
    assert redact_line(b"\xff\xfe nobody@example.com \x80") == b"\xff\xfe [EMAIL_1] \x80"


@given(st.booleans(), st.sampled_from(["\n", "\t", '"', "\\", "、", ""]))
def test_json_escapes_hide_nothing(ascii_only: bool, before: str) -> None:
    """A line of JSON loses the same as the text in it, and stays JSON."""
    text = f"a{before}nobody@example.com{before} 山田太郎様 {before}sk-ant-FAKEFAKEFAKE"
    line = json.dumps({"message": json.dumps({"inner": text}, ensure_ascii=ascii_only)}, ensure_ascii=ascii_only)
    shown = redact_line(line.encode()).decode()
    assert isinstance(json.loads(shown)["message"], str)
    assert "FAKE" not in shown
    assert "example" not in shown
    assert "山田" not in shown
    assert "\\u5c71" not in shown


def test_a_private_key_over_lines() -> None:
    """The redactor of a stream knows that it is inside a key, and when it is over."""
    redactor = LineRedactor()
    lines = [
        b"-----BEGIN RSA PRIVATE KEY-----",
        b"FAKE" * 16,
        b"FAKE=",
        b"-----END RSA PRIVATE KEY----- done",
        b"plain",
    ]
    shown = [redactor.redact(line) for line in lines]
    assert shown[1:] == [b"", b"", b" done", b"plain"]


def test_a_key_without_end_does_not_swallow_the_log() -> None:
    """A line that cannot be part of a key ends it."""
    redactor = LineRedactor()
    assert redactor.redact(b"-----BEGIN PRIVATE KEY-----")
    assert redactor.redact(b"FAKE" * 16) == b""
    assert redactor.redact(b"INFO: the server is ready") == b"INFO: the server is ready"
    assert redactor.redact(b"FAKE") == b"FAKE"
