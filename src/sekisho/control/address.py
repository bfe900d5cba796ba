"""Where the agent listens and its token: who may read its home may change its policy."""

import logging
import os
import secrets
from pathlib import Path

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.ops import process_tree
from sekisho.ops.home import write_atomically

log = logging.getLogger("sekisho.control")

TOKEN_ENV = "INFEROS_AGENT_TOKEN"
TOKEN_FILE = "agent.token"
ADDRESS_FILE = "agent.json"


class TokenUnusable(OSError):
    """There is a token file, and it may not or cannot be used. The text says what to do."""


class Address(msgspec.Struct, frozen=True):
    """`run/agent.json`. `birth`: when the process began, as `ops.process_tree.birth` tells it."""

    url: str
    pid: int
    birth: str | None = None


def read_address(run: Path) -> str | None:
    """The address that an agent of this home wrote down; None where none did, or where it is gone: somebody else may
    listen there by now, and is not shown the token."""
    try:
        address = decoded((run / ADDRESS_FILE).read_bytes(), Address)
    except (OSError, Undecodable):
        return None
    born = process_tree.birth(address.pid)
    return address.url if born is not None and address.birth in (None, born) else None


def write_address(run: Path, url: str) -> None:
    address = Address(url, os.getpid(), process_tree.birth(os.getpid()))
    write_atomically(run / ADDRESS_FILE, msgspec.json.encode(address))


def clear_address(run: Path) -> None:
    """Forgets this process's address, and no other one's."""
    try:
        if decoded((run / ADDRESS_FILE).read_bytes(), Address).pid == os.getpid():
            (run / ADDRESS_FILE).unlink(missing_ok=True)
    except (OSError, Undecodable):
        return  # never written, or gone already


def read_token(folder: Path) -> str | None:
    """The environment's, else the file's; None where there is neither, or it may not be used: the log says why."""
    try:
        return _found_token(folder)
    except TokenUnusable as error:
        log.warning("%s", error)
        return None


def token_for(folder: Path) -> tuple[str, bool]:
    """The token, and whether it was made just now: made ones lie in a file that only their owner can read. Raises
    OSError, TokenUnusable for a file that is there: it is somebody's, and stays."""
    found = _found_token(folder)
    if found is not None:
        return found, False
    token = secrets.token_urlsafe(32)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(folder / TOKEN_FILE, token.encode() + b"\n")
    return token, True


def _found_token(folder: Path) -> str | None:
    given = os.environ.get(TOKEN_ENV, "").strip()
    if given:
        return given
    path = folder / TOKEN_FILE
    try:
        with path.open("rb") as file:
            mode, body = os.fstat(file.fileno()).st_mode, file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TokenUnusable(f"{path} cannot be read: {error.strerror or error}") from error
    if os.name == "posix" and mode & 0o066:
        raise TokenUnusable(f"{path} can be read or written by others than its owner: chmod 600 {path}")
    try:
        return body.decode("ascii").strip() or None
    except UnicodeDecodeError as error:
        raise TokenUnusable(f"{path} is no token: it is not ASCII; without it the next start makes one") from error
