"""Where the agent listens and its token: who may read its home may change its policy."""

import os
import secrets
from pathlib import Path

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.ops.home import write_atomically

TOKEN_ENV = "INFEROS_AGENT_TOKEN"
TOKEN_FILE = "agent.token"
ADDRESS_FILE = "agent.json"


class Address(msgspec.Struct, frozen=True):
    """`run/agent.json`."""

    url: str
    pid: int


def read_address(run: Path) -> str | None:
    """The address that an agent of this home wrote down; None where none did."""
    try:
        address = decoded((run / ADDRESS_FILE).read_bytes(), Address)
    except (OSError, Undecodable):
        return None
    return address.url


def write_address(run: Path, url: str) -> None:
    write_atomically(run / ADDRESS_FILE, msgspec.json.encode(Address(url, os.getpid())))


def clear_address(run: Path) -> None:
    """Forgets this process's address, and no other one's."""
    try:
        if decoded((run / ADDRESS_FILE).read_bytes(), Address).pid == os.getpid():
            (run / ADDRESS_FILE).unlink(missing_ok=True)
    except (OSError, Undecodable):
        return  # never written, or gone already


def read_token(folder: Path) -> str | None:
    """The environment's, else the file's; None where there is neither, or it may not be read."""
    given = os.environ.get(TOKEN_ENV)
    if given:
        return given
    try:
        return (folder / TOKEN_FILE).read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def token_for(folder: Path) -> tuple[str, bool]:
    """The token, and whether it was made just now: made ones lie in a file that only their owner can read."""
    found = read_token(folder)
    if found is not None:
        return found, False
    token = secrets.token_urlsafe(32)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(folder / TOKEN_FILE, token.encode() + b"\n")
    return token, True
