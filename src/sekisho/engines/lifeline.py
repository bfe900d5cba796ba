"""How a child process of ours learns that its parent is gone, and leaves with it.

The parent starts the child with a pipe as its standard input that it never writes to, and with its own process id in
`PARENT_ENV`. The kernel closes that pipe however the parent ends, kill -9 included; Linux also signals us directly.
This module imports the standard library only, so that every child can call it first thing.
"""

import ctypes
import os
import signal
import sys
import threading

PARENT_ENV = "SEKISHO_PARENT_PID"
_PR_SET_PDEATHSIG = 1


def environment() -> dict[str, str]:
    """What a parent adds to the environment of a child that is to die with it."""
    return {PARENT_ENV: str(os.getpid())}


def die_with_parent() -> bool:
    """Ties this process to the parent that asked for it; False when nobody asked (started by hand). Call it once,
    from the main thread, before anything slow. The request is not handed on to processes started from here."""
    asked = os.environ.pop(PARENT_ENV, "")
    if not asked.isdecimal():
        return False
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.name == "posix" and os.getppid() != int(asked):
        os._exit(0)  # it went away before we could ask to be told
    threading.Thread(target=_leave_at_end_of_file, name="lifeline", daemon=True).start()
    return True


def _leave_at_end_of_file() -> None:
    try:
        while os.read(0, 4096):
            continue
    except OSError:
        pass  # a broken lifeline is a cut one
    if os.name == "posix" and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # takes what we started with us
    os._exit(0)
