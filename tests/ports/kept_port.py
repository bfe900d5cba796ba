"""Ports that stay one's own. One that was only free a moment ago may be given to somebody else before it is used; the
system gives away none that is bound, and a bound one at which nobody listens refuses."""

import atexit
import socket
import sys


class KeptPort:
    """A port of 127.0.0.1 that nobody else is given before `close`. Whoever is told its number may listen there, also
    again and again; where nobody does, connections are refused. Elsewhere than on Linux, which lets a second socket
    have an address at which none listens, it is only free at the beginning."""

    def __init__(self) -> None:
        self._keeper = socket.socket()
        if sys.platform == "linux":
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # servers set one of them
                self._keeper.setsockopt(socket.SOL_SOCKET, option, 1)
        self._keeper.bind(("127.0.0.1", 0))
        self.number = int(self._keeper.getsockname()[1])
        if sys.platform != "linux":
            self._keeper.close()

    def close(self) -> None:
        """May be called twice."""
        self._keeper.close()

    def __enter__(self) -> int:
        return self.number

    def __exit__(self, *_: object) -> None:
        self.close()


def kept_port() -> int:
    """A port that is kept until this process ends."""
    port = KeptPort()
    atexit.register(port.close)
    return port.number
