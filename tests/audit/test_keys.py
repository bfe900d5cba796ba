"""Keys go forward only, are made once, and the recovery key may leave the machine."""

import hmac
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.audit import keys
from sekisho.audit.keys import KeyUnavailable, ReaderKeys, WriterKeys, canonical_base64
from sekisho.audit.verify import verify
from sekisho.core.errors import BookUnavailable

from .conftest import Shelf, verdict


async def _two_segments(shelf: Shelf) -> None:
    for text in ("first", "second"):
        book = shelf.open()
        await book.append(verdict(text))
        book.close()


async def test_the_running_state_opens_no_begun_segment(shelf: Shelf) -> None:
    """What the disk holds without the recovery key cannot derive the key of any segment that has begun."""
    await _two_segments(shelf)
    (shelf.secrets / keys.RECOVERY_FILE).unlink()
    writer = WriterKeys.load_or_create(shelf.secrets)
    assert writer.index == 2
    for index in (0, 1):
        with pytest.raises(KeyUnavailable, match="cannot be reached"):
            writer.segment(index, bytes(32))
    everything = b"".join(path.read_bytes() for path in shelf.secrets.iterdir())
    assert len(re.findall(rb'"state"', everything)) == 1


async def test_the_recovery_key_may_leave_the_machine(shelf: Shelf, tmp_path: Path) -> None:
    """Without it the book goes on being written; with it, from wherever it is, all of the book is read."""
    await _two_segments(shelf)
    away = (shelf.secrets / keys.RECOVERY_FILE).rename(tmp_path / "paper")
    book = shelf.open()
    await book.append(verdict("third"))
    book.close()
    assert not (shelf.secrets / keys.RECOVERY_FILE).exists()
    with pytest.raises(KeyUnavailable, match="moved to"):
        shelf.keys()
    report = verify(shelf.folder, ReaderKeys.load(shelf.secrets, away), (shelf.anchors,))
    assert report.ok, report.problems
    assert report.records == 3


async def test_a_lost_ratchet_is_made_again_from_the_recovery_key(shelf: Shelf) -> None:
    """The state file is lost, the recovery key is not: the book goes on and verifies."""
    await _two_segments(shelf)
    (shelf.secrets / keys.RATCHET_FILE).unlink()
    await _two_segments(shelf)
    assert shelf.verify().ok
    assert shelf.inputs() == ["first", "second"] * 2


async def test_a_home_put_back_from_a_backup_reuses_no_key(shelf: Shelf) -> None:
    """The same segment number begun twice from the same state has another salt, hence another key."""
    book = shelf.open()
    book.close()
    state = (shelf.secrets / keys.RATCHET_FILE).read_bytes()
    headers = []
    for _ in range(2):
        (shelf.secrets / keys.RATCHET_FILE).write_bytes(state)
        book = shelf.open()
        await book.append(verdict("the same text"))
        book.close()
        path = shelf.folder / "00000001.jsonl"
        headers.append(path.read_bytes().splitlines())
        path.unlink()
    assert headers[0][0] != headers[1][0]
    assert msgspec.json.decode(headers[0][1])["c"] != msgspec.json.decode(headers[1][1])["c"]


async def test_key_files_are_their_owners_alone(shelf: Shelf) -> None:
    """No key and no segment can be read by another user of the machine."""
    await _two_segments(shelf)
    for path in [*shelf.secrets.iterdir(), *shelf.folder.rglob("*.jsonl")]:
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("text", ["", "xyz", "00" * 31, "00" * 33])
async def test_a_damaged_key_is_named(shelf: Shelf, text: str) -> None:
    """A key file that holds no key is an operational error that names it; nothing is made in its place."""
    await _two_segments(shelf)
    path = shelf.secrets / keys.SIGNING_FILE
    path.write_text(text)
    with pytest.raises(BookUnavailable, match=keys.SIGNING_FILE):
        shelf.open()
    assert path.read_text() == text


def _replaced_once_it_is_open(path: Path, writer: WriterKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens the state finds it overwritten, and another one in its place."""
    real_open, index = Path.open, writer.index

    def slow_open(self: Path, *arguments: Any, **options: Any) -> Any:
        opened = real_open(self, *arguments, **options)
        if self == path and writer.index == index:
            writer.erase_up_to(index)
        return opened

    monkeypatch.setattr(Path, "open", slow_open)


async def test_a_state_that_is_replaced_while_it_is_read_is_read_again(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer overwrites the old state on purpose; a reader that had just opened it takes the new one. What is
    damaged and stays is still told."""
    await _two_segments(shelf)
    path, writer = shelf.secrets / keys.RATCHET_FILE, WriterKeys.load_or_create(shelf.secrets)
    index = writer.index
    _replaced_once_it_is_open(path, writer, monkeypatch)
    assert ReaderKeys.load(shelf.secrets).ratchet_index == index + 1
    path.write_bytes(os.urandom(100))
    with pytest.raises(KeyUnavailable, match="damaged"):
        ReaderKeys.load(shelf.secrets)


async def test_a_state_that_is_replaced_twice_is_not_taken_for_the_one_that_was_read(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may give the number of a file that is gone to the next one: what was overwritten while it was read
    is no damage, however many have come after it."""
    await _two_segments(shelf)
    path, writer, real_stat = shelf.secrets / keys.RATCHET_FILE, WriterKeys.load_or_create(shelf.secrets), Path.stat
    index = writer.index
    _replaced_once_it_is_open(path, writer, monkeypatch)

    def slow_stat(self: Path, **options: Any) -> os.stat_result:
        if self == path and writer.index < index + 10:
            writer.erase_up_to(writer.index)
        return real_stat(self, **options)

    monkeypatch.setattr(Path, "stat", slow_stat)
    assert ReaderKeys.load(shelf.secrets).ratchet_index == index + 2


def test_hkdf_is_rfc_5869() -> None:
    """Test case 1 of RFC 5869, cut to our one block of 32 bytes."""
    salt, info = bytes.fromhex("000102030405060708090a0b0c"), bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")
    expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    assert keys.hkdf(b"\x0b" * 22, info, salt).hex() == expected


@given(st.integers(0, 50), st.integers(0, 50))
def test_a_reader_derives_in_any_order(one: int, other: int) -> None:
    """The key of a segment does not depend on which was asked for before."""
    recovery = bytes(range(32))
    reader = ReaderKeys(recovery, b"")
    reader.segment(one, bytes(32))
    assert reader.segment(other, bytes(32)) == ReaderKeys(recovery, b"").segment(other, bytes(32))


@given(st.binary(min_size=1, max_size=60))
def test_base64_has_one_form(raw: bytes) -> None:
    """Of all texts that decode to the same bytes only one is taken."""
    import base64

    text = base64.b64encode(raw)
    assert canonical_base64(text) == raw
    if text.endswith(b"="):
        at = len(text.rstrip(b"=")) - 1
        alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        loose = text[:at] + alphabet[alphabet.index(text[at]) + 1 :][:1] + text[at + 1 :]
        with pytest.raises(ValueError, match=r"base64|padding"):
            canonical_base64(loose)
    for bad in (text + b"\n", b" " + text, text + b"=", text.rstrip(b"=") + b"===="):
        with pytest.raises(ValueError):  # noqa: PT011 — several messages of the library
            canonical_base64(bad)


def test_text_hash_is_keyed() -> None:
    """The same text under another key has another hash; lone surrogates are no obstacle."""
    assert keys.text_hash(bytes(32), "ok") != keys.text_hash(os.urandom(32), "ok")
    assert len(keys.text_hash(bytes(32), "\ud800")) == 64


@given(st.binary(max_size=200), st.text(max_size=50))
def test_text_hash_is_hmac_sha256(key: bytes, text: str) -> None:
    """The quick form is RFC 2104's, whatever the length of the key, and can be asked again."""
    hasher = keys.TextHasher(key)
    wanted = hmac.digest(key, text.encode(), "sha256").hex()
    assert hasher.hash(text) == hasher.hash(text) == wanted
