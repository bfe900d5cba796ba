"""`sekisho up --detach`: the same server in a session of its own, watched until it answers."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sekisho.cli import banner
from sekisho.cli.failure import CommandFailed
from sekisho.cli.output import Output
from sekisho.cli.server import tail

if TYPE_CHECKING:
    from sekisho.ops.home import Home


def start(out: Output, place: "Home", arguments: list[str]) -> None:
    """Prints what the server announces. Raises CommandFailed with the end of its log when it does not come up.

    The announcement, with the admin key in it, comes through a pipe and is never written to a file.
    """
    place.create()
    log = place.logs / "up.log"
    argv = [sys.executable, "-m", "sekisho", "up", "--json", "--home", str(place.path), *arguments]
    with log.open("wb") as file:
        process = _spawn(argv, file)
    with out.waiting("up_starting"):
        line = _first_line(process)
    answer = _parsed(line)
    if answer is None or "error" in answer:
        process.wait()
        raise _failed(out, answer, log)
    if answer.get("already_running"):  # another one was quicker
        process.wait()
        out.json(answer)
        out.say("up_already", url=answer["url"])
        return
    out.json({**answer, "pid": process.pid})
    if not out.as_json:
        banner.show(out, answer, detached=True)


def _spawn(argv: list[str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment, **options
    )


def _first_line(process: "subprocess.Popen[bytes]") -> bytes:
    """Waits in a thread, so that Ctrl+C ends the wait (and the start) on every platform."""
    found: list[bytes] = []
    stream = process.stdout
    assert stream is not None
    reader = threading.Thread(target=lambda: found.append(stream.readline()), daemon=True)
    reader.start()
    try:
        while reader.is_alive():
            reader.join(0.2)
    except KeyboardInterrupt:
        process.terminate()
        raise
    return found[0] if found else b""


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None  # it ended without a word: its log tells why
    return answer if isinstance(answer, dict) else None


def _failed(out: Output, answer: dict[str, Any] | None, log: Path) -> CommandFailed:
    lines = tail(log)
    error = (answer or {}).get("error") or {}
    message = "\n".join(
        (error.get("message") or out.text("starting_late", log=log), *(f"  | {line}" for line in lines))
    )
    code = error.get("exit_code") or 1
    return CommandFailed(message, hint=error.get("hint") or "sekisho doctor", exit_code=code, details={"log": lines})
