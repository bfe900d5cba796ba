"""Settings of the `logs:` part of sekisho.yaml."""

import msgspec


class LogsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a log file gives way to a new one. `max_bytes`: at this size. `daily`: at midnight (local time) as well.
    `keep`: how many older files stay. `compress`: with gzip."""

    max_bytes: int = 100_000_000
    keep: int = 5
    compress: bool = True
    daily: bool = False
