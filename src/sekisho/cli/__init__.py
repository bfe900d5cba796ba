"""The command line. Light at the top: what a command needs is imported when it runs."""

import sys


def main() -> None:
    """Entry point of the `sekisho` program."""
    from sekisho.cli.running import run

    sys.exit(run(sys.argv[1:]))
