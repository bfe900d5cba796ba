"""The `audit:` block: defaults that are safe, and values that cannot work are refused."""

import msgspec
import pytest

from sekisho.audit.config import AuditConfig


def test_the_defaults_are_the_safe_ones() -> None:
    """Synced, anchored, packed, kept for ever, no vault."""
    config = msgspec.convert({}, AuditConfig)
    assert config == AuditConfig()
    assert config.fsync
    assert (config.retention_days, config.vault, config.text) == (0.0, False, "full")


@pytest.mark.parametrize(
    "block",
    [
        {"segment_mb": 0},
        {"group_records": 0},
        {"group_wait_ms": -1},
        {"group_wait_ms": 5000},
        {"retention_days": -1},
        {"retention_days": float("nan")},
        {"text": "some"},
        {"colour": "blue"},
        {"anchor": {"records": 0}},
        {"anchor": {"seconds": 0}},
        {"anchor": {"place": "/mnt"}},
    ],
)
def test_what_cannot_work_is_refused(block: dict[str, object]) -> None:
    """Unknown keys and impossible numbers are errors of the settings, not of the running book."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(block, AuditConfig)
