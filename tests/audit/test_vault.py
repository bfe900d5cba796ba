"""The vault: placeholders back to their texts, under a key of its own, only when configured."""

from pathlib import Path

import msgspec
import pytest

from sekisho.audit.keys import VAULT_FILE
from sekisho.audit.vault import VAULT_NAME, Vault
from sekisho.core.errors import BookUnavailable

from .conftest import Shelf, verdict
from .faulty import FaultyFiles


def test_what_was_put_in_comes_back(tmp_path: Path) -> None:
    """By request; several entries of one request are joined; other requests see nothing."""
    vault = Vault.open(tmp_path, tmp_path / "secrets")
    vault.put("req_1", {"[EMAIL_1]": "taro@example.jp"}, "2026-01-01T00:00:00Z")
    vault.put("req_2", {"[EMAIL_1]": "hanako@example.jp"}, "2026-01-02T00:00:00Z")
    vault.put("req_1", {"[PHONE_1]": "03-1234-5678"}, "2026-01-03T00:00:00Z")
    vault.put("req_1", {}, "2026-01-03T00:00:00Z")
    again = Vault.open(tmp_path, tmp_path / "secrets")
    assert again.get("req_1") == {"[EMAIL_1]": "taro@example.jp", "[PHONE_1]": "03-1234-5678"}
    assert again.get("req_3") == {}


def test_the_vault_is_sealed(tmp_path: Path) -> None:
    """Nothing stands in it in clear, request ids included, and an entry cannot be moved to another request."""
    vault = Vault.open(tmp_path, tmp_path / "secrets")
    vault.put("req_1", {"[EMAIL_1]": "taro@example.jp"}, "2026-01-01T00:00:00Z")
    vault.put("req_2", {"[EMAIL_1]": "hanako@example.jp"}, "2026-01-01T00:00:00Z")
    path = tmp_path / VAULT_NAME
    for planted in (b"taro", b"EMAIL", b"req_1"):
        assert planted not in path.read_bytes()
    one, two = (msgspec.json.decode(line) for line in path.read_bytes().splitlines())
    one["sealed"] = two["sealed"]
    path.write_bytes(msgspec.json.encode(one) + b"\n")
    assert vault.get("req_1") == {}


def test_another_key_opens_nothing(tmp_path: Path) -> None:
    """Without its key the vault is empty to whoever looks."""
    Vault.open(tmp_path, tmp_path / "secrets").put("req_1", {"a": "b"}, "2026-01-01T00:00:00Z")
    (tmp_path / "secrets" / VAULT_FILE).unlink()
    assert Vault.open(tmp_path, tmp_path / "secrets").get("req_1") == {}


def test_forgetting(tmp_path: Path) -> None:
    """What was put in before a time is removed from the file; the rest stays."""
    vault = Vault.open(tmp_path, tmp_path / "secrets")
    for day in range(1, 5):
        vault.put(f"req_{day}", {"x": str(day)}, f"2026-01-0{day}T00:00:00Z")
    assert vault.forget_before("2026-01-03T00:00:00Z") == 2
    assert vault.forget_before("2026-01-03T00:00:00Z") == 0
    assert [vault.get(f"req_{day}") for day in range(1, 5)] == [{}, {}, {"x": "3"}, {"x": "4"}]
    assert len((tmp_path / VAULT_NAME).read_bytes().splitlines()) == 2


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    """A crash in mid-line: what is put in afterwards is found."""
    vault = Vault.open(tmp_path, tmp_path / "secrets")
    vault.put("req_1", {"x": "1"}, "2026-01-01T00:00:00Z")
    path = tmp_path / VAULT_NAME
    path.write_bytes(path.read_bytes() + path.read_bytes()[:40])
    vault.put("req_2", {"x": "2"}, "2026-01-01T00:00:00Z")
    assert (vault.get("req_1"), vault.get("req_2")) == ({"x": "1"}, {"x": "2"})


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """An entry that cannot be made durable is an operational error."""
    files = FaultyFiles()
    vault = Vault.open(tmp_path, tmp_path / "secrets", files)
    files.fail("sync")
    with pytest.raises(BookUnavailable, match="vault"):
        vault.put("req_1", {"x": "1"}, "2026-01-01T00:00:00Z")


async def test_only_when_configured_and_kept_no_longer_than_the_book(shelf: Shelf) -> None:
    """No vault by default; with one, retention empties it together with the book."""
    book = shelf.open()
    assert book.vault is None
    book.close()
    assert not (shelf.secrets / VAULT_FILE).exists()
    shelf.config = msgspec.structs.replace(shelf.config, vault=True)
    book = shelf.open()
    assert book.vault is not None
    book.vault.put("req_1", {"x": "1"}, "2000-01-01T00:00:00Z")
    await book.append(verdict())
    await book.retain(days=30)
    assert book.vault.get("req_1") == {}
    book.close()
