"""Advisory locks on files, freed by the kernel when their process dies, kill -9 included."""

import os
import sys

if sys.platform == "win32":
    import msvcrt

    _FAR_OFFSET = 1 << 40  # Windows locks are mandatory: lock a byte that nobody reads or writes

    def try_lock(descriptor: int) -> bool:
        """Takes the file's exclusive lock without waiting; False when somebody else holds it."""
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, _FAR_OFFSET, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, position, os.SEEK_SET)
        return True

else:
    import fcntl

    def try_lock(descriptor: int) -> bool:
        """Takes the file's exclusive lock without waiting; False when somebody else holds it.

        The lock belongs to the open file, so a second `open` of the same path by the same process is refused too.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
