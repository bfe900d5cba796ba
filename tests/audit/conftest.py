"""A book in a temporary folder, and how to look at it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sekisho.audit.book import Book
from sekisho.audit.config import AnchorConfig, AuditConfig
from sekisho.audit.keys import ReaderKeys
from sekisho.audit.reader import Reader
from sekisho.audit.records import Entry, VerdictRecord
from sekisho.audit.verify import Report, verify
from sekisho.core.clock import ManualClock


class Shelf:
    """The folders of one book: `folder`, its `secrets`, and `anchors` elsewhere."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "audit"
        self.secrets = root / "secrets"
        self.anchors = root / "elsewhere"
        self.config = AuditConfig(fsync=False, anchor=AnchorConfig(str(self.anchors), records=1000, seconds=3600))
        self.clock = ManualClock()

    def open(self, **options: object) -> Book:
        return Book.open(self.folder, self.secrets, **{"config": self.config, "clock": self.clock, **options})

    def keys(self) -> ReaderKeys:
        return ReaderKeys.load(self.secrets)

    def entries(self) -> list[Entry]:
        return list(Reader(self.folder, self.keys()).entries())

    def verify(self, anchors: bool = True) -> Report:
        return verify(self.folder, self.keys(), (self.anchors,) if anchors else ())

    def inputs(self) -> list[str]:
        return [each.record.input for each in self.entries() if isinstance(each.record, VerdictRecord)]


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    return Shelf(tmp_path)


def verdict(text: str = "何時ですか") -> VerdictRecord:
    return VerdictRecord(request_id="req_1", user_id="user_1", input=text, decision="ALLOW", category="none")


VerdictMaker = Callable[[str], VerdictRecord]
