"""What a finding is, and what is examined."""

from typing import Literal

import msgspec

from sekisho.engines.config import ModelConfig
from sekisho.ops.home import Home

Severity = Literal["ok", "info", "warning", "error"]
Words = tuple[str, str]
"""English and Japanese."""

NONE: Words = ("", "")


class Finding(msgspec.Struct, frozen=True):
    """`id` is the matter and `case` what exactly was found; both are stable, for scripts. `fix` is what to type or do.
    Words of the system itself, such as an operating system's error, stand as they are in both languages."""

    id: str
    severity: Severity
    what: str
    why: str = ""
    fix: str = ""
    case: str = ""
    what_ja: str = ""
    why_ja: str = ""
    fix_ja: str = ""

    def told(self, language: str) -> tuple[str, str, str]:
        """What, why and fix in `ja` or `en`."""
        if language == "ja" and self.what_ja:
            return self.what_ja, self.why_ja, self.fix_ja
        return self.what, self.why, self.fix


class Case(msgspec.Struct, frozen=True):
    """One thing that a check can say. `name` is `matter.what`; words take values in braces."""

    name: str
    severity: Severity
    what: Words
    why: Words = NONE
    fix: Words = NONE

    def found(self, **values: object) -> Finding:
        """A value that differs by language is given as `Words`. Raises KeyError for one that is missing."""
        english, japanese = (
            {name: value[index] if isinstance(value, tuple) else value for name, value in values.items()}
            for index in (0, 1)
        )
        return Finding(
            self.name.partition(".")[0],
            self.severity,
            self.what[0].format(**english),
            self.why[0].format(**english),
            self.fix[0].format(**english),
            self.name,
            self.what[1].format(**japanese),
            self.why[1].format(**japanese),
            self.fix[1].format(**japanese),
        )


class Patient(msgspec.Struct, frozen=True):
    """What is examined: a home, and the settings that matter here. `database`: its address or file; None: not looked
    at. `allow_networks`: who may connect at all (empty: everybody)."""

    home: Home
    host: str
    port: int
    models: tuple[ModelConfig, ...]
    settings_problems: tuple[str, ...] = ()
    allow_networks: tuple[str, ...] = ()
    database: str | None = None
