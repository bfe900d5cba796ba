"""`sekisho scorecard`, as the team types it."""

import time
from pathlib import Path
from string import Formatter
from typing import Any

import msgspec
import pytest

from sekisho.audit.keys import SIGNING_FILE, load_key
from sekisho.cli.failure import FAILED
from sekisho.cli.running import run
from sekisho.cli.scorecard_messages import TABLE
from sekisho.core.clock import ManualClock
from sekisho.evaluate.figures import Figure, Figures
from sekisho.evaluate.report.signing import write_manifest
from sekisho.ops.home import Home
from sekisho.ops.stability_log import StabilityLog

WHO = ("--measured-by", "taro", "--by", "hanako", "--why", "day 1")


def put_run(home: Path, name: str = "run_1", *figures: Figure) -> Path:
    """A run's folder with these figures, signed."""
    place = Home(home).create()
    folder = place.runs / name
    folder.mkdir()
    (folder / "figures.json").write_bytes(msgspec.json.encode(Figures(figures)))
    write_manifest(folder, name, load_key(place.secrets / SIGNING_FILE))
    return folder


def one_criterion(home: Path, limit: str = "15") -> None:
    """Thresholds that are decided by the cold start alone."""
    text = (
        "version: 1\nprofiles:\n  other: {}\ncriteria:\n  cold:\n    figures: cold.ttfb_s\n"
        f"    at_most: {limit}\n    name: [Cold start, コールドスタート]\n"
    )
    Home(home).create()
    (home / "thresholds.yaml").write_text(text, encoding="utf-8")


def test_init_writes_a_file_once(sekisho: Any, answer: Any, home: Path) -> None:
    """What it writes is in force as it is; a second time it is in the way."""
    assert answer("scorecard", "init") == {"path": str(home / "thresholds.yaml")}
    before = (home / "thresholds.yaml").read_bytes()
    code, _, err = sekisho("scorecard", "init")
    assert code == 2
    assert "--force" in err
    (home / "thresholds.yaml").write_text("broken")
    assert sekisho("scorecard", "init", "--force")[0] == 0
    assert (home / "thresholds.yaml").read_bytes() == before


def test_show_judges_a_run(sekisho: Any, answer: Any, home: Path) -> None:
    """0 for adopt and 1 for everything else; the newest run where none is named, a folder as well as an id."""
    one_criterion(home)
    folder = put_run(home, "run_1", Figure(id="cold.ttfb_s", value=12.0, unit="s"))
    for named in ((), ("run_1",), (str(folder),)):
        found = answer("scorecard", "show", *named)
        assert (found["run"], found["verdict"]["decision"]) == ("run_1", "adopt")
    one_criterion(home, "10")
    found = answer("scorecard", "show", code=1)
    assert (found["verdict"]["decision"], found["results"][0]["outcome"]) == ("reject", "fail")
    put_run(home, "run_2")
    code, out, _ = sekisho("scorecard", "show", "run_2")
    assert code == 1
    for words in (
        "Undecided",
        "open",
        "at most 10",
        "cold.ttfb_s: not measured",
        "have not been approved",
        "- Cold start: ",
    ):
        assert words in out
    assert sekisho("scorecard", "show", "run_9")[0] == 3


def test_figures_that_cannot_be_read_are_told(sekisho: Any, home: Path) -> None:
    """Cut off or no UTF-8: the file is named, and it is no fault of the program."""
    one_criterion(home)
    folder = put_run(home)
    for body in (b"{", b'{"all": [{"id": "\xff"}]}'):
        (folder / "figures.json").write_bytes(body)
        code, _, told = sekisho("scorecard", "show", "run_1")
        assert code == FAILED
        assert "figures.json cannot be read" in told


def test_show_speaks_japanese(sekisho: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdict, names, reasons and actions."""
    monkeypatch.setenv("SEKISHO_LANG", "ja")
    one_criterion(home)
    put_run(home, "run_1", Figure(id="cold.ttfb_s", value=16.0, unit="s"))
    _, out, _ = sekisho("scorecard", "show")
    for words in ("不採用", "不合格", "コールドスタート", "15 s 以下", "次のアクション", "承認されていません"):
        assert words in out


def test_approve_freezes_and_a_change_is_shown(sekisho: Any, answer: Any, home: Path) -> None:
    """Approved on a signed run by somebody else; a looser threshold afterwards is told with both values."""
    one_criterion(home)
    put_run(home, "run_1", Figure(id="cold.ttfb_s", value=16.0, unit="s"))
    record = answer("scorecard", "approve", "run_1", *WHO)
    assert (record["number"], record["approved_by"], record["run_id"], record["noted"]) == (1, "hanako", "run_1", True)
    assert sekisho("scorecard", "approve", "run_1", *WHO)[0] == 2, "approved already"
    one_criterion(home, "20")
    code, out, _ = sekisho("scorecard", "show")
    assert code == 0
    for words in ("Adopt", "changed after approval", "at_most 15 -> at_most 20", "would be: Do not adopt", "hanako"):
        assert words in out
    _, out, _ = sekisho("scorecard", "history")
    assert "day 1" in out
    assert "at_most 15 -> at_most 20" in out


def test_an_approval_stands_in_the_book(answer: Any, home: Path) -> None:
    """Where no server has the book, it says who approved what."""
    one_criterion(home)
    put_run(home)
    answer("scorecard", "approve", "run_1", *WHO)
    (entry,) = answer("audit", "search", "--kind", "admin")
    assert entry["record"]["action"] == "thresholds_approved"
    assert entry["record"]["user_id"] == "hanako"
    assert entry["record"]["detail"]["run"] == "run_1"


def test_approval_needs_a_whole_run_and_two_people(sekisho: Any, home: Path) -> None:
    """A run without a manifest or with a changed file, the same name twice, no reason: each is refused in words."""
    one_criterion(home)
    folder = put_run(home)
    same = ("--measured-by", "taro", "--by", "Taro", "--why", "x")
    code, _, err = sekisho("scorecard", "approve", "run_1", *same)
    assert code == 2
    assert "--alone" in err
    assert sekisho("scorecard", "approve", "run_1", *WHO[:4])[0] == 2
    (folder / "figures.json").write_bytes(b'{"all":[]} ')
    code, _, err = sekisho("scorecard", "approve", "run_1", *WHO)
    assert code == 1
    assert "figures.json" in err
    (folder / "manifest.json").unlink()
    assert sekisho("scorecard", "approve", "run_1", *WHO)[0] == 1
    assert not (home / "thresholds.approvals.jsonl").exists()


def test_history_tells_tampering(sekisho: Any, answer: Any, home: Path) -> None:
    """Exit code 1, and which record."""
    assert answer("scorecard", "history")["records"] == []
    one_criterion(home)
    put_run(home)
    answer("scorecard", "approve", "run_1", *WHO)
    file = home / "thresholds.approvals.jsonl"
    file.write_bytes(file.read_bytes().replace(b"hanako", b"saburo"))
    code, out, _ = sekisho("scorecard", "history")
    assert code == 1
    assert "record 1 is not as this home's key signed it" in out


def test_broken_thresholds_are_told_with_their_line(sekisho: Any, answer: Any, home: Path) -> None:
    """As words, and as JSON."""
    one_criterion(home, "quick")
    put_run(home)
    code, _, err = sekisho("scorecard", "show")
    assert code == 2
    assert "thresholds.yaml:7: cold: a number" in err
    assert "thresholds.yaml:7" in answer("scorecard", "show", code=2)["error"]["message"]


def test_records_tell_stops_and_keys(sekisho: Any, answer: Any, home: Path, tmp_path: Path) -> None:
    """A stop, a key in a log, and one in a folder that was named: exit code 1 and a line for each."""
    place = Home(home).create()
    assert answer("scorecard", "records")["access"]["successes"] == 0
    secret = answer("key", "create", "--name", "taro")["key"]
    (place.logs / "gateway.log").write_text(f"oh: {secret}\n")
    (tmp_path / "more.txt").write_text("ghp_" + "a1B2" * 9)
    log = StabilityLog(place, ManualClock(now=time.time() - 7200), boot="an earlier boot")
    log.begin()
    log.ready()
    log.close()
    found = answer("scorecard", "records", "--path", str(tmp_path / "more.txt"), code=1)
    assert [stop["how"] for stop in found["stability"]["stops"]] == ["silent"]
    figures = {figure["id"]: figure["value"] for figure in found["figures"]}
    assert figures["stability.unplanned_stops"] == 1
    assert figures["security.plaintext_keys_in_logs"] == 2
    code, out, _ = sekisho("scorecard", "records", "--path", str(tmp_path / "more.txt"))
    assert code == 1
    assert secret not in out
    for words in (
        "Unplanned stops: 1",
        "no sign of life",
        "logs/gateway.log:1",
        "(definite) taro",
        "more.txt:1: API_KEY",
    ):
        assert words in out
    assert sekisho("scorecard", "records", "--path", str(tmp_path / "none"))[0] == 3
    assert sekisho("scorecard", "records", "--since", "soon")[0] == 2


@pytest.mark.parametrize("key", TABLE)
def test_a_message_takes_the_same_values_in_both_languages(key: str) -> None:
    """Neither language misses one."""
    english, japanese = ({field for _, field, _, _ in Formatter().parse(text) if field} for text in TABLE[key])
    assert english == japanese


def test_help_works_without_a_home(home: Path) -> None:
    """Nothing is made by asking for help."""
    assert run(["scorecard", "--help"]) == 0
    assert not home.exists()
