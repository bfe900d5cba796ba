"""`sekisho emergency`: the switch, the back-up before it, and the bundle after it."""

import asyncio
import json
import os
import sqlite3
import tarfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from sekisho.audit import AuditConfig, Book, ReaderKeys, VerdictRecord, verify
from sekisho.audit.export import check_export
from sekisho.cli.backup import back_up
from sekisho.guard.emergency import EmergencySwitch, emergency_file
from sekisho.ops.home import Home, RunState, write_state

Run = Any
Answer = Any


def write_record(home: Path, text: str = "a question") -> None:
    place = Home(home).create()
    book = Book.open(place.audit, place.secrets, AuditConfig(fsync=False))

    async def append() -> None:
        await book.append(VerdictRecord(request_id="req_1", user_id="taro", decision="ALLOW", input=text))

    asyncio.run(append())
    book.close()


def secret_texts(home: Path) -> list[bytes]:
    """What stands in the home's secrets, as it might leak."""
    return [path.read_bytes().strip() for path in (home / "secrets").iterdir()]


def test_on_and_off_reach_a_running_server(answer: Answer, sekisho: Run, home: Path) -> None:
    """The switch of a server follows within a second; who, when and why are kept; a second `on` changes nothing."""
    place = Home(home).create()
    switch = EmergencySwitch(emergency_file(place.guard))
    assert switch.mode("production") == "production"
    told = answer("emergency", "on", "--reason", "keys leaked")
    assert (told["already"], told["reason"], told["backup"]) == (False, "keys leaked", None)
    assert abs(told["since"] - time.time()) < 60
    wait_for(lambda: switch.mode("production") == "emergency")
    again = answer("emergency", "on", "--reason", "something else")
    assert (again["already"], again["reason"], again["since"]) == (True, "keys leaked", told["since"])
    status = answer("emergency", "status")
    assert (status["on"], status["by"], status["mode"]) == (True, told["by"], "emergency")
    assert answer("emergency", "off")["mode"] == "basic"
    wait_for(lambda: switch.mode("production") == "production")
    assert answer("emergency", "status") == {"on": False, "mode": "basic"}
    assert sekisho("emergency", "off")[0] == 3
    assert sekisho("emergency", "on")[0] == 2
    assert sekisho("emergency", "on", "--reason", " ")[0] == 2


def wait_for(holds: Any) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_book_knows_of_the_emergency(answer: Answer, home: Path) -> None:
    """Without a server the command itself notes who declared and who ended it. Beside one it leaves the book alone."""
    answer("emergency", "on", "--reason", "keys leaked")
    answer("emergency", "off")
    actions = [entry["record"]["action"] for entry in answer("audit", "search", "--kind", "admin")]
    assert actions == ["emergency_on", "emergency_off"]
    write_state(Home(home), RunState.of_this_process("http://127.0.0.1:1", "0"))
    answer("emergency", "on", "--reason", "again")
    assert len(answer("audit", "search", "--kind", "admin")) == 2


def test_the_file_is_for_its_owner_alone(answer: Answer, home: Path) -> None:
    """Nobody else of the machine reads or ends an emergency."""
    answer("emergency", "on", "--reason", "keys leaked")
    assert (home / "guard" / "emergency.json").stat().st_mode & 0o077 == 0


def test_a_back_up_is_whole_and_holds_no_secret(answer: Answer, home: Path) -> None:
    """Database, book, settings and rules are copied and can be used; the folder of secrets is not."""
    write_record(home)
    (home / "sekisho.yaml").write_text("guard: {mode: production}\n")
    (home / "guard" / "rules").mkdir()
    (home / "guard" / "rules" / "ours.yaml").write_text("rules: []\n")
    key = answer("key", "create", "--name", "taro")
    folder = Path(answer("emergency", "on", "--reason", "keys leaked", "--backup")["backup"])
    assert folder.parent == home / "backups"
    with sqlite3.connect(folder / "sekisho.db") as database:
        assert database.execute("SELECT name FROM keys").fetchall() == [("taro",)]
    database.close()
    assert verify(folder / "audit", ReaderKeys.load(home / "secrets")).records >= 1
    assert (folder / "sekisho.yaml").read_text() == "guard: {mode: production}\n"
    assert (folder / "guard" / "rules" / "ours.yaml").exists()
    copied = [path for path in folder.rglob("*") if path.is_file()]
    assert "secrets" not in {part for path in copied for part in path.relative_to(folder).parts}
    for path in copied:
        assert path.stat().st_mode & 0o077 == 0, path
        assert key["key"].encode() not in path.read_bytes()
        assert not any(secret in path.read_bytes() for secret in secret_texts(home)), path


def test_a_back_up_while_all_is_written(home: Path) -> None:
    """Beside an open database and an open book the copy is one that both accept."""
    place = Home(home).create()
    write_record(home)
    book = Book.open(place.audit, place.secrets, AuditConfig(fsync=False))
    database = sqlite3.connect(place.database)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (1)")
        database.commit()
        database.execute("INSERT INTO t VALUES (2)")  # not committed: not in the copy
        copied = back_up(place, str(place.database))
        assert copied.left_out == {}
        copy = sqlite3.connect(copied.folder / "sekisho.db")
        assert copy.execute("SELECT x FROM t").fetchall() == [(1,)]
        copy.close()
        report = verify(copied.folder / "audit", ReaderKeys.load(place.secrets))
        assert [problem.kind for problem in report.problems if problem.kind != "rolled_back"] == []
    finally:
        database.close()
        book.close()


def test_a_database_elsewhere_is_told(home: Path) -> None:
    """A server's database is not a file to copy: the back-up says so and has the rest."""
    place = Home(home).create()
    write_record(home)
    copied = back_up(place, "postgresql+asyncpg://user@host/name")
    assert list(copied.left_out) == ["database"]
    assert (copied.folder / "audit").is_dir()


def bundle(raw: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=BytesIO(raw), mode="r:gz") as tar:
        found = {}
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            found[member.name.removeprefix("incident/")] = file.read()
        return found


def test_the_bundle_has_what_is_needed_and_no_key(answer: Answer, home: Path, tmp_path: Path) -> None:
    """Records of the span, report, anchors, logs, settings, status, findings, tickets and versions; no secret, and
    what a log should not hold is taken out once more."""
    write_record(home, "before the incident")
    (home / "sekisho.yaml").write_text("models: [{name: echo, engine: fake}]\n")
    answer("emergency", "on", "--reason", "keys leaked")
    key = answer("key", "create", "--name", "taro")
    (home / "logs").mkdir(exist_ok=True)
    (home / "logs" / "gateway.log").write_text(f'{{"level": "info"}}\nmail to hanako@example.com with {key["key"]}\n')
    (home / "logs" / "old.log").write_text("old\n")
    os.utime(home / "logs" / "old.log", (1, 1))
    file = tmp_path / "incident.tar.gz"
    told = answer("emergency", "export", "--since", "1h", "--out", str(file))
    assert told["missing"] == {}
    found = bundle(file.read_bytes())
    assert set(found) == set(told["parts"])
    expected = {"book.jsonl", "verify.json", "settings.json", "status.json", "doctor.json", "tickets.json"}
    assert expected | {"emergency.json", "versions.json", "manifest.json", "logs/gateway.log"} <= set(found)
    assert "logs/old.log" not in found
    public = ReaderKeys.load(home / "secrets").public
    assert check_export(found["book.jsonl"].splitlines(keepends=True), public) == 2
    assert json.loads(found["verify.json"])["ok"] is True
    assert json.loads(found["emergency.json"])["reason"] == "keys leaked"
    assert json.loads(found["versions.json"])["sekisho"]
    whole = b"".join(found.values())
    assert key["key"].encode() not in whole
    assert b"hanako@example.com" not in whole
    assert not any(secret in whole for secret in secret_texts(home))
    assert file.stat().st_mode & 0o077 == 0


def test_the_span_begins_with_the_emergency(answer: Answer, home: Path, tmp_path: Path) -> None:
    """Without --since the bundle has what was recorded since the emergency was declared."""
    write_record(home, "before")
    time.sleep(0.01)
    answer("emergency", "on", "--reason", "keys leaked")
    file = tmp_path / "incident.tar.gz"
    answer("emergency", "export", "--out", str(file))
    lines = [json.loads(line) for line in bundle(file.read_bytes())["book.jsonl"].splitlines()[1:-1]]
    assert [line["record"]["action"] for line in lines] == ["emergency_on"]


def test_the_bundle_for_a_recipient(answer: Answer, home: Path, tmp_path: Path) -> None:
    """Encrypted, it opens with the recipient's identity alone."""
    import pyrage

    write_record(home, "a planted sentence")
    identity = pyrage.x25519.Identity.generate()
    file = tmp_path / "incident.age"
    answer("emergency", "export", "--out", str(file), "--recipient", str(identity.to_public()))
    raw = file.read_bytes()
    assert raw.startswith(b"age-encryption.org/v1")
    assert b"a planted sentence" in bundle(pyrage.decrypt(raw, [identity]))["book.jsonl"]


def test_what_cannot_be_collected_is_told(answer: Answer, sekisho: Run, home: Path, tmp_path: Path) -> None:
    """With wrong settings and without the key to the book the bundle is made all the same, and says what lacks."""
    write_record(home)
    (home / "secrets" / "audit-recovery.key").unlink()
    file = tmp_path / "incident.tar.gz"
    told = answer("emergency", "export", "--out", str(file))
    assert set(told["missing"]) == {"book.jsonl", "verify.json"}
    assert "audit-recovery.key" in json.loads(bundle(file.read_bytes())["manifest.json"])["missing"]["book.jsonl"]
    (home / "sekisho.yaml").write_text("colour: red\n")
    told = answer("emergency", "export", "--out", str(tmp_path / "second.tar.gz"))
    assert "settings.json" in told["missing"]
    assert "versions.json" in told["parts"]
    code, _, err = sekisho("emergency", "export", "--out", str(file))
    assert code == 2
    assert "is there already" in err


@pytest.mark.parametrize("since", ["soon", "-1"])
def test_a_wrong_span_leaves_no_file(sekisho: Run, home: Path, tmp_path: Path, since: str) -> None:
    """A time that is not understood is wrong usage, and nothing is written."""
    assert sekisho("emergency", "export", "--since", since, "--out", str(tmp_path / "x"))[0] == 2
    assert not (tmp_path / "x").exists()


def test_wrong_settings_hold_no_emergency_up(answer: Answer, sekisho: Run, home: Path) -> None:
    """It can be declared, seen and ended while sekisho.yaml is broken; what is wrong is told beside it."""
    home.mkdir()
    (home / "sekisho.yaml").write_text("colour: red\n")
    code, _, err = sekisho("emergency", "on", "--reason", "keys leaked", "--backup")
    assert code == 0
    assert "colour" in err
    assert answer("emergency", "status")["on"] is True
    assert answer("emergency", "off")["ended"]["reason"] == "keys leaked"
