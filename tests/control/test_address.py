"""Where commands find the agent, and which token they show it."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sekisho.control.address import (
    ADDRESS_FILE,
    TOKEN_ENV,
    TOKEN_FILE,
    Address,
    TokenUnusable,
    clear_address,
    read_address,
    read_token,
    token_for,
    write_address,
)

URL = "http://127.0.0.1:7031"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_ENV, raising=False)


def test_an_address_lives_as_long_as_its_process(tmp_path: Path) -> None:
    """One's own is found; `clear_address` forgets it."""
    write_address(tmp_path, URL)
    assert read_address(tmp_path) == URL
    clear_address(tmp_path)
    assert read_address(tmp_path) is None


def test_the_address_of_an_agent_that_is_gone_is_none(tmp_path: Path) -> None:
    """Whoever has its port by now is not shown the token."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / ADDRESS_FILE).write_bytes(msgspec.json.encode(Address(URL, gone.pid)))
    assert read_address(tmp_path) is None


def test_a_process_that_got_the_same_number_is_another_one(tmp_path: Path) -> None:
    """The moment at which it began tells them apart; without that, which an earlier release wrote, the number does."""
    file = tmp_path / ADDRESS_FILE
    file.write_bytes(msgspec.json.encode(Address(URL, os.getpid(), "another boot/17")))
    assert read_address(tmp_path) is None
    file.write_bytes(msgspec.json.encode({"url": URL, "pid": os.getpid()}))
    assert read_address(tmp_path) == URL


@pytest.mark.parametrize("given", ["secret\n", " secret\r\n", "secret"])
def test_a_line_break_is_no_part_of_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """As `$(cat file)` or a secret's file leaves it in the environment."""
    monkeypatch.setenv(TOKEN_ENV, given)
    assert read_token(tmp_path) == "secret"
    assert token_for(tmp_path) == ("secret", False)


def test_an_empty_variable_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blank one is no token that anybody could guess."""
    monkeypatch.setenv(TOKEN_ENV, " \n")
    token, is_new = token_for(tmp_path)
    assert is_new
    assert len(token) > 30
    assert read_token(tmp_path) == token
    assert token_for(tmp_path) == (token, False)


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps rights elsewhere")
@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602])
def test_a_token_that_others_can_read_or_write_is_not_used(tmp_path: Path, mode: int) -> None:
    """It says what to do, and the file stays as it is."""
    file = tmp_path / TOKEN_FILE
    file.write_text("known to all\n")
    file.chmod(mode)
    assert read_token(tmp_path) is None
    with pytest.raises(TokenUnusable, match="chmod 600"):
        token_for(tmp_path)
    assert file.read_text() == "known to all\n"


def test_a_file_that_is_no_token_is_not_replaced(tmp_path: Path) -> None:
    """It is somebody's."""
    file = tmp_path / TOKEN_FILE
    file.write_bytes("é".encode())
    file.chmod(0o600)
    with pytest.raises(TokenUnusable, match="ASCII"):
        token_for(tmp_path)
    assert file.read_bytes() == "é".encode()
    file.unlink()
    file.mkdir()
    with pytest.raises(TokenUnusable, match="cannot be read"):
        token_for(tmp_path)
