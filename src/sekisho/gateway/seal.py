"""Sealed reasoning: what a client must hand back but may not read (`reasoning.encrypted_content`).

AES-256-GCM under a key in the home's secrets; bound to the API key that got it, so that one caller's thinking cannot
be read back through another's.
"""

import base64
import os
from binascii import Error as Base64Error
from pathlib import Path

_PREFIX = "sks1."
_NONCE_BYTES = 12


class Sealer:
    """Seals and unseals text. Stateless but for its key; safe to call from anywhere."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 20 ms that most starts do not need

        self._cipher = AESGCM(key)

    def seal(self, text: str, owner: str) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, text.encode(), owner.encode())
        return _PREFIX + base64.urlsafe_b64encode(nonce + sealed).decode()

    def unseal(self, sealed: str, owner: str) -> str | None:
        """None when the text was not sealed by this server for this owner."""
        from cryptography.exceptions import InvalidTag

        if not sealed.startswith(_PREFIX):
            return None
        try:
            body = sealed[len(_PREFIX) :].encode("ascii")
            raw = base64.b64decode(body, altchars=b"-_", validate=True)
            if base64.urlsafe_b64encode(raw) != body:
                return None  # one text only stands for one sealing
            return self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], owner.encode()).decode()
        except (Base64Error, InvalidTag, ValueError):
            return None


def load_or_create_key(path: Path) -> bytes:
    """The 32-byte key of the file, made with mode 0600 at the first call; safe when two processes start at once."""
    try:
        return _read(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(os.urandom(32))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was first: its key counts
    finally:
        os.unlink(draft)
    return _read(path)


def _read(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != 32:
        raise ValueError(f"{path} is not a 32-byte key: remove it to have a new one made.")
    return key
