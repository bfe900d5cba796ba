"""Runs the command line: parses, calls, and turns every error into a message and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence

from sekisho.cli import hints
from sekisho.cli.failure import FAILED, CommandFailed, operational
from sekisho.cli.output import Output, spell_out


def run(arguments: Sequence[str]) -> int:
    """The exit code. Operational errors are told in words; `--debug` (or SEKISHO_DEBUG=1) shows where they arose."""
    with hints.one_command():
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    from sekisho.cli.app import app

    spell_out(sys.stdout, sys.stderr)
    debug = "--debug" in _options(arguments) or os.environ.get("SEKISHO_DEBUG", "") not in ("", "0")
    rest = _without(arguments, "--debug")
    output = Output(as_json="--json" in _options(arguments))
    try:
        result = app(args=rest, prog_name="sekisho", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # the outermost frame: nothing may pass it
        if type(error).__name__ == "NoArgsIsHelpError" and not output.as_json:
            return _run([*rest, "--help"])
        failure = operational(error)
        if debug:
            traceback.print_exception(error, file=sys.stderr)
        if failure is None:
            hint = None if debug else "this is a fault of Sekisho; run it again with --debug and report what it shows"
            failure = CommandFailed(f"internal error: {type(error).__name__}: {error}", hint=hint, exit_code=FAILED)
        output.failure(failure)
        return failure.exit_code
    return result if isinstance(result, int) else 0


def _options(arguments: Sequence[str]) -> list[str]:
    """What stands before a bare `--`."""
    words = list(arguments)
    return words[: words.index("--")] if "--" in words else words


def _without(arguments: Sequence[str], flag: str) -> list[str]:
    before = _options(arguments)
    return [word for word in before if word != flag] + list(arguments)[len(before) :]
