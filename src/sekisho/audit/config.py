"""Settings of the `audit:` part of sekisho.yaml."""

from typing import Literal

import msgspec

Text = Literal["full", "hash"]


class AnchorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signed statement of (count, head) after `records` records or `seconds`, whichever comes first.

    `folder` None puts the anchors inside the book's folder: they show a cut tail, but not a rollback of the folder.
    """

    folder: str | None = None
    records: int = 1000
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.records < 1 or not self.seconds > 0:
            raise ValueError("`records` must be at least 1 and `seconds` more than 0")


class AuditConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`text` says what is kept of inputs and outputs: the redacted text, or a keyed hash of it.

    `fsync` False acknowledges what the kernel holds: kill -9 loses nothing, a power failure may. `group_wait_ms` lets
    a group grow on purpose; without it a group is what arrived during the last sync. `retention_days` 0 keeps all.
    """

    segment_mb: float = 64.0
    rotate_daily: bool = True
    group_records: int = 512
    group_wait_ms: float = 0.0
    fsync: bool = True
    anchor: AnchorConfig = AnchorConfig()
    retention_days: float = 0.0
    compress: bool = True
    vault: bool = False
    text: Text = "full"

    def __post_init__(self) -> None:
        if not self.segment_mb > 0 or self.group_records < 1:
            raise ValueError("`segment_mb` must be more than 0 and `group_records` at least 1")
        if not 0 <= self.group_wait_ms <= 1000:
            raise ValueError("`group_wait_ms` must be from 0 to 1000")
        if not self.retention_days >= 0:
            raise ValueError("`retention_days` must not be negative (0 keeps all)")
