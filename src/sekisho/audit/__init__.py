"""The book: an encrypted, hash-chained, append-only record of every decision and its outcome.

book = Book.open(home / "audit", home / "secrets", AuditConfig())      # at start; one writer per folder
receipt = await book.append(verdict_record(verdict, request_id=…, user_id=…))   # durable when it returns
book.close()

keys = ReaderKeys.load(home / "secrets")                               # needs the recovery key
Reader(folder, keys).search(Query(decision="refuse")); verify(folder, keys, [anchor_folder(folder, config.anchor)])
"""

from sekisho.audit.anchor import Anchor, anchor_folder
from sekisho.audit.book import Book
from sekisho.audit.config import AnchorConfig, AuditConfig
from sekisho.audit.diagnosis import Problem
from sekisho.audit.keys import KeyUnavailable, ReaderKeys
from sekisho.audit.reader import Query, Reader
from sekisho.audit.records import (
    AdminRecord,
    Entry,
    EscalationRecord,
    OutcomeRecord,
    Receipt,
    Record,
    VerdictRecord,
    verdict_record,
)
from sekisho.audit.verify import Report, verify

__all__ = [
    "AdminRecord",
    "Anchor",
    "AnchorConfig",
    "AuditConfig",
    "Book",
    "Entry",
    "EscalationRecord",
    "KeyUnavailable",
    "OutcomeRecord",
    "Problem",
    "Query",
    "Reader",
    "ReaderKeys",
    "Receipt",
    "Record",
    "Report",
    "VerdictRecord",
    "anchor_folder",
    "verdict_record",
    "verify",
]
