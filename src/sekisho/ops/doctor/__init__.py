"""Looks for what keeps a Sekisho from working, and says how to mend it. Findings are values; nothing is changed.

Each module holds the checks of one matter and, as `Case`s, everything they can say, in English and Japanese.
"""

from sekisho.ops.doctor.examination import examine
from sekisho.ops.doctor.finding import Case, Finding, Patient, Severity

__all__ = ["Case", "Finding", "Patient", "Severity", "examine"]
