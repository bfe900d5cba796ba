"""The book's keys and how they go forward. What is promised of them: docs/decisions/0009-the-book.md.

    recovery key R ──HKDF──> state 0 ──> state 1 ──> … ──> state i        one way only
                                │           │               │
                                └ + salt ─> segment key 0   └ + salt ─> segment key i

The running server holds segment key i in memory and state i+1 on disk. R reads everything and is not needed to write,
so it may be taken off the machine. Signing key, hash key and vault key stand beside R and are not derived from it.
"""

import base64
import binascii
import hashlib
import hmac
import os
from pathlib import Path

import msgspec

from sekisho.audit.files import Files, write_atomically
from sekisho.core.errors import BookUnavailable

KEY_BYTES = 32
MAX_STEPS = 1_000_000  # a forged segment number may cost a reader some seconds, not hours
RECOVERY_FILE = "audit-recovery.key"
RATCHET_FILE = "audit-ratchet.json"
SIGNING_FILE = "audit-signing.key"
HASH_FILE = "audit-hash.key"
VAULT_FILE = "audit-vault.key"


class KeyUnavailable(BookUnavailable):
    """A key is not there, or the file is none."""


class SegmentKeys(msgspec.Struct, frozen=True):
    """`record` seals the records (AES-256-GCM), `header` authenticates the header (HMAC-SHA-256)."""

    record: bytes
    header: bytes


def hkdf(secret: bytes, info: bytes, salt: bytes = b"") -> bytes:
    """HKDF-SHA-256 (RFC 5869), one block of 32 bytes."""
    return hmac.digest(hmac.digest(salt or bytes(32), secret, "sha256"), info + b"\x01", "sha256")


def first_state(recovery: bytes) -> bytes:
    return hkdf(recovery, b"sekisho book: ratchet")


def next_state(state: bytes) -> bytes:
    return hkdf(state, b"sekisho book: next")


def book_id(recovery: bytes) -> str:
    """Names the book, so that a segment of another book is never taken for one of this."""
    return hkdf(recovery, b"sekisho book: name").hex()[:16]


def segment_keys(state: bytes, salt: bytes) -> SegmentKeys:
    return SegmentKeys(
        record=hkdf(state, b"sekisho book: records", salt), header=hkdf(state, b"sekisho book: header", salt)
    )


class TextHasher:
    """Keyed hashes (HMAC-SHA-256, hex; RFC 2104) of texts that must not stand in the book. Keeps both halves keyed:
    making them anew for every text costs fifty times as much as a short text itself."""

    def __init__(self, key: bytes) -> None:
        block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def hash(self, text: str) -> str:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text.encode("utf-8", "surrogatepass"))
        outer.update(inner.digest())
        return outer.hexdigest()


def text_hash(key: bytes, text: str) -> str:
    """As `TextHasher.hash`, once."""
    return TextHasher(key).hash(text)


class _RatchetFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    book: str
    index: int
    state: bytes


class WriterKeys:
    """What the writer holds. Used from one thread. `recovery` is None when it has been taken off the machine."""

    def __init__(self, secrets: Path, ratchet: _RatchetFile, signing: bytes, hashing: bytes, files: Files) -> None:
        self._path = secrets / RATCHET_FILE
        self._ratchet = ratchet
        self._files = files
        self.signing = signing
        self.hashing = hashing

    @property
    def book(self) -> str:
        return self._ratchet.book

    @property
    def index(self) -> int:
        """The lowest segment whose key can still be derived from what is on disk."""
        return self._ratchet.index

    @staticmethod
    def load_or_create(secrets: Path, files: Files | None = None, may_create: bool = True) -> "WriterKeys":
        """Makes missing keys at the first start. Raises KeyUnavailable, also where `may_create` is False and there is
        neither ratchet nor recovery key: a book that has segments must not silently get new keys."""
        files = files or Files()
        try:
            secrets.mkdir(parents=True, exist_ok=True, mode=0o700)
            ratchet = _load_ratchet(secrets)
            if ratchet is None:
                recovery = _read_key(secrets / RECOVERY_FILE)
                if recovery is None and not may_create:
                    raise KeyUnavailable(f"the book's keys are not in {secrets.name}/ ({RATCHET_FILE})")
                if recovery is None:
                    recovery = os.urandom(KEY_BYTES)
                    write_atomically(files, secrets / RECOVERY_FILE, _key_text(recovery))
                ratchet = _RatchetFile(book_id(recovery), 0, first_state(recovery))
                write_atomically(files, secrets / RATCHET_FILE, msgspec.json.encode(ratchet))
            signing, hashing = (_key(secrets / name, files) for name in (SIGNING_FILE, HASH_FILE))
        except OSError as error:
            raise KeyUnavailable(f"the book's keys cannot be opened: {error.strerror}") from error
        return WriterKeys(secrets, ratchet, signing, hashing, files)

    def segment(self, index: int, salt: bytes) -> SegmentKeys:
        """The keys of a segment that is about to begin. Raises KeyUnavailable for one whose state is erased."""
        return segment_keys(_step(self._ratchet.index, self._ratchet.state, index), salt)

    def erase_up_to(self, index: int) -> None:
        """Replaces the state on disk by that of segment `index + 1`, and overwrites the old one. Raises OSError."""
        state = _step(self._ratchet.index, self._ratchet.state, index + 1)
        fresh = _RatchetFile(self._ratchet.book, index + 1, state)
        old = os.open(self._path, os.O_RDWR)
        try:
            length = os.fstat(old).st_size
            write_atomically(self._files, self._path, msgspec.json.encode(fresh))
            os.pwrite(old, os.urandom(length), 0) if hasattr(os, "pwrite") else os.write(old, os.urandom(length))
            os.fsync(old)
        finally:
            os.close(old)
        self._ratchet = fresh


class ReaderKeys:
    """What a reader and the verifier hold: the recovery key, and the public half of the signing key.

    `ratchet_index` is the segment number that the writer's state has reached, where the state is at hand.
    """

    def __init__(self, recovery: bytes, public: bytes, ratchet_index: int | None = None) -> None:
        self.book = book_id(recovery)
        self.public = public
        self.ratchet_index = ratchet_index
        self._origin = first_state(recovery)
        self._index, self._state = 0, self._origin

    @staticmethod
    def load(secrets: Path, recovery_file: Path | None = None, public: bytes | None = None) -> "ReaderKeys":
        """From the home's secrets. `recovery_file` is where the recovery key was moved to. Raises KeyUnavailable."""
        path = recovery_file or secrets / RECOVERY_FILE
        recovery = _read_key(path)
        if recovery is None:
            raise KeyUnavailable(f"the recovery key {path.name} is not here: name the file it was moved to")
        if public is None:
            signing = _read_key(secrets / SIGNING_FILE)
            if signing is None:
                raise KeyUnavailable(f"the signing key {SIGNING_FILE} is not here: give its public half")
            public = public_key(signing)
        ratchet = _load_ratchet(secrets)
        return ReaderKeys(recovery, public, None if ratchet is None else ratchet.index)

    def segment(self, index: int, salt: bytes) -> SegmentKeys:
        """The keys of any segment. Raises KeyUnavailable for a number that no real book reaches."""
        if index < self._index:
            self._index, self._state = 0, self._origin
        self._state = _step(self._index, self._state, index)
        self._index = index
        return segment_keys(self._state, salt)


def public_key(signing: bytes) -> bytes:
    """The Ed25519 public key (32 bytes) of a signing seed."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(signing).public_key().public_bytes_raw()


def sign(signing: bytes, body: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(signing).sign(body)


def signed_by(public: bytes, body: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, body)
    except (InvalidSignature, ValueError):
        return False
    return True


def load_key(path: Path) -> bytes:
    """The 32-byte key of a file, made at the first call. Raises KeyUnavailable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _key(path, Files())
    except OSError as error:
        raise KeyUnavailable(f"{path.name} cannot be opened: {error.strerror}") from error


def canonical_base64(text: bytes) -> bytes:
    """Decodes; raises ValueError unless `text` is the one way to write its bytes (RFC 4648, section 3.5)."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    if base64.b64encode(raw) != text:
        raise ValueError("not canonical base64")
    return raw


def chain(head: bytes, line: bytes) -> bytes:
    """The running hash after `line` (its newline included)."""
    return hashlib.sha256(head + line).digest()


def _step(index: int, state: bytes, wanted: int) -> bytes:
    if not index <= wanted <= index + MAX_STEPS:
        raise KeyUnavailable(f"the key of segment {wanted} cannot be reached from {index}")
    for _ in range(wanted - index):
        state = next_state(state)
    return state


def _load_ratchet(secrets: Path) -> _RatchetFile | None:
    """None where there is none. Raises KeyUnavailable."""
    path = secrets / RATCHET_FILE
    try:
        with path.open("rb") as file:
            try:
                return msgspec.json.decode(file.read(), type=_RatchetFile)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                # compared while it is open: its number in the file system is given to no later file meanwhile
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    raise KeyUnavailable(f"{RATCHET_FILE} is damaged") from error
    except FileNotFoundError:
        return None
    return _load_ratchet(secrets)  # the writer has put another one there and overwritten this one meanwhile


def _key(path: Path, files: Files) -> bytes:
    found = _read_key(path)
    if found is None:
        found = os.urandom(KEY_BYTES)
        write_atomically(files, path, _key_text(found))
    return found


def _key_text(key: bytes) -> bytes:
    return key.hex().encode() + b"\n"


def _read_key(path: Path) -> bytes | None:
    """Keys are kept as hex digits, so that one can be printed and typed."""
    try:
        text = path.read_text("ascii").strip()
        key = bytes.fromhex(text)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise KeyUnavailable(f"{path.name} is not a key: 64 hex digits") from error
    if len(key) != KEY_BYTES:
        raise KeyUnavailable(f"{path.name} is not a key: 64 hex digits")
    return key
