"""`sekisho evaluate` and its runs, as far as no server is needed."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sekisho.cli.failure import ABSENT, USAGE
from sekisho.cli.running import run
from sekisho.evaluate import evaluation
from sekisho.evaluate.speed import bench_plan


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["evaluate", "--home", "elsewhere", "list"], "--home stands before `list`"),
        (["evaluate", "--quick", "report"], "--quick stands before `report`"),
    ],
    ids=" ".join,
)
def test_an_option_in_the_wrong_place_is_told(
    home: Path, capsys: pytest.CaptureFixture[str], line: list[str], words: str
) -> None:
    """What would be read and not heeded is refused."""
    assert run(line) == USAGE
    assert words in capsys.readouterr().err


def test_without_runs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`list` says how to begin one; the others end as not found, and name what there is."""
    assert run(["evaluate", "list"]) == 0
    assert "sekisho evaluate" in capsys.readouterr().out
    for line in (["report"], ["verify", "last"], ["attest", "last", "codex.cuts", "0", "--by", "taro"]):
        assert run(["evaluate", *line]) == ABSENT
        assert "sekisho evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("body", [b"{", b'{"name": "\xff"}'], ids=["torn", "bytes"])
def test_a_damaged_run_does_not_hide_the_others(home: Path, sekisho: Any, answer: Any, body: bytes) -> None:
    """It is listed as damaged, with the reason; the other runs are listed as ever."""
    plan = evaluation.Plan(
        name="quick",
        profile="other",
        places={"engine": ("http://127.0.0.1:1/v1", "qwen")},
        bench=bench_plan.Plan(parallels=(1,), sizes=(bench_plan.Size(24, 4),)),
        continuity=(),
        cold_starts=0,
        sessions=0,
        codex=False,
        safety=False,
        rubric=False,
        timeout_s=1.0,
        command="",
    )
    for name, written in (("run-1", msgspec.json.encode(plan)), ("run-2", body)):
        folder = home / "runs" / name
        folder.mkdir(parents=True)
        (folder / "plan.json").write_bytes(written)
    damaged, whole = answer("evaluate", "list")["runs"]
    assert (damaged["run"], damaged["plan"]) == ("run-2", None)
    assert str(home / "runs" / "run-2") in damaged["damaged"]
    assert whole == {"run": "run-1", "plan": "quick", "decision": None, "model": "qwen", "damaged": None}
    code, shown, warned = sekisho("evaluate", "list")
    assert code == 0
    assert "quick" in shown
    assert "damaged" in shown
    assert "run-2" in warned


def test_a_run_is_forgotten_whole(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder goes; what is no run of this home, or is not named in full, is not touched."""
    folder = home / "runs" / "20261128-090000-1a2b"
    folder.mkdir(parents=True)
    (folder / "bench.csv").write_text("x")
    for name in ("last", "../runs/20261128-090000-1a2b", "20261128"):
        assert run(["evaluate", "forget", name]) == ABSENT
    assert folder.is_dir()
    assert run(["evaluate", "forget", folder.name]) == 0
    assert not folder.exists()
    assert folder.name in capsys.readouterr().out


def test_without_a_server(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is measured, nothing is left behind, and the next step is named."""
    assert run(["evaluate", "--quick", "--json"]) == ABSENT
    assert "sekisho up" in json.loads(capsys.readouterr().out)["error"]["hint"]
    assert not list((home / "runs").iterdir())


@pytest.mark.parametrize(
    "line", [["bench"], ["gate"], ["continuity"], ["evaluate"], ["rubric", "collect"]], ids=" ".join
)
def test_a_key_is_never_typed(home: Path, capsys: pytest.CaptureFixture[str], line: list[str]) -> None:
    """A key in a command line is refused, not repeated, and called burnt."""
    secret = "sk-sekisho-" + "Zz9_" * 10 + "Abc"
    assert run([*line, "--url", "http://127.0.0.1:9", "--key", secret]) == USAGE
    told = capsys.readouterr()
    assert "env:NAME" in told.err
    assert secret not in told.out + told.err


@pytest.mark.parametrize("margin", ["speed=5%", "tok_s", "tok_s=much", "tok_s=0", "tok_s=150%"])
def test_margins_that_are_none(home: Path, capsys: pytest.CaptureFixture[str], margin: str) -> None:
    """A margin is of a known metric, above nothing and below everything."""
    assert run(["evaluate", "compare", "a", "b", "--margin", margin]) in (USAGE, ABSENT)
    assert "margin" in capsys.readouterr().err
