"""The vault: what the placeholders of removed personal data stood for. Sealed under a key of its own, away from the
book: who may read the book may not read this, and the other way round. It exists only when configured."""

import base64
import hmac
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from sekisho.audit.files import Files, append_line, write_atomically
from sekisho.audit.keys import VAULT_FILE, canonical_base64, hkdf, load_key
from sekisho.audit.segment import read_lines
from sekisho.core.errors import BookUnavailable

log = logging.getLogger("sekisho.audit")

VAULT_NAME = "vault.jsonl"
_NONCE_BYTES = 12


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`who` is a keyed hash of the request id; `time` is when it was put in (ISO 8601, UTC)."""

    who: str
    time: str
    sealed: str


class Vault:
    """May be used from several threads of the process that holds the book's folder. Every method blocks."""

    def __init__(self, path: Path, key: bytes, files: Files | None = None) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 20 ms that most starts do not need

        self._path = path
        self._files = files or Files()
        self._cipher = AESGCM(hkdf(key, b"sekisho vault: texts"))
        self._naming = hkdf(key, b"sekisho vault: requests")
        self._lock = threading.Lock()

    @staticmethod
    def open(folder: Path, secrets: Path, files: Files | None = None) -> "Vault":
        """Makes the key at the first call. Raises KeyUnavailable."""
        return Vault(folder / VAULT_NAME, load_key(secrets / VAULT_FILE), files)

    def put(self, request_id: str, texts: Mapping[str, str], time: str) -> None:
        """Keeps `placeholder -> text` of a request; durable when it returns. Raises BookUnavailable."""
        if not texts:
            return
        who = self._who(request_id)
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, msgspec.json.encode(dict(texts)), _place(who, time))
        line = _Line(who, time, base64.b64encode(nonce + sealed).decode())
        with self._lock:
            try:
                append_line(self._files, self._path, msgspec.json.encode(line) + b"\n")
            except OSError as error:
                raise BookUnavailable(f"the vault cannot be written: {error.strerror or error}") from error

    def get(self, request_id: str) -> dict[str, str]:
        """What the placeholders of a request stood for; empty when nothing is kept. Raises BookUnavailable."""
        who = self._who(request_id)
        found: dict[str, str] = {}
        for line in self._lines():
            if hmac.compare_digest(line.who, who):
                found.update(self._open(line))
        return found

    def forget_before(self, time: str) -> int:
        """Removes what was put in before; how many entries. Raises BookUnavailable."""
        with self._lock:
            lines = list(self._lines())
            kept = [line for line in lines if line.time >= time]
            if len(kept) == len(lines):
                return 0
            body = b"".join(msgspec.json.encode(line) + b"\n" for line in kept)
            try:
                write_atomically(self._files, self._path, body)
            except OSError as error:
                raise BookUnavailable(f"the vault cannot be written: {error.strerror or error}") from error
            return len(lines) - len(kept)

    def _lines(self) -> Iterator[_Line]:
        """A torn or foreign line is passed over, and said in the log."""
        try:
            if not self._path.exists():
                return
            for number, raw in enumerate(read_lines(self._path), 1):
                try:
                    yield msgspec.json.decode(raw, type=_Line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    log.warning("vault: line %d cannot be read", number)
        except OSError as error:
            raise BookUnavailable(f"the vault cannot be read: {error.strerror or error}") from error

    def _open(self, line: _Line) -> dict[str, str]:
        from cryptography.exceptions import InvalidTag

        try:
            raw = canonical_base64(line.sealed.encode())
            body = self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _place(line.who, line.time))
        except (InvalidTag, ValueError):
            log.error("vault: an entry of %s is not as it was written", line.time)
            return {}
        return msgspec.json.decode(body, type=dict[str, str])

    def _who(self, request_id: str) -> str:
        return hmac.digest(self._naming, request_id.encode(), "sha256").hex()[:32]


def _place(who: str, time: str) -> bytes:
    return f"{who}\n{time}".encode()
