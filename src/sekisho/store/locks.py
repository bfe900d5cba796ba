"""A lock that is waited for, so that two processes prepare one database after the other."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sekisho.core.errors import StoreUnavailable
from sekisho.core.file_lock import try_lock


@asynccontextmanager
async def file_lock(path: Path, timeout_s: float) -> AsyncIterator[None]:
    """Holds the lock file `path`. It is left lying there: to remove it would let two processes hold two files."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not try_lock(descriptor):
            if asyncio.get_running_loop().time() > deadline:
                raise StoreUnavailable(f"another process has held {path.name} for {timeout_s:g} s")
            await asyncio.sleep(0.02)
        yield
    finally:
        os.close(descriptor)
