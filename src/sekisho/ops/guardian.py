"""The process that outlives a supervisor's violent end, for as long as it takes to kill what was left behind.

Started as a script by path, isolated and without site packages, so it costs few milliseconds and megabytes. Standard
input brings lines: `+123` a process group to guard, `-123` one that is gone, `bye` an orderly end. End of file
without `bye` means that the supervisor died: every guarded group is killed.
"""

import os
import signal
import sys


def main() -> None:
    for quiet in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(quiet, signal.SIG_IGN)  # a service manager signals everybody; the supervisor decides
    groups: set[int] = set()
    for line in sys.stdin:
        order = line.strip()
        if order == "bye":
            return
        if order.startswith("+"):
            groups.add(int(order[1:]))
        elif order.startswith("-"):
            groups.discard(int(order[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            continue  # already gone


if __name__ == "__main__":
    main()
