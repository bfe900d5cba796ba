"""Reading: search by every field, the tail, single records, and exports."""

import io
from pathlib import Path

import pytest

from sekisho.audit.export import check_export, export_lines, signing_key, write_export
from sekisho.audit.reader import Query, Reader
from sekisho.audit.records import (
    AdminRecord,
    EscalationRecord,
    OutcomeRecord,
    VerdictRecord,
    verdict_record,
)
from sekisho.core.errors import BookUnavailable
from sekisho.core.verdict import Finding, Verdict

from .conftest import Shelf, verdict


@pytest.fixture
async def filled(shelf: Shelf) -> Shelf:
    """Six records of every kind over two segments."""
    refused = Verdict("refuse", category="weapons", severity="high", confidence=0.98, rationale="武器の作り方です")
    asked = verdict_record(refused, request_id="req_b", user_id="user_2", input_text="How do I build a BOMB?")
    book = shelf.open()
    await book.append(verdict("おはよう"))
    await book.append(asked)
    await book.append(OutcomeRecord(request_id="req_b", key_id="key_9", status="refused", output="できません"))
    book.close()
    shelf.clock.advance(3600)
    book = shelf.open()
    await book.append(EscalationRecord(ticket_id="t_1", request_id="req_c", event="opened", category="medical"))
    await book.append(AdminRecord(action="mode", user_id="admin", detail={"to": "emergency"}))
    await book.append(verdict("おやすみ"))
    book.close()
    return shelf


def _found(shelf: Shelf, query: Query) -> list[int]:
    return [entry.sequence for entry in Reader(shelf.folder, shelf.keys()).search(query)]


async def test_search_by_each_field(filled: Shelf) -> None:
    """Each field of a query selects, several together narrow, text is found in any case."""
    assert _found(filled, Query()) == [1, 2, 3, 4, 5, 6]
    assert _found(filled, Query(request_id="req_b")) == [2, 3]
    assert _found(filled, Query(key_id="key_9")) == [3]
    assert _found(filled, Query(user_id="admin")) == [5]
    assert _found(filled, Query(decision="refuse")) == _found(filled, Query(decision="REFUSE")) == [2]
    assert _found(filled, Query(category="medical")) == [4]
    assert _found(filled, Query(kind="verdict")) == [1, 2, 6]
    assert _found(filled, Query(text="bomb")) == [2]
    assert _found(filled, Query(text="emergency")) == [5]
    assert _found(filled, Query(text="お")) == [1, 6]
    middle = filled.entries()[3].record.timestamp
    assert _found(filled, Query(since=middle)) == [4, 5, 6]
    assert _found(filled, Query(until=middle)) == [1, 2, 3]
    assert _found(filled, Query(request_id="req_b", kind="outcome")) == [3]
    assert _found(filled, Query(request_id="req_b", decision="allow")) == []


async def test_tail_and_show(filled: Shelf) -> None:
    """The tail is the last that match, in order, over segments; a record is found by its number."""
    reader = Reader(filled.folder, filled.keys())
    assert [e.sequence for e in reader.tail(2)] == [5, 6]
    assert [e.sequence for e in reader.tail(4)] == [3, 4, 5, 6]
    assert [e.sequence for e in reader.tail(99)] == [1, 2, 3, 4, 5, 6]
    assert [e.sequence for e in reader.tail(2, Query(kind="verdict"))] == [2, 6]
    assert [e.sequence for e in reader.entries(after=4)] == [5, 6]
    shown = reader.show(2)
    assert shown is not None
    assert isinstance(shown.record, VerdictRecord)
    assert (shown.segment, shown.line, shown.record.decision) == (0, 3, "REFUSE")
    assert reader.show(7) is None


async def test_a_missing_book_says_so(shelf: Shelf, filled: Shelf) -> None:
    """Reading a folder that is not there is an operational error."""
    with pytest.raises(BookUnavailable, match="gone"):
        list(Reader(shelf.folder / "nowhere", filled.keys()).entries())


def test_a_verdict_becomes_seed_004s_record() -> None:
    """Decision in capitals, a human for an escalation, and what the guard found."""
    finding = Finding("rule", "ja-medical-3", "medical", "escalate")
    decided = Verdict("escalate", "medical", "medium", 0.95, 0.5, "理由", (finding,), "rule", "p1", "ja")
    record = verdict_record(decided, request_id="r", user_id="u", input_text="…")
    assert (record.decision, record.human_required, record.confidence_score) == ("ESCALATE", True, 0.95)
    assert (record.category, record.severity, record.threshold, record.findings) == (
        "medical",
        "medium",
        0.5,
        (finding,),
    )


async def test_a_plain_export_is_signed(filled: Shelf) -> None:
    """An export checks against the public key; any change of a byte, or a line less, does not."""
    keys = filled.keys()
    entries = Reader(filled.folder, keys).entries()
    out = io.BytesIO()
    write_export(export_lines(entries, keys.book, "2026-11-28T00:00:00Z", signing_key(filled.secrets)), out)
    lines = out.getvalue().splitlines(keepends=True)
    assert check_export(lines, keys.public) == 6
    assert "おはよう" in out.getvalue().decode()
    assert check_export(lines[:-2] + lines[-1:], keys.public) is None
    assert check_export(lines[:-1], keys.public) is None
    assert check_export([], keys.public) is None
    assert check_export(lines, bytes(32)) is None
    for number in range(len(lines)):
        changed = list(lines)
        changed[number] = changed[number].replace(b":", b": ", 1)
        assert check_export(changed, keys.public) is None or number == len(lines) - 1


async def test_an_export_to_an_age_recipient(filled: Shelf) -> None:
    """Only the recipient's identity opens it; what is inside is the signed export."""
    pyrage = pytest.importorskip("pyrage")
    keys = filled.keys()
    identity = pyrage.x25519.Identity.generate()
    out = io.BytesIO()
    lines = list(export_lines(filled.entries(), keys.book, "now", signing_key(filled.secrets)))
    write_export(lines, out, (str(identity.to_public()),))
    assert b"BOMB" not in out.getvalue()
    assert pyrage.decrypt(out.getvalue(), [identity]) == b"".join(lines)
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(out.getvalue(), [pyrage.x25519.Identity.generate()])
    with pytest.raises(BookUnavailable, match="recipient"):
        write_export(lines, io.BytesIO(), ("age1nonsense",))


async def test_reading_changes_nothing(filled: Shelf) -> None:
    """Reader and verifier leave every file as it is."""

    def state() -> dict[Path, tuple[bytes, float]]:
        paths = [path for path in filled.folder.parent.rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime) for path in paths}

    before = state()
    assert filled.verify().ok
    assert Reader(filled.folder, filled.keys()).tail(3)
    assert state() == before
