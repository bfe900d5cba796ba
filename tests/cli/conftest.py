"""What tests of commands share: a home of their own, and the program called in this process."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))  # the harness lies beside the doctor's tests

from doctor_harness import unhurried

from sekisho.cli.running import run

Run = Callable[..., tuple[int, str, str]]
Answer = Callable[..., Any]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the doctor."""
    unhurried(monkeypatch)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DATABASE_URL", "SEKISHO_HOST", "SEKISHO_PORT", "LC_ALL", "LC_MESSAGES", "SEKISHO_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "en_US.UTF-8")
    monkeypatch.setenv("SEKISHO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def sekisho(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The exit code, standard output and standard error of a command."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def answer(sekisho: Run) -> Answer:
    """The JSON answer of a command: the whole of its standard output."""

    def call(*arguments: str, code: int = 0) -> Any:
        found, out, err = sekisho(*arguments, "--json")
        assert found == code, out + err
        return json.loads(out)

    return call
