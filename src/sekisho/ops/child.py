"""What a supervised process does: it leaves with its parent, and says by exit code what is not worth a retry."""

from typing import Final

from sekisho.engines.lifeline import die_with_parent

EXIT_CONFIGURATION: Final = 78
"""The settings are wrong: starting again cannot help (`EX_CONFIG` of sysexits)."""

__all__ = ["EXIT_CONFIGURATION", "die_with_parent"]
