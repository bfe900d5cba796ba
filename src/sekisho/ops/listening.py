"""Whether an address can be listened on, and what to do where it cannot."""

import errno
import os
import socket

SPARE_PORT = 7010


def refusal(host: str, port: int) -> tuple[str, str] | None:
    """Why the address cannot be listened on, and what to do; None where it can."""
    name = host.strip("[]")
    elsewhere = "choose an address of this machine: sekisho up --host 127.0.0.1"
    try:
        with socket.socket(socket.AF_INET6 if ":" in name else socket.AF_INET) as probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((name, port))
    except (socket.gaierror, UnicodeError):
        return "no such host is known", elsewhere
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno == errno.EADDRNOTAVAIL:
            return why, elsewhere
        other = port + 1 if error.errno == errno.EADDRINUSE and port < 65_535 else SPARE_PORT
        return why, f"choose another port: sekisho up --port {other}"
    return None
