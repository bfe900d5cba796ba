"""How a command ends when it does not end well.

Exit codes: 0 done · 1 it failed · 2 wrong usage or settings · 3 not running or not found · 4 no network ·
130 interrupted
"""

from typing import Any

OK = 0
FAILED = 1
USAGE = 2
ABSENT = 3
NO_NETWORK = 4
INTERRUPTED = 130


class CommandFailed(Exception):
    """An operational failure, told in one or two lines. `details` go into the JSON form."""

    def __init__(
        self, message: str, *, hint: str | None = None, exit_code: int = FAILED, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.details = details or {}


def operational(error: BaseException) -> CommandFailed | None:
    """The failure that an error of the lower layers means; None for a programmer's error."""
    if isinstance(error, CommandFailed):
        return error
    if isinstance(error, KeyboardInterrupt):
        return CommandFailed("interrupted", exit_code=INTERRUPTED)
    return _from_click(error) or _from_layers(error)


def _from_click(error: BaseException) -> CommandFailed | None:
    # Typer brings its own copy of Click since 0.2x and the real one before: told by what they offer, not by class.
    if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
        return None
    context = getattr(error, "ctx", None)
    hint = f"try: {context.command_path} --help" if context is not None else None
    return CommandFailed(error.format_message(), hint=hint, exit_code=error.exit_code)


def _from_layers(error: BaseException) -> CommandFailed | None:
    from sekisho.core.errors import NotFound, RequestError, SekishoError
    from sekisho.ops.instance_lock import AlreadyRunning
    from sekisho.settings import SettingsError

    if isinstance(error, SettingsError):
        import msgspec

        details = {"problems": [msgspec.structs.asdict(problem) for problem in error.problems]}
        return CommandFailed(str(error), exit_code=USAGE, details=details)
    if isinstance(error, SekishoError):
        code = ABSENT if isinstance(error, NotFound) else USAGE if isinstance(error, RequestError) else FAILED
        hint = "sekisho doctor" if code == FAILED else None
        known = {"code": error.error_code, "param": error.param}
        return CommandFailed(error.message, hint=hint, exit_code=code, details=known)
    if isinstance(error, AlreadyRunning):
        return CommandFailed(str(error), hint="sekisho status", exit_code=FAILED)
    return _from_serve(error) or _from_hub(error) or _from_system(error)


def _from_serve(error: BaseException) -> CommandFailed | None:
    import sys

    serve = sys.modules.get("sekisho.serve")  # it can only have raised if it was loaded
    if serve is not None and isinstance(error, serve.StartFailed):
        tail = tuple(error.log_tail)
        message = "\n".join((str(error), *(f"  | {line}" for line in tail)))
        return CommandFailed(message, hint="sekisho doctor", details={"log_tail": list(tail)})
    return None


def _from_hub(error: BaseException) -> CommandFailed | None:
    from sekisho.ops.hub_listing import HubError, NoNetwork, NoSuchModel

    if not isinstance(error, HubError):
        return None
    code = NO_NETWORK if isinstance(error, NoNetwork) else ABSENT if isinstance(error, NoSuchModel) else FAILED
    return CommandFailed(str(error), exit_code=code)


def _from_system(error: BaseException) -> CommandFailed | None:
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        hint = "sekisho doctor" if isinstance(error, PermissionError) else None
        return CommandFailed(f"{where}{error.strerror or error}", hint=hint)
    return None
