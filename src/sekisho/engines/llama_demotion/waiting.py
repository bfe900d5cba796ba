"""Says that the model is being loaded, in a process of its own: loading keeps Python's lock, so that nothing else in
the worker's process could answer meanwhile. `python -m sekisho.engines.llama_demotion.waiting DESCRIPTOR`."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sekisho.engines import lifeline

_BODY: Final = b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
_ANSWER: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)
_HEAD_BYTES: Final = 1 << 16
_PATIENCE_S: Final = 5.0
_LEAVING_S: Final = 15.0


@contextmanager
def answering(listener: socket.socket) -> Iterator[None]:
    """Whoever asks at `listener` within the block is told; who is being told at its end is told to the end, and who
    comes then waits for whoever listens next. Where descriptors cannot be handed on, nobody answers."""
    if os.name != "posix":
        yield
        return
    argv = (sys.executable, "-m", "sekisho.engines.llama_demotion.waiting", str(listener.fileno()))
    child = subprocess.Popen(
        argv, pass_fds=(listener.fileno(),), stdin=subprocess.PIPE, env=os.environ | lifeline.environment()
    )
    try:
        yield
    finally:
        child.terminate()
        try:
            child.wait(_LEAVING_S)
        except subprocess.TimeoutExpired:
            child.kill()
        child.communicate()


def main() -> None:
    lifeline.die_with_parent()
    listener = socket.socket(fileno=int(sys.argv[1]))
    told, tells = socket.socketpair()
    tells.setblocking(False)
    signal.set_wakeup_fd(tells.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)  # heard between two askers
    while True:
        ready, _, _ = select.select((listener, told), (), ())
        if told in ready:
            return
        asker, _ = listener.accept()
        with asker, contextlib.suppress(OSError):
            asker.settimeout(_PATIENCE_S)
            asker.recv(_HEAD_BYTES)
            asker.sendall(_ANSWER)
            asker.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
