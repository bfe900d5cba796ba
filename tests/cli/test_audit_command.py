"""`sekisho audit`: a real book, written by the book itself, read by the commands."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sekisho.audit import AuditConfig, Book, EscalationRecord, OutcomeRecord, ReaderKeys, Record, VerdictRecord
from sekisho.audit.export import check_export
from sekisho.core.clock import ManualClock
from sekisho.ops.home import Home, RunState, write_state

Run = Any
Answer = Any

DAY_S = 86_400.0


def verdict(number: int, decision: str = "ALLOW", category: str = "none", text: str = "a question") -> VerdictRecord:
    values = {"request_id": f"req_{number}", "user_id": "taro", "key_id": "key_1", "input": text}
    return msgspec.convert({**values, "decision": decision, "category": category}, VerdictRecord)


RECORDS: tuple[Record, ...] = (
    verdict(1),
    OutcomeRecord(request_id="req_1", user_id="taro", key_id="key_1", status="completed", output="an answer"),
    verdict(2, "REFUSE", "weapons", "爆弾の作り方"),
    verdict(3, "ESCALATE", "medical", "a dose for [PERSON_1]"),
    EscalationRecord(ticket_id="esc_9", request_id="req_3", event="approved", user_id="hanako", category="medical"),
)


def write_book(home: Path, *records: Record, clock: ManualClock | None = None) -> None:
    place = Home(home).create()
    book = Book.open(place.audit, place.secrets, AuditConfig(fsync=False), clock)

    async def append() -> None:
        for record in records:
            await book.append(record)

    asyncio.run(append())
    book.close()


@pytest.fixture
def book(home: Path) -> Path:
    write_book(home, *RECORDS)
    return home


def serving(home: Path) -> None:
    """Notes this process as the server of the home."""
    write_state(Home(home), RunState.of_this_process("http://127.0.0.1:1", "0"))


def test_tail_shows_the_end(answer: Answer, sekisho: Run, book: Path) -> None:
    """The last records, oldest first, as JSON and as a line each."""
    assert [entry["sequence"] for entry in answer("audit", "tail", "-n", "2")] == [4, 5]
    assert answer("audit", "tail", "-n", "0") == []
    code, out, _ = sekisho("audit", "tail")
    assert code == 0
    assert len(out.splitlines()) == 5
    assert "REFUSE" in out
    assert "爆弾の作り方" in out


def test_a_prompt_cannot_steer_the_terminal(answer: Answer, sekisho: Run, home: Path) -> None:
    """Escape sequences and letters that turn a line around are shown, not sent; JSON has them escaped."""
    write_book(home, verdict(1, text="\x1b[2J\x1b]0;owned\x07 \u202eevil"))
    for command in (["audit", "tail"], ["audit", "show", "1"]):
        code, out, _ = sekisho(*command)
        assert code == 0
        assert "\\x1b[2J" in out
        assert not {"\x1b", "\x07", "\u202e"} & set(out)
    assert answer("audit", "show", "1")["entries"][0]["record"]["input"].startswith("\x1b[2J")


def test_tail_follows_a_book_that_is_written(book: Path) -> None:
    """Beside the writer, each new record comes as a line of JSON; Ctrl+C ends it with 130."""
    place = Home(book)
    writer = Book.open(place.audit, place.secrets, AuditConfig(fsync=False))
    argv = [sys.executable, "-m", "sekisho", "audit", "tail", "-n", "1", "--follow", "--json"]
    environment = {**os.environ, "SEKISHO_HOME": str(book), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["sequence"] == 5
        for number in (6, 7):
            asyncio.run(_append(writer, verdict(number)))
            assert json.loads(process.stdout.readline())["record"]["request_id"] == f"req_{number}"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
        writer.close()


async def _append(book: Book, record: Record) -> None:
    await book.append(record)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--request", "req_1"], [1, 2]),
        (["--key", "key_1", "--decision", "allow"], [1]),
        (["--user", "hanako"], [5]),
        (["--category", "medical"], [4, 5]),
        (["--decision", "REFUSE"], [3]),
        (["--text", "爆弾"], [3]),
        (["--text", "AN ANSWER"], [2]),
        (["--kind", "verdict"], [1, 3, 4]),
        (["--since", "1h"], [1, 2, 3, 4, 5]),
        (["--until", "1h"], []),
        (["--since", "2020-01-01", "--until", "2020-01-02"], []),
        (["--text", "nowhere"], []),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_search_finds_what_holds_everything(answer: Answer, book: Path, arguments: list[str], found: list[int]) -> None:
    """Each option narrows the search."""
    assert [entry["sequence"] for entry in answer("audit", "search", *arguments)] == found


def test_search_knows_keys_by_name(answer: Answer, sekisho: Run, home: Path) -> None:
    """--key takes the name of a key, revoked ones too; an unknown name is told."""
    key = answer("key", "create", "--name", "taro")["id"]
    write_book(home, msgspec.structs.replace(verdict(1), key_id=key), verdict(2))
    answer("key", "revoke", "taro")
    assert [entry["sequence"] for entry in answer("audit", "search", "--key", "taro")] == [1]
    assert sekisho("audit", "search", "--key", "nobody")[0] == 3


@pytest.mark.parametrize(
    "arguments",
    [["--decision", "maybe"], ["--category", "frogs"], ["--kind", "poem"], ["--since", "soon"], ["--until", "x"]],
    ids=" ".join,
)
def test_search_refuses_what_it_does_not_know(sekisho: Run, book: Path, arguments: list[str]) -> None:
    """A mistyped word must not look like an empty book."""
    code, out, err = sekisho("audit", "search", *arguments)
    assert (code, out) == (2, "")
    assert arguments[0] in err


def test_show_tells_every_field(answer: Answer, sekisho: Run, book: Path) -> None:
    """By number one record, by the id of a request or a ticket everything about it."""
    (entry,) = answer("audit", "show", "3")["entries"]
    assert entry["record"]["decision"] == "REFUSE"
    assert [each["sequence"] for each in answer("audit", "show", "req_3")["entries"]] == [4, 5]
    assert [each["sequence"] for each in answer("audit", "show", "esc_9")["entries"]] == [5]
    code, out, _ = sekisho("audit", "show", "3")
    assert code == 0
    assert "request_id" in out
    assert sekisho("audit", "show", "99")[0] == 3
    assert sekisho("audit", "show", "req_99")[0] == 3


def test_show_opens_the_vault(answer: Answer, sekisho: Run, home: Path) -> None:
    """--vault tells what placeholders stood for, where there is a vault; where there is none, that is told."""
    write_book(home, *RECORDS)
    assert sekisho("audit", "show", "req_3", "--vault")[0] == 3
    place = Home(home)
    with_vault = Book.open(place.audit, place.secrets, AuditConfig(fsync=False, vault=True))
    assert with_vault.vault is not None
    with_vault.vault.put("req_3", {"[PERSON_1]": "山田花子"}, "2026-11-28T00:00:00.000Z")
    with_vault.close()
    assert answer("audit", "show", "req_3", "--vault")["vault"] == {"[PERSON_1]": "山田花子"}
    assert "vault" not in answer("audit", "show", "req_3")


def test_verify_says_that_the_book_is_whole(answer: Answer, sekisho: Run, book: Path) -> None:
    """A book as it was written: exit code 0, how many records, and how far anchors vouch for it."""
    told = answer("audit", "verify")
    assert (told["ok"], told["records"], told["anchored"], told["first"]) == (True, 5, 5, None)
    code, out, _ = sekisho("audit", "verify")
    assert code == 0
    assert "5 records" in out


def test_verify_names_the_first_bad_record_and_why(answer: Answer, sekisho: Run, book: Path) -> None:
    """A deleted line is named by its record number, with exit code 1."""
    (segment,) = (book / "audit").glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(lines[:3] + lines[4:]))
    code, out, _ = sekisho("audit", "verify")
    assert code == 1
    assert out.startswith("First bad record: 3 (segment 0, line 4)")
    told = answer("audit", "verify", code=1)
    assert (told["ok"], told["first"]["kind"], told["first"]["sequence"]) == (False, "deleted", 3)


def test_verify_against_anchors_that_were_kept_elsewhere(
    answer: Answer, sekisho: Run, book: Path, tmp_path: Path
) -> None:
    """A book and its anchors rolled back together are found out by a copy of the anchors."""
    elsewhere = tmp_path / "elsewhere"
    old = tmp_path / "old"
    shutil.copytree(book, old)
    write_book(book, verdict(6))
    shutil.copytree(book / "audit" / "anchors", elsewhere)
    shutil.rmtree(book)
    old.rename(book)
    assert answer("audit", "verify")["ok"] is True
    told = answer("audit", "verify", "--anchors", str(elsewhere), code=1)
    assert told["first"]["kind"] in ("rolled_back", "truncated")
    assert sekisho("audit", "verify", "--anchors", str(tmp_path / "nothing"))[0] == 3


def test_the_key_that_is_needed_is_named(answer: Answer, sekisho: Run, book: Path, tmp_path: Path) -> None:
    """With the recovery key moved away nothing can be read; the error names the file, and --recovery its new place."""
    moved = tmp_path / "safe.key"
    (book / "secrets" / "audit-recovery.key").rename(moved)
    for command in (["tail"], ["search"], ["show", "1"], ["verify"], ["export", "--out", str(tmp_path / "x")]):
        code, _, err = sekisho("audit", *command)
        assert code == 1, command
        assert "audit-recovery.key" in err
        assert "--recovery" in err
    assert len(answer("audit", "tail", "--recovery", str(moved))) == 5
    assert answer("audit", "verify", "--recovery", str(moved))["ok"] is True


def test_the_key_of_another_book_is_told(sekisho: Run, book: Path, tmp_path: Path) -> None:
    """A key that opens another book must not show an empty one."""
    other = tmp_path / "other.key"
    other.write_text("00" * 32 + "\n")
    code, _, err = sekisho("audit", "tail", "--recovery", str(other))
    assert code == 1
    assert "another book" in err


@pytest.mark.parametrize(
    "command", [["tail"], ["search"], ["show", "1"], ["verify"], ["anchor"], ["retain", "--days", "1"]]
)
def test_without_a_book(sekisho: Run, home: Path, command: list[str]) -> None:
    """Where nothing was ever written that is told, with 3, and no keys are made."""
    code, _, err = sekisho("audit", *command)
    assert code == 3
    assert "no book" in err
    assert not (home / "secrets" / "audit-recovery.key").exists()


def test_export_is_signed(answer: Answer, sekisho: Run, book: Path, tmp_path: Path) -> None:
    """The records of the time span with a signature over them, for their owner's eyes; the book notes the export."""
    file = tmp_path / "out.jsonl"
    told = answer("audit", "export", "--since", "1d", "--out", str(file))
    assert (told["records"], told["encrypted"], told["noted"]) == (5, False, True)
    public = ReaderKeys.load(book / "secrets").public
    assert check_export(file.read_bytes().splitlines(keepends=True), public) == 5
    assert told["signer"] == public.hex()
    assert file.stat().st_mode & 0o077 == 0
    (note,) = answer("audit", "search", "--kind", "admin")
    assert note["record"]["action"] == "export"
    code, _, err = sekisho("audit", "export", "--out", str(file))
    assert code == 2
    assert "is there already" in err


def test_an_export_can_be_checked_by_whoever_gets_it(answer: Answer, sekisho: Run, book: Path, tmp_path: Path) -> None:
    """With the signer alone and without the book; what was changed, cut or signed by another fails with 1."""
    file = tmp_path / "out.jsonl"
    signer = answer("audit", "export", "--out", str(file))["signer"]
    assert answer("audit", "check", str(file))["records"] == 5
    away = ("--home", str(tmp_path / "elsewhere"))
    assert answer("audit", "check", str(file), "--signer", signer, *away)["good"] is True
    lines = file.read_bytes().splitlines(keepends=True)
    for wrong in (lines[:-1], lines[:1] + lines[2:], [*lines[:2], *lines[3:1:-1], *lines[4:]], [b"age\x00\xff"]):
        file.write_bytes(b"".join(wrong))
        code, _, err = sekisho("audit", "check", str(file), "--signer", signer, *away)
        assert code == 1
        assert "age -d" in err
    file.write_bytes(b"".join(lines))
    assert sekisho("audit", "check", str(file), "--signer", "00" * 32, *away)[0] == 1
    assert sekisho("audit", "check", str(file), "--signer", "abc", *away)[0] == 2
    assert sekisho("audit", "check", str(file), *away)[0] == 3
    assert sekisho("audit", "check", str(tmp_path / "none"), "--signer", signer)[0] == 3


def test_export_to_a_recipient_is_never_in_clear(answer: Answer, sekisho: Run, book: Path, tmp_path: Path) -> None:
    """Only the recipient's identity opens the file; a recipient that is none leaves no file behind."""
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    file = tmp_path / "out.age"
    told = answer("audit", "export", "--recipient", str(identity.to_public()), "--out", str(file))
    assert told["encrypted"] is True
    sealed = file.read_bytes()
    assert sealed.startswith(b"age-encryption.org/v1")
    assert "爆弾".encode() not in sealed
    opened = pyrage.decrypt(sealed, [identity])
    assert check_export(opened.splitlines(keepends=True), ReaderKeys.load(book / "secrets").public) == 5
    assert sekisho("audit", "export", "--recipient", "age1nobody", "--out", str(tmp_path / "no"))[0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out.age"]


def test_anchor_signs_the_end(answer: Answer, sekisho: Run, book: Path) -> None:
    """Without a server the end is signed now; the recovery key is not needed for it."""
    (book / "secrets" / "audit-recovery.key").unlink()
    shutil.rmtree(book / "audit" / "anchors")
    told = answer("audit", "anchor")
    assert (told["running"], told["newest"], told["bad"]) == (False, 5, [])
    code, out, _ = sekisho("audit", "anchor", "-n", "1")
    assert code == 0
    assert str(book / "audit" / "anchors") in out


def test_anchor_beside_a_server_only_looks(answer: Answer, sekisho: Run, book: Path) -> None:
    """A running server anchors by itself: the command shows its anchors and says so."""
    place = Home(book)
    writer = Book.open(place.audit, place.secrets, AuditConfig(fsync=False))
    serving(book)
    try:
        assert answer("audit", "anchor")["running"] is True
        code, out, _ = sekisho("audit", "anchor")
        assert code == 0
        assert "anchors by itself, every 60 s" in out
        assert len(answer("audit", "tail")) == 5
    finally:
        writer.close()


def test_retain_deletes_in_the_open(answer: Answer, sekisho: Run, home: Path) -> None:
    """--dry-run only tells; then whole old segments go, `verify` stays content and lists what was removed."""
    ago = ManualClock(now=time.time() - 10 * DAY_S)
    write_book(home, verdict(1), verdict(2), clock=ago)
    ago.advance(DAY_S)
    write_book(home, verdict(3), clock=ago)
    planned = answer("audit", "retain", "--days", "5", "--dry-run")["deletion"]
    assert (planned["first_sequence"], planned["last_sequence"]) == (1, 2)
    assert len(list((home / "audit").glob("0*"))) == 2
    done = answer("audit", "retain", "--days", "5")["deletion"]
    assert done["last_sequence"] >= 2
    report = answer("audit", "verify")
    assert report["ok"] is True
    assert report["removed"][0]["last_sequence"] == done["last_sequence"]
    code, out, _ = sekisho("audit", "retain", "--days", "5")
    assert code == 0
    assert "No whole segment" in out


def test_retain_needs_the_book_for_itself(sekisho: Run, book: Path) -> None:
    """Beside a running server only --dry-run works; the error says what to do instead. Without days it is an error."""
    code, _, err = sekisho("audit", "retain")
    assert code == 2
    assert "--days" in err
    serving(book)
    assert sekisho("audit", "retain", "--days", "1", "--dry-run")[0] == 0
    code, _, err = sekisho("audit", "retain", "--days", "1")
    assert code == 1
    assert "sekisho down" in err


def test_a_book_that_another_process_holds(sekisho: Run, book: Path, tmp_path: Path) -> None:
    """Reading works beside the writer; what is done while it writes cannot be noted, and is told."""
    place = Home(book)
    writer = Book.open(place.audit, place.secrets, AuditConfig(fsync=False))
    try:
        assert sekisho("audit", "tail")[0] == 0
        assert sekisho("audit", "verify")[0] == 0
        code, _, err = sekisho("audit", "export", "--out", str(tmp_path / "x.jsonl"))
        assert code == 0
        assert "not written into the book" in err
        code, _, err = sekisho("audit", "retain", "--days", "1")
        assert code == 1
        assert "another process writes this book" in err
    finally:
        writer.close()
