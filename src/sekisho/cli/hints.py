"""Commands that a text tells the reader to run: they must look into the home that this command was given."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_given: ContextVar[Path | None] = ContextVar("the home on the command line", default=None)
_COMMAND = re.compile(
    r"sekisho (?:guard rules \w+"
    r"|(?:key|model|config|client|guard|audit|escalation|emergency|rubric|scorecard|policy) \w+"
    r"|evaluate (?:report|list|attest|verify|forget|compare)|evaluate|bench|gate|continuity"
    r"|engine (?:use \w+|build-native|status)|up|down|status|usage|doctor)\b(?! --h)"
)


def remember_home(home: Path | None) -> Path | None:
    """Keeps what `--home` or SEKISHO_HOME says, for the texts of this command."""
    _given.set(home)
    return home


@contextmanager
def one_command() -> Iterator[None]:
    """What is remembered inside is forgotten after it."""
    token = _given.set(None)
    try:
        yield
    finally:
        _given.reset(token)


def here(text: str) -> str:
    """`sekisho up` becomes `sekisho up --home X` where a bare one would look into another home."""
    given = _given.get()
    if given is None or "sekisho " not in text:
        return text
    from sekisho.ops.home import Home

    home = Home.find(given).path
    if home == Home.find().path:
        return text
    option = f" --home {shlex.quote(str(home))}"
    return _COMMAND.sub(lambda command: command[0] + option, text)
