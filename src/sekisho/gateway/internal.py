"""The door for our own processes (the control agent, the supervisor): they show the workers' key, never a caller's."""

import os
import secrets
from typing import TYPE_CHECKING

from sekisho.core.errors import NotFound, Unauthenticated
from sekisho.engines.worker_process import KEY_ENV
from sekisho.gateway.router import Call

if TYPE_CHECKING:
    from sekisho.gateway.app import Gateway


def require_worker_key(gateway: "Gateway", call: Call) -> None:
    """For handlers of routes that are `public` in the table and yet not for the team. Raises NotFound where this
    gateway has no worker key (there is no such address then); for another key or none Unauthenticated, or Forbidden
    from a network that may not use the server. Our own processes come from this machine's addresses, which
    `allow_networks` need not name. The comparison takes the same time wherever the keys differ."""
    key = os.environ.get(KEY_ENV, "")
    if not key:
        raise NotFound(f"There is nothing at {call.request.path[:200]}.", code="unknown_path")
    scheme, _, shown = call.request.headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not secrets.compare_digest(shown.strip(), key.encode()):
        gateway.address(call.request)
        raise Unauthenticated("This address is for the server's own processes.")
